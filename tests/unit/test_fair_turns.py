"""Check turns and room: each party has one share, and one without queued items never waits for a queue."""

import random
from collections import Counter, deque

import pytest

from wsgate.turns import CROWDED, FULL, Room, Sender, Turns


def served(turns: Turns[Sender], count: int) -> Counter[object]:
    """Take some items and return how many each party had."""
    return Counter(turns.popleft().party for _ in range(count))


def fill(turns: Turns[Sender], sender: Sender, count: int, cost: int = 1) -> None:
    for _ in range(count):
        turns.push(sender, sender, cost)


def test_party_with_1000_connections_has_one_share() -> None:
    turns: Turns[Sender] = Turns()
    for conn in range(1_000):
        fill(turns, Sender("many", conn), 10)
    fill(turns, Sender("one", 1), 100)
    fill(turns, Sender("other", 1), 100)
    assert served(turns, 300) == {"many": 100, "one": 100, "other": 100}


def test_new_party_waits_for_at_most_one_item_of_each_other_party() -> None:
    turns: Turns[Sender] = Turns()
    for party in range(250):
        fill(turns, Sender(party, party), 64)
    served(turns, 1_000)
    fill(turns, Sender("good", 0), 1)
    assert "good" in served(turns, 251)


def test_connections_of_one_party_take_turns() -> None:
    turns: Turns[Sender] = Turns()
    fill(turns, Sender("ann", 1), 100)
    fill(turns, Sender("ann", 2), 5)
    assert Counter(turns.popleft().conn for _ in range(10)) == {1: 5, 2: 5}


def test_shares_of_parties_are_equal_by_cost_and_not_by_items() -> None:
    turns: Turns[Sender] = Turns()
    fill(turns, Sender("costly", 1), 100, cost=50)
    fill(turns, Sender("cheap", 1), 1_000, cost=1)
    taken = served(turns, 510)
    assert 9 <= taken["costly"] <= 11
    assert taken["cheap"] >= 499


def test_party_that_queues_one_item_at_a_time_gets_one_share() -> None:
    """The party queues its next item only when the last one was taken."""
    turns: Turns[Sender] = Turns()
    for party in range(9):
        fill(turns, Sender(party, 0), 200)
    fill(turns, Sender("single", 0), 1)
    single = 0
    for _ in range(1_000):
        if turns.popleft().party == "single":
            single += 1
            fill(turns, Sender("single", 0), 1)
    assert 90 <= single <= 110


def test_items_of_a_connection_keep_their_order_and_none_is_lost() -> None:
    dice = random.Random(7)
    turns: Turns[tuple[Sender, int]] = Turns()
    expected: dict[Sender, deque[int]] = {}
    for number in range(20_000):
        if dice.random() < 0.52:
            sender = Sender(dice.randrange(5), dice.randrange(3))
            turns.push(sender, (sender, number), dice.choice((1, 7, 63, 64, 65, 1_024)))
            expected.setdefault(sender, deque()).append(number)
        elif len(turns):
            sender, taken = turns.popleft()
            assert expected[sender].popleft() == taken
    assert len(turns) == sum(map(len, expected.values()))
    for _ in range(len(turns)):
        sender, taken = turns.popleft()
        assert expected[sender].popleft() == taken
    with pytest.raises(IndexError):
        turns.popleft()


def test_parties_without_queued_items_take_no_memory() -> None:
    turns: Turns[Sender] = Turns()
    fill(turns, Sender("stays", 0), 100_000, cost=10)
    for party in range(1_000):
        fill(turns, Sender(party, 0), 1, cost=10)
        served(turns, 2)
        assert len(turns._level._flows) <= 4
    while len(turns):
        turns.popleft()
    assert not turns._level._flows and not turns._level._heap


def test_one_party_may_take_a_quarter_of_the_room() -> None:
    room = Room(1_000, 1 << 30)
    taken = 0
    while not room.take(Sender("greedy", taken), 1):
        taken += 1
    assert taken == 250
    assert room.take(Sender("greedy", 999), 1) == CROWDED
    assert room.take(Sender("good", 1), 1) == ""


@pytest.mark.parametrize("parties", [1, 2, 10, 100, 250])
@pytest.mark.parametrize("size", [1, 2_048, 60_000])
def test_party_without_entries_finds_room_after_all_others_took_theirs(parties: int, size: int) -> None:
    room = Room(8_192, 32 << 20)
    for party in range(parties):  # one after another: the first ones find everything free
        while not room.take(Sender(party, 0), size):
            pass
    assert room.take(Sender("good", 0), 60_000) == ""
    assert room.take(Sender("other", 0), 1_000) == ""
    assert room.take(Sender("other", 0), 1_000) == ""


def test_room_is_limited_in_bytes_too() -> None:
    room = Room(1_000, 10_000)
    assert room.take(Sender("big", 0), 10_001) == FULL
    assert room.take(Sender("big", 0), 10_000) == ""
    assert room.take(Sender("big", 0), 1) == CROWDED
    assert room.take(Sender("good", 0), 1) == FULL
    room.give(Sender("big", 0), 10_000)
    assert (room.entries, room.size, room._uses) == (0, 0, {})


def test_one_connection_leaves_room_for_the_others_of_its_party() -> None:
    room = Room(100, 1 << 30)
    while not room.take(Sender("ann", 1), 1):
        pass
    assert room.take(Sender("ann", 1), 1) == CROWDED
    assert room.take(Sender("ann", 2), 1) == ""


def test_room_agrees_with_a_plain_model_after_random_takes_and_returns() -> None:
    dice = random.Random(3)
    room = Room(50, 5_000)
    held: list[tuple[Sender, int]] = []
    for _ in range(5_000):
        if held and dice.random() < 0.5:
            room.give(*held.pop(dice.randrange(len(held))))
        else:
            sender, size = Sender(dice.randrange(4), dice.randrange(3)), dice.randrange(1, 600)
            if not room.take(sender, size):
                held.append((sender, size))
        assert (room.entries, room.size) == (len(held), sum(size for _, size in held))
        assert room.entries <= 50 and room.size <= 5_000
    for sender, size in held:
        room.give(sender, size)
    assert room._uses == {}
