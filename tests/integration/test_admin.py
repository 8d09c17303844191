"""Run the admin process over real HTTP, with a real statistics block and a real bus."""

import base64
import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from tests.support.valkey import Valkey, running_valkey
from wsgate.admin import AdminOptions, api, connections, run_admin
from wsgate.bus import Publication, decode_publication, parse_address
from wsgate.payload import BINARY, JSON
from wsgate.shard.statistics_layout import LAYOUT
from wsgate.statistics import PHASE_DRAINING, PHASE_READY, PHASE_STARTING, Board, Region, StatisticsBlock

KEY = "a key nobody guesses"
WITH_KEY = {"X-API-Key": KEY}
FAR_MS = 50_000
"""The furthest time ahead that a beat may have: see `wsgate.statistics.readiness.AHEAD_MS`."""
LIMIT_S = 20.0  # a limit that no healthy run reaches
MIB = 1024 * 1024

OPTIONS = AdminOptions(
    node="node-1",
    bus=parse_address("unix:///nowhere/bus.sock"),
    prefix="wsgate",
    api_key=KEY,
    is_dev=False,
    is_loopback=True,
    client_port=8000,
    path="/ws",
    connect_timeout_s=2.0,
    command_timeout_s=2.0,
    publish_command="wsgate publish news '{\"hello\":1}'",
    max_publish_bytes=64 * 1024,
    log_level="error",
)


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def healthy_block(shards: int = 2) -> StatisticsBlock:
    """Return a block whose beats are far in the future, so that no test depends on its own speed."""
    block = StatisticsBlock.create(LAYOUT, shards)
    for region in regions_of(block):
        region["phase"] = PHASE_READY
        region["bus_up"] = 1
    beat(block)
    return block


def regions_of(block: StatisticsBlock) -> list[Region]:
    return [block.keeper, *(block.shard(number) for number in range(block.shards))]


def beat(block: StatisticsBlock) -> None:
    for region in regions_of(block):
        region["beat_ms"] = region["probe_due_ms"] = now_ms() + FAR_MS


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Admin:
    """One admin process, and the keeper's ends of its listener, block and pipe."""

    options: AdminOptions
    block: StatisticsBlock
    listener: socket.socket
    pid: int = 0
    alive: list[int] = field(default_factory=list)  # the write end of the pipe, until it is closed

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def start(self) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(write)
                run_admin(self.options, self.block, self.listener, read, Board(1 << 16))
                code = 0
            finally:
                os._exit(code)
        os.close(read)
        self.alive = [write]

    def keeper_dies(self) -> None:
        os.close(self.alive.pop())

    def wait(self) -> int:
        """Return its exit code; a negative one is the signal that killed it."""
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def connect(self, *, receive_buffer_bytes: int = 0) -> socket.socket:
        """Connect with the receive buffer set first; a window that shrinks later could hide a reset."""
        client = socket.socket()
        if receive_buffer_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        client.settimeout(LIMIT_S)
        client.connect(("127.0.0.1", self.port))
        return client

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def publish(self, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
        return self.ask("POST", "/api/publish", json.dumps(fields).encode(), headers or WITH_KEY)


@contextlib.contextmanager
def running_admin(block: StatisticsBlock | None = None, **changes: Any) -> Iterator[Admin]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        admin = Admin(replace(OPTIONS, **changes), block or healthy_block(), listener)
        admin.start()
        try:
            yield admin
        finally:
            for write in admin.alive:
                os.close(write)
            if admin.pid:
                assert admin.wait() == 0


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture(scope="module")
def admin_of_all(valkey: Valkey) -> Iterator[Admin]:
    with running_admin(bus=parse_address(valkey.unix_url)) as running:
        yield running


@pytest.fixture
def admin(admin_of_all: Admin) -> Admin:
    """Return the admin process of the module, with fresh beats."""
    beat(admin_of_all.block)
    return admin_of_all


@pytest.fixture(scope="module")
def dev_of_all(valkey: Valkey) -> Iterator[Admin]:
    with running_admin(bus=parse_address(valkey.url), is_dev=True, api_key="") as running:
        yield running


@pytest.fixture
def dev(dev_of_all: Admin) -> Admin:
    """Return the admin process of the module in development mode, with fresh beats."""
    beat(dev_of_all.block)
    return dev_of_all


# --- health -------------------------------------------------------------------------------------------


def test_healthy_node_answers_200_on_healthz_and_readyz(admin: Admin) -> None:
    alive, ready = admin.get("/healthz"), admin.get("/readyz")
    assert (alive.status, alive.json) == (200, {"alive": True})
    assert (ready.status, ready.json) == (200, {"ready": True})
    assert ready.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("whose", "slot", "value", "why", "is_dead"),
    [
        ("keeper", "beat_ms", 0, "keeper_silent", True),
        ("shard", "beat_ms", 0, "shard_1_silent", True),
        ("keeper", "phase", PHASE_DRAINING, "draining", False),
        ("shard", "phase", PHASE_STARTING, "shard_1_starting", False),
        ("shard", "bus_up", 0, "shard_1_bus_down", False),
        ("shard", "probe_due_ms", 0, "shard_1_probe_late", False),
    ],
)
def test_each_fault_of_a_process_is_503_on_readyz_with_its_cause(
    whose: str, slot: str, value: int, why: str, is_dead: bool
) -> None:
    block = healthy_block()
    with running_admin(block) as admin:
        region = block.keeper if whose == "keeper" else block.shard(1)
        region[slot] = value
        alive, ready = admin.get("/healthz"), admin.get("/readyz")
        assert (ready.status, ready.json) == (503, {"ready": False, "why": [why]})
        if is_dead:
            assert (alive.status, alive.json) == (503, {"alive": False, "why": [why]})
        else:
            assert (alive.status, alive.json) == (200, {"alive": True})
        region[slot] = healthy_block().keeper[slot]
        assert admin.get("/readyz").status == 200


