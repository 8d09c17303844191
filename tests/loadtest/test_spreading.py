"""How the run of a restart judges attempts: flat is one, together is many (loadtest/harness/spreading.py)."""

import pytest

from loadtest.harness.spreading import TIMES_THE_MEAN, draw, worst_share


def test_a_flat_stream_is_its_own_mean() -> None:
    most, mean = worst_share([number / 100 + 0.005 for number in range(1_000)])
    assert most / mean == pytest.approx(1.0, abs=0.11)


def test_a_crowd_in_one_moment_among_stragglers_is_over_the_limit() -> None:
    most, mean = worst_share([0.0, *[5.01] * 500, 9.99])
    assert most == 500
    assert most / mean > TIMES_THE_MEAN


def test_every_second_is_drawn_the_empty_ones_too() -> None:
    assert [line.split()[2] for line in draw([1.0, 1.5, 4.0], 0.0)] == ["2", "0", "0", "1"]
