"""Test the JavaScript client: its own tests, its types, and real gateways from Node and from Chromium."""

import contextlib
import json
import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Protocol

import jwt
import pytest
import redis

from tests.support.browser import find_chromium, running_browser
from tests.support.gateway import Gateway, running_gateway, wait_until
from tests.support.node import ROOT, Node, provide_node

pytestmark = pytest.mark.slow

CLIENT: Final = ROOT / "wsgate" / "client" / "js"
NODE_TESTS: Final = sorted((ROOT / "tests" / "js").glob("*.test.mjs"))
SECRET: Final = "a secret of 32 bytes, for tests!"
PAGE: Final = """<!doctype html><link rel="icon" href="data:,"><script type="module">
    import * as wsgate from "/client.js";
    globalThis.wsgate = wsgate;
</script>"""
COMPILER_OPTIONS: Final = {
    "noEmit": True,
    "strict": True,
    "allowJs": True,
    "checkJs": True,
    "target": "es2022",
    "lib": ["es2022", "dom", "dom.iterable"],
    "module": "nodenext",
    "moduleDetection": "force",
    "types": [],
}
# A client with its defaults, which records all its events.
START: Final = """(async (url) => {
    // A command may wait for a gateway that starts, and on a busy machine that takes more than ten seconds.
    globalThis.client = new wsgate.Client(url, { token: () => token, commandTimeoutMs: 60_000 });
    globalThis.happened = { open: [], close: [], error: [], gap: [] };
    for (const type of Object.keys(happened)) {
        client.addEventListener(type, (event) => happened[type].push({ ...event }));
    }
    globalThis.heard = [];
    globalThis.subscribe = async (name) => {
        const subscription = name === "@me" ? client.inbox() : client.subscribe(name);
        subscription.onPublication = ({ channel, data, encoding }) => {
            heard.push([channel, encoding, encoding === "binary" ? [...data] : data]);
        };
        await subscription.ready;
    };
})"""


class Runtime(Protocol):
    """A place where scripts are evaluated: Node, or a page in a browser."""

    def evaluate(self, script: str) -> Any: ...

    def wait_for(self, claim: str, within_ms: int = ...) -> None: ...


@pytest.fixture(scope="module")
def node() -> Node:
    return provide_node()


# --- without a gateway --------------------------------------------------------------------------------


def test_at_least_four_test_files_for_node_exist() -> None:
    assert len(NODE_TESTS) >= 4


@pytest.mark.parametrize("file", NODE_TESTS, ids=lambda file: file.name.removesuffix(".test.mjs"))
def test_every_test_of_the_javascript_client_passes_under_node(node: Node, file: Path) -> None:
    done = node.run("--test", "--test-reporter=tap", str(file))
    counts = {word: int(count) for word, count in re.findall(r"^# (\w+) (\d+)$", done.stdout, re.MULTILINE)}
    assert done.returncode == 0 and counts["fail"] == counts["cancelled"] == 0, done.stdout + done.stderr
    assert counts["pass"] == counts["tests"] > 0, "the file ran no tests"


def test_type_declarations_match_the_javascript_module(node: Node, tmp_path: Path) -> None:
    done = compile_types(node, tmp_path)
    assert done == ""


def test_type_declaration_that_differs_from_the_module_is_a_compiler_error(
    node: Node, tmp_path: Path
) -> None:
    types = (CLIENT / "wsgate.d.ts").read_text()
    done = compile_types(node, tmp_path, types.replace("  close(): void;", "  close(): number;"))
    assert "implementation" in done


