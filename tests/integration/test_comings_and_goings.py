"""Zero leaks: 100,000 connections come and go in every way, and the counters return to their start.

Every way in and out of the diagram in structs.pxd is one function. Each runs by itself first, so that
a leak is named; then all run in turn, mixed, over loopback TCP and socket pairs, until 100,000 have
gone. What must return: descriptors, bytes of every kind, the census of states, references to the
application's objects. What must add up: each connection has ended for one reason.
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
"""Of the connections; a reactor in which one was costly has a table of debts too."""
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
    """The application's object; how many are alive is counted."""

    alive = 0

    def __init__(self) -> None:
        Meta.alive += 1

    def __del__(self) -> None:
        Meta.alive -= 1


class Station:
    """One reactor with a listener, its clock, and every client that is still here."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.reactor = Reactor(SETTINGS, now_ms=self.now_ms, gap_encoder=lambda *_: b"gap")
        self.reactor.set_bye(4010, [b"bye"])
        self.listener = open_listener("127.0.0.1", 0, ListenerOptions(defer_accept_s=0))
        self.reactor.listen(self.listener.fileno())
        self.open_gate()
        self.clients: list[socket.socket] = []
        self.first = 0  # of the clients of the way that is under way
        self.events: list[event_kinds.Event] = []
        self.came = 0
        self.batches = 0
        self.passed: list[int] = []  # handles of those that were open and are gone
        self.decide: Callable[[int], object] = self.welcome
        self.failing: Callable[[int], object] = lambda _: None
        # The directory of channels is made with the first one and stays.
        visitor = self.pairs(1)[0]
        self.reactor.subscribe(visitor, b"first")
        self.leave()
        self.start = self.held()

    def open_gate(self, limits: GateLimits | None = None) -> None:
        self.reactor.set_gate(limits or GateLimits(), b"HTTP/1.1 503 Service Unavailable\r\n\r\n")

    def welcome(self, conn: int) -> None:
        assert self.reactor.upgrade(conn, SWITCH)

    def held(self) -> dict[str, int]:
        held = self.reactor.bytes_held()
        return {kind: size for kind, size in held.items() if kind not in ("pool", "table")}

    # --- coming -----------------------------------------------------------------------------------

    def pairs(self, count: int = BATCH, *, upgraded: bool = True) -> list[int]:
        """So many connections over socket pairs, with the smallest buffers; their handles."""
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
        """So many clients over loopback TCP, who say this and are accepted."""
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

    def strangers(self) -> None:
        """A batch over TCP and over socket pairs, of whom no head has come."""
        self.dial(BATCH // 2)
        self.pairs(BATCH // 2, upgraded=False)

    def guests(self) -> list[int]:
        """A batch over TCP and over socket pairs, all open; their handles."""
        before = len(self.events)
        self.dial(BATCH // 2, HEAD)
        self.turn()
        conns = [conn for kind, conn, _ in self.events[before:] if kind == event_kinds.OPEN]
        assert len(conns) == BATCH // 2
        for conn in conns:
            self.reactor.set_meta(conn, Meta())
        self.listen_to(BATCH // 2)
        return conns + self.pairs(BATCH // 2)

    # --- being there ------------------------------------------------------------------------------

    def say(self, data: bytes, clients: list[socket.socket] | None = None) -> None:
        for client in self.clients[self.first :] if clients is None else clients:
            client.send(data)

    def lingers(self) -> None:
        """The close handshakes of this way are over: only the peers' end of stream is awaited."""
        assert self.reactor.counters()["now_lingering"] == len(self.clients) - self.first

    def listen_to(self, count: int | None = None) -> None:
        """Read all that came to the last so many clients."""
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
        raise AssertionError("never quiet")

    def pass_ms(self, duration_ms: int) -> None:
        for _ in range(duration_ms // 250):
            self.now_ms += 250
            self.reactor.tick(self.now_ms)
            self.turn()

    # --- going ------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Every client closes, and nobody is left."""
        for client in self.clients:
            client.close()
        self.clients.clear()
        self.first = 0
        for _ in range(200):
            self.turn()
            if self.is_empty():
                return
            self.pass_ms(250)
        raise AssertionError(f"still here: {self.census()}")

    def is_empty(self) -> bool:
        counters = self.reactor.counters()
        return counters["now_connections"] == 0 and counters["now_draining"] == 0

    def census(self) -> dict[str, int]:
        counters = self.reactor.counters()
        return {name: number for name, number in counters.items() if name.startswith("now_") and number}

    def check(self) -> None:
        """Everything is as it was at the start."""
        assert self.census() == {}
        assert self.held() == self.start
        assert Meta.alive == 0
        counters = self.reactor.counters()
        ended = sum(number for name, number in counters.items() if name.startswith("ended_"))
        assert ended == self.came, "each ended for one reason"

    def check_stale(self, conns: list[int]) -> None:
        """A handle of one who is gone is refused by every call, and counted."""
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


# --- the ways: each brings one batch and says for what reasons it must have ended --------------------


def refused_at_the_gate(station: Station) -> None:
    station.open_gate(GateLimits(connections=1))
    stays = station.pairs(1)[0]
    station.dial(BATCH - 1)
    station.reactor.abort(stays)
    station.open_gate(GateLimits(handshakes_in_progress=1024))


def refused_for_descriptors(station: Station) -> None:
    station.open_gate(GateLimits(descriptors=1))
    station.dial(BATCH, HEAD)
    station.open_gate()


def gone_before_the_head(station: Station) -> None:
    station.strangers()


def half_a_head(station: Station) -> None:
    station.strangers()
    station.say(HEAD[:-3])
    station.turn()


def late_head(station: Station) -> None:
    station.strangers()
    station.say(HEAD[:-3])
    station.pass_ms(4_000)


def head_too_large(station: Station) -> None:
    station.strangers()
    station.say(b"GET /" + b"a" * 500)
    station.turn()


def head_refused(station: Station) -> None:
    station.decide = lambda conn: station.reactor.refuse(conn, NO)
    station.strangers()
    station.say(HEAD + b"and more")
    station.turn()


def head_refused_without_a_word(station: Station) -> None:
    station.decide = lambda conn: station.reactor.refuse(conn, b"")
    station.strangers()
    station.say(HEAD)
    station.turn()


def never_decided(station: Station) -> None:
    station.decide = lambda _: None
    station.strangers()
    station.say(HEAD)
    station.pass_ms(4_000)


def gone_while_undecided(station: Station) -> None:
    station.decide = lambda conn: station.reactor.set_meta(conn, Meta())
    station.strangers()
    station.say(HEAD + client_frame(TEXT, b"early"))
    station.turn()


def aborted_while_undecided(station: Station) -> None:
    station.decide = lambda conn: station.reactor.abort(conn)
    station.strangers()
    station.say(HEAD)
    station.turn()


def gone_when_open(station: Station) -> None:
    station.guests()


def half_closed(station: Station) -> None:
    station.guests()
    for client in station.clients:
        client.shutdown(socket.SHUT_WR)
    station.turn()


def peer_closes(station: Station) -> None:
    station.guests()
    station.say(client_close(1000))
    station.turn()
    station.lingers()


def peer_closes_and_is_gone(station: Station) -> None:
    station.guests()
    station.say(client_close(1000))


def application_closes(station: Station) -> None:
    for conn in station.guests():
        assert station.reactor.close(conn, 1000, b"bye")
    station.turn()
    station.say(client_close(1000))
    station.turn()
    station.lingers()


def application_closes_and_nobody_answers(station: Station) -> None:
    for conn in station.guests():
        assert station.reactor.close(conn, 4000)
    station.turn()
    station.say(client_frame(TEXT, b"not a close"))
    station.pass_ms(7_000)


def application_closes_in_the_middle(station: Station) -> None:
    conns = station.guests()
    station.say(client_header(BINARY, 1_000) + bytes(10))
    station.turn()
    for conn in conns:
        assert station.reactor.close(conn, 1000)
    station.turn()
    station.say(bytes(990) + client_close())
    station.turn()
    station.lingers()


def application_closes_while_paused(station: Station) -> None:
    conns = station.guests()
    for conn in conns:
        station.reactor.pause_reading(conn)
    station.say(client_frame(TEXT, b"unread"))
    station.turn()
    for conn in conns:
        station.reactor.close(conn, 1000)
    station.turn()
    station.say(client_close())
    station.turn()
    station.lingers()


def application_aborts(station: Station) -> None:
    for conn in station.guests():
        station.reactor.subscribe(conn, b"news")
        station.reactor.send(conn, b"never written")
        assert station.reactor.abort(conn)


def protocol_error(station: Station) -> None:
    station.guests()
    station.say(client_frame(TEXT, b"good") + client_frame(3) + bytes(50))
    station.turn()
    station.lingers()


def protocol_error_answered(station: Station) -> None:
    station.failing = lambda conn: station.reactor.send(conn, b"last words")
    protocol_error(station)


def bad_text(station: Station) -> None:
    station.guests()
    station.say(client_frame(TEXT, b"\xc3", final=False) + client_frame(CONTINUATION, b"\x28"))
    station.turn()
    station.lingers()


def too_big(station: Station) -> None:
    station.guests()
    station.say(client_header(BINARY, 1 << 40))
    station.turn()


def half_a_header(station: Station) -> None:
    station.guests()
    station.say(client_header(BINARY, 1_000)[:3])
    station.turn()


def half_a_frame(station: Station) -> None:
    station.guests()
    station.say(client_header(BINARY, 1_000) + bytes(100))
    station.turn()


def half_a_message(station: Station) -> None:
    station.guests()
    station.say(client_frame(TEXT, b"a" * 500, final=False) + client_frame(PING, b"between"))
    station.turn()


def undelivered_messages(station: Station) -> None:
    station.guests()
    station.say(client_frame(TEXT, b"a") * 150)
    station.reactor.poll(station.now_ms)


def paused_with_a_backlog(station: Station) -> None:
    conns = station.guests()
    station.say(client_frame(TEXT, b"a") * 150)
    station.reactor.poll(station.now_ms)
    for conn in conns:
        station.reactor.pause_reading(conn)
    station.turn()


def subscribed(station: Station) -> None:
    for number, conn in enumerate(station.guests()):
        for name in range(number % 40):
            station.reactor.subscribe(conn, b"room %d" % name)


def outbox_pending(station: Station) -> None:
    conns = station.guests()
    for conn in conns:
        station.reactor.subscribe(conn, b"news", policy=event_kinds.POLICY_DROP_OLDEST)
    for position in range(1, 12):
        station.reactor.publish(b"news", [b"n" * 1_200], position=position)
        if position % 3 == 0:
            station.turn()
    for conn in conns[::2]:
        station.reactor.unsubscribe(conn, b"news")
    station.say(client_frame(PING, b"p" * 50) * 5)
    station.turn()


def slow_consumer(station: Station) -> None:
    for conn in station.guests():
        station.reactor.subscribe(conn, b"news")
        for _ in range(200):
            if not station.reactor.send(conn, b"r" * 4_000):
                break
            station.reactor.flush(station.now_ms)
        else:
            raise AssertionError("never slow")
    station.turn()


def slow_consumer_who_reads_why(station: Station) -> None:
    slow_consumer(station)
    for _ in range(20):
        station.listen_to()
        station.turn()


def write_stall(station: Station) -> None:
    for conn in station.pairs():
        station.reactor.send(conn, b"r" * 12_000)
    station.pass_ms(7_000)


def never_pongs(station: Station) -> None:
    station.guests()
    station.pass_ms(9_000)


def deadline(station: Station) -> None:
    for conn in station.guests():
        station.reactor.set_deadline(conn, station.now_ms + 100, 4001)
    station.pass_ms(500)
    station.lingers()


def metas_replaced(station: Station) -> None:
    for conn in station.guests():
        for _ in range(3):
            station.reactor.set_meta(conn, Meta())
        assert isinstance(station.reactor.meta(conn), Meta)


class Way(NamedTuple):
    """One way to come and go, and the reasons that must be counted for a whole batch."""

    bring: Callable[[Station], None]
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
    Way(head_refused_without_a_word, (Reason.HEAD_REFUSED,)),
    Way(never_decided, (Reason.UPGRADE_TIMEOUT,)),
    Way(gone_while_undecided, GONE),
    Way(aborted_while_undecided, (Reason.APPLICATION,)),
    Way(gone_when_open, GONE),
    Way(half_closed, GONE),
    Way(peer_closes, (Reason.PEER_CLOSED,)),
    # A reset overtakes what was said before it.
    Way(peer_closes_and_is_gone, (Reason.PEER_CLOSED, *GONE)),
    Way(application_closes, (Reason.APPLICATION,)),
    Way(application_closes_and_nobody_answers, (Reason.APPLICATION,)),
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
    Way(slow_consumer_who_reads_why, (Reason.SLOW_CONSUMER,)),
    Way(write_stall, (Reason.WRITE_STALL,)),
    Way(never_pongs, (Reason.HEARTBEAT_TIMEOUT,)),
    Way(deadline, (Reason.TOKEN_EXPIRED,)),
    Way(metas_replaced, GONE),
)


