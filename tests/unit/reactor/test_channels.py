"""Check channels against a plain model: subscribers, deliveries, and that all memory is freed.

Names are hostile: shared prefixes, one byte apart, zero bytes, and every length around a size class.
"""

import itertools
import socket
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.support.frames import BINARY, CLOSE, TEXT, client_close, client_frame
from tests.support.reactor_rig import Peer, Rig, rig
from tests.support.sizes import sizes_up_to
from wsgate.reactor import Settings, event_kinds

CLOSES, OLDEST, LATEST = (
    event_kinds.POLICY_CLOSE,
    event_kinds.POLICY_DROP_OLDEST,
    event_kinds.POLICY_LATEST_ONLY,
)
LONGEST = 1_024
NAMES = (
    b"a",
    b"b",
    b"\x00",
    b"\x00\x00",
    b"a\x00",
    b"a\x00b",
    b"x" * LONGEST,
    b"x" * (LONGEST - 1) + b"y",
    b"x" * (LONGEST - 1),
    b"%s%n%d",
    b"../../etc",
    "\u00e4\U0001f600".encode(),
    *((b"%d" % size).ljust(size, b"\xff")[:size] for size in sizes_up_to(LONGEST, least=1)),
    *(b"room:%d" % number for number in range(10)),
)
SEATS = 12
VARIANTS = (1, 2, 1)
MACHINE_SETTINGS = Settings(variant_opcodes=VARIANTS, outbox_frames=10_000, ping_interval_ms=0)
REPORTING_SETTINGS = replace(MACHINE_SETTINGS, report_vacated=True)

seats = st.integers(0, SEATS - 1)
names = st.sampled_from(NAMES)


class Member:
    """One connection as the model sees it."""

    def __init__(self, peer: Peer, variant: int) -> None:
        self.peer = peer
        self.variant = variant
        self.channels: set[bytes] = set()
        self.expected: list[tuple[int, bytes]] = []
        self.is_open = True