def test_health_paths_are_answered_while_a_publish_waits_for_a_silent_bus() -> None:
    with SilentBus() as bus:
        with running_admin(bus=bus.address, command_timeout_s=LIMIT_S) as admin, admin.connect() as waiting:
            waiting.sendall(raw_publish())
            bus.await_command()
            assert admin.get("/healthz").status == 200
            assert admin.get("/readyz").status == 200
            assert admin.get("/metrics").status == 200


class SilentBus(contextlib.ExitStack):
    """A bus that accepts commands and answers nothing."""

    def __enter__(self) -> "SilentBus":
        self._listener = self.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.address = parse_address(f"redis://127.0.0.1:{self._listener.getsockname()[1]}")
        return self

    def await_command(self) -> None:
        """Wait until a command has arrived, and leave it unanswered."""
        self._listener.settimeout(LIMIT_S)
        asking = self.enter_context(self._listener.accept()[0])
        assert asking.recv(1)

    def answer_once(self) -> None:
        """Answer the first command of the first connection, and nothing else."""

        def answer() -> None:
            asking = self.enter_context(self._listener.accept()[0])
            asking.recv(1024)
            asking.sendall(b"+PONG\r\n")

        self._listener.settimeout(LIMIT_S)
        thread = threading.Thread(target=answer)
        thread.start()
        self.callback(thread.join)


def raw_publish() -> bytes:
    body = b'{"channel":"news","data":1}'
    head = f"POST /api/publish HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    "line", ["Cookie: city=Ålesund", "X-Town: Århus", "Cookie: w=光明", "Content-Length: 0"]
)
def test_header_with_bytes_beyond_ascii_is_accepted_on_the_admin_port(admin: Admin, line: str) -> None:
    with admin.connect() as client:
        client.sendall(
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + line.encode() + b"\r\nConnection: close\r\n\r\n"
        )
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


# --- metrics ------------------------------------------------------------------------------------------


def test_metrics_are_parsed_by_the_prometheus_client_library() -> None:
    block = healthy_block()
    block.shard(0)["now_open"] = 41
    with running_admin(block) as admin:
        answer = admin.get("/metrics")
        families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = families["wsgate_connections"].samples
    assert [s.value for s in samples if s.labels == {"shard": "0", "state": "open"}] == [41]


def test_metrics_are_in_openmetrics_format_when_the_client_accepts_it(admin: Admin) -> None:
    answer = admin.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


def test_metrics_require_the_key_when_the_port_is_not_on_loopback() -> None:
    with running_admin(is_loopback=False) as admin:
        refused = admin.get("/metrics")
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert b"wsgate_" not in refused.body
        assert admin.ask("GET", "/metrics", headers={"X-API-Key": "wrong"}).status == 401
        assert admin.ask("GET", "/metrics", headers=WITH_KEY).status == 200
        assert admin.get("/metrics", Authorization=f"Bearer {KEY}").status == 200
        assert admin.get("/healthz").status == admin.get("/readyz").status == 200


# --- the API: publishing ------------------------------------------------------------------------------


@contextlib.contextmanager
def subscribed_to(valkey: Valkey, name: str) -> Iterator[redis.client.PubSub]:
    with redis.Redis.from_url(valkey.url) as client, client.pubsub() as subscription:
        subscription.subscribe(name)
        assert subscription.get_message(timeout=LIMIT_S)
        yield subscription


