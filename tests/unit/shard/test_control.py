"""Check that control commands of a backend reach every connection of the user, in every state."""

import json
import random
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from tests.support.reactor_rig import Peer
from tests.unit.shard.test_sessions import ME, Shard
from wsgate.auth import Identity, Permissions
from wsgate.auth.revoked import RevokedUsers
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
    """User limits that answer when the test calls the callback."""

    is_counting = True
    rates = None

    def __init__(self) -> None:
        self.callbacks: dict[int, Callable[[bool], None]] = {}

    def enter(self, conn: int, user: str, callbacks: Callable[[bool], None]) -> None:
        self.callbacks[conn] = callbacks


class ControlledShard(Shard):
    """A shard with its control commands, and with user limits if `is_counting`."""

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
        """Return a connection whose token arrived with its head and whose 101 waits for the bus."""
        peer = self.rig.connect(upgraded=False)
        peer.send(HEAD)
        self.rig.turn()
        identity = Identity(user, Permissions((), (), ()), int(time.time()) + 600)
        self.logins.enter(peer.conn, Entry(RESPONSE, JSON, 0, identity=identity))
        assert peer.conn in self.users.callbacks
        return peer

    def ops(self, peer: Peer) -> list[str]:
        """Return the operations of all messages after the 101, and the code of a Close."""
        self.hub.tidy()
        self.rig.turn()
        data = peer.receive()
        _, _, data = data.rpartition(b"\r\n\r\n") if data.startswith(b"HTTP/") else (b"", b"", data)
        received = []
        for frame in peer.reader.receive_data(data):
            if frame.opcode == 8:
                received.append(str(int.from_bytes(frame.payload[:2], "big")))
            else:
                received.append(json.loads(frame.payload)["op"])
        return received


@pytest.mark.parametrize("name", COMMANDS)
def test_command_closes_connections_that_unsubscribed_from_their_inbox(name: str) -> None:
    command, code = COMMANDS[name]
    shard = ControlledShard()
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
def test_command_closes_a_connection_that_authenticated_at_its_subscription_limit(name: str) -> None:
    command, code = COMMANDS[name]
    shard = ControlledShard(allow_anonymous=True)
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
def test_command_closes_a_connection_whose_101_waits_for_the_user_count(name: str) -> None:
    """The close is sent as soon as the connection can receive messages."""
    command, code = COMMANDS[name]
    shard = ControlledShard(is_counting=True)
    peer = shard.offer("ann")
    shard.run(command)
    assert shard.rig.reactor.inspect(peer.conn) is not None
    shard.users.callbacks[peer.conn](True)
    assert shard.ops(peer) == ["bye", str(code)]
    assert "welcome" not in shard.ops(peer)
    shard.rig.close()


@pytest.mark.parametrize("name", COMMANDS)
def test_command_closes_a_connection_whose_user_is_counted_after_the_101(name: str) -> None:
    command, code = COMMANDS[name]
    shard = ControlledShard(is_counting=True)
    peer = shard.enter("ann")
    shard.say(peer, {"op": "ping", "id": 1})
    shard.run(command)
    shard.users.callbacks[peer.conn](True)
    assert shard.ops(peer) == ["bye", str(code)]
    shard.rig.close()


@pytest.mark.parametrize("is_first", [True, False])
def test_refresh_command_during_the_user_count_keeps_its_deadline(is_first: bool) -> None:
    shard = ControlledShard(is_counting=True)
    peer = shard.offer("ann") if is_first else shard.enter("ann")
    shard.run({"op": "refresh", "user": "ann", "within_s": 5})
    shard.users.callbacks[peer.conn](True)
    shard.confirm("@ann")
    assert sorted(shard.ops(peer)) == ["refresh", "subbed", "welcome"]
    begun_ms = int(time.time() * 1000)
    for passed_ms in range(0, 7_001, 250):
        shard.rig.now_ms += 250
        shard.rig.reactor.tick(shard.rig.now_ms, begun_ms + passed_ms)
        shard.rig.turn()
    assert "4001" in shard.ops(peer)
    shard.rig.close()


def test_replace_command_closes_only_the_named_connection() -> None:
    shard = ControlledShard()
    first, second = shard.enter("ann"), shard.enter("ann")
    shard.confirm("@ann")
    for peer in (first, second):
        shard.ops(peer)
    conn = f"{shard.rig.reactor.public_id(first.conn):016x}"
    shard.run({"op": "replace", "user": "ann", "conn": conn, "owner": "owner"})
    assert shard.ops(first) == ["bye", "4509"]
    assert shard.ops(second) == []
    shard.rig.close()


def test_too_many_commands_for_a_waiting_connection_end_that_connection() -> None:
    shard = ControlledShard(is_counting=True)
    peer = shard.offer("ann")
    for _ in range(40):
        shard.run({"op": "refresh", "user": "ann", "within_s": 5})
    assert shard.rig.reactor.inspect(peer.conn) is None
    shard.rig.turn()
    shard.forget(peer)
    assert shard.kept() == 0
    shard.rig.close()


# --- pauses -------------------------------------------------------------------------------------------


