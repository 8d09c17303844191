"""Reads the memory of a gateway's control group, and the memory for which the gateway accounts."""

from __future__ import annotations

import contextlib
import time
from typing import Final, NamedTuple

from loadtest.harness.gateway import GatewayProcess
from tests.support.memory_group import MemoryGroup

__all__ = ["OFF_BY", "SLACK_BYTES", "Scale", "Weight"]

OFF_BY: Final = 0.15
SLACK_BYTES: Final = 16 << 20
"""A smaller difference is not reported. CPython releases an arena of 1 MiB only when it is empty, so that a
burst leaves unused arenas: 13 MB after the names of F5."""
FRESH_S: Final = 2.3
"""A shard writes its statistics once a second."""
_UNLIMITED: Final = str(1 << 60)
_KERNEL: Final = ("memory.kmem.usage_in_bytes", "memory.kmem.tcp.usage_in_bytes")


class Weight(NamedTuple):
    """The memory at one moment, or its growth between two, in bytes."""

    accounts: float  # the accounts of all shards
    bus: float  # what the node's own bus reports
    processes: float  # anonymous memory of all processes of the group
    kernel: float  # kernel memory of the group: sockets, and bytes queued in them
    # Part of the accounts: unused buffers that are kept for later and released under pressure.
    pool: float

    def since(self, before: Weight) -> Weight:
        """Return how much each part has grown since an earlier reading, in bytes."""
        return Weight(*(late - early for late, early in zip(self, before, strict=True)))

    @property
    def booked(self) -> float:
        """The bytes for which the gateway and its bus account."""
        return self.accounts + self.bus

    @property
    def used(self) -> float:
        """The bytes that the kernel charges to the control group."""
        return self.processes + self.kernel

    @property
    def is_explained(self) -> bool:
        """Whether the accounts equal the kernel's figure, within 15 % or the slack."""
        return abs(self.booked - self.used) <= max(SLACK_BYTES, OFF_BY * self.used)


class Scale:
    """Reads the accounts of one gateway, and the memory that is charged to its control group."""

    def __init__(self, gateway: GatewayProcess, group: MemoryGroup) -> None:
        self._gateway = gateway
        self._group = group

    def read(self) -> Weight:
        """Read both when the shards' statistics are up to date."""
        time.sleep(FRESH_S)
        shards = self._gateway.shards
        bus = max(self._gateway.metric("bus_used_bytes", shard=str(number)) for number in range(shards))
        pool = self._gateway.metric("memory_bytes", kind="pool")
        return Weight(self._gateway.metric("memory_bytes"), bus, self.processes(), self.kernel(), pool)

    def processes(self) -> int:
        """Return the anonymous memory of the group's processes, in bytes."""
        rows = self._rows()
        return int(rows["total_rss"] if "total_rss" in rows else rows["anon"])

    def kernel(self) -> int:
        """Return the kernel memory of the control group in bytes: sockets, and the bytes queued in them."""
        if (self._group.folder / _KERNEL[0]).exists():
            return sum(int((self._group.folder / name).read_text()) for name in _KERNEL)
        rows = self._rows()
        return int(rows["kernel"]) + int(rows["sock"])

    def _rows(self) -> dict[str, str]:
        text = (self._group.folder / "memory.stat").read_text()
        return {name: value for name, value in (line.split() for line in text.splitlines())}


def count_sockets(group: MemoryGroup) -> None:
    """Make the kernel count the bytes in sockets: version 1 does so only if they are limited."""
    with contextlib.suppress(OSError):
        (group.folder / _KERNEL[1].replace("usage", "limit")).write_text(_UNLIMITED)
