"""Provoke every reason to end a connection that a peer can cause: its code, its text and its counter.

All provocations of one gateway run first, then its counters are compared: each reason was counted exactly as
often as it was provoked, and no other one. The table is protocols/codes.json.
"""

import json
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final, NamedTuple

import pytest
import redis

from tests.support.attack_rig import besieged, configured_gateway, fresh_counters, make_token, scrape
from tests.support.frames import BINARY, CLOSE, CONTINUATION, PING, TEXT, client_frame, client_header
from tests.support.gateway import ROOT, Gateway, wait_until
from tests.support.raw_client import LIMIT_S, Answer, Ending, RawClient, bearer, request

pytestmark = pytest.mark.slow

CODES: Final = json.loads((ROOT / "protocols/codes.json").read_text())
REASONS: Final = {row["name"]: row for row in CODES["reasons"]}

STRICT: Final = """
[heartbeat]
ping_interval = "1s"
pong_timeout = "1s"
[limits]
max_message = "4KiB"
max_fragments = 8
message_rate = 150
byte_rate = "64KiB"
head_timeout = "1s"
auth_timeout = "1s"
message_timeout = "1s"
idle_timeout = "4s"
outbox_age = "2s"
write_timeout = "60s"
"""
CROWDED: Final = """
[limits]
write_timeout = "1s"
outbox_age = "1m"
[admission]
max_connections = 24
handshakes_in_progress = 8
"""
RATED: Final = """
[admission]
handshake_rate = 8
"""

ELSEWHERE: Final = {
    "refused_address_connections": "needs other limits: tests/integration/test_gateway_addresses.py",
    "refused_address_rate": "likewise",
    "bad_proxy_header": "likewise",
    "user_connections": "needs other limits: tests/integration/test_gateway_users.py",
    "replaced": "likewise",
    "refused_descriptors": "needs a process without descriptors: tests/attack/reactor/test_descriptors.py",
    "refused_handshakes": "needs handshakes that wait for the bus: tests/integration/test_gate.py",
    "refused_partial_bytes": "needs a crowd: tests/attack/gateway/test_partial.py",
    "partial_bytes": "likewise",
    "refused_memory": "needs a crowd: tests/attack/gateway/test_memory.py",
    "shed": "likewise",
    "key_awaited": "needs an issuer: tests/integration/test_key_set.py",
    "token_not_yet_valid": "tests/attack/gateway/test_doors.py",
    "kicked": "by a backend: tests/integration/test_control.py",
    "invalid_deflate": "needs compression: tests/unit/reactor/test_inflate.py",
    "head_refused": "shown by the name of each refusal: tests/attack/gateway/test_refusals.py",
    "upgrade_timeout": "a shard decides at once or after the bus: tests/unit/reactor/test_timers.py",
    "out_of_memory": "needs a process without memory",
    "internal": "a fault of the gateway",
    "shutdown": "only when a drain takes too long",
}

Seen = Ending | Answer
Provocation = Callable[[Gateway], Seen]


class Outcome(NamedTuple):
    """The result of every provocation of one gateway, and the difference of each counter."""

    seen: Mapping[str, Seen]
    counted: Counter[str]


def welcomed(gateway: Gateway, user: str = "cut", *, receive_buffer_bytes: int = 0) -> RawClient:
    return RawClient.welcomed(gateway, make_token(user), receive_buffer_bytes=receive_buffer_bytes)


def after_welcome(*frames: bytes) -> Provocation:
    """Return a provocation that sends these bytes after the welcome, and then only pongs."""

    def provoke(gateway: Gateway) -> Seen:
        with welcomed(gateway) as client:
            client.sock.sendall(b"".join(frames))
            return client.ending()

    return provoke


def is_silent(gateway: Gateway) -> Seen:
    with welcomed(gateway) as client:
        client.answers_pings = False
        return client.ending()


def has_a_short_token(gateway: Gateway) -> Seen:
    with RawClient.welcomed(gateway, make_token(ttl_s=3)) as client:
        return client.ending()


def shows_no_token(gateway: Gateway) -> Seen:
    with RawClient(gateway) as client:
        assert client.ask(request()).status == 101
        return client.ending()


def shows_a_bad_token(gateway: Gateway) -> Seen:
    with RawClient(gateway) as client:
        assert client.ask(request()).status == 101
        client.say(op="auth", token="x")
        return client.ending()


def sends_half_a_head(gateway: Gateway) -> Seen:
    with RawClient(gateway) as client:
        return client.ask(request()[:-2])


def sends_a_long_head(gateway: Gateway) -> Seen:
    with RawClient(gateway) as client:
        return client.ask(request(headers=[("X-Long", "x" * 20_000)]))


def asks_whether_it_is_ready(gateway: Gateway) -> Seen:
    with RawClient(gateway) as client:
        return client.ask(b"GET /readyz HTTP/1.1\r\nHost: gate.example\r\n\r\n")


def goes_without_a_word(gateway: Gateway) -> Seen:
    with welcomed(gateway) as client:
        client.sock.shutdown(socket.SHUT_WR)
        return client.ending()