class ChannelMachine(RuleBasedStateMachine):
    """A dozen connections that come, go, subscribe and leave."""

    def __init__(self, reactor_settings: Settings = MACHINE_SETTINGS) -> None:
        super().__init__()
        self.bench = Rig(reactor_settings)
        self.count = 0
        self.members: list[Member] = []
        self.stale: list[int] = []
        self.came: dict[bytes, set[int]] = defaultdict(set)

    @initialize()
    def begin(self) -> None:
        self.members = [self.arrive(seat % len(VARIANTS)) for seat in range(SEATS)]
        first = self.members[0].peer.conn
        self.bench.reactor.subscribe(first, b"first")
        self.bench.reactor.unsubscribe(first, b"first")
        self.bench.reactor.take_vacated(1)
        # The directory holds 64 channels; it stays.
        self.start = self.bench.held()

    def arrive(self, variant: int) -> Member:
        return Member(self.bench.connect(variant=variant), variant)

    def subscribed(self, name: bytes) -> list[Member]:
        return [member for member in self.members if name in member.channels]

    @rule(seat=seats, name=names)
    def subscribe(self, seat: int, name: bytes) -> None:
        member = self.members[seat]
        expected = len(self.subscribed(name)) + 1
        if name in member.channels:
            expected = -1
        if not member.is_open:
            expected = 0
        assert self.bench.reactor.subscribe(member.peer.conn, name) == expected
        if member.is_open:
            member.channels.add(name)

    @rule(seat=seats, chosen=st.lists(names, min_size=5))
    def subscribe_to_many(self, seat: int, chosen: list[bytes]) -> None:
        for name in chosen:
            self.subscribe(seat, name)

    @rule(name=names)
    def subscribe_all(self, name: bytes) -> None:
        for seat in range(SEATS):
            self.subscribe(seat, name)

    @rule(seat=seats, name=names)
    def unsubscribe(self, seat: int, name: bytes) -> None:
        member = self.members[seat]
        expected = len(self.subscribed(name)) - 1 if name in member.channels else -1
        assert self.bench.reactor.unsubscribe(member.peer.conn, name) == expected
        member.channels.discard(name)

    @rule(
        name=names,
        variants=st.lists(st.sampled_from((None, b"", b"one", b"two")), max_size=len(VARIANTS)),
        excluded=st.one_of(st.none(), seats),
    )
    def publish(self, name: bytes, variants: list[bytes | None], excluded: int | None) -> None:
        self.count += 1
        payloads = [None if text is None else text + b"%d" % self.count for text in variants]
        reached = 0
        for seat, member in enumerate(self.members):
            payload = payloads[member.variant] if member.variant < len(payloads) else None
            if not member.is_open or name not in member.channels or payload is None or seat == excluded:
                continue
            reached += 1
            member.expected.append((VARIANTS[member.variant], payload))
        exclude = 0 if excluded is None else self.members[excluded].peer.conn
        assert self.bench.reactor.publish(name, payloads, exclude=exclude) == reached

    @rule(seat=seats)
    def begin_closing(self, seat: int) -> None:
        """A closing connection is still subscribed, but gets nothing new."""
        member = self.members[seat]
        assert self.bench.reactor.close(member.peer.conn, 1000) == member.is_open
        member.is_open = False

    @rule(seat=seats, how=st.sampled_from(("abort", "reset", "close", "fault")))
    def leave(self, seat: int, how: str) -> None:
        member = self.members[seat]
        self.read()
        if how == "abort":
            self.bench.reactor.abort(member.peer.conn)
        elif how == "close":
            member.peer.send(client_close())
        elif how == "fault":
            member.peer.send(client_frame(3))
        if how != "abort":
            self.bench.turn()
            assert [frame for frame in member.peer.frames() if frame.opcode != CLOSE] == []
        member.peer.close()
        self.bench.turn()
        self.stale.append(member.peer.conn)
        self.members[seat] = self.arrive(member.variant)

    @rule()
    def read(self) -> None:
        self.bench.turn()
        for member in self.members:
            frames = [
                (frame.opcode, frame.payload) for frame in member.peer.frames() if frame.opcode != CLOSE
            ]
            assert frames == member.expected
            member.expected.clear()

    @rule(name=names)
    def use_stale_handles(self, name: bytes) -> None:
        before = self.bench.count("stale")
        for conn in self.stale:
            assert self.bench.reactor.subscribe(conn, name) == 0
            assert self.bench.reactor.unsubscribe(conn, name) == -1
            assert self.bench.reactor.subscriptions(conn) == []
        assert self.bench.count("stale") == before + 3 * len(self.stale)

    @invariant()
    def agrees(self) -> None:
        reactor = self.bench.reactor
        for member in self.members:
            held = reactor.subscriptions(member.peer.conn)
            assert sorted(held) == sorted(member.channels)
            numbers = reactor.inspect(member.peer.conn)
            assert numbers is not None and numbers["subscriptions"] == len(member.channels)
        by_name: dict[bytes, int] = defaultdict(int)
        for member in self.members:
            for name in member.channels:
                by_name[name] += 1
            for name in NAMES:
                assert reactor.is_subscribed(member.peer.conn, name) == (name in member.channels)
        for name in NAMES:
            assert reactor.subscribers(name) == by_name.get(name, 0)
        self.directory_agrees(set(by_name))
        # A channel lives while it is subscribed to, or while frames of it wait.
        now = self.bench.count("now_channels")
        assert now >= len(by_name)
        if not any(member.expected for member in self.members):
            self.bench.turn()
            assert self.bench.count("now_channels") == len(by_name) + self.waits_for_report(set(by_name))

    def waits_for_report(self, occupied: set[bytes]) -> int:
        return 0

    def directory_agrees(self, occupied: set[bytes]) -> None:
        """Listing by parts of two names every channel once, and the variants that have come to each."""
        listed, start = [], 0
        while True:
            part, start = self.bench.reactor.channels(start, 2)
            assert len(part) <= 2
            listed += part
            if start == 0:
                break
        assert sorted(listed) == sorted(occupied)
        for name in NAMES:
            mask = self.bench.reactor.variants(name)
            if name not in occupied:
                self.came[name] = set()
                assert mask == 0
            else:
                self.came[name] |= {member.variant for member in self.subscribed(name)}
                assert mask == sum(1 << variant for variant in self.came[name])

    def teardown(self) -> None:
        try:
            if self.members:
                self.read()
                for member in self.members:
                    member.peer.close()
                self.bench.turn()
                self.bench.reactor.take_vacated(1_000)
                assert self.bench.count("now_channels") == 0
                assert self.bench.count("now_connections") == 0
                assert self.bench.held() == self.start
        finally:
            self.bench.close()


