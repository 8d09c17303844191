"""Check the hub between a real reactor and a bus that confirms when a test lets it."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.reactor_rig import Peer, Rig
from wsgate.bus import Covers, Publication, Subscriber, encode_publication
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
    """Act as a Redis with one connection: commands in order, one confirmation for each name.

    Beyond `sent_limit` commands the others wait, and opposite ones cancel or replace each other, as in
    `Subscriber`.
    """

    def __init__(self) -> None:
        self.is_up = False
        self.lost_servers: list[Covers] = []  # the servers of a cluster that are down
        self.commands: list[tuple[str, bytes]] = []  # not confirmed yet
        self.held: set[bytes] = set()
        self.asked: Counter[bytes] = Counter()
        self.most_waiting = 0
        self.sent_limit = 1_000_000
        self.waiting: dict[bytes, str] = {}
        self.replaceable: set[bytes] = set()  # the waiting ones that are replaced and not cancelled
        self.waiting_bytes = 0

    @property
    def unsent(self) -> int:
        return len(self.waiting)

    def is_up_for(self, name: bytes) -> bool:
        return self.is_up and not any(covers(name) for covers in self.lost_servers)

    def subscribe(self, names: Iterable[bytes], *, may_cancel: bool = True) -> list[bytes]:
        needless = []
        for name in names:
            before, after = self.queue("subscribe", name, may_cancel=may_cancel)
            if before == "subscribe" or (before and not after):
                needless.append(name)
        return needless

    def unsubscribe(self, names: Iterable[bytes], *, may_cancel: bool = True) -> list[bytes]:
        return [
            name for name in names if self.queue("unsubscribe", name, may_cancel=may_cancel)[0] == "subscribe"
        ]

    def queue(self, kind: str, name: bytes, *, may_cancel: bool) -> tuple[str | None, str | None]:
        """Queue a command; return the one that waited before, and the one that waits or is sent now."""
        if not self.is_up_for(name):
            return None, kind
        before = self.waiting.get(name)
        if not may_cancel:
            self.replaceable.add(name)
        if before is not None and before != kind and name not in self.replaceable:
            del self.waiting[name]
            return before, None
        self.waiting[name] = kind
        self.send()
        return before, kind

    def end(self, name: bytes) -> bool:
        """End a subscription, as a server does whose slot moves; return False if there is none."""
        if name not in self.held:
            return False
        self.held.discard(name)
        self.drop_unsubscribe(name)
        return True

    def refuse(self) -> bytes | None:
        """Refuse the oldest command and return its name; None: it is no SUBSCRIBE."""
        if not self.commands or self.commands[0][0] != "subscribe":
            return None
        _, name = self.commands.pop(0)
        self.held.discard(name)  # an earlier subscription ends with the slot or the permission
        self.drop_unsubscribe(name)
        self.send()
        return name

    def drop_unsubscribe(self, name: bytes) -> None:
        """Drop a waiting UNSUBSCRIBE of a name that the bus does not have."""
        if self.waiting.get(name) == "unsubscribe" and name not in [each for _, each in self.commands]:
            del self.waiting[name]
            self.replaceable.discard(name)

    def clear(self, covers: Covers = lambda name: True) -> None:
        """Forget every command and subscription of the covered names, as with a lost connection."""
        self.commands = [each for each in self.commands if not covers(each[1])]
        self.waiting = {name: kind for name, kind in self.waiting.items() if not covers(name)}
        self.replaceable = {name for name in self.replaceable if not covers(name)}
        self.held = {name for name in self.held if not covers(name)}

    def send(self) -> None:
        while self.waiting and len(self.commands) < self.sent_limit:
            name = next(iter(self.waiting))
            kind = self.waiting.pop(name)
            self.replaceable.discard(name)
            self.commands.append((kind, name))
            if kind == "subscribe":
                self.asked[name] += 1
                self.most_waiting = max(self.most_waiting, len(self.commands))


class HubRig(Rig):
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
        self.confirmations: list[tuple[bytes, int]] = []

    def _count(self, name: str, amount: int) -> None:
        self.counts[name] += amount

    def waiter(self, name: bytes, is_live: int) -> None:
        self.confirmations.append((name, is_live))

    def join(self, peer: Peer, name: bytes) -> Joined:
        return self.hub.join(peer.conn, name, 0, self.waiter)

    def up(self) -> None:
        self.bus.is_up = True
        self.hub.on_up()

    def down(self) -> None:
        self.bus.is_up = False
        self.bus.clear()
        self.hub.on_down()

    def confirm(self, most: int = 1_000_000) -> int:
        """Let the bus carry out and confirm commands in passes of 256; return their number."""
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
        """Return the publications that a peer received."""
        self.turn()
        return [bytes(frame.payload) for frame in peer.frames() if frame.opcode in (1, 2)]


@pytest.fixture
def bench() -> Iterator[HubRig]:
    made = HubRig()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def live(bench: HubRig) -> HubRig:
    bench.up()
    return bench


# --- confirmations ------------------------------------------------------------------------------------


def test_first_subscribers_wait_for_the_bus_and_a_later_one_is_live_at_once(live: HubRig) -> None:
    first, second = live.connect(), live.connect()
    assert live.join(first, b"news") is Joined.WAITS
    assert live.join(second, b"news") is Joined.WAITS
    assert live.confirmations == [] and live.hub.pending == 1
    live.confirm()
    assert live.confirmations == [(b"news", True)] * 2 and live.hub.pending == 0
    assert live.join(live.connect(), b"news") is Joined.LIVE
    assert live.join(first, b"news") is Joined.ALREADY
    assert live.bus.asked == {b"news": 1}


def test_join_fails_for_an_ended_connection_and_beyond_the_subscription_limit() -> None:
    bench = HubRig()
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


def test_first_confirmation_after_leave_and_join_belongs_to_the_abandoned_subscribe(live: HubRig) -> None:
    peer = live.connect()
    assert live.join(peer, b"news") is Joined.WAITS
    assert live.hub.leave(peer.conn, b"news")
    live.hub.tidy()
    assert live.join(peer, b"news") is Joined.WAITS
    assert [kind for kind, _ in live.bus.commands] == ["subscribe", "unsubscribe", "subscribe"]
    live.confirm(1)  # the confirmation of the abandoned subscription
    assert live.confirmations == []
    live.confirm(1)
    assert live.confirmations == [] and live.bus.held == set()
    live.confirm(1)
    assert live.confirmations == [(b"news", True)] and live.bus.held == {b"news"}


def test_join_directly_after_a_leave_needs_no_command_to_the_bus(live: HubRig) -> None:
    first, second = live.connect(), live.connect()
    live.join(first, b"news")
    live.confirm()
    live.hub.leave(first.conn, b"news")
    assert live.join(second, b"news") is Joined.LIVE  # the bus still has it
    live.hub.tidy()
    assert not live.bus.commands
    assert live.bus.held == {b"news"} and live.bus.asked == {b"news": 1}


def test_channels_without_subscribers_are_unsubscribed_in_batches(live: HubRig) -> None:
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


def test_unrequested_confirmation_notifies_no_waiter(bench: HubRig) -> None:
    peer = bench.connect()
    assert bench.join(peer, b"news") is Joined.WAITS  # the bus is away
    bench.bus.is_up = True
    assert bench.hub.on_subscribed(b"news") is True
    assert bench.confirmations == []


def test_connection_that_left_or_ended_is_not_notified_and_leaves_no_state(bench: HubRig) -> None:
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
    assert bench.confirmations == [(b"news", True)]
    assert not bench.hub._waiters._by_connection and not bench.hub._waiters


def test_many_waiters_are_notified_in_batches_and_each_only_once(bench: HubRig) -> None:
    peers = [bench.connect() for _ in range(NOTIFIED_PER_PASS + 100)]
    for peer in peers:
        bench.join(peer, b"news")
    bench.up()
    assert bench.bus.commands == [("subscribe", b"news")]
    assert bench.hub.on_subscribed(b"news") is False
    assert len(bench.confirmations) == NOTIFIED_PER_PASS
    late = bench.connect()
    assert bench.join(late, b"news") is Joined.WAITS  # not before the earlier waiters
    assert bench.hub.on_subscribed(b"news") is True
    assert bench.confirmations == [(b"news", True)] * (len(peers) + 1)
    assert bench.hub.on_subscribed(b"news") is True
    assert len(bench.confirmations) == len(peers) + 1


# --- a bus that does not confirm ----------------------------------------------------------------------


def test_connection_is_refused_new_names_at_its_limit_of_unconfirmed_ones(live: HubRig) -> None:
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


def test_name_left_before_its_subscribe_is_sent_is_neither_sent_nor_counted(live: HubRig) -> None:
    live.bus.sent_limit = 0
    peer = live.connect()
    for number in range(1_000):
        assert live.join(peer, b"%d" % number) is Joined.WAITS
        live.hub.leave(peer.conn, b"%d" % number)
        live.hub.tidy()
        assert live.bus.unsent == 0 and live.hub.pending == 0
    assert not live.bus.commands and not live.hub._charges._conns


def test_join_cancels_a_queued_unsubscribe_and_is_live_at_once(live: HubRig) -> None:
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


def test_join_is_refused_while_too_many_names_are_unsent_except_for_inboxes(live: HubRig) -> None:
    live.bus.sent_limit = 0
    live.bus.waiting = {b"%d" % number: "subscribe" for number in range(UNSENT_LIMIT)}
    peer = live.connect()
    assert live.join(peer, b"news") is Joined.BEHIND
    assert live.join(peer, b"@ann") is Joined.WAITS


def test_join_of_a_new_name_is_refused_without_bus_memory_except_for_inboxes(live: HubRig) -> None:
    live.hub.takes_name = lambda: False
    peer = live.connect()
    assert live.join(peer, b"news") is Joined.FULL
    assert not live.reactor.subscribers(b"news")
    assert live.join(peer, b"@ann") is Joined.WAITS
    live.hub.takes_name = lambda: True
    live.join(peer, b"news")
    live.hub.takes_name = lambda: False
    assert live.join(live.connect(), b"news") is Joined.WAITS  # the name costs the bus nothing more


# --- loss of the bus ----------------------------------------------------------------------------------


def test_join_before_the_bus_is_up_is_confirmed_afterwards(bench: HubRig) -> None:
    peer = bench.connect()
    assert not bench.hub.is_live
    assert bench.join(peer, b"news") is Joined.WAITS
    bench.up()
    assert bench.confirmations == []
    bench.confirm()
    assert bench.confirmations == [(b"news", True)] and bench.bus.held == {b"news"}


def test_waiter_is_notified_of_a_bus_loss_and_may_wait_again(live: HubRig) -> None:
    peer = live.connect()
    live.join(peer, b"news")
    live.down()
    assert live.confirmations == [(b"news", False)] and live.hub.pending == 0
    assert not live.hub.is_live
    live.hub.wait(peer.conn, b"news", live.waiter)
    live.up()
    live.confirm()
    assert live.confirmations == [(b"news", False), (b"news", True)]


def test_many_waiters_are_notified_of_a_bus_loss_in_batches(live: HubRig) -> None:
    class Again:
        """A waiter that waits again after each loss, as a welcome does."""

        def __init__(self, conn: int) -> None:
            self.conn, self.confirmations = conn, 0

        def __call__(self, name: bytes, is_live: int) -> None:
            self.confirmations += 1
            if not is_live:
                live.hub.wait(self.conn, name, self)

    waiters = [Again(live.connect().conn) for _ in range(NOTIFIED_PER_PASS + 10)]
    for waiter in waiters:
        live.hub.join(waiter.conn, b"news", 0, waiter)
    live.down()
    assert sum(waiter.confirmations for waiter in waiters) == NOTIFIED_PER_PASS
    assert live.hub.tidy() is False
    assert [waiter.confirmations for waiter in waiters] == [1] * len(waiters)
    live.up()
    live.confirm()
    assert [waiter.confirmations for waiter in waiters] == [2] * len(waiters)


def test_waiter_not_yet_notified_of_a_loss_is_resubscribed_when_the_bus_is_back(live: HubRig) -> None:
    """Waiters are notified of a loss in batches; the others are not notified of it after the reconnect."""
    peers = [live.connect() for _ in range(3 * NOTIFIED_PER_PASS)]
    for peer in peers:
        assert live.join(peer, b"news") is Joined.WAITS
    live.down()
    assert live.confirmations == [(b"news", False)] * NOTIFIED_PER_PASS
    live.up()
    last = peers[-1]
    assert live.join(last, b"news") is Joined.ALREADY
    assert live.hub.confirm(last.conn, b"news", live.waiter) is Joined.WAITS
    for _ in range(5):
        live.hub.tidy()
    assert live.confirmations.count((b"news", False)) == NOTIFIED_PER_PASS
    live.confirm()
    assert live.confirmations.count((b"news", True)) == 2 * NOTIFIED_PER_PASS + 1
    assert live.hub.pending == 0
    assert not live.hub._waiters and not live.hub._waiters._by_connection


def test_loss_is_notified_only_for_the_cluster_server_that_is_still_down(live: HubRig) -> None:
    peers = [live.connect() for _ in range(4 * NOTIFIED_PER_PASS)]
    for peer in peers:
        live.join(peer, b"a")
        live.join(peer, b"b")
    live.hub.on_down(lambda name: name[:1] == b"a")
    live.hub.on_down(lambda name: name[:1] == b"b")
    live.confirmations.clear()
    live.hub.on_up(lambda name: name[:1] == b"b")
    for _ in range(10):
        live.hub.tidy()
    assert {name for name, is_live in live.confirmations if not is_live} == {b"a"}


def test_resubscription_continues_past_names_of_other_servers_without_a_reply(live: HubRig) -> None:
    """None of the first names belongs to the server that came up, so no command is sent for them."""
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


def test_confirmations_missing_at_a_loss_are_not_awaited_after_the_reconnect(live: HubRig) -> None:
    peer = live.connect()
    live.join(peer, b"news")
    live.down()
    live.up()
    live.confirm()
    assert live.hub.pending == 0 and live.bus.held == {b"news"}
    assert live.join(live.connect(), b"news") is Joined.LIVE


def test_20000_names_are_resubscribed_once_each_with_a_bounded_number_unconfirmed(live: HubRig) -> None:
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


def test_resubscription_stops_while_the_bus_confirms_nothing(live: HubRig) -> None:
    peer = live.connect()
    for number in range(10_000):
        live.join(peer, b"%d" % number)
    live.down()
    live.up()
    for _ in range(1_000):
        live.hub.resubscribe()  # publications arrive and cause passes
    assert len(live.bus.commands) <= ASKED_LIMIT + NAMES_PER_COMMAND


def test_join_of_a_new_name_during_resubscription_is_sent_and_confirmed(live: HubRig) -> None:
    peer, other = live.connect(), live.connect()
    for number in range(2_000):
        live.join(peer, b"%d" % number)
    live.confirm()
    live.down()
    live.up()
    live.confirmations.clear()
    assert live.join(other, b"1999") is Joined.WAITS  # the name is not resubscribed yet
    assert live.join(other, b"fresh") is Joined.WAITS
    live.confirm()
    assert sorted(live.confirmations) == [(b"1999", True), (b"fresh", True)]
    assert live.bus.held == {b"fresh", *(b"%d" % number for number in range(2_000))}


# --- clusters -----------------------------------------------------------------------------------------


def is_on_a(name: bytes) -> bool:
    return name.startswith(b"a")


def test_loss_of_one_cluster_server_affects_only_its_own_channels(live: HubRig) -> None:
    peer, late = live.connect(), live.connect()
    for name in (b"a1", b"b1"):
        live.join(peer, name)
    live.confirm()
    live.join(peer, b"a2")
    live.join(peer, b"b2")
    live.confirmations.clear()
    live.bus.commands = [each for each in live.bus.commands if not is_on_a(each[1])]
    live.hub.on_down(is_on_a)
    assert live.confirmations == [(b"a2", False)], "a2 waited for the lost server"
    assert live.join(late, b"b1") is Joined.LIVE
    live.confirm()
    assert live.confirmations == [(b"a2", False), (b"b2", True)]
    live.bus.asked.clear()
    live.hub.on_up(is_on_a)
    assert live.join(late, b"a1") is Joined.WAITS
    assert set(live.bus.asked) == {b"a1", b"a2"}
    live.confirm()
    assert live.confirmations[-1] == (b"a1", True)
    assert live.hub.pending == 0


def test_two_cluster_servers_that_come_up_together_are_both_resubscribed(live: HubRig) -> None:
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


def test_channel_of_a_moved_slot_is_live_again_after_its_new_subscription(live: HubRig) -> None:
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
    assert live.join(late, b"moved") is Joined.WAITS, "the channel is not subscribed now"
    live.hub.leave(gone.conn, b"left")
    live.hub.tidy()
    live.bus.commands.clear()
    live.bus.asked.clear()
    live.hub.on_moved()
    assert live.bus.asked == {b"moved": 1, b"asked": 1}
    live.confirmations.clear()
    live.confirm()
    assert set(live.confirmations) == {(b"moved", True), (b"asked", True)}
    assert live.hub.pending == 0


def test_channel_forbidden_by_the_bus_is_refused_and_other_channels_are_confirmed(live: HubRig) -> None:
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
    assert sorted(live.confirmations) == [
        (b"open", Confirmation.LIVE),
        (b"secret", Confirmation.REFUSED),
        (b"secret", Confirmation.REFUSED),
    ]
    assert live.reactor.subscribers(b"secret") == 0 and live.reactor.subscribers(b"open") == 1
    assert live.hub.pending == 0


def test_channel_forbidden_after_a_reconnect_is_removed_from_all_subscribers(live: HubRig) -> None:
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
    assert live.hub.tidy(), "one batch in each pass"
    assert 0 < len(taken) <= TAKEN_PER_PASS
    while live.hub.tidy():
        pass
    assert sorted(taken) == sorted((peer.conn, b"news") for peer in peers)
    assert live.reactor.subscribers(b"news") == 0
    live.bus.asked.clear()
    assert live.join(peers[0], b"news") is Joined.WAITS, "the channel may be allowed again"
    assert live.bus.asked == {b"news": 1}


def test_second_subscribe_of_a_refused_name_may_still_be_confirmed(live: HubRig) -> None:
    peer = live.connect()
    live.join(peer, b"news")
    live.hub.leave(peer.conn, b"news")
    live.hub.tidy()
    live.join(peer, b"news")
    live.bus.commands.remove(("subscribe", b"news"))  # the first of the two
    live.hub.on_refused(b"news")
    live.confirm()
    assert live.confirmations == [(b"news", Confirmation.LIVE)]


def test_channel_of_an_unserved_slot_is_subscribed_when_a_server_takes_the_slot(live: HubRig) -> None:
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


def test_recovery_of_an_existing_subscription_waits_for_its_confirmation(live: HubRig) -> None:
    peer = live.connect()
    live.join(peer, b"news")
    assert live.hub.confirm(peer.conn, b"news", live.waiter) is Joined.WAITS
    live.confirm()
    assert live.confirmations == [(b"news", True)] * 2
    assert live.hub.confirm(peer.conn, b"news", live.waiter) is Joined.LIVE
    live.down()
    assert live.hub.confirm(peer.conn, b"news", live.waiter) is Joined.WAITS


def resubscribe_until_the_last_part(bench: HubRig) -> tuple[bytes, Peer]:
    """Lose the bus and bring the walk to its last part, which waits for answers of the bus.

    Returns:
        A channel that only the last part requests, and its subscriber.
    """
    peer = bench.connect()
    names = [b"%05d" % number for number in range(ASKED_LIMIT + 2 * NAMES_PER_COMMAND)]
    for name in names[:-1]:
        bench.join(peer, name)
    last = bench.connect()
    bench.join(last, names[-1])
    bench.confirm()
    bench.down()
    bench.bus.sent_limit = ASKED_LIMIT
    bench.up()
    for _ in range(10):
        bench.hub.tidy()
    assert names[-1] not in bench.hub._unconfirmed
    return names[-1], last


@pytest.mark.parametrize("is_tidied", [True, False])
def test_name_left_before_its_resubscription_is_requested_when_it_is_joined_after_it(
    live: HubRig, is_tidied: bool
) -> None:
    name, last = resubscribe_until_the_last_part(live)
    live.hub.leave(last.conn, name)
    if is_tidied:
        live.hub.tidy()  # an UNSUBSCRIBE waits, although the bus does not have the name
    live.confirm(NAMES_PER_COMMAND)
    assert live.hub._resubscribe_from is None
    live.confirmations.clear()
    assert live.join(live.connect(), name) is Joined.WAITS
    live.confirm()
    assert live.confirmations == [(name, Confirmation.LIVE)] and name in live.bus.held


def test_name_resubscribed_before_the_end_of_the_walk_is_left_for_good(live: HubRig) -> None:
    """The join requests the name a second time, because the walk does not know what it has requested."""
    resubscribe_until_the_last_part(live)
    late = live.connect()
    live.confirm(1)
    name = b"00000"
    assert name in live.bus.held and live.hub._resubscribe_from is not None
    assert live.join(late, name) is Joined.WAITS
    for conn in live.reactor.subscribed(name):
        live.hub.leave(conn, name)
    live.hub.tidy()
    live.confirm()
    assert name not in live.bus.held


@pytest.mark.parametrize("is_forbidden", [True, False])
def test_name_that_the_bus_has_ended_is_requested_when_it_is_joined_again(
    live: HubRig, is_forbidden: bool
) -> None:
    peer = live.connect()
    live.join(peer, b"news")
    if is_forbidden:
        assert live.bus.refuse() == b"news"
        live.hub.on_refused(b"news")
    else:
        live.confirm()
        live.bus.end(b"news")
        live.hub.on_lost(b"news", was_asked=False)
    live.bus.sent_limit = 0
    live.hub.leave(peer.conn, b"news")
    live.hub.tidy()
    live.hub.tidy()
    assert not live.bus.waiting, "the bus does not have the name"
    assert live.join(live.connect(), b"news") is Joined.WAITS
    assert live.bus.waiting == {b"news": "subscribe"}


def test_join_that_cancels_an_unsubscribe_during_the_walk_of_another_server_is_live(
    live: HubRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = live.connect()
    for name in (b"a1", b"b1"):
        live.join(peer, name)
    live.confirm()
    live.hub.on_down(is_on_a)
    live.bus.sent_limit = 0
    live.hub.leave(peer.conn, b"b1")
    live.hub.tidy()
    monkeypatch.setattr("wsgate.shard.hub.ASKED_LIMIT", -1)  # the walk stays at its beginning
    live.hub.on_up(is_on_a)
    assert live.join(peer, b"b1") is Joined.LIVE
    assert live.hub.receives(b"b1"), "no answer to a SUBSCRIBE will come"


def test_name_left_before_a_bus_loss_is_subscribed_when_joined_after_the_loss(live: HubRig) -> None:
    """The new bus connection has no such name, so no unsent UNSUBSCRIBE may cancel the SUBSCRIBE."""
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


def has_channel(bus: Bus, name: bytes) -> bool:
    """Return whether the bus has a channel and keeps it."""
    commands = [*bus.commands, *((kind, each) for each, kind in bus.waiting.items())]
    return name in bus.held and ("unsubscribe", name) not in commands


def note_outcome(
    bench: HubRig, waiting: set[tuple[int, bytes]], conn: int, name: bytes, outcome: Confirmation
) -> None:
    """Check that each wait has one outcome, none after a leave, and live only if the bus has the channel."""
    assert (conn, name) in waiting
    assert outcome is not Confirmation.LIVE or name in bench.bus.held
    waiting.discard((conn, name))


def is_on_first(name: bytes) -> bool:
    return name in (b"a", b"b")


def is_on_second(name: bytes) -> bool:
    return not is_on_first(name)


class Steps:
    """Carry out random steps on a hub, and check after each that a live channel is a channel of the bus."""

    def __init__(self, bench: HubRig, sent_limit: int) -> None:
        self.bench = bench
        self.bus = bench.bus
        self.bus.sent_limit = sent_limit
        self.names = [b"a", b"b", b"c", b"d"]
        self.peers = [bench.connect() for _ in range(3)]
        self.waiting: set[tuple[int, bytes]] = set()
        bench.up()

    def step(self, what: str, which: int, channel: int) -> None:
        getattr(self, what)(which, self.names[channel])
        for name in self.names:
            is_confirmed = name not in self.bench.hub._unconfirmed and self.bench.hub.receives(name)
            if self.bench.reactor.subscribers(name) and is_confirmed:
                assert has_channel(self.bus, name)

    def join(self, which: int, name: bytes) -> None:
        conn = self.peers[which % 3].conn
        joined = self.bench.hub.join(conn, name, 0, partial(note_outcome, self.bench, self.waiting, conn))
        if joined is Joined.WAITS:
            self.waiting.add((conn, name))
        if joined is Joined.LIVE:
            assert has_channel(self.bus, name)

    def leave(self, which: int, name: bytes) -> None:
        self.bench.hub.leave(self.peers[which % 3].conn, name)
        self.waiting.discard((self.peers[which % 3].conn, name))

    def confirm(self, which: int, name: bytes) -> None:
        self.bench.confirm(which)

    def tidy(self, which: int, name: bytes) -> None:
        self.bench.hub.tidy()

    def resubscribe(self, which: int, name: bytes) -> None:
        self.bench.hub.resubscribe()

    def flap(self, which: int, name: bytes) -> None:
        """Lose the bus, and connect it again in five of six cases."""
        self.bus.lost_servers.clear()
        self.bench.down()
        if which:
            self.bench.up()

    def flap_server(self, which: int, name: bytes) -> None:
        """Lose one server of a cluster, or connect it again."""
        covers = (is_on_first, is_on_second)[which % 2]
        if not self.bus.is_up:
            return
        if covers in self.bus.lost_servers:
            self.bus.lost_servers.remove(covers)
            self.bench.hub.on_up(covers)
        else:
            self.bus.lost_servers.append(covers)
            self.bus.clear(covers)
            self.bench.hub.on_down(covers)
            self.bus.send()

    def lose(self, which: int, name: bytes) -> None:
        """End the subscription to a name, or refuse the oldest SUBSCRIBE, because a slot moves."""
        refused = self.bus.refuse() if which % 2 else None
        if refused is not None:
            self.bench.hub.on_lost(refused, was_asked=True)
        elif self.bus.end(name):
            self.bench.hub.on_lost(name, was_asked=False)

    def moved(self, which: int, name: bytes) -> None:
        self.bench.hub.on_moved()

    def forbid(self, which: int, name: bytes) -> None:
        """Refuse the oldest SUBSCRIBE for good."""
        refused = self.bus.refuse()
        if refused is not None:
            self.bench.hub.on_refused(refused)

    def end(self, which: int, name: bytes) -> None:
        """End a connection, and replace it."""
        conn = self.peers[which % 3].conn
        self.bench.hub.forget(conn)
        self.waiting -= {(conn, each) for each in self.names}
        self.bench.reactor.abort(conn)
        self.bench.turn()
        self.peers[which % 3] = self.bench.connect()

    def settle(self) -> None:
        """Bring the bus up and answer until nothing is left to do."""
        if not self.bus.is_up:
            self.bench.up()
        for which in range(2):
            if (is_on_first, is_on_second)[which] in self.bus.lost_servers:
                self.flap_server(which, b"")
        for _ in range(10):
            self.bench.hub.on_moved()
            self.bench.hub.tidy()
            self.bench.confirm()


STEPS = ["join", "leave"] * 4 + ["confirm", "tidy"] * 2 + ["resubscribe", "flap", "flap_server", "end"]
STEPS += ["lose", "moved", "forbid"]


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 5), st.integers(0, 3)), min_size=20, max_size=80
    ),
    st.sampled_from([1, 2, 5, 1_000]),
    st.sampled_from([1, 2, NAMES_PER_COMMAND]),
)
def test_bus_subscriptions_equal_the_local_channels_after_random_steps(
    steps: list[tuple[str, int, int]], sent_limit: int, part: int
) -> None:
    bench = HubRig()
    with pytest.MonkeyPatch.context() as patch:
        # Small parts, so that the walk that subscribes again is under way for many steps.
        patch.setattr("wsgate.shard.hub.NAMES_PER_COMMAND", part)
        patch.setattr("wsgate.shard.hub.ASKED_LIMIT", part - 1)
        random = Steps(bench, sent_limit)
        for step in steps:
            random.step(*step)
        random.settle()
    held = {name for name in random.names if bench.reactor.subscribers(name)}
    assert bench.bus.held == held
    assert not random.waiting and bench.hub.pending == 0
    assert not bench.hub._charges and not bench.hub._returning
    bench.close()


# --- publications -------------------------------------------------------------------------------------


def subscribed_peer(bench: HubRig, name: bytes = b"news", *, variant: int = 0) -> Peer:
    """Return a peer that is subscribed."""
    peer = bench.connect(variant=variant)
    bench.join(peer, name)
    bench.confirm()
    return peer


def test_one_publication_reaches_every_dialect_in_its_own_form(live: HubRig) -> None:
    peers = [subscribed_peer(live, variant=dialect.variant) for dialect in DIALECTS]
    live.hub.on_message(b"news", b'{"a": 1}')
    texts = [live.texts(peer) for peer in peers]
    assert texts[0] == [b'{"op":"msg","ch":"news","data":{"a": 1}}']
    assert [msgspec.msgpack.decode(each) for each in texts[1]] == [
        {"op": "msg", "ch": "news", "data": {"a": 1}}
    ]
    assert live.counts == {"publications_received": 1}


def test_inbox_publication_names_its_channel_me(live: HubRig) -> None:
    peer = subscribed_peer(live, b"@42")
    live.hub.on_message(b"@42", b"1")
    assert [json.loads(text)["ch"] for text in live.texts(peer)] == ["@me"]


def test_publication_is_not_sent_to_its_excluded_publisher(live: HubRig) -> None:
    own, other = subscribed_peer(live), subscribed_peer(live)
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
    live: HubRig, data: bytes
) -> None:
    peer = subscribed_peer(live)
    before = live.held()
    live.hub.on_message(b"news", data)
    assert live.texts(peer) == []
    assert live.counts == {"publications_received": 1, "publications_malformed": 1}
    assert live.held() == before
    live.hub.on_message(b"news", b"1")
    assert live.texts(peer) == [b'{"op":"msg","ch":"news","data":1}']


@pytest.mark.parametrize("data", [b"\xff\xfe", b'{"a":', b"", b"\x00" * 999, b"[" * 999, b"1e999", b"NaN"])
def test_garbage_payload_is_delivered_as_one_message_in_every_dialect_s24(live: HubRig, data: bytes) -> None:
    peers = [subscribed_peer(live, variant=dialect.variant) for dialect in DIALECTS]
    live.hub.on_message(b"news", data)
    assert [len(live.texts(peer)) for peer in peers] == [1, 1]
    assert live.counts["publications_malformed"] == 0


def test_publication_over_the_channel_size_limit_is_dropped_and_sends_a_gap(live: HubRig) -> None:
    small, big = subscribed_peer(live), subscribed_peer(live, b"big:1")
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


def test_backlog_drop_of_one_channel_sends_a_gap_to_its_subscribers(live: HubRig) -> None:
    here, other = subscribed_peer(live), subscribed_peer(live, b"other")
    live.hub.on_dropped(b"news")
    live.hub.on_dropped(b"nobody is here")
    live.hub.on_message(b"news", b"1")
    assert [json.loads(text)["op"] for text in live.texts(here)] == ["gap", "msg"]
    assert live.texts(other) == []
    assert live.counts["gaps_slow"] == 1


def test_backlog_drop_of_all_channels_sends_a_gap_to_all_connections(live: HubRig) -> None:
    peers = [subscribed_peer(live, name) for name in (b"a", b"b", b"c")]
    live.hub.on_dropped(None)
    while live.hub.has_gaps:
        live.hub.gap_step()
    live.time_ms += SETTLE_MS
    gaps = [gaps_of(live, peer) for peer in peers]
    assert [[(gap.get("ch"), gap["reason"]) for gap in each] for each in gaps] == [[(None, "slow")]] * 3


def test_publication_before_the_confirmation_is_not_sent_to_new_subscribers(live: HubRig) -> None:
    """The publication waited in the backlog while the last subscriber left and a new one joined."""
    peer = live.connect()
    live.join(peer, b"news")
    live.hub.on_message(b"news", b"1")
    live.confirm()
    live.hub.on_message(b"news", b"2")
    assert live.texts(peer) == [b'{"op":"msg","ch":"news","data":2}']
    # Live subscribers receive publications also while a further SUBSCRIBE is unconfirmed.
    live.hub.resubscribe()
    live.hub._unconfirmed[b"news"] = 1
    live.hub.on_message(b"news", b"3")
    assert live.texts(peer) == [b'{"op":"msg","ch":"news","data":3}']


def test_older_publication_for_a_live_subscriber_reaches_a_waiter_before_its_notice(live: HubRig) -> None:
    """The reactor sends a publication to the whole channel; protocols/client/v1/spec.md permits this."""
    holder, waiter = subscribed_peer(live), live.connect()
    live.down()
    live.up()
    live.confirmations.clear()
    assert live.join(waiter, b"news") is Joined.WAITS
    live.hub.on_message(b"news", b"1")
    expected = [b'{"op":"msg","ch":"news","data":1}']
    assert live.texts(holder) == live.texts(waiter) == expected and not live.confirmations
    live.confirm()
    assert live.confirmations == [(b"news", Confirmation.LIVE)]


def test_publication_without_local_subscribers_is_counted_and_not_decoded(live: HubRig) -> None:
    for name in (b"news", b"\xff", b"", b"wsgate:probe:n:0"):
        live.hub.on_message(name, b"\xc1")
        live.hub.on_message(name, None)
    assert live.counts == {"publications_unheard": 8}


# --- gaps ---------------------------------------------------------------------------------------------


def gaps_of(bench: HubRig, peer: Peer) -> list[dict[str, object]]:
    """Return the gaps that a peer received after all pending work is done."""
    while bench.hub.tidy():
        bench.turn()
    return [each for each in map(json.loads, bench.texts(peer)) if each["op"] == "gap"]


def test_each_subscriber_gets_one_gap_after_all_channels_are_resubscribed(live: HubRig) -> None:
    peers = [subscribed_peer(live), subscribed_peer(live)]
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


def test_subscription_not_confirmed_before_a_loss_gets_no_gap(bench: HubRig) -> None:
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


@pytest.mark.parametrize("is_waiter_first", [True, False])
def test_waiter_that_has_just_ended_hides_no_loss_from_a_subscriber(
    live: HubRig, is_waiter_first: bool
) -> None:
    """The event of the ended connection is not handled yet, so it is still in the table of waiters."""
    if is_waiter_first:
        waiter, holder = live.connect(), subscribed_peer(live, b"a")
    else:
        holder, waiter = subscribed_peer(live, b"a"), live.connect()
    live.down()
    live.up()
    assert live.join(waiter, b"a") is Joined.WAITS
    live.reactor.abort(waiter.conn)
    live.hub.on_message(b"a", b'"from before the loss"')
    live.confirm()
    while live.hub.tidy():
        pass
    received = [json.loads(text) for text in live.texts(holder)]
    assert [(each["op"], each.get("reason")) for each in received] == [("msg", None), ("gap", "bus")]


def test_subscribers_that_all_wait_get_no_gap_although_another_waiter_has_ended(live: HubRig) -> None:
    holder, waiter, ended = subscribed_peer(live, b"a"), live.connect(), live.connect()
    live.down()
    live.up()
    for peer in (waiter, ended):
        assert live.join(peer, b"a") is Joined.WAITS
    live.hub.leave(holder.conn, b"a")
    live.reactor.abort(ended.conn)
    live.hub.on_message(b"a", b'"from before the loss"')
    live.confirm()
    while live.hub.tidy():
        pass
    assert live.texts(waiter) == []


def test_moved_slot_sends_a_gap_only_to_subscribers_of_its_channels(live: HubRig) -> None:
    moved, stays = subscribed_peer(live, b"a"), subscribed_peer(live, b"b")
    live.hub.on_lost(b"a", was_asked=False)
    live.hub.on_moved()
    live.confirm()
    assert (len(gaps_of(live, moved)), gaps_of(live, stays)) == (1, [])


def test_gap_is_sent_when_a_redirected_resubscription_succeeds(live: HubRig) -> None:
    peer = subscribed_peer(live, b"a")
    live.down()
    live.up()
    live.bus.commands.clear()
    live.hub.on_lost(b"a", was_asked=True)  # MOVED, TRYAGAIN or CLUSTERDOWN
    assert gaps_of(live, peer) == []
    live.hub.on_moved()
    live.confirm()
    assert len(gaps_of(live, peer)) == 1


def test_repeated_losses_during_resubscription_send_one_gap_at_the_end(live: HubRig) -> None:
    peer = subscribed_peer(live, b"a")
    live.join(peer, b"b")
    live.confirm()
    for _ in range(5):
        live.down()
        live.up()
        live.confirm(1)
        assert gaps_of(live, peer) == []
    live.confirm()
    assert len(gaps_of(live, peer)) == 1


def test_publication_whose_delivery_fails_sends_a_gap(live: HubRig, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = subscribed_peer(live, b"a")

    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(live.hub, "_deliver", fail)
    with pytest.raises(MemoryError):
        live.hub.on_message(b"a", b"1")
    live.time_ms += SETTLE_MS
    assert [each["reason"] for each in gaps_of(live, peer)] == ["slow"]


def settle(rig: HubRig) -> None:
    rig.bus.sent_limit = 1_000_000
    rig.bus.send()
    for _ in range(5):
        rig.hub.tidy()
        rig.confirm()


def test_channel_that_was_left_is_requested_when_its_slot_moves_together_with_another(live: HubRig) -> None:
    """One map gives the slots of a server that left to one server, and moves this slot to another."""
    rig = live
    peer = rig.connect()
    rig.join(peer, b"x1")
    rig.confirm()
    rig.hub.leave(peer.conn, b"x1")
    rig.bus.clear(lambda name: name.startswith((b"x", b"z")))  # the new servers have neither slot
    rig.bus.sent_limit = 0
    rig.hub.on_up(lambda name: name.startswith(b"z"))
    rig.hub.on_reassigned(lambda name: name.startswith(b"x"))
    assert rig.join(peer, b"x1") is Joined.WAITS
    settle(rig)
    assert b"x1" in rig.bus.held and rig.hub.receives(b"x1")


def test_channel_that_is_left_during_a_walk_after_another_walk_is_unsubscribed(live: HubRig) -> None:
    """The first walk has requested the channel before, so the server has it although the second walk asks."""
    rig = live
    peer = rig.connect()
    for number in range(3):
        rig.join(peer, b"x%d" % number)
    rig.confirm()
    rig.bus.clear(lambda name: name.startswith(b"x"))
    rig.hub.on_reassigned(lambda name: True)
    rig.hub.on_reassigned(lambda name: name.startswith(b"x"))
    rig.hub.resubscribe()
    for _, name in rig.bus.commands:  # the first walk is answered, and the second one has not begun
        rig.bus.held.add(name)
        rig.hub.on_subscribed(name)
    rig.bus.commands.clear()
    rig.bus.sent_limit = 0
    rig.hub.resubscribe()
    rig.hub.leave(peer.conn, b"x0")
    rig.hub.tidy()
    settle(rig)
    assert b"x0" not in rig.bus.held
    assert {b"x1", b"x2"} <= set(rig.bus.held)