def run_batch(station: Station, way: Way) -> None:
    """One batch comes and goes; it ended for the reasons it must have."""
    station.decide, station.failing = station.welcome, lambda _: None
    station.events.clear()
    station.passed.clear()
    before = station.reactor.counters()
    came = station.came
    way.bring(station)
    station.leave()
    after = station.reactor.counters()
    ended = {
        name: after[name] - before[name]
        for name in after
        if name.startswith("ended_") and after[name] != before[name]
    }
    assert set(ended) <= {f"ended_{reason.name.lower()}" for reason in way.reasons}
    assert sum(ended.values()) == station.came - came == BATCH
    closed = [(conn, value) for kind, conn, value in station.events if kind == event_kinds.CLOSED]
    assert len(closed) == len({conn for conn, _ in closed}), "closed is given once"
    assert {value for _, value in closed} <= set(way.reasons)


def descriptors() -> int:
    gc.collect()  # what tests before this one forgot is not to go meanwhile
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def station() -> Iterator[Station]:
    wanted = BATCH * 4 + 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    before = descriptors()
    made = Station()
    try:
        yield made
    finally:
        made.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert descriptors() == before


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.bring.__name__)
def test_one_way_leaves_nothing_behind(station: Station, way: Way) -> None:
    before = descriptors()
    for _ in range(3):
        run_batch(station, way)
    station.check()
    assert descriptors() == before
    station.check_stale(station.passed[:5])
    assert station.reactor.bytes_held()["table"] in TABLE_BYTES, "slots are reused"


