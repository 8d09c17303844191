"""What a region holds: names of counters, gauges and histograms, in the order of their slots.

A name is `[a-z0-9_]+`. Counters only grow and survive their writer: a dead region's are folded into
the retired one. Gauges are of now and die with their writer. A histogram is a row of counters: one
per power of two, then the sum of what was observed; its count is the sum of the buckets, so that the
two never disagree.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from wsgate.errors import InternalError

__all__ = ["HISTOGRAM_BUCKETS", "Layout"]

HISTOGRAM_BUCKETS: Final = 26
"""Bucket n counts values below 2**n; the last one everything above. In microseconds: to 33 s."""


@dataclass(frozen=True)
class Layout:
    """The slots of a region. All regions of a block have the same."""

    counters: tuple[str, ...]
    gauges: tuple[str, ...]
    histograms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a name that is there twice: two writers would share a slot."""
        names = self.counters + self.gauges + self.histograms
        if len(set(names)) != len(names):
            raise InternalError("a slot has two owners")

    @cached_property
    def counter_slots(self) -> int:
        """How many slots are counters, buckets and sums: the first ones."""
        return len(self.counters) + len(self.histograms) * (HISTOGRAM_BUCKETS + 1)

    @cached_property
    def slots(self) -> int:
        """All slots, 8 bytes each."""
        return self.counter_slots + len(self.gauges)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Name to slot; a histogram's name is its first bucket."""
        places = {name: place for place, name in enumerate(self.counters)}
        for order, name in enumerate(self.histograms):
            places[name] = len(self.counters) + order * (HISTOGRAM_BUCKETS + 1)
        for order, name in enumerate(self.gauges):
            places[name] = self.counter_slots + order
        return places

    def to_bytes(self) -> bytes:
        """As it stands in a block's header, so that a reader needs nothing else."""
        rows = {"counters": self.counters, "gauges": self.gauges, "histograms": self.histograms}
        return json.dumps(rows, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, text: bytes) -> "Layout":
        """The layout a header describes."""
        rows: dict[str, Any] = json.loads(text)
        return cls(tuple(rows["counters"]), tuple(rows["gauges"]), tuple(rows["histograms"]))
