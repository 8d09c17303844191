"""Check that each event `connected` of a connection is followed by one `disconnected` of the same user."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from tests.support.reactor_rig import Peer
from tests.unit.shard.test_backend_events import commands_of
from tests.unit.shard.test_sessions import SETTINGS, Shard
from wsgate.bus import Appender
from wsgate.reactor import event_kinds
from wsgate.shard.backend_events import Events
from wsgate.shard.members import Members, now_ms
from wsgate.shard.options import EventOptions
from wsgate.shard.replies import Replies


class Stream:
    """An appender that keeps type, connection, user and reason of each event, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str, str]] = []

    def append(self, data: bytes, *, commands: int, stream: bytes) -> bool:
        (parts,) = commands_of(data)
        flat = [part.decode() for part in parts[parts.index(b"*") + 1 :]]
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        self.told.append((fields["type"], fields["conn"], fields.get("user", ""), fields.get("reason", "")))
        return True


class FakeUsers:
    """Counts connections of users, and answers when the test lets it."""

    rates = None

    def __init__(self, *, is_counting: bool) -> None:
        self.is_counting = is_counting
        self.asked: list[Callable[[bool], None]] = []

    def enter(self, conn: int, user: str, told: Callable[[bool], None]) -> None:
        self.asked.append(told)


class EventShard(Shard):
    """The parts of a shard with events on, and the ends of connections recorded as the process does."""

    def __init__(self, *, is_counting: bool) -> None:
        super().__init__(allow_anonymous=True, settings=replace(SETTINGS, report_meta=True))
        self.stream, self.users = Stream(), FakeUsers(is_counting=is_counting)
        options = EventOptions(enabled=frozenset({"connected", "disconnected"}))
        streams = cast(list[Appender], [self.stream])
        events = Events(options, "n", [b"s"], streams, self.rig.reactor.public_id, self._count)
        self.members = Members(self.options, self.rig.reactor, self.parts.tokens.permissions, events)
        self.replies = Replies(self.options, self.rig.reactor, events, self._count)
        self.events = events
        self.attach(events=events, users=self.users, members=self.members, replies=self.replies)

    def poll(self) -> None:
        """Let one poll report ends of connections, and handle them."""
        self.rig.now_ms += 1
        for kind, conn, value in self.rig.reactor.poll(self.rig.now_ms):
            if kind == event_kinds.CLOSED:
                reason, member = cast(tuple[int, Any], value)
                self.events.disconnected(conn, reason, member, now_ms())
                if member is not None:
                    self.members.release(member)
                for part in (self.logins, self.subscriptions, self.replies, self.commands):
                    part.forget(conn)

    def login(self, peer: Peer, user: str) -> None:
        self.say(peer, {"op": "auth", "token": user, "id": 1})

    @property
    def told(self) -> list[tuple[str, str]]:
        """Return type and user of each event."""
        return [(kind, user) for kind, _, user, _ in self.stream.told]


@pytest.fixture(params=[False, True], ids=["uncounted", "counted"])
def shard(request: pytest.FixtureRequest) -> Iterator[EventShard]:
    made = EventShard(is_counting=request.param)
    yield made
    made.rig.close()


@pytest.fixture
def counting() -> Iterator[EventShard]:
    made = EventShard(is_counting=True)
    yield made
    made.rig.close()


def test_anonymous_connection_that_becomes_a_user_has_both_events_of_each(shard: EventShard) -> None:
    peer = shard.enter(None)
    shard.login(peer, "ann")
    for told in shard.users.asked:
        told(True)
    shard.rig.reactor.abort(peer.conn)
    shard.poll()
    pairs = [("connected", ""), ("disconnected", ""), ("connected", "ann"), ("disconnected", "ann")]
    assert shard.told == pairs
    assert [reason for _, _, _, reason in shard.stream.told][1] == "none"


@pytest.mark.parametrize("may_stay", [False, None])
def test_anonymous_connection_whose_user_is_not_admitted_is_disconnected_as_anonymous(
    counting: EventShard, may_stay: bool | None
) -> None:
    peer = counting.enter(None)
    counting.login(peer, "ann")
    if may_stay is not None:
        counting.users.asked[0](may_stay)
    counting.rig.reactor.abort(peer.conn)
    counting.poll()
    assert counting.told == [("connected", ""), ("disconnected", "")]


def test_connection_that_is_gone_before_the_bus_has_counted_it_is_not_connected(counting: EventShard) -> None:
    peer = counting.enter("ann")
    counting.rig.reactor.abort(peer.conn)
    counting.users.asked[0](True)
    counting.poll()
    assert counting.told == []


@pytest.mark.parametrize("seed", range(20))
def test_each_connected_has_one_disconnected_in_random_sequences(shard: EventShard, seed: int) -> None:
    dice = random.Random(seed)
    peers: list[Peer] = []
    for number in range(300):
        act = dice.randrange(6)
        if act == 0 or not peers:
            peers.append(shard.enter(dice.choice((None, f"u{number}"))))
        elif act == 1:
            shard.login(dice.choice(peers), f"u{number}")
        elif act == 2 and shard.users.asked:
            shard.users.asked.pop(dice.randrange(len(shard.users.asked)))(dice.random() < 0.7)
        elif act == 3:
            shard.rig.reactor.abort(peers.pop(dice.randrange(len(peers))).conn)
        elif act == 4:
            shard.users.is_counting = dice.random() < 0.5
        else:
            shard.poll()
    for peer in peers:
        shard.rig.reactor.abort(peer.conn)
    shard.poll()
    for told in shard.users.asked:
        told(True)
    open_users: dict[str, str] = {}
    for kind, conn, user, _ in shard.stream.told:
        if kind == "connected":
            assert conn not in open_users
            open_users[conn] = user
        else:
            assert open_users.pop(conn) == user
    assert not open_users