def compile_types(node: Node, folder: Path, types: str | None = None) -> str:
    """Return what the compiler reports about the module, its types, and a program that uses them."""
    shutil.copy(CLIENT / "wsgate.js", folder / "implementation.js")
    (folder / "wsgate.d.ts").write_text(types or (CLIENT / "wsgate.d.ts").read_text())
    shutil.copy(ROOT / "tests" / "support" / "client_types.ts", folder)
    (folder / "package.json").write_text('{"type": "module"}')
    options = {"compilerOptions": COMPILER_OPTIONS, "include": ["*"]}
    (folder / "tsconfig.json").write_text(json.dumps(options))
    compiler = node.modules / "typescript" / "bin" / "tsc"
    return node.run(str(compiler), "--project", str(folder), "--pretty", "false").stdout


# --- with a gateway, from Node and from a page --------------------------------------------------------


@pytest.fixture(scope="module")
def page_url() -> Iterator[str]:
    """Serve a site with the client, on another origin than the gateway."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_client = self.path.partition("?")[0] == "/client.js"
            body = (CLIENT / "wsgate.js").read_bytes() if is_client else PAGE.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/javascript" if is_client else "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def serve(
    page_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., contextlib.AbstractContextManager[Gateway]]:
    """Return a function that starts a gateway with the same secret, which accepts the origin of the page."""
    config = tmp_path_factory.mktemp("config") / "wsgate.toml"
    config.write_text(f'[server]\nallowed_origins = ["{page_url}"]\n[auth]\nhmac_secret = "{SECRET}"\n')
    return lambda *flags: running_gateway("--config", str(config), *flags)


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., contextlib.AbstractContextManager[Gateway]]) -> Iterator[Gateway]:
    with serve() as running:
        yield running


@pytest.fixture(params=["node", "chromium"])
def runtime(request: pytest.FixtureRequest, node: Node, page_url: str) -> Iterator[Runtime]:
    """Yield the place where the client runs; an uncaught error in it fails the test."""
    if request.param == "node":
        with node.process() as process:
            yield process
            process.evaluate("0")  # an uncaught error would have ended it
        return
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium here, and none could be installed")
    with running_browser(chromium) as browser:
        browser.open(page_url)
        browser.wait_for("globalThis.wsgate")
        yield browser
        browser.evaluate("0")
        # A failed connection is not an error of a script.
        assert [fault for fault in browser.faults if not fault.startswith("WebSocket connection to")] == []


def token(user: str, ttl_s: int = 3600) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time()) + ttl_s}, SECRET)


def start(runtime: Runtime, gateway: Gateway, shown: str = "") -> None:
    """Start a client and wait until it is open."""
    runtime.evaluate(f"globalThis.token = {json.dumps(shown)}")
    runtime.evaluate(f"{START}({json.dumps(gateway.ws_url)})")
    runtime.evaluate("client.connect()")


def publish(gateway: Gateway, channel: str, data: str | bytes) -> None:
    with redis.Redis.from_url(gateway.bus_url) as bus:
        assert bus.publish(f"wsgate:ch:{channel}", data) == 1


def wait_for_publication(runtime: Runtime, channel: str, data: Any, encoding: str = "json") -> None:
    runtime.wait_for(f"heard.some((each) => JSON.stringify(each) === `{dump([channel, encoding, data])}`)")


def dump(value: Any) -> str:
    """Return JSON as JSON.stringify writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def test_js_client_subscribes_publishes_and_receives_json_and_binary(
    runtime: Runtime, gateway: Gateway
) -> None:
    start(runtime, gateway)
    runtime.evaluate("Promise.all([subscribe('news'), subscribe('chat:42')])")
    assert runtime.evaluate("client.publish('news', { text: 'h\\u00e9', n: [1, null] })") == {}
    wait_for_publication(runtime, "news", {"text": "h\u00e9", "n": [1, None]})
    runtime.evaluate("client.publish('news', 'not to me', { echo: false, key: 'k' })")
    publish(gateway, "chat:42", '"from a backend"')
    publish(gateway, "chat:42", b"\xff\xfe\x00")
    wait_for_publication(runtime, "chat:42", "from a backend")
    wait_for_publication(runtime, "chat:42", [255, 254, 0], "binary")
    assert runtime.evaluate("heard.length") == 3
    assert runtime.evaluate("[happened.error.length, happened.gap.length]") == [0, 0]


