"""Compare the measuring parts of the load engine with plain models: histogram, sequences, stamps, plans."""

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.engine import (
    ConnectPlan,
    EchoPlan,
    Engine,
    EngineLimitError,
    EngineSettings,
    Histogram,
    parse_stamp,
    stamp,
)
from loadtest.engine.sequences import SequenceLedger

PERCENTS = (0.0, 1.0, 50.0, 90.0, 99.0, 99.9, 100.0)


def exact(values: list[int], percent: float) -> int:
    ordered = sorted(values)
    return ordered[max(1, math.ceil(percent / 100 * len(ordered))) - 1]


@given(st.lists(st.one_of(st.integers(0, 5_000), st.integers(0, 2**42 - 1)), min_size=1, max_size=300))
def test_histogram_percentiles_match_sorted_samples_within_a_thousandth(values: list[int]) -> None:
    histogram = Histogram()
    histogram.record_many(values)
    for percent in PERCENTS:
        want = exact(values, percent)
        # A value is rounded up inside its bucket, and a bucket is at most 1/1024 of its values wide.
        assert want <= histogram.percentile(percent) <= want + want // 1_000
    summary = histogram.to_dict()
    assert (summary["count"], summary["min"], summary["max"]) == (len(values), min(values), max(values))
    assert summary["mean"] == pytest.approx(sum(values) / len(values))
    assert len(histogram) == len(values)


def test_histogram_is_exact_within_a_thousandth_around_every_power_of_two() -> None:
    for power in range(42):
        for value in {max(0, 2**power + delta) for delta in (-2, -1, 0, 1, 2)}:
            histogram = Histogram()
            histogram.record(value)
            histogram.record(2**42 - 1)
            assert value <= histogram.percentile(50) <= value + value // 1_000


@given(st.lists(st.integers(0, 10**10), max_size=100), st.lists(st.integers(0, 10**10), max_size=100))
def test_merged_histograms_equal_one_histogram_of_all_values(first: list[int], second: list[int]) -> None:
    left, right, whole = Histogram(), Histogram(), Histogram()
    left.record_many(first)
    right.record_many(second)
    whole.record_many(first + second)
    left.merge(Histogram.from_dict(right.to_dict(with_counts=True)))
    merged, wanted = left.to_dict(with_counts=True), whole.to_dict(with_counts=True)
    assert merged["mean"] == pytest.approx(wanted["mean"])
    assert merged | {"mean": 0.0} == wanted | {"mean": 0.0}


def test_histogram_clamps_values_out_of_range_and_counts_them() -> None:
    histogram = Histogram()
    histogram.record(-5)
    histogram.record(2**50)
    summary = histogram.to_dict()
    assert (summary["count"], summary["clamped"], summary["min"], summary["max"]) == (2, 1, 0, 2**42 - 1)
    with pytest.raises(ValueError, match="counts"):
        Histogram.from_dict(summary)


class Model:
    """A model of the sequence ledger that uses sets."""

    def __init__(self, first: int | None) -> None:
        self.first = first
        self.seen: set[int] = set()
        self.duplicates = 0
        self.reordered = 0

    def receive(self, sequence: int) -> None:
        if sequence in self.seen:
            self.duplicates += 1
            return
        highest = max(self.seen, default=-1 if self.first is None else self.first - 1)
        if sequence < highest:
            self.reordered += 1
        elif self.first is not None and sequence < self.first:
            self.reordered += 1
        self.seen.add(sequence)

    def counts(self) -> dict[str, int]:
        low = min(self.seen)
        if self.first is not None:
            low = min(low, self.first)
        missing = sorted(set(range(low, max(self.seen) + 1)) - self.seen)
        gaps = sum(1 for n in missing if n - 1 not in missing)
        return {
            "gaps": gaps,
            "missing": len(missing),
            "duplicates": self.duplicates,
            "reordered": self.reordered,
            "gaps_forgotten": 0,
            "holes": gaps,
        }


@given(st.lists(st.integers(0, 40), min_size=1, max_size=120), st.one_of(st.none(), st.just(0)))
def test_sequence_ledger_counts_gaps_duplicates_and_reordering_like_the_model(
    arrivals: list[int], first: int | None
) -> None:
    ledger, model = SequenceLedger(first), Model(first)
    for sequence in arrivals:
        ledger.receive(3, sequence)
        model.receive(sequence)
        assert ledger.counts() == model.counts()
    for low, high in ((0, 40), (5, 5), (10, 30), (100, 200)):
        assert ledger.missing_between(3, low, high) == len(set(range(low, high + 1)) - model.seen)
    assert ledger.missing_between(4, 0, 9) == 10


