"""Calculates the numbers of the bench: rates, ratios to the floor, medians. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TypedDict

__all__ = ["Summary", "hit_rate", "per_second", "per_unit_us", "ratios", "summarize", "summarize_all"]


class Summary(TypedDict):
    """The values of one figure over several runs, in the figure's own unit."""

    median: float
    least: float
    most: float
    runs: list[float]


def per_unit_us(cpu_s: float, units: float) -> float:
    """Return the microseconds of CPU that one unit of work took.

    Raises:
        ValueError: No unit of work was done. A result of 0 would look like an excellent value.
    """
    if units <= 0:
        raise ValueError("no unit of work was done")
    return cpu_s * 1e6 / units


def per_second(cost_us: float) -> float:
    """Return how many units one core does per second if each takes `cost_us` microseconds of CPU, > 0."""
    return 1e6 / cost_us


def hit_rate(hits: int, misses: int) -> float | None:
    """Return the share of takes that the pool served, 0 to 1; None if nothing was taken."""
    return hits / (hits + misses) if hits + misses else None


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Divide run by run: the n-th value of one list by the n-th of the other, from about the same time.

    The quotient of two medians is not used, because its two halves may come from different minutes of a noisy
    machine. Runs that only one list has are ignored.
    """
    return [above / below for above, below in zip(numerators, denominators, strict=False)]


def summarize(runs: Sequence[float]) -> Summary:
    """Return the median and the range of one or more runs; raise ValueError without a run."""
    if not runs:
        raise ValueError("no run")
    return Summary(median=statistics.median(runs), least=min(runs), most=max(runs), runs=list(runs))


def summarize_all(figures: Mapping[str, Sequence[float]]) -> dict[str, Summary]:
    """Summarize every figure that has at least one run."""
    return {name: summarize(runs) for name, runs in figures.items() if runs}
