"""Compares the accounts of a shard with the memory of its process, and derives its state and its headroom.

Pure: the functions take and return numbers. The reactor has the accounts (reactor/memory.pyx), and refuses
and sheds connections by them at once. This module compares them with the memory of the process once a second,
and estimates how many more connections fit.

A state starts at one mark and ends at another one, so that it does not change all the time:

    open       newcomers are accepted
    refusing   from 15/16 of the memory budget on until 7/8, or from the last free slot or descriptor on until
               1/64 of them is free again, or while the machine has no memory for sockets, or while the
               process has grown by more than the accounts explain
    shedding   above the budget until 15/16 of it: the reactor closes connections
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

__all__ = ["RESOURCES", "Headroom", "Ledger", "Reading", "State"]

SLACK_BYTES: Final = 8 << 20
"""Process growth in bytes that is not counted as unaccounted, because every heap has holes."""
GROWTH_SHARE: Final = 0.05
"""The weight of one second in the mean growth, so that about the last 20 seconds count."""
MANY: Final = 1_000
"""The number of connections from which on their mean memory estimates the memory of the next one."""
FULL_SHARE: Final = 64
RESOURCES: Final = ("connections", "descriptors", "memory")


class State(IntEnum):
    """The admission state of a shard, by which it accepts, refuses or sheds connections; a gauge's value."""

    OPEN = 0
    REFUSING = 1
    SHEDDING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The memory and the connections of one shard, measured once a second.

    Attributes:
        connections: The number of connections in the table.
        own_bytes: The sum of the accounts for memory of this process, without kernel memory.
        booked_bytes: The sum of all accounts.
        resident_bytes: The resident memory of the process that it does not share.
    """

    connections: int
    own_bytes: int
    booked_bytes: int
    resident_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Headroom:
    """The number of connections that a shard can still accept, and the time until it is full.

    Attributes:
        by_resource: For each of `RESOURCES` the number of connections that it still allows.
        binding: The resource that allows the fewest.
        growth_per_s: Mean growth of the number of connections per second; negative when it falls.
        full_in_s: Seconds until the shard is full at that growth; -1 when it does not grow.
    """

    by_resource: dict[str, int]
    binding: str
    growth_per_s: float
    full_in_s: float

    @property
    def connections(self) -> int:
        """Return how many more connections all resources together allow."""
        return self.by_resource[self.binding]


class Ledger:
    """Compares the accounts of one shard with its process memory once a second, and stores the results.

    Args:
        connection_bytes: The least memory of one connection.
        baseline_bytes: The memory of the process before its first client.
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
        """Compare the accounts with the memory of the process, and update the mean growth of connections.

        `memory_unaccounted_bytes` is the growth of the process that the accounts do not explain, beyond
        `SLACK_BYTES`. After a leak or with a fragmented heap, the gate refuses newcomers
        (`has_unexplained_growth`), so that the kernel does not kill the process. No connection is closed for
        it, because closing would free nothing.
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
        """Return how many more connections fit, and for how long at this growth; budget 0: no limit."""
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
        """Update and return the state of the shard, by the marks in the module docstring.

        Args:
            is_short: Memory is, or lately was, near the budget, or the caller refuses newcomers.
            is_shedding: Memory is, or lately was, above the budget.
            room: The number of free slots.
            connections_limit: The number of all slots.
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
