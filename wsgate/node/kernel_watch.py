"""Publish kernel numbers as gauges of the node: memory and drops of sockets, memory of the private bus.

A number that cannot be read, for instance because no descriptor is free, leaves its gauge unchanged.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wsgate.node.sockets import SocketNumbers, TcpMemory, read_sockets
from wsgate.statistics import StatisticsBlock

__all__ = ["Watch", "resident_bytes"]

LOOK_MS: Final = 1_000
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_PROC: Final = Path("/proc")


class Watch:
    """Read the kernel's numbers once a second, and write them into the keeper's statistics.

    Args:
        block: The statistics block; the keeper's region receives the gauges.
        bus_limit_bytes: The memory limit of the private bus; 0: the node has no private bus.
        read: Reads the socket numbers; tests pass another function.
    """

    def __init__(
        self,
        block: StatisticsBlock,
        bus_limit_bytes: int,
        read: Callable[[], SocketNumbers] = read_sockets,
    ) -> None:
        self._region = block.keeper
        self._read = read
        self._tcp_memory = TcpMemory()
        self._since: dict[str, int] = {}  # the kernel's counters when each was first read
        self._looked_ms = 0
        self._region["bus_limit_bytes"] = bus_limit_bytes
        self._count(read())

    def look(self, now_ms: int, bus: int) -> None:
        """Read all numbers and update the gauges, at most once a second.

        Args:
            now_ms: The machine's monotonic clock, in milliseconds.
            bus: The process id of the private bus; 0: it does not run.
        """
        if now_ms < self._looked_ms + LOOK_MS:
            return
        self._looked_ms = now_ms
        numbers = self._read()
        self._region["sockets_short"] = self._tcp_memory.judge(numbers)
        if numbers.pages is not None:
            self._region["tcp_memory_bytes"] = numbers.pages * PAGE_BYTES
        if numbers.pages_limit is not None:
            self._region["tcp_memory_limit_bytes"] = numbers.pages_limit * PAGE_BYTES
        self._count(numbers)
        resident = resident_bytes(bus) if bus else 0
        if resident is not None:
            self._region["bus_bytes"] = resident

    def _count(self, numbers: SocketNumbers) -> None:
        """Publish how far the kernel's counters have grown since the start, except unreadable ones."""
        for name, now in (("listen_overflows", numbers.overflows), ("listen_drops", numbers.drops)):
            if now is not None:
                grown = now - self._since.setdefault(name, now)
                self._region[name] = max(grown, self._region[name])


def resident_bytes(pid: int) -> int | None:
    """Read the resident set size of a process, in bytes; None when it cannot be read."""
    try:
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return None
