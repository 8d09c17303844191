"""The hub between a real reactor and a bus that confirms when a test says so."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.reactor_rig import Peer, Rig
from wsgate.bus import Publication, Subscriber, encode_publication
from wsgate.bus.subscriber import NAMES_PER_COMMAND
from wsgate.dialects import DIALECTS
from wsgate.payload import BINARY, JSON, TEXT, Payload
from wsgate.reactor import Settings
from wsgate.shard.access import Access
from wsgate.shard.gaps import SETTLE_MS, Gaps
from wsgate.shard.hub import (
    ASKED_LIMIT,
    TAKEN_PER_PASS,
    UNSENT_LIMIT,
    Hub,
    Joined,
)
from wsgate.shard.options import ChannelRules
from wsgate.shard.publication_encoder import PublicationEncoder
from wsgate.shard.unconfirmed import NOTIFIED_PER_PASS, Confirmation

SETTINGS = Settings(
    report_vacated=True,
    variant_opcodes=tuple(dialect.opcode for dialect in DIALECTS),
    max_subscriptions=100_000,
)
SPREAD_MS = 4_000
RULES = {"default": ChannelRules(max_publish_bytes=1_000), "big": ChannelRules(max_publish_bytes=50_000)}


class Bus:
    """What a Redis with one connection does: commands in order, one confirmation for each name.

    Beyond `sent_limit` commands the others wait, and opposite ones cancel each other, as in `Subscriber`.
    """

    def __init__(self) -> None:
        self.is_up = False
        self.commands: list[tuple[str, bytes]] = []  # not confirmed yet
        self.held: set[bytes] = set()
        self.asked: Counter[bytes] = Counter()
        self.most_waiting = 0
        self.sent_limit = 1_000_000
        self.waiting: dict[bytes, str] = {}
        self.waiting_bytes = 0

    @property
    def unsent(self) -> int:
        return len(self.waiting)

    def is_up_for(self, name: bytes) -> bool:
        return self.is_up

    def subscribe(self, names: Iterable[bytes]) -> list[bytes]:
        return self.queue("subscribe", names)

    def unsubscribe(self, names: Iterable[bytes]) -> list[bytes]:
        return self.queue("unsubscribe", names)

    def queue(self, kind: str, names: Iterable[bytes]) -> list[bytes]:
        needless = []
        for name in names if self.is_up else ():
            waiting = self.waiting.get(name)
            if waiting is None:
                self.waiting[name] = kind
                self.send()
                continue
            needless.append(name)
            if waiting != kind:
                del self.waiting[name]
        return needless

    def send(self) -> None:
        while self.waiting and len(self.commands) < self.sent_limit:
            name = next(iter(self.waiting))
            kind = self.waiting.pop(name)
            self.commands.append((kind, name))
            if kind == "subscribe":
                self.asked[name] += 1
                self.most_waiting = max(self.most_waiting, len(self.commands))


class Bench(Rig):
    """A rig with a hub on it."""

    def __init__(self) -> None:
        super().__init__(SETTINGS)
        self.counts: Counter[str] = Counter()
        self.bus = Bus()
        self.time_ms = 0
        self.gaps = Gaps(
            self.reactor,
            PublicationEncoder(512, self._count),
            self._count,
            lambda: SPREAD_MS,
            lambda: self.time_ms,
            variants=len(DIALECTS),
        )
        self.hub = Hub(
            self.reactor, Access(RULES, None), PublicationEncoder(512, self._count), self.gaps, self._count
        )
        self.hub.attach(cast(Subscriber, self.bus))
        self.hub.limit_unconfirmed(SETTINGS.max_subscriptions)
        self.told: list[tuple[bytes, int]] = []

    def _count(self, name: str, amount: int) -> None:
        self.counts[name] += amount

    def waiter(self, name: bytes, is_live: int) -> None:
        self.told.append((name, is_live))

    def join(self, peer: Peer, name: bytes) -> Joined:
        return self.hub.join(peer.conn, name, 0, self.waiter)

    def up(self) -> None:
        self.bus.is_up = True
        self.hub.on_up()

    def down(self) -> None:
        self.bus.is_up = False
        self.bus.commands.clear()
        self.bus.waiting.clear()
        self.bus.held.clear()
        self.hub.on_down()

    def confirm(self, most: int = 1_000_000) -> int:
        """At most so many commands are carried out and confirmed, in passes of 256; how many were."""
        done = 0
        while done < most and self.bus.commands:
            for _ in range(min(256, most - done, len(self.bus.commands))):
                kind, name = self.bus.commands.pop(0)
                self.bus.send()
                done += 1
                if kind == "unsubscribe":
                    self.bus.held.discard(name)
                    continue
                self.bus.held.add(name)
                while not self.hub.on_subscribed(name):
                    self.hub.resubscribe()
            self.hub.resubscribe()
        return done

    def texts(self, peer: Peer) -> list[bytes]:
        """The publications a peer got."""
        self.turn()
        return [bytes(frame.payload) for frame in peer.frames() if frame.opcode in (1, 2)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def live(bench: Bench) -> Bench:
    bench.up()
    return bench


# --- confirmations ------------------------------------------------------------------------------------


def test_the_first_subscriber_waits_for_the_bus_and_the_next_is_live_at_once(live: Bench) -> None:
    first, second = live.connect(), live.connect()
    assert live.join(first, b"news") is Joined.WAITS
    assert live.join(second, b"news") is Joined.WAITS
    assert live.told == [] and live.hub.pending == 1
    live.confirm()
    assert live.told == [(b"news", True)] * 2 and live.hub.pending == 0
    assert live.join(live.connect(), b"news") is Joined.LIVE
    assert live.join(first, b"news") is Joined.ALREADY
    assert live.bus.asked == {b"news": 1}


def test_who_is_gone_and_who_has_too_many_joins_nothing() -> None:
    bench = Bench()
    bench.up()
    peer = bench.connect()
    bench.reactor.abort(peer.conn)
    assert bench.join(peer, b"news") is Joined.GONE
    bench.turn()
    bench.close()
    with_limit = Rig(Settings(report_vacated=True, max_subscriptions=1))

    def count(name: str, amount: int) -> None:
        pass

    forms = PublicationEncoder(512, count)
    gaps = Gaps(with_limit.reactor, forms, count, lambda: 1, lambda: 0, variants=1)
    hub = Hub(with_limit.reactor, Access(RULES, None), forms, gaps, count)
    hub.attach(cast(Subscriber, Bus()))
    peer = with_limit.connect()
    assert hub.join(peer.conn, b"a", 0, lambda name, is_live: None) is Joined.WAITS
    assert hub.join(peer.conn, b"b", 0, lambda name, is_live: None) is Joined.TOO_MANY
    with_limit.close()


def test_after_a_quick_leave_and_join_the_first_answer_is_the_first_ones(live: Bench) -> None:
    peer = live.connect()
    assert live.join(peer, b"news") is Joined.WAITS
    assert live.hub.leave(peer.conn, b"news")
    live.hub.tidy()
    assert live.join(peer, b"news") is Joined.WAITS
    assert [kind for kind, _ in live.bus.commands] == ["subscribe", "unsubscribe", "subscribe"]
    live.confirm(1)  # of the subscription that was given up
    assert live.told == []
    live.confirm(1)
    assert live.told == [] and live.bus.held == set()
    live.confirm(1)
    assert live.told == [(b"news", True)] and live.bus.held == {b"news"}


def test_a_leave_that_was_not_told_yet_is_taken_back(live: Bench) -> None:
    first, second = live.connect(), live.connect()
    live.join(first, b"news")
    live.confirm()
    live.hub.leave(first.conn, b"news")
    assert live.join(second, b"news") is Joined.LIVE  # the bus still has it
    live.hub.tidy()
    assert not live.bus.commands
    assert live.bus.held == {b"news"} and live.bus.asked == {b"news": 1}


def test_channels_nobody_holds_any_more_are_given_up_in_parts(live: Bench) -> None:
    peer = live.connect()
    names = [b"%d" % number for number in range(NAMES_PER_COMMAND * 2 + 5)]
    for name in names:
        live.join(peer, name)
    live.confirm()
    live.reactor.abort(peer.conn)
    live.turn()
    parts: list[int] = []
    while live.hub.tidy():
        parts.append(len(live.bus.commands) - sum(parts))
    assert parts == [NAMES_PER_COMMAND] * 2
    live.confirm()
    assert live.bus.held == set()


def test_a_confirmation_nobody_asked_for_confirms_nothing(bench: Bench) -> None:
    peer = bench.connect()
    assert bench.join(peer, b"news") is Joined.WAITS  # the bus is away
    bench.bus.is_up = True
    assert bench.hub.on_subscribed(b"news") is True
    assert bench.told == []


def test_who_leaves_or_is_gone_is_told_nothing_and_costs_nothing(bench: Bench) -> None:
    stays = bench.connect()
    bench.join(stays, b"news")
    for _ in range(50):
        left, gone = bench.connect(), bench.connect()
        for peer in (left, gone):
            assert bench.join(peer, b"news") is Joined.WAITS
            bench.hub.wait(peer.conn, b"news", bench.waiter)
        bench.hub.leave(left.conn, b"news")
        bench.hub.forget(gone.conn)
    waiters = bench.hub._waiters
    assert len(waiters._by_connection) == len(waiters) == waiters.count(b"news") == 1
    bench.up()
    bench.confirm()
    assert bench.told == [(b"news", True)]
    assert not waiters and not waiters._by_connection


def test_many_waiters_are_told_a_part_per_pass_and_nobody_twice(bench: Bench) -> None:
    peers = [bench.connect() for _ in range(NOTIFIED_PER_PASS + 100)]
    for peer in peers:
        bench.join(peer, b"news")
    bench.up()
    assert bench.bus.commands == [("subscribe", b"news")]
    assert bench.hub.on_subscribed(b"news") is False
    assert len(bench.told) == NOTIFIED_PER_PASS
    late = bench.connect()
    assert bench.join(late, b"news") is Joined.WAITS  # not before those who were here first
    assert bench.hub.on_subscribed(b"news") is True
    assert bench.told == [(b"news", True)] * (len(peers) + 1)
    assert bench.hub.on_subscribed(b"news") is True
    assert len(bench.told) == len(peers) + 1


# --- a bus that does not answer -----------------------------------------------------------------------


def test_connection_that_leaves_every_name_unanswered_is_refused_at_its_limit(live: Bench) -> None:
    live.hub.limit_unconfirmed(64)
    loud, quiet = live.connect(), live.connect()
    outcomes = Counter[Joined]()
    for number in range(1_000):
        name = b"%d" % number
        outcomes[live.join(loud, name)] += 1
        live.hub.leave(loud.conn, name)
        live.hub.tidy()
    assert outcomes == {Joined.WAITS: 64, Joined.BEHIND: 936}
    assert live.hub.pending == 64
    assert live.join(quiet, b"news") is Joined.WAITS  # the limit is of one connection
    live.confirm()
    assert live.hub.pending == 0 and not live.hub._charges
    assert live.join(loud, b"again") is Joined.WAITS
    assert live.bus.held == {b"news"}


def test_name_left_before_it_was_sent_is_not_sent_and_does_not_count(live: Bench) -> None:
    live.bus.sent_limit = 0
    peer = live.connect()
    for number in range(1_000):
        assert live.join(peer, b"%d" % number) is Joined.WAITS
        live.hub.leave(peer.conn, b"%d" % number)
        live.hub.tidy()
        assert live.bus.unsent == 0 and live.hub.pending == 0
    assert not live.bus.commands and not live.hub._charges._conns


def test_unsubscribe_that_was_not_sent_is_cancelled_and_the_channel_is_live_at_once(live: Bench) -> None:
    peer = live.connect()
    live.join(peer, b"news")
    live.confirm()
    live.bus.sent_limit = 0
    live.hub.leave(peer.conn, b"news")
    live.hub.tidy()
    assert live.join(peer, b"news") is Joined.LIVE
    live.bus.sent_limit = 10
    live.bus.send()
    live.confirm()
    assert live.bus.held == {b"news"} and live.bus.asked == {b"news": 1}


def test_shard_with_too_many_unsent_names_takes_no_new_ones_but_inboxes(live: Bench) -> None:
    live.bus.sent_limit = 0
    live.bus.waiting = {b"%d" % number: "subscribe" for number in range(UNSENT_LIMIT)}
    peer = live.connect()
    assert live.join(peer, b"news") is Joined.BEHIND
    assert live.join(peer, b"@ann") is Joined.WAITS


def test_bus_without_memory_for_names_is_asked_for_no_new_ones_but_inboxes(live: Bench) -> None:
    live.hub.takes_name = lambda: False
    peer = live.connect()
    assert live.join(peer, b"news") is Joined.FULL
    assert not live.reactor.subscribers(b"news")
    assert live.join(peer, b"@ann") is Joined.WAITS
    live.hub.takes_name = lambda: True
    live.join(peer, b"news")
    live.hub.takes_name = lambda: False
    assert live.join(live.connect(), b"news") is Joined.WAITS  # the name costs the bus nothing more


# --- the bus goes and comes ---------------------------------------------------------------------------


def test_while_the_bus_is_away_one_waits_and_is_told_when_it_is_back(bench: Bench) -> None:
    peer = bench.connect()
    assert not bench.hub.is_live
    assert bench.join(peer, b"news") is Joined.WAITS
    bench.up()
    assert bench.told == []
    bench.confirm()
    assert bench.told == [(b"news", True)] and bench.bus.held == {b"news"}


def test_who_waited_when_the_bus_was_lost_is_told_so_and_may_wait_again(live: Bench) -> None:
    peer = live.connect()
    live.join(peer, b"news")
    live.down()
    assert live.told == [(b"news", False)] and live.hub.pending == 0
    assert not live.hub.is_live
    live.hub.wait(peer.conn, b"news", live.waiter)
    live.up()
    live.confirm()
    assert live.told == [(b"news", False), (b"news", True)]


def test_many_who_lose_the_bus_are_told_a_part_per_pass(live: Bench) -> None:
    class Again:
        """Waits anew whenever it is told of a loss, as a welcome does."""

        def __init__(self, conn: int) -> None:
            self.conn, self.told = conn, 0

        def __call__(self, name: bytes, is_live: int) -> None:
            self.told += 1
            if not is_live:
                live.hub.wait(self.conn, name, self)

    waiters = [Again(live.connect().conn) for _ in range(NOTIFIED_PER_PASS + 10)]
    for waiter in waiters:
        live.hub.join(waiter.conn, b"news", 0, waiter)
    live.down()
    assert sum(waiter.told for waiter in waiters) == NOTIFIED_PER_PASS
    assert live.hub.tidy() is False
    assert [waiter.told for waiter in waiters] == [1] * len(waiters)
    live.up()
    live.confirm()
    assert [waiter.told for waiter in waiters] == [2] * len(waiters)


def test_who_asks_again_after_the_bus_came_back_is_not_told_of_the_loss_before(live: Bench) -> None:
    """The loss is told in parts; whoever has not been told when the bus is back is subscribed again."""
    peers = [live.connect() for _ in range(3 * NOTIFIED_PER_PASS)]
    for peer in peers:
        assert live.join(peer, b"news") is Joined.WAITS
    live.down()
    assert live.told == [(b"news", False)] * NOTIFIED_PER_PASS
    live.up()
    last = peers[-1]
    assert live.join(last, b"news") is Joined.ALREADY
    assert live.hub.confirm(last.conn, b"news", live.waiter) is Joined.WAITS
    for _ in range(5):
        live.hub.tidy()
    assert live.told.count((b"news", False)) == NOTIFIED_PER_PASS
    live.confirm()
    assert live.told.count((b"news", True)) == 2 * NOTIFIED_PER_PASS + 1
    assert live.hub.pending == 0
    assert not live.hub._waiters and not live.hub._waiters._by_connection


def test_of_two_servers_that_are_lost_the_one_that_is_not_back_is_told_of(live: Bench) -> None:
    peers = [live.connect() for _ in range(4 * NOTIFIED_PER_PASS)]
    for peer in peers:
        live.join(peer, b"a")
        live.join(peer, b"b")
    live.hub.on_down(lambda name: name[:1] == b"a")
    live.hub.on_down(lambda name: name[:1] == b"b")
    live.told.clear()
    live.hub.on_up(lambda name: name[:1] == b"b")
    for _ in range(10):
        live.hub.tidy()
    assert {name for name, is_live in live.told if not is_live} == {b"a"}


def test_subscribing_again_goes_on_without_any_reply_of_the_bus(live: Bench) -> None:
    """None of the first names is of the server that came up, so that nothing is asked and nothing replies."""
    peer = live.connect()
    others = [b"b:%d" % number for number in range(4 * NAMES_PER_COMMAND)]
    for name in others:
        live.join(peer, name)
    live.join(peer, b"a:last")
    live.confirm()
    live.bus.asked.clear()
    lane = lambda name: name[:1] == b"a"  # noqa: E731
    live.hub.on_down(lane)
    live.hub.on_up(lane)
    passes = 0
    while live.hub.tidy():
        passes += 1
        assert passes <= 10
    assert live.bus.asked == {b"a:last": 1}


def test_answers_of_a_lost_connection_do_not_count_for_the_next(live: Bench) -> None:
    peer = live.connect()
    live.join(peer, b"news")
    live.down()
    live.up()
    live.confirm()
    assert live.hub.pending == 0 and live.bus.held == {b"news"}
    assert live.join(live.connect(), b"news") is Joined.LIVE


def test_twenty_thousand_names_are_subscribed_again_in_parts_and_at_the_bus_s_pace(live: Bench) -> None:
    peer = live.connect()
    names = {b"%d" % number for number in range(20_000)}
    for name in names:
        live.join(peer, name)
    live.confirm()
    live.down()
    live.bus.asked.clear()
    live.bus.most_waiting = 0
    live.up()
    assert len(live.bus.commands) == NAMES_PER_COMMAND  # no more in one pass
    live.confirm()
    assert live.bus.held == names
    assert set(live.bus.asked.values()) == {1}
    assert live.bus.most_waiting <= ASKED_LIMIT + NAMES_PER_COMMAND
    assert live.join(live.connect(), b"7") is Joined.LIVE


def test_a_bus_that_confirms_nothing_is_not_asked_without_end(live: Bench) -> None:
    peer = live.connect()
    for number in range(10_000):
        live.join(peer, b"%d" % number)
    live.down()
    live.up()
    for _ in range(1_000):
        live.hub.resubscribe()  # publications come and make passes
    assert len(live.bus.commands) <= ASKED_LIMIT + NAMES_PER_COMMAND


def test_who_joins_while_all_is_subscribed_again_is_asked_for_at_once(live: Bench) -> None:
    peer, other = live.connect(), live.connect()
    for number in range(2_000):
        live.join(peer, b"%d" % number)
    live.confirm()
    live.down()
    live.up()
    live.told.clear()
    assert live.join(other, b"1999") is Joined.WAITS  # its turn has not come yet
    assert live.join(other, b"fresh") is Joined.WAITS
    live.confirm()
    assert sorted(live.told) == [(b"1999", True), (b"fresh", True)]
    assert live.bus.held == {b"fresh", *(b"%d" % number for number in range(2_000))}


# --- what only a cluster does -------------------------------------------------------------------------


def is_on_a(name: bytes) -> bool:
    return name.startswith(b"a")


def test_a_server_that_is_lost_takes_only_its_own_channels_along(live: Bench) -> None:
    peer, late = live.connect(), live.connect()
    for name in (b"a1", b"b1"):
        live.join(peer, name)
    live.confirm()
    live.join(peer, b"a2")
    live.join(peer, b"b2")
    live.told.clear()
    live.bus.commands = [each for each in live.bus.commands if not is_on_a(each[1])]
    live.hub.on_down(is_on_a)
    assert live.told == [(b"a2", False)], "it waited for a server that is gone"
    assert live.join(late, b"b1") is Joined.LIVE
    live.confirm()
    assert live.told == [(b"a2", False), (b"b2", True)]
    live.bus.asked.clear()
    live.hub.on_up(is_on_a)
    assert live.join(late, b"a1") is Joined.WAITS
    assert set(live.bus.asked) == {b"a1", b"a2"}
    live.confirm()
    assert live.told[-1] == (b"a1", True)
    assert live.hub.pending == 0


def test_two_servers_that_come_up_together_are_both_served(live: Bench) -> None:
    peer = live.connect()
    names = [b"%s%d" % (server, number) for server in (b"a", b"b") for number in range(700)]
    for name in names:
        live.join(peer, name)
    live.confirm()
    for covers in (is_on_a, lambda name: not is_on_a(name)):
        live.hub.on_down(covers)
    live.bus.held.clear()
    live.hub.on_up(is_on_a)
    live.hub.on_up(lambda name: not is_on_a(name))
    live.confirm()
    assert live.bus.held == set(names)
    assert live.hub.pending == 0


def test_a_channel_whose_slot_moved_is_live_again_when_it_was_asked_for_anew(live: Bench) -> None:
    peer, late, gone = live.connect(), live.connect(), live.connect()
    for each, name in ((peer, b"moved"), (gone, b"left"), (peer, b"asked")):
        live.join(each, name)
    live.bus.commands.pop()  # the SUBSCRIBE of `asked` is refused: MOVED
    live.confirm()
    live.hub.on_lost(b"moved", was_asked=False)
    live.hub.on_lost(b"left", was_asked=False)
    live.hub.on_lost(b"asked", was_asked=True)
    live.hub.on_lost(b"nobody's", was_asked=False)
    assert live.hub.pending == 3
    assert live.join(late, b"moved") is Joined.WAITS, "it is not heard now"
    live.hub.leave(gone.conn, b"left")
    live.hub.tidy()
    live.bus.commands.clear()
    live.bus.asked.clear()
    live.hub.on_moved()
    assert live.bus.asked == {b"moved": 1, b"asked": 1}
    live.told.clear()
    live.confirm()
    assert set(live.told) == {(b"moved", True), (b"asked", True)}
    assert live.hub.pending == 0


def test_forbidden_channel_is_refused_for_good_and_the_others_are_confirmed(live: Bench) -> None:
    first, second = live.connect(), live.connect()
    live.join(first, b"secret")
    live.join(second, b"secret")
    live.join(second, b"open")
    live.bus.commands.remove(("subscribe", b"secret"))  # answered with NOPERM
    live.hub.on_refused(b"secret")
    assert live.join(first, b"secret") is Joined.REFUSED
    live.confirm()
    while live.hub.tidy():
        pass
    assert sorted(live.told) == [
        (b"open", Confirmation.LIVE),
        (b"secret", Confirmation.REFUSED),
        (b"secret", Confirmation.REFUSED),
    ]
    assert live.reactor.subscribers(b"secret") == 0 and live.reactor.subscribers(b"open") == 1
    assert live.hub.pending == 0


def test_channel_that_is_forbidden_later_is_taken_from_all_that_hold_it(live: Bench) -> None:
    peers = [live.connect() for _ in range(TAKEN_PER_PASS + 10)]
    for peer in peers:
        live.join(peer, b"news")
    live.confirm()
    live.down()
    live.up()
    taken: list[tuple[int, bytes]] = []
    live.hub.on_taken = lambda conn, name: taken.append((conn, name))
    live.bus.commands.remove(("subscribe", b"news"))
    live.hub.on_refused(b"news")
    assert live.hub.tidy(), "a part in each pass"
    assert 0 < len(taken) <= TAKEN_PER_PASS
    while live.hub.tidy():
        pass
    assert sorted(taken) == sorted((peer.conn, b"news") for peer in peers)
    assert live.reactor.subscribers(b"news") == 0
    live.bus.asked.clear()
    assert live.join(peers[0], b"news") is Joined.WAITS, "it may be allowed again"
    assert live.bus.asked == {b"news": 1}


def test_later_subscribe_of_a_refused_name_decides(live: Bench) -> None:
    peer = live.connect()
    live.join(peer, b"news")
    live.hub.leave(peer.conn, b"news")
    live.hub.tidy()
    live.join(peer, b"news")
    live.bus.commands.remove(("subscribe", b"news"))  # the first of the two
    live.hub.on_refused(b"news")
    live.confirm()
    assert live.told == [(b"news", Confirmation.LIVE)]


def test_a_channel_whose_slot_nobody_serves_is_asked_for_when_somebody_does(live: Bench) -> None:
    peer = live.connect()
    live.join(peer, b"homeless")
    live.confirm()
    live.hub.on_lost(b"homeless", was_asked=False)
    live.bus.is_up = False
    live.hub.on_moved()
    live.bus.asked.clear()
    live.bus.is_up = True
    live.hub.on_moved()
    assert live.bus.asked == {b"homeless": 1}
    live.confirm()
    assert live.hub.pending == 0


def test_a_recovery_in_place_is_live_only_when_it_is_heard(live: Bench) -> None:
    peer = live.connect()
    live.join(peer, b"news")
    assert live.hub.confirm(peer.conn, b"news", live.waiter) is Joined.WAITS
    live.confirm()
    assert live.told == [(b"news", True)] * 2
    assert live.hub.confirm(peer.conn, b"news", live.waiter) is Joined.LIVE
    live.down()
    assert live.hub.confirm(peer.conn, b"news", live.waiter) is Joined.WAITS


def test_name_that_was_left_before_a_break_is_asked_for_when_it_is_joined_after_it(live: Bench) -> None:
    """The new connection has no such name, so nothing that waits to leave it may cancel the SUBSCRIBE."""
    live.bus.sent_limit = 1
    peer = live.connect()
    for name in (b"a", b"b"):
        live.join(peer, name)
    live.confirm()
    live.hub.forget(peer.conn)
    live.reactor.abort(peer.conn)
    live.turn()
    live.down()
    live.up()
    again = live.connect()
    for name in (b"a", b"b"):
        assert live.join(again, name) is Joined.WAITS
    live.confirm()
    assert live.bus.held == {b"a", b"b"}


def told_once(bench: Bench, waiting: set[tuple[int, bytes]], conn: int, name: bytes, is_live: int) -> None:
    """Once for each wait, never for who has left; live only when the bus has it."""
    assert (conn, name) in waiting
    assert not is_live or name in bench.bus.held
    waiting.discard((conn, name))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["join", "leave"]), st.integers(0, 2), st.integers(0, 3)),
            st.tuples(st.sampled_from(["confirm", "tidy", "flap", "end"]), st.integers(0, 5), st.just(0)),
        ),
        max_size=60,
    ),
    st.sampled_from([1, 2, 5, 1_000]),
)
def test_whatever_happens_all_that_is_held_is_heard_in_the_end(
    steps: list[tuple[str, int, int]], sent_limit: int
) -> None:
    bench = Bench()
    bench.bus.sent_limit = sent_limit
    bench.up()
    peers = [bench.connect() for _ in range(3)]
    names = [b"a", b"b", b"c", b"d"]
    waiting: set[tuple[int, bytes]] = set()
    for what, which, channel in steps:
        name = names[channel]
        if what == "join":
            peer = peers[which]
            joined = bench.hub.join(peer.conn, name, 0, partial(told_once, bench, waiting, peer.conn))
            if joined is Joined.WAITS:
                waiting.add((peer.conn, name))
            if joined is Joined.LIVE:
                assert name in bench.bus.held
        elif what == "leave":
            bench.hub.leave(peers[which].conn, name)
            waiting.discard((peers[which].conn, name))
        elif what == "confirm":
            bench.confirm(which)
        elif what == "tidy":
            bench.hub.tidy()
        elif what == "flap":
            bench.down()
            if which:
                bench.up()
        else:
            bench.hub.forget(peers[which % 3].conn)
            waiting -= {(peers[which % 3].conn, name) for name in names}
            bench.reactor.abort(peers[which % 3].conn)
            bench.turn()
            peers[which % 3] = bench.connect()
    if not bench.bus.is_up:
        bench.up()
    bench.hub.tidy()
    bench.confirm()
    held = {name for name in names if bench.reactor.subscribers(name)}
    assert bench.bus.held == held
    assert not waiting and bench.hub.pending == 0
    assert not bench.hub._charges
    bench.close()


# --- publications -------------------------------------------------------------------------------------


def heard(bench: Bench, name: bytes = b"news", *, variant: int = 0) -> Peer:
    """A peer that is subscribed."""
    peer = bench.connect(variant=variant)
    bench.join(peer, name)
    bench.confirm()
    return peer


def test_one_publication_reaches_every_dialect_in_its_own_form(live: Bench) -> None:
    peers = [heard(live, variant=dialect.variant) for dialect in DIALECTS]
    live.hub.on_message(b"news", b'{"a": 1}')
    texts = [live.texts(peer) for peer in peers]
    assert texts[0] == [b'{"op":"msg","ch":"news","data":{"a": 1}}']
    assert [msgspec.msgpack.decode(each) for each in texts[1]] == [
        {"op": "msg", "ch": "news", "data": {"a": 1}}
    ]
    assert live.counts == {"publications_received": 1}


def test_an_inbox_is_shown_to_its_owner_as_me(live: Bench) -> None:
    peer = heard(live, b"@42")
    live.hub.on_message(b"@42", b"1")
    assert [json.loads(text)["ch"] for text in live.texts(peer)] == ["@me"]


def test_who_published_may_be_left_out(live: Bench) -> None:
    own, other = heard(live), heard(live)
    publication = Publication(Payload(JSON, b"1"), user="u", exclude=live.reactor.public_id(own.conn))
    live.hub.on_message(b"news", encode_publication(publication))
    assert live.texts(own) == []
    assert live.texts(other) == [b'{"op":"msg","ch":"news","data":1,"user":"u"}']
    foreign = Publication(Payload(JSON, b"2"), exclude=live.reactor.public_id(own.conn) ^ 1)
    live.hub.on_message(b"news", encode_publication(foreign))
    assert len(live.texts(own)) == len(live.texts(other)) == 1


BROKEN_ENVELOPES = [
    b"\xc1",
    b"\xc1\x02\x81\xa4data\xc4\x011",
    b"\xc1\x01",
    b"\xc1\x01\x80",
    b"\xc1\x01\x90",
    b"\xc1\x01\x81\xa4data\xa11",
    b"\xc1\x01\x81\xa4data\xc4\xff",
    b"\xc1\x01\x82\xa4data\xc4\x011\xa8encoding\xa3xml",
    b"\xc1\x01\x81\xa4data\xc4\x02{]",
    b"\xc1\x01" + b"\x91" * 5_000,
    b"\xc1\x01\xdf\xff\xff\xff\xff",
    b"\xc1\x01\xdf\x00\x0f\x42\x40" + b"\xc0\xc0" * 1_000,
    b"\xc1\x01\x82\xa4data\xc4\x011\xa7exclude\xff",
]


@pytest.mark.parametrize("data", BROKEN_ENVELOPES)
def test_a_broken_envelope_is_dropped_and_counted_and_a_good_one_follows_s24(
    live: Bench, data: bytes
) -> None:
    peer = heard(live)
    before = live.held()
    live.hub.on_message(b"news", data)
    assert live.texts(peer) == []
    assert live.counts == {"publications_received": 1, "publications_malformed": 1}
    assert live.held() == before
    live.hub.on_message(b"news", b"1")
    assert live.texts(peer) == [b'{"op":"msg","ch":"news","data":1}']


@pytest.mark.parametrize("data", [b"\xff\xfe", b'{"a":', b"", b"\x00" * 999, b"[" * 999, b"1e999", b"NaN"])
def test_garbage_has_a_defined_form_in_every_dialect_s24(live: Bench, data: bytes) -> None:
    peers = [heard(live, variant=dialect.variant) for dialect in DIALECTS]
    live.hub.on_message(b"news", data)
    assert [len(live.texts(peer)) for peer in peers] == [1, 1]
    assert live.counts["publications_malformed"] == 0


def test_what_is_larger_than_its_channel_takes_is_dropped_and_its_subscribers_are_told(live: Bench) -> None:
    small, big = heard(live), heard(live, b"big:1")
    for name, size in [(b"news", 1_000), (b"news", 1_001), (b"big:1", 50_000), (b"big:1", 50_001)]:
        live.hub.on_message(name, b"x" * size)
    live.hub.on_message(b"news", None)  # larger than the bus reader takes at all
    inside = Publication(Payload(BINARY, bytes(1_001)))
    live.hub.on_message(b"news", encode_publication(inside))
    fits = Publication(Payload(TEXT, b"x" * 1_000), user="u" * 128)
    live.hub.on_message(b"news", encode_publication(fits))
    received = [[json.loads(text) for text in live.texts(peer)] for peer in (small, big)]
    assert [[each["op"] for each in of] for of in received] == [["msg", "gap", "msg"], ["msg", "gap"]]
    [gap] = [each for each in received[0] if each["op"] == "gap"]
    assert gap == {"op": "gap", "ch": "news", "reason": "too_large", "retry_ms": gap["retry_ms"]}
    assert live.counts == {"publications_received": 7, "publications_too_large": 4, "gaps_too_large": 2}


def test_what_the_backlog_dropped_is_told_to_the_subscribers_of_its_channel(live: Bench) -> None:
    here, other = heard(live), heard(live, b"other")
    live.hub.on_dropped(b"news")
    live.hub.on_dropped(b"nobody is here")
    live.hub.on_message(b"news", b"1")
    assert [json.loads(text)["op"] for text in live.texts(here)] == ["gap", "msg"]
    assert live.texts(other) == []
    assert live.counts["gaps_slow"] == 1


def test_what_the_backlog_dropped_of_all_channels_is_told_to_all_connections(live: Bench) -> None:
    peers = [heard(live, name) for name in (b"a", b"b", b"c")]
    live.hub.on_dropped(None)
    while live.hub.has_gaps:
        live.hub.gap_step()
    live.time_ms += SETTLE_MS
    gaps = [gaps_of(live, peer) for peer in peers]
    assert [[(gap.get("ch"), gap["reason"]) for gap in each] for each in gaps] == [[(None, "slow")]] * 3


def test_what_was_published_before_a_channel_had_subscribers_is_not_sent_to_them(live: Bench) -> None:
    """It waited in the backlog while the last subscriber left and another one came."""
    peer = live.connect()
    live.join(peer, b"news")
    live.hub.on_message(b"news", b"1")
    live.confirm()
    live.hub.on_message(b"news", b"2")
    assert live.texts(peer) == [b'{"op":"msg","ch":"news","data":2}']
    # Asked once more while somebody is live: who is live goes on, whatever others wait for.
    live.hub.resubscribe()
    live.hub._unconfirmed[b"news"] = 1
    live.hub.on_message(b"news", b"3")
    assert live.texts(peer) == [b'{"op":"msg","ch":"news","data":3}']


def test_what_nobody_here_listens_to_is_not_even_looked_at(live: Bench) -> None:
    for name in (b"news", b"\xff", b"", b"wsgate:probe:n:0"):
        live.hub.on_message(name, b"\xc1")
        live.hub.on_message(name, None)
    assert live.counts == {"publications_unheard": 8}


# --- what is lost is told -----------------------------------------------------------------------------


def gaps_of(bench: Bench, peer: Peer) -> list[dict[str, object]]:
    """The gaps that a peer received, after what is left to do is done."""
    while bench.hub.tidy():
        bench.turn()
    return [each for each in map(json.loads, bench.texts(peer)) if each["op"] == "gap"]


def test_after_a_break_each_subscriber_receives_one_gap_when_all_is_subscribed_again(live: Bench) -> None:
    peers = [heard(live), heard(live)]
    for name in (b"a", b"b"):
        for peer in peers:
            live.join(peer, name)
    live.confirm()
    idle = live.connect()
    live.down()
    assert gaps_of(live, peers[0]) == []
    live.up()
    live.confirm(2)
    assert gaps_of(live, peers[0]) == [], "one channel is still lost"
    live.confirm()
    received = [gaps_of(live, peer) for peer in (*peers, idle)]
    assert [[(each["reason"], "ch" in each) for each in of] for of in received] == [
        [("bus", False)],
        [("bus", False)],
        [],
    ]


def test_a_subscription_that_never_was_confirmed_has_missed_nothing(bench: Bench) -> None:
    peer = bench.connect()
    assert bench.join(peer, b"a") is Joined.WAITS
    bench.up()  # for the first time
    bench.confirm()
    assert gaps_of(bench, peer) == []
    bench.down()
    late = bench.connect()
    assert bench.join(late, b"b") is Joined.WAITS
    bench.up()
    bench.confirm()
    assert (len(gaps_of(bench, peer)), gaps_of(bench, late)) == (1, [])


def test_a_slot_that_moved_is_told_to_those_of_its_channels_alone(live: Bench) -> None:
    moved, stays = heard(live, b"a"), heard(live, b"b")
    live.hub.on_lost(b"a", was_asked=False)
    live.hub.on_moved()
    live.confirm()
    assert (len(gaps_of(live, moved)), gaps_of(live, stays)) == (1, [])


def test_a_subscription_that_is_refused_on_the_way_is_told_when_it_succeeds(live: Bench) -> None:
    peer = heard(live, b"a")
    live.down()
    live.up()
    live.bus.commands.clear()
    live.hub.on_lost(b"a", was_asked=True)  # MOVED, TRYAGAIN or CLUSTERDOWN
    assert gaps_of(live, peer) == []
    live.hub.on_moved()
    live.confirm()
    assert len(gaps_of(live, peer)) == 1


def test_a_break_before_everything_is_subscribed_again_is_told_once_and_after_it(live: Bench) -> None:
    peer = heard(live, b"a")
    live.join(peer, b"b")
    live.confirm()
    for _ in range(5):
        live.down()
        live.up()
        live.confirm(1)
        assert gaps_of(live, peer) == []
    live.confirm()
    assert len(gaps_of(live, peer)) == 1


def test_a_publication_that_cannot_be_handed_on_is_told(live: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = heard(live, b"a")

    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(live.hub, "_deliver", fail)
    with pytest.raises(MemoryError):
        live.hub.on_message(b"a", b"1")
    live.time_ms += SETTLE_MS
    assert [each["reason"] for each in gaps_of(live, peer)] == ["slow"]
