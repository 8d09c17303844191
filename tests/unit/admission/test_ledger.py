"""States with a mark to enter and another to leave, headroom, and where newcomers go (A1)."""

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


def judge(books: Ledger, room: int, *, is_short: bool = False, is_shedding: bool = False) -> State:
    return books.judge(is_short=is_short, is_shedding=is_shedding, room=room, connections_limit=LIMIT)


def ledger() -> Ledger:
    return Ledger(connection_bytes=4_096, baseline_bytes=100 * MIB)


def test_a_full_shard_refuses_until_a_part_of_it_is_free_again() -> None:
    books = ledger()
    seen = [judge(books, room) for room in (640, 1, 0, 1, 5, 10, 11, 1, 0, 10, 11)]
    names = "".join(state.name[0] for state in seen)
    assert names == "OORRRROORRO", "a sixty-fourth of it, ten here, is not enough"


def test_memory_s_own_marks_are_taken_over() -> None:
    books = ledger()
    rows = [(False, False), (True, False), (True, True), (True, False), (False, False)]
    seen = [judge(books, 100, is_short=short, is_shedding=shed) for short, shed in rows]
    assert seen == [State.OPEN, State.REFUSING, State.SHEDDING, State.REFUSING, State.OPEN]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=300))
def test_a_state_that_wavers_around_its_mark_does_not_flap(steps: list[int]) -> None:
    """Within a sixty-fourth around the mark, however it goes, it changes once."""
    books, room, changes = ledger(), 5, 0
    before = judge(books, 0)
    for step in steps:
        room = max(0, min(10, room + step))
        state = judge(books, room)
        changes += state is not before
        before = state
    assert changes == 0


def test_headroom_names_what_binds() -> None:
    books = ledger()
    limits = {"connections_limit": 1_000, "descriptors_limit": 2_000, "budget_bytes": 160 * MIB}
    head = books.headroom(reading(0), **limits)
    assert head.by_resource == {"connections": 1_000, "descriptors": 2_000, "memory": 38_400}
    assert (head.binding, head.connections) == ("connections", 1_000)
    head = books.headroom(reading(900), **(limits | {"descriptors_limit": 950}))
    assert (head.binding, head.connections) == ("descriptors", 50)
    # From a thousand on the mean of those who are here says what the next one costs.
    heavy = reading(1_500, booked_bytes=1_500 * 80_000)
    head = books.headroom(heavy, connections_limit=9_000, descriptors_limit=9_000, budget_bytes=160 * MIB)
    assert head.binding == "memory"
    assert head.connections == (150 * MIB - 120_000_000) // 80_000
    full = books.headroom(reading(2_000), **limits)
    assert full.connections == 0


def test_when_it_is_full_follows_from_the_growth() -> None:
    books = ledger()
    for second in range(200):
        books.read(reading(second * 10), 0)
    limits = {"connections_limit": 3_000, "descriptors_limit": 9_000, "budget_bytes": 0}
    head = books.headroom(reading(1_990), **limits)
    assert head.growth_per_s == pytest.approx(10, rel=0.01)
    assert head.full_in_s == pytest.approx(101, rel=0.02)
    for _ in range(200):
        books.read(reading(1_990), 0)
    assert books.headroom(reading(1_990), **limits).full_in_s == -1


def test_what_is_on_no_account_is_told_beyond_some_slack() -> None:
    books = ledger()
    books.read(reading(own_bytes=20 * MIB, resident_bytes=125 * MIB), 0)
    assert (books.memory_growth_bytes, books.memory_unaccounted_bytes) == (25 * MIB, 0)
    books.read(reading(own_bytes=20 * MIB, resident_bytes=170 * MIB), 0)
    assert books.memory_unaccounted_bytes == 50 * MIB - SLACK_BYTES
    books.read(reading(own_bytes=20 * MIB, resident_bytes=90 * MIB), 0)
    assert (books.memory_growth_bytes, books.memory_unaccounted_bytes) == (0, 0)


def test_a_swollen_process_refuses_and_does_not_flap() -> None:
    books, budget = ledger(), 160 * MIB
    books.read(reading(resident_bytes=240 * MIB), budget)
    assert not books.has_unexplained_growth
    books.read(reading(resident_bytes=270 * MIB), budget)
    assert books.has_unexplained_growth
    books.read(reading(resident_bytes=250 * MIB), budget)
    assert books.has_unexplained_growth, "below the high mark, not below the low one"
    books.read(reading(resident_bytes=247 * MIB), budget)
    assert not books.has_unexplained_growth
    books.read(reading(booked_bytes=200 * MIB), budget)
    assert not books.has_unexplained_growth, "what is on the books has marks of its own"


def test_newcomers_go_where_there_is_room_and_never_where_one_has_just_left() -> None:
    open_, refusing, shedding = State.OPEN, State.REFUSING, State.SHEDDING
    # What the one has more than the other is all its own; of the rest each counts with a twentieth.
    assert weights([ShardOffer(100, open_), ShardOffer(300, open_)]) == [5, 205]
    assert weights([ShardOffer(100, open_), ShardOffer(100, open_)]) == [5, 5]
    assert weights([ShardOffer(1, open_), ShardOffer(20, open_), ShardOffer(0, open_)]) == [1, 20, 0]
    assert weights([ShardOffer(10_000, open_), ShardOffer(20_000, open_)]) == [500, 10_500], "after a crash"
    assert weights([ShardOffer(3, refusing), ShardOffer(30, open_)]) == [0, 2]
    assert weights([ShardOffer(0, refusing), ShardOffer(1, open_)]) == [0, 1]
    # Nobody is open: what little there is.
    assert weights([ShardOffer(3, refusing), ShardOffer(0, refusing)]) == [3, 0]
    assert weights([ShardOffer(3, refusing), ShardOffer(9, shedding)]) == [3, 0]
    assert weights([ShardOffer(0, refusing), ShardOffer(0, refusing)]) == [0, 0]


def test_the_rate_of_the_node_goes_where_its_newcomers_go() -> None:
    open_, refusing = State.OPEN, State.REFUSING
    halves = [ShardOffer(100, open_), ShardOffer(100, open_)]
    assert [rate_share(halves, number, 501) for number in (0, 1)] == [251, 251]
    one = [ShardOffer(0, refusing), ShardOffer(100, open_)]
    assert [rate_share(one, number, 500) for number in (0, 1)] == [250, 500], "all of it, while it is alone"
    nobody = [ShardOffer(0, refusing), ShardOffer(0, refusing)]
    assert [rate_share(nobody, number, 500) for number in (0, 1)] == [250, 250]
    assert rate_share(halves, 0, 0) == rate_share(nobody, 0, 0) == 0, "no limit"


def test_the_machine_s_memory_for_sockets_has_two_marks() -> None:
    memory = TcpMemory()
    seen = [memory.judge(SocketNumbers(pages, 1_000, 0, 0)) for pages in (600, 601, 550, 501, 500, 600, 601)]
    assert seen == [False, True, True, True, False, False, True]
    assert not TcpMemory().judge(SocketNumbers(10**9, 0, 0, 0)), "no limit is known"
