"""Whom a backend's control commands reach: every connection of the user, whatever it did or waits for."""

import json
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from tests.support.reactor_rig import Peer
from tests.unit.shard.test_sessions import ME, Shard
from wsgate.auth import Identity, Permissions
from wsgate.dialects import DIALECTS, Dialect
from wsgate.reactor import Settings
from wsgate.shard.control import Control
from wsgate.shard.handshakes import Entry
from wsgate.shard.pausing import Pauser
from wsgate.shard.users import Users

JSON = DIALECTS[0]
HEAD = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
RESPONSE = b"HTTP/1.1 101 x\r\n\r\n"
COMMANDS: dict[str, tuple[dict[str, Any], int]] = {
    "disconnect": ({"op": "disconnect", "user": "ann"}, 4520),
    "revoke": ({"op": "revoke", "user": "ann", "before": 99_999_999_999}, 4001),
}


class CountingUsers:
    """User limits that answer when the test says so."""

    is_counting = True
    rates = None

    def __init__(self) -> None:
        self.told: dict[int, Callable[[bool], None]] = {}

    def enter(self, conn: int, user: str, told: Callable[[bool], None]) -> None:
        self.told[conn] = told


class Reach(Shard):
    """A shard with its control commands, and user limits if wished."""

    def __init__(self, *, is_counting: bool = False, allow_anonymous: bool = False) -> None:
        super().__init__(allow_anonymous=allow_anonymous)
        self.users = CountingUsers()
        if is_counting:
            self.attach(users=cast(Users, self.users))
        self.control = Control(self.parts, self.logins, "owner", self._count)

    def run(self, command: dict[str, Any]) -> None:
        self.control.run(json.dumps(command).encode())
        while self.control.step():
            pass

    def offer(self, user: str) -> Peer:
        """A connection whose token came with its head: its 101 waits for the bus."""
        peer = self.rig.connect(upgraded=False)
        peer.send(HEAD)
        self.rig.turn()
        identity = Identity(user, Permissions((), (), ()), int(time.time()) + 600)
        self.logins.enter(peer.conn, Entry(RESPONSE, JSON, 0, identity=identity))
        assert peer.conn in self.users.told
        return peer

    def ops(self, peer: Peer) -> list[str]:
        """What was said after 101, by op; a Close by its code."""
        self.hub.tidy()
        self.rig.turn()
        data = peer.receive()
        _, _, data = data.rpartition(b"\r\n\r\n") if data.startswith(b"HTTP/") else (b"", b"", data)
        said = []
        for frame in peer.reader.receive_data(data):
            if frame.opcode == 8:
                said.append(str(int.from_bytes(frame.payload[:2], "big")))
            else:
                said.append(json.loads(frame.payload)["op"])
        return said


@pytest.mark.parametrize("name", COMMANDS)
def test_connection_that_left_its_inbox_is_reached(name: str) -> None:
    command, code = COMMANDS[name]
    shard = Reach()
    bad, good, other = shard.enter("ann"), shard.enter("ann"), shard.enter("bob")
    shard.confirm("@ann", "@bob")
    shard.say(bad, {"op": "unsub", "ch": "@me", "id": 1})
    for peer in (bad, good, other):
        shard.ops(peer)
    shard.run(command)
    assert shard.ops(bad) == ["bye", str(code)]
    assert shard.ops(good) == ["bye", str(code)]
    assert shard.ops(other) == []
    shard.rig.close()


@pytest.mark.parametrize("name", COMMANDS)
def test_anonymous_connection_at_its_subscription_limit_gets_its_inbox_and_is_reached(name: str) -> None:
    command, code = COMMANDS[name]
    shard = Reach(allow_anonymous=True)
    limit = 5
    shard.rig.reactor.renew(
        Settings(**{**_settings_of(shard), "max_subscriptions": limit})  # type: ignore[arg-type]
    )
    peer = shard.enter()
    channels = [f"c{number}" for number in range(limit)]
    shard.say(peer, *({"op": "sub", "ch": each} for each in channels))
    shard.confirm(*channels)
    shard.say(peer, {"op": "auth", "token": "ann"})
    shard.confirm("@ann")
    assert ME in shard.heard(peer)
    assert shard.rig.reactor.subscribed(b"@ann") == [peer.conn]
    shard.run(command)
    assert shard.ops(peer) == ["bye", str(code)]
    shard.rig.close()


