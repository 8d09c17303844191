"""The statistics block: shared memory with a header that describes it, and one region for each writer.

The keeper creates the block before it forks, so that all its processes share the same pages. Region 0 belongs
to the keeper and regions 1 to n to the shards; the last region has the counters of shards that have ended.
Aligned stores of 8 bytes are atomic on the supported machines, so a reader needs no lock. Two slots disagree
only for the moment in which the keeper folds the region of an ended shard into the last one. The fold number
in the header is odd during that time, and makes a reader read again.
"""

import mmap
import struct
from array import array
from typing import Final

from wsgate.errors import InternalError
from wsgate.statistics.fence import fence
from wsgate.statistics.layout import HISTOGRAM_BUCKETS, Layout

__all__ = ["Region", "StatisticsBlock"]

MAGIC: Final = b"WSGSTATS"
VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sQQQQ")  # magic, version, fold number, regions, bytes of the layout
_FOLD_SLOT: Final = 2  # of 8 bytes
_PAGE: Final = 4096
_READ_TRIES: Final = 1000
_MOST: Final = (1 << 64) - 1  # the largest value that a slot can store


def _pages(size_bytes: int) -> int:
    """Return `size_bytes` rounded up to whole pages."""
    return -(-size_bytes // _PAGE) * _PAGE


class Region:
    """The slots of one writer, addressed by name; each value is an unsigned integer of 64 bits.

    No write raises an exception, whatever bytes another process has left in a slot: a counter wraps modulo
    2^64, and a gauge outside of the range is set to the nearest value.
    """

    def __init__(self, layout: Layout, slots: memoryview) -> None:
        """Use `slots`, a writable memoryview of format `Q` with one item for each slot of `layout`."""
        self.layout = layout
        self.slots = slots

    def __getitem__(self, name: str) -> int:
        """Return the present value of a counter or gauge."""
        value: int = self.slots[self.layout.index[name]]
        return value

    def __setitem__(self, name: str, value: int) -> None:
        """Set a gauge, or a counter whose value the only writer counts elsewhere."""
        place = self.layout.index[name]
        try:
            self.slots[place] = value
        except ValueError:  # not an unsigned number of 64 bits
            self.slots[place] = min(max(value, 0), _MOST)

    def add(self, name: str, amount: int = 1) -> None:
        """Add `amount` to a counter. This is not atomic, because a slot has only one writer."""
        self._add(self.layout.index[name], amount)

    def observe(self, name: str, value: int) -> None:
        """Count a value of 0 or more in its bucket of a histogram, and add it to the sum. O(1)."""
        first = self.layout.index[name]
        self._add(first + min(value.bit_length(), HISTOGRAM_BUCKETS - 1), 1)
        self._add(first + HISTOGRAM_BUCKETS, value)

    def _add(self, place: int, amount: int) -> None:
        """Add an amount to the slot at `place`, modulo 2^64."""
        self.slots[place] = self.slots[place] + amount & _MOST

    def histogram(self, name: str) -> tuple[list[int], int]:
        """Return the counts of a histogram's buckets, not cumulated, and the sum of all observed values."""
        first = self.layout.index[name]
        return list(self.slots[first : first + HISTOGRAM_BUCKETS]), self.slots[first + HISTOGRAM_BUCKETS]


class StatisticsBlock:
    """All regions of a node's statistics: those of the keeper, of each shard, and of ended shards.

    Attributes:
        layout: The names of the slots, the same for every region.
        shards: The number of shard regions.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        """Open a block in memory that `create` prepared; InternalError if its header is not valid."""
        magic, version, _, regions, layout_bytes = _HEADER.unpack_from(memory)
        if magic != MAGIC or version != VERSION:
            raise InternalError("the memory contains no statistics block of this version")
        self.layout = Layout.from_bytes(memory[_HEADER.size : _HEADER.size + layout_bytes])
        self.shards = regions - 2
        self._header = memoryview(memory)[: _HEADER.size].cast("Q")
        view, size = memoryview(memory), self.layout.slots * 8
        starts = range(_pages(_HEADER.size + layout_bytes), len(memory), _pages(size))
        self._regions = [Region(self.layout, view[start : start + size].cast("Q")) for start in starts]

    @classmethod
    def create(cls, layout: Layout, shards: int) -> "StatisticsBlock":
        """Create a block with all values 0 in anonymous memory that forked children share."""
        text = layout.to_bytes()
        size = _pages(_HEADER.size + len(text)) + (shards + 2) * _pages(layout.slots * 8)
        memory = mmap.mmap(-1, size)
        _HEADER.pack_into(memory, 0, MAGIC, VERSION, 0, shards + 2, len(text))
        memory[_HEADER.size : _HEADER.size + len(text)] = text
        return cls(memory)

    @property
    def keeper(self) -> Region:
        """Return the region that the keeper writes."""
        return self._regions[0]

    @property
    def retired(self) -> Region:
        """Return the region with the sums of the counters of ended shards."""
        return self._regions[-1]

    def shard(self, number: int) -> Region:
        """Return the region of the shard `number`, from 0; InternalError if there is no such shard."""
        if not 0 <= number < self.shards:
            raise InternalError(f"there is no shard {number}")
        return self._regions[1 + number]

    def retire(self, number: int) -> None:
        """Add the counters of an ended shard to the retired region, and clear the shard's own region.

        Only the keeper calls this. The shard may have left any bytes, so sums wrap modulo 2^64. The fold
        number is even again when this returns, also after an exception.
        """
        dead, retired = self.shard(number).slots, self.retired.slots
        count = self.layout.counter_slots
        sums = array(
            "Q", (ours + its & _MOST for ours, its in zip(retired[:count], dead[:count], strict=True))
        )
        zeros = array("Q", bytes(self.layout.slots * 8))
        fold = self._header[_FOLD_SLOT] | 1
        self._header[_FOLD_SLOT] = fold
        fence()
        try:
            retired[:count] = memoryview(sums)
            dead[:] = memoryview(zeros)
        finally:
            fence()
            self._header[_FOLD_SLOT] = fold + 1 & _MOST

    def mend(self) -> None:
        """Make the fold number even again if another process has overwritten it with an odd number.

        Only the keeper calls this, and not during a fold. While the number is odd a reader copies the block
        again and again.
        """
        if self._header[_FOLD_SLOT] % 2:
            self._header[_FOLD_SLOT] = self._header[_FOLD_SLOT] + 1 & _MOST

    def snapshot(self) -> list[list[int]]:
        """Return a copy of all regions between two folds, as lists of slots: keeper, shards, retired.

        A keeper that was killed during a fold leaves the fold number odd. After 1,000 attempts the last copy
        is returned as it is.
        """
        values: list[list[int]] = []
        for _ in range(_READ_TRIES):
            before = self._header[_FOLD_SLOT]
            fence()
            values = [region.slots.tolist() for region in self._regions]
            fence()
            if before % 2 == 0 and before == self._header[_FOLD_SLOT]:
                break
        return values