def test_js_subscription_can_be_read_with_for_await_until_it_is_unsubscribed(
    runtime: Runtime, gateway: Gateway
) -> None:
    start(runtime, gateway)
    read = """(async () => {
        const subscription = client.subscribe("loop");
        await subscription.ready;
        for (let number = 0; number < 5; number += 1) client.publish("loop", number);
        const read = [];
        for await (const { data } of subscription) if (read.push(data) === 5) break;
        await subscription.unsubscribe();
        for await (const { data } of subscription) read.push(data);
        return read;
    })()"""
    assert runtime.evaluate(read) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("runtime", ["chromium"], indirect=True)
def test_js_client_works_without_event_url_atob_and_performance(runtime: Runtime, gateway: Gateway) -> None:
    """React Native lacks them. The test deletes them before the module is loaded."""
    gone = ("Event", "EventTarget", "URL", "atob", "performance", "structuredClone", "AbortController")
    runtime.evaluate(f"for (const name of {json.dumps(gone)}) delete globalThis[name]")
    assert runtime.evaluate("typeof EventTarget + typeof URL + typeof performance") == "undefined" * 3
    runtime.evaluate("import('/client.js?bare').then((module) => { globalThis.wsgate = module; })")
    start(runtime, gateway)
    runtime.evaluate("subscribe('bare')")
    publish(gateway, "bare", b"\xff\xfe\x00")
    assert runtime.evaluate("client.publish('bare', 1)") == {}
    runtime.evaluate("client.disconnect()")
    assert runtime.evaluate("client.state") == "idle"
    runtime.evaluate("client.connect()")
    assert runtime.evaluate("[client.state, happened.open.length]") == ["open", 2]


def test_js_client_can_disconnect_and_connect_again_and_keeps_its_subscriptions(
    runtime: Runtime, gateway: Gateway
) -> None:
    start(runtime, gateway)
    runtime.evaluate("subscribe('kept')")
    runtime.evaluate("""(async () => {
        for (let turn = 0; turn < 3; turn += 1) {
            client.disconnect();
            client.connect();
            client.disconnect();
            await client.connect();
        }
    })()""")
    runtime.wait_for("happened.gap.length > 0")  # the channel is subscribed again, and the loss is reported
    publish(gateway, "kept", '"still here"')
    wait_for_publication(runtime, "kept", "still here")
    wait_until("one connection is left", lambda: gateway.metric("wsgate_connections_held") == 1, 20)


def test_js_client_without_a_required_token_ends_with_401_and_does_not_retry(
    runtime: Runtime, tmp_path: Path, page_url: str
) -> None:
    config = tmp_path / "wsgate.toml"
    config.write_text(f'[server]\nallowed_origins = ["{page_url}"]\n[auth]\nhmac_secret = "{SECRET}"\n')
    with running_gateway("--config", str(config), is_dev=False) as strict:
        runtime.evaluate(
            f"globalThis.client = new wsgate.Client({json.dumps(strict.ws_url)}); globalThis.faults = [];"
            "client.addEventListener('error', ({ error }) => faults.push(error.message)); 0"
        )
        caught = runtime.evaluate("client.connect().catch(({ code, message }) => [code, message])")
        text = "closed: 401 unauthorized: the gateway requires a token, and this client has none"
        assert caught == [401, text]
        assert runtime.evaluate("[client.state, faults]") == ["closed", [caught[1]]]


def test_js_client_receives_publications_to_the_inbox_of_its_user(runtime: Runtime, gateway: Gateway) -> None:
    start(runtime, gateway, token("42"))
    runtime.evaluate("subscribe('@me')")
    assert runtime.evaluate("happened.open[0].user") == "42"
    publish(gateway, "@42", '{"n":1}')
    wait_for_publication(runtime, "@me", {"n": 1})


