"""How fast a shard says goodbye, and when those it told come back."""

import pytest

from wsgate.shard.drain import BATCH_LEAST, RESTART_MS, RETRY_LEAST_MS, RETRY_SPREAD_MOST_MS, STEP_S, Pace

TIMEOUT_MS = 30_000


def test_with_peers_half_of_the_time_is_taken_and_the_first_may_come_soon() -> None:
    pace = Pace.of(100_000, TIMEOUT_MS, has_private_bus=False)
    steps = TIMEOUT_MS / 2 / 1000 / STEP_S
    assert pace.batch * steps >= 100_000 > (pace.batch - 2) * steps
    assert pace.retry_ms(0, 0.0) == pace.retry_ms(14_000, 0.0) == RETRY_LEAST_MS
    assert pace.retry_ms(0, 0.999_999) == RETRY_LEAST_MS + RETRY_SPREAD_MOST_MS - 1


@pytest.mark.parametrize("clients", [1, 500, 20_000, 1_000_000])
@pytest.mark.parametrize("passed_share", [0.0, 0.5, 1.0])
def test_alone_nobody_comes_before_the_last_has_left(clients: int, passed_share: float) -> None:
    pace = Pace.of(clients, TIMEOUT_MS, has_private_bus=True)
    assert pace.closing_ms <= TIMEOUT_MS // 2
    passed_ms = pace.closing_ms * passed_share
    assert passed_ms + pace.retry_ms(passed_ms, 0.0) >= pace.closing_ms + RESTART_MS - 1


def test_alone_the_closing_is_short() -> None:
    assert Pace.of(10_000, TIMEOUT_MS, has_private_bus=True).closing_ms == 2_000


def test_the_crowd_spreads_over_a_millisecond_each() -> None:
    pace = Pace.of(10_000, TIMEOUT_MS, has_private_bus=True)
    come_ms = [pace.retry_ms(0, share / 10_000) for share in range(10_000)]
    assert max(come_ms) - min(come_ms) >= 10_000
    fullest = max(sum(1 for moment in come_ms if moment // 100 == bucket) for bucket in range(200))
    assert fullest <= 101


@pytest.mark.parametrize("has_private_bus", [True, False])
@pytest.mark.parametrize("timeout_ms", [0, 1, 1_000])
def test_little_time_is_no_division_by_nothing(timeout_ms: int, *, has_private_bus: bool) -> None:
    pace = Pace.of(5, timeout_ms, has_private_bus=has_private_bus)
    assert pace.batch >= BATCH_LEAST
    assert pace.retry_ms(10_000, 0.5) >= RETRY_LEAST_MS