@pytest.mark.slow
def test_100_000_come_and_go_in_every_way(station: Station) -> None:
    for way in WAYS:
        run_batch(station, way)
    gc.collect()
    before, blocks = descriptors(), sys.getallocatedblocks()
    pool = station.reactor.bytes_held()["pool"]
    slow = {late_head, never_decided, application_closes_and_nobody_answers, write_stall, never_pongs}
    slow |= {slow_consumer, slow_consumer_who_reads_why, outbox_pending, deadline, subscribed}
    number = 0
    while station.came < TOTAL:
        way = WAYS[number % len(WAYS)]
        number += 1
        # Those that wait for deadlines take their turn less often.
        if way.bring not in slow or number // len(WAYS) % 3 == 0:
            run_batch(station, way)
    station.check()
    assert station.reactor.counters()["accepted"] > TOTAL // 3, "over TCP"
    station.events.clear()
    station.passed.clear()
    gc.collect()
    assert descriptors() == before
    assert station.reactor.bytes_held()["table"] in TABLE_BYTES, "never more than 1,024 at once"
    assert station.reactor.bytes_held()["pool"] <= max(pool * 2, 1 << 20)
    assert sys.getallocatedblocks() - blocks < 1_000, "nothing of Python's grows with connections"


# --- the end of everything --------------------------------------------------------------------------


