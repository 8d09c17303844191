"""Log-linear histogram of durations, three significant digits, mergeable."""

from collections.abc import Iterable
from typing import Self

from typing_extensions import disjoint_base

from loadtest.engine.results import HistogramDict

__all__ = ["Histogram"]

__pyx_capi__: dict[str, object]  # what the other modules link to

@disjoint_base
class Histogram:
    """Counts of values 0 to 2**42-1 (ns: 73 minutes), each kept within 0.1 %.

    Source: HdrHistogram's bucket layout with 2,048 sub-buckets.
    """

    def __init__(self) -> None: ...
    def record(self, value: int, count: int = 1) -> None:
        """Add a value `count` times; below 0 counts as 0, above the range as the largest (`clamped`)."""

    def record_many(self, values: Iterable[int]) -> None:
        """Add each value once."""

    def merge(self, other: Histogram) -> None:
        """Add all of another's counts."""

    def percentile(self, percent: float) -> int:
        """Return the value that `percent` of the samples do not exceed, rounded up within 0.1 %.

        0 when empty.

        Args:
            percent: 0 to 100.
        """

    def to_dict(self, *, with_counts: bool = False) -> HistogramDict:
        """Return the summary; `with_counts` adds the buckets `from_dict` needs."""

    @classmethod
    def from_dict(cls, data: HistogramDict) -> Self:
        """Make a histogram from `to_dict(with_counts=True)` (ValueError without the buckets)."""

    def __len__(self) -> int:
        """Return how many values were recorded."""