def next_publication(subscription: redis.client.PubSub) -> Publication:
    message = subscription.get_message(timeout=LIMIT_S)
    assert message is not None
    publication = decode_publication(message["data"])
    assert publication is not None
    return publication


DOCUMENTS = [
    b'{"hello": 1}',
    b'"text"',
    b"null",
    b"[1,\t2]",
    b"1" * 30,
    b'"\xc3\xa9\\u0000"',
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_api_publishes_a_json_document_byte_for_byte(admin: Admin, valkey: Valkey, document: bytes) -> None:
    body = b'{"channel":"news","data":%b}' % document
    with subscribed_to(valkey, "wsgate:ch:news") as subscription:
        answer = admin.ask("POST", "/api/publish", body, WITH_KEY)
        assert (answer.status, answer.json) == (200, {"result": {}})
        publication = next_publication(subscription)
    assert (publication.payload.encoding, publication.payload.data) == (JSON, document)
    assert publication.user is None
    assert publication.timestamp_ms is not None


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b'{"looks":"like JSON"}'])
def test_api_publishes_base64_data_as_binary(admin: Admin, valkey: Valkey, content: bytes) -> None:
    with subscribed_to(valkey, "wsgate:ch:news") as subscription:
        answer = admin.publish(channel="news", b64data=base64.b64encode(content).decode())
        assert answer.json == {"result": {}}
        assert next_publication(subscription).payload == (BINARY, content)


@pytest.mark.parametrize("channel", ["chat:42", "@42", "@Jo Ann", "@me", "é" * 100, "x" * 200])
def test_api_publishes_to_channels_and_inboxes_under_their_bus_names(
    admin: Admin, valkey: Valkey, channel: str
) -> None:
    with subscribed_to(valkey, f"wsgate:ch:{channel}") as subscription:
        assert admin.publish(channel=channel, data=1).json == {"result": {}}
        assert next_publication(subscription).payload.data == b"1"


def test_api_publish_ignores_unknown_fields(admin: Admin) -> None:
    assert admin.publish(channel="news", data=1, skip_history=True).json == {"result": {}}


# --- the API: errors of a method ----------------------------------------------------------------------


BAD_CHANNELS = [
    "",
    "a b",
    "a\x00",
    "a\x85",
    "a\u2003b",
    "{x}",
    "x" * 201,
    "é" * 101,
    "@",
    "@" + "x" * 129,
    "@a\n",
    7,
    None,
]


@pytest.mark.parametrize("channel", BAD_CHANNELS)
def test_api_publish_to_an_invalid_channel_name_is_error_107(admin: Admin, channel: object) -> None:
    answer = admin.publish(channel=channel, data=1)
    assert (answer.status, answer.json["error"]["code"]) == (200, 107)


def test_api_publish_over_the_size_of_its_namespace_is_error_106(valkey: Valkey) -> None:
    limits = {"default": 100, "chat": 20}
    with running_admin(bus=parse_address(valkey.unix_url), publish_limits=limits) as admin:
        for channel, size, code in (
            ("news", 98, 0),
            ("news", 99, 106),
            ("chat:1", 18, 0),
            ("chat:1", 19, 106),
            ("@7", 18, 0),
            ("@7", 19, 106),
            ("nope:1", 1, 102),
        ):
            answer = admin.publish(channel=channel, data="x" * size)
            assert (channel, size, answer.json.get("error", {}).get("code", 0)) == (channel, size, code)


@pytest.mark.parametrize("fields", [{}, {"data": 1, "b64data": "AA=="}])
def test_api_publish_with_no_payload_or_two_is_error_107(admin: Admin, fields: dict[str, Any]) -> None:
    answer = admin.publish(channel="news", **fields)
    assert (answer.status, answer.json["error"]["code"]) == (200, 107)


@pytest.mark.parametrize("text", ["A", "A A=", "AA", "AA==\n", "é", 7, None])
def test_api_publish_with_malformed_base64_is_error_107(admin: Admin, text: object) -> None:
    answer = admin.publish(channel="news", b64data=text)
    assert (answer.status, answer.json["error"]["code"]) == (200, 107)


def test_api_publish_without_a_channel_is_error_107(admin: Admin) -> None:
    assert admin.publish(data=1).json["error"]["code"] == 107


