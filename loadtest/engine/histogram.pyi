"""A histogram of durations with three significant digits, which can be merged with others."""

from collections.abc import Iterable
from typing import Self

from typing_extensions import disjoint_base

from loadtest.engine.results import HistogramDict

__all__ = ["Histogram"]

__pyx_capi__: dict[str, object]  # what the other modules link to

@disjoint_base
class Histogram:
    """Counts of values from 0 to 2**42-1 (in ns: 73 minutes), each kept within 0.1 %.

    Source: HdrHistogram's bucket layout with 2,048 sub-buckets.
    """

    def __init__(self) -> None: ...
    def record(self, value: int, count: int = 1) -> None:
        """Add a value `count` times.

        A negative value counts as 0, one above the range as the largest (`clamped`).
        """

    def record_many(self, values: Iterable[int]) -> None:
        """Add each of several values once."""

    def merge(self, other: Histogram) -> None:
        """Add all counts of another histogram."""

    def percentile(self, percent: float) -> int:
        """Return the value that `percent` of the samples do not exceed, rounded up within 0.1 %.

        0 for an empty histogram.

        Args:
            percent: 0 to 100.
        """

    def to_dict(self, *, with_counts: bool = False) -> HistogramDict:
        """Return the summary; `with_counts` adds the buckets that `from_dict` needs."""

    @classmethod
    def from_dict(cls, data: HistogramDict) -> Self:
        """Create a histogram from `to_dict(with_counts=True)`; raise ValueError without the buckets."""

    def __len__(self) -> int:
        """Return how many values were recorded."""
