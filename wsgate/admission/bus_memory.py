"""How the memory of the node's own bus is divided, what each part holds, and who is refused for it.

Pure: numbers in, numbers out. Three parts share the memory:

    output    what waits in the bus for shards that do not read; the bus cuts a shard at its limit
    names     channels that shards are subscribed to: inboxes, and names that clients choose
    kept      what the bus was given to keep: streams of events, counts of users, leases

Whoever would add a name is refused before anything is given up that was answered `ok`: new names of clients
from three quarters of the part of names on, new connections, which bring their inboxes, from the whole of it
on. The bus itself refuses to keep more from `maxmemory_bytes` on, which leaves the part of what is kept to
that alone.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = ["BusLedger", "BusReading", "BusShares", "names_bytes"]

OUTPUT_LEAST_BYTES: Final = 8 * 1024 * 1024
OUTPUT_MOST_BYTES: Final = 64 * 1024 * 1024
"""What may wait for one shard that does not read. A smaller burst never costs a shard its connection."""
NAME_BYTES: Final = 208
"""What a subscribed channel costs the bus beside its name, of which an eighth more is booked than it has.

Measured with Valkey 7.2.4, one subscriber, 50,000 names: 229 bytes each for names of 20 bytes, 261 for 60,
309 for 100, 431 for 210. A further shard that subscribes to the same name adds 14 and is booked like the
first.
"""
NUMBER_DIGITS_MOST: Final = 18


@dataclass(frozen=True, slots=True)
class BusShares:
    """The parts of one bus.

    Attributes:
        total_bytes: All of it; 0: the node has no bus of its own, and nobody is refused for it.
        output_bytes: For each shard.
        names_bytes: For all names.
        maxmemory_bytes: Where the bus itself refuses to keep more.
    """

    total_bytes: int
    output_bytes: int
    names_bytes: int
    maxmemory_bytes: int

    @classmethod
    def of(cls, total_bytes: int, shards: int) -> "BusShares":
        """Divide: a quarter for output within its bounds, the rest in halves for names and what is kept."""
        if not total_bytes:
            return cls(0, 0, 0, 0)
        output = min(OUTPUT_MOST_BYTES, max(OUTPUT_LEAST_BYTES, total_bytes // 4 // shards))
        rest = max(0, total_bytes - output * shards)
        return cls(total_bytes, output, rest // 2, rest)


class BusReading(NamedTuple):
    """What the bus says of its memory, in bytes.

    Attributes:
        used: All of it.
        own: Of that, what an empty server uses.
        buffers: Of that, what its clients' buffers and tables take: output for shards, mostly.
    """

    used: int
    own: int
    buffers: int

    @classmethod
    def from_bytes(cls, text: bytes) -> "BusReading":
        """Read the answer to INFO memory.

        Raises:
            ValueError: It is no such answer.
        """
        rows = dict(line.split(b":", 1) for line in text.split(b"\r\n") if b":" in line)
        found = [
            rows.get(name, b"") for name in (b"used_memory", b"used_memory_startup", b"mem_clients_normal")
        ]
        if not all(each.isdigit() and len(each) <= NUMBER_DIGITS_MOST for each in found):
            raise ValueError("no answer to INFO memory")
        return cls(*map(int, found))

    @property
    def data(self) -> int:
        """Names, and what is kept."""
        return max(0, self.used - self.own - self.buffers)


def names_bytes(count: int, name_bytes: int) -> int:
    """What so many channels cost the bus, by the bytes of their names on it."""
    return count * NAME_BYTES + name_bytes * 9 // 8


class BusLedger:
    """The accounts of the node's own bus, as one shard sees them.

    Args:
        shares: The parts.
    """

    def __init__(self, shares: BusShares) -> None:
        self.shares = shares
        self.reading = BusReading(0, 0, 0)
        self._names_then = 0  # of the whole node, by our own count, at the time of the reading
        self._is_full = False

    def read(self, reading: BusReading, names: int) -> None:
        """Take over what the bus says of itself.

        Args:
            reading: What it says.
            names: What all names of the node come to by the shards' own count, at the same time.
        """
        self.reading, self._names_then = reading, names

    def names(self, counted: int) -> int:
        """What names take now: what the shards count, but not more than the bus can hold of them.

        A name that several shards are subscribed to is counted by each and held once.

        Args:
            counted: What all names of the node come to by the shards' own count.
        """
        if not self.reading.used:
            return counted
        return min(counted, self.reading.data + max(0, counted - self._names_then))

    def takes_name(self, counted: int) -> bool:
        """Whether a client may add a name."""
        limit = self.shares.names_bytes - self.shares.names_bytes // 4
        return not self.shares.total_bytes or (self.names(counted) < limit and not self._is_full)

    def judge(self, counted: int) -> bool:
        """Whether newcomers are to be refused: names use their whole part up, or everything uses up all.

        Ends when an eighth is free again, so that the gate does not flap.
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
        """Whether the bus will soon refuse to keep more, by its last answer."""
        return self.shares.total_bytes > 0 and self.reading.used >= _less(self.shares.maxmemory_bytes, 16)


def _less(size: int, part: int) -> int:
    """A size without one of so many parts; 0: the whole size."""
    return size - size // part if part else size