def test_api_publishes_the_largest_payload_and_refuses_one_byte_more(admin: Admin) -> None:
    most = OPTIONS.max_publish_bytes
    assert admin.publish(channel="news", data="x" * (most - 2)).json == {"result": {}}
    assert admin.publish(channel="news", data="x" * (most - 1)).json["error"]["code"] == 106
    assert admin.publish(channel="news", b64data=base64.b64encode(bytes(most)).decode()).json == {
        "result": {}
    }
    too_large = base64.b64encode(bytes(most + 1)).decode()
    assert admin.publish(channel="news", b64data=too_large).json["error"]["code"] == 106


def test_api_publish_to_a_stopped_bus_is_error_100() -> None:
    with running_valkey() as valkey, running_admin(bus=parse_address(valkey.url)) as admin:
        assert admin.publish(channel="news", data=1).json == {"result": {}}
        valkey.stop()
        answer = admin.publish(channel="news", data=1)
        assert (answer.status, answer.json) == (200, {"error": {"code": 100, "message": "unavailable"}})


def test_api_publish_without_a_reply_of_the_bus_says_that_it_may_have_been_published() -> None:
    with SilentBus() as bus, running_admin(bus=bus.address, command_timeout_s=0.1) as admin:
        bus.answer_once()
        answer = admin.publish(channel="news", data=1)
    assert (answer.status, answer.json["error"]["code"]) == (200, 100)
    assert "may have been published" in answer.json["error"]["message"]


def test_api_publish_to_a_bus_that_never_greets_is_unavailable() -> None:
    with SilentBus() as bus, running_admin(bus=bus.address, connect_timeout_s=0.1) as admin:
        answer = admin.publish(channel="news", data=1)
    assert (answer.status, answer.json["error"]) == (200, {"code": 100, "message": "unavailable"})


# --- the API: keys and requests -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["X-API-Key", "Authorization", "authorization"])
def test_api_key_is_accepted_in_either_of_two_headers(admin: Admin, name: str) -> None:
    scheme = {"X-API-Key": "", "Authorization": "Bearer ", "authorization": "bearer "}[name]
    assert admin.publish({name: scheme + KEY}, channel="news", data=1).json == {"result": {}}


@pytest.mark.parametrize(
    "headers",
    [
        {"Accept": "*/*"},
        {"X-API-Key": ""},
        {"X-API-Key": KEY[:-1]},
        {"X-API-Key": KEY + "x"},
        {"X-API-Key": KEY.upper()},
        {"X-API-Key": "\xe9"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"X-API-Key": "wrong", "Authorization": f"Bearer {KEY}"},
    ],
)
def test_api_publish_without_the_exact_key_is_401_and_publishes_nothing(
    admin: Admin, valkey: Valkey, headers: dict[str, str]
) -> None:
    with subscribed_to(valkey, "wsgate:ch:secret") as subscription:
        answer = admin.publish(headers, channel="secret", data=1)
        assert (answer.status, answer.json["error"]["code"]) == (401, 101)
        assert admin.publish(channel="secret", data="mine").status == 200
        assert next_publication(subscription).payload.data == b'"mine"'


@pytest.mark.parametrize("shown", ["", "anything"])
def test_api_refuses_every_key_where_none_is_configured(shown: str) -> None:
    with running_admin(api_key="") as admin:
        assert admin.publish({"X-API-Key": shown}, channel="news", data=1).status == 401


def test_api_in_development_requires_a_configured_key() -> None:
    with running_admin(is_dev=True) as admin:
        assert admin.publish({"Accept": "*/*"}, channel="news", data=1).status == 401


def test_api_in_development_needs_no_key_where_none_is_configured(dev: Admin) -> None:
    assert dev.publish({"Accept": "*/*"}, channel="news", data=1).json == {"result": {}}


BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"null",
    b"\xff",
    b'{"channel":"news","data":"\xff"}',
    b"\xef\xbb\xbf{}",
    b'{"channel":"\\ud800","data":1}',
    b'{"channel":"\\udc00","data":1}',
    b"[" * 100_000,
    b"{} x",
]


@pytest.mark.parametrize("body", BAD_BODIES)
def test_api_body_that_is_not_a_json_object_is_400(admin: Admin, body: bytes) -> None:
    answer = admin.ask("POST", "/api/publish", body, WITH_KEY)
    assert (answer.status, answer.json["error"]["code"]) == (400, 107)


DEEP = b'{"channel":"news","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize("body", [DEEP, b'{"channel":"news","data":"\x01"}', b'{"channel":"news","data":01}'])
def test_api_data_that_is_not_valid_json_is_error_107(admin: Admin, body: bytes) -> None:
    answer = admin.ask("POST", "/api/publish", body, WITH_KEY)
    assert answer.status in (200, 400)
    assert answer.json["error"]["code"] == 107


