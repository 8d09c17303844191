"""Check how many messages a pass may take: more while they are cheap, fewer while they are costly."""

from wsgate.shard.pass_budget import FAST_S, LEAST, MOST, SLOW_S, START, PassBudget


def run(budget: PassBudget, passes: int, message_s: float) -> list[int]:
    """Run full passes one after another; return the budget of each."""
    taken = []
    for _ in range(passes):
        taken.append(budget.messages)
        budget.note(budget.messages, budget.messages * message_s)
    return taken


def test_cheap_messages_raise_the_budget_to_its_maximum_in_the_third_pass() -> None:
    assert run(PassBudget(), 5, 5e-6) == [START, 128, MOST, MOST, MOST]


def test_messages_of_80_us_never_raise_the_budget_above_its_start() -> None:
    taken = run(PassBudget(), 50, 80e-6)
    assert max(taken) == START
    assert taken[-1] * 80e-6 <= SLOW_S


def test_messages_of_10_ms_lower_the_budget_to_its_minimum() -> None:
    assert run(PassBudget(), 50, 1e-2)[-1] == LEAST


def test_pass_between_fast_and_slow_leaves_the_budget_unchanged() -> None:
    budget = PassBudget()
    budget.note(START, (SLOW_S + FAST_S) / 2)
    assert budget.messages == START


def test_pass_that_was_not_full_resets_a_raised_budget_to_its_start() -> None:
    budget = PassBudget()
    run(budget, 5, 1e-6)
    budget.note(3, 1e-5)
    assert budget.messages == START


def test_slow_pass_that_was_not_full_halves_the_budget() -> None:
    budget = PassBudget()
    budget.note(3, 1.0)
    assert budget.messages == START // 2
