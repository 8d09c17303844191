"""How many messages a pass may take: few at first, more while they are cheap, fewer when they are costly."""

from wsgate.shard.pass_budget import FAST_S, LEAST, MOST, SLOW_S, START, PassBudget


def run(budget: PassBudget, passes: int, message_s: float) -> list[int]:
    """Full passes, one after another; what each took."""
    taken = []
    for _ in range(passes):
        taken.append(budget.messages)
        budget.note(budget.messages, budget.messages * message_s)
    return taken


def test_cheap_messages_come_in_full_passes_soon() -> None:
    assert run(PassBudget(), 5, 5e-6) == [START, 128, MOST, MOST, MOST]


def test_costly_ones_never_hold_the_loop_longer_than_the_first_pass() -> None:
    taken = run(PassBudget(), 50, 80e-6)
    assert max(taken) == START
    assert taken[-1] * 80e-6 <= SLOW_S


def test_very_costly_ones_still_come() -> None:
    assert run(PassBudget(), 50, 1e-2)[-1] == LEAST


def test_in_between_nothing_changes() -> None:
    budget = PassBudget()
    budget.note(START, (SLOW_S + FAST_S) / 2)
    assert budget.messages == START


def test_the_burst_after_a_rest_begins_small_again() -> None:
    budget = PassBudget()
    run(budget, 5, 1e-6)
    budget.note(3, 1e-5)
    assert budget.messages == START


def test_a_slow_pass_counts_even_when_it_was_not_full() -> None:
    budget = PassBudget()
    budget.note(3, 1.0)
    assert budget.messages == START // 2