def resets(gateway: Gateway) -> Seen:
    with welcomed(gateway) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return Ending(1006, [])


def publish_unread(gateway: Gateway, client: RawClient, user: str, size: int, count: int) -> None:
    """Publish to the inbox of a user whose client does not read."""
    with redis.Redis.from_url(gateway.bus_url) as bus, bus.pipeline(transaction=False) as pipeline:
        for _ in range(count):
            pipeline.publish(f"wsgate:ch:@{user}", b'"' + b"x" * size + b'"')
        assert set(pipeline.execute()) == {1}


def reads_too_slowly(gateway: Gateway) -> Seen:
    """Publish more at once than the outbox takes; the client reads only after the outbox is given up."""
    with welcomed(gateway, "slow", receive_buffer_bytes=4096) as client:
        name = 'wsgate_drops_total{cause="closing"}'
        before = scrape(gateway)[name]
        publish_unread(gateway, client, "slow", 60_000, 100)
        wait_until("its outbox is given up", lambda: scrape(gateway)[name] > before, LIMIT_S)
        return client.ending()


def reads_nothing_for_a_while(gateway: Gateway) -> Seen:
    """Publish less than the outbox takes, and read nothing for longer than the outbox keeps it."""
    with welcomed(gateway, "late", receive_buffer_bytes=4096) as client:
        publish_unread(gateway, client, "late", 8_000, 60)

        def is_given_up() -> bool:
            client.sock.sendall(client_frame(10))  # a pong, so that the heartbeat does not end the connection
            numbers = scrape(gateway)
            return numbers['wsgate_connections{shard="0",state="closing"}'] > 0

        wait_until("its outbox is given up", is_given_up, LIMIT_S)
        return client.ending()


def never_reads(gateway: Gateway) -> Seen:
    """Read nothing for a whole write deadline, so that the connection ends without a Close."""
    with welcomed(gateway, "stone", receive_buffer_bytes=4096) as client:
        publish_unread(gateway, client, "stone", 8_000, 60)
        name = 'wsgate_closes_total{reason="write_stall"}'
        wait_until("the connection is closed", lambda: scrape(gateway)[name] > 0, LIMIT_S)
        return client.ending()


FRAGMENT: Final = client_frame(CONTINUATION, b"x", final=False)
COMMAND: Final = client_frame(TEXT, b'{"op":"ping"}')
BIG: Final = client_frame(TEXT, b'{"op":"ping","padding":"' + b"x" * 4_000 + b'"}')

AT_ONCE: Final[dict[str, Provocation]] = {
    "peer_closed": after_welcome(client_frame(CLOSE, b"\x03\xe8")),
    "peer_gone": goes_without_a_word,
    "peer_reset": resets,
    "protocol_error": after_welcome(client_frame(3)),
    "invalid_utf8": after_welcome(client_frame(TEXT, b"\xff")),
    "message_too_big": after_welcome(client_header(TEXT, 4097)),
    "too_many_fragments": after_welcome(client_frame(TEXT, b"x", final=False), FRAGMENT * 20),
    "control_rate": after_welcome(client_frame(PING) * 400),
    "message_timeout": after_welcome(client_frame(TEXT, b"x", final=False)),
    "message_rate": after_welcome(COMMAND * 400),
    "byte_rate": after_welcome(BIG * 100),
    "heartbeat_timeout": is_silent,
    "idle_timeout": after_welcome(),
    "token_expired": has_a_short_token,
    "auth_timeout": shows_no_token,
    "invalid_token": shows_a_bad_token,
    "bad_messages": after_welcome(client_frame(TEXT, b"{") * 3),
    "unsupported_data": after_welcome(client_frame(BINARY, b"{}")),
    "slow_consumer": reads_too_slowly,
    "head_timeout": sends_half_a_head,
    "head_too_large": sends_a_long_head,
    "application": asks_whether_it_is_ready,
}
ALONE: Final[dict[str, Provocation]] = {"outbox_age": reads_nothing_for_a_while}

NO_CLOSE: Final = {"peer_gone", "peer_reset", "write_stall"}
"""Reasons without a Close frame: the peer is gone, or does not read."""


def counters_by_reason(numbers: Mapping[str, float]) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, value in numbers.items():
        for family in ("wsgate_closes_total", "wsgate_refusals_total"):
            if name.startswith(family):
                found[name.split('"')[1]] += int(value)
    return found


def assert_as_documented(reason: str, seen: Seen) -> None:
    """Assert that the peer saw the code, the text and the retry hint of the table."""
    row = REASONS[reason]
    if isinstance(seen, Answer):
        assert seen.status == (row["http_status"] or 200)
        return
    assert seen.code == (1006 if reason in NO_CLOSE else row["close_code"])
    byes = [message for message in seen.messages if message["op"] == "bye"]
    if seen.code < 4000:
        assert byes == []
        return
    assert byes == [seen.bye]
    assert (seen.bye["code"], seen.bye["reason"]) == (row["close_code"], reason)
    assert seen.bye["reconnect"] is row["reconnect"]
    assert ("retry_ms" in seen.bye) is row["reconnect"]