def _settings_of(shard: Shard) -> dict[str, object]:
    settings = shard.options.reactor
    return {name: getattr(settings, name) for name in settings.__slots__}


@pytest.mark.parametrize("name", COMMANDS)
def test_connection_whose_101_waits_for_the_bus_is_reached(name: str) -> None:
    """Revoked while its user is counted: it is told so as soon as it can be told anything."""
    command, code = COMMANDS[name]
    shard = Reach(is_counting=True)
    peer = shard.offer("ann")
    shard.run(command)
    assert shard.rig.reactor.inspect(peer.conn) is not None
    shard.users.told[peer.conn](True)
    assert shard.ops(peer) == ["bye", str(code)]
    assert "welcome" not in shard.ops(peer)
    shard.rig.close()


@pytest.mark.parametrize("name", COMMANDS)
def test_connection_whose_user_is_counted_after_101_is_reached(name: str) -> None:
    command, code = COMMANDS[name]
    shard = Reach(is_counting=True)
    peer = shard.enter("ann")
    shard.say(peer, {"op": "ping", "id": 1})
    shard.run(command)
    shard.users.told[peer.conn](True)
    assert shard.ops(peer) == ["bye", str(code)]
    shard.rig.close()


@pytest.mark.parametrize("is_first", [True, False])
def test_refresh_that_comes_while_the_user_is_counted_keeps_its_deadline(is_first: bool) -> None:
    shard = Reach(is_counting=True)
    peer = shard.offer("ann") if is_first else shard.enter("ann")
    shard.run({"op": "refresh", "user": "ann", "within_s": 5})
    shard.users.told[peer.conn](True)
    shard.confirm("@ann")
    assert sorted(shard.ops(peer)) == ["refresh", "subbed", "welcome"]
    begun_ms = int(time.time() * 1000)
    for passed_ms in range(0, 7_001, 250):
        shard.rig.now_ms += 250
        shard.rig.reactor.tick(shard.rig.now_ms, begun_ms + passed_ms)
        shard.rig.turn()
    assert "4001" in shard.ops(peer)
    shard.rig.close()


def test_replace_ends_the_one_connection_that_it_names() -> None:
    shard = Reach()
    first, second = shard.enter("ann"), shard.enter("ann")
    shard.confirm("@ann")
    for peer in (first, second):
        shard.ops(peer)
    conn = f"{shard.rig.reactor.public_id(first.conn):016x}"
    shard.run({"op": "replace", "user": "ann", "conn": conn, "owner": "owner"})
    assert shard.ops(first) == ["bye", "4509"]
    assert shard.ops(second) == []
    shard.rig.close()


def test_more_commands_than_a_waiting_connection_may_keep_end_it() -> None:
    shard = Reach(is_counting=True)
    peer = shard.offer("ann")
    for _ in range(40):
        shard.run({"op": "refresh", "user": "ann", "within_s": 5})
    assert shard.rig.reactor.inspect(peer.conn) is None
    shard.rig.turn()
    shard.forget(peer)
    assert shard.kept() == 0
    shard.rig.close()


# --- pauses -------------------------------------------------------------------------------------------


def test_connection_is_read_again_only_when_no_part_wants_it_paused() -> None:
    """64 commands under way, then `auth` while users are counted: their answers must not resume it."""
    shard = Reach(is_counting=True, allow_anonymous=True)
    peer = shard.enter()
    for number in range(64):
        shard.say(peer, {"op": "pub", "ch": "news", "data": number})
    assert _is_paused(shard, peer)
    shard.say(peer, {"op": "auth", "token": "ann"})
    for done in shard.bus.published:
        done("")
    assert _is_paused(shard, peer)
    shard.users.told[peer.conn](True)
    assert not _is_paused(shard, peer)
    shard.rig.close()


