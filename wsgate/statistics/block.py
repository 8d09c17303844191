"""One block of shared memory: a header that describes it, then one region per writer.

Made by the keeper before it forks; every process below it sees the same pages. Region 0 is the
keeper's, 1 to n are the shards', the last holds what dead shards had counted. Aligned 8-byte stores
are atomic on the machines we run on, so a reader needs no lock; only while the keeper folds a dead
region into the retired one are two slots briefly out of step, and the header's fold number, odd
meanwhile, makes a reader look again.
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
_MOST: Final = (1 << 64) - 1  # the largest value of a slot


def _pages(size_bytes: int) -> int:
    return -(-size_bytes // _PAGE) * _PAGE


class Region:
    """One writer's slots. Values are unsigned 64-bit integers.

    No write raises: a counter wraps modulo 2^64, and a gauge outside of the range is set to the nearest
    value. Whatever bytes another process has left in a slot, the writer goes on.
    """

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
        place = self.layout.index[name]
        try:
            self.slots[place] = value
        except ValueError:  # not a number of 64 bits without a sign
            self.slots[place] = min(max(value, 0), _MOST)

    def add(self, name: str, amount: int = 1) -> None:
        """Count. Not atomic: a slot has one writer."""
        self._add(self.layout.index[name], amount)

    def observe(self, name: str, value: int) -> None:
        """Put a value, 0 or more, into a histogram. O(1)."""
        first = self.layout.index[name]
        self._add(first + min(value.bit_length(), HISTOGRAM_BUCKETS - 1), 1)
        self._add(first + HISTOGRAM_BUCKETS, value)

    def _add(self, place: int, amount: int) -> None:
        self.slots[place] = self.slots[place] + amount & _MOST

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
        """Fold the counters of a dead shard into the retired region and clear its own. Keeper only.

        The dead shard may have left any bytes: sums wrap modulo 2^64, and the fold number is even again
        when this returns, whatever happens in between.
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
        """Make the fold number even if another process has overwritten it. Keeper only, between folds.

        A reader copies the block again and again while the number is odd.
        """
        if self._header[_FOLD_SLOT] % 2:
            self._header[_FOLD_SLOT] = self._header[_FOLD_SLOT] + 1 & _MOST

    def snapshot(self) -> list[list[int]]:
        """All regions as of one moment between folds: keeper, shards, retired.

        A keeper that died in the middle of a fold leaves its number odd for ever; then what is there
        is returned.
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
