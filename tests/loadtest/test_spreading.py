"""Check how attempts after a restart are spread over time (loadtest/harness/spreading.py)."""

import pytest

from loadtest.harness.spreading import TIMES_THE_MEAN, draw, worst_share


def test_worst_second_of_evenly_spread_attempts_equals_the_mean() -> None:
    most, mean = worst_share([number / 100 + 0.005 for number in range(1_000)])
    assert most / mean == pytest.approx(1.0, abs=0.11)


def test_500_attempts_in_one_moment_exceed_the_limit_of_the_worst_second() -> None:
    most, mean = worst_share([0.0, *[5.01] * 500, 9.99])
    assert most == 500
    assert most / mean > TIMES_THE_MEAN


def test_drawing_has_one_line_per_second_also_for_empty_ones() -> None:
    assert [line.split()[2] for line in draw([1.0, 1.5, 4.0], 0.0)] == ["2", "0", "0", "1"]
