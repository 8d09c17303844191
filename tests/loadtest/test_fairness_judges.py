"""Check given numbers as the load programs about shared resources do: each broken promise is a miss."""

from typing import Any, Final

import pytest

from loadtest.experiments import bus_faults, frequent_senders, publication_burst, publish_fairness
from loadtest.experiments.bus_faults import Break, Outcome
from loadtest.experiments.frequent_senders import Waits
from loadtest.experiments.publication_burst import Burst
from loadtest.experiments.publish_fairness import Case, Sample, percentile
from loadtest.experiments.soak.record import Lost, Published, Session

MISSING: Final = Lost("room", "client", 1, "missing without a notice")


def missed_checks(checks: dict[str, bool]) -> list[str]:
    """Return the checks that did not pass."""
    return [text for text, is_true in checks.items() if not is_true]


# --- publications that a subscriber missed ------------------------------------------------------------


def test_loss_is_covered_by_a_gap_that_arrives_after_it_was_published() -> None:
    published = Published()
    for number in range(1, 5):
        published.add("room", "client", number, float(number), number + 0.1)
    session = Session(subscribed_s={"room": 0.0}, ended_s=100.0)
    session.receive("room", "client", 1)
    session.receive("room", "client", 4)
    session.gap("", 2.5)
    found = [(lost.number, is_covered) for lost, is_covered in session.missing(published)]
    assert found == [(2, True), (3, False)]
    assert [lost.number for lost in session.lost(published)] == [3]
    session.gap("room", 9.0)
    assert session.lost(published) == []


def test_gap_of_another_channel_covers_nothing() -> None:
    published = Published()
    published.add("room", "client", 1, 1.0, 1.1)
    session = Session(subscribed_s={"room": 0.0}, ended_s=100.0)
    session.gap("hall", 2.0)
    assert [lost.number for lost in session.lost(published)] == [1]


# --- answers and holes while the bus breaks -----------------------------------------------------------

BREAK: Final = Break(began_s=10.0, up_s=12.0, deaf_until_s=13.0)


@pytest.mark.parametrize(
    ("sent_s", "answered_s", "count"),
    [
        (9.9, 10.1, 0),  # sent before the break: the bus may have delivered it
        (10.1, 10.2, 1),
        (12.5, 13.0, 1),  # the bus is back and has no subscriber
        (12.5, 13.1, 0),  # answered when there may have been a subscriber again
        (14.0, 14.1, 0),
    ],
)
def test_publish_counts_as_answered_while_deaf_only_if_it_lies_inside_the_break(
    sent_s: float, answered_s: float, count: int
) -> None:
    assert bus_faults.answered_while_deaf([BREAK], [(sent_s, answered_s)]) == count


def test_hole_ends_with_the_first_publication_that_was_sent_after_the_break() -> None:
    first = [(9.0, 12.1), (10.5, 12.25), (12.3, 12.4)]  # the first one waited in a queue
    last = [(12.3, 12.5)]
    ((first_s, last_s),) = bus_faults.holes_s([BREAK], [first, last])
    assert (first_s, last_s) == pytest.approx((0.25, 0.5))


def test_hole_that_no_publication_ends_is_infinite() -> None:
    assert bus_faults.holes_s([BREAK], [[(9.0, 12.1)], []]) == [(float("inf"), float("inf"))]


def outcome(**changes: Any) -> Outcome:
    good = Outcome(
        breaks=[BREAK],
        lost=5,
        uncovered=[],
        faults=[],
        ok_while_deaf=0,
        refused=3,
        others=0,
        ended=0,
        holes_s=[(0.1, 0.3)],
    )
    return good._replace(**changes)


def test_breaks_without_an_uncovered_loss_pass() -> None:
    assert missed_checks(bus_faults.judge("cuts", 1, outcome())) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"breaks": []},
        {"lost": 0, "refused": 0},
        {"uncovered": [MISSING]},
        {"faults": [MISSING]},
        {"ok_while_deaf": 1},
        {"others": 1},
        {"ended": 1},
        {"holes_s": [(0.1, 0.2), (0.1, 0.31)]},
        {"holes_s": []},
    ],
)
def test_each_broken_promise_of_the_bus_is_a_miss(changes: dict[str, Any]) -> None:
    assert len(missed_checks(bus_faults.judge("cuts", 1, outcome(**changes)))) == 1


# --- a good client beside floods ----------------------------------------------------------------------


def test_percentile_is_the_value_that_the_share_does_not_exceed() -> None:
    values = [float(number) for number in range(100)]
    assert (percentile(values, 0.5), percentile(values, 0.99)) == (50.0, 99.0)
    assert percentile([], 0.5) == float("inf")


@pytest.mark.parametrize(
    ("during", "misses"),
    [
        (Sample([0.01] * 300, [], 0, 0), 0),
        (Sample([0.01] * 290 + [0.06] * 10, [], 0, 0), 1),
        (Sample([0.01] * 300, [], 1, 0), 1),
        (Sample([0.01] * 300, [], 0, 1), 1),
        (Sample([], [], 0, 300), 2),
    ],
)
def test_good_client_that_is_late_refused_or_not_answered_is_a_miss(during: Sample, misses: int) -> None:
    assert len(missed_checks(publish_fairness.judge("250 clients", during))) == misses


def test_case_name_states_users_connections_and_size() -> None:
    assert Case(1_000, 1, 60).name == "one user on 1,000 connections x 60 B"
    assert Case(250, 250, 2_048).name == "250 clients x 2 KB"


@pytest.mark.parametrize(
    ("changes", "misses"),
    [
        ({}, 0),
        ({"accepted_s": [0.01] * 10 + [0.051]}, 1),
        ({"served_s": [0.051]}, 1),
        ({"lost": 1}, 1),
        ({"accepted_s": [], "served_s": []}, 2),
    ],
)
def test_new_connection_or_full_socket_that_waits_too_long_is_a_miss(
    changes: dict[str, Any], misses: int
) -> None:
    good = Waits([0.01] * 10, [0.001] * 10, [1.0] * 10, [0.02] * 10, [0.001] * 10, 0)
    assert len(missed_checks(frequent_senders.judge(good._replace(**changes)))) == misses


# --- bursts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "misses"),
    [
        ({}, 0),
        ({"untold": 1}, 1),
        ({"short": 1}, 1),
        ({"cuts": 1}, 1),
        ({"revoked_s": 1.01}, 1),
        ({"revoked_s": None}, 0),
        ({"grown_bytes": 49 << 20}, 1),
    ],
)
def test_large_burst_that_breaks_a_promise_is_a_miss(changes: dict[str, Any], misses: int) -> None:
    good = Burst(50, 0, 0, 0, 0, 0.2, 40 << 20)
    found = good._replace(**changes)
    assert len(missed_checks(publication_burst.judge(found, fits=False, is_large=True))) == misses


def test_burst_that_fits_the_backlog_must_reach_every_reader() -> None:
    found = Burst(50, 49, 0, 0, 0, None, 0)
    assert len(missed_checks(publication_burst.judge(found, fits=True, is_large=False))) == 1
