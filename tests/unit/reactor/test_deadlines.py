"""Check that every deadline of a connection is absolute, however much the peer sends that does not count."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pytest

from tests.support.frames import CONTINUATION, PING, PONG, TEXT, client_frame
from tests.support.reactor_rig import TICK_MS, Peer, Rig, rig
from tests.support.tcp_rig import HEAD
from wsgate.config.settings import Heartbeat, Limits, Server, fields_of
from wsgate.reactor import Settings, event_kinds
from wsgate.reasons import Reason

LIMIT_MS: Final = 5_000
LATER: Final[dict[str, Any]] = {
    "head_timeout_ms": 60_000,
    "upgrade_timeout_ms": 60_000,
    "message_timeout_ms": 60_000,
    "write_timeout_ms": 60_000,
    "outbox_age_ms": 60_000,
    "ping_interval_ms": 0,
}
"""All deadlines other than the tested one lie far beyond it."""


class Row(NamedTuple):
    """One deadline."""

    setting: str  # of the reactor; empty if the deadline is set for each connection
    begin: Callable[[Rig], Peer]
    live: Callable[[Rig, Peer], object]  # the act of the peer at every tick
    reason: Reason


def begins_a_head(bench: Rig) -> Peer:
    return bench.connect(upgraded=False)


def has_sent_its_head(bench: Rig) -> Peer:
    peer = bench.connect(upgraded=False)
    peer.send(HEAD)
    bench.turn()
    return peer


def is_open(bench: Rig) -> Peer:
    return bench.connect()


def begins_a_message(bench: Rig) -> Peer:
    peer = bench.connect()
    peer.send(client_frame(TEXT, b"a", final=False))
    bench.turn()
    return peer


def until(code: int) -> Callable[[Rig], Peer]:
    def begin(bench: Rig) -> Peer:
        peer = bench.connect()
        bench.reactor.set_deadline(peer.conn, bench.now_ms + LIMIT_MS, code)
        return peer

    return begin


def is_behind(bench: Rig) -> Peer:
    peer = bench.connect(send_buffer_bytes=4_096)
    bench.reactor.send(peer.conn, bytes(400_000))
    bench.turn()
    return peer


def is_closing(bench: Rig) -> Peer:
    peer = is_behind(bench)
    bench.reactor.close(peer.conn, 1000)
    bench.turn()
    return peer


def sends(data: bytes) -> Callable[[Rig, Peer], object]:
    return lambda bench, peer: peer.send(data)


def reads_a_little(bench: Rig, peer: Peer) -> None:
    """Read twice what the kernel needs to take more, so that there is progress at every tick."""
    peer.sock.recv(8_192)


def test_message_timeout_counts_only_the_time_in_which_the_connection_is_read() -> None:
    """A peer that does not read fills its outbox over half, and is not read in that time."""
    settings = LATER | {"message_timeout_ms": LIMIT_MS, "outbox_bytes": 20_000}
    with rig(Settings(**settings)) as bench:
        peer = bench.connect(send_buffer_bytes=4_096)
        peer.send(client_frame(TEXT, b"a", final=False))
        bench.turn()
        read_ms = 0
        while not bench.of(peer) and read_ms < 2 * LIMIT_MS:
            while not bench.reactor.inspect(peer.conn)["paused"]:  # type: ignore[index]
                bench.reactor.send(peer.conn, bytes(4_000))
                bench.turn()
            bench.pass_ms(1_000)
            assert not bench.of(peer), "a deadline ran while the connection was not read"
            while bench.reactor.inspect(peer.conn)["paused"]:  # type: ignore[index]
                peer.receive()
                bench.turn()
            peer.receive()
            bench.turn()
            bench.pass_ms(1_000)
            read_ms += 1_000
        assert bench.of(peer)[0] == (event_kinds.FAILING, 1008)
        assert LIMIT_MS <= read_ms <= LIMIT_MS + 1_000


ROWS: Final = {
    "head_timeout": Row("head_timeout_ms", begins_a_head, sends(b"G"), Reason.HEAD_TIMEOUT),
    "upgrade": Row("upgrade_timeout_ms", has_sent_its_head, sends(b"x"), Reason.UPGRADE_TIMEOUT),
    "message_timeout": Row(
        "message_timeout_ms",
        begins_a_message,
        sends(client_frame(CONTINUATION, b"a", final=False) + client_frame(PING)),
        Reason.MESSAGE_TIMEOUT,
    ),
    "idle_timeout": Row("idle_timeout_ms", is_open, sends(client_frame(PONG)), Reason.IDLE_TIMEOUT),
    "auth_timeout": Row("", until(4002), sends(client_frame(TEXT, b"a")), Reason.AUTH_TIMEOUT),
    "token": Row("", until(4001), sends(client_frame(TEXT, b"a")), Reason.TOKEN_EXPIRED),
    "outbox_age": Row("outbox_age_ms", is_behind, reads_a_little, Reason.OUTBOX_AGE),
    "write_timeout": Row("write_timeout_ms", is_behind, sends(client_frame(TEXT, b"a")), Reason.WRITE_STALL),
    "closing": Row("write_timeout_ms", is_closing, reads_a_little, Reason.APPLICATION),
}
ELSEWHERE: Final = {
    "drain_timeout": "a deadline of a node: tests/unit/shard/test_drain.py",
    "ping_interval": "ends no connection: tests/unit/reactor/test_timers.py",
    "pong_timeout": "any byte meets this deadline: tests/unit/reactor/test_timers.py",
}


def test_every_deadline_setting_has_a_row_in_this_file() -> None:
    names = {info.encode_name for section in (Server, Heartbeat, Limits) for info in fields_of(section)}
    found = {name for name in names if name.endswith(("_timeout", "_age", "_interval"))}
    assert found == (set(ROWS) | set(ELSEWHERE)) - {"upgrade", "token", "closing"}


@pytest.mark.parametrize("name", ROWS)
def test_deadline_is_absolute_although_the_peer_keeps_sending_or_reading(name: str) -> None:
    row = ROWS[name]
    settings = LATER | ({row.setting: LIMIT_MS} if row.setting else {})
    with rig(Settings(**settings)) as bench:
        peer = row.begin(bench)
        began_ms, ended_ms = bench.now_ms, 0
        while not ended_ms and bench.now_ms < began_ms + 2 * LIMIT_MS:
            row.live(bench, peer)
            bench.pass_ms(TICK_MS)
            kinds = {kind for kind, _ in bench.of(peer)}
            if kinds & {event_kinds.FAILING, event_kinds.CLOSED} or bench.count("now_lingering"):
                ended_ms = bench.now_ms
        assert LIMIT_MS <= ended_ms - began_ms <= LIMIT_MS + TICK_MS
        peer.close()
        bench.pass_ms(LIMIT_MS + TICK_MS)
        assert bench.count(f"ended_{row.reason.name.lower()}") == 1


@pytest.mark.parametrize("clock_ms", [0, 1, 2, 3])
def test_silent_peer_has_its_whole_pong_timeout_after_reading_was_resumed(clock_ms: int) -> None:
    """The clock may be even or odd when the stamp is taken; a tick in the same millisecond closes nobody."""
    with rig(Settings(ping_interval_ms=2_000, pong_timeout_ms=5_000)) as bench:
        peer = bench.connect()
        bench.turn()
        while not bench.count("pings_out"):
            bench.pass_ms(TICK_MS)
        bench.reactor.pause_reading(peer.conn)
        bench.now_ms += TICK_MS + clock_ms
        bench.reactor.poll(bench.now_ms)
        bench.reactor.resume_reading(peer.conn)
        for _ in range(8):
            bench.reactor.tick(bench.now_ms)
            bench.step()
            bench.now_ms += TICK_MS
        assert (event_kinds.FAILING, peer.conn) not in [event[:2] for event in bench.events]
        bench.audit()


@pytest.mark.parametrize("clock_ms", [0, 1, 2, 3])
def test_full_socket_that_takes_bytes_again_gives_the_whole_pong_timeout(clock_ms: int) -> None:
    with rig(Settings(ping_interval_ms=2_000, pong_timeout_ms=5_000, write_timeout_ms=60_000)) as bench:
        peer = bench.connect(send_buffer_bytes=4_096)
        bench.turn()
        while not bench.count("pings_out"):
            bench.pass_ms(TICK_MS)
        for _ in range(40):
            bench.reactor.send(peer.conn, b"x" * 1_000)
        bench.turn()
        bench.now_ms += TICK_MS + clock_ms
        while peer.receive():
            bench.reactor.poll(bench.now_ms)
            bench.reactor.flush(bench.now_ms)
        bench.reactor.tick(bench.now_ms)
        bench.now_ms += TICK_MS
        bench.reactor.tick(bench.now_ms)
        bench.step()
        assert (event_kinds.FAILING, peer.conn) not in [event[:2] for event in bench.events]
        assert bench.reactor.inspect(peer.conn) is not None


@pytest.mark.parametrize(
    ("limits", "begin", "rest"),
    [
        ({"idle_timeout_ms": LIMIT_MS}, is_open, client_frame(TEXT, b"in time")),
        ({"message_timeout_ms": LIMIT_MS}, begins_a_message, client_frame(CONTINUATION, b"b")),
    ],
    ids=["idle_timeout", "message_timeout"],
)
def test_message_that_arrived_in_time_counts_although_the_process_was_late(
    limits: dict[str, int], begin: Callable[[Rig], Peer], rest: bytes
) -> None:
    """A second stall within a minute is not forgiven, so the deadline passes before the message is read."""
    with rig(Settings(**(LATER | limits))) as bench:
        peer = begin(bench)
        bench.turn()
        for stall_ms in (3_000, LIMIT_MS + 1_000):
            bench.pass_ms(TICK_MS)
            if stall_ms > LIMIT_MS:
                peer.send(rest)
            bench.now_ms += stall_ms
            bench.reactor.tick(bench.now_ms)
        bench.turn()
        assert event_kinds.TEXT in {kind for kind, _ in bench.of(peer)}
        assert event_kinds.FAILING not in {kind for kind, _ in bench.of(peer)}
        # A peer that goes on sending without a whole message is closed with the next deadline.
        bench.pass_ms(2 * LIMIT_MS)
        assert limits.get("message_timeout_ms") or event_kinds.FAILING in {kind for kind, _ in bench.of(peer)}
