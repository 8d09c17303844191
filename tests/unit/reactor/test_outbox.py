"""Check the outbox against a plain model of its rules, and each rule once with a test of its own.

The machine drives real sockets with the smallest buffers the kernel gives, so that partial writes,
blocking and half-written frames happen all the time, and asks the kernel how many bytes it took. The
model predicts the rest: bytes and frames waiting, dropped entries, each gap, every byte of the wire.

`test_outbox_machine_fails_with_each_planted_defect` plants a
defect in the model for each rule; the machine must fail with each of them.
"""

import array
import fcntl
import os
import re
import select
import socket
import sys
import termios
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    FrameReader,
    ServerFrame,
    client_frame,
    close_code,
)
from tests.support.outbox_model import Kind, OutboxModel, Waiting, server_frame
from tests.support.reactor_rig import TICK_MS, Peer, Rig, rig
from tests.support.sizes import around, sizes_up_to
from wsgate.reactor import Reactor, Settings, event_kinds
from wsgate.reasons import Reason

CLOSES, OLDEST, LATEST = (
    event_kinds.POLICY_CLOSE,
    event_kinds.POLICY_DROP_OLDEST,
    event_kinds.POLICY_LATEST_ONLY,
)


def unread_bytes(sock: socket.socket) -> int:
    """Return the bytes that wait to be read; on a socket pair, all bytes that the other end wrote."""
    number = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, number)
    return number[0]


def gap_payload(variant: int, channel: bytes, first: int, last: int) -> bytes:
    return b"gap %d %s %d-%d" % (variant, channel, first, last)


# --- the machine ---------------------------------------------------------------------------------------

LIMIT_BYTES, LIMIT_FRAMES, AGE_MS, STEP_MS = 6_000, 8, 3_500, 1_000
BYE = b"bye 4010"
PINGS_MAX = 7  # so few that one poll can overflow the slot for pongs only once
POLICIES = {b"strict": CLOSES, b"news": OLDEST, b"chat": OLDEST, b"price": LATEST, b"score": LATEST}
MACHINE_SETTINGS = Settings(
    outbox_bytes=LIMIT_BYTES,
    outbox_frames=LIMIT_FRAMES,
    outbox_age_ms=AGE_MS,
    write_timeout_ms=1_000_000_000,
    ping_interval_ms=0,
    control_rate_per_s=0,
    variant_opcodes=(1, 2),
)

sizes = st.one_of(
    st.integers(0, 60),
    st.sampled_from(sizes_up_to(LIMIT_BYTES)),
    st.integers(0, 700),
    st.integers(1_500, 4_400),
)
ping_sizes = st.sampled_from((*sizes_up_to(125), 100))
channels = st.sampled_from(sorted(POLICIES))
seats = st.integers(0, 2)


class Consumer:
    """One connection: its peer, its model, and everything that was sent to the peer."""

    def __init__(self, peer: Peer, model: OutboxModel) -> None:
        self.peer = peer
        self.model = model
        self.read = bytearray()
        self.pings: list[bytes] = []  # sent, not yet read by the reactor
        self.subscribed: set[bytes] = set()
        self.published: dict[bytes, list[int]] = defaultdict(list)  # positions, while subscribed
        self.replies: list[bytes] = []
        self.reason: Reason | None = None
        self.is_announced = False
        self.is_closed = False
        self.is_gone = False

    def learn(self) -> int:
        """Return how many bytes the socket took that the model does not know of."""
        return len(self.read) + unread_bytes(self.peer.sock) - len(self.model.wire)

    def take(self, limit: int) -> None:
        """Read some bytes; they must be those that the model predicted."""
        try:
            self.read += self.peer.sock.recv(limit)
        except BlockingIOError:
            return
        assert self.model.wire.startswith(self.read)