class ReportingMachine(ChannelMachine):
    """Check in addition that a channel without subscribers is reported exactly once."""

    def __init__(self) -> None:
        super().__init__(REPORTING_SETTINGS)
        self.before: set[bytes] = set()
        self.emptied: set[bytes] = set()

    def waits_for_report(self, occupied: set[bytes]) -> int:
        return len(self.emptied - occupied)

    def directory_agrees(self, occupied: set[bytes]) -> None:
        # No rule both empties and refills a channel, so a comparison with the last step finds each.
        self.emptied |= self.before - occupied
        self.before = occupied
        super().directory_agrees(occupied)

    @rule(limit=st.integers(0, 5))
    def take_vacated(self, limit: int) -> None:
        due = self.emptied - self.before
        taken = self.bench.reactor.take_vacated(limit)
        assert len(taken) == len(set(taken)) == min(limit, len(due))
        assert set(taken) <= due
        self.emptied -= set(taken)


MACHINE_RUN = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_channels_agree_with_a_plain_model_after_random_steps() -> None:
    run_state_machine_as_test(ChannelMachine, settings=MACHINE_RUN)


def test_vacated_channels_are_reported_exactly_once_after_random_steps() -> None:
    run_state_machine_as_test(ReportingMachine, settings=MACHINE_RUN)


def forgets_one(machine: ChannelMachine, name: bytes) -> list[Member]:
    return [member for member in machine.members[1:] if name in member.channels]