def test_pauses_of_two_parts_end_in_either_order() -> None:
    shard = Reach()
    peer = shard.enter("ann")
    pauses = shard.parts.pauses
    for first, second in ((Pauser.LOGIN, Pauser.COMMANDS), (Pauser.COMMANDS, Pauser.LOGIN)):
        pauses.pause(peer.conn, first)
        pauses.pause(peer.conn, second)
        pauses.resume(peer.conn, first)
        assert _is_paused(shard, peer)
        pauses.resume(peer.conn, first)
        assert _is_paused(shard, peer)
        pauses.resume(peer.conn, second)
        assert not _is_paused(shard, peer)
    shard.rig.close()


def _is_paused(shard: Shard, peer: Peer) -> bool:
    numbers = shard.rig.reactor.inspect(peer.conn)
    assert numbers is not None
    return bool(numbers["paused"])


def test_fault_in_a_buffered_message_ends_the_connection_and_leaves_nothing_paused() -> None:
    shard = Reach(is_counting=True)
    peer = shard.enter("ann")
    shard.say(peer, {"op": "ping", "id": 1})

    def fails(conn: int, dialect: Dialect, message: bytes, opcode: int) -> None:
        raise RuntimeError("planted")

    shard.users.told[peer.conn](True)
    assert not _is_paused(shard, peer)
    shard.commands.run = fails  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="planted"):
        shard.run_released()
    assert not shard.logins.has_released
    assert shard.logins.buffered == {}
    shard.rig.close()


# --- revocations --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("issued_at_s", "before", "is_ended"),
    [
        (1_000, 1_001, True),
        (1_000, 1_000.9, False),
        (1_000, 1_000, False),
        (2_000, 1_001, False),
        (0, 1, True),
        (0, 0, True),
    ],
)
@pytest.mark.parametrize("is_read", [False, True])
def test_revocation_ends_only_connections_whose_token_it_covers(
    issued_at_s: int, before: float, is_ended: bool, is_read: bool
) -> None:
    """A token of the same second, or a later one, is still accepted: its connection stays."""
    shard = Reach()
    peer = shard.rig.connect()
    identity = Identity("ann", Permissions((), (), ()), 0, issued_at_s)
    shard.logins.begin(peer.conn, Entry(b"", JSON, 0, identity=identity))
    shard.confirm("@ann")
    shard.ops(peer)
    if is_read:
        shard.control.learn("ann", before)
        while shard.control.step():
            pass
    else:
        shard.run({"op": "revoke", "user": "ann", "before": before, "within_s": None})
    assert shard.ops(peer) == (["bye", "4001"] if is_ended else [])
    shard.rig.close()


def test_revocation_that_is_taken_back_is_forgotten_by_both_who_know_it() -> None:
    shard = Reach()
    forgotten: list[tuple[str, str]] = []

    class Keeper:
        def store(self, user: str, before_s: float) -> None:
            forgotten.append(("store", user))

        def forget(self, user: str) -> None:
            forgotten.append(("forget", user))

    control = Control(shard.parts, shard.logins, "owner", shard._count, keeper=Keeper())
    control.run(b'{"op":"revoke","user":"ann","before":5}')
    control.run(b'{"op":"unrevoke","user":"ann"}')
    assert forgotten == [("store", "ann"), ("forget", "ann")]
    shard.rig.close()


@pytest.mark.parametrize("user", ["\u00e4" * 65, "\U0001f600" * 33, "x" * 129])
def test_user_of_more_bytes_than_a_token_may_name_is_malformed(user: str) -> None:
    shard = Reach()
    shard.run({"op": "revoke", "user": user, "before": 5})
    assert shard.counts["controls_malformed"] == 1
    shard.rig.close()


def test_connection_whose_101_waits_is_refused_when_the_shard_ends() -> None:
    shard = Reach(is_counting=True)
    peer = shard.offer("ann")
    shard.logins.refuse_waiting(lambda: b"HTTP/1.1 503 draining\r\n\r\n")
    shard.rig.turn()
    assert peer.receive().startswith(b"HTTP/1.1 503 ")
    shard.users.told[peer.conn](True)
    shard.rig.turn()
    assert peer.receive() == b""
    shard.rig.close()