@pytest.mark.parametrize("path", ["/api/", "/api/unknown", "/api/publish/", "/api/_publish", "/api/__call__"])
def test_unknown_api_method_is_404(admin: Admin, path: str) -> None:
    assert admin.ask("POST", path, b"{}", WITH_KEY).status == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_api_method_called_without_post_is_405(admin: Admin, method: str) -> None:
    answer = admin.ask(method, "/api/publish", headers=WITH_KEY)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_api_body_over_the_limit_is_413_and_closes_the_connection(admin: Admin) -> None:
    assert admin.ask("POST", "/api/publish", b" " * MIB, WITH_KEY).status == 400
    answer = admin.ask("POST", "/api/publish", b" " * (2 * MIB), WITH_KEY)
    assert (answer.status, answer.json["error"]["code"]) == (413, 106)
    assert answer.headers["connection"] == "close"


def test_too_large_body_with_expect_continue_is_413_before_it_is_sent(admin: Admin) -> None:
    head = f"POST /api/publish HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {2 * MIB}\r\n"
    with admin.connect() as client:
        client.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_chunked_api_body_over_the_limit_is_413(admin: Admin) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", admin.port, timeout=LIMIT_S)
    with contextlib.closing(connection):
        chunks = (b" " * 65_536 for _ in range(32))
        connection.request("POST", "/api/publish", chunks, WITH_KEY, encode_chunked=True)
        assert connection.getresponse().status == 413


# --- browsers -----------------------------------------------------------------------------------------


def origins(port: int) -> dict[str, int]:
    """Map each origin to its status when the request names the host 127.0.0.1."""
    return {
        f"http://127.0.0.1:{port}": 200,
        f"https://127.0.0.1:{port}": 200,
        f"http://localhost:{port}": 403,
        "http://127.0.0.1": 403,
        f"http://127.0.0.1:{port}0": 403,
        f"http://127.0.0.1:{port}.evil.example": 403,
        "https://evil.example": 403,
        "null": 403,
        "": 403,
        f"ws://127.0.0.1:{port}": 403,
        "http://[": 403,
        f"http://user@127.0.0.1:{port}": 403,
    }


def test_api_request_of_another_origin_is_403_without_cors_headers(admin: Admin, dev: Admin) -> None:
    for asked in (admin, dev):
        for origin, status in origins(asked.port).items():
            answer = asked.publish(WITH_KEY | {"Origin": origin}, channel="news", data=1)
            assert (origin, answer.status) == (origin, status)
            assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_cors_preflight_to_the_api_is_403(dev: Admin) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = dev.ask("OPTIONS", "/api/publish", headers=headers)
    assert answer.status == 403
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_api_in_development_accepts_only_loopback_host_names(dev: Admin) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "127.evil", "localhost.evil.example", "127.1"):
        name = f"{host}:{dev.port}"
        answer = dev.publish({"Host": name, "Origin": f"http://{name}"}, channel="news", data=1)
        assert (host, answer.status) == (host, 403)
    for host in ("localhost", "127.0.0.1", "127.8.8.8", "[::1]"):
        name = f"{host}:{dev.port}"
        answer = dev.publish({"Host": name, "Origin": f"http://{name}"}, channel="news", data=1)
        assert (host, answer.status) == (host, 200)


def test_api_with_another_host_name_requires_only_the_key(admin: Admin) -> None:
    headers = {"Host": "admin.example", "Origin": "https://admin.example"}
    assert admin.publish(headers | WITH_KEY, channel="news", data=1).status == 200
    assert admin.publish(headers, channel="news", data=1).status == 401


# --- pages --------------------------------------------------------------------------------------------


FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:9000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "127.evil",
    "127.1",
    "2130706433",
    "localhost.",
    "[::1].evil.example",
    "[::1",
    "localhost:evil.example",
    "",
    "é",
]


@pytest.mark.parametrize("path", ["/metrics", "/status", "/", "/page.json"])
@pytest.mark.parametrize("is_dev", [True, False])
def test_o5_pages_without_a_key_require_a_host_header_of_this_machine(path: str, is_dev: bool) -> None:
    """A page on a name that was rebound to this machine sends no Origin, but its own Host."""
    with running_admin(is_dev=is_dev, api_key=KEY) as admin:
        found = 404 if path == "/page.json" and not is_dev else 200
        for host in (
            "localhost",
            f"localhost:{admin.port}",
            "127.0.0.1",
            "127.8.8.8:1",
            "[::1]",
            "LOCALHOST",
        ):
            assert (host, admin.get(path, Host=host).status) == (host, found)
        for host in FOREIGN_HOSTS:
            answer = admin.get(path, Host=host)
            assert (host, answer.status) == (host, 403 if found == 200 else 404)
            assert b"node-1" not in answer.body and b"wsgate_" not in answer.body
            assert admin.get(path, Host=host, **WITH_KEY).status == found
        assert admin.get("/healthz", Host="evil.example").status == 200
        assert admin.get("/readyz", Host="evil.example").status == 200