class OutboxMachine(RuleBasedStateMachine):
    """Three consumers of five channels, each with its own model."""

    model_type: type[OutboxModel] = OutboxModel

    def __init__(self) -> None:
        super().__init__()
        self.bench = Rig(MACHINE_SETTINGS, gap_encoder=gap_payload)
        self.reactor.set_bye(4010, [BYE, BYE])
        self.past = dict.fromkeys(("dropped_policy", "dropped_closing", "pongs_dropped", "gaps"), 0)
        self.positions: dict[bytes, int] = defaultdict(int)
        self.replies = 0
        self.consumers: list[Consumer] = []
        self.ended: dict[int, int | bytes] = {}

    @property
    def present(self) -> list[Consumer]:
        """The consumers whose peer is still connected."""
        return [consumer for consumer in self.consumers if not consumer.is_gone]

    @property
    def reactor(self) -> Reactor:
        return self.bench.reactor

    @initialize(
        buffers=st.lists(st.sampled_from((1, 5_000, 6_500, 9_000)), min_size=3, max_size=3),
        names=st.sets(channels, min_size=1),
    )
    def begin(self, buffers: list[int], names: set[bytes]) -> None:
        # The directory of channels is made with the first channel and stays.
        visitor = self.bench.connect()
        self.reactor.subscribe(visitor.conn, b"first")
        visitor.close()
        self.bench.turn()
        self.start = self.bench.held()
        for place, size in enumerate(buffers):
            self.consumers.append(self.connect(place % 2, size))
            for name in sorted(names):
                self.subscribe(place, name)

    def connect(self, variant: int, buffer_bytes: int) -> Consumer:
        peer = self.bench.connect(variant=variant, send_buffer_bytes=buffer_bytes)
        model = self.model_type(LIMIT_BYTES, LIMIT_FRAMES, AGE_MS, POLICIES, variant)
        return Consumer(peer, model)

    # --- rules ------------------------------------------------------------------------------------

    @rule(seat=seats, name=channels)
    def subscribe(self, seat: int, name: bytes) -> None:
        consumer = self.consumers[seat]
        here = sum(name in other.subscribed for other in self.present)
        outcome = self.reactor.subscribe(consumer.peer.conn, name, policy=POLICIES[name])
        assert outcome == (-1 if name in consumer.subscribed else here + 1)
        consumer.subscribed.add(name)

    @rule(seat=seats, name=channels)
    def unsubscribe(self, seat: int, name: bytes) -> None:
        consumer = self.consumers[seat]
        here = sum(name in other.subscribed for other in self.present)
        outcome = self.reactor.unsubscribe(consumer.peer.conn, name)
        assert outcome == (here - 1 if name in consumer.subscribed else -1)
        consumer.subscribed.discard(name)

    @precondition(lambda self: not all(consumer.model.blocked for consumer in self.consumers))
    @rule(seat=seats, size=st.one_of(st.integers(0, 60), st.integers(0, 5_000)))
    def fill(self, seat: int, size: int) -> None:
        """Reply until the socket takes no more."""
        while self.consumers[seat].model.is_open and not self.consumers[seat].model.blocked:
            consumer = self.consumers[seat]
            self.send(seat, size)
            self.flush()
            if self.consumers[seat] is not consumer:
                return

    @rule(name=channels, size=sizes, count=st.integers(1, 6))
    def publish(self, name: bytes, size: int, count: int) -> None:
        for _ in range(count):
            self.positions[name] += 1
            position = self.positions[name]
            payload = (b"%s %d " % (name, position)).ljust(size, b".")
            queued = 0
            for consumer in self.present:
                if name not in consumer.subscribed or not consumer.model.is_open:
                    continue
                wire = server_frame(1 + consumer.model.variant, payload)
                entry = Waiting(Kind.PUBLICATION, wire, self.bench.now_ms, name, position)
                if consumer.model.push(entry):
                    queued += 1
                    consumer.published[name].append(position)
                else:
                    consumer.reason = Reason.SLOW_CONSUMER
            assert self.reactor.publish(name, [payload, payload], position=position) == queued
        self.replace_failed()

    @rule(seat=seats, size=sizes)
    def send(self, seat: int, size: int) -> None:
        consumer = self.consumers[seat]
        self.replies += 1
        payload = (b"reply %d " % self.replies).ljust(size, b".")
        entry = Waiting(Kind.REPLY, server_frame(TEXT, payload), self.bench.now_ms)
        queued = consumer.model.push(entry)
        assert self.reactor.send(consumer.peer.conn, payload) == queued
        if queued:
            consumer.replies.append(payload)
        else:
            consumer.reason = Reason.SLOW_CONSUMER
        self.replace_failed()

    @rule(
        seat=seats,
        sizes=st.lists(ping_sizes, min_size=1, max_size=PINGS_MAX),
        then_poll=st.booleans(),
    )
    def ping(self, seat: int, sizes: list[int], *, then_poll: bool) -> None:
        consumer = self.consumers[seat]
        assume(len(consumer.pings) + len(sizes) <= PINGS_MAX)
        for size in sizes:
            consumer.pings.append(os.urandom(size))
            consumer.peer.send(client_frame(PING, consumer.pings[-1]))
        if then_poll:
            self.poll()

    @precondition(lambda self: any(consumer.model.blocked for consumer in self.consumers))
    @rule(sizes=st.lists(ping_sizes, min_size=PINGS_MAX, max_size=PINGS_MAX))
    def ping_while_blocked(self, sizes: list[int]) -> None:
        """Overflow the slot for pongs of a blocked consumer; chance alone does so rarely."""
        seat = next(seat for seat, consumer in enumerate(self.consumers) if consumer.model.blocked)
        del sizes[: len(self.consumers[seat].pings)]
        self.ping(seat, sizes, then_poll=True)

    @rule(seat=seats, limit=st.one_of(st.integers(1, 500), st.integers(1, 5_000)))
    def take(self, seat: int, limit: int) -> None:
        self.consumers[seat].take(limit)

    @rule()
    def flush(self) -> None:
        for consumer in self.present:
            model = consumer.model
            if consumer.is_announced and not model.is_open and not consumer.is_closed:
                consumer.is_closed = True
                for opcode, payload in ((1 + model.variant, BYE), (CLOSE, (4010).to_bytes(2, "big"))):
                    model.push(Waiting(Kind.CONTROL, server_frame(opcode, payload), None))
        while self.reactor.flush(self.bench.now_ms):
            pass
        for consumer in self.present:
            self.visited(consumer)

    @rule()
    def poll(self) -> None:
        for consumer in self.present:
            if consumer.model.blocked and self.takes_bytes(consumer):
                consumer.model.blocked = False
        events = self.reactor.poll(self.bench.now_ms)
        for consumer in self.present:
            self.answer_pings(consumer)
        expected = []
        for consumer in self.present:
            if not consumer.model.is_open and not consumer.is_announced:
                consumer.is_announced = True
                expected.append((event_kinds.FAILING, consumer.peer.conn, 4010))
        self.ended |= {conn: value for kind, conn, value in events if kind == event_kinds.CLOSED}
        assert sorted(event for event in events if event[0] != event_kinds.CLOSED) == sorted(expected)

    @rule()
    def grow_older(self) -> None:
        self.flush()
        for _ in range(STEP_MS // 250):
            self.bench.now_ms += 250
            self.reactor.tick(self.bench.now_ms)
        for consumer in self.present:
            if consumer.model.blocked and not consumer.model.grow_old(self.bench.now_ms):
                consumer.reason = Reason.OUTBOX_AGE
        self.replace_failed()

    # --- shared by the rules ----------------------------------------------------------------------

    def takes_bytes(self, consumer: Consumer) -> bool:
        """Return whether the kernel would report the reactor's end as writable."""
        numbers = self.reactor.inspect(consumer.peer.conn)
        assert numbers is not None
        poller = select.poll()
        poller.register(numbers["fd"], select.POLLOUT)
        return bool(poller.poll(0))

    def visited(self, consumer: Consumer) -> None:
        """Let the model make one visit, if the reactor has a reason for it."""
        model = consumer.model
        if model.blocked or model.is_empty:
            assert consumer.learn() == 0
            return
        model.render()
        model.write(consumer.learn())
        model.blocked = not model.is_empty
        if model.blocked:
            model.owed = model.all_bytes_waiting

    def answer_pings(self, consumer: Consumer) -> None:
        """Answer pings unless the outbox is over half full; flush a full slot for pongs if possible."""
        model = consumer.model
        if model.paused or not model.is_open:
            return
        for payload in consumer.pings:
            pong = server_frame(PONG, payload)
            if not model.pong_fits(pong) and not model.blocked:
                self.visited(consumer)
            model.push_pong(pong)
        consumer.pings.clear()

    def replace_failed(self) -> None:
        """Read the rest of each failed connection to its end and put a new one into its seat."""
        for seat, consumer in enumerate(self.consumers):
            if not consumer.model.is_open:
                self.drain(consumer)
                self.check_end(consumer)
                self.consumers[seat] = self.connect(consumer.model.variant, 1)

    def drain(self, consumer: Consumer) -> None:
        """Poll, flush and read until nothing waits."""
        for _ in range(100):
            self.poll()
            self.flush()
            consumer.take(1 << 20)
            if consumer.model.is_empty and not (consumer.model.is_open and consumer.pings):
                return
        raise AssertionError("never empty")

    # --- invariants -------------------------------------------------------------------------------

    @invariant()
    def numbers_agree(self) -> None:
        for consumer in self.present:
            model = consumer.model
            numbers = self.reactor.inspect(consumer.peer.conn)
            assert numbers is not None
            assert {
                "outbox_bytes": model.bytes_waiting,
                "outbox_frames": len(model.entries),
                "head_written": model.head_written,
                "pongs": len(model.pongs),
                "blocked": model.blocked,
                "owed_bytes": model.owed,
                "paused": model.paused,
            }.items() <= numbers.items()

    @invariant()
    def counters_agree(self) -> None:
        counters = self.reactor.counters()
        for name, past in self.past.items():
            assert past + sum(getattr(consumer.model, name) for consumer in self.present) == counters[name]

    def check_end(self, consumer: Consumer) -> None:
        """Check that the bytes of one consumer are consistent on their own, without the model."""
        model = consumer.model
        assert bytes(consumer.read) == bytes(model.wire)
        frames = FrameReader().receive_data(bytes(consumer.read))
        check_sequence(consumer, frames)
        conn = consumer.peer.conn
        if consumer.reason is not None:
            assert [frame.payload for frame in frames[-2:]] == [BYE, (4010).to_bytes(2, "big")]
            assert consumer.peer.sock.recv(1) == b"", "the stream ends after Close"
        consumer.peer.close()
        consumer.is_gone = True
        for name in self.past:
            self.past[name] += getattr(model, name)
        for _ in range(3):
            self.poll()
            self.flush()
        assert self.ended.pop(conn) == (consumer.reason or Reason.PEER_GONE)

    def teardown(self) -> None:
        try:
            # A run that has failed already is not checked again.
            if sys.exc_info()[0] is None and self.consumers:
                for consumer in self.present:
                    self.drain(consumer)
                    self.check_end(consumer)
                self.bench.turn()
                assert self.bench.held() == self.start
        finally:
            for consumer in self.present:
                consumer.peer.close()
            self.bench.close()


def check_sequence(consumer: Consumer, frames: list[ServerFrame]) -> None:
    """Check replies in order, each position of a channel read or in a gap once, and the newest last."""
    replies, read, gaps = [], defaultdict(list), defaultdict(list)
    for frame in frames:
        name, _, rest = frame.payload.partition(b" ")
        if name == b"reply" and frame.opcode == TEXT:
            replies.append(frame.payload)
        elif frame.opcode in (PONG, CLOSE) or frame.payload == BYE:
            continue
        elif name == b"gap":
            match = re.fullmatch(rb"gap (\d) (\w+) (\d+)-(\d+)", frame.payload)
            assert match and int(match[1]) == consumer.model.variant
            gaps[match[2]].append(range(int(match[3]), int(match[4]) + 1))
        else:
            read[name].append(int(rest.partition(b" ")[0]))
    is_whole = consumer.reason is None
    assert replies == consumer.replies[: len(replies)]
    assert not is_whole or replies == consumer.replies, "a reply is never dropped"
    for name, published in consumer.published.items():
        missing = [position for gap in gaps[name] for position in gap if position in published]
        assert read[name] == sorted(read[name])
        assert not set(read[name]) & set(missing)
        assert len(missing) == len(set(missing))
        if is_whole:
            assert sorted(read[name] + missing) == published
        if POLICIES[name] == CLOSES:
            assert not missing
        if is_whole and POLICIES[name] == LATEST:
            assert read[name][-1] == published[-1], "the newest is never dropped"


MACHINE_RUN = settings(
    max_examples=400,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_outbox_agrees_with_a_plain_model_after_random_steps() -> None:
    run_state_machine_as_test(OutboxMachine, settings=MACHINE_RUN)


# --- defects planted in the model: the machine must fail with each -------------------------------------


class ChargesGapsMore(OutboxModel):
    """Rule 5: a gap is charged what the first publication was, at most 64 bytes."""

    def size_of(self, entry: Waiting) -> int:
        return 64 if entry.kind is Kind.GAP else super().size_of(entry)


class ChargesGapsLess(OutboxModel):
    """The same."""

    def size_of(self, entry: Waiting) -> int:
        return min(entry.charge, 63) if entry.kind is Kind.GAP else super().size_of(entry)


class DropsTheNewest(OutboxModel):
    """Rule 2: the oldest gives way."""

    def oldest_droppable(self, newcomer: Waiting) -> int | None:
        indexes = reversed(range(len(self.entries)))
        return next((i for i in indexes if self.is_droppable(i, newcomer)), None)


class DropsWhatIsHalfWritten(OutboxModel):
    """Rule 2: an entry whose first byte is written is never dropped."""

    def is_droppable(self, index: int, newcomer: Waiting | None) -> bool:
        written, self.head_written = self.head_written, 0
        try:
            return super().is_droppable(index, newcomer)
        finally:
            self.head_written = written


class DropsTheLatest(OutboxModel):
    """Rule 2: the newest of a LATEST_ONLY channel stays."""

    def is_droppable(self, index: int, newcomer: Waiting | None) -> bool:
        entry = self.entries[index]
        return super().is_droppable(index, newcomer) or (
            entry.kind is Kind.PUBLICATION and self.policies[entry.channel] == LATEST
        )


class ClosesForNewcomers(OutboxModel):
    """Rule 3: a newcomer of DROP_OLDEST gives way itself."""

    def drop_newcomer(self, entry: Waiting) -> bool:
        self.fail()
        return False


class NeverMergesGaps(OutboxModel):
    """Rule 5: later drops merge into the same gap."""

    def gap_of(self, channel: bytes, end: int) -> Waiting | None:
        return None


class LosesTheEndOfGaps(OutboxModel):
    """Rule 5: a gap covers all positions that are missing."""

    def widen(self, gap: Waiting, position: int) -> None:
        pass


class NeverGrowsOld(OutboxModel):
    """Age obeys the same rules."""

    def grow_old(self, now_ms: int) -> bool:
        return True


class DropsTheNewestPong(OutboxModel):
    """The oldest pongs give way."""

    def drop_pong(self) -> None:
        self.pongs.pop()
        self.pongs_dropped += 1


class SendsPongsLast(OutboxModel):
    """The order of the wire: pongs go before entries."""

    def write(self, count: int) -> None:
        if self.pongs and self.entries and count and not (self.head_written or self.pong_written):
            count = self.write_entry(count)
        super().write(count)


class ForgetsToPause(OutboxModel):
    """Reading pauses while the outbox is over half full."""

    def pause_if_over_half(self) -> None:
        pass


class KeepsWhatWaits(OutboxModel):
    """A connection that fails with 4010 drops all entries of which nothing is written."""

    def fail(self) -> None:
        self.is_open = False


DEFECTS = (
    ChargesGapsMore,
    ChargesGapsLess,
    DropsTheNewest,
    DropsWhatIsHalfWritten,
    DropsTheLatest,
    ClosesForNewcomers,
    NeverMergesGaps,
    LosesTheEndOfGaps,
    NeverGrowsOld,
    DropsTheNewestPong,
    SendsPongsLast,
    ForgetsToPause,
    KeepsWhatWaits,
)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_outbox_machine_fails_with_each_planted_defect(defect: type[OutboxModel]) -> None:
    machine = type("PlantedMachine", (OutboxMachine,), {"model_type": defect})
    once = settings(
        MACHINE_RUN,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        max_examples=10_000,  # ends with the first example that fails
    )
    with pytest.raises((AssertionError, IndexError)):
        run_state_machine_as_test(machine, settings=once)


# --- each rule once ------------------------------------------------------------------------------------
# Nothing is written before a flush: entries that were pushed wait and can be inspected.

LONG = 1_000_000_000
FILLING = b"fill" + bytes(100)


@contextmanager
def open_rig(**changes: Any) -> Iterator[tuple[Rig, Peer]]:
    """Return a rig and one open connection with a small outbox, no heartbeat and readable gaps."""
    chosen: dict[str, Any] = {
        "outbox_bytes": 4_096,
        "outbox_frames": 8,
        "ping_interval_ms": 0,
        "write_timeout_ms": LONG,
        "control_rate_per_s": 0,
    }
    with rig(Settings(**chosen | changes), gap_encoder=gap_payload) as bench:
        peer = bench.connect(send_buffer_bytes=1)
        for name, policy in POLICIES.items():
            bench.reactor.subscribe(peer.conn, name, policy=policy)
        yield bench, peer


@contextmanager
def blocked_rig(**changes: Any) -> Iterator[tuple[Rig, Peer]]:
    """Return the same with a full socket. The limits are those for entries beyond the filling."""
    filling = len(server_frame(TEXT, FILLING))
    changes["outbox_frames"] = changes.get("outbox_frames", 8) + 1
    changes["outbox_bytes"] = changes.get("outbox_bytes", 4_096) + filling
    with open_rig(**changes) as (bench, peer):
        fill(bench, peer)
        assert numbers(bench, peer)["outbox_bytes"] == filling
        yield bench, peer


def waiting(bench: Rig, peer: Peer) -> dict[str, int]:
    """Return the frames and bytes that wait in addition to the filling of a `blocked_rig`."""
    found = numbers(bench, peer)
    if found["outbox_frames"] == 0:
        return found
    filling = len(server_frame(TEXT, FILLING))
    return {
        "outbox_frames": found["outbox_frames"] - 1,
        "outbox_bytes": found["outbox_bytes"] - filling,
    }


def numbers(bench: Rig, peer: Peer) -> dict[str, int]:
    found = bench.reactor.inspect(peer.conn)
    assert found is not None
    return found


def publish(bench: Rig, name: bytes, *positions: int, size: int = 0) -> list[int]:
    """Publish one after the other; return for how many connections each was queued."""
    return [
        bench.reactor.publish(name, [b"%s %d " % (name, position) + b"." * size], position=position)
        for position in positions
    ]


def fill(bench: Rig, peer: Peer, size: int = 100) -> int:
    """Reply until the socket takes no byte of a reply; return the number of replies, that one included."""
    count = 0
    while not numbers(bench, peer)["blocked"]:
        assert bench.reactor.send(peer.conn, b"fill" + bytes(size))
        bench.reactor.flush(bench.now_ms)
        count += 1
    return count


def read_all(bench: Rig, peer: Peer) -> list[bytes]:
    """Return the payloads of all frames but the filling; a Close as its code, a pong as `pong`."""
    frames: list[ServerFrame] = []
    for _ in range(200):
        arrived = peer.frames()
        frames += arrived
        bench.turn()
        if not arrived and not unread_bytes(peer.sock):
            break
    shown = []
    for frame in frames:
        if frame.opcode == CLOSE:
            shown.append(b"close %d" % close_code(frame))
        elif frame.opcode == PONG:
            shown.append(b"pong " + frame.payload)
        elif not frame.payload.startswith(b"fill"):
            shown.append(frame.payload.rstrip(b". "))
    return shown


def test_goodbye_and_close_are_queued_beyond_the_outbox_limits() -> None:
    with open_rig(outbox_frames=2) as (bench, peer):
        bench.reactor.set_bye(4010, [b"bye"])
        for text in (b"one", b"two"):
            assert bench.reactor.send(peer.conn, text)
        bench.reactor.set_deadline(peer.conn, bench.now_ms + 10, 4010)
        bench.pass_ms(250, turns=False)
        bench.reactor.poll(bench.now_ms)
        assert numbers(bench, peer)["outbox_frames"] == 2
        assert read_all(bench, peer) == [b"one", b"two", b"bye", b"close 4010"]


def test_oldest_droppable_publication_is_dropped_at_the_frame_limit() -> None:
    with blocked_rig(outbox_frames=4) as (bench, peer):
        publish(bench, b"strict", 1)
        publish(bench, b"news", 1, 2)
        publish(bench, b"chat", 1)
        assert publish(bench, b"chat", 2) == [1]
        # News 1 became a gap, which frees no frame; news 2 merged into it, which does.
        assert waiting(bench, peer)["outbox_frames"] == 4
        assert bench.reactor.send(peer.conn, b"reply")
        assert publish(bench, b"strict", 2) == [0], "no droppable entry is left"
        assert bench.count("dropped_policy") == 4
    with blocked_rig(outbox_frames=4) as (bench, peer):
        publish(bench, b"strict", 1)
        publish(bench, b"news", 1, 2)
        publish(bench, b"chat", 1, 2)
        assert read_all(bench, peer) == [b"strict 1", b"gap 0 news 1-2", b"chat 1", b"chat 2"]


def test_oldest_droppable_publication_is_dropped_at_the_byte_limit() -> None:
    with blocked_rig(outbox_bytes=2_000) as (bench, peer):
        publish(bench, b"news", 1, 2, 3, size=600)
        before = waiting(bench, peer)["outbox_bytes"]
        assert bench.reactor.send(peer.conn, b"r" * 600)
        frame = len(server_frame(TEXT, b"news 1 " + b"." * 600))
        reply = len(server_frame(TEXT, b"r" * 600))
        assert waiting(bench, peer)["outbox_bytes"] == before - frame + 64 + reply
        assert waiting(bench, peer)["outbox_frames"] == 4
        assert read_all(bench, peer) == [b"gap 0 news 1-1", b"news 2", b"news 3", b"r" * 600]


def test_newest_publication_of_a_latest_only_channel_is_never_dropped() -> None:
    with blocked_rig(outbox_frames=4) as (bench, peer):
        publish(bench, b"price", 1, 2)
        publish(bench, b"score", 1)
        publish(bench, b"price", 3)
        assert publish(bench, b"price", 4, 5) == [1, 1]
        # Score 1 is its channel's newest, price 5 too. All before price 5 is one gap.
        assert read_all(bench, peer) == [b"gap 0 price 1-3", b"score 1", b"price 4", b"price 5"]
    with blocked_rig(outbox_frames=2) as (bench, peer):
        publish(bench, b"price", 1)
        publish(bench, b"score", 1)
        assert bench.reactor.send(peer.conn, b"reply") is False
        assert read_all(bench, peer) == [b"close 4010"]


def test_half_written_publication_is_never_dropped() -> None:
    with open_rig(outbox_frames=2, outbox_bytes=10_000) as (bench, peer):
        publish(bench, b"news", 1, size=8_000)
        bench.turn()
        assert 0 < numbers(bench, peer)["head_written"] < 8_000
        assert publish(bench, b"news", 2, 3, 4) == [1, 1, 1]
        assert bench.count("dropped_policy") == 3
        assert publish(bench, b"strict", 1) == [0]
        assert numbers(bench, peer)["outbox_frames"] == 1, (
            "the rest of the publication must be written before the Close"
        )
        assert read_all(bench, peer) == [b"news 1", b"close 4010"]


def test_new_publication_of_drop_oldest_becomes_a_gap_when_only_replies_wait() -> None:
    with blocked_rig(outbox_frames=4) as (bench, peer):
        for text in (b"a", b"b", b"c"):
            assert bench.reactor.send(peer.conn, text)
        assert publish(bench, b"news", 1, 2, 3) == [1, 1, 1]
        assert waiting(bench, peer)["outbox_frames"] == 4
        assert bench.count("dropped_policy") == 3
        assert read_all(bench, peer) == [b"a", b"b", b"c", b"gap 0 news 1-3"]
        assert publish(bench, b"news", 4) == [1]
        assert read_all(bench, peer) == [b"news 4"]


@pytest.mark.parametrize("name", [b"strict", b"price", b"chat"])
def test_full_outbox_without_droppable_entries_closes_4010(name: bytes) -> None:
    """Rule 4. With DROP_OLDEST this applies when not even the gap has room."""
    with blocked_rig(outbox_frames=2) as (bench, peer):
        bench.reactor.set_bye(4010, [b"bye"])
        for text in (b"a", b"b"):
            assert bench.reactor.send(peer.conn, text)
        assert publish(bench, name, 1) == [0]
        assert waiting(bench, peer)["outbox_frames"] == 0
        assert bench.count("dropped_closing") == 3, "the filling of the socket included"
        assert read_all(bench, peer) == [b"bye", b"close 4010"]
        peer.close()
        bench.turn()
        assert bench.of(peer) == [(event_kinds.FAILING, 4010), (event_kinds.CLOSED, Reason.SLOW_CONSUMER)]


def test_message_larger_than_the_outbox_limit_closes_4010() -> None:
    with blocked_rig(outbox_bytes=1_024) as (bench, peer):
        assert not bench.reactor.send(peer.conn, bytes(1_021))
        assert read_all(bench, peer) == [b"close 4010"]
    with blocked_rig(outbox_bytes=1_024) as (bench, peer):
        assert bench.reactor.send(peer.conn, bytes(1_020)), "exactly the limit"
        assert read_all(bench, peer) == [bytes(1_020)]


def test_sends_after_an_overflow_return_false() -> None:
    """The entries before were discarded, so a later reply would follow a hole."""
    with blocked_rig(outbox_frames=2) as (bench, peer):
        assert [bench.reactor.send(peer.conn, b"reply %d" % number) for number in range(4)] == [
            True,
            True,
            False,
            False,
        ]
        assert read_all(bench, peer) == [b"close 4010"]


def test_gaps_of_many_tiny_publications_stay_within_the_byte_limit() -> None:
    """A gap is never charged more than the publication that it replaces."""
    with blocked_rig(outbox_bytes=1_024, outbox_frames=1_000) as (bench, peer):
        names = [b"tiny %d" % number for number in range(40)]
        for name in names:
            bench.reactor.subscribe(peer.conn, name, policy=OLDEST)
            publish(bench, name, 1)
        for position in range(2, 60):
            publish(bench, names[0], position, size=20)
            assert waiting(bench, peer)["outbox_bytes"] <= 1_024


def test_gap_of_publications_without_positions_has_position_zero() -> None:
    with blocked_rig(outbox_frames=3) as (bench, peer):
        publish(bench, b"news", 0, 0)
        publish(bench, b"chat", 0, 5, 6, 0)
        publish(bench, b"strict", 0)
        assert bench.count("dropped_policy") == 6
        assert read_all(bench, peer) == [b"gap 0 news 0-0", b"gap 0 chat 5-6", b"strict 0"]


def test_waiting_gap_keeps_its_channel_after_the_last_unsubscribe() -> None:
    with blocked_rig(outbox_frames=2) as (bench, peer):
        start = bench.count("now_channels")
        publish(bench, b"news", 1, 2, 3)
        for name in POLICIES:
            bench.reactor.unsubscribe(peer.conn, name)
        assert bench.count("now_channels") == 1
        assert read_all(bench, peer) == [b"gap 0 news 1-2", b"news 3"]
        assert (start, bench.count("now_channels")) == (len(POLICIES), 0)


# --- age -----------------------------------------------------------------------------------------------

OLD = {"outbox_age_ms": 3_000, "outbox_frames": 200, "outbox_bytes": 1 << 20}


def publish_until_blocked(bench: Rig, peer: Peer, name: bytes) -> int:
    """Publish until the socket takes no byte of a publication; return the position of that one."""
    position = 0
    while not numbers(bench, peer)["blocked"]:
        position += 1
        publish(bench, name, position, size=100)
        bench.reactor.flush(bench.now_ms)
    assert numbers(bench, peer)["head_written"] == 0
    return position


def test_publications_above_the_outbox_age_become_a_gap_and_gaps_never_age() -> None:
    with open_rig(**OLD) as (bench, peer):
        refused = publish_until_blocked(bench, peer, b"news")
        publish(bench, b"news", refused + 1)
        bench.pass_ms(2_750)
        assert bench.count("dropped_policy") == 0
        bench.pass_ms(500)
        assert bench.count("dropped_policy") == 2
        bench.pass_ms(60_000)
        assert bench.of(peer) == []
        read = read_all(bench, peer)
        assert read[-1] == b"gap 0 news %d-%d" % (refused, refused + 1)


@pytest.mark.parametrize("name", [b"strict", b"price", b"reply"])
def test_undroppable_entry_above_the_outbox_age_closes_4010(name: bytes) -> None:
    with open_rig(**OLD) as (bench, peer):
        if name == b"reply":
            fill(bench, peer)
        else:
            publish_until_blocked(bench, peer, name)
        bench.pass_ms(2_750)
        assert bench.of(peer) == []
        bench.pass_ms(500)
        assert bench.of(peer) == [(event_kinds.FAILING, 4010)]
        assert read_all(bench, peer)[-1] == b"close 4010"
        peer.close()
        bench.turn()
        assert bench.count("ended_outbox_age") == 1


def test_outbox_age_applies_to_a_reply_queued_while_the_socket_is_blocked() -> None:
    """The timer must start although only a gap, which has no age, waited before."""
    with open_rig(**OLD) as (bench, peer):
        publish_until_blocked(bench, peer, b"news")
        bench.pass_ms(4_000)
        assert bench.count("dropped_policy") == 1, "only a gap waits now"
        assert bench.reactor.send(peer.conn, b"reply")
        bench.turn()
        bench.pass_ms(4_000)
        assert bench.of(peer) == [(event_kinds.FAILING, 4010)]


def test_encoded_gap_message_that_is_partly_written_has_no_age() -> None:
    """A gap is encoded when a visit reaches it, even if the socket then takes only a part of the message."""
    long = b"gap".ljust(100_000, b".")
    with rig(
        Settings(outbox_age_ms=3_000, ping_interval_ms=0, write_timeout_ms=LONG), gap_encoder=lambda *_: long
    ) as bench:
        peer = bench.connect(send_buffer_bytes=1)
        bench.reactor.subscribe(peer.conn, b"news", policy=OLDEST)
        publish_until_blocked(bench, peer, b"news")
        bench.pass_ms(4_000)
        assert (bench.count("dropped_policy"), bench.count("gaps")) == (1, 0)
        peer.frames()
        bench.turn()
        assert numbers(bench, peer)["blocked"]
        assert bench.count("gaps") == 1
        bench.pass_ms(10_000)
        assert bench.of(peer) == []
        assert read_all(bench, peer) == [b"gap"]


# --- gaps and their encoder ----------------------------------------------------------------------------


def lose(bench: Rig, *names: bytes) -> Peer:
    """Return a peer with a full socket that lost publications of each channel.

    The limit of frames must be one more than there are channels.
    """
    peer = bench.connect(send_buffer_bytes=1)
    for name in names:
        bench.reactor.subscribe(peer.conn, name, policy=OLDEST)
    fill(bench, peer)
    for name in (*names, names[0]):
        assert publish(bench, name, 1) == [1]
    return peer


def test_gap_without_an_encoder_sends_no_frame() -> None:
    with rig(Settings(outbox_frames=2)) as bench:
        peer = lose(bench, b"news")
        assert numbers(bench, peer)["outbox_frames"] == 2
        assert read_all(bench, peer) == []
        assert waiting(bench, peer)["outbox_frames"] == 0
        assert bench.count("gaps") == 0
        assert bench.held()["outbox"] == 0


@pytest.mark.parametrize("broken", [b"first", b"second", b"both"])
def test_gap_encoder_that_raises_closes_4050(broken: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda info: unraisable.append(info.exc_type))

    def encode(variant: int, channel: bytes, first: int, last: int) -> bytes:
        if broken in (channel, b"both"):
            raise ArithmeticError("planted")
        return gap_payload(variant, channel, first, last)

    with rig(Settings(outbox_frames=3), gap_encoder=encode) as bench:
        peer = lose(bench, b"first", b"second")
        assert read_all(bench, peer)[-1] == b"close 4050"
        assert bench.of(peer) == [(event_kinds.FAILING, 4050)]
        assert unraisable == [ArithmeticError] * (2 if broken == b"both" else 1)


@pytest.mark.parametrize("answer", [None, "text", 7])
def test_gap_encoder_that_returns_no_bytes_object_closes_4050(
    answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda info: unraisable.append(info.exc_type))
    encoder: Callable[[int, bytes, int, int], Any] = lambda *_: answer  # noqa: E731
    with rig(Settings(outbox_frames=2), gap_encoder=encoder) as bench:
        peer = lose(bench, b"news")
        assert read_all(bench, peer) == [b"close 4050"]
        assert unraisable == [TypeError]


def test_payload_that_is_no_bytes_object_raises_an_error() -> None:
    with open_rig() as (bench, peer):
        wrong: Any = None
        with pytest.raises(TypeError):
            bench.reactor.send(peer.conn, wrong)
        for wrong in ("text", bytearray(b"x"), 7):
            with pytest.raises(TypeError):
                bench.reactor.send(peer.conn, wrong)
            # A number names the frame of another variant: here there is none.
            with pytest.raises(ValueError if wrong == 7 else TypeError):
                bench.reactor.publish(b"news", [wrong])
        assert numbers(bench, peer)["outbox_frames"] == 0
        assert bench.held()["frame"] == idle_frame_bytes()


def idle_frame_bytes() -> int:
    """Return the bytes of the frames that an idle reactor keeps: the ping and three responses."""
    with rig() as bench:
        return bench.held()["frame"]


# --- pongs and the order of the wire -------------------------------------------------------------------


def ping(bench: Rig, peer: Peer, *payloads: bytes) -> None:
    for payload in payloads:
        peer.send(client_frame(PING, payload))
        bench.step()


def test_pongs_are_written_after_a_half_written_entry_and_before_the_next() -> None:
    with open_rig(outbox_bytes=1 << 20) as (bench, peer):
        bench.reactor.send(peer.conn, b"one " + b"1" * 8_000)
        bench.turn()
        assert numbers(bench, peer)["head_written"]
        bench.reactor.send(peer.conn, b"two")
        ping(bench, peer, b"a", b"b")
        assert numbers(bench, peer)["pongs"] == 2
        assert [shown[:6] for shown in read_all(bench, peer)] == [b"one 11", b"pong a", b"pong b", b"two"]


def test_pong_is_written_before_a_reply_of_which_nothing_is_written() -> None:
    with open_rig() as (bench, peer):
        bench.reactor.send(peer.conn, b"one")
        peer.send(client_frame(PING, b"a"))
        bench.turn()
        assert read_all(bench, peer) == [b"pong a", b"one"]


def first_cut(**how: Any) -> int:
    """Return how many bytes a new socket of this kind takes of a long message."""
    with rig() as bench:
        probe = bench.connect(**how)
        assert bench.reactor.send(probe.conn, bytes(900_000))
        bench.turn()
        return numbers(bench, probe)["head_written"]


@pytest.mark.parametrize("rest", [*around((1 << 16, 1 << 17))[1:], 200_000])
def test_pong_is_never_written_inside_a_message_that_takes_several_visits(rest: int) -> None:
    """A visit ends after 64 KiB, which may be in the middle of the half-written entry."""
    with rig(Settings(max_message_bytes=1 << 20)) as bench:
        peer = bench.connect()
        size = first_cut() + rest - 10
        payload = (bytes(range(251)) * 4_000)[:size]
        assert bench.reactor.send(peer.conn, payload, BINARY)
        bench.turn()
        assert numbers(bench, peer)["outbox_bytes"] == rest
        ping(bench, peer, b"a")
        frames = []
        for _ in range(5):
            frames += peer.frames()
            bench.turn()
        assert [(frame.opcode, len(frame.payload)) for frame in frames] == [(BINARY, size), (PONG, 1)]
        assert frames[0].payload == payload


def test_blocked_socket_buffers_16_pongs_and_drops_the_oldest_beyond() -> None:
    with open_rig() as (bench, peer):
        fill(bench, peer)
        ping(bench, peer, *[b"%d" % number for number in range(16)])
        assert numbers(bench, peer)["pongs"] == 16
        assert bench.count("pongs_dropped") == 0
        ping(bench, peer, b"16", b"17")
        assert numbers(bench, peer)["pongs"] == 16
        assert bench.count("pongs_dropped") == 2
        assert read_all(bench, peer) == [b"pong %d" % number for number in range(2, 18)]
        assert bench.count("pongs_out") == 16
        assert bench.held()["outbox"] == 0


def test_blocked_socket_buffers_968_bytes_of_pongs_and_drops_the_oldest_beyond() -> None:
    sizes = [125] * 7 + [77]  # 7 * 127 + 79 = 968
    with open_rig() as (bench, peer):
        fill(bench, peer)
        ping(bench, peer, *[bytes(size) for size in sizes])
        assert numbers(bench, peer)["pongs"] == 8
        assert bench.count("pongs_dropped") == 0
        ping(bench, peer, b"")
        assert numbers(bench, peer)["pongs"] == 8
        assert bench.count("pongs_dropped") == 1
        assert read_all(bench, peer) == [b"pong " + bytes(size) for size in [*sizes[1:], 0]]


def test_no_pong_is_dropped_while_the_socket_takes_bytes() -> None:
    with rig(Settings(control_rate_per_s=0)) as bench:
        peer = bench.connect()
        payloads = [b"%d" % number for number in range(200)]
        peer.send(b"".join(client_frame(PING, payload) for payload in payloads))
        bench.turn()
        assert [frame.payload for frame in peer.frames()] == payloads
        assert bench.count("pongs_dropped") == 0


def test_half_written_pong_is_completed_at_an_overflow_of_pongs_or_outbox() -> None:
    with open_rig(outbox_bytes=1 << 20) as (bench, peer):
        pongs = half_write_a_pong(bench, peer)
        ping(bench, peer, *[bytes(125)] * 20)
        assert bench.count("pongs_dropped") > 0
        shown = read_all(bench, peer)
        assert shown[1] == b"pong " + pongs[0]
        assert shown[2:] == [b"pong " + bytes(125)] * 6
    with open_rig(outbox_bytes=1 << 16) as (bench, peer):
        pongs = half_write_a_pong(bench, peer)
        assert not bench.reactor.send(peer.conn, bytes(1 << 16))
        assert numbers(bench, peer)["pongs"] == 1
        assert read_all(bench, peer)[1:] == [b"pong " + pongs[0], b"close 4010"]


def half_write_a_pong(bench: Rig, peer: Peer) -> list[bytes]:
    """Queue a message and pongs; the socket takes the message and a part of the first pong."""
    taken = first_cut(send_buffer_bytes=1)
    assert bench.reactor.send(peer.conn, b"m" + bytes(2 * taken - 60 - 5))
    bench.turn()
    assert numbers(bench, peer)["outbox_bytes"] == taken - 60
    pongs = [bytes([97 + number]) * 125 for number in range(3)]
    ping(bench, peer, *pongs)
    shown = peer.frames()
    bench.turn()
    assert shown == []
    assert numbers(bench, peer)["outbox_frames"] == 0
    assert numbers(bench, peer)["pongs"] == 3
    return pongs


# --- visits --------------------------------------------------------------------------------------------


def test_ten_waiting_frames_are_written_with_one_send_call() -> None:
    with rig() as bench:
        peer = bench.connect()
        before = bench.reactor.counters()
        for number in range(10):
            bench.reactor.send(peer.conn, b"%d" % number)
        bench.reactor.flush(bench.now_ms)
        after = bench.reactor.counters()
        assert after["sends"] - before["sends"] == 1
        assert after["frames_out"] - before["frames_out"] == 10
        assert [frame.payload for frame in peer.frames()] == [b"%d" % number for number in range(10)]


@pytest.mark.parametrize(("frames", "calls"), [(1, 1), (64, 1), (65, 2), (128, 2), (129, 3), (256, 4)])
def test_one_send_call_writes_at_most_64_frames(frames: int, calls: int) -> None:
    with rig() as bench:
        peer = bench.connect()
        for _ in range(frames):
            bench.reactor.send(peer.conn, b"x")
        while bench.reactor.flush(bench.now_ms):
            pass
        assert bench.count("sends") == calls
        assert bench.count("frames_out") == frames == len(peer.frames())


@pytest.mark.parametrize(
    ("sizes", "calls"),
    [
        ([65_532], 1),
        ([65_533], 2),
        ([65_426, 104], 1),
        ([65_426, 105], 2),
        ([30_000] * 3, 2),
        ([131_062], 2),
    ],
)
def test_one_send_call_writes_at_most_64_kib_of_frames(sizes: list[int], calls: int) -> None:
    """Frame headers have 2 bytes up to 125, 4 up to 65,535 and 10 above."""
    wire = sum(len(server_frame(TEXT, bytes(size))) for size in sizes)
    with rig() as bench:
        peer = bench.connect()
        for size in sizes:
            bench.reactor.send(peer.conn, bytes(size))
        while bench.reactor.flush(bench.now_ms):
            pass
        assert bench.count("sends") == calls == -(-wire // 65_536)
        assert [len(frame.payload) for frame in peer.frames()] == sizes


def test_reply_is_written_before_a_publication_to_70_connections() -> None:
    """The order in which sockets became readable is the order in which an epoll set lists them."""
    with rig() as bench:
        crowd = [bench.connect() for _ in range(70)]
        asker, both = bench.connect(), crowd[-1]
        for peer in crowd:
            bench.reactor.subscribe(peer.conn, b"news")
        watch = select.epoll()
        for peer in (*crowd, asker):
            watch.register(peer.sock, select.EPOLLIN)
        assert publish(bench, b"news", 1) == [70]
        bench.reactor.send(asker.conn, b"reply")
        bench.reactor.send(both.conn, b"reply")
        while bench.reactor.flush(bench.now_ms):  # one call writes for at most 2 ms
            pass
        order = [fd for fd, _ in watch.poll(0, 100)]
        watch.close()
        assert order[:2] == [asker.sock.fileno(), both.sock.fileno()]
        assert order[2:] == [peer.sock.fileno() for peer in crowd[:-1]]
        assert [frame.payload for frame in both.frames()] == [b"news 1 ", b"reply"], (
            "one connection keeps its order"
        )


def test_publication_to_64_connections_is_written_before_an_earlier_one_to_70() -> None:
    with rig() as bench:
        crowd = [bench.connect() for _ in range(70)]
        few = [bench.connect() for _ in range(64)]
        for peers, name in ((crowd, b"crowd"), (few, b"few")):
            for peer in peers:
                bench.reactor.subscribe(peer.conn, name)
        watch = select.epoll()
        for peer in (*crowd, *few):
            watch.register(peer.sock, select.EPOLLIN)
        publish(bench, b"crowd", 1)
        publish(bench, b"few", 1)
        while bench.reactor.flush(bench.now_ms):
            pass
        order = [fd for fd, _ in watch.poll(0, 200)]
        watch.close()
        assert order == [peer.sock.fileno() for peer in (*few, *crowd)]


# --- backpressure --------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["bytes", "frames"])
def test_outbox_over_half_full_pauses_reading_until_enough_is_written(by: str) -> None:
    limits = {"outbox_bytes": 100_000, "outbox_frames": 20}
    size = 12_000 if by == "bytes" else 0
    with open_rig(**limits) as (bench, peer):
        count = fill(bench, peer)
        asked = b"".join(client_frame(TEXT, b"ask %d" % number) for number in range(3))
        half = 4 if by == "bytes" else 9
        for _ in range(half):
            bench.reactor.send(peer.conn, b"fill" + bytes(size))
        assert not numbers(bench, peer)["paused"], "half is not over half"
        peer.send(client_frame(TEXT, b"before"))
        bench.turn()
        assert bench.messages(peer) == [b"before"]
        bench.reactor.send(peer.conn, b"fill" + bytes(size))
        assert numbers(bench, peer)["paused"]
        peer.send(asked)
        bench.turn()
        assert bench.messages(peer) == [b"before"]
        read_all(bench, peer)
        assert bench.messages(peer) == [b"before", b"ask 0", b"ask 1", b"ask 2"]
        assert not numbers(bench, peer)["paused"]
        assert count > 0


def test_pauses_of_application_and_outbox_are_independent() -> None:
    with open_rig(outbox_frames=4) as (bench, peer):
        fill(bench, peer)
        bench.reactor.send(peer.conn, b"fill")
        bench.reactor.send(peer.conn, b"fill")
        bench.reactor.pause_reading(peer.conn)
        peer.send(client_frame(TEXT, b"ask"))
        read_all(bench, peer)
        assert bench.messages(peer) == [], "the application has not resumed reading"
        fill(bench, peer)
        bench.reactor.send(peer.conn, b"fill")
        bench.reactor.send(peer.conn, b"fill")
        bench.reactor.resume_reading(peer.conn)
        bench.turn()
        assert bench.messages(peer) == [], "the outbox is over half full again"
        read_all(bench, peer)
        assert bench.messages(peer) == [b"ask"]


@pytest.mark.parametrize("channels", [1, 3, 12])
def test_outbox_far_over_its_limit_at_the_end_of_its_grace_keeps_one_gap_for_each_channel(
    channels: int,
) -> None:
    """More channels than the walk over the entries remembers gaps for."""
    limits = Settings(ping_interval_ms=0, outbox_frames=64, blocked_grace_ms=1_000, outbox_age_ms=600_000)
    with rig(limits) as bench:
        for _ in range(3):  # connections that read, so that there is no crowd
            bench.connect()
        peer = bench.connect(send_buffer_bytes=4_096)
        bench.turn()
        for number in range(channels):
            bench.reactor.subscribe(peer.conn, b"%d" % number, policy=event_kinds.POLICY_DROP_OLDEST)
        for number in range(3_000):
            bench.reactor.publish(b"%d" % (number % channels), [b"x" * 40])
            bench.reactor.flush(bench.now_ms)
        waiting = bench.reactor.inspect(peer.conn)
        assert waiting is not None and waiting["in_grace"] and waiting["outbox_frames"] > 1_000
        for _ in range(8):
            bench.now_ms += TICK_MS
            bench.reactor.tick(bench.now_ms)
        bench.reactor.publish(b"0", [b"x" * 40])
        bench.audit()
        left = bench.reactor.inspect(peer.conn)
        assert left is not None and left["outbox_frames"] == 64
        # Each channel has one gap; one more entry may be half-written.
        assert bench.count("dropped_policy") == waiting["outbox_frames"] + 1 - 64 + channels
