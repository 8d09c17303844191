"""Check the back-off of clients: 20,000 clients that disconnect at once come back at a flat rate."""

import random
from collections import Counter

import pytest

from wsgate.client import Backoff

CROWD = 20_000
BUCKET_S = 0.1


def test_backoff_window_doubles_up_to_the_cap() -> None:
    backoff = Backoff(base_s=0.5, cap_s=30)
    assert [backoff.window_s(attempt) for attempt in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.window_s(10**9) == 30


@pytest.mark.parametrize("attempt", [0, 3, 50])
def test_delay_is_a_random_part_of_the_window(attempt: int) -> None:
    backoff = Backoff()
    assert backoff.delay_s(attempt, lambda: 0.0) == 0
    assert backoff.delay_s(attempt, lambda: 0.25) == backoff.window_s(attempt) / 4


def test_random_delay_is_added_to_the_requested_retry_time() -> None:
    assert Backoff().delay_s(0, lambda: 0.0, least_s=2.3) == 2.3
    assert Backoff().delay_s(0, lambda: 1.0, least_s=2.3) == 2.8
    assert Backoff().delay_s(0, lambda: 0.0, least_s=-1) == 0


def worst_of(delays_s: list[float]) -> float:
    """Return the fullest 100 ms as a multiple of the mean, from the first arrival to the last."""
    first_s, last_s = min(delays_s), max(delays_s)
    buckets = Counter(int((delay_s - first_s) / BUCKET_S) for delay_s in delays_s)
    return max(buckets.values()) / (len(delays_s) / max(1.0, (last_s - first_s) / BUCKET_S))


@pytest.mark.parametrize("least_s", [0.0, 2.3])
@pytest.mark.parametrize("attempt", [0, 1, 2, 4, 6, 20])
def test_20000_clients_with_the_same_retry_time_reconnect_spread_out(attempt: int, least_s: float) -> None:
    chance = random.Random(attempt)
    delays_s = [Backoff().delay_s(attempt, chance.random, least_s=least_s) for _ in range(CROWD)]
    assert min(delays_s) >= least_s
    assert worst_of(delays_s) < 3


def test_20000_clients_stay_spread_out_over_eight_failed_attempts() -> None:
    chance = random.Random(7)
    arrivals_s = [0.0] * CROWD
    for attempt in range(8):
        arrivals_s = [at_s + Backoff().delay_s(attempt, chance.random) for at_s in arrivals_s]
        assert worst_of(arrivals_s) < 3


def test_measure_of_the_spread_detects_clients_that_return_together() -> None:
    assert worst_of([2.3] * CROWD + [32.3]) > 3
