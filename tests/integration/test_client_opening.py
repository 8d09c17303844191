"""Open connections of the Python client that fail: it reports its own error, with address and cause."""

import asyncio
import contextlib
import importlib
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidMessage, InvalidProxy, InvalidURI, ProxyError, SecurityError

from tests.support.memory_gateway import ManualClock, run
from tests.support.passing_table import ROWS
from tests.support.scripted_gateway import ScriptedGateway, scripted_gateway
from wsgate.client import (
    Client,
    ClientOptions,
    ClosedError,
    Disconnected,
    Ending,
    Environment,
    SyncClient,
    listen,
)
from wsgate.client.transport import failure_of
from wsgate.errors import BackendError, SettingsError

WITHIN_S = 30.0
NAMES = ("ws", "wss", "http", "https", "socks", "all", "no")
ELSEWHERE = "ws://gateway.invalid/ws"  # RFC 6761: no resolver has this name


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


@contextlib.asynccontextmanager
async def server_answering(answer: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Run a server that answers every connection with these bytes; yield its port and the heads it read."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            heads.append(await reader.read(64 * 1024))
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heads


async def first_error(url: str, **options: Any) -> Disconnected:
    """Return the first error that the client reports, and check that a final one has ended the client."""
    reported: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    def on_error(error: Exception) -> None:
        if not reported.done():
            reported.set_result(error)

    environment = Environment(clock=ManualClock())
    async with Client(
        url, options=ClientOptions(**options), environment=environment, on_error=on_error
    ) as client:
        async with asyncio.timeout(WITHIN_S):
            error = await reported
        assert isinstance(error, Disconnected)
        assert error.temporary is error.ending.may_return
        if not error.temporary:
            assert await client.closed() == error.ending
            with pytest.raises(ClosedError):
                await client.connected()
        return error


def refused(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()


# --- proxies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ws_proxy", "http_proxy", "https_proxy", "socks_proxy", "HTTP_PROXY"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5h://127.0.0.1:9", "nonsense", "http://h:x"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_address_is_reached_directly_although_a_proxy_is_set(
    name: str, proxy: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, proxy)

    async def main() -> None:
        async with scripted_gateway() as gateway:
            url = gateway.url.replace("127.0.0.1", host)
            async with Client(url) as client, asyncio.timeout(WITHIN_S):
                await client.connected()
            async with Client(url, options=ClientOptions(proxy=proxy)) as client, asyncio.timeout(WITHIN_S):
                await client.connected()

    run(main())


def test_other_address_goes_through_the_proxy_unless_no_proxy_or_the_option_excludes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with server_answering(refused("503 Busy")) as (port, heads):
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
            error = await first_error(ELSEWHERE)
            assert error.ending == Ending(0, "proxy_failed")
            assert heads[0].startswith(b"CONNECT gateway.invalid:80 ")
            error = await first_error(ELSEWHERE, proxy=False)
            assert error.ending.reason == "unreachable"
            monkeypatch.setenv("no_proxy", "gateway.invalid")
            assert (await first_error(ELSEWHERE)).ending.reason == "unreachable"
            assert len(heads) == 1
            monkeypatch.delenv("http_proxy")
            await first_error(ELSEWHERE, proxy=f"http://127.0.0.1:{port}")
            assert len(heads) == 2

    run(main())


@pytest.mark.parametrize(
    "proxy",
    [
        "socks5h://user:secret@127.0.0.1:9",  # needs a package that is not installed here
        "nonsense://user:secret@h",
        "secret",
        "http://user@secret:1",
        "http://user:secret@h:x",
        "http://user:secret@h:99999",
        "http://user:%ffsecret@h",
        "http://h/secret",
    ],
)
def test_unusable_proxy_ends_the_client_with_a_final_error_that_hides_the_password(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if proxy.startswith("socks"):
        monkeypatch.setitem(sys.modules, "python_socks", None)

    async def main() -> None:
        for options in ({}, {"proxy": proxy}):
            if not options:
                monkeypatch.setenv("https_proxy", proxy)
            error = await first_error(ELSEWHERE, **options)
            assert error.ending == Ending(0, "proxy_unusable", may_return=False)
            assert ELSEWHERE in str(error) and "ClientOptions.proxy" in str(error)
            assert "secret" not in str(error) and "\n" not in str(error)

    run(main())


@pytest.mark.parametrize(
    ("answer", "reason", "is_final"),
    [
        (refused("407 Proxy Authentication Required"), "proxy_refused", True),
        (refused("403 Forbidden"), "proxy_refused", True),
        (refused("502 Bad Gateway"), "proxy_failed", False),
        (refused("429 Too Many"), "proxy_failed", False),
        (refused("302 Found"), "proxy_failed", False),
        (refused("501 Not Implemented"), "proxy_refused", True),
        (b"nonsense\r\n\r\n", "proxy_failed", False),
    ],
)
def test_4xx_and_501_of_a_proxy_are_final_and_other_failures_of_it_are_temporary(
    answer: bytes, reason: str, *, is_final: bool
) -> None:
    async def main() -> None:
        async with server_answering(answer) as (port, _):
            error = await first_error(ELSEWHERE, proxy=f"http://user:secret@127.0.0.1:{port}")
            assert error.ending == Ending(0, reason, may_return=not is_final)
            assert "secret" not in str(error)

    run(main())


# --- the table ---------------------------------------------------------------------------------------

FAILURES = [
    (ConnectionRefusedError("refused"), "unreachable"),
    (socket.gaierror(-2, "unknown"), "unreachable"),
    (OSError("network is unreachable"), "unreachable"),
    (TimeoutError(), "handshake_timeout"),
    (ssl.SSLCertVerificationError("expired"), "tls_failed"),
    (ssl.SSLError("wrong version"), "tls_failed"),
    (InvalidMessage("nonsense"), "handshake_failed"),
    (InvalidURI("http://h", "a redirect"), "handshake_failed"),
    (SecurityError("a redirect"), "handshake_failed"),
    (ValueError("a fault of a library"), "handshake_failed"),
    (RuntimeError("a fault of a library"), "handshake_failed"),
    (ProxyError("nonsense"), "proxy_failed"),
    (InvalidProxy("nonsense", "no scheme"), "proxy_unusable"),
    (ImportError("needs python-socks"), "proxy_unusable"),
]
ELSEWHERE_TESTED = {
    "proxy_refused": "above, with a proxy",
    "welcome_timeout": "tests/unit/client/test_reconnecting.py",
    "silence": "tests/unit/client/test_reconnecting.py",
    "bad_message": "tests/unit/client/test_reconnecting.py",
    "no_common_subprotocol": "tests/integration/test_client.py",
    "token_failed": "tests/unit/client/test_reconnecting.py",
    "unauthorized": "tests/unit/client/test_reconnecting.py",
}


@pytest.mark.parametrize(("error", "name"), FAILURES, ids=lambda value: getattr(value, "args", value))
def test_every_error_of_a_library_maps_to_the_documented_ending(error: Exception, name: str) -> None:
    found = failure_of(error)
    (row,) = [row for row in ROWS if (row["kind"], row["name"]) == ("client", name)]
    assert found == Ending(0, name, may_return=row["state"] == "passing")


def test_every_documented_ending_of_the_python_client_has_a_test() -> None:
    rows = {row["name"] for row in ROWS if row["kind"] == "client" and "python" in row["clients"]}
    assert rows == {name for _, name in FAILURES} | set(ELSEWHERE_TESTED)


# --- other failures -----------------------------------------------------------------------------------


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_closed_port_unknown_name_and_malformed_answer_have_errors_that_name_the_cause() -> None:
    async def main() -> None:
        url = f"ws://127.0.0.1:{unused_port()}/ws"
        error = await first_error(f"{url}?token=secret")
        assert error.ending == Ending(0, "unreachable")
        assert str(error).startswith(f"disconnected: unreachable: {url}: ")
        assert "Connect call failed" in str(error) and "secret" not in str(error)
        error = await first_error(ELSEWHERE)
        assert error.ending == Ending(0, "unreachable")
        assert "Name or service not known" in str(error) or "Temporary failure" in str(error)
        async with server_answering(b"nonsense\r\n\r\n") as (port, _):
            assert (await first_error(f"ws://127.0.0.1:{port}/")).ending == Ending(0, "handshake_failed")
        async with server_answering(b"HTTP/1.1 302 Found\r\nLocation: http://h/\r\n\r\n") as (port, _):
            assert (await first_error(f"ws://127.0.0.1:{port}/")).ending == Ending(302, "refused")
        async with server_answering(refused("404 Not Found")) as (port, _):
            error = await first_error(f"ws://127.0.0.1:{port}/nowhere")
            assert str(error.ending) == f"404 refused: ws://127.0.0.1:{port}/nowhere: answered 404"

    run(main())


def test_wss_to_a_server_without_tls_is_a_temporary_tls_failure() -> None:
    async def main() -> None:
        async with server_answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as (port, _):
            error = await first_error(f"wss://127.0.0.1:{port}/")
            assert error.ending == Ending(0, "tls_failed")
            assert f"wss://127.0.0.1:{port}/: [SSL" in str(error)

    run(main())


def test_self_signed_certificate_is_a_temporary_tls_failure_that_names_the_cause(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {key} "
        f"-out {certificate} -days 2 -subj /CN=localhost".split(),
        check=True,
        capture_output=True,
        timeout=WITHIN_S,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def main() -> None:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        async with server:
            error = await first_error(f"wss://localhost:{server.sockets[0].getsockname()[1]}/")
        assert error.ending == Ending(0, "tls_failed")
        assert "certificate verify failed" in str(error)

    asyncio.run(main())  # the task of the server reports the failed handshake


# --- wsgate listen ------------------------------------------------------------------------------------


@pytest.fixture
def served() -> Iterator[str]:
    """Run a scripted gateway in a thread of its own; yield its address."""
    ready, end = threading.Event(), asyncio.Event()
    found: dict[str, Any] = {}

    async def main() -> None:
        async with scripted_gateway(ScriptedGateway()) as gateway:
            found.update(url=gateway.url, loop=asyncio.get_running_loop())
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(WITHIN_S)
    yield found["url"]
    found["loop"].call_soon_threadsafe(end.set)
    thread.join(WITHIN_S)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5h://127.0.0.1:9", "nonsense"])
def test_listen_reaches_a_loopback_gateway_although_proxies_are_set(
    served: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "socks_proxy"):
        monkeypatch.setenv(name, proxy)

    class Seen(Exception):
        pass

    def show(line: str) -> None:
        if '"subbed"' in line:
            raise Seen

    with pytest.raises(Seen):
        listen(served, "news", show)


def test_listen_names_itself_when_it_closes_the_connection_because_of_a_large_message(
    served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("wsgate.client.listen")
    monkeypatch.setattr(module, "MESSAGE_LIMIT_BYTES", 8)
    with pytest.raises(BackendError, match=r"^this command closed the connection: sent 1009") as caught:
        listen(served, "news", print)
    assert not caught.value.temporary


def test_sync_client_can_disconnect_and_connect_again_but_not_after_its_end(served: str) -> None:
    client = SyncClient(served)
    client.disconnect()  # harmless before
    with client:
        with client.subscribe("news"):
            for _ in range(3):
                client.disconnect()
                client.connect(WITHIN_S)
                client.publish("news", 1)
    with pytest.raises(ClosedError):
        client.connect(WITHIN_S)


def test_listen_raises_only_errors_of_wsgate_with_address_and_cause() -> None:
    for url in ("http://localhost:8000/ws", "localhost:8000", "", "ws://a..b/", "ws://u@h/"):
        with pytest.raises(SettingsError, match=r"^url: must be ws://"):
            listen(url, "news", print)
    with pytest.raises(SettingsError, match="@me is the inbox of a user"):
        listen("ws://127.0.0.1:1/ws", "@me", print)
    url = f"ws://127.0.0.1:{unused_port()}/ws"
    with pytest.raises(BackendError, match=f"{url} cannot be reached: .*refused"):
        listen(url, "news", print)
    with pytest.raises(BackendError, match=rf"{ELSEWHERE} cannot be reached"):
        listen(ELSEWHERE, "news", print)

    async def main() -> None:
        for answer in (b"nonsense\r\n\r\n", b"HTTP/1.1 101 Switching\r\n\r\n"):
            async with server_answering(answer) as (port, _):
                with pytest.raises(BackendError, match="is not a gateway"):
                    await asyncio.to_thread(listen, f"ws://127.0.0.1:{port}/", "news", print)

    run(main())
