"""Check order and number of the replies to clients, with a bus that answers when the test lets it."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import replace
from typing import Any, cast

import pytest

from tests.support.reactor_rig import Peer, Rig
from wsgate.admission import ByteBudget, ByteRates
from wsgate.auth import Identity, OriginPolicy, Permissions, PermissionTable, TokenError, TokenPolicy
from wsgate.bus import Covers, Names, Publisher, Subscriber, parse_address
from wsgate.dialects import DIALECTS
from wsgate.reactor import GateLimits, Settings
from wsgate.shard.access import Access
from wsgate.shard.backend_events import Events
from wsgate.shard.byes import RETRY_MS
from wsgate.shard.commands import UNDER_WAY_LIMIT, UNDER_WAY_LIMIT_BYTES, Commands
from wsgate.shard.gaps import Gaps
from wsgate.shard.handshakes import Entry
from wsgate.shard.hub import UNSENT_LIMIT, Hub
from wsgate.shard.login import LoginParts, Logins
from wsgate.shard.members import Members, now_ms
from wsgate.shard.options import NO_EVENTS, NO_USER_LIMITS, ChannelRules, ShardOptions
from wsgate.shard.pausing import Pauses
from wsgate.shard.publication_encoder import PublicationEncoder
from wsgate.shard.replies import Replies
from wsgate.shard.subscriptions import PENDING_LIMIT, Subscriptions
from wsgate.shard.tokens import Tokens
from wsgate.shard.users import Users
from wsgate.turns import CROWDED, Sender

SETTINGS = Settings(report_vacated=True, variant_opcodes=(1, 2), max_subscriptions=4)
OPEN = ChannelRules(subscribe="anyone", publish="anyone")
JSON = DIALECTS[0]
GAP = {"op": "gap", "reason": "bus"}
WELCOME = {"op": "welcome", "user": "ann"}
ME = {"op": "subbed", "ch": "@me"}


class Bus:
    """The two ends of the bus: requested names, and replies only when the test gives them."""

    def __init__(self) -> None:
        self.is_up = True
        self.asked: list[bytes] = []
        self.published: list[Callable[[str], None]] = []
        self.senders: list[Sender | None] = []
        self.unsent = 0
        self.waiting_bytes = 0
        self.must_reach: list[bool] = []

    def is_up_for(self, name: bytes) -> bool:
        return self.is_up

    def subscribe(self, names: Iterable[bytes], *, may_cancel: bool = True) -> list[bytes]:
        self.asked += names
        return []

    def unsubscribe(self, names: Iterable[bytes], *, may_cancel: bool = True) -> list[bytes]:
        return []

    def publish(
        self,
        name: bytes,
        data: bytes,
        done: Callable[[str], None],
        sender: Sender | None = None,
        *,
        must_reach: bool = False,
    ) -> None:
        self.published.append(done)
        self.senders.append(sender)
        self.must_reach.append(must_reach)


class FakeTokens:
    """Fake tokens: the text of a token is its user, and the channels behind a colon."""

    def __init__(self) -> None:
        self.permissions = PermissionTable()

    def revoke(self, user: str, before_s: float) -> None:
        pass

    def unrevoke(self, user: str) -> None:
        pass

    def recall(self, token: str, now_s: float) -> Identity | None:
        return None

    def connection(self, token: str, now_s: float) -> Identity:
        user, _, channels = token.partition(":")
        if not user:
            raise TokenError("malformed")
        return Identity(user, Permissions(tuple(filter(None, channels.split(","))), (), ()), 0)


class Shard:
    """The parts of a shard that decide about its replies."""

    def __init__(
        self,
        *,
        allow_anonymous: bool = False,
        publish_rate_per_s: int = 0,
        publish_burst: int = 0,
        settings: Settings = SETTINGS,
    ) -> None:
        options = ShardOptions(
            node="n",
            number=0,
            reactor=settings,
            gate=GateLimits(),
            bus=parse_address("unix:///nowhere"),
            origins=OriginPolicy(()),
            tokens=TokenPolicy(),
            allow_anonymous=allow_anonymous,
            publish_rate_per_s=publish_rate_per_s,
            publish_burst=publish_burst,
        )
        self.rig = Rig(settings, now_ms=now_ms())
        self.bus = Bus()
        self.counts: Counter[str] = Counter()
        self.wakes = 0
        self.unheard: list[bytes] = []
        access = Access({"default": OPEN}, None)
        forms = PublicationEncoder(512, self._count)
        gaps = Gaps(self.rig.reactor, forms, self._count, lambda: 1, now_ms, variants=len(DIALECTS))
        self.hub = Hub(self.rig.reactor, access, forms, gaps, self._count)
        self.hub.attach(cast(Subscriber, self.bus))
        events = Events(NO_EVENTS, "n", [], [], self.rig.reactor.public_id, self._count)
        tokens = cast(Tokens, FakeTokens())
        self.members = Members(options, self.rig.reactor, tokens.permissions, events)
        self.replies = Replies(options, self.rig.reactor, events, self._count)
        self.subscriptions = Subscriptions(
            options, self.rig.reactor, self.hub, access, self.replies, events, self._count
        )
        self.hub.on_taken = self.subscriptions.on_forbidden
        users = Users(
            NO_USER_LIMITS,
            self.rig.reactor,
            cast(Publisher, self.bus),
            Names("wsgate"),
            (),
            self._count,
            self._wake,
        )
        self.options = options
        self.parts = LoginParts(
            reactor=self.rig.reactor,
            hub=self.hub,
            access=access,
            tokens=tokens,
            users=users,
            events=events,
            members=self.members,
            replies=self.replies,
            subscriptions=self.subscriptions,
            pauses=Pauses(self.rig.reactor),
            verify_later=lambda _conn, _size, act: act(),
        )
        self.attach()

    def attach(self, **parts: Any) -> None:
        """Make logins and commands over the parts, some of them replaced."""
        self.parts = replace(self.parts, **parts)
        self.logins = Logins(self.options, self.parts)
        self.commands = Commands(
            self.options,
            self.parts,
            self.logins,
            cast(Publisher, self.bus),
            Names("wsgate"),
            count=self._count,
            wake=self._wake,
            unheard=self.unheard.append,
        )

    @property
    def waiting_bytes(self) -> int:
        return self.logins.waiting_bytes + self.subscriptions.waiting_bytes

    def forget(self, peer: Peer) -> None:
        """Forget the connection as after its end."""
        for part in (self.logins, self.subscriptions, self.replies, self.commands):
            part.forget(peer.conn)

    def run_released(self) -> None:
        """Run messages that a login has released, as the pass of a shard does."""
        for opcode, conn, message in self.logins.take_released(1_000):
            self.commands.run(conn, JSON, message, opcode)

    def _count(self, name: str, amount: int) -> None:
        self.counts[name] += amount

    def _wake(self) -> None:
        self.wakes += 1

    def enter(self, token: str | None = None, channels: tuple[str, ...] = (), **positions: str) -> Peer:
        peer = self.rig.connect()
        self.logins.begin(
            peer.conn, Entry(b"", JSON, 0, late_token=token, channels=channels, positions=positions)
        )
        return peer

    def say(self, peer: Peer, *messages: dict[str, Any]) -> None:
        for message in messages:
            self.commands.run(peer.conn, JSON, json.dumps(message).encode(), 1)
            self.run_released()

    def confirm(self, *names: str) -> None:
        """Let the bus confirm one SUBSCRIBE of each of these names."""
        for name in names:
            assert self.hub.on_subscribed(name.encode())
        self.run_released()

    def lose(self) -> None:
        self.bus.is_up = False
        self.hub.on_down()

    def regain(self) -> None:
        self.bus.is_up = True
        self.bus.asked.clear()
        self.hub.on_up()

    def heard(self, peer: Peer) -> list[dict[str, Any]]:
        """Return the messages since the last call, without the fields that differ from run to run."""
        self.run_released()
        self.hub.tidy()
        self.rig.turn()
        received = [json.loads(frame.payload) for frame in peer.frames()]
        dropped = ("conn", "node", "ping_s", "message", "retry_ms")
        return [{key: value for key, value in each.items() if key not in dropped} for each in received]

    def kept(self) -> int:
        """Return the number of objects and bytes kept for connections outside the reactor."""
        logins, replies, hub = self.logins, self.replies, self.hub
        tables: list[Sized] = [logins.unauthenticated, logins._welcomes, self.subscriptions._pending]
        tables += [replies._bad_messages, replies.ended, hub._waiters, hub._unconfirmed]
        return sum(len(table) for table in tables) + self.waiting_bytes


@pytest.fixture
def shard() -> Iterator[Shard]:
    made = Shard()
    yield made
    made.rig.close()


def inspected(shard: Shard, peer: Peer) -> dict[str, int]:
    found = shard.rig.reactor.inspect(peer.conn)
    assert found is not None
    return found


def failed(code: int, error: str, **fields: Any) -> dict[str, Any]:
    return {"op": "err", **fields, "code": code, "error": error}


def test_welcome_is_sent_after_all_channels_are_confirmed_and_leaves_no_state(shard: Shard) -> None:
    peer = shard.enter("ann:a,b")
    assert shard.heard(peer) == []
    shard.confirm("@ann", "b")
    assert shard.heard(peer) == []
    shard.confirm("a")
    assert shard.heard(peer) == [
        WELCOME,
        ME,
        {"op": "subbed", "ch": "b"},
        {"op": "subbed", "ch": "a"},
    ]
    assert shard.kept() == 0


def test_url_channels_are_confirmed_after_the_welcome_even_if_already_live(shard: Shard) -> None:
    other = shard.enter("bob", ("news",))
    shard.confirm("@bob", "news")
    assert len(shard.heard(other)) == 3
    peer = shard.enter("ann", ("news", "news", "{bad}"), news="Qz-5")
    assert shard.heard(peer) == []
    shard.confirm("@ann")
    recovered = {"op": "subbed", "ch": "news", "recovered": False}
    assert shard.heard(peer) == [WELCOME, ME, recovered, recovered, failed(400, "bad_request")]
    assert shard.kept() == 0


def test_waiting_logins_and_subscriptions_are_accounted_with_their_memory(shard: Shard) -> None:
    """One character beyond the basic multilingual plane makes all characters of a text four bytes wide."""
    parts = shard
    plain = shard.enter(None, ("n" * 200,), **{"n" * 200: "Qz-1"})
    took = parts.waiting_bytes
    assert took > 400
    wide = shard.enter(None, ("n" * 199 + "😀",))
    assert parts.waiting_bytes - took > 800
    for peer in (plain, wide):
        shard.forget(peer)
    assert parts.waiting_bytes == 0
    # First a waiting welcome with all its channels, then several waiting subs of one channel.
    peer = shard.enter("ann:a,b")
    assert parts.waiting_bytes > 3_000
    shard.confirm("@ann", "a", "b")
    assert parts.waiting_bytes == 0
    shard.say(peer, {"op": "sub", "ch": "x", "id": 1})
    once = parts.waiting_bytes
    shard.say(peer, *[{"op": "sub", "ch": "x", "id": 2, "from": "Qz-1"}] * 3)
    assert parts.waiting_bytes == 4 * once > 0
    shard.confirm("x")
    assert parts.waiting_bytes == 0


def test_url_channels_are_subscribed_only_after_the_auth_message(shard: Shard) -> None:
    peer = shard.enter(None, ("news",), **{"@me": "Qz-1", "news": "Qz-2"})
    assert shard.heard(peer) == []
    shard.say(peer, {"op": "auth", "token": "ann", "id": 7, "from": {"news": "Qz-9"}})
    shard.confirm("@ann", "news")
    assert shard.heard(peer) == [
        WELCOME | {"id": 7},
        ME | {"recovered": False},
        {"op": "subbed", "ch": "news", "recovered": False},
    ]
    assert shard.kept() == 0


def test_unsub_before_the_confirmation_still_answers_the_earlier_sub(shard: Shard) -> None:
    peer = shard.enter("ann")
    shard.confirm("@ann")
    shard.heard(peer)
    shard.say(peer, {"op": "sub", "ch": "x", "id": 1}, {"op": "unsub", "ch": "x", "id": 2})
    assert shard.heard(peer) == [
        {"op": "subbed", "ch": "x", "id": 1},
        {"op": "unsubbed", "ch": "x", "id": 2},
    ]
    shard.say(peer, {"op": "sub", "ch": "x", "id": 3})
    shard.confirm("x")  # the first SUBSCRIBE's
    assert shard.heard(peer) == []
    shard.confirm("x")
    assert shard.heard(peer) == [{"op": "subbed", "ch": "x", "id": 3}]
    assert shard.kept() == 0


def test_unsub_of_an_unconfirmed_inbox_does_not_hold_back_the_welcome(shard: Shard) -> None:
    peer = shard.enter("ann:a")
    shard.confirm("a")
    shard.say(peer, {"op": "unsub", "ch": "@me", "id": 1})
    assert shard.heard(peer) == [
        WELCOME,
        {"op": "subbed", "ch": "a"},
        {"op": "unsubbed", "ch": "@me", "id": 1},
    ]
    shard.confirm("@ann")
    assert shard.heard(peer) == []
    assert shard.kept() == 0


def test_each_waiting_sub_is_answered_once_with_its_own_id(shard: Shard) -> None:
    peer = shard.enter("ann")
    shard.confirm("@ann")
    shard.heard(peer)
    shard.say(
        peer,
        {"op": "sub", "ch": "x", "id": 1},
        {"op": "sub", "ch": "x", "id": 2},
        {"op": "sub", "ch": "x", "id": 3, "from": "Qz-5"},
    )
    assert shard.heard(peer) == [], "a client counts 409 as a confirmation"
    shard.confirm("x")
    assert shard.heard(peer) == [
        {"op": "subbed", "ch": "x", "id": 1},
        failed(409, "already_subscribed", id=2, ch="x"),
        {"op": "subbed", "ch": "x", "id": 3, "recovered": False},
    ]
    assert shard.kept() == 0


def test_sub_of_a_token_channel_is_answered_409_only_after_the_bus_has_confirmed_it(shard: Shard) -> None:
    peer = shard.enter("ann:a")
    shard.lose()
    assert shard.heard(peer) == [WELCOME | {"bus": False}]
    shard.regain()
    shard.say(peer, {"op": "sub", "ch": "a", "id": 1}, {"op": "sub", "ch": "@me", "id": 2})
    assert shard.heard(peer) == []
    shard.confirm("a", "@ann")
    assert shard.heard(peer) == [
        {"op": "subbed", "ch": "a"},
        failed(409, "already_subscribed", id=1, ch="a"),
        ME,
        failed(409, "already_subscribed", id=2, ch="@me"),
    ]
    assert shard.kept() == 0


def test_repeated_subs_are_answered_503_when_the_bus_is_lost_and_429_above_their_limit(shard: Shard) -> None:
    peer = shard.enter("ann")
    shard.confirm("@ann")
    shard.heard(peer)
    shard.say(peer, *({"op": "sub", "ch": "x", "id": number} for number in range(PENDING_LIMIT + 1)))
    assert shard.heard(peer) == [failed(429, "rate_limited", id=PENDING_LIMIT, ch="x")]
    shard.lose()
    assert shard.heard(peer) == [
        failed(503, "unavailable", id=number, ch="x") for number in range(PENDING_LIMIT)
    ]
    assert shard.rig.reactor.subscriptions(peer.conn) == [b"@ann"]
    assert shard.kept() == 0


def test_unsub_before_the_confirmation_answers_a_repeated_sub_with_409(shard: Shard) -> None:
    peer = shard.enter("ann")
    shard.confirm("@ann")
    shard.heard(peer)
    subs = [{"op": "sub", "ch": "x", "id": 1}, {"op": "sub", "ch": "x", "id": 2}]
    shard.say(peer, *subs, {"op": "unsub", "ch": "x", "id": 3})
    assert shard.heard(peer) == [
        {"op": "subbed", "ch": "x", "id": 1},
        failed(409, "already_subscribed", id=2, ch="x"),
        {"op": "unsubbed", "ch": "x", "id": 3},
    ]


def test_sub_of_a_confirmed_channel_that_is_lost_is_answered_409_and_a_gap_follows(shard: Shard) -> None:
    peer = shard.enter("ann:a")
    shard.confirm("@ann", "a")
    shard.heard(peer)
    shard.lose()
    shard.regain()
    shard.say(peer, {"op": "sub", "ch": "a", "id": 1})
    assert shard.heard(peer) == [failed(409, "already_subscribed", id=1, ch="a")]
    shard.confirm("@ann", "a")
    assert shard.heard(peer) == [GAP]


def test_sub_of_a_token_channel_that_is_lost_before_the_welcome_waits_for_it(shard: Shard) -> None:
    """The subscription of the welcome is a waiter then, so that no gap would follow an early 409."""
    peer = shard.enter("ann:a")
    shard.confirm("a")
    shard.hub.on_down(starts_with(b"a"))
    shard.hub.on_up(starts_with(b"a"))
    shard.say(peer, {"op": "sub", "ch": "a", "id": 1})
    assert shard.heard(peer) == []
    shard.confirm("@ann", "a")
    messages = shard.heard(peer)
    assert messages[:2] == [WELCOME | {"bus": False}, ME]
    assert sorted(each["op"] for each in messages[2:]) == ["err", "subbed"]


def test_welcome_is_sent_without_the_bus_and_its_channels_are_confirmed_later(shard: Shard) -> None:
    other = shard.enter("bob:a")
    shard.confirm("@bob", "a")
    shard.heard(other)
    peer = shard.enter("ann:a,b")  # `a` is live already, `b` and the inbox are not
    shard.lose()
    assert shard.heard(peer) == [WELCOME | {"bus": False}]
    shard.regain()
    assert sorted(shard.bus.asked) == [b"@ann", b"@bob", b"a", b"b"]
    shard.confirm("a", "b", "@ann", "@bob")
    *follow, gap = shard.heard(peer)
    assert sorted(each["ch"] for each in follow) == ["@me", "a", "b"]
    assert {each["op"] for each in follow} == {"subbed"}
    assert gap == GAP, "as for all subscribers of `a`"
    assert [each["op"] for each in shard.heard(other)] == ["gap"]
    assert shard.kept() == 0


def test_waiting_and_new_subs_fail_with_503_when_the_bus_is_lost(shard: Shard) -> None:
    peer = shard.enter("ann")
    shard.confirm("@ann")
    shard.heard(peer)
    shard.say(peer, {"op": "sub", "ch": "x", "id": 1})
    shard.lose()
    shard.say(peer, {"op": "sub", "ch": "y", "id": 2})
    assert shard.heard(peer) == [
        failed(503, "unavailable", id=1, ch="x"),
        failed(503, "unavailable", id=2, ch="y"),
    ]
    assert shard.rig.reactor.subscriptions(peer.conn) == [b"@ann"]
    assert shard.kept() == 0


def test_recovery_fails_with_503_when_the_bus_is_lost_and_the_subscription_stays(shard: Shard) -> None:
    peer = shard.enter("ann:a")
    shard.confirm("@ann", "a")
    shard.heard(peer)
    shard.lose()
    shard.regain()  # every channel is requested again
    shard.say(peer, {"op": "sub", "ch": "a", "id": 1, "from": "Qz-5"})
    shard.lose()
    assert shard.heard(peer) == [failed(503, "unavailable", id=1, ch="a")]
    assert sorted(shard.rig.reactor.subscriptions(peer.conn)) == [b"@ann", b"a"]
    shard.regain()
    shard.say(peer, {"op": "sub", "ch": "a", "id": 2, "from": "Qz-5"})
    assert shard.heard(peer) == []
    shard.confirm("@ann", "a")
    replies, gap = shard.heard(peer)
    assert replies == {"op": "subbed", "ch": "a", "id": 2, "recovered": False}
    assert gap == GAP, "of the inbox"
    assert shard.kept() == 0


def test_token_channel_beyond_the_subscription_limit_is_answered_429(shard: Shard) -> None:
    """The inbox does not count for the limit."""
    peer = shard.enter("ann:a,b,c,d,e")
    shard.confirm("@ann", "a", "b", "c", "d")
    received = shard.heard(peer)
    assert received[0] == WELCOME
    assert ME in received
    assert received[-1] == failed(429, "rate_limited", ch="e")
    assert len(received) == 7


def test_auth_of_an_anonymous_client_confirms_all_channels_of_its_token() -> None:
    shard = Shard(allow_anonymous=True)
    peer = shard.enter()
    assert shard.heard(peer) == [{"op": "welcome"}]
    shard.say(peer, {"op": "sub", "ch": "a", "id": 1})
    shard.confirm("a")
    shard.say(peer, {"op": "auth", "token": "ann:a"})
    shard.confirm("@ann")
    received = shard.heard(peer)
    assert received[:2] == [{"op": "subbed", "ch": "a", "id": 1}, WELCOME]
    assert sorted(each["ch"] for each in received[2:]) == ["@me", "a"]
    assert shard.kept() == 0
    shard.rig.close()


def test_forget_drops_the_state_of_a_connection_at_every_stage(shard: Shard) -> None:
    waiting, asking, odd = shard.enter("ann"), shard.enter("bob"), shard.enter()
    nobody = shard.enter(None, ("a",))
    bad = shard.enter("")  # invalid: refused, and closing
    shard.confirm("@bob")
    shard.say(asking, {"op": "sub", "ch": "x", "id": 1})
    shard.say(odd, {"x": 1})
    assert shard.kept() > 0
    for peer in (waiting, asking, odd, nobody, bad):
        shard.forget(peer)
    shard.confirm("@ann", "x")
    assert shard.kept() == 0


def test_publish_is_answered_and_the_pass_woken_when_its_bus_command_completes(shard: Shard) -> None:
    peer = shard.enter("ann")
    shard.confirm("@ann")
    shard.heard(peer)
    publish = {"op": "pub", "ch": "a", "data": 1}
    shard.say(peer, publish | {"id": 1}, publish | {"id": 2}, publish, publish)
    assert shard.heard(peer) == []
    for outcome, done in zip(["", "down", "", "unknown"], shard.bus.published, strict=True):
        before = shard.wakes
        done(outcome)
        assert shard.wakes == before + 1  # otherwise the reply would wait until the next tick
    assert shard.heard(peer) == [
        {"op": "ok", "id": 1},
        failed(503, "unavailable", id=2, ch="a"),
        failed(503, "unavailable", ch="a"),
    ]


def test_client_is_not_read_at_the_limit_of_unanswered_publishes(shard: Shard) -> None:
    peer = shard.enter("ann")
    shard.confirm("@ann")
    for _ in range(UNDER_WAY_LIMIT):
        shard.say(peer, {"op": "pub", "ch": "a", "data": 1})
    ping = b"\x81\x8d\x00\x00\x00\x00" + b'{"op":"ping"}'
    peer.send(ping)
    shard.rig.turn()
    assert shard.rig.messages(peer) == []
    for done in shard.bus.published:
        done("")
    shard.rig.turn()
    assert shard.rig.messages(peer) == [b'{"op":"ping"}']


def test_client_is_not_read_above_the_byte_limit_of_unanswered_publishes(shard: Shard) -> None:
    peer = shard.enter("ann")
    shard.confirm("@ann")
    for _ in range(UNDER_WAY_LIMIT_BYTES // 60_000):
        shard.say(peer, {"op": "pub", "ch": "a", "data": "x" * 60_000})
    assert not inspected(shard, peer)["paused"]
    shard.say(peer, {"op": "pub", "ch": "a", "data": "x" * 60_000})
    assert inspected(shard, peer)["paused"]
    for done in shard.bus.published:
        done("")
    assert not inspected(shard, peer)["paused"]
    assert shard.commands.waiting_bytes == 0


def test_crowded_publish_is_answered_429_and_pauses_reading_until_half_are_answered(shard: Shard) -> None:
    peer = shard.enter("ann")
    shard.confirm("@ann")
    shard.heard(peer)
    for number in range(4):
        shard.say(peer, {"op": "pub", "ch": "a", "data": 1, "id": number})
    shard.bus.published[3](CROWDED)
    assert shard.heard(peer) == [failed(429, "rate_limited", id=3, ch="a")]
    assert inspected(shard, peer)["paused"]
    shard.bus.published[0]("")
    assert inspected(shard, peer)["paused"]
    shard.bus.published[1]("")
    assert not inspected(shard, peer)["paused"], "half of the publishes are answered"
    shard.bus.published[2]("")
    assert (shard.counts["publishes_crowded"], shard.counts["publishes_failed"]) == (1, 1)


def test_publish_takes_its_turn_by_user_or_for_guests_by_address() -> None:
    shard = Shard(allow_anonymous=True)
    try:
        known, other, guest = shard.enter("ann"), shard.enter("ann"), shard.enter()
        shard.confirm("@ann")
        for peer in (known, other, guest):
            shard.say(peer, {"op": "pub", "ch": "a", "data": 1})
        assert shard.bus.senders == [
            Sender("ann", known.conn),
            Sender("ann", other.conn),
            Sender(shard.rig.reactor.origin(guest.conn), guest.conn),
        ]
    finally:
        shard.rig.close()


def test_publishes_over_the_rate_are_answered_429_and_never_with_a_close() -> None:
    shard = Shard(publish_rate_per_s=1, publish_burst=3)
    try:
        peer, other = shard.enter("ann"), shard.enter("bob")
        shard.confirm("@ann", "@bob")
        shard.heard(peer)
        for number in range(50):
            shard.say(peer, {"op": "pub", "ch": "a", "data": 1, "id": number})
        shard.say(peer, {"op": "pub", "ch": "@bob", "data": 1, "id": 50})
        shard.say(other, {"op": "pub", "ch": "a", "data": 1})
        assert 4 <= len(shard.bus.published) <= 20, "a slow machine lets one more pass each second"
        shard.rig.turn()
        replies = [json.loads(frame.payload) for frame in peer.frames()]
        assert replies[-1]["error"] == "bad_request", "a final error has no retry time"
        limited = [each for each in replies if each.get("error") == "rate_limited"]
        assert len(limited) == shard.counts["publishes_over_rate"] >= 30
        assert all(each["code"] == 429 and 0 < each["retry_ms"] <= 1_000 for each in limited)
        assert inspected(shard, peer)["state"] == inspected(shard, other)["state"]
    finally:
        shard.rig.close()


# --- a cluster with one server down -------------------------------------------------------------------


def starts_with(letter: bytes) -> Covers:
    """The names that live on one server."""
    return lambda name: name[:1] == letter


def test_channel_of_a_reachable_cluster_server_is_confirmed_while_another_is_down(shard: Shard) -> None:
    away: set[bytes] = set()
    shard.bus.is_up_for = lambda name: name[:1] not in away  # type: ignore[method-assign]
    bob = shard.enter("bob:a")
    shard.confirm("@bob", "a")
    shard.heard(bob)
    away.add(b"b")
    shard.hub.on_down(starts_with(b"b"))
    ann = shard.enter("ann:a,b")
    shard.confirm("@ann")
    assert shard.heard(ann) == [
        {"op": "welcome", "user": "ann", "bus": False},
        {"op": "subbed", "ch": "a"},
        {"op": "subbed", "ch": "@me"},
    ]
    away.clear()
    shard.hub.on_up(starts_with(b"b"))
    shard.confirm("b")
    assert shard.heard(ann) == [{"op": "subbed", "ch": "b"}]
    assert not shard.logins._welcomes, "the completed welcome is not kept"


def test_channel_lost_before_the_welcome_is_confirmed_only_after_resubscription(
    shard: Shard,
) -> None:
    away: set[bytes] = set()
    shard.bus.is_up_for = lambda name: name[:1] not in away  # type: ignore[method-assign]
    ann = shard.enter("ann:a,b")
    shard.confirm("@ann", "a")
    assert shard.heard(ann) == []
    away.add(b"a")
    shard.hub.on_down(starts_with(b"a"))
    assert shard.heard(ann) == []
    shard.confirm("b")
    assert shard.heard(ann) == [
        {"op": "welcome", "user": "ann", "bus": False},
        {"op": "subbed", "ch": "@me"},
        {"op": "subbed", "ch": "b"},
    ]
    away.clear()
    shard.hub.on_up(starts_with(b"a"))
    shard.confirm("a")
    assert shard.heard(ann) == [{"op": "subbed", "ch": "a"}]
    assert not shard.logins._welcomes


def test_token_channel_forbidden_before_the_welcome_is_refused_after_it_and_never_confirmed(
    shard: Shard,
) -> None:
    peer = shard.enter("ann:a")
    shard.confirm("a")
    shard.hub.on_refused(b"a")
    assert shard.heard(peer) == [], "the welcome waits for the inbox"
    assert shard.rig.reactor.subscriptions(peer.conn) == [b"@ann"]
    shard.confirm("@ann")
    assert shard.heard(peer) == [WELCOME, ME, failed(403, "permission_denied", ch="a")]
    assert not shard.logins._welcomes


def test_loss_of_a_sub_before_auth_keeps_the_channel_that_the_token_lists_too() -> None:
    shard = Shard(allow_anonymous=True)
    peer = shard.enter()
    shard.say(peer, {"op": "sub", "ch": "a", "id": 1}, {"op": "auth", "token": "ann:a", "id": 2})
    shard.heard(peer)
    shard.lose()
    shard.heard(peer)
    assert sorted(shard.rig.reactor.subscriptions(peer.conn)) == [b"@ann", b"a"]
    shard.regain()
    shard.confirm("@ann", "a")
    assert sorted(each["ch"] for each in shard.heard(peer)) == ["@me", "a"]
    assert not shard.logins._welcomes
    shard.rig.close()


# --- permissions are shared and accounted -------------------------------------------------------------


def test_connections_with_equal_permissions_share_one_set_until_the_last_has_changed(shard: Shard) -> None:
    table = shard.parts.tokens.permissions
    peers = [shard.enter("ann:a,b") for _ in range(5)]
    assert len(table) == 1 and table.bytes_held > 0
    members = [shard.rig.reactor.meta(peer.conn) for peer in peers]
    assert all(member.permissions is members[0].permissions for member in members)
    one = table.bytes_held
    shard.members.keep(peers[0].conn, Identity("ann", Permissions(("c",), (), ()), 0), members[0])
    assert len(table) == 2 and one < table.bytes_held < 2 * one
    for peer in peers:
        shard.members.release(shard.rig.reactor.meta(peer.conn))
        shard.rig.reactor.set_meta(peer.conn, None)
    assert (len(table), table.bytes_held) == (0, 0)


def test_permission_set_of_an_ended_connection_is_not_kept(shard: Shard) -> None:
    peer = shard.rig.connect()
    shard.rig.reactor.abort(peer.conn)
    shard.rig.turn()
    shard.members.keep(peer.conn, Identity("ann", Permissions(("a",), (), ()), 0), None)
    assert len(shard.parts.tokens.permissions) == 0


# --- refusals that pass -------------------------------------------------------------------------------


def raw(shard: Shard, peer: Peer) -> list[dict[str, Any]]:
    shard.hub.tidy()
    shard.rig.turn()
    return [json.loads(frame.payload) for frame in peer.frames()]


@pytest.mark.parametrize(
    ("cause", "code", "error"), [("behind", 429, "rate_limited"), ("bus_memory", 503, "unavailable")]
)
def test_temporarily_refused_subscription_has_a_retry_time(
    shard: Shard, cause: str, code: int, error: str
) -> None:
    peer = shard.enter("ann")
    shard.confirm("@ann")
    if cause == "behind":
        shard.bus.unsent = UNSENT_LIMIT
    else:
        shard.hub.takes_name = lambda: False
    raw(shard, peer)
    shard.say(peer, {"op": "sub", "ch": "news", "id": 1})
    (answer,) = raw(shard, peer)
    assert (answer["op"], answer["id"], answer["code"], answer["error"]) == ("err", 1, code, error)
    assert answer["retry_ms"] >= RETRY_MS
    assert shard.counts[f"subscriptions_{cause}"] == 1


def test_temporarily_refused_token_channel_does_not_delay_the_welcome(shard: Shard) -> None:
    shard.hub.takes_name = lambda: False
    peer = shard.enter("ann:news")
    shard.confirm("@ann")
    welcome, inbox, refused = raw(shard, peer)
    assert (welcome["op"], inbox["op"], inbox["ch"]) == ("welcome", "subbed", "@me")
    assert (refused["error"], refused["ch"]) == ("unavailable", "news") and refused["retry_ms"] >= RETRY_MS


# --- a publish is answered `ok` only while this shard receives ----------------------------------------


PUBLISH = {"op": "pub", "ch": "a", "data": 1, "id": 7}
REFUSED = failed(503, "unavailable", id=7, ch="a")


@pytest.fixture
def subscribed(shard: Shard) -> Peer:
    """A subscriber of `a`, confirmed."""
    peer = shard.enter("ann:a")
    shard.confirm("@ann", "a")
    shard.heard(peer)
    return peer


def test_publish_is_answered_503_until_its_channel_is_resubscribed(shard: Shard, subscribed: Peer) -> None:
    shard.lose()
    shard.say(subscribed, PUBLISH)
    assert (shard.heard(subscribed), shard.bus.published) == ([REFUSED], [])
    shard.regain()
    shard.say(subscribed, PUBLISH)
    assert shard.heard(subscribed) == [REFUSED], "`a` is not subscribed again"
    shard.say(subscribed, PUBLISH | {"ch": "nobody-here"})
    shard.bus.published.pop()("")
    assert shard.heard(subscribed) == [{"op": "ok", "id": 7}], "no local subscriber can miss it"
    shard.confirm("@ann", "a")
    shard.say(subscribed, PUBLISH)
    shard.bus.published.pop()("")
    assert {"op": "ok", "id": 7} in shard.heard(subscribed)


def test_publish_whose_outcome_comes_after_a_bus_loss_is_answered_503(shard: Shard, subscribed: Peer) -> None:
    shard.say(subscribed, PUBLISH)
    shard.lose()
    shard.bus.published.pop()("")
    assert shard.heard(subscribed) == [REFUSED]


def test_publish_without_any_receiver_is_answered_503_and_reports_the_channel(
    shard: Shard, subscribed: Peer
) -> None:
    shard.say(subscribed, PUBLISH)
    assert shard.bus.must_reach == [True]
    shard.bus.published.pop()("unheard")
    assert shard.heard(subscribed) == [REFUSED]
    assert shard.unheard == [b"wsgate:ch:a"]


def test_publish_needs_no_receiver_without_a_confirmed_local_subscriber(
    shard: Shard, subscribed: Peer
) -> None:
    shard.say(subscribed, PUBLISH | {"ch": "b"})
    shard.say(subscribed, {"op": "sub", "ch": "c", "id": 1}, PUBLISH | {"ch": "c"})  # not confirmed yet
    assert shard.bus.must_reach == [False, False]


def test_publish_without_receiver_is_answered_ok_if_the_channel_was_left_meanwhile(
    shard: Shard, subscribed: Peer
) -> None:
    shard.say(subscribed, PUBLISH, {"op": "unsub", "ch": "a"})
    shard.heard(subscribed)
    shard.say(subscribed, {"op": "sub", "ch": "a", "id": 1})
    shard.confirm("a")  # the publish came between the two, when the channel had no subscriber
    shard.bus.published.pop()("unheard")
    assert {"op": "ok", "id": 7} in shard.heard(subscribed)
    assert shard.unheard == []


def test_publish_without_receiver_reports_no_channel_after_a_bus_loss(shard: Shard, subscribed: Peer) -> None:
    shard.say(subscribed, PUBLISH)
    shard.lose()
    shard.regain()
    shard.confirm("@ann", "a")
    shard.bus.published.pop()("unheard")
    assert shard.unheard == []
    assert shard.kept() == 0
    assert not shard.hub._watches, "no state is kept when all is answered"


def test_greedy_user_leaves_room_in_the_byte_budget_for_another_user(shard: Shard) -> None:
    shard.commands.budget = ByteBudget(ByteRates(shard_per_s=1_000, shard_burst=100_000))
    greedy, good = [shard.enter("ann"), shard.enter("ann")], shard.enter("bob")
    for peer in greedy * 10:
        shard.say(peer, {"op": "pub", "ch": "news", "data": "x" * 10_000})
    assert shard.counts["publishes_over_bytes"] == 15
    shard.say(good, {"op": "pub", "ch": "news", "data": "x" * 30_000})
    assert shard.counts["publishes_over_bytes"] == 15


def test_publish_over_the_byte_budget_is_answered_429_with_a_retry_time(shard: Shard) -> None:
    shard.commands.budget = ByteBudget(ByteRates(connection_per_s=2_000))
    peer, other = shard.enter("ann"), shard.enter("bob")
    shard.confirm("@ann", "@bob")
    raw(shard, peer)
    for number in range(3):
        shard.say(peer, {"op": "pub", "ch": "news", "data": "x" * 1_500, "id": number})
    shard.say(other, {"op": "pub", "ch": "news", "data": "x" * 1_500, "id": 9})
    assert len(shard.bus.published) == 2
    refused = raw(shard, peer)
    assert [(each["id"], each["code"], each["error"]) for each in refused] == [
        (1, 429, "rate_limited"),
        (2, 429, "rate_limited"),
    ]
    assert all(0 < each["retry_ms"] < 2_000 for each in refused)
    assert shard.counts["publishes_over_bytes"] == 2
    shard.commands.forget(peer.conn)
    shard.commands.forget(other.conn)
    assert shard.commands.budget.bytes_estimate == 0
