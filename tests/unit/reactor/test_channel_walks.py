"""Publications to large channels: queued in steps, while subscribers come and go."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.support.reactor_rig import Peer, Rig, rig
from wsgate.reactor import Reactor, Settings
from wsgate.reactor.testing import hear_all, let_go, open_slots, step_walks

CHANNEL: Final = b"large"
STEPS: Final = Settings(walk_at_once=0)  # every channel is a large one


def served(bench: Rig, peers: list[Peer]) -> list[list[bytes]]:
    """What each got, when all is done."""
    bench.turn()
    return [[frame.payload for frame in peer.frames()] for peer in peers]


@contextmanager
def crowd(count: int, settings: Settings = STEPS) -> Iterator[tuple[Rig, list[Peer]]]:
    with rig(settings) as bench:
        peers = [bench.connect() for _ in range(count)]
        for peer in peers:
            bench.reactor.subscribe(peer.conn, CHANNEL)
        yield bench, peers


def test_a_flush_ends_what_is_under_way() -> None:
    with crowd(5) as (bench, peers):
        assert bench.reactor.publish(CHANNEL, [b"1"]) == 5
        assert bench.count("now_walks") == 1
        assert bench.count("deliveries") == 0
        assert served(bench, peers) == [[b"1"]] * 5
        assert bench.count("now_walks") == 0
        assert bench.count("deliveries") == 5
        assert bench.held()["outbox"] == 0


def test_a_small_channel_is_served_at_once_and_does_not_wait() -> None:
    with crowd(5, Settings(walk_at_once=4)) as (bench, peers):
        bench.reactor.publish(CHANNEL, [b"large"])
        bench.reactor.subscribe(peers[0].conn, b"small")
        bench.reactor.publish(b"small", [b"small"])
        assert (bench.count("now_walks"), bench.count("deliveries")) == (1, 1)
        assert served(bench, peers) == [[b"small", b"large"], *[[b"large"]] * 4]


def test_who_subscribes_later_does_not_get_it_and_the_next_one_waits_behind() -> None:
    with crowd(3) as (bench, peers):
        bench.reactor.publish(CHANNEL, [b"1"])
        assert step_walks(bench.reactor, 1)
        late = bench.connect()
        bench.reactor.subscribe(late.conn, CHANNEL)
        bench.reactor.publish(CHANNEL, [b"2"])
        assert served(bench, [*peers, late]) == [[b"1", b"2"]] * 3 + [[b"2"]]


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("leaver", range(5))
def test_whoever_leaves_whenever_all_others_are_served_once(steps: int, leaver: int) -> None:
    with crowd(5) as (bench, peers):
        bench.reactor.publish(CHANNEL, [b"1"])
        bench.reactor.publish(CHANNEL, [b"2"])
        for _ in range(steps):
            step_walks(bench.reactor, 1)
        bench.reactor.unsubscribe(peers[leaver].conn, CHANNEL)
        heard = served(bench, peers)
        assert heard.pop(leaver) in ([], [b"1", b"2"])  # those at the end are served first, with both
        assert heard == [[b"1", b"2"]] * 4


def test_the_last_who_leaves_ends_the_channel_when_nothing_is_under_way() -> None:
    with crowd(2, Settings(walk_at_once=0, report_vacated=True)) as (bench, peers):
        bench.reactor.publish(CHANNEL, [b"1"])
        for peer in peers:
            bench.reactor.unsubscribe(peer.conn, CHANNEL)
        assert bench.reactor.take_vacated(10) == [CHANNEL]
        bench.turn()
        assert bench.count("now_walks") == bench.count("now_channels") == 0


def test_more_than_fit_are_walked_at_once_in_order() -> None:
    with crowd(3) as (bench, peers):
        for number in range(200):
            bench.reactor.publish(CHANNEL, [b"%d" % number])
            assert bench.count("now_walks") <= 64
        assert bench.count("deliveries") == 3 * (200 - 64)
        assert served(bench, peers) == [[b"%d" % number for number in range(200)]] * 3


def test_an_excluded_connection_stays_excluded() -> None:
    with crowd(3) as (bench, peers):
        bench.reactor.publish(CHANNEL, [b"1"], exclude=peers[1].conn)
        assert served(bench, peers) == [[b"1"], [], [b"1"]]


def test_a_reactor_that_ends_meanwhile_gives_everything_back() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reactor = Reactor(STEPS, now_ms=0)
        handles = open_slots(reactor, [ours.fileno()], 4, now_ms=0)
        for handle in handles:
            reactor.subscribe(handle, CHANNEL)
        reactor.publish(CHANNEL, [b"1" * 1_000])
        assert step_walks(reactor, 2)
        let_go(reactor, handles)
        reactor.shutdown()
        assert sum(reactor.bytes_held().values()) == 0


class ComingAndGoing(RuleBasedStateMachine):
    """Against a list of who is owed what: all that was published since they came, until they leave."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.published = 0

    @initialize(count=st.integers(1, 9))
    def begin(self, count: int) -> None:
        self.bench, self.peers = self.stack.enter_context(crowd(count))
        self.since: list[int | None] = [0] * count
        self.not_theirs: list[set[int]] = [set() for _ in self.peers]

    @rule(most=st.integers(1, 4))
    def step(self, most: int) -> None:
        step_walks(self.bench.reactor, most)

    @rule()
    def publish(self) -> None:
        self.published += 1
        assert self.bench.reactor.publish(CHANNEL, [b"%d" % self.published]) == sum(
            since is not None for since in self.since
        )
        for number, since in enumerate(self.since):
            if since is None:
                self.not_theirs[number].add(self.published)

    @rule(place=st.integers(0, 8))
    def leave(self, place: int) -> None:
        number = place % len(self.peers)
        if self.since[number] is not None:
            self.bench.reactor.unsubscribe(self.peers[number].conn, CHANNEL)
            self.since[number] = None

    @rule(place=st.integers(0, 8))
    def come(self, place: int) -> None:
        number = place % len(self.peers)
        if self.since[number] is None:
            self.bench.reactor.subscribe(self.peers[number].conn, CHANNEL)
            self.since[number] = self.published

    def teardown(self) -> None:
        if self.published:
            for number, messages in enumerate(served(self.bench, self.peers)):
                heard, since = [int(message) for message in messages], self.since[number]
                assert heard == sorted(set(heard)), "once each, in order"
                assert self.not_theirs[number].isdisjoint(heard)
                if since is not None:
                    assert set(range(since + 1, self.published + 1)) <= set(heard)
        self.stack.close()


TestComingAndGoing = ComingAndGoing.TestCase
TestComingAndGoing.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)


# --- more slots than descriptors ----------------------------------------------------------------------


def test_slots_that_share_sinks_are_served_like_any_others() -> None:
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with receiver, sender:
        sender.setblocking(False)
        reactor = Reactor(Settings(), now_ms=0)
        handles = open_slots(reactor, [sender.fileno()], 50, now_ms=0)
        assert len(set(handles)) == hear_all(reactor) == 50
        for handle in handles:
            assert reactor.subscribe(handle, CHANNEL)
        assert reactor.publish(CHANNEL, [b"x"]) == 50
        for _ in range(50):
            reactor.flush(0)
            assert receiver.recv(100) == b"\x81\x01x"
        let_go(reactor, handles)
        reactor.shutdown()
        sender.send(b"still open")
