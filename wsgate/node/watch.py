"""What the keeper reads of the kernel for everybody: the machine's sockets, and what its processes weigh.

Once a second the sockets and the private bus; and one shard, so that each is weighed once a minute: the
proportional set counts what shards share, which none can see of itself without a pause.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from wsgate.node.sockets import TcpMemory, read_sockets
from wsgate.statistics import StatisticsBlock

__all__ = ["Watch", "proportional_bytes", "resident_bytes"]

LOOK_MS: Final = 1_000
WEIGH_LOOKS: Final = 60
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_PROC: Final = Path("/proc")


class Watch:
    """One node's.

    Args:
        block: Where it is told.
        bus_limit_bytes: What the node's own bus may hold; 0: it has none.
    """

    def __init__(self, block: StatisticsBlock, bus_limit_bytes: int) -> None:
        self._block = block
        self._tcp_memory = TcpMemory()
        self._before = read_sockets()
        self._looked_ms = 0
        self._turn = 0
        block.keeper["bus_limit_bytes"] = bus_limit_bytes

    def look(self, now_ms: int, shards: Sequence[int], bus: int) -> None:
        """Once a second, however often it is called.

        Args:
            now_ms: The machine's monotonic clock.
            shards: Process ids; 0 for one that does not run.
            bus: Likewise.
        """
        if now_ms < self._looked_ms + LOOK_MS:
            return
        self._looked_ms = now_ms
        numbers, region = read_sockets(), self._block.keeper
        region["sockets_short"] = self._tcp_memory.judge(numbers)
        region["tcp_memory_bytes"] = numbers.pages * PAGE_BYTES
        region["tcp_memory_limit_bytes"] = numbers.pages_limit * PAGE_BYTES
        region["listen_overflows"] = numbers.overflows - self._before.overflows
        region["listen_drops"] = numbers.drops - self._before.drops
        region["bus_bytes"] = resident_bytes(bus)
        if self._turn < len(shards):
            self._block.shard(self._turn)["proportional_bytes"] = proportional_bytes(shards[self._turn])
        self._turn = (self._turn + 1) % max(WEIGH_LOOKS, len(shards))


def proportional_bytes(pid: int) -> int:
    """The proportional set size of a process; 0 where the kernel does not say. Takes milliseconds."""
    try:
        text = (_PROC / str(pid) / "smaps_rollup").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    except (OSError, StopIteration, ValueError):
        return 0


def resident_bytes(pid: int) -> int:
    """The resident set size of a process; 0 where the kernel does not say."""
    try:
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0
