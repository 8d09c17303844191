"""Check the replies to refused tokens: clients reconnect after a passing fault and not after a final one."""

import json
from collections.abc import Iterator
from typing import Any, Final, cast

import pytest

from tests.support.reactor_rig import Peer
from tests.unit.shard.test_sessions import Shard
from wsgate.auth import FAULTS, NO_PERMISSIONS, ChannelGrant, Identity, TokenError
from wsgate.reasons import REASONS, Reason
from wsgate.shard.byes import RETRY_MS, comes_back
from wsgate.shard.tokens import Tokens

PASSING: Final = {"awaited_key", "not_yet_valid"}
"""Faults with which the same token is valid later."""
FRESH: Final = {"expired", "revoked"}
"""Faults with which a fresh token is accepted."""
RETRY_S: Final = 90.5


class Refusing:
    """Fake tokens that are refused with the fault that they name; any other token is its user."""

    def recall(self, token: str, now_s: float) -> Identity | None:
        return None

    def connection(self, token: str, now_s: float) -> Identity:
        if token in FAULTS:
            raise TokenError(token, retry_s=RETRY_S if token == "not_yet_valid" else 0.0)
        return Identity(token, NO_PERMISSIONS, 0)

    def channel(self, token: str, channel: str, user: str, now_s: float) -> ChannelGrant:
        self.connection(token, now_s)
        return ChannelGrant(user, channel, 0)


@pytest.fixture
def shard() -> Iterator[Shard]:
    made = Shard()
    made.attach(tokens=cast(Tokens, Refusing()))
    yield made
    made.rig.close()


def told(shard: Shard, peer: Peer) -> list[dict[str, Any]]:
    """Return all text messages that a client received, with all fields."""
    shard.hub.tidy()
    shard.rig.turn()
    return [json.loads(frame.payload) for frame in peer.frames() if frame.opcode == 1]


def is_wait_until_valid(retry_ms: int) -> bool:
    return RETRY_S * 1000 <= retry_ms <= RETRY_S * 1000 + RETRY_MS


@pytest.mark.parametrize("fault", FAULTS)
def test_refused_login_token_closes_with_reconnect_only_for_a_temporary_fault(
    fault: str, shard: Shard
) -> None:
    peer = shard.enter(fault)
    error, bye = told(shard, peer)
    assert (error["op"], error["code"], error["error"]) == ("err", 401, "unauthorized")
    assert bye["op"] == "bye"
    is_back = fault in PASSING | FRESH
    assert bye["reconnect"] is is_back is comes_back(bye["code"])
    assert ("retry_ms" in bye) is is_back
    assert "retry_ms" not in error
    assert bye["code"] == REASONS[Reason[bye["reason"].upper()]].close_code
    assert (4000 <= bye["code"] < 4500) is is_back
    if fault == "not_yet_valid":
        assert is_wait_until_valid(bye["retry_ms"])


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("op", ["refresh", "sub"])
def test_refused_token_in_a_command_has_a_retry_time_only_for_a_passing_fault(
    fault: str, op: str, shard: Shard
) -> None:
    peer = shard.enter("ann")
    shard.confirm("@ann")
    told(shard, peer)
    channel = {"ch": "chat:42"} if op == "sub" else {}
    shard.say(peer, {"op": op, "id": 7, "token": fault} | channel)
    (error,) = told(shard, peer)
    assert (error["error"], error["id"], error.get("ch")) == ("unauthorized", 7, channel.get("ch"))
    assert ("retry_ms" in error) is (fault in PASSING)
    if fault == "not_yet_valid":
        assert is_wait_until_valid(error["retry_ms"])


def test_retry_times_for_tokens_not_yet_valid_are_spread(shard: Shard) -> None:
    waits = {told(shard, shard.enter("not_yet_valid"))[-1]["retry_ms"] for _ in range(20)}
    assert len(waits) > 10