def test_connection_is_read_again_only_after_its_last_pause_has_ended() -> None:
    """The outcomes of 64 publishes must not resume a connection whose `auth` waits for the user count."""
    shard = ControlledShard(is_counting=True, allow_anonymous=True)
    peer = shard.enter()
    for number in range(64):
        shard.say(peer, {"op": "pub", "ch": "news", "data": number})
    assert _is_paused(shard, peer)
    shard.say(peer, {"op": "auth", "token": "ann"})
    for done in shard.bus.published:
        done("")
    assert _is_paused(shard, peer)
    shard.users.callbacks[peer.conn](True)
    shard.run_released()
    assert not _is_paused(shard, peer)
    shard.rig.close()


def test_released_messages_are_taken_up_to_a_bound_and_the_others_stay_paused_and_accounted() -> None:
    shard = ControlledShard(is_counting=True)
    peers = [shard.enter(f"u{number}") for number in range(10)]
    for number in range(30):
        for peer in peers:
            shard.say(peer, {"op": "ping", "id": number})
    for peer in peers:
        shard.users.callbacks[peer.conn](True)
    shard.logins.forget(peers[7].conn)
    taken, before = [], shard.waiting_bytes
    while shard.logins.has_released:
        part = shard.logins.take_released(64)
        assert len(part) < 64 + 30
        taken += part
        assert shard.waiting_bytes < before or not part
        before = shard.waiting_bytes
        is_left = [peer.conn in shard.logins.buffered for peer in peers]
        assert is_left[:7] + is_left[8:] == [_is_paused(shard, peer) for peer in peers[:7] + peers[8:]]
    assert [conn for _, conn, _ in taken] == [
        peer.conn for peer in peers if peer is not peers[7] for _ in range(30)
    ]
    assert [json.loads(message)["id"] for _, _, message in taken] == [*range(30)] * 9
    assert shard.logins.buffered == {}
    shard.rig.close()


def test_pauses_of_two_parts_end_in_either_order() -> None:
    shard = ControlledShard()
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


def test_exception_in_a_buffered_message_leaves_no_buffered_message_behind() -> None:
    shard = ControlledShard(is_counting=True)
    peer = shard.enter("ann")
    shard.say(peer, {"op": "ping", "id": 1})

    def fails(conn: int, dialect: Dialect, message: bytes, opcode: int) -> None:
        raise RuntimeError("planted")

    shard.users.callbacks[peer.conn](True)
    shard.commands.run = fails  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="planted"):
        shard.run_released()
    assert not _is_paused(shard, peer)
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
        (100.2, 100.5, True),
        (100.5, 100.5, False),
        (100.7, 100.5, False),
        (100, 100.5, False),
        (99.9, 100, True),
        (100.2, 100, False),
        (0.2, 0.1, True),  # before the second second of Unix time the time of issue counts as missing
    ],
)
@pytest.mark.parametrize("is_read", [False, True])
def test_revocation_closes_only_connections_with_a_token_issued_before(
    issued_at_s: float, before: float, is_ended: bool, is_read: bool
) -> None:
    """A token of the same second or of a later one is still accepted, so its connection stays open."""
    shard = ControlledShard()
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
    shard.members.forget(peer.conn)
    assert shard.members.waiting_bytes == 0
    shard.rig.close()


@pytest.mark.parametrize("seed", range(5))
def test_revocation_closes_the_connections_whose_tokens_it_refuses(seed: int) -> None:
    dice = random.Random(seed)
    shard = ControlledShard()
    issued: dict[int, float] = {}
    for _ in range(60):
        peer = shard.rig.connect()
        issued[peer.conn] = dice.choice((100, 101, 102)) + dice.choice((0, 0, 0.25, 0.5, 0.75))
        shard.members.keep(peer.conn, Identity("ann", Permissions((), (), ()), 0, issued[peer.conn]), None)
    for before_s in (100, 100.5, 101, 101.1, 101.25, 101.999, 102, 102.5, 1e18):
        revoked = RevokedUsers(1)
        revoked.revoke("ann", before_s)
        ended = sorted(conn for conn, iat in issued.items() if revoked.is_revoked("ann", iat))
        assert sorted(shard.members.issued_before(b"ann", before_s)) == ended
    shard.rig.close()


def test_unrevoke_command_deletes_the_stored_revocation() -> None:
    shard = ControlledShard()
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
def test_command_for_a_user_of_more_than_128_bytes_counts_as_malformed(user: str) -> None:
    shard = ControlledShard()
    shard.run({"op": "revoke", "user": user, "before": 5})
    assert shard.counts["controls_malformed"] == 1
    shard.rig.close()


def test_waiting_101_is_answered_503_when_the_shard_drains() -> None:
    shard = ControlledShard(is_counting=True)
    peer = shard.offer("ann")
    shard.logins.refuse_waiting(lambda: b"HTTP/1.1 503 draining\r\n\r\n")
    shard.rig.turn()
    assert peer.receive().startswith(b"HTTP/1.1 503 ")
    shard.users.callbacks[peer.conn](True)
    shard.rig.turn()
    assert peer.receive() == b""
    shard.rig.close()
