"""Check the table of revoked users: bounded, idempotent, and without a silent loss of revocations."""

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


def test_latest_of_several_revocation_times_counts_in_any_order() -> None:
    times = [100.0, 300.0, 200.0, 300.0, 50.0]
    for seed in range(10):
        random.Random(seed).shuffle(times)
        revoked = RevokedUsers(10)
        for before_s in times:
            assert not revoked.revoke("42", before_s)
        assert revoked.before_s("42") == 300.0
        assert len(revoked) == 1


def test_earliest_revocation_beyond_the_limit_applies_to_all_users() -> None:
    revoked = RevokedUsers(3)
    assert [revoked.revoke(f"user-{time_s}", time_s) for time_s in (30, 10, 20)] == [False] * 3
    assert revoked.revoke("user-40", 40)
    assert len(revoked) == 3 and "user-10" not in revoked
    assert revoked.all_before_s == 10
    for user in ("user-10", "anybody"):
        assert revoked.is_revoked(user, 9)
        assert not revoked.is_revoked(user, 10)
    assert revoked.is_revoked("user-30", 29) and not revoked.is_revoked("user-30", 30)
    # The time for all does not apply to tokens without `iat`, which could never be accepted again.
    assert not revoked.is_revoked("anybody", None)
    assert revoked.is_revoked("user-30", None)


def test_new_revocation_earlier_than_all_others_is_displaced_itself() -> None:
    revoked = RevokedUsers(2)
    for user, before_s in (("a", 100), ("b", 200), ("late", 50)):
        revoked.revoke(user, before_s)
    assert "late" not in revoked and revoked.all_before_s == 50
    assert revoked.is_revoked("late", 49) and not revoked.is_revoked("late", 50)


def test_user_revoked_10000_times_takes_one_entry_and_bounded_memory() -> None:
    revoked = RevokedUsers(100)
    for number in range(10_000):
        revoked.revoke("42", float(number))
    assert len(revoked) == 1
    assert len(revoked._by_time) <= 66
    assert revoked.before_s("42") == 9_999


def test_forget_before_removes_exactly_the_earlier_revocations() -> None:
    revoked = RevokedUsers(10)
    for number in range(10):
        revoked.revoke(f"user-{number}", float(number))
    revoked.revoke("user-0", 100.0)
    assert revoked.forget_before(5.0) == 4  # 1, 2, 3 and 4
    assert len(revoked) == 6 and revoked.before_s("user-0") == 100.0 and "user-5" in revoked
    assert revoked.forget_before(1_000.0) == 6
    assert len(revoked) == 0 and revoked.bytes_estimate == 0 and not revoked._by_time
    assert revoked.all_before_s == 0, "a forgotten revocation does not become one for all users"


STEPS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 50), st.booleans()), max_size=60)


@given(STEPS, st.integers(1, 5))
def test_bounded_table_refuses_every_token_that_an_unbounded_one_refuses(
    steps: list[tuple[int, int, bool]], limit: int
) -> None:
    """The tokens have `iat`. Revocations that were forgotten as over need not be known."""
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
def test_byte_estimate_of_revoked_users_is_close_to_the_traced_memory(size: int) -> None:
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
