"""Check admission states with a mark to enter and one to leave, headroom, and the weights of shards (A1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.admission import Ledger, Reading, ShardOffer, State, rate_share, weights
from wsgate.admission.ledger import SLACK_BYTES
from wsgate.node.sockets import SocketNumbers, TcpMemory

MIB = 1 << 20
LIMIT = 640


def reading(connections: int = 0, **changes: int) -> Reading:
    values = {
        "own_bytes": 0,
        "booked_bytes": connections * 5_000,
        "resident_bytes": 100 * MIB,
    } | changes
    return Reading(
        connections=connections,
        own_bytes=values["own_bytes"],
        booked_bytes=values["booked_bytes"],
        resident_bytes=values["resident_bytes"],
    )


def judge(account: Ledger, room: int, *, is_short: bool = False, is_shedding: bool = False) -> State:
    return account.judge(is_short=is_short, is_shedding=is_shedding, room=room, connections_limit=LIMIT)


def ledger() -> Ledger:
    return Ledger(connection_bytes=4_096, baseline_bytes=100 * MIB)


def test_full_shard_refuses_until_a_sixty_fourth_of_its_places_is_free() -> None:
    account = ledger()
    seen = [judge(account, room) for room in (640, 1, 0, 1, 5, 10, 11, 1, 0, 10, 11)]
    names = "".join(state.name[0] for state in seen)
    assert names == "OORRRROORRO", "ten free places, a sixty-fourth, are not enough"


def test_state_follows_the_short_and_shedding_flags_of_memory() -> None:
    account = ledger()
    rows = [(False, False), (True, False), (True, True), (True, False), (False, False)]
    seen = [judge(account, 100, is_short=short, is_shedding=shed) for short, shed in rows]
    assert seen == [State.OPEN, State.REFUSING, State.SHEDDING, State.REFUSING, State.OPEN]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=300))
def test_state_does_not_change_while_free_places_vary_below_the_mark(steps: list[int]) -> None:
    """The number of free places stays within a sixty-fourth of the limit."""
    account, room, changes = ledger(), 5, 0
    before = judge(account, 0)
    for step in steps:
        room = max(0, min(10, room + step))
        state = judge(account, room)
        changes += state is not before
        before = state
    assert changes == 0


def test_headroom_names_the_resource_that_runs_out_first() -> None:
    account = ledger()
    limits = {"connections_limit": 1_000, "descriptors_limit": 2_000, "budget_bytes": 160 * MIB}
    head = account.headroom(reading(0), **limits)
    assert head.by_resource == {"connections": 1_000, "descriptors": 2_000, "memory": 38_400}
    assert (head.binding, head.connections) == ("connections", 1_000)
    head = account.headroom(reading(900), **(limits | {"descriptors_limit": 950}))
    assert (head.binding, head.connections) == ("descriptors", 50)
    # From 1,000 connections on, the mean cost of the present connections is that of the next one.
    heavy = reading(1_500, booked_bytes=1_500 * 80_000)
    head = account.headroom(heavy, connections_limit=9_000, descriptors_limit=9_000, budget_bytes=160 * MIB)
    assert head.binding == "memory"
    assert head.connections == (150 * MIB - 120_000_000) // 80_000
    full = account.headroom(reading(2_000), **limits)
    assert full.connections == 0


def test_time_until_full_follows_from_the_growth_of_connections() -> None:
    account = ledger()
    for second in range(200):
        account.read(reading(second * 10), 0)
    limits = {"connections_limit": 3_000, "descriptors_limit": 9_000, "budget_bytes": 0}
    head = account.headroom(reading(1_990), **limits)
    assert head.growth_per_s == pytest.approx(10, rel=0.01)
    assert head.full_in_s == pytest.approx(101, rel=0.02)
    for _ in range(200):
        account.read(reading(1_990), 0)
    assert account.headroom(reading(1_990), **limits).full_in_s == -1


def test_unaccounted_memory_is_reported_only_above_the_slack() -> None:
    account = ledger()
    account.read(reading(own_bytes=20 * MIB, resident_bytes=125 * MIB), 0)
    assert (account.memory_growth_bytes, account.memory_unaccounted_bytes) == (25 * MIB, 0)
    account.read(reading(own_bytes=20 * MIB, resident_bytes=170 * MIB), 0)
    assert account.memory_unaccounted_bytes == 50 * MIB - SLACK_BYTES
    account.read(reading(own_bytes=20 * MIB, resident_bytes=90 * MIB), 0)
    assert (account.memory_growth_bytes, account.memory_unaccounted_bytes) == (0, 0)


def test_unexplained_growth_is_flagged_at_the_high_mark_until_the_low_mark() -> None:
    account, budget = ledger(), 160 * MIB
    account.read(reading(resident_bytes=240 * MIB), budget)
    assert not account.has_unexplained_growth
    account.read(reading(resident_bytes=270 * MIB), budget)
    assert account.has_unexplained_growth
    account.read(reading(resident_bytes=250 * MIB), budget)
    assert account.has_unexplained_growth, "memory is below the high mark but not below the low one"
    account.read(reading(resident_bytes=247 * MIB), budget)
    assert not account.has_unexplained_growth
    account.read(reading(booked_bytes=200 * MIB), budget)
    assert not account.has_unexplained_growth, "accounted memory has marks of its own"


def test_weights_of_shards_follow_their_room_and_skip_refusing_shards() -> None:
    open_, refusing, shedding = State.OPEN, State.REFUSING, State.SHEDDING
    # The surplus over the other shard counts in full; the rest counts with a twentieth.
    assert weights([ShardOffer(100, open_), ShardOffer(300, open_)]) == [5, 205]
    assert weights([ShardOffer(100, open_), ShardOffer(100, open_)]) == [5, 5]
    assert weights([ShardOffer(1, open_), ShardOffer(20, open_), ShardOffer(0, open_)]) == [1, 20, 0]
    assert weights([ShardOffer(10_000, open_), ShardOffer(20_000, open_)]) == [500, 10_500], "after a crash"
    assert weights([ShardOffer(3, refusing), ShardOffer(30, open_)]) == [0, 2]
    assert weights([ShardOffer(0, refusing), ShardOffer(1, open_)]) == [0, 1]
    # No shard is open: the weights are the little room that is left.
    assert weights([ShardOffer(3, refusing), ShardOffer(0, refusing)]) == [3, 0]
    assert weights([ShardOffer(3, refusing), ShardOffer(9, shedding)]) == [3, 0]
    assert weights([ShardOffer(0, refusing), ShardOffer(0, refusing)]) == [0, 0]


def test_handshake_rate_of_the_node_is_shared_by_the_open_shards() -> None:
    open_, refusing = State.OPEN, State.REFUSING
    halves = [ShardOffer(100, open_), ShardOffer(100, open_)]
    assert [rate_share(halves, number, 501) for number in (0, 1)] == [251, 251]
    one = [ShardOffer(0, refusing), ShardOffer(100, open_)]
    assert [rate_share(one, number, 500) for number in (0, 1)] == [250, 500], (
        "the whole rate for the only open shard"
    )
    nobody = [ShardOffer(0, refusing), ShardOffer(0, refusing)]
    assert [rate_share(nobody, number, 500) for number in (0, 1)] == [250, 250]
    assert rate_share(halves, 0, 0) == rate_share(nobody, 0, 0) == 0, "0 means no limit"


def test_socket_memory_of_the_machine_is_short_from_the_high_to_the_low_mark() -> None:
    memory = TcpMemory()
    seen = [memory.judge(SocketNumbers(pages, 1_000, 0, 0)) for pages in (600, 601, 550, 501, 500, 600, 601)]
    assert seen == [False, True, True, True, False, False, True]
    assert not TcpMemory().judge(SocketNumbers(10**9, 0, 0, 0)), "the limit is unknown"
