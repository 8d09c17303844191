"""The arithmetic of the bench: rates, shares of the floor, medians. Pure; knows no process and no clock."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TypedDict

__all__ = ["Summary", "hit_rate", "per_second", "per_unit_us", "ratios", "summarize", "summarize_all"]


class Summary(TypedDict):
    """Several runs of one figure, in the figure's own unit."""

    median: float
    least: float
    most: float
    runs: list[float]


def per_unit_us(cpu_s: float, units: float) -> float:
    """Return microseconds of CPU for one unit of work.

    Raises:
        ValueError: No unit was done: there is nothing to divide by, and 0 would look like a wonder.
    """
    if units <= 0:
        raise ValueError("nothing was done, so nothing was measured")
    return cpu_s * 1e6 / units


def per_second(cost_us: float) -> float:
    """Return how many units one core does per second when each costs `cost_us` microseconds, > 0."""
    return 1e6 / cost_us


def hit_rate(hits: int, misses: int) -> float | None:
    """Return the share of takes that the pool answered, 0 to 1; None when nothing was taken."""
    return hits / (hits + misses) if hits + misses else None


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Divide run by run: the n-th of one by the n-th of the other, which ran beside it.

    Never a quotient of medians, whose two halves may come from different minutes of a noisy machine. Runs
    that only one side has are left out.
    """
    return [above / below for above, below in zip(numerators, denominators, strict=False)]


def summarize(runs: Sequence[float]) -> Summary:
    """Return median and spread of at least one run (ValueError without any)."""
    if not runs:
        raise ValueError("no run")
    return Summary(median=statistics.median(runs), least=min(runs), most=max(runs), runs=list(runs))


def summarize_all(figures: Mapping[str, Sequence[float]]) -> dict[str, Summary]:
    """Summarize every figure that has a run."""
    return {name: summarize(runs) for name, runs in figures.items() if runs}