def test_js_client_reports_refused_commands_as_command_errors_and_stays_open(
    runtime: Runtime, gateway: Gateway
) -> None:
    start(runtime, gateway)
    caught = "(error) => [error.constructor === wsgate.CommandError, error.code, error.error]"
    assert runtime.evaluate(f"client.publish('{{no}}', 1).catch({caught})") == [True, 400, "bad_request"]
    assert runtime.evaluate(f"subscribe('@me').catch({caught})") == [True, 400, "bad_request"]
    assert runtime.evaluate("client.state") == "open"


def test_js_client_with_an_invalid_token_is_closed_4501_and_does_not_return(
    runtime: Runtime, gateway: Gateway
) -> None:
    with pytest.raises(AssertionError, match="4501"):
        start(runtime, gateway, "no.token.at-all")
    assert runtime.evaluate("client.state") == "closed"
    assert runtime.evaluate("happened.close.map(({ code }) => code)") == [4501]


@pytest.mark.parametrize("runtime", ["node"], indirect=True)
def test_js_client_refreshes_its_token_before_it_expires(runtime: Runtime, gateway: Gateway) -> None:
    start(runtime, gateway, token("42", ttl_s=5))
    runtime.evaluate(f"globalThis.token = {json.dumps(token('42'))}")
    runtime.evaluate("new Promise((resolve) => setTimeout(resolve, 6000))")
    assert runtime.evaluate("[client.state, happened.open.length, happened.error.length]") == ["open", 1, 0]


def test_js_client_reconnects_and_subscribes_again_after_a_gateway_restart(
    runtime: Runtime, serve: Callable[..., contextlib.AbstractContextManager[Gateway]], port: int
) -> None:
    with serve("--port", str(port)) as gateway:
        start(runtime, gateway, token("42"))
        runtime.evaluate("Promise.all([subscribe('news'), subscribe('@me')])")
        runtime.evaluate("globalThis.unsubscribed = client.subscribe('gone').unsubscribe()")
        gateway.stop()
        runtime.wait_for("client.state === 'waiting'")
        assert runtime.evaluate("[happened.close[0].code, happened.close[0].willReconnect]") == [4012, True]
        # A publish without a connection waits for the connection, but not for the subscription.
        publishing = "client.publish('news', 'said meanwhile').then(() => 'ok', ({ error }) => error)"
        runtime.evaluate(f"globalThis.publishing = {publishing}, 0")
    with serve("--port", str(port)) as gateway:
        runtime.wait_for("client.state === 'open'")
        # The shard may accept the client before the bus accepts the shard.
        assert runtime.evaluate("publishing") in ("ok", "unavailable")
        runtime.wait_for("happened.gap.length === 2")  # both are subscribed again
        publish(gateway, "news", '"to all"')
        publish(gateway, "@42", '"for you"')
        wait_for_publication(runtime, "news", "to all")
        wait_for_publication(runtime, "@me", "for you")
        gaps = runtime.evaluate("happened.gap.map(({ channel, reason }) => [channel, reason])")
        assert sorted(gaps) == [["@me", "not_recovered"], ["news", "not_recovered"]]
        runtime.evaluate("client.close()")
        assert runtime.evaluate("happened.close.at(-1).code") == 1000


def test_gateway_serves_the_js_client_to_pages_of_any_origin() -> None:
    with running_gateway() as gateway:
        url = f"http://127.0.0.1:{gateway.port}/client.js"
        for _ in range(3):
            with urllib.request.urlopen(url, timeout=20) as answer:
                assert answer.read() == (ROOT / "wsgate" / "client" / "js" / "wsgate.js").read_bytes()
            assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
        wait_until(
            "the requests are counted", lambda: gateway.metric("wsgate_client_requests_total") == 3, 20
        )
        wait_until("no connection is left", lambda: gateway.metric("wsgate_connections_held") == 0, 20)
