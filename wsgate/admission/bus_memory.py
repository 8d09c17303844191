"""Divides the memory of a node's private bus into parts, and decides when new names must be refused.

Pure: the functions take and return numbers. Three parts share the memory:

    output    data that waits in the bus for shards that do not read; at its limit the bus disconnects a shard
    names     names of channels to which shards are subscribed: inboxes, and channels that clients choose
    stored    data that the bus stores: streams of events, connection counts of users, leases

New names are refused before the bus has to give up anything that was confirmed with `ok`. New channels of
clients are refused from three quarters of the part for names on. New connections, each of which adds an
inbox, are refused when the whole part is used. From `maxmemory_bytes` on the bus itself refuses to store
more.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = ["BusLedger", "BusReading", "BusShares", "names_bytes"]

OUTPUT_LEAST_BYTES: Final = 8 * 1024 * 1024
OUTPUT_MOST_BYTES: Final = 64 * 1024 * 1024
"""The output that can wait for one shard. A shard never loses its bus connection by a smaller burst."""
NAME_BYTES: Final = 208
"""Memory of the bus for a subscribed channel in bytes, in addition to 9/8 of the length of its name.

Measured with Valkey 7.2.4, one subscriber, 50,000 names: 229 bytes each for names of 20 bytes, 261 for 60,
309 for 100, 431 for 210. Another shard that subscribes to the same name adds 14 bytes, but is charged like
the first.
"""
NUMBER_DIGITS_MOST: Final = 18


@dataclass(frozen=True, slots=True)
class BusShares:
    """The parts into which the memory of one private bus is divided, in bytes.

    Attributes:
        total_bytes: All memory of the bus. 0: the node has no private bus, and nothing is refused here.
        output_bytes: Output that may wait for each shard.
        names_bytes: Memory for all subscribed names.
        maxmemory_bytes: The memory from which on the bus itself refuses to store more.
    """

    total_bytes: int
    output_bytes: int
    names_bytes: int
    maxmemory_bytes: int

    @classmethod
    def of(cls, total_bytes: int, shards: int) -> "BusShares":
        """Divide the memory: a quarter for output, within bounds, and half of the rest for names."""
        if not total_bytes:
            return cls(0, 0, 0, 0)
        output = min(OUTPUT_MOST_BYTES, max(OUTPUT_LEAST_BYTES, total_bytes // 4 // shards))
        rest = max(0, total_bytes - output * shards)
        return cls(total_bytes, output, rest // 2, rest)


class BusReading(NamedTuple):
    """The memory that the bus reports in INFO memory, in bytes.

    Attributes:
        used: All memory in use.
        own: The part that an empty server uses.
        buffers: The part for buffers and tables of its clients, mostly output for shards.
    """

    used: int
    own: int
    buffers: int

    @classmethod
    def from_bytes(cls, text: bytes) -> "BusReading":
        """Parse the reply to the command INFO memory.

        Raises:
            ValueError: The text is not such a reply.
        """
        rows = dict(line.split(b":", 1) for line in text.split(b"\r\n") if b":" in line)
        found = [
            rows.get(name, b"") for name in (b"used_memory", b"used_memory_startup", b"mem_clients_normal")
        ]
        if not all(each.isdigit() and len(each) <= NUMBER_DIGITS_MOST for each in found):
            raise ValueError("this is not a reply to INFO memory")
        return cls(*map(int, found))

    @property
    def data(self) -> int:
        """Return the memory for subscribed names and stored data, in bytes."""
        return max(0, self.used - self.own - self.buffers)


def names_bytes(count: int, name_bytes: int) -> int:
    """Return the memory of the bus for `count` channels whose names have `name_bytes` bytes together."""
    return count * NAME_BYTES + name_bytes * 9 // 8


class BusLedger:
    """Compares the memory of the private bus with its parts, for one shard, and decides whether it is full.

    Args:
        shares: How the memory is divided.
    """

    def __init__(self, shares: BusShares) -> None:
        self.shares = shares
        self.reading = BusReading(0, 0, 0)
        self._names_then = 0  # names of the whole node by the shards' count, at the time of the reading
        self._is_full = False

    def read(self, reading: BusReading, names: int) -> None:
        """Store a new report of the bus about its memory.

        Args:
            reading: The report.
            names: Memory of all names of the node by the shards' own count at the same time, in bytes.
        """
        self.reading, self._names_then = reading, names

    def names(self, counted: int) -> int:
        """Return the bytes that names of channels now use on the bus.

        The sum of the shards is too high, because each shard counts a name that the bus stores once. So the
        result is at most what the bus reported last, and what the shards have added since.

        Args:
            counted: Memory of all names of the node by the shards' own count, in bytes.
        """
        if not self.reading.used:
            return counted
        return min(counted, self.reading.data + max(0, counted - self._names_then))

    def takes_name(self, counted: int) -> bool:
        """Return whether a client may add the name of a channel to the bus."""
        limit = self.shares.names_bytes - self.shares.names_bytes // 4
        return not self.shares.total_bytes or (self.names(counted) < limit and not self._is_full)

    def judge(self, counted: int) -> bool:
        """Return whether new connections must be refused: the bus, or its memory for names, is full.

        The refusal ends when an eighth is free again, so that it does not start and stop all the time.
        """
        shares, names = self.shares, self.names(counted)
        spared = 8 if self._is_full else 0
        self._is_full = shares.total_bytes > 0 and (
            names >= _less(shares.names_bytes, spared)
            or self.reading.used + max(0, counted - self._names_then) >= _less(shares.total_bytes, spared)
        )
        return self._is_full

    @property
    def is_nearly_full(self) -> bool:
        """Return whether the bus will soon refuse to store more data, by its last report."""
        return self.shares.total_bytes > 0 and self.reading.used >= _less(self.shares.maxmemory_bytes, 16)


def _less(size: int, part: int) -> int:
    """Return a size reduced by one `part`-th of it; the whole size if `part` is 0."""
    return size - size // part if part else size
