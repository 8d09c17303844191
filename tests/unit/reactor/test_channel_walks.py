"""Check publications to large channels, which are queued in steps while subscribers come and go."""

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
    """Finish all walks; return the payloads that each peer received."""
    bench.turn()
    return [[frame.payload for frame in peer.frames()] for peer in peers]


@contextmanager
def subscribed_peers(count: int, settings: Settings = STEPS) -> Iterator[tuple[Rig, list[Peer]]]:
    with rig(settings) as bench:
        peers = [bench.connect() for _ in range(count)]
        for peer in peers:
            bench.reactor.subscribe(peer.conn, CHANNEL)
        yield bench, peers


def test_flush_completes_a_walk_that_is_in_progress() -> None:
    with subscribed_peers(5) as (bench, peers):
        assert bench.reactor.publish(CHANNEL, [b"1"]) == 5
        assert bench.count("now_walks") == 1
        assert bench.count("deliveries") == 0
        assert served(bench, peers) == [[b"1"]] * 5
        assert bench.count("now_walks") == 0
        assert bench.count("deliveries") == 5
        assert bench.held()["outbox"] == 0


def test_publication_to_a_small_channel_is_queued_at_once_ahead_of_a_walk() -> None:
    with subscribed_peers(5, Settings(walk_at_once=4)) as (bench, peers):
        bench.reactor.publish(CHANNEL, [b"large"])
        bench.reactor.subscribe(peers[0].conn, b"small")
        bench.reactor.publish(b"small", [b"small"])
        assert (bench.count("now_walks"), bench.count("deliveries")) == (1, 1)
        assert served(bench, peers) == [[b"small", b"large"], *[[b"large"]] * 4]


def test_subscriber_added_during_a_walk_gets_only_later_publications() -> None:
    with subscribed_peers(3) as (bench, peers):
        bench.reactor.publish(CHANNEL, [b"1"])
        assert step_walks(bench.reactor, 1)
        late = bench.connect()
        bench.reactor.subscribe(late.conn, CHANNEL)
        bench.reactor.publish(CHANNEL, [b"2"])
        assert served(bench, [*peers, late]) == [[b"1", b"2"]] * 3 + [[b"2"]]


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("leaver", range(5))
def test_unsubscribing_at_any_step_of_a_walk_serves_all_others_exactly_once(steps: int, leaver: int) -> None:
    with subscribed_peers(5) as (bench, peers):
        bench.reactor.publish(CHANNEL, [b"1"])
        bench.reactor.publish(CHANNEL, [b"2"])
        for _ in range(steps):
            step_walks(bench.reactor, 1)
        bench.reactor.unsubscribe(peers[leaver].conn, CHANNEL)
        received = served(bench, peers)
        assert received.pop(leaver) in ([], [b"1", b"2"])  # the last subscribers are served first
        assert received == [[b"1", b"2"]] * 4


def test_channel_vacated_during_a_walk_is_reported_and_freed_after_the_walk() -> None:
    with subscribed_peers(2, Settings(walk_at_once=0, report_vacated=True)) as (bench, peers):
        bench.reactor.publish(CHANNEL, [b"1"])
        for peer in peers:
            bench.reactor.unsubscribe(peer.conn, CHANNEL)
        assert bench.reactor.take_vacated(10) == [CHANNEL]
        bench.turn()
        assert bench.count("now_walks") == bench.count("now_channels") == 0


def test_publications_beyond_64_walks_complete_the_oldest_at_once_in_order() -> None:
    with subscribed_peers(3) as (bench, peers):
        for number in range(200):
            bench.reactor.publish(CHANNEL, [b"%d" % number])
            assert bench.count("now_walks") <= 64
        assert bench.count("deliveries") == 3 * (200 - 64)
        assert served(bench, peers) == [[b"%d" % number for number in range(200)]] * 3


def test_walk_skips_the_excluded_connection() -> None:
    with subscribed_peers(3) as (bench, peers):
        bench.reactor.publish(CHANNEL, [b"1"], exclude=peers[1].conn)
        assert served(bench, peers) == [[b"1"], [], [b"1"]]


def test_reactor_shut_down_during_a_walk_frees_all_memory() -> None:
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


class SubscribersDuringWalks(RuleBasedStateMachine):
    """Compare deliveries with a list of the publications from the subscription of each peer to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.published = 0

    @initialize(count=st.integers(1, 9))
    def begin(self, count: int) -> None:
        self.bench, self.peers = self.stack.enter_context(subscribed_peers(count))
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
                received, since = [int(message) for message in messages], self.since[number]
                assert received == sorted(set(received)), "each publication once, in order"
                assert self.not_theirs[number].isdisjoint(received)
                if since is not None:
                    assert set(range(since + 1, self.published + 1)) <= set(received)
        self.stack.close()


TestSubscribersDuringWalks = SubscribersDuringWalks.TestCase
TestSubscribersDuringWalks.settings = hypothesis_settings(
    max_examples=150, stateful_step_count=40, deadline=None
)


# --- more slots than descriptors ----------------------------------------------------------------------


def test_50_slots_that_share_one_socket_get_one_publication_each() -> None:
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