def everyone_at_once(station: Station) -> None:
    """Some of every state are there, none further than this."""
    station.open_gate(GateLimits(connections=1))
    station.pairs(1)
    station.dial(20, HEAD)
    assert station.reactor.counters()["now_draining"] == 20
    station.open_gate()
    for way in (subscribed, paused_with_a_backlog, half_a_message, outbox_pending, peer_closes):
        station.first = len(station.clients)
        way(station)
    station.first = len(station.clients)
    half_a_head(station)
    station.first = len(station.clients)
    gone_while_undecided(station)
    station.decide = station.welcome
    for conn in station.guests():
        assert station.reactor.close(conn, 1000)
    station.turn()
    station.first = len(station.clients)
    station.guests()
    station.say(client_frame(3))
    for _ in range(2):
        station.events += station.reactor.poll(station.now_ms)
    for conn in station.pairs():
        station.reactor.abort(conn)


def test_shutdown_gives_everything_back(station: Station) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4_096), hard), hard))
    before = descriptors()
    everyone_at_once(station)
    for state in ("head", "deciding", "open", "failing", "closing", "lingering", "gone"):
        assert station.reactor.counters()[f"now_{state}"] == BATCH or state in ("open", "lingering"), state
    held = station.reactor.bytes_held()
    assert all(held[kind] for kind in ("table", "frame", "outbox", "partial", "channel", "subscription"))
    assert Meta.alive > BATCH
    station.reactor.shutdown()
    assert Meta.alive == 0
    assert station.reactor.fileno() == -1
    assert set(station.reactor.bytes_held().values()) == {0}
    for client in station.clients:
        client.close()
    station.clients.clear()
    assert descriptors() == before - 1, "the epoll set is closed too"
    counters = station.reactor.counters()
    ended = sum(number for name, number in counters.items() if name.startswith("ended_"))
    assert ended == station.came
    assert station.census() == {}, "nothing is there any more"