def test_sequence_ledger_separates_streams_and_a_reset_clears_only_the_counts() -> None:
    ledger = SequenceLedger()
    for stream in range(5):
        ledger.receive(stream, 10 * stream)
        ledger.receive(stream, 10 * stream + 3)
    assert (ledger.counts()["gaps"], ledger.counts()["missing"]) == (5, 10)
    ledger.reset()
    ledger.receive(0, 1)
    ledger.receive(1, 14)
    wanted = {"gaps": 0, "missing": 0, "duplicates": 0, "reordered": 1, "gaps_forgotten": 0, "holes": 5}
    assert ledger.counts() == wanted
    assert ledger.missing_between(0, 0, 3) == 1


def test_sequence_ledger_forgets_holes_over_its_limit_and_counts_them() -> None:
    ledger = SequenceLedger()
    for sequence in range(0, 4_000, 2):
        ledger.receive(0, sequence)
    counts = ledger.counts()
    assert (counts["gaps"], counts["missing"], counts["holes"]) == (1_999, 1_999, 1_024)
    assert counts["gaps_forgotten"] == 1_999 - 1_024


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(48, 200))
def test_stamp_is_parsed_at_any_place_in_a_message(
    stream: int, sequence: int, intended_ns: int, size: int
) -> None:
    made = stamp(stream, sequence, intended_ns, size)
    assert len(made) == size and made.isascii() and made.decode().isprintable()
    assert parse_stamp(made) == (stream, sequence, intended_ns)
    assert parse_stamp(b'{"data":"WSGLOAD1 WSGLOA' + made + b'"}') == (stream, sequence, intended_ns)
    assert parse_stamp(made[:47]) is None and parse_stamp(b"x" * 100) is None


@pytest.mark.parametrize("arguments", [(2**31, 0, 0), (-1, 0, 0), (0, -1, 0), (0, 0, 2**63), (0, 0, 0, 47)])
def test_stamp_with_a_number_out_of_range_raises_value_error(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        stamp(*arguments)


@pytest.mark.parametrize(
    ("plan", "fields"),
    [
        (ConnectPlan, {"count": 0, "host": "127.0.0.1", "port": 1}),
        (ConnectPlan, {"count": 1, "host": "127.0.0.1", "port": 0}),
        (ConnectPlan, {"count": 1, "host": "127.0.0.1", "port": 1, "slow_share": 1.5}),
        (ConnectPlan, {"count": 1, "host": "127.0.0.1", "port": 1, "path": "x"}),
        (ConnectPlan, {"count": 1, "host": "127.0.0.1", "port": 1, "headers": (("A", "b\r\nC: d"),)}),
        (
            ConnectPlan,
            {"count": 1, "host": "127.0.0.1", "port": 1, "headers": (("Sec-WebSocket-Extensions", "x"),)},
        ),
        (EchoPlan, {}),
        (EchoPlan, {"duration_s": 1, "payload_bytes": 47}),
        (EchoPlan, {"duration_s": 1, "in_flight": 0}),
        (EchoPlan, {"duration_s": 1, "message": "{stamp}{stamp}"}),
        (EchoPlan, {"duration_s": 1, "rate_per_s": 1, "message": "no stamp and no answer"}),
        (EchoPlan, {"duration_s": 1, "rate_per_s": 1, "answer": "both"}),
        (EchoPlan, {"duration_s": 1, "message": "no rate", "answer": "x"}),
        (EchoPlan, {"duration_s": 1, "message": "{stamp}\xe4"}),
        (EngineSettings, {"counted": ("",)}),
        (EngineSettings, {"counted": ("x" * 65,)}),
        (EngineSettings, {"counted": ("x",) * 9}),
        (EngineSettings, {"stamp_window_bytes": 47}),
        (EngineSettings, {"close_timeout_s": 0}),
    ],
)
def test_plan_or_settings_out_of_range_raise_value_error(plan: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        plan(**fields)


def test_engine_with_more_connections_than_descriptors_or_sources_raises() -> None:
    with pytest.raises(EngineLimitError, match="hard limit"):
        Engine(EngineSettings(max_connections=1_000_000))
    with pytest.raises(ValueError, match=r"127\.0\.0\.0/8"):
        Engine(EngineSettings(max_connections=10, first_source="10.0.0.1"))


def test_histogram_percentiles_of_20000_random_samples_are_exact_within_a_thousandth() -> None:
    source = random.Random(7)
    values = [int(source.lognormvariate(12, 4)) for _ in range(20_000)]
    histogram = Histogram()
    histogram.record_many(values)
    for percent in PERCENTS:
        want = exact(values, percent)
        assert want <= histogram.percentile(percent) <= want + want // 1_000