def test_o5_development_page_beyond_loopback_accepts_ip_addresses_but_no_foreign_name() -> None:
    with running_admin(is_dev=True, is_loopback=False) as admin:
        assert admin.get("/page.json", Host="192.0.2.7:9000").status == 200
        assert admin.get("/page.json", Host="[2001:db8::1]:9000").status == 200
        assert admin.get("/page.json", Host="evil.example:9000").status == 403


def test_development_serves_the_try_page_with_its_script_style_and_settings(
    dev: Admin, valkey: Valkey
) -> None:
    page = dev.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert b"/page.js" in page.body and b"/page.css" in page.body
    assert dev.get("/page.js").headers["content-type"].startswith("text/javascript")
    assert dev.get("/page.css").headers["content-type"].startswith("text/css")
    assert dev.get("/page.json").json == {
        "port": 8000,
        "path": "/ws",
        "publish_command": OPTIONS.publish_command,
        "node": "node-1",
        "bus": valkey.url,
    }


def test_page_settings_contain_the_bus_address_without_its_password() -> None:
    bus = parse_address("redis://joe:hunter2@bus.example:6380")
    with running_admin(bus=bus, is_dev=True) as admin:
        assert admin.get("/page.json").json["bus"] == "redis://bus.example:6380"


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js"])
def test_page_files_contain_no_foreign_url_and_no_insertion_of_markup(dev: Admin, path: str) -> None:
    code = dev.get(path).body
    for written in (b"http://", b"https://", b"url(", b"@import", b"innerHTML", b"insertAdjacent", b"eval("):
        assert written not in code


def test_node_outside_development_serves_a_status_page_without_scripts(admin: Admin) -> None:
    page = admin.get("/")
    assert page.status == 200
    assert b">Ready<" in page.body and b"/metrics" in page.body and b"node-1" in page.body
    assert b"<script" not in page.body
    assert admin.get("/page.css").status == 200
    assert admin.get("/page.js").status == admin.get("/page.json").status == 404


def test_status_page_shows_the_fault_and_the_connections_and_escapes_the_node_name() -> None:
    block = healthy_block()
    block.shard(0)["now_open"], block.shard(1)["now_open"] = 1_000, 234
    block.shard(1)["bus_up"] = 0
    with running_admin(block, node="<b>&") as admin:
        text = admin.get("/").body.decode()
    assert "Not ready" in text and "shard_1_bus_down" in text
    assert "1,234" in text
    assert "&lt;b&gt;&amp;" in text and "<b>" not in text


def test_status_page_beyond_loopback_shows_numbers_only_with_the_key() -> None:
    with running_admin(is_loopback=False) as admin:
        assert b"<table" not in admin.get("/").body
        assert b"<table" not in admin.get("/status").body
        assert b"<table" not in admin.ask("GET", "/status", headers={"X-API-Key": "wrong"}).body
        assert b"<table" in admin.ask("GET", "/status", headers=WITH_KEY).body


def test_status_page_shows_the_free_room_and_the_development_page_links_to_it(dev: Admin) -> None:
    page = dev.get("/status")
    assert page.status == 200
    assert b"more connections fit" in page.body
    assert b'href="/status"' in dev.get("/").body


@pytest.mark.parametrize("path", ["/", "/status", "/healthz", "/metrics", "/nothing/here", "/api/publish"])
def test_every_admin_answer_has_the_security_headers_for_browsers(admin: Admin, path: str) -> None:
    headers = admin.get(path).headers
    assert headers["content-security-policy"] == "default-src 'self'; connect-src *"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers


@pytest.mark.parametrize(
    "path", ["/nothing", "/healthz/", "/page/index.html", "/../health.py", "//evil.example"]
)
def test_unknown_admin_path_is_404_without_a_redirect(admin: Admin, path: str) -> None:
    answer = admin.get(path)
    assert answer.status == 404
    assert "location" not in answer.headers


# --- bounds -------------------------------------------------------------------------------------------


def ended(client: socket.socket) -> bool:
    """Whether the other side ends this connection; nothing is read from it."""
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return bool(poll.poll(LIMIT_S * 1000))


PIPELINED = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 200


def test_unread_answers_to_pipelined_requests_delay_no_other_client(admin: Admin) -> None:
    with admin.connect(receive_buffer_bytes=4_096) as client:
        client.sendall(PIPELINED)
        for _ in range(20):
            assert admin.get("/healthz").status == 200
            assert admin.publish(channel="news", data=1).json == {"result": {}}


