"""Check how fast a shard closes its connections in a drain, and when their clients reconnect."""

import pytest

from wsgate.shard.drain import BATCH_LEAST, RESTART_MS, RETRY_LEAST_MS, RETRY_SPREAD_MOST_MS, STEP_S, Pace

TIMEOUT_MS = 30_000


def test_drain_with_a_shared_bus_takes_half_the_timeout_and_clients_may_reconnect_soon() -> None:
    pace = Pace.of(100_000, TIMEOUT_MS, has_private_bus=False)
    steps = TIMEOUT_MS / 2 / 1000 / STEP_S
    assert pace.batch * steps >= 100_000 > (pace.batch - 2) * steps
    assert pace.retry_ms(0, 0.0) == pace.retry_ms(14_000, 0.0) == RETRY_LEAST_MS
    assert pace.retry_ms(0, 0.999_999) == RETRY_LEAST_MS + RETRY_SPREAD_MOST_MS - 1


@pytest.mark.parametrize("clients", [1, 500, 20_000, 1_000_000])
@pytest.mark.parametrize("passed_share", [0.0, 0.5, 1.0])
def test_drain_with_a_private_bus_lets_no_client_reconnect_before_the_restart(
    clients: int, passed_share: float
) -> None:
    pace = Pace.of(clients, TIMEOUT_MS, has_private_bus=True)
    assert pace.closing_ms <= TIMEOUT_MS // 2
    passed_ms = pace.closing_ms * passed_share
    assert passed_ms + pace.retry_ms(passed_ms, 0.0) >= pace.closing_ms + RESTART_MS - 1


def test_drain_of_10000_clients_with_a_private_bus_takes_two_seconds() -> None:
    assert Pace.of(10_000, TIMEOUT_MS, has_private_bus=True).closing_ms == 2_000


def test_retry_times_of_10000_clients_are_spread_over_ten_seconds() -> None:
    pace = Pace.of(10_000, TIMEOUT_MS, has_private_bus=True)
    come_ms = [pace.retry_ms(0, share / 10_000) for share in range(10_000)]
    assert max(come_ms) - min(come_ms) >= 10_000
    fullest = max(sum(1 for moment in come_ms if moment // 100 == bucket) for bucket in range(200))
    assert fullest <= 101


@pytest.mark.parametrize("has_private_bus", [True, False])
@pytest.mark.parametrize("timeout_ms", [0, 1, 1_000])
def test_drain_timeout_of_1_s_or_less_gives_valid_batches_and_retry_times(
    timeout_ms: int, *, has_private_bus: bool
) -> None:
    pace = Pace.of(5, timeout_ms, has_private_bus=has_private_bus)
    assert pace.batch >= BATCH_LEAST
    assert pace.retry_ms(10_000, 0.5) >= RETRY_LEAST_MS
