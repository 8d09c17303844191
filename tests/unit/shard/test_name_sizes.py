"""Check users, channels and positions of every size around a bound, through the parts of a shard.

The id of a user is part of the name of its inbox, and the id and each name have memory blocks of their own.
The rig compares every account with its structures, so it finds a wrong size of a block.
"""

from collections.abc import Iterator

import pytest

from tests.support.sizes import sizes_up_to
from tests.unit.shard.test_sessions import Shard
from wsgate.auth.tokens import USER_LIMIT_BYTES
from wsgate.dialects.names import CHANNEL_LIMIT_BYTES

USERS = [str(size).ljust(size, "u")[:size] for size in sizes_up_to(USER_LIMIT_BYTES, least=1)]
CHANNELS = [str(size).ljust(size, "c")[:size] for size in sizes_up_to(CHANNEL_LIMIT_BYTES, least=1)]
WIDE = ["c" * (len(name) % 2) + "\u00e4" * (len(name) // 2) for name in CHANNELS]
AT_ONCE = 3
"""Subscriptions that exist at the same time; the shard of these tests allows four with the inbox."""


@pytest.fixture
def shard() -> Iterator[Shard]:
    made = Shard()
    yield made
    made.rig.close()


def test_user_ids_of_every_size_are_welcomed_indexed_and_freed(shard: Shard) -> None:
    for user in USERS:
        peer = shard.enter(user)
        shard.confirm(f"@{user}")
        assert [reply["op"] for reply in shard.heard(peer)][:1] == ["welcome"], len(user)
        assert shard.rig.reactor.user_connections(user.encode()) == [peer.conn]
        peer.close()
        shard.rig.turn()
        shard.forget(peer)
        assert shard.rig.reactor.user_connections(user.encode()) == []
    shard.rig.reactor.take_vacated(1_000)
    assert shard.rig.count("now_channels") == 0
    assert shard.kept() == 0


@pytest.mark.parametrize("names", [CHANNELS, WIDE], ids=["one byte a sign", "two bytes a sign"])
def test_channels_of_every_size_are_subscribed_to_and_left(shard: Shard, names: list[str]) -> None:
    peer = shard.enter("ann")
    shard.confirm("@ann")
    shard.heard(peer)
    for place, name in enumerate([*names, *[""] * AT_ONCE]):
        if name:
            shard.say(peer, {"op": "sub", "ch": name})
            shard.confirm(name)
            assert shard.heard(peer) == [{"op": "subbed", "ch": name}], len(name)
        if place >= AT_ONCE:
            shard.say(peer, {"op": "unsub", "ch": names[place - AT_ONCE]})
            shard.heard(peer)
        there = names[max(0, place - AT_ONCE + 1) : place + 1]
        assert set(shard.rig.reactor.subscriptions(peer.conn)) == {b"@ann", *(ch.encode() for ch in there)}
    shard.rig.reactor.take_vacated(1_000)
    assert shard.rig.count("now_channels") == 1


def test_channel_name_that_is_empty_or_over_its_byte_limit_is_answered_400(shard: Shard) -> None:
    peer = shard.enter("ann")
    shard.confirm("@ann")
    shard.heard(peer)
    over = [size for size in sizes_up_to(1 << 13) if size > CHANNEL_LIMIT_BYTES]
    for name in ("", *("c" * size for size in over), "\u00e4" * (CHANNEL_LIMIT_BYTES // 2) + "c"):
        shard.say(peer, {"op": "sub", "ch": name, "id": 1})
        [reply] = shard.heard(peer)
        assert (reply["op"], reply["code"]) == ("err", 400), len(name)