def test_admin_client_that_reads_no_answer_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "ANSWER_S", 0.3)
    with running_admin() as admin, admin.connect(receive_buffer_bytes=4_096) as client:
        client.sendall(PIPELINED)
        assert ended(client)


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost:",
        b"POST /api/publish HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
    ],
)
def test_admin_client_that_does_not_finish_its_request_is_closed(
    monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(connections, "ANSWER_S", 0.3)
    with running_admin(is_dev=True) as admin, admin.connect() as client:
        client.sendall(beginning)
        assert ended(client)


@pytest.mark.parametrize("method", ["publish", "disconnect", "revoke"])
def test_api_method_is_answered_before_the_deadline_although_the_bus_is_silent(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(connections, "ANSWER_S", 3.0)
    monkeypatch.setattr(api, "CALL_S", 0.2)
    slow: dict[str, Any] = {"connect_timeout_s": 300.0, "command_timeout_s": 300.0}
    with SilentBus() as bus, running_admin(None, bus=bus.address, **slow) as admin:
        fields = {"channel": "news", "data": 1} if method == "publish" else {"user": "ann"}
        answer = admin.ask("POST", f"/api/{method}", json.dumps(fields).encode(), WITH_KEY)
        assert (answer.status, answer.json["error"]["code"]) == (200, 100)
        assert "no reply of the bus in time" in answer.json["error"]["message"]


def test_time_of_an_idle_connection_is_not_part_of_the_time_for_the_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "ANSWER_S", 3.0)
    monkeypatch.setattr(api, "CALL_S", 2.0)
    slow: dict[str, Any] = {"connect_timeout_s": 300.0, "command_timeout_s": 300.0}
    with SilentBus() as bus, running_admin(None, bus=bus.address, **slow) as admin:
        connection = http.client.HTTPConnection("127.0.0.1", admin.port, timeout=LIMIT_S)
        with contextlib.closing(connection):
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b'{"alive":true}'
            time.sleep(2.0)
            connection.request("POST", "/api/publish", b'{"channel":"news","data":1}', WITH_KEY)
            assert connection.getresponse().status == 200


def test_api_methods_end_before_the_deadline_of_their_connection() -> None:
    assert api.CALL_S + 1 < connections.ANSWER_S


def test_admin_request_head_of_20_kb_is_400(admin: Admin) -> None:
    with admin.connect() as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 20_000)
        assert client.recv(4096).startswith(b"HTTP/1.1 400 ")


HALF = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-"
HALF_BODY = (
    f"POST /api/publish HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 9\r\n\r\n{{".encode()
)
ANSWERED = (200, 503)  # the block of a test is healthy for less than a minute


