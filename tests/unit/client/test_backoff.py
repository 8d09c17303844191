"""When clients come back: a crowd cut off in one moment is a flat stream afterwards, whatever it was told."""

import random
from collections import Counter

import pytest

from wsgate.client import Backoff

CROWD = 20_000
BUCKET_S = 0.1


def test_the_window_doubles_up_to_the_cap() -> None:
    backoff = Backoff(base_s=0.5, cap_s=30)
    assert [backoff.window_s(attempt) for attempt in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.window_s(10**9) == 30


@pytest.mark.parametrize("attempt", [0, 3, 50])
def test_a_delay_is_anywhere_from_nothing_to_the_window(attempt: int) -> None:
    backoff = Backoff()
    assert backoff.delay_s(attempt, lambda: 0.0) == 0
    assert backoff.delay_s(attempt, lambda: 0.25) == backoff.window_s(attempt) / 4


def test_what_the_gateway_asked_for_is_kept_and_the_jitter_comes_on_top() -> None:
    assert Backoff().delay_s(0, lambda: 0.0, least_s=2.3) == 2.3
    assert Backoff().delay_s(0, lambda: 1.0, least_s=2.3) == 2.8
    assert Backoff().delay_s(0, lambda: 0.0, least_s=-1) == 0


def worst_of(delays_s: list[float]) -> float:
    """How many times the mean the fullest 100 ms hold, from the first to the last to come."""
    first_s, last_s = min(delays_s), max(delays_s)
    buckets = Counter(int((delay_s - first_s) / BUCKET_S) for delay_s in delays_s)
    return max(buckets.values()) / (len(delays_s) / max(1.0, (last_s - first_s) / BUCKET_S))


@pytest.mark.parametrize("least_s", [0.0, 2.3])
@pytest.mark.parametrize("attempt", [0, 1, 2, 4, 6, 20])
def test_twenty_thousand_that_were_told_the_same_do_not_come_in_step(attempt: int, least_s: float) -> None:
    chance = random.Random(attempt)
    delays_s = [Backoff().delay_s(attempt, chance.random, least_s=least_s) for _ in range(CROWD)]
    assert min(delays_s) >= least_s
    assert worst_of(delays_s) < 3


def test_twenty_thousand_that_fail_again_and_again_are_flat_too() -> None:
    chance = random.Random(7)
    arrivals_s = [0.0] * CROWD
    for attempt in range(8):
        arrivals_s = [at_s + Backoff().delay_s(attempt, chance.random) for at_s in arrivals_s]
        assert worst_of(arrivals_s) < 3


def test_a_crowd_in_step_would_be_seen() -> None:
    assert worst_of([2.3] * CROWD + [32.3]) > 3
