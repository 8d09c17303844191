"""Revoked users: bounded, idempotent, and no revocation is lost in silence."""

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.auth.revoked import NOBODY, RevokedUsers


def test_no_user_is_revoked_at_first() -> None:
    for revoked in (RevokedUsers(10), NOBODY):
        assert len(revoked) == 0 and revoked.bytes_estimate == 0
        assert not any(revoked.is_revoked("42", iat) for iat in (None, 0, -5, -1e300, 1e300))


def test_of_several_times_the_latest_counts_in_whatever_order_they_come() -> None:
    times = [100.0, 300.0, 200.0, 300.0, 50.0]
    for seed in range(10):
        random.Random(seed).shuffle(times)
        revoked = RevokedUsers(10)
        for before_s in times:
            assert not revoked.revoke("42", before_s)
        assert revoked.before_s("42") == 300.0
        assert len(revoked) == 1


def test_beyond_the_bound_the_earliest_becomes_one_for_all() -> None:
    revoked = RevokedUsers(3)
    assert [revoked.revoke(f"user-{time_s}", time_s) for time_s in (30, 10, 20)] == [False] * 3
    assert revoked.revoke("user-40", 40)
    assert len(revoked) == 3 and "user-10" not in revoked
    assert revoked.all_before_s == 10
    for user in ("user-10", "anybody"):
        assert revoked.is_revoked(user, 9)
        assert not revoked.is_revoked(user, 10)
    assert revoked.is_revoked("user-30", 29) and not revoked.is_revoked("user-30", 30)
    # Without `iat` the time for all would lock everybody out for ever.
    assert not revoked.is_revoked("anybody", None)
    assert revoked.is_revoked("user-30", None)


def test_one_that_is_earlier_than_all_the_others_is_the_one_that_is_displaced() -> None:
    revoked = RevokedUsers(2)
    for user, before_s in (("a", 100), ("b", 200), ("late", 50)):
        revoked.revoke(user, before_s)
    assert "late" not in revoked and revoked.all_before_s == 50
    assert revoked.is_revoked("late", 49) and not revoked.is_revoked("late", 50)


def test_a_user_revoked_again_and_again_takes_one_place_and_no_more_memory() -> None:
    revoked = RevokedUsers(100)
    for number in range(10_000):
        revoked.revoke("42", float(number))
    assert len(revoked) == 1
    assert len(revoked._by_time) <= 66
    assert revoked.before_s("42") == 9_999


def test_what_is_over_is_forgotten() -> None:
    revoked = RevokedUsers(10)
    for number in range(10):
        revoked.revoke(f"user-{number}", float(number))
    revoked.revoke("user-0", 100.0)
    assert revoked.forget_before(5.0) == 4  # 1, 2, 3 and 4
    assert len(revoked) == 6 and revoked.before_s("user-0") == 100.0 and "user-5" in revoked
    assert revoked.forget_before(1_000.0) == 6
    assert len(revoked) == 0 and revoked.bytes_estimate == 0 and not revoked._by_time
    assert revoked.all_before_s == 0, "what is over by itself becomes nobody's"


STEPS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 50), st.booleans()), max_size=60)


@given(STEPS, st.integers(1, 5))
def test_no_revocation_is_ever_lost_for_a_token_with_iat(
    steps: list[tuple[int, int, bool]], limit: int
) -> None:
    """Compared with a table without a bound; what was forgotten as over need not be known."""
    revoked, model, over_s = RevokedUsers(limit), dict[str, float](), 0
    for number, time_s, forgets in steps:
        if forgets:
            revoked.forget_before(time_s)
            over_s = max(over_s, time_s)
        else:
            user = f"user-{number}"
            revoked.revoke(user, time_s)
            model[user] = max(model.get(user, 0), time_s)
        assert len(revoked) <= limit
        for user, before_s in model.items():
            if before_s >= over_s:
                assert before_s == 0 or revoked.is_revoked(user, before_s - 1)
    names = sum(len(user) for user in revoked._before)
    assert revoked.bytes_estimate == names + 180 * len(revoked)


@pytest.mark.parametrize("size", [8, 36, 128])
def test_the_estimate_is_near_what_is_held(size: int) -> None:
    tracemalloc.start()
    try:
        revoked = RevokedUsers(10_000)
        before = tracemalloc.get_traced_memory()[0]
        for number in range(8_000):
            revoked.revoke(f"{number:0{size}}", 1_800_000_000.5 + number)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.7 * held < revoked.bytes_estimate < 1.5 * held