def test_a_reactor_that_is_forgotten_gives_everything_back() -> None:
    before = descriptors()
    station = Station()
    for conn in station.guests():
        station.reactor.subscribe(conn, b"news")
        station.reactor.send(conn, b"x" * 10_000)
    for client in station.clients:
        client.close()
    station.listener.close()
    del station, conn
    gc.collect()
    assert Meta.alive == 0
    assert descriptors() == before


def test_a_meta_has_one_reference_more() -> None:
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
    assert sys.getrefcount(second) == at_second + 1, "held until the closed event"
    assert reactor.poll(0) == [(event_kinds.CLOSED, conn, Reason.APPLICATION)]
    assert sys.getrefcount(second) == at_second
    theirs.close()
    reactor.shutdown()


# What is made wrongly must not touch descriptors that are not its own.
BROKEN = {
    "without a clock": "Reactor()",
    "with a short key": "Reactor(now_ms=0, hash_key=b'short')",
    "with a bad setting": "Reactor(Settings(outbox_bytes=1), now_ms=0)",
    "not initialised": "Reactor.__new__(Reactor)",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_reactor_that_failed_to_start_closes_nothing(how: str) -> None:
    script = (
        "import os\n"
        "from wsgate.reactor import Reactor, Settings\n"
        "before = os.fstat(0)\n"
        f"try:\n    {BROKEN[how]}\nexcept Exception:\n    pass\n"
        "assert os.path.sameopenfile(0, os.dup(0)) and os.fstat(0) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()