def test_channel_machine_fails_if_its_model_forgets_a_subscriber(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect planted in the model must make the machine fail."""
    monkeypatch.setattr(ChannelMachine, "subscribed", forgets_one)
    once = settings(
        MACHINE_RUN, phases=[Phase.generate], database=None, derandomize=True, report_multiple_bugs=False
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(ChannelMachine, settings=once)


# --- by hand ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [size for size in sizes_up_to(1 << 17) if not 1 <= size <= LONGEST])
def test_channel_name_outside_1_to_1024_bytes_is_refused(size: int) -> None:
    with rig() as bench:
        peer = bench.connect()
        with pytest.raises(ValueError, match="1 to 1024"):
            bench.reactor.subscribe(peer.conn, b"n" * size)
        assert bench.reactor.unsubscribe(peer.conn, b"n" * size) == -1
        assert bench.reactor.subscribers(b"n" * size) == 0
        assert bench.reactor.publish(b"n" * size, [b"x"]) == 0
        assert bench.count("now_channels") == 0


@pytest.mark.parametrize("policy", [-1, 3])
def test_unknown_policy_of_a_channel_raises_value_error(policy: int) -> None:
    with rig() as bench:
        peer = bench.connect()
        with pytest.raises(ValueError, match="POLICY"):
            bench.reactor.subscribe(peer.conn, b"a", policy=policy)
        assert bench.count("now_channels") == 0


def test_more_payloads_than_variants_and_an_unknown_variant_raise_value_error() -> None:
    with rig(Settings(variant_opcodes=(1, 2))) as bench:
        peer = bench.connect()
        bench.reactor.subscribe(peer.conn, b"a")
        with pytest.raises(ValueError, match="at most 2 variants"):
            bench.reactor.publish(b"a", [b"x"] * 3)
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises(ValueError, match="not one of the 2"):
            bench.reactor.adopt(ours.fileno(), now_ms=bench.now_ms, upgraded=True, variant=2)
        assert bench.count("publications") == 0


def loses_publications(bench: Rig, peer: Peer, name: bytes) -> bool:
    """Return whether the outbox of a slow connection drops publications of this channel."""
    while not (found := bench.reactor.inspect(peer.conn)) or not found["blocked"]:
        bench.reactor.send(peer.conn, bytes(60_000))
        bench.turn()
    for position in range(1, 6):
        bench.reactor.publish(name, [b"%d" % position], position=position)
    return bench.count("dropped_policy") > 0 and bench.reactor.inspect(peer.conn) is not None


def test_first_subscriber_sets_the_policy_of_a_channel() -> None:
    with rig(Settings(outbox_frames=2)) as bench:
        first, second = bench.connect(), bench.connect()
        bench.reactor.subscribe(first.conn, b"a", policy=OLDEST)
        bench.reactor.subscribe(second.conn, b"a", policy=CLOSES)
        assert loses_publications(bench, second, b"a")
    with rig(Settings(outbox_frames=2)) as bench:
        first, second = bench.connect(), bench.connect()
        bench.reactor.subscribe(first.conn, b"a", policy=CLOSES)
        bench.reactor.subscribe(second.conn, b"a", policy=OLDEST)
        assert not loses_publications(bench, second, b"a")


@pytest.mark.parametrize("waits", [False, True])
def test_vacated_channel_takes_the_policy_of_its_next_subscriber(waits: bool) -> None:
    """The rule holds too while a publication of the channel still waits in an outbox."""
    with rig(Settings(outbox_frames=2)) as bench:
        first, second = bench.connect(), bench.connect()
        bench.reactor.subscribe(first.conn, b"a", policy=CLOSES)
        if waits:
            bench.reactor.publish(b"a", [b"0"])
        bench.reactor.unsubscribe(first.conn, b"a")
        assert bench.count("now_channels") == int(waits)
        assert bench.reactor.subscribe(second.conn, b"a", policy=OLDEST) == 1
        assert loses_publications(bench, second, b"a")


def test_subscription_beyond_max_subscriptions_is_refused_until_another_one_ends() -> None:
    with rig(Settings(max_subscriptions=2)) as bench:
        peer = bench.connect()
        answers = [bench.reactor.subscribe(peer.conn, name) for name in (b"a", b"b", b"c", b"b")]
        assert answers == [1, 1, -2, -1]
        assert bench.count("now_channels") == 2
        bench.reactor.unsubscribe(peer.conn, b"a")
        assert bench.reactor.subscribe(peer.conn, b"c") == 1


def test_public_ids_map_back_to_their_handles_and_do_not_reveal_them() -> None:
    with rig() as bench, rig() as other:
        conns = [bench.connect().conn for _ in range(200)]
        ids = [bench.reactor.public_id(conn) for conn in conns]
        assert [bench.reactor.find_public(public_id) for public_id in ids] == conns
        assert len(set(ids)) == len(ids)
        # Ids of neighbouring handles differ in about half of their bits, so an id does not reveal its handle.
        changed = [(one ^ two).bit_count() for one, two in itertools.pairwise(ids)]
        assert 28 < sum(changed) / len(changed) < 36
        # Another reactor has another key. The id of a connection that has ended is not found any more.
        assert [other.reactor.find_public(public_id) for public_id in ids] == [0] * len(ids)
        bench.reactor.abort(conns[0])
        bench.turn()
        assert bench.reactor.find_public(ids[0]) == 0
        assert bench.reactor.find_public(0) == bench.reactor.find_public(2**64 - 1) == 0


def test_hostile_channel_names_are_kept_byte_for_byte() -> None:
    with rig() as bench:
        peer = bench.connect()
        for name in NAMES:
            assert bench.reactor.subscribe(peer.conn, name) == 1
        assert sorted(bench.reactor.subscriptions(peer.conn)) == sorted(NAMES)
        for name in NAMES:
            assert bench.reactor.publish(name, [name.hex().encode()]) == 1
        bench.turn()
        assert [bytes.fromhex(frame.payload.decode()) for frame in peer.frames()] == list(NAMES)


def leave_by_unsubscribing(bench: Rig, peers: list[Peer], names: list[bytes]) -> None:
    for peer in peers:
        for name in names:
            assert bench.reactor.unsubscribe(peer.conn, name) >= 0


def leave_in_reverse_order(bench: Rig, peers: list[Peer], names: list[bytes]) -> None:
    for name in reversed(names):
        for peer in reversed(peers):
            assert bench.reactor.unsubscribe(peer.conn, name) >= 0


def leave_by_closing(bench: Rig, peers: list[Peer], names: list[bytes]) -> None:
    for peer in peers:
        peer.close()
    bench.turn()


Leave = Callable[[Rig, list[Peer], list[bytes]], None]


@pytest.mark.parametrize("leave", [leave_by_unsubscribing, leave_in_reverse_order, leave_by_closing])
def test_memory_of_15000_subscriptions_is_freed_when_all_of_them_end(leave: Leave) -> None:
    """With 150 connections in 100 channels, arrays, tables and the directory have grown several times."""
    with rig() as bench:
        names = [b"crowd %d" % number for number in range(100)]
        remains = []
        for _ in range(3):
            peers = [bench.connect() for _ in range(150)]
            for number, name in enumerate(names):
                for count, peer in enumerate(peers):
                    assert bench.reactor.subscribe(peer.conn, name) == count + 1
                assert bench.count("now_channels") == number + 1
            held = bench.held()
            # 8 bytes a subscription at three quarters full at worst doubled, 4 in the array doubled.
            assert 150 * 100 * 8 <= held["subscription"] <= 150 * 100 * 8 * 3
            assert 150 * 100 * 4 <= held["channel"] <= 150 * 100 * 4 * 2 + 100 * 128 + 32_768
            leave(bench, peers, names)
            assert bench.count("now_channels") == 0
            for peer in peers:
                peer.close()
            bench.turn()
            remains.append(bench.held())
        assert remains[0]["subscription"] == 0
        assert remains[0] == remains[1] == remains[2], "only the directory stays, and it does not grow"
        assert remains[0]["channel"] <= 16_384


def test_channel_memory_shrinks_after_990_of_1000_subscribers_leave() -> None:
    with rig() as bench:
        peers = [bench.connect() for _ in range(1_000)]
        for peer in peers:
            bench.reactor.subscribe(peer.conn, b"a")
        full = bench.held()["channel"]
        for peer in peers[10:]:
            bench.reactor.unsubscribe(peer.conn, b"a")
        assert bench.reactor.subscribers(b"a") == 10
        assert bench.held()["channel"] < full / 4 + 4_096
        assert bench.reactor.publish(b"a", [b"x"]) == 10
        assert [peer for peer in peers[:10] if not bench.turn() and len(peer.frames()) == 1] == peers[:10]


def test_stale_excluded_handle_does_not_exclude_the_new_connection_in_its_slot() -> None:
    with rig() as bench:
        gone = bench.connect()
        bench.reactor.abort(gone.conn)
        bench.turn()
        successor = bench.connect()
        assert successor.conn & 0xFFFFFFFF == gone.conn & 0xFFFFFFFF
        bench.reactor.subscribe(successor.conn, b"a")
        assert bench.reactor.publish(b"a", [b"x"], exclude=gone.conn) == 1
        assert bench.reactor.publish(b"a", [b"x"], exclude=successor.conn) == 0


def test_each_variant_gets_its_own_payload_with_its_own_opcode() -> None:
    with rig(Settings(variant_opcodes=VARIANTS)) as bench:
        peers = [bench.connect(variant=variant) for variant in range(3)]
        for peer in peers:
            bench.reactor.subscribe(peer.conn, b"a")
        assert bench.reactor.publish(b"a", [b"text", b"\xff", None]) == 2
        bench.turn()
        shown = [[(frame.opcode, frame.payload) for frame in peer.frames()] for peer in peers]
        assert shown == [[(TEXT, b"text")], [(BINARY, b"\xff")], []]
        assert bench.count("publications") == 1
        assert bench.count("deliveries") == 2
