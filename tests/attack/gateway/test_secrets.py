"""Search for tokens in all that a gateway writes: logs, metrics, answers, files, and texts of `repr`."""

import dataclasses
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.attack_rig import SECRET, besieged, configured_gateway, make_token, shard_pid
from tests.support.frames import client_frame
from tests.support.gateway import Gateway, wait_until
from tests.support.raw_client import LIMIT_S, RawClient, bearer, request
from wsgate.admin import AdminOptions
from wsgate.auth import KeySource, OriginPolicy, TokenPolicy
from wsgate.bus import parse_address
from wsgate.dialects import DIALECTS
from wsgate.node.runtime import RunningGateway
from wsgate.reactor import GateLimits, Settings
from wsgate.shard.handshakes import Entry
from wsgate.shard.options import ShardOptions

pytestmark = pytest.mark.slow

CANARY: Final = "canary-that-must-not-sing"
API_KEY: Final = "an api key that is a canary itself"
BUS_PASSWORD: Final = "password-of-the-bus-that-is-a-canary"
FORMATS: Final = ["json", "text"]


@pytest.fixture(scope="module", params=FORMATS)
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Start a gateway with the query carrier and debug logs, once in each log format."""
    settings = f"""
[auth]
allow_query_token = true
[log]
level = "debug"
format = "{request.param}"
[admin]
api_key = "{API_KEY}"
"""
    with configured_gateway(tmp_path_factory.mktemp("secrets"), settings) as running:
        yield running


def tokens_in_every_state() -> list[str]:
    return [
        make_token(CANARY),
        make_token(CANARY, ttl_s=-1),
        make_token(CANARY, secret=SECRET + "x"),
        make_token(CANARY, channel="open:1"),
        f"no.{CANARY}.token",
    ]


def bytes_received_after(gateway: Gateway, head: bytes) -> bytes:
    """Return the bytes that a client receives that sends this head and then malformed messages."""
    with RawClient(gateway) as client:
        if client.ask(head).status == 101:
            for _ in range(3):
                client.say_raw(b"nonsense")
            client.ending()
        return bytes(client.heard)


def carry_everywhere(gateway: Gateway, token: str) -> bytes:
    """Send a token by every carrier, in the right and in wrong forms; return all answers."""
    offer = ("Sec-WebSocket-Protocol", f"wsgate.v1.json, wsgate.bearer.{token}")
    heads = [
        request(headers=[bearer(token)]),
        request(headers=[offer]),
        request(f"/ws?token={token}"),
        request(f"/ws?ch={token}&from=open:1:{token}&token={token}", headers=[offer]),
        request(f"/elsewhere?token={token}", headers=[bearer(token)]),
        request(f"/{token}"),
        request(headers=[bearer(token), ("Origin", "http://evil.example")]),
        request(headers=[bearer(token), ("Origin", token)]),
        request(headers=[bearer(token), bearer(token)]),
        request(headers=[("Authorization", token)]),
        request(headers=[bearer(token), ("X-Long", "x" * 20_000)]),
        request(headers=[bearer(token), ("Bad Header", token)]),
        request(host=token, headers=[bearer(token)]),
        request(headers=[("Sec-WebSocket-Protocol", f"wsgate.bearer.{token}")]),
        request(headers=[("Cookie", token), ("X-API-Key", token)]),
        request(f"/ws?token={token}").replace(b"GET", b"POST"),
        request(f"/readyz?token={token}"),
        token.encode() + b"\r\n\r\n",
    ]
    return b"".join(bytes_received_after(gateway, head) for head in heads)


def send_in_every_field(gateway: Gateway, token: str) -> bytes:
    """Send a token in every field of a command, whether or not the field takes one; return all answers."""
    heard = b""
    for fields in (
        {"op": "auth", "token": token},
        {"op": "auth", "token": token, "from": {token: token}},
        {"op": token},
        {"op": "refresh", "token": token, "id": token},
        {"op": "sub", "ch": token, "token": token},
    ):
        with RawClient(gateway) as client:
            assert client.ask(request()).status == 101
            client.say(**fields)
            client.say_raw(token.encode())
            client.say(op="ping", id=1)
            client.sock.sendall(client_frame(8, b"\x03\xe8" + token.encode()[:100]))
            client.ending()
            heard += bytes(client.heard)
    with RawClient.welcomed(gateway, make_token("teller")) as client:
        for number, fields in enumerate(
            (
                {"op": "refresh", "token": token},
                {"op": "sub", "ch": "open:1", "token": token},
                {"op": "sub", "ch": "{" + token, "token": token},
                {"op": "unsub", "ch": "{" + token},
                {"op": "auth", "token": token},
                {"op": "history", "ch": "unknown:1", "from": token},
            )
        ):
            client.say(**fields, id=number)
            client.hear_answer(number)
        heard += bytes(client.heard)
    return heard


def ask_admin(gateway: Gateway, path: str, token: str) -> bytes:
    asked = urllib.request.Request(
        f"{gateway.admin_url}{path}",
        data=json.dumps({"channel": token + " ", "data": 1, "token": token}).encode(),
        headers={"X-API-Key": token, "Authorization": f"Bearer {token}", "Cookie": token},
    )
    try:
        with urllib.request.urlopen(asked, timeout=LIMIT_S) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.read()


def traces(text: str, tokens: list[str]) -> list[str]:
    """Return the parts of tokens that a text contains, without the headers, which are no secret."""
    parts = {part for token in tokens for part in token.split(".")[1:] if len(part) > 8}
    return [part for part in {*parts, CANARY} if part in text]


def test_s21_no_token_appears_in_answers_metrics_files_or_logs(gateway: Gateway) -> None:
    tokens = tokens_in_every_state()
    with besieged(gateway):
        answers = b"".join(
            carry_everywhere(gateway, token) + send_in_every_field(gateway, token) for token in tokens
        )
        # The others may be closed before the bus has confirmed their inbox and they are welcomed.
        with RawClient.welcomed(gateway, tokens[0]) as client:
            answers += bytes(client.heard)
        for token in tokens:
            for path in ("/api/publish", f"/api/{CANARY}", f"/nothing?token={CANARY}", "/metrics"):
                answers += ask_admin(gateway, path, token)
        with urllib.request.urlopen(f"{gateway.admin_url}/metrics", timeout=LIMIT_S) as answer:
            metrics = answer.read().decode()
        files = {
            file.name: file.read_bytes().decode("latin-1")
            for file in gateway.directory.rglob("*")
            if file.is_file()
        }
    heard = answers.decode("latin-1")
    # The answers may repeat only the user of a valid token and the name of a channel.
    assert f'"user":"{CANARY}"' in heard
    for own in (f'"user":"{CANARY}"', *(f'"ch":"{token}"' for token in tokens)):
        heard = heard.replace(own, "")
    assert traces(heard, tokens) == []
    assert traces(metrics, tokens) == []
    assert traces(json.dumps(files), tokens) == []
    assert files  # the search covered some files
    log = "\n".join(gateway.lines)
    assert traces(log, tokens) == []
    for text in (heard, metrics, log, json.dumps(files)):
        assert SECRET not in text
        assert API_KEY not in text


def test_s21_no_process_of_the_gateway_has_a_secret_in_its_arguments(gateway: Gateway) -> None:
    pids = [gateway.process.pid, *(pid for group in gateway.children().values() for pid in group)]
    for pid in pids:
        with open(f"/proc/{pid}/cmdline", "rb") as arguments:
            assert SECRET.encode() not in arguments.read()


def test_s21_log_of_a_killed_shard_contains_no_token(gateway: Gateway) -> None:
    """The shard is killed while a connection with the token is open."""
    token = make_token(CANARY)
    with RawClient.welcomed(gateway, token):
        pid = shard_pid(gateway)
        os.kill(pid, signal.SIGKILL)
        wait_until("another shard serves", lambda: is_served(gateway, pid), LIMIT_S)
    assert traces("\n".join(gateway.lines), [token]) == []


def is_served(gateway: Gateway, former: int) -> bool:
    if gateway.children().get("wsgate-shard-0", [former]) == [former]:
        return False
    try:
        with RawClient(gateway) as client:
            return client.ask(request(headers=[bearer(make_token())])).status == 101
    except (OSError, EOFError):  # the stream may end before there is an answer
        return False


# --- what a traceback or a debugger would print --------------------------------------------------------


def test_s21_repr_and_str_of_options_contain_no_secret() -> None:
    bus = parse_address(f"redis://wsgate:{BUS_PASSWORD}@127.0.0.1:6379")
    shard = ShardOptions(
        node="node-1",
        number=0,
        reactor=Settings(),
        gate=GateLimits(),
        bus=bus,
        origins=OriginPolicy(()),
        keys=(KeySource("main", "HS256", SECRET),),
        tokens=TokenPolicy(),
    )
    admin = AdminOptions(
        node="node-1",
        bus=bus,
        prefix="wsgate",
        api_key=API_KEY,
        is_dev=False,
        is_loopback=True,
        client_port=8000,
        path="/ws",
        connect_timeout_s=1.0,
        command_timeout_s=1.0,
        publish_command="",
        max_publish_bytes=1,
        log_level="info",
    )
    fields = {field.name: 0 for field in dataclasses.fields(RunningGateway)}
    running = RunningGateway(**fields | {"secret": SECRET, "bus_url": f"redis://:{BUS_PASSWORD}@bus"})  # type: ignore[arg-type]
    entry = Entry(b"", DIALECTS[0], 0, late_token=CANARY)
    for options in (shard, admin, running, entry, bus):
        for text in (repr(options), str(options)):
            for secret in (SECRET, API_KEY, BUS_PASSWORD, CANARY):
                assert secret not in text
