"""Open and end 100,000 connections in every way: the counters return to their start, and nothing leaks.

Every way in and out of the diagram in structs.pxd is one function. Each one runs alone first, so that a leak
has a name. Then all run in turn, over loopback TCP and socket pairs, until 100,000 connections have ended.
Descriptors, bytes of every kind, counts of states and references to objects of the application must return;
each connection must have ended for one reason.
"""

import gc
import os
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.support.frames import (
    BINARY,
    CONTINUATION,
    PING,
    TEXT,
    client_close,
    client_frame,
    client_header,
)
from wsgate.reactor import GateLimits, ListenerOptions, Reactor, Settings, event_kinds, open_listener
from wsgate.reasons import Reason

TOTAL = 100_000
BATCH = 100
TABLE_BYTES = (1024 * 144, 1024 * 144 + 8192 * 16)
"""Bytes of the table of connections; after a costly connection there is a table of debts too."""
HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
NO = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
RESET = struct.pack("ii", 1, 0)
SETTINGS = Settings(
    head_limit_bytes=256,
    head_timeout_ms=3_000,
    upgrade_timeout_ms=3_000,
    max_message_bytes=4_096,
    outbox_bytes=16_384,
    outbox_frames=8,
    outbox_age_ms=60_000,
    write_timeout_ms=6_000,
    ping_interval_ms=4_000,
    pong_timeout_ms=3_000,
    linger_timeout_ms=1_000,
)


class Meta:
    """The object of the application; the number of living ones is counted."""

    alive = 0

    def __init__(self) -> None:
        Meta.alive += 1

    def __del__(self) -> None:
        Meta.alive -= 1