@pytest.mark.parametrize(
    ("beginning", "limit"),
    [
        pytest.param(b"", connections.CONNECTIONS_LIMIT, id="nothing"),
        pytest.param(HALF, connections.CONNECTIONS_LIMIT, id="half a head"),
        pytest.param(HALF_BODY, connections.CONNECTIONS_LIMIT, id="half a body"),
        pytest.param(PIPELINED, 16, id="answers not read"),
    ],
)
def test_health_paths_are_answered_while_idle_clients_use_every_connection_of_the_admin_port(
    monkeypatch: pytest.MonkeyPatch, beginning: bytes, limit: int
) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_LIMIT", limit)
    with running_admin(is_loopback=False) as admin, contextlib.ExitStack() as stack:
        for number in range(2 * limit):
            client = stack.enter_context(admin.connect(receive_buffer_bytes=4_096))
            with contextlib.suppress(OSError):
                client.sendall(beginning)
            if number % (limit // 4) == 0:
                assert admin.get("/healthz").status in ANSWERED
                assert admin.get("/readyz").status in ANSWERED


def test_oldest_incomplete_head_is_408_when_a_new_connection_needs_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_LIMIT", 2)
    with running_admin() as admin, admin.connect() as oldest, admin.connect() as second:
        oldest.sendall(HALF)
        second.sendall(HALF)
        with admin.connect():
            assert oldest.recv(4096).startswith(b"HTTP/1.1 408 ")
        second.sendall(b"Y: 1\r\n\r\n")
        assert second.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_oldest_incomplete_heads_beyond_the_limit_are_answered_408(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process has read none of them, and all connect at one reading of the clock."""
    monkeypatch.setattr(connections, "CONNECTIONS_LIMIT", 8)
    with running_admin() as admin, contextlib.ExitStack() as stack:
        os.kill(admin.pid, signal.SIGSTOP)
        try:
            clients = [stack.enter_context(admin.connect()) for _ in range(16)]
            for client in clients:
                client.sendall(HALF)
        finally:
            os.kill(admin.pid, signal.SIGCONT)
        for client in clients[:8]:
            assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
            assert client.recv(4096) == b"", "a reset could discard the answer"
        for client in clients[8:]:
            client.sendall(b"Y: 1\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_new_connection_is_closed_when_every_place_has_a_request_in_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_LIMIT", 2)
    with SilentBus() as bus, running_admin(bus=bus.address) as admin:
        with admin.connect() as one, admin.connect() as two:
            for client in (one, two):
                client.sendall(raw_publish())
            bus.await_command()
            with admin.connect() as late:
                assert ended(late)
            for client in (one, two):
                assert client.recv(4096).startswith(
                    b"HTTP/1.1 200 "
                )  # the body is an error, because the bus is away


def test_request_over_the_concurrency_limit_is_503_but_health_checks_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "CONCURRENCY_LIMIT", 1)
    with SilentBus() as bus, running_admin(bus=bus.address) as admin, admin.connect() as waiting:
        waiting.sendall(raw_publish())
        bus.await_command()
        busy = admin.get("/metrics")
        assert busy.status == 503 and busy.headers["retry-after"] == "1"
        assert admin.get("/healthz").status == 200
        assert waiting.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert admin.get("/metrics").status == 200


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("above", [0, 1])
def test_head_of_exactly_the_limit_is_200_and_one_byte_more_is_431(
    admin: Admin, above: int, pieces: int
) -> None:
    start = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: "
    end = b"\r\n\r\n"
    head = start + b"x" * (connections.HEAD_LIMIT_BYTES + above - len(start) - len(end)) + end
    with admin.connect() as client:
        for _ in range(pieces):  # a second head is pipelined behind the first one
            client.sendall(head)
        status = client.recv(12)
        assert status == (b"HTTP/1.1 431" if above else b"HTTP/1.1 200")


def test_too_long_head_pipelined_behind_a_valid_one_is_431_after_the_200(admin: Admin) -> None:
    good = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    long = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long:" + b" " * 20_000 + b"x\r\n\r\n"
    with admin.connect() as client:
        client.sendall(good + long)
        found = b""
        while piece := client.recv(4096):
            found += piece
        assert found.startswith(b"HTTP/1.1 200 ") and found.count(b"HTTP/1.1 431 ") == 1


def test_idle_keep_alive_connection_is_closed_when_a_new_connection_needs_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_LIMIT", 3)
    with running_admin() as admin:
        held = [admin.connect() for _ in range(3)]
        for client in held:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert admin.get("/healthz").status == 200
        assert ended(held[0])
        for client in held:
            client.close()
        assert admin.get("/healthz").status == 200


def test_tls_hello_on_the_plain_admin_port_is_400(admin: Admin) -> None:
    with admin.connect() as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 400 ")


# --- beginning and end --------------------------------------------------------------------------------


def test_admin_process_exits_when_the_keeper_is_gone() -> None:
    with running_admin() as admin:
        assert admin.get("/healthz").status == 200
        admin.keeper_dies()
        assert admin.wait() == 0


def test_admin_process_exits_on_sigterm_and_ignores_sigint() -> None:
    with running_admin() as admin:
        assert admin.get("/healthz").status == 200
        os.kill(admin.pid, signal.SIGINT)
        assert admin.get("/healthz").status == 200
        os.kill(admin.pid, signal.SIGTERM)
        assert admin.wait() == 0


def test_admin_process_exits_although_a_client_does_not_read_and_the_bus_is_silent() -> None:
    with SilentBus() as bus, running_admin(bus=bus.address, command_timeout_s=3600.0) as admin:
        with admin.connect() as waiting, admin.connect() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(PIPELINED)
            waiting.sendall(raw_publish())
            bus.await_command()
            os.kill(admin.pid, signal.SIGTERM)
            assert admin.wait() == 0


def test_restarted_admin_process_serves_on_the_same_listener() -> None:
    with running_admin() as admin:
        assert admin.get("/healthz").status == 200
        os.kill(admin.pid, signal.SIGKILL)
        assert admin.wait() == -signal.SIGKILL
        for write in admin.alive:
            os.close(write)
        admin.start()
        assert admin.get("/healthz").status == 200


def test_importing_the_admin_package_loads_no_web_framework() -> None:
    probe = "import sys, wsgate.admin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "wsgate.admin" in loaded
    assert not loaded & {"starlette", "uvicorn", "prometheus_client", "wsgate.admin.server"}
