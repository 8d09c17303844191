"""One block of shared memory: a header that describes it, then one region per writer.

Made by the keeper before it forks; every process below it sees the same pages. Region 0 is the
keeper's, 1 to n are the shards', the last holds what dead shards had counted. Aligned 8-byte stores
are atomic on the machines we run on, so a reader needs no lock; only while the keeper folds a dead
region into the retired one are two slots briefly out of step, and the header's fold number, odd
meanwhile, makes a reader look again.
"""

import mmap
import struct
from typing import Final

from wsgate.errors import InternalError
from wsgate.statistics.layout import HISTOGRAM_BUCKETS, Layout

__all__ = ["Region", "StatisticsBlock"]

MAGIC: Final = b"WSGSTATS"
VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sQQQQ")  # magic, version, fold number, regions, bytes of the layout
_FOLD_SLOT: Final = 2  # of 8 bytes
_PAGE: Final = 4096
_READ_TRIES: Final = 1000


def _pages(size_bytes: int) -> int:
    return -(-size_bytes // _PAGE) * _PAGE


class Region:
    """One writer's slots. Values are unsigned 64-bit integers."""

    def __init__(self, layout: Layout, slots: memoryview) -> None:
        """Over `slots`, a writable view of `Q`, one item per slot."""
        self.layout = layout
        self.slots = slots

    def __getitem__(self, name: str) -> int:
        """The value of a counter or gauge."""
        value: int = self.slots[self.layout.index[name]]
        return value

    def __setitem__(self, name: str, value: int) -> None:
        """Set a gauge, or a counter that its only writer keeps elsewhere."""
        self.slots[self.layout.index[name]] = value

    def add(self, name: str, amount: int = 1) -> None:
        """Count. Not atomic: a slot has one writer."""
        self.slots[self.layout.index[name]] += amount

    def observe(self, name: str, value: int) -> None:
        """Put a value, 0 or more, into a histogram. O(1)."""
        first = self.layout.index[name]
        self.slots[first + min(value.bit_length(), HISTOGRAM_BUCKETS - 1)] += 1
        self.slots[first + HISTOGRAM_BUCKETS] += value

    def histogram(self, name: str) -> tuple[list[int], int]:
        """The buckets, not cumulated, and the sum."""
        first = self.layout.index[name]
        return list(self.slots[first : first + HISTOGRAM_BUCKETS]), self.slots[first + HISTOGRAM_BUCKETS]


class StatisticsBlock:
    """The whole block.

    Attributes:
        layout: Slots of every region.
        shards: How many shard regions there are.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        """Over memory that `create` prepared; InternalError when it is not, or of another version."""
        magic, version, _, regions, layout_bytes = _HEADER.unpack_from(memory)
        if magic != MAGIC or version != VERSION:
            raise InternalError("this is no statistics block of this version")
        self.layout = Layout.from_bytes(memory[_HEADER.size : _HEADER.size + layout_bytes])
        self.shards = regions - 2
        self._header = memoryview(memory)[: _HEADER.size].cast("Q")
        view, size = memoryview(memory), self.layout.slots * 8
        starts = range(_pages(_HEADER.size + layout_bytes), len(memory), _pages(size))
        self._regions = [Region(self.layout, view[start : start + size].cast("Q")) for start in starts]

    @classmethod
    def create(cls, layout: Layout, shards: int) -> "StatisticsBlock":
        """A new block, all zero, in memory that children share."""
        text = layout.to_bytes()
        size = _pages(_HEADER.size + len(text)) + (shards + 2) * _pages(layout.slots * 8)
        memory = mmap.mmap(-1, size)
        _HEADER.pack_into(memory, 0, MAGIC, VERSION, 0, shards + 2, len(text))
        memory[_HEADER.size : _HEADER.size + len(text)] = text
        return cls(memory)

    @property
    def keeper(self) -> Region:
        """The keeper's own region."""
        return self._regions[0]

    @property
    def retired(self) -> Region:
        """What dead shards had counted."""
        return self._regions[-1]

    def shard(self, number: int) -> Region:
        """The region of shard `number`, from 0."""
        if not 0 <= number < self.shards:
            raise InternalError(f"there is no shard {number}")
        return self._regions[1 + number]

    def retire(self, number: int) -> None:
        """Fold the counters of a dead shard into the retired region and clear its own. Keeper only."""
        dead, retired = self.shard(number).slots, self.retired.slots
        self._header[_FOLD_SLOT] += 1
        for place in range(self.layout.counter_slots):
            retired[place] += dead[place]
        for place in range(self.layout.slots):
            dead[place] = 0
        self._header[_FOLD_SLOT] += 1

    def snapshot(self) -> list[list[int]]:
        """All regions as of one moment between folds: keeper, shards, retired.

        A keeper that died in the middle of a fold leaves its number odd for ever; then what is there
        is returned.
        """
        values: list[list[int]] = []
        for _ in range(_READ_TRIES):
            before = self._header[_FOLD_SLOT]
            values = [region.slots.tolist() for region in self._regions]
            if before % 2 == 0 and before == self._header[_FOLD_SLOT]:
                break
        return values
