"""Run behind Debian's nginx and haproxy, and over a bad network: requests keep one meaning (S16, R17)."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Final

import pytest
import redis
from websockets.sync.client import connect

from tests.support.attack_rig import fresh_counters
from tests.support.fault_proxy import fault_proxy
from tests.support.frames import TEXT, client_frame
from tests.support.gateway import Gateway, running_gateway, wait_until
from tests.support.packages import find_or_install, find_program
from tests.support.ports import reserved_port

pytestmark = pytest.mark.slow

WITHIN_S: Final = 30.0
NGINX: Final = """
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{gateway};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_set_header Host $host:$server_port;
        }}
    }}
}}
"""
HAPROXY: Final = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout tunnel 1h
listen gateway
    bind 127.0.0.1:{port}
    server one 127.0.0.1:{gateway}
"""
UPGRADE: Final = (
    b"GET /ws?ch=proxied HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
SMUGGLED: Final = b"GET /ws?ch=smuggled HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway(
        environ={"WSGATE_HEARTBEAT__PING_INTERVAL": "1s", "WSGATE_HEARTBEAT__PONG_TIMEOUT": "2s"}
    ) as it:
        yield it


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Return the port for the proxy."""
    with reserved_port() as number:
        yield number


@pytest.fixture(scope="module", params=["nginx", "haproxy"])
def proxy(
    request: pytest.FixtureRequest, gateway: Gateway, port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """Run a proxy in front of the gateway; yield its port."""
    name: str = request.param
    packages = {"nginx": ["nginx-light", "nginx"], "haproxy": ["haproxy"]}[name]
    program = find_or_install(lambda: find_program(name), packages)
    if program is None:
        pytest.skip(f"no {name} here, and none could be installed")
    directory = tmp_path_factory.mktemp(name)
    file = directory / "configuration"
    text = NGINX if name == "nginx" else HAPROXY
    file.write_text(text.format(directory=directory, port=port, gateway=gateway.port))
    command = (
        [program, "-p", str(directory), "-c", str(file)]
        if name == "nginx"
        else [program, "-db", "-f", str(file)]
    )
    with subprocess.Popen(
        command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(f"{name} listens", lambda: is_listening(port), WITHIN_S)
            yield port
        finally:
            process.terminate()
            process.wait(WITHIN_S)


def answer_of(port: int, stream: bytes, *, most: int = 4_096) -> bytes:
    """Return the bytes received until the stream ends or is silent for a second."""
    heard = bytearray()
    with socket.create_connection(("127.0.0.1", port), WITHIN_S) as client:
        client.sendall(stream)
        client.settimeout(1.0)
        try:
            while len(heard) < most and (piece := client.recv(most)):
                heard += piece
        except (TimeoutError, ConnectionResetError):
            pass
    return bytes(heard)


def test_client_behind_a_proxy_receives_publications_and_publishes(gateway: Gateway, proxy: int) -> None:
    url = f"ws://127.0.0.1:{proxy}/ws?ch=proxied"
    with connect(url, open_timeout=WITHIN_S) as client, redis.Redis.from_url(gateway.bus_url) as bus:
        assert [json.loads(client.recv(WITHIN_S))["op"] for _ in range(2)] == ["welcome", "subbed"]
        for number in range(100):
            bus.publish("wsgate:ch:proxied", json.dumps({"number": number, "pad": "x" * 3_000}))
        assert [json.loads(client.recv(WITHIN_S))["data"]["number"] for _ in range(100)] == list(range(100))
        client.send(json.dumps({"op": "pub", "ch": "proxied", "data": "back", "id": 1}))
        assert {json.loads(client.recv(WITHIN_S))["op"] for _ in range(2)} == {"msg", "ok"}


def test_s16_upgrade_with_a_body_through_a_proxy_is_refused_and_opens_no_connection(
    gateway: Gateway, proxy: int
) -> None:
    """The body has a length or chunks, and its content is never read as a request."""
    before = fresh_counters(gateway)["wsgate_upgrades_total"]
    for extra in (
        b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
    ):
        answer = answer_of(proxy, UPGRADE + extra)
        assert answer.startswith(b"HTTP/1.1 4"), answer[:200]
        assert answer.count(b"HTTP/1.1 ") == 1
    assert fresh_counters(gateway)["wsgate_upgrades_total"] == before


def test_s16_bytes_behind_an_upgrade_through_a_proxy_are_frames_and_never_a_request(
    gateway: Gateway, proxy: int
) -> None:
    before = fresh_counters(gateway)
    early = client_frame(TEXT, b'{"op":"ping","id":7}')
    answer = answer_of(proxy, UPGRADE + b"\r\n" + early)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert b'{"op":"pong","id":7}' in answer or b'"id":7' in answer
    # A second request is bytes of the first connection: it has no answer and ends the connection.
    answer = answer_of(proxy, UPGRADE + b"\r\n" + SMUGGLED)
    assert answer.count(b"HTTP/1.1 ") == 1
    after = fresh_counters(gateway)
    assert after["wsgate_upgrades_total"] - before["wsgate_upgrades_total"] == 2
    name = 'wsgate_closes_total{reason="protocol_error"}'
    assert after[name] - before[name] == 1


@pytest.mark.parametrize(
    ("delay_s", "jitter_s", "rate_bytes_per_s", "slice_bytes"),
    [
        pytest.param(0.3, 0.0, 0, 1, id="300ms-bytewise"),
        pytest.param(0.02, 0.48, 0, 0, id="20-to-500ms"),
        pytest.param(0.1, 0.1, 125_000, 100, id="1Mbit"),
    ],
)
def test_r17_slow_network_with_split_writes_closes_no_connection_and_keeps_the_order(
    gateway: Gateway, delay_s: float, jitter_s: float, rate_bytes_per_s: int, slice_bytes: int
) -> None:
    """The test lasts several heartbeats."""
    before = fresh_counters(gateway)
    with fault_proxy("127.0.0.1", gateway.port, seed=17) as network:
        network.faults.delay_s, network.faults.jitter_s = delay_s, jitter_s
        network.faults.rate_bytes_per_s, network.faults.slice_bytes = rate_bytes_per_s, slice_bytes
        url = f"ws://127.0.0.1:{network.port}/ws?ch=far"
        with connect(url, open_timeout=WITHIN_S) as client, redis.Redis.from_url(gateway.bus_url) as bus:
            assert [json.loads(client.recv(WITHIN_S))["op"] for _ in range(2)] == ["welcome", "subbed"]
            end_s, sent = time.monotonic() + 4.5, 0
            while time.monotonic() < end_s:
                bus.publish("wsgate:ch:far", str(sent))
                sent += 1
                time.sleep(0.25)
            assert [json.loads(client.recv(WITHIN_S))["data"] for _ in range(sent)] == list(range(sent))
    after = fresh_counters(gateway)
    pings = 'wsgate_pings_total{direction="out"}'
    lost = 'wsgate_closes_total{reason="heartbeat_timeout"}'
    assert after[pings] - before[pings] >= 3
    assert after[lost] == before[lost]
