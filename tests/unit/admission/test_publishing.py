"""Check the publish rate of a connection: first a burst, then the rate; full buckets are forgotten."""

import random

import pytest

from wsgate.admission import PublishRates


def taken(rates: PublishRates, conn: int, count: int, now_s: float) -> int:
    return sum(not rates.take(conn, now_s) for _ in range(count))


def test_connection_may_publish_its_burst_and_then_its_rate() -> None:
    rates = PublishRates(1_000, 2_000, 100.0)
    assert taken(rates, 1, 5_000, 100.0) == 2_000
    assert taken(rates, 1, 5_000, 100.5) == 500
    assert taken(rates, 2, 10, 100.5) == 10, "another connection has a bucket of its own"


def test_publish_is_accepted_after_the_returned_retry_time() -> None:
    rates = PublishRates(10, 5, 0.0)
    assert taken(rates, 1, 6, 50.0) == 5
    wait_ms = rates.take(1, 50.0)
    assert 95 <= wait_ms <= 101
    assert rates.take(1, 50.0 + wait_ms / 1000) == 0


def test_refused_publishes_do_not_reduce_the_credit() -> None:
    rates = PublishRates(10, 5, 0.0)
    taken(rates, 1, 1_000, 1.0)
    assert taken(rates, 1, 5, 1.6) == 5


@pytest.mark.parametrize("burst", [1, 7, 1_000])
def test_forgotten_bucket_never_allows_more_than_burst_and_rate(burst: int) -> None:
    dice, rates = random.Random(burst), PublishRates(100, burst, 0.0)
    now_s, passed = 0.0, 0
    for _ in range(20_000):
        now_s += dice.choice((0.0, 0.0, 0.001, 0.01, 0.02))
        passed += taken(rates, 1, dice.randrange(4), now_s)
        assert passed <= burst + 100 * now_s + 1


def test_buckets_of_idle_connections_are_freed() -> None:
    rates = PublishRates(1_000, 2_000, 0.0)
    for conn in range(1_000):
        rates.take(conn, 1.0)
    assert rates.bytes_estimate > 100_000
    for second in range(2, 12):
        rates.take(1, float(second))
    assert rates.bytes_estimate < 1_000
    rates.forget(1)
    rates.forget(1)
