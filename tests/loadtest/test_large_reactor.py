"""Run the benchmark of large reactors, small: it counts its messages and checks its numbers."""

import pytest

from loadtest.experiments.large_reactor import Figures, judge, measure, measure_deflated


def test_large_reactor_measures_2000_connections_with_every_figure() -> None:
    found = measure(2_000)
    assert found.count == 2_000
    assert min(found.delivery_us, found.heartbeat_us, found.publish_lag_ms) > 0


def test_large_reactor_measures_plain_and_compressed_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.experiments.large_reactor.DEFLATED_COUNT", 500)
    assert min(measure_deflated()) > 0


def test_large_reactor_reports_each_figure_that_grows_over_its_limit() -> None:
    small, large = Figures(1, 100, 1, 1, 1, 1), Figures(9, 121, 1, 1.3, 11, 1)
    missed = [name for name, value, most in judge([small, large], 1.0, 1.2) if value > most]
    assert missed == [
        "memory per connection, growth",
        "heartbeat cycle, growth",
        "loop lag while one publication walks, ms",
        "deflated delivery, times a plain one",
    ]
