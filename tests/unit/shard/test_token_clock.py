"""Check tokens of a shard after steps of the wall clock: none is refused too early or accepted too long."""

from collections import Counter
from typing import Final

import jwt
import pytest

from wsgate.auth import TokenError, TokenPolicy, make_key
from wsgate.shard.tokens import SWEEP_TICKS, Tokens

SECRET: Final = b"an example secret of more than 32 bytes"
NOW_S: Final = 1_800_000_000.25


def token(*, ttl_s: int = 600, user: str = "42", iat_s: float = NOW_S) -> str:
    claims = {"sub": user, "iat": int(iat_s), "exp": int(iat_s) + ttl_s}
    return jwt.encode(claims, SECRET, "HS256")


class TokensRig:
    """The tokens of a shard and their counters."""

    def __init__(self, *, leeway_s: int = 0, max_life_s: int = 0) -> None:
        self.counts: Counter[str] = Counter()
        policy = TokenPolicy(leeway_s=leeway_s, token_max_life_s=max_life_s)
        self.tokens = Tokens((make_key(None, "HS256", secret=SECRET),), policy, 1_000, self._count)

    def _count(self, name: str, amount: int) -> None:
        self.counts[name] += amount

    def outcome(self, token: str, now_s: float) -> str:
        """Return `verified`, `cached`, or the fault."""
        before = self.counts.copy()
        try:
            self.tokens.connection(token, now_s)
        except TokenError as error:
            return error.fault
        (name,) = self.counts - before
        return name.removeprefix("tokens_")


@pytest.mark.parametrize("leeway_s", [0, 5])
@pytest.mark.parametrize("step_s", [-86_400, -3_600, -59, -1, 0, 1, 59, 3_600, 86_400])
def test_cached_token_has_the_same_outcome_as_a_new_one_after_a_clock_step(
    step_s: int, leeway_s: int
) -> None:
    """A shard that has cached the token and one that has not agree after any step."""
    for ttl_s in (30, 600, 100_000):
        shown = token(ttl_s=ttl_s)
        rig = TokensRig(leeway_s=leeway_s)
        assert [rig.outcome(shown, NOW_S) for _ in range(2)] == ["verified", "cached"]
        for later_s in (0, 1, 29, 31, 36, 301, 601):
            now_s = NOW_S + step_s + later_s
            fresh = TokensRig(leeway_s=leeway_s).outcome(shown, now_s)
            known = rig.outcome(shown, now_s)
            assert known == fresh or (known, fresh) == ("cached", "verified"), (ttl_s, later_s)


def test_shrink_frees_the_wanted_bytes_and_evicted_tokens_are_verified_again() -> None:
    rig = TokensRig()
    empty = rig.tokens.cached_bytes
    shown = [token(user=str(number)) for number in range(200)]
    assert {rig.outcome(each, NOW_S) for each in shown} == {"verified"}
    held = rig.tokens.cached_bytes
    rig.tokens.revoke("7", NOW_S - 1_000)
    assert held // 2 <= rig.tokens.shrink(held // 2, NOW_S) < held
    assert 0 < rig.tokens.cached < 120
    assert rig.tokens.shrink(2 * held, NOW_S) > 0
    assert rig.tokens.cached_bytes == empty
    assert (rig.tokens.cached, rig.tokens.revoked) == (0, 1)
    assert rig.tokens.shrink(held, NOW_S) == 0
    assert rig.counts["tokens_evicted"] == 200
    assert [rig.outcome(shown[0], NOW_S) for _ in range(2)] == ["verified", "cached"]


def test_token_is_verified_once_after_a_clock_step_back_and_then_cached_again() -> None:
    rig, shown = TokensRig(), token(iat_s=NOW_S - 100)
    assert rig.outcome(shown, NOW_S) == "verified"
    assert [rig.outcome(shown, NOW_S - 50) for _ in range(3)] == ["verified", "cached", "cached"]
    assert rig.outcome(shown, NOW_S - 50 + 301) == "verified"


@pytest.mark.parametrize("ahead_s", [3_600, 86_400, 1e9])
def test_revocation_outlives_a_wall_clock_that_is_ahead_for_a_moment(ahead_s: float) -> None:
    rig, shown = TokensRig(max_life_s=600), token(iat_s=NOW_S - 10)
    rig.tokens.revoke("42", NOW_S)
    for tick in range(600):
        is_ahead = 100 <= tick < 130
        rig.tokens.tick(NOW_S + tick + is_ahead * ahead_s, 50.0 + tick)
        assert rig.tokens.revoked == 1
    assert rig.outcome(shown, NOW_S + 100) == "revoked"
    rig.tokens.tick(NOW_S + 601, 651.0)
    assert rig.tokens.revoked == 0


def test_revocation_is_forgotten_later_after_steps_of_the_wall_clock_but_is_forgotten() -> None:
    rig = TokensRig(max_life_s=600)
    rig.tokens.tick(NOW_S, 50.0)
    rig.tokens.revoke("42", NOW_S)
    rig.tokens.tick(NOW_S - 300, 51.0)  # a step back for a moment: what has passed counts from here
    rig.tokens.tick(NOW_S + 599, 650.0)
    assert rig.tokens.revoked == 1
    rig.tokens.tick(NOW_S + 899, 950.0)
    assert rig.tokens.revoked == 1
    rig.tokens.tick(NOW_S + 902, 953.0)
    assert rig.tokens.revoked == 0


def test_ticks_free_outdated_cache_entries_without_any_new_token() -> None:
    rig = TokensRig()
    empty = rig.tokens.cached_bytes
    for number in range(500):
        rig.outcome(token(user=str(number)), NOW_S)
    assert rig.tokens.cached == 500
    for tick in range(SWEEP_TICKS):
        rig.tokens.tick(NOW_S + 200 + tick, 200.0 + tick)
    assert rig.tokens.cached == 500
    for tick in range(2 * SWEEP_TICKS):
        rig.tokens.tick(NOW_S + 300 + tick, 300.0 + tick)
    assert rig.tokens.cached == 0
    assert rig.tokens.cached_bytes == empty