class Rig:
    """One reactor with a listener, its clock, and every client that is still connected."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.reactor = Reactor(SETTINGS, now_ms=self.now_ms, gap_encoder=lambda *_: b"gap")
        self.reactor.set_bye(4010, [b"bye"])
        self.listener = open_listener("127.0.0.1", 0, ListenerOptions(defer_accept_s=0))
        self.reactor.listen(self.listener.fileno())
        self.open_gate()
        self.clients: list[socket.socket] = []
        self.first = 0  # index of the first client of the present way
        self.events: list[event_kinds.Event] = []
        self.came = 0
        self.batches = 0
        self.passed: list[int] = []  # handles of connections that were open and have ended
        self.decide: Callable[[int], object] = self.welcome
        self.failing: Callable[[int], object] = lambda _: None
        # The directory of channels is made with the first channel and stays.
        visitor = self.pairs(1)[0]
        self.reactor.subscribe(visitor, b"first")
        self.close_clients()
        self.start = self.held()

    def open_gate(self, limits: GateLimits | None = None) -> None:
        self.reactor.set_gate(limits or GateLimits(), b"HTTP/1.1 503 Service Unavailable\r\n\r\n")

    def welcome(self, conn: int) -> None:
        assert self.reactor.upgrade(conn, SWITCH)

    def held(self) -> dict[str, int]:
        held = self.reactor.bytes_held()
        return {kind: size for kind, size in held.items() if kind not in ("pool", "table")}

    # --- connecting -------------------------------------------------------------------------------

    def pairs(self, count: int = BATCH, *, upgraded: bool = True) -> list[int]:
        """Open this many connections over socket pairs with the smallest buffers; return their handles."""
        conns = []
        for _ in range(count):
            ours, theirs = socket.socketpair()
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            theirs.setblocking(False)
            self.clients.append(theirs)
            conn = self.reactor.adopt(ours.detach(), now_ms=self.now_ms, upgraded=upgraded)
            if upgraded:
                self.reactor.set_meta(conn, Meta())
            conns.append(conn)
        self.came += count
        return conns

    def dial(self, count: int = BATCH, say: bytes = b"") -> None:
        """Connect this many clients over loopback TCP, which send `say` after they are accepted."""
        address = self.listener.getsockname()
        fresh = []
        for _ in range(count):
            client = socket.socket()
            # Closing resets, so that no port is kept for a minute.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.connect(address)
            client.setblocking(False)
            fresh.append(client)
        self.clients += fresh
        self.came += count
        accepted = self.reactor.counters()["accepted"]
        for _ in range(1_000):
            self.step()
            if self.reactor.counters()["accepted"] - accepted == count:
                break
        if say:
            self.say(say, fresh)

    def connect_without_head(self) -> None:
        """Connect a batch over TCP and over socket pairs; no head is sent."""
        self.dial(BATCH // 2)
        self.pairs(BATCH // 2, upgraded=False)

    def open_batch(self) -> list[int]:
        """Open a batch over TCP and over socket pairs; return the handles."""
        before = len(self.events)
        self.dial(BATCH // 2, HEAD)
        self.turn()
        conns = [conn for kind, conn, _ in self.events[before:] if kind == event_kinds.OPEN]
        assert len(conns) == BATCH // 2
        for conn in conns:
            self.reactor.set_meta(conn, Meta())
        self.read_all(BATCH // 2)
        return conns + self.pairs(BATCH // 2)

    # --- while connected --------------------------------------------------------------------------

    def say(self, data: bytes, clients: list[socket.socket] | None = None) -> None:
        for client in self.clients[self.first :] if clients is None else clients:
            client.send(data)

    def assert_lingering(self) -> None:
        """Assert that the close handshakes are over and only the ends of streams are missing."""
        assert self.reactor.counters()["now_lingering"] == len(self.clients) - self.first

    def read_all(self, count: int | None = None) -> None:
        """Read all that arrived at the last `count` clients."""
        for client in self.clients[-count:] if count else self.clients:
            try:
                while client.recv(1 << 16):
                    pass
            except (BlockingIOError, ConnectionError):
                pass

    def step(self) -> int:
        batch = self.reactor.poll(self.now_ms)
        self.events += batch
        for kind, conn, value in batch:
            if kind == event_kinds.OPEN:
                self.decide(conn)
            elif kind == event_kinds.FAILING:
                self.failing(conn)
            elif kind == event_kinds.CLOSED:
                assert isinstance(value, int)
                self.passed.append(conn)
        more = self.reactor.flush(self.now_ms)
        return len(batch) + more + self.reactor.more

    def turn(self) -> None:
        quiet = 0
        for _ in range(5_000):
            quiet = 0 if self.step() else quiet + 1
            if quiet == 3:
                return
        raise AssertionError("the reactor never became idle")

    def pass_ms(self, duration_ms: int) -> None:
        for _ in range(duration_ms // 250):
            self.now_ms += 250
            self.reactor.tick(self.now_ms)
            self.turn()

    # --- ending -----------------------------------------------------------------------------------

    def close_clients(self) -> None:
        """Close every client, and wait until no connection is left."""
        for client in self.clients:
            client.close()
        self.clients.clear()
        self.first = 0
        for _ in range(200):
            self.turn()
            if self.is_empty():
                return
            self.pass_ms(250)
        raise AssertionError(f"connections left: {self.census()}")

    def is_empty(self) -> bool:
        counters = self.reactor.counters()
        return counters["now_connections"] == 0 and counters["now_draining"] == 0

    def census(self) -> dict[str, int]:
        counters = self.reactor.counters()
        return {name: number for name, number in counters.items() if name.startswith("now_") and number}

    def check(self) -> None:
        """Assert that everything is as it was at the start."""
        assert self.census() == {}
        assert self.held() == self.start
        assert Meta.alive == 0
        counters = self.reactor.counters()
        ended = sum(number for name, number in counters.items() if name.startswith("ended_"))
        assert ended == self.came, "a connection has no reason or two"

    def check_stale(self, conns: list[int]) -> None:
        """Assert that every call with a handle of an ended connection is refused and counted."""
        calls: list[tuple[Callable[[int], object], object]] = [
            (lambda conn: self.reactor.send(conn, b"x"), False),
            (lambda conn: self.reactor.close(conn, 1000), False),
            (lambda conn: self.reactor.abort(conn), False),
            (lambda conn: self.reactor.upgrade(conn, SWITCH), False),
            (lambda conn: self.reactor.refuse(conn, NO), False),
            (lambda conn: self.reactor.pause_reading(conn), False),
            (lambda conn: self.reactor.resume_reading(conn), False),
            (lambda conn: self.reactor.subscribe(conn, b"late"), 0),
            (lambda conn: self.reactor.unsubscribe(conn, b"late"), -1),
            (lambda conn: self.reactor.subscriptions(conn), []),
            (lambda conn: self.reactor.set_meta(conn, "late"), False),
            (lambda conn: self.reactor.meta(conn), None),
            (lambda conn: self.reactor.set_deadline(conn, self.now_ms, 4001), False),
            (lambda conn: self.reactor.peer(conn), ""),
            (lambda conn: self.reactor.inspect(conn), None),
        ]
        before = self.reactor.counters()["stale"]
        for conn in conns:
            for call, answer in calls:
                assert call(conn) == answer
        assert self.reactor.counters()["stale"] - before == len(calls) * len(conns)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.clients.clear()
        if self.reactor.fileno() >= 0:
            self.reactor.shutdown()
        self.listener.close()


# --- the ways to end: each function connects one batch, and a table has its reasons ------------------


def refused_at_the_gate(rig: Rig) -> None:
    rig.open_gate(GateLimits(connections=1))
    stays = rig.pairs(1)[0]
    rig.dial(BATCH - 1)
    rig.reactor.abort(stays)
    rig.open_gate(GateLimits(handshakes_in_progress=1024))


def refused_for_descriptors(rig: Rig) -> None:
    rig.open_gate(GateLimits(descriptors=1))
    rig.dial(BATCH, HEAD)
    rig.open_gate()


def gone_before_the_head(rig: Rig) -> None:
    rig.connect_without_head()


def half_a_head(rig: Rig) -> None:
    rig.connect_without_head()
    rig.say(HEAD[:-3])
    rig.turn()


def late_head(rig: Rig) -> None:
    rig.connect_without_head()
    rig.say(HEAD[:-3])
    rig.pass_ms(4_000)


def head_too_large(rig: Rig) -> None:
    rig.connect_without_head()
    rig.say(b"GET /" + b"a" * 500)
    rig.turn()


def head_refused(rig: Rig) -> None:
    rig.decide = lambda conn: rig.reactor.refuse(conn, NO)
    rig.connect_without_head()
    rig.say(HEAD + b"and more")
    rig.turn()


def head_refused_without_an_answer(rig: Rig) -> None:
    rig.decide = lambda conn: rig.reactor.refuse(conn, b"")
    rig.connect_without_head()
    rig.say(HEAD)
    rig.turn()


def never_decided(rig: Rig) -> None:
    rig.decide = lambda _: None
    rig.connect_without_head()
    rig.say(HEAD)
    rig.pass_ms(4_000)


def gone_while_undecided(rig: Rig) -> None:
    rig.decide = lambda conn: rig.reactor.set_meta(conn, Meta())
    rig.connect_without_head()
    rig.say(HEAD + client_frame(TEXT, b"early"))
    rig.turn()


def aborted_while_undecided(rig: Rig) -> None:
    rig.decide = lambda conn: rig.reactor.abort(conn)
    rig.connect_without_head()
    rig.say(HEAD)
    rig.turn()


def gone_when_open(rig: Rig) -> None:
    rig.open_batch()


def half_closed(rig: Rig) -> None:
    rig.open_batch()
    for client in rig.clients:
        client.shutdown(socket.SHUT_WR)
    rig.turn()


def peer_closes(rig: Rig) -> None:
    rig.open_batch()
    rig.say(client_close(1000))
    rig.turn()
    rig.assert_lingering()


def peer_closes_and_is_gone(rig: Rig) -> None:
    rig.open_batch()
    rig.say(client_close(1000))


def application_closes(rig: Rig) -> None:
    for conn in rig.open_batch():
        assert rig.reactor.close(conn, 1000, b"bye")
    rig.turn()
    rig.say(client_close(1000))
    rig.turn()
    rig.assert_lingering()


def application_closes_without_an_answer(rig: Rig) -> None:
    for conn in rig.open_batch():
        assert rig.reactor.close(conn, 4000)
    rig.turn()
    rig.say(client_frame(TEXT, b"not a close"))
    rig.pass_ms(7_000)


def application_closes_in_the_middle(rig: Rig) -> None:
    conns = rig.open_batch()
    rig.say(client_header(BINARY, 1_000) + bytes(10))
    rig.turn()
    for conn in conns:
        assert rig.reactor.close(conn, 1000)
    rig.turn()
    rig.say(bytes(990) + client_close())
    rig.turn()
    rig.assert_lingering()


def application_closes_while_paused(rig: Rig) -> None:
    conns = rig.open_batch()
    for conn in conns:
        rig.reactor.pause_reading(conn)
    rig.say(client_frame(TEXT, b"unread"))
    rig.turn()
    for conn in conns:
        rig.reactor.close(conn, 1000)
    rig.turn()
    rig.say(client_close())
    rig.turn()
    rig.assert_lingering()


def application_aborts(rig: Rig) -> None:
    for conn in rig.open_batch():
        rig.reactor.subscribe(conn, b"news")
        rig.reactor.send(conn, b"never written")
        assert rig.reactor.abort(conn)


def protocol_error(rig: Rig) -> None:
    rig.open_batch()
    rig.say(client_frame(TEXT, b"good") + client_frame(3) + bytes(50))
    rig.turn()
    rig.assert_lingering()


def protocol_error_answered(rig: Rig) -> None:
    rig.failing = lambda conn: rig.reactor.send(conn, b"last words")
    protocol_error(rig)


def bad_text(rig: Rig) -> None:
    rig.open_batch()
    rig.say(client_frame(TEXT, b"\xc3", final=False) + client_frame(CONTINUATION, b"\x28"))
    rig.turn()
    rig.assert_lingering()


def too_big(rig: Rig) -> None:
    rig.open_batch()
    rig.say(client_header(BINARY, 1 << 40))
    rig.turn()


def half_a_header(rig: Rig) -> None:
    rig.open_batch()
    rig.say(client_header(BINARY, 1_000)[:3])
    rig.turn()


def half_a_frame(rig: Rig) -> None:
    rig.open_batch()
    rig.say(client_header(BINARY, 1_000) + bytes(100))
    rig.turn()


def half_a_message(rig: Rig) -> None:
    rig.open_batch()
    rig.say(client_frame(TEXT, b"a" * 500, final=False) + client_frame(PING, b"between"))
    rig.turn()


def undelivered_messages(rig: Rig) -> None:
    rig.open_batch()
    rig.say(client_frame(TEXT, b"a") * 150)
    rig.reactor.poll(rig.now_ms)


def paused_with_a_backlog(rig: Rig) -> None:
    conns = rig.open_batch()
    rig.say(client_frame(TEXT, b"a") * 150)
    rig.reactor.poll(rig.now_ms)
    for conn in conns:
        rig.reactor.pause_reading(conn)
    rig.turn()


def subscribed(rig: Rig) -> None:
    for number, conn in enumerate(rig.open_batch()):
        for name in range(number % 40):
            rig.reactor.subscribe(conn, b"room %d" % name)


def outbox_pending(rig: Rig) -> None:
    conns = rig.open_batch()
    for conn in conns:
        rig.reactor.subscribe(conn, b"news", policy=event_kinds.POLICY_DROP_OLDEST)
    for position in range(1, 12):
        rig.reactor.publish(b"news", [b"n" * 1_200], position=position)
        if position % 3 == 0:
            rig.turn()
    for conn in conns[::2]:
        rig.reactor.unsubscribe(conn, b"news")
    rig.say(client_frame(PING, b"p" * 50) * 5)
    rig.turn()


def slow_consumer(rig: Rig) -> None:
    for conn in rig.open_batch():
        rig.reactor.subscribe(conn, b"news")
        for _ in range(200):
            if not rig.reactor.send(conn, b"r" * 4_000):
                break
            rig.reactor.flush(rig.now_ms)
        else:
            raise AssertionError("no outbox became full")
    rig.turn()


def slow_consumer_that_reads_its_close(rig: Rig) -> None:
    slow_consumer(rig)
    for _ in range(20):
        rig.read_all()
        rig.turn()


def write_stall(rig: Rig) -> None:
    for conn in rig.pairs():
        rig.reactor.send(conn, b"r" * 12_000)
    rig.pass_ms(7_000)


def never_pongs(rig: Rig) -> None:
    rig.open_batch()
    rig.pass_ms(9_000)


def deadline(rig: Rig) -> None:
    for conn in rig.open_batch():
        rig.reactor.set_deadline(conn, rig.now_ms + 100, 4001)
    rig.pass_ms(500)
    rig.assert_lingering()


def metas_replaced(rig: Rig) -> None:
    for conn in rig.open_batch():
        for _ in range(3):
            rig.reactor.set_meta(conn, Meta())
        assert isinstance(rig.reactor.meta(conn), Meta)


class Way(NamedTuple):
    """One way to connect and end, and the reasons that must be counted for a whole batch."""

    bring: Callable[[Rig], None]
    reasons: tuple[Reason, ...]


GONE = (Reason.PEER_GONE, Reason.PEER_RESET)
WAYS = (
    Way(refused_at_the_gate, (Reason.REFUSED_CONNECTIONS, Reason.APPLICATION)),
    Way(refused_for_descriptors, (Reason.REFUSED_DESCRIPTORS,)),
    Way(gone_before_the_head, GONE),
    Way(half_a_head, GONE),
    Way(late_head, (Reason.HEAD_TIMEOUT,)),
    Way(head_too_large, (Reason.HEAD_TOO_LARGE,)),
    Way(head_refused, (Reason.HEAD_REFUSED,)),
    Way(head_refused_without_an_answer, (Reason.HEAD_REFUSED,)),
    Way(never_decided, (Reason.UPGRADE_TIMEOUT,)),
    Way(gone_while_undecided, GONE),
    Way(aborted_while_undecided, (Reason.APPLICATION,)),
    Way(gone_when_open, GONE),
    Way(half_closed, GONE),
    Way(peer_closes, (Reason.PEER_CLOSED,)),
    # A reset may arrive before the Close.
    Way(peer_closes_and_is_gone, (Reason.PEER_CLOSED, *GONE)),
    Way(application_closes, (Reason.APPLICATION,)),
    Way(application_closes_without_an_answer, (Reason.APPLICATION,)),
    Way(application_closes_in_the_middle, (Reason.APPLICATION,)),
    Way(application_closes_while_paused, (Reason.APPLICATION,)),
    Way(application_aborts, (Reason.APPLICATION,)),
    Way(protocol_error, (Reason.PROTOCOL_ERROR,)),
    Way(protocol_error_answered, (Reason.PROTOCOL_ERROR,)),
    Way(bad_text, (Reason.INVALID_UTF8,)),
    Way(too_big, (Reason.MESSAGE_TOO_BIG,)),
    Way(half_a_header, GONE),
    Way(half_a_frame, GONE),
    Way(half_a_message, GONE),
    Way(undelivered_messages, GONE),
    Way(paused_with_a_backlog, GONE),
    Way(subscribed, GONE),
    Way(outbox_pending, GONE),
    Way(slow_consumer, (Reason.SLOW_CONSUMER,)),
    Way(slow_consumer_that_reads_its_close, (Reason.SLOW_CONSUMER,)),
    Way(write_stall, (Reason.WRITE_STALL,)),
    Way(never_pongs, (Reason.HEARTBEAT_TIMEOUT,)),
    Way(deadline, (Reason.TOKEN_EXPIRED,)),
    Way(metas_replaced, GONE),
)


def run_batch(rig: Rig, way: Way) -> None:
    """Run one batch, and check the reasons for which its connections ended."""
    rig.decide, rig.failing = rig.welcome, lambda _: None
    rig.events.clear()
    rig.passed.clear()
    before = rig.reactor.counters()
    came = rig.came
    way.bring(rig)
    rig.close_clients()
    after = rig.reactor.counters()
    ended = {
        name: after[name] - before[name]
        for name in after
        if name.startswith("ended_") and after[name] != before[name]
    }
    assert set(ended) <= {f"ended_{reason.name.lower()}" for reason in way.reasons}
    assert sum(ended.values()) == rig.came - came == BATCH
    closed = [(conn, value) for kind, conn, value in rig.events if kind == event_kinds.CLOSED]
    assert len(closed) == len({conn for conn, _ in closed}), "a connection has two CLOSED events"
    assert {value for _, value in closed} <= set(way.reasons)


def descriptors() -> int:
    gc.collect()  # so that objects of earlier tests are not collected later
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def rig() -> Iterator[Rig]:
    wanted = BATCH * 4 + 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    before = descriptors()
    made = Rig()
    try:
        yield made
    finally:
        made.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert descriptors() == before


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.bring.__name__)
def test_each_way_to_end_returns_memory_descriptors_and_states(rig: Rig, way: Way) -> None:
    before = descriptors()
    for _ in range(3):
        run_batch(rig, way)
    rig.check()
    assert descriptors() == before
    rig.check_stale(rig.passed[:5])
    assert rig.reactor.bytes_held()["table"] in TABLE_BYTES, "slots were not reused"


@pytest.mark.slow
def test_100_000_connections_that_end_in_every_way_leak_nothing(rig: Rig) -> None:
    for way in WAYS:
        run_batch(rig, way)
    gc.collect()
    before, blocks = descriptors(), sys.getallocatedblocks()
    pool = rig.reactor.bytes_held()["pool"]
    slow = {late_head, never_decided, application_closes_without_an_answer, write_stall, never_pongs}
    slow |= {slow_consumer, slow_consumer_that_reads_its_close, outbox_pending, deadline, subscribed}
    number = 0
    while rig.came < TOTAL:
        way = WAYS[number % len(WAYS)]
        number += 1
        # Ways that wait for deadlines run less often.
        if way.bring not in slow or number // len(WAYS) % 3 == 0:
            run_batch(rig, way)
    rig.check()
    assert rig.reactor.counters()["accepted"] > TOTAL // 3, "too few connections were over TCP"
    rig.events.clear()
    rig.passed.clear()
    gc.collect()
    assert descriptors() == before
    assert rig.reactor.bytes_held()["table"] in TABLE_BYTES, "the table has grown"
    assert rig.reactor.bytes_held()["pool"] <= max(pool * 2, 1 << 20)
    assert sys.getallocatedblocks() - blocks < 1_000, "Python objects are left behind"


# --- the end of a reactor ---------------------------------------------------------------------------


def connections_in_every_state(rig: Rig) -> None:
    """Bring connections into every state, and leave them there."""
    rig.open_gate(GateLimits(connections=1))
    rig.pairs(1)
    rig.dial(20, HEAD)
    assert rig.reactor.counters()["now_draining"] == 20
    rig.open_gate()
    for way in (subscribed, paused_with_a_backlog, half_a_message, outbox_pending, peer_closes):
        rig.first = len(rig.clients)
        way(rig)
    rig.first = len(rig.clients)
    half_a_head(rig)
    rig.first = len(rig.clients)
    gone_while_undecided(rig)
    rig.decide = rig.welcome
    for conn in rig.open_batch():
        assert rig.reactor.close(conn, 1000)
    rig.turn()
    rig.first = len(rig.clients)
    rig.open_batch()
    rig.say(client_frame(3))
    for _ in range(2):
        rig.events += rig.reactor.poll(rig.now_ms)
    for conn in rig.pairs():
        rig.reactor.abort(conn)


def test_shutdown_with_connections_in_every_state_returns_everything(rig: Rig) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4_096), hard), hard))
    before = descriptors()
    connections_in_every_state(rig)
    for state in ("head", "deciding", "open", "failing", "closing", "lingering", "gone"):
        assert rig.reactor.counters()[f"now_{state}"] == BATCH or state in ("open", "lingering"), state
    held = rig.reactor.bytes_held()
    assert all(held[kind] for kind in ("table", "frame", "outbox", "partial", "channel", "subscription"))
    assert Meta.alive > BATCH
    rig.reactor.shutdown()
    assert Meta.alive == 0
    assert rig.reactor.fileno() == -1
    assert set(rig.reactor.bytes_held().values()) == {0}
    for client in rig.clients:
        client.close()
    rig.clients.clear()
    assert descriptors() == before - 1, "the epoll descriptor is still open"
    counters = rig.reactor.counters()
    ended = sum(number for name, number in counters.items() if name.startswith("ended_"))
    assert ended == rig.came
    assert rig.census() == {}, "a state still has connections"


def test_collected_reactor_without_shutdown_returns_everything() -> None:
    before = descriptors()
    rig = Rig()
    for conn in rig.open_batch():
        rig.reactor.subscribe(conn, b"news")
        rig.reactor.send(conn, b"x" * 10_000)
    for client in rig.clients:
        client.close()
    rig.listener.close()
    del rig, conn
    gc.collect()
    assert Meta.alive == 0
    assert descriptors() == before


def test_meta_object_has_exactly_one_reference_until_the_closed_event() -> None:
    reactor = Reactor(now_ms=0)
    ours, theirs = socket.socketpair()
    conn = reactor.adopt(ours.detach(), now_ms=0, upgraded=True)
    first, second = object(), object()
    at_first, at_second = sys.getrefcount(first), sys.getrefcount(second)
    reactor.set_meta(conn, first)
    assert sys.getrefcount(first) == at_first + 1
    assert reactor.meta(conn) is first
    assert sys.getrefcount(first) == at_first + 1
    reactor.set_meta(conn, first)
    assert sys.getrefcount(first) == at_first + 1
    reactor.set_meta(conn, second)
    assert (sys.getrefcount(first), sys.getrefcount(second)) == (at_first, at_second + 1)
    reactor.set_meta(conn, None)
    assert sys.getrefcount(second) == at_second
    reactor.set_meta(conn, second)
    reactor.abort(conn)
    assert reactor.meta(conn) is None
    assert sys.getrefcount(second) == at_second + 1, "the object was released before the CLOSED event"
    assert reactor.poll(0) == [(event_kinds.CLOSED, conn, Reason.APPLICATION)]
    assert sys.getrefcount(second) == at_second
    theirs.close()
    reactor.shutdown()


# A reactor that was not constructed must not close descriptors of others.
BROKEN = {
    "without a clock": "Reactor()",
    "with a short key": "Reactor(now_ms=0, hash_key=b'short')",
    "with a bad setting": "Reactor(Settings(outbox_bytes=1), now_ms=0)",
    "not initialised": "Reactor.__new__(Reactor)",
}


@pytest.mark.parametrize("how", BROKEN)
def test_reactor_that_failed_to_start_leaves_standard_input_open(how: str) -> None:
    script = (
        "import os\n"
        "from wsgate.reactor import Reactor, Settings\n"
        "before = os.fstat(0)\n"
        f"try:\n    {BROKEN[how]}\nexcept Exception:\n    pass\n"
        "assert os.path.sameopenfile(0, os.dup(0)) and os.fstat(0) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()
