"""Check how many bytes clients may publish to the bus."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.admission import NO_BYTE_RATES, ByteBudget, ByteRates
from wsgate.admission.byte_budget import ENTRY_BYTES, SWEEP_LEAST

KIB = 1024


def test_each_connection_has_its_own_burst_and_byte_rate() -> None:
    budget = ByteBudget(ByteRates(connection_per_s=100 * KIB))
    taken = sum(budget.take(1, 10 * KIB, 50.0) == 0 for _ in range(30))
    assert taken == 10
    assert budget.take(2, 10 * KIB, 50.0) == 0
    wait_ms = budget.take(1, 10 * KIB, 50.0)
    assert 100 <= wait_ms <= 101
    assert budget.take(1, 10 * KIB, 50.0 + wait_ms / 1000) == 0


def test_all_connections_of_a_shard_share_one_budget() -> None:
    budget = ByteBudget(ByteRates(connection_per_s=100 * KIB, shard_per_s=200 * KIB, shard_burst=50 * KIB))
    taken = sum(budget.take(conn, 10 * KIB, 50.0) == 0 for conn in range(30))
    assert taken == 5
    assert sum(budget.take(conn, 10 * KIB, 51.0) == 0 for conn in range(30)) == 5


def test_refused_bytes_are_not_counted() -> None:
    rates = ByteRates(connection_per_s=10 * KIB, shard_per_s=1_000 * KIB, shard_burst=1_000 * KIB)
    budget = ByteBudget(rates)
    assert budget.take(1, 10 * KIB, 50.0) == 0
    waits = {budget.take(1, 10 * KIB, 50.0) for _ in range(1_000)}
    assert len(waits) == 1
    assert budget.take(2, 10 * KIB, 50.0) == 0


def test_message_larger_than_the_burst_passes_when_the_budget_is_full() -> None:
    budget = ByteBudget(ByteRates(connection_per_s=KIB, shard_per_s=KIB, shard_burst=KIB))
    assert budget.take(1, 64 * KIB, 50.0) == 0
    assert budget.take(1, 64 * KIB, 50.1) > 0
    assert budget.take(1, 64 * KIB, 50.0 + 64.1) == 0


def test_budget_without_rates_limits_nothing_and_takes_no_memory() -> None:
    budget = ByteBudget(NO_BYTE_RATES)
    assert all(budget.take(conn, 1 << 30, 0.0) == 0 for conn in range(100))
    assert budget.bytes_estimate == 0


def test_table_of_connections_is_accounted_swept_and_freed() -> None:
    budget = ByteBudget(ByteRates(connection_per_s=100 * KIB))
    for conn in range(10 * SWEEP_LEAST):
        assert budget.take(conn, KIB, 50.0 + conn) == 0  # each bucket is full again when the next one comes
        assert budget.bytes_estimate <= SWEEP_LEAST * ENTRY_BYTES
    for conn in range(10 * SWEEP_LEAST):
        budget.forget(conn)
    assert budget.bytes_estimate == 0


@pytest.mark.parametrize(
    ("node", "shards", "output", "share", "burst"),
    [(64, 4, 0, 16, 4), (64, 1, 8, 64, 4), (64, 4, 8, 16, 1), (0, 4, 8, 0, 0), (10, 3, 0, 4, 1)],
)
def test_byte_rate_of_a_node_is_divided_among_its_shards(
    node: int, shards: int, output: int, share: int, burst: int
) -> None:
    rates = ByteRates.of_node(7, node, shards, output)
    assert rates == ByteRates(connection_per_s=7, shard_per_s=share, shard_burst=burst)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 200_000), st.floats(0, 2)), max_size=60))
def test_accepted_bytes_never_exceed_burst_and_rate_after_random_steps(
    steps: list[tuple[int, int, float]],
) -> None:
    rates = ByteRates(connection_per_s=50_000, shard_per_s=120_000, shard_burst=60_000)
    budget, now_s, passed = ByteBudget(rates), 100.0, dict.fromkeys(range(4), 0)
    largest = 200_000
    for conn, size, rest_s in steps:
        now_s += rest_s
        if budget.take(conn, size, now_s) == 0:
            passed[conn] += size
    spent_s = now_s - 100.0
    assert all(each <= 50_000 * (spent_s + 1) + largest for each in passed.values())
    assert sum(passed.values()) <= 120_000 * spent_s + 60_000 + largest