def test_p9_every_documented_reason_has_a_provocation_or_a_reference_to_another_test() -> None:
    here = {*AT_ONCE, *ALONE, *IN_A_CROWD, "refused_rate", "drain"}
    assert here | set(ELSEWHERE) == set(REASONS)
    assert not here & set(ELSEWHERE)


# --- limits of one connection -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    with configured_gateway(tmp_path_factory.mktemp("strict"), STRICT) as gateway, besieged(gateway):
        before = counters_by_reason(fresh_counters(gateway))
        with ThreadPoolExecutor(len(AT_ONCE)) as pool:
            tasks = {reason: pool.submit(provoke, gateway) for reason, provoke in AT_ONCE.items()}
            seen = {reason: task.result() for reason, task in tasks.items()}
        seen |= {reason: provoke(gateway) for reason, provoke in ALONE.items()}
        after = counters_by_reason(fresh_counters(gateway))
        after.subtract(before)
        yield Outcome(seen, after)


@pytest.mark.parametrize("reason", [*AT_ONCE, *ALONE])
def test_p9_provoked_reason_has_its_documented_code_and_bye_and_is_counted_once(
    reason: str, strict: Outcome
) -> None:
    assert_as_documented(reason, strict.seen[reason])
    assert strict.counted[reason] == 1


def test_p9_only_the_provoked_reasons_were_counted(strict: Outcome) -> None:
    assert {reason for reason, count in strict.counted.items() if count} == set(strict.seen)


# --- limits of a node, and its end --------------------------------------------------------------------


def one_handshake_too_many(gateway: Gateway) -> Seen:
    """Admit a new connection; the oldest incomplete head is answered to make room for it."""
    with ExitStack() as held:
        halves = [held.enter_context(RawClient(gateway)) for _ in range(8)]
        for half in halves:
            half.sock.sendall(request()[:-2])
        # The deferred accepts are done, and each connection is a handshake in progress.
        name = 'wsgate_connections{shard="0",state="head"}'
        wait_until("eight handshakes are in progress", lambda: scrape(gateway)[name] == 8, LIMIT_S)
        with RawClient(gateway) as client:
            assert client.ask(request()).status == 101
            return halves[0].answer()


def one_connection_too_many(gateway: Gateway) -> Seen:
    with ExitStack() as held:
        for _ in range(24):
            client = held.enter_context(RawClient(gateway))
            answer = client.ask(request(headers=[bearer(make_token())]))
            if answer.status != 101:
                return answer
    raise AssertionError("no connection was refused")


HELD: Final = 'wsgate_connections_held{shard="0"}'
IN_A_CROWD: Final[dict[str, Provocation]] = {
    "head_displaced": one_handshake_too_many,
    "refused_connections": one_connection_too_many,
    "write_stall": never_reads,
}


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    with configured_gateway(tmp_path_factory.mktemp("crowded"), CROWDED) as gateway:
        with besieged(gateway):
            numbers = fresh_counters(gateway)
            before, residents = counters_by_reason(numbers), numbers[HELD]
            seen = {}
            for reason, provoke in IN_A_CROWD.items():
                seen[reason] = provoke(gateway)
                wait_until(
                    "the connections of the provocation are gone",
                    lambda: fresh_counters(gateway)[HELD] == residents,
                    LIMIT_S,
                )
            after = counters_by_reason(scrape(gateway))
        after.subtract(before)
        yield Outcome(seen, after)


@pytest.mark.parametrize("reason", IN_A_CROWD)
def test_p9_full_node_refuses_or_closes_with_the_documented_reason(reason: str, crowded: Outcome) -> None:
    seen = crowded.seen[reason]
    assert_as_documented(reason, seen)
    assert crowded.counted[reason] == 1
    if isinstance(seen, Answer) and seen.status == 503:
        assert 1 <= int(seen.headers["retry-after"]) <= 10


def test_p9_connections_over_the_handshake_rate_are_refused_as_refused_rate(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with configured_gateway(tmp_path_factory.mktemp("rated"), RATED) as gateway:
        seen: list[Answer] = []
        for _ in range(200):
            with RawClient(gateway) as client:
                seen.append(client.ask(request(headers=[bearer("x")])))
        refused = [answer for answer in seen if answer.status == 503]
        assert len(refused) > 100
        assert_as_documented("refused_rate", refused[0])
        assert counters_by_reason(fresh_counters(gateway))["refused_rate"] == len(refused)


def test_p9_drain_closes_clients_with_its_documented_code_and_is_counted(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """One client leaves at once; the other keeps the shard alive, so that its counter can be read."""
    with configured_gateway(tmp_path_factory.mktemp("drained")) as gateway:
        with welcomed(gateway) as client, welcomed(gateway) as stubborn:
            gateway.process.terminate()
            closed = client.ending()
            assert_as_documented("drain", closed)
            name = 'wsgate_closes_total{reason="drain"}'
            wait_until("the drain is counted", lambda: scrape(gateway)[name] == 1, LIMIT_S)
            assert_as_documented("drain", stubborn.ending())
        assert gateway.stop() == 0
