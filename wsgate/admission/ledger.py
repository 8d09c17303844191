"""The books of one shard against what it really uses, and what follows: state and headroom.

Pure: numbers in, numbers out; the reactor keeps the accounts themselves (reactor/memory.pyx) and refuses and
cuts by them at once. Here they are compared with the footprint, once a second, and looked ahead from.

States, each with its mark and another to leave it, so that nothing flaps:

    open       newcomers are welcome
    refusing   from fifteen sixteenths of the memory budget on until seven eighths, or from the last free
               slot or descriptor on until a sixty-fourth of them is free again, or while the machine has
               no memory for sockets, or the process has grown by more than the books explain
    shedding   from the budget on until fifteen sixteenths of it: some are being cut
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

__all__ = ["RESOURCES", "Headroom", "Ledger", "Reading", "State"]

SLACK_BYTES: Final = 8 << 20
"""A heap has holes and an interpreter its own: what is not explained below this is nothing."""
GROWTH_SHARE: Final = 0.05
"""Of each second in the mean growth: about the last twenty count."""
MANY: Final = 1_000
"""Connections from which on their mean says what the next one will cost."""
FULL_SHARE: Final = 64
RESOURCES: Final = ("connections", "descriptors", "memory")


class State(IntEnum):
    """What a shard does about newcomers; the number is that of the gauge."""

    OPEN = 0
    REFUSING = 1
    SHEDDING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was found in one second.

    Attributes:
        connections: In the table now.
        own_bytes: On the books for memory of this process, without what the kernel is charged with.
        booked_bytes: Everything on the books.
        resident_bytes: The process's own resident memory.
    """

    connections: int
    own_bytes: int
    booked_bytes: int
    resident_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Headroom:
    """How many more connections fit.

    Attributes:
        by_resource: As far as each of `RESOURCES` goes.
        binding: The one that goes least far.
        growth_per_s: Mean growth of the connections; below 0 they leave.
        full_in_s: When it is full at that growth; -1 when it is not growing.
    """

    by_resource: dict[str, int]
    binding: str
    growth_per_s: float
    full_in_s: float

    @property
    def connections(self) -> int:
        """As far as all of them go."""
        return self.by_resource[self.binding]


class Ledger:
    """One shard's.

    Args:
        connection_bytes: The least a connection costs.
        baseline_bytes: What the process used before its first client.
    """

    def __init__(self, *, connection_bytes: int, baseline_bytes: int) -> None:
        self._connection_bytes = connection_bytes
        self._baseline_bytes = baseline_bytes
        self._before: int | None = None
        self._growth_per_s = 0.0
        self.state = State.OPEN
        self.memory_growth_bytes = 0
        self.memory_unaccounted_bytes = 0
        self.has_unexplained_growth = False

    def read(self, reading: Reading, budget_bytes: int) -> None:
        """Compare the books with the footprint.

        `memory_unaccounted_bytes` is the growth of the process that the accounts do not explain, beyond some
        slack. After a leak or with a fragmented heap, the gate refuses newcomers (`has_unexplained_growth`),
        so that the kernel does not kill the process. No connection is closed for it, because closing would
        free nothing.
        """
        self.memory_growth_bytes = max(0, reading.resident_bytes - self._baseline_bytes)
        self.memory_unaccounted_bytes = max(0, self.memory_growth_bytes - reading.own_bytes - SLACK_BYTES)
        total = reading.booked_bytes + self.memory_unaccounted_bytes
        mark = budget_bytes - budget_bytes // (8 if self.has_unexplained_growth else 16)
        self.has_unexplained_growth = budget_bytes > 0 and self.memory_unaccounted_bytes > 0 and total >= mark
        if self._before is not None:
            grown = reading.connections - self._before
            self._growth_per_s += GROWTH_SHARE * (grown - self._growth_per_s)
        self._before = reading.connections

    def headroom(
        self, reading: Reading, *, connections_limit: int, descriptors_limit: int, budget_bytes: int
    ) -> Headroom:
        """How many more fit, and for how long at the present growth. 0 is no limit."""
        high_bytes = budget_bytes - budget_bytes // 16
        mean_bytes = self._connection_bytes
        if reading.connections >= MANY:
            mean_bytes = max(mean_bytes, reading.booked_bytes // reading.connections)
        by_memory = (high_bytes - reading.booked_bytes) // mean_bytes if budget_bytes else connections_limit
        found = {
            "connections": connections_limit - reading.connections,
            "descriptors": descriptors_limit - reading.connections,
            "memory": by_memory,
        }
        rooms = {name: max(0, found[name]) for name in RESOURCES}
        binding = min(RESOURCES, key=lambda name: rooms[name])
        growth = self._growth_per_s
        full_in_s = rooms[binding] / growth if growth > 0.01 else -1.0
        return Headroom(by_resource=rooms, binding=binding, growth_per_s=growth, full_in_s=full_in_s)

    def judge(self, *, is_short: bool, is_shedding: bool, room: int, connections_limit: int) -> State:
        """The state now; see the table above.

        Args:
            is_short: The books are, or lately were, near the budget, or the machine is short.
            is_shedding: They are, or lately were, above it.
            room: How many more slots there are.
            connections_limit: Of how many.
        """
        if is_shedding:
            self.state = State.SHEDDING
        elif is_short or room <= 0:
            self.state = State.REFUSING
        elif self.state is State.OPEN or room > connections_limit // FULL_SHARE:
            self.state = State.OPEN
        else:
            self.state = State.REFUSING
        return self.state
