"""The layout of a region: the names of its counters, gauges and histograms, in the order of their slots.

A name is `[a-z0-9_]+`. A counter only grows, and stays when its writer ends, because the keeper adds it to
the retired region. A gauge is a present value, and is cleared when its writer ends. A histogram is a row of
counters: one for each power of two, then the sum of the observed values. Its count is the sum of its buckets,
so that the two never disagree.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from wsgate.errors import InternalError

__all__ = ["HISTOGRAM_BUCKETS", "Layout"]

HISTOGRAM_BUCKETS: Final = 26
"""Bucket n counts values below 2**n, and the last one all above: in microseconds, up to 33 s."""


@dataclass(frozen=True)
class Layout:
    """The names of all slots of a region; all regions of a block have the same layout."""

    counters: tuple[str, ...]
    gauges: tuple[str, ...]
    histograms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise InternalError if a name occurs twice, because two writers would share a slot."""
        names = self.counters + self.gauges + self.histograms
        if len(set(names)) != len(names):
            raise InternalError("a name in the statistics layout occurs twice")

    @cached_property
    def counter_slots(self) -> int:
        """Return how many slots are counters, or buckets and sums of histograms; they come first."""
        return len(self.counters) + len(self.histograms) * (HISTOGRAM_BUCKETS + 1)

    @cached_property
    def slots(self) -> int:
        """Return the number of all slots of a region, 8 bytes each."""
        return self.counter_slots + len(self.gauges)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Return the slot of each name; a histogram has the slot of its first bucket."""
        places = {name: place for place, name in enumerate(self.counters)}
        for order, name in enumerate(self.histograms):
            places[name] = len(self.counters) + order * (HISTOGRAM_BUCKETS + 1)
        for order, name in enumerate(self.gauges):
            places[name] = self.counter_slots + order
        return places

    def to_bytes(self) -> bytes:
        """Return the layout as JSON for the header of a block, so that a reader needs nothing else."""
        rows = {"counters": self.counters, "gauges": self.gauges, "histograms": self.histograms}
        return json.dumps(rows, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, text: bytes) -> "Layout":
        """Return the layout that the JSON text in the header of a block describes."""
        rows: dict[str, Any] = json.loads(text)
        return cls(tuple(rows["counters"]), tuple(rows["gauges"]), tuple(rows["histograms"]))
