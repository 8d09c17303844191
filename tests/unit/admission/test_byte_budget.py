"""Check how many bytes clients may publish to the bus."""

import random
from dataclasses import dataclass
from heapq import heapify, heapreplace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.admission import NO_BYTE_RATES, ByteBudget, ByteRates
from wsgate.admission.byte_budget import ENTRY_BYTES, PARTY_BYTES, SWEEP_LEAST

KIB = 1024
MIB = 1024 * KIB


def take(budget: ByteBudget, conn: int, size: int, now_s: float) -> int:
    """Publish on a connection of a user of its own."""
    return budget.take(conn, size, now_s, party=conn)


def test_each_connection_has_its_own_burst_and_byte_rate() -> None:
    budget = ByteBudget(ByteRates(connection_per_s=100 * KIB))
    taken = sum(take(budget, 1, 10 * KIB, 50.0) == 0 for _ in range(30))
    assert taken == 10
    assert take(budget, 2, 10 * KIB, 50.0) == 0
    wait_ms = take(budget, 1, 10 * KIB, 50.0)
    assert 100 <= wait_ms <= 101
    assert take(budget, 1, 10 * KIB, 50.0 + wait_ms / 1000) == 0


def test_all_connections_of_a_shard_share_one_budget() -> None:
    budget = ByteBudget(ByteRates(connection_per_s=100 * KIB, shard_per_s=200 * KIB, shard_burst=50 * KIB))
    taken = sum(take(budget, conn, 10 * KIB, 50.0) == 0 for conn in range(30))
    assert taken == 5
    assert sum(take(budget, conn, 10 * KIB, 51.0) == 0 for conn in range(30)) == 5


def test_refused_bytes_are_not_counted() -> None:
    rates = ByteRates(connection_per_s=10 * KIB, shard_per_s=1_000 * KIB, shard_burst=1_000 * KIB)
    budget = ByteBudget(rates)
    assert take(budget, 1, 10 * KIB, 50.0) == 0
    waits = {take(budget, 1, 10 * KIB, 50.0) for _ in range(1_000)}
    assert len(waits) == 1
    assert take(budget, 2, 10 * KIB, 50.0) == 0


def test_message_larger_than_the_burst_passes_when_the_budget_is_full() -> None:
    budget = ByteBudget(ByteRates(connection_per_s=KIB, shard_per_s=KIB, shard_burst=KIB))
    assert take(budget, 1, 64 * KIB, 50.0) == 0
    assert take(budget, 1, 64 * KIB, 50.1) > 0
    assert take(budget, 1, 64 * KIB, 50.0 + 64.1) == 0


def test_budget_without_rates_limits_nothing_and_takes_no_memory() -> None:
    budget = ByteBudget(NO_BYTE_RATES)
    assert all(take(budget, conn, 1 << 30, 0.0) == 0 for conn in range(100))
    assert budget.bytes_estimate == 0


def test_table_of_connections_is_accounted_swept_and_freed() -> None:
    budget = ByteBudget(ByteRates(connection_per_s=100 * KIB))
    for conn in range(10 * SWEEP_LEAST):
        assert take(budget, conn, KIB, 50.0 + conn) == 0  # each bucket is full again when the next one comes
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
        if take(budget, conn, size, now_s) == 0:
            passed[conn] += size
    spent_s = now_s - 100.0
    assert all(each <= 50_000 * (spent_s + 1) + largest for each in passed.values())
    assert sum(passed.values()) <= 120_000 * spent_s + 60_000 + largest


@dataclass
class Client:
    """A client of the simulation that publishes at a fixed rate, and what the budget let pass."""

    party: str
    size: int
    per_s: int
    passed: int = 0
    refused: int = 0


def simulate(rates: ByteRates, clients: list[Client], seconds: float) -> None:
    """Let all clients publish at their rate, each with a small jitter."""
    dice, budget = random.Random(7), ByteBudget(rates)
    due = [(dice.random() / client.per_s, conn) for conn, client in enumerate(clients)]
    heapify(due)
    while due[0][0] < seconds:
        now_s, conn = due[0]
        client = clients[conn]
        if budget.take(conn, client.size, now_s, party=client.party):
            client.refused += client.size
        else:
            client.passed += client.size
        heapreplace(due, (now_s + dice.uniform(0.8, 1.2) / client.per_s, conn))


@pytest.mark.parametrize("greedy_size", [KIB, 8 * KIB, 64 * KIB])
@pytest.mark.parametrize("greedy", [1, 3, 12, 40, 100])
def test_good_client_gets_its_share_of_the_rate_beside_greedy_users(greedy: int, greedy_size: int) -> None:
    rates, seconds = ByteRates.of_node(4 * MIB, 64 * MIB, 8, 0), 4.0
    floods = [Client(f"pub{number}", greedy_size, 300) for number in range(max(3, greedy))]
    if greedy == 1:
        floods = [Client("pub", 8 * KIB, 1_000) for _ in range(3)]
    good, small = Client("good", 32 * KIB, 20), Client("small", 60, 20)
    simulate(rates, [*floods, good, small], seconds)
    share = rates.shard_per_s * seconds / (greedy + 1)
    # The good client does not repeat what is refused, so beside many users it does not use its whole share.
    part = 0.95 if greedy <= 3 else 0.6
    assert good.passed >= part * min(share, good.passed + good.refused)
    assert small.refused == 0
    total = sum(client.passed for client in [*floods, good, small])
    asked = total + sum(client.refused for client in [*floods, good, small])
    assert total >= 0.95 * min(asked, rates.shard_per_s * seconds), "the budget is used fully"


def test_connections_of_one_user_share_the_charge_of_the_user() -> None:
    rates = ByteRates(shard_per_s=100 * KIB, shard_burst=100 * KIB)
    budget = ByteBudget(rates)
    assert sum(budget.take(conn, 10 * KIB, 50.0, party="pub") == 0 for conn in range(30)) == 5
    assert budget.take(99, 32 * KIB, 50.0, party="good") == 0


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 150_000), st.floats(0, 0.5)), max_size=60),
    st.integers(0, 5),
    st.integers(1, 200_000),
)
def test_publication_passes_after_the_returned_time_if_no_other_passes_meanwhile(
    steps: list[tuple[int, int, float]], conn: int, size: int
) -> None:
    budget, now_s = ByteBudget(ByteRates(shard_per_s=120_000, shard_burst=60_000)), 100.0
    for other, other_size, rest_s in steps:
        now_s += rest_s
        take(budget, other, other_size, now_s)
    wait_ms = take(budget, conn, size, now_s)
    assert wait_ms == 0 or take(budget, conn, size, now_s + wait_ms / 1000) == 0


def test_charges_of_parties_are_accounted_bounded_and_freed() -> None:
    budget, now_s = ByteBudget(ByteRates(shard_per_s=100 * MIB, shard_burst=25 * MIB)), 50.0
    for conn in range(10 * SWEEP_LEAST):
        while take(budget, conn, 1_000_000, now_s):
            now_s += 0.01
    assert 0 < budget.bytes_estimate <= 2 * SWEEP_LEAST * PARTY_BYTES
    assert take(budget, 1, 1, now_s + 100) == 0
    assert budget.bytes_estimate == PARTY_BYTES
