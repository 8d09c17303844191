"""Attack the admin port of a whole gateway: access, publishing, and readiness while a shard hangs."""

import contextlib
import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest
from starlette.datastructures import Headers

from tests.support.attack_rig import (
    ControlGroup,
    configured_gateway,
    make_token,
    scrape,
    shard_pid,
)
from tests.support.gateway import Gateway, wait_until
from tests.support.raw_client import LIMIT_S, RawClient, bearer, request
from wsgate.admin import api

pytestmark = pytest.mark.slow

KEY: Final = "the key of the tests of the admin port"
LOOPBACK: Final = "0100007F"  # as the kernel writes 127.0.0.1
LISTENING: Final = "0A"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = f'[admin]\napi_key = "{KEY}"\n'
    with configured_gateway(tmp_path_factory.mktemp("admin"), settings, "--shards", "2") as running:
        yield running


def ask(url: str, body: object = None, **headers: str) -> tuple[int, dict[str, str], Any]:
    """Return the status, headers and JSON body of an answer; a body is posted."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(
        url, data, {name.replace("_", "-"): value for name, value in headers.items()}
    )
    try:
        with urllib.request.urlopen(asked, timeout=LIMIT_S) as answer:
            return answer.status, lowered(answer.headers), json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, lowered(refused.headers), json.loads(refused.read())


def lowered(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def test_s33_admin_port_listens_only_on_the_loopback_address(gateway: Gateway) -> None:
    ends = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, port = fields[1].split(":")
            if fields[3] == LISTENING and int(port, 16) == gateway.admin_port:
                ends.append(address)
    assert ends == [LOOPBACK]


def test_s33_api_request_without_the_exact_key_in_its_header_is_401(gateway: Gateway) -> None:
    url = f"{gateway.admin_url}/api/publish"
    body = {"channel": "open:1", "data": 1}
    assert ask(url, body, X_API_Key=KEY)[::2] == (200, {"result": {}})
    for headers in (
        {},
        {"X_API_Key": ""},
        {"X_API_Key": KEY + " x"},
        {"X_API_Key": KEY[:-1]},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {make_token()}"},
        {"Cookie": f"X-API-Key={KEY}"},
    ):
        status, answered, said = ask(url, body, **headers)
        assert (status, answered["www-authenticate"]) == (401, "Bearer")
        assert said["error"]["code"] == 101
    assert ask(f"{url}?api_key={quote(KEY)}", body)[0] == 401


def test_s33_request_with_an_origin_is_403_even_with_the_key(gateway: Gateway) -> None:
    url = f"{gateway.admin_url}/api/publish"
    for origin in ("http://evil.example", "null", gateway.ws_url.replace("ws:", "http:").removesuffix("/ws")):
        status, answered, _ = ask(url, {"channel": "open:1", "data": 1}, X_API_Key=KEY, Origin=origin)
        assert status == 403
        assert not [name for name in answered if name.startswith("access-control-")]


def test_s33_api_keys_are_compared_as_digests_of_32_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the time of the comparison depends on no byte and no length of the key in the request."""
    compared: list[tuple[bytes, bytes]] = []
    compare = api.hmac.compare_digest  # type: ignore[attr-defined]

    def note(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return bool(compare(one, other))

    monkeypatch.setattr(api.hmac, "compare_digest", note)  # type: ignore[attr-defined]
    key = api.ApiKey(KEY)
    shown = ["", "x", KEY[:-1], KEY, KEY + "x", "x" * 10_000]
    assert [key.is_shown(Headers({"x-api-key": text})) for text in shown] == [text == KEY for text in shown]
    assert len(compared) == len(shown)
    assert {len(digest) for pair in compared for digest in pair} == {32}
    assert not [digest for pair in compared for digest in pair if KEY.encode() in digest]


def test_readiness_on_both_ports_is_503_while_one_shard_is_stopped_and_names_it(gateway: Gateway) -> None:
    """The admin port answers at once; a shard that answers reports the shard that does not."""
    pid = shard_pid(gateway, 1)
    os.kill(pid, signal.SIGSTOP)
    try:
        url = f"{gateway.admin_url}/readyz"
        wait_until("the admin port is not ready", lambda: ask(url)[0] == 503, LIMIT_S)
        status, _, said = ask(url)
        assert (status, said["ready"]) == (503, False)
        assert any("1" in reason for reason in said["why"])
        assert ask(f"{gateway.admin_url}/healthz")[0] == 503
        assert scrape(gateway)['wsgate_beat_age_seconds{process="shard-1"}'] > 0
        # The keeper puts no new connection into the queue of a stopped shard.
        wait_until("the client port is not ready", lambda: client_port_status(gateway) == 503, LIMIT_S)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until("the admin port is ready again", lambda: ask(url)[0] == 200, LIMIT_S)
    wait_until("the client port is ready again", lambda: client_port_status(gateway) == 200, LIMIT_S)


def client_port_status(gateway: Gateway) -> int:
    """Return 0 if the connection waits in the queue of the stopped shard; then try again."""
    with contextlib.suppress(TimeoutError), RawClient(gateway, limit_s=2.0) as client:
        return client.ask(b"GET /readyz HTTP/1.1\r\nHost: gate.example\r\n\r\n").status
    return 0


def test_o7_names_in_requests_commands_and_paths_create_no_metric_label(gateway: Gateway) -> None:
    before = set(scrape(gateway))
    group = ControlGroup(gateway)
    group.start()
    group.is_answered()
    for number in range(30):
        name = f"made-up-{number}"
        head = request(f"/{name}?{name}={name}", headers=[(name, name), ("Origin", f"http://{name}")])
        with RawClient(gateway) as client:
            client.ask(head)
        with RawClient(gateway) as client:
            client.ask(request(headers=[bearer(make_token(name))]))
            client.say(op=name, id=1, ch=name)
            client.say(op="sub", id=2, ch=f"{name}:1")
            client.say(op="sub", id=3, ch=f"open:{name}")
            client.hear_answer(3)
        for path in (f"/{name}", f"/api/{name}", f"/metrics?{name}={name}"):
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(gateway.admin_url + path, timeout=LIMIT_S).close()
    group.is_answered()
    group.leave()
    after = scrape(gateway)
    assert set(after) == before
    assert not [name for name in after if "made-up" in name]


def test_malformed_admin_requests_cause_no_500_no_traceback_and_no_restart(gateway: Gateway) -> None:
    """The heads and bodies are of the kinds that confuse parsers."""
    key = f"Host: x\r\nX-API-Key: {KEY}\r\nConnection: close\r\n".encode()
    post = b"POST /api/publish HTTP/1.1\r\n" + key
    pid = gateway.children()["wsgate-admin"]
    for sent in (
        post + b"Content-Length: " + b"9" * 5000 + b"\r\nExpect: 100-continue\r\n\r\n",
        post + b"Content-Length: -1\r\n\r\n",
        post + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        post + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        post + b"Transfer-Encoding: gzip\r\n\r\n",
        post + b"Origin: http://[::1\r\nContent-Length: 2\r\n\r\n{}",
        post + b"Origin: http://x:99999999\r\nContent-Length: 2\r\n\r\n{}",
        post + b"Origin: http://\xe2\x84\x80\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /api/%ff%00 HTTP/1.1\r\n" + key + b"\r\n",
        b"GET /%2e%2e/%00 HTTP/1.1\r\n" + key + b"\r\n",
        b"GET http://evil.example/metrics HTTP/1.1\r\n" + key + b"\r\n",
        b"OPTIONS * HTTP/1.1\r\n" + key + b"\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n" + key + b"\r\n",
        b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=\xff;q=x,;;\r\n"
        + key
        + b"\r\n",
        b"G\xffT / HTTP/1.1\r\n" + key + b"\r\n",
        b"\x16\x03\x01\x00\x00\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", gateway.admin_port), LIMIT_S) as peer:
            peer.sendall(sent)
            peer.shutdown(socket.SHUT_WR)
            answer = bytearray()
            with contextlib.suppress(ConnectionResetError):
                while data := peer.recv(1 << 16):
                    answer += data
            assert b"Traceback" not in answer
            assert not answer.startswith(b"HTTP/1.1 5")
    assert ask(f"{gateway.admin_url}/healthz")[0] == 200
    assert gateway.children()["wsgate-admin"] == pid
    assert not [line for line in gateway.lines if "Traceback" in line or "request_failed" in line]
