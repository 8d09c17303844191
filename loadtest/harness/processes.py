"""Reads other processes from the kernel: children by name, CPU time, memory; and waits until one is idle."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Memory", "children", "cpu_s", "memory", "settle"]

_CPUCLOCK_SCHED: Final = 2
_SETTLE_STEP_S: Final = 0.1
_SETTLED_S: Final = 0.002  # CPU time in one step, below which a process counts as idle


class Memory(NamedTuple):
    """User memory of one process: `pss_bytes` divides a page that n processes share by n."""

    pss_bytes: int
    private_bytes: int


def children(pid: int) -> dict[str, list[int]]:
    """Return the children of a process, from name to process ids, in the order of their start."""
    found: dict[str, list[int]] = {}
    # A child that ends during this has no name any more.
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{child}/comm").read_text(encoding="utf-8").strip()
                found.setdefault(name, []).append(int(child))
    return found


def cpu_s(pid: int) -> float:
    """Return the user and system time of all threads of a process until now; raise OSError if it has ended.

    This is the clock of clock_getcpuclockid(3); /proc/<pid>/stat has a resolution of 10 ms.
    """
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)


def memory(pid: int | str = "self") -> Memory:
    """Return the memory of a process. This walks its page tables, so do not call it in a timed section."""
    sizes: dict[str, int] = {}
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
        for line in rollup:
            name, _, rest = line.partition(":")
            if rest.endswith(" kB\n"):
                sizes[name] = int(rest.split()[0]) * 1024
    return Memory(sizes["Pss"], sizes["Private_Clean"] + sizes["Private_Dirty"])


def settle(cpu_now_s: Callable[[], float], *, timeout_s: float = 15.0) -> None:
    """Wait until a CPU clock advances by less than 2 % of the time.

    The work of closing connections is then not charged to the next measurement.
    """
    until_s = time.monotonic() + timeout_s
    before_s = cpu_now_s()
    while time.monotonic() < until_s:
        time.sleep(_SETTLE_STEP_S)
        now_s = cpu_now_s()
        if now_s - before_s < _SETTLED_S:
            return
        before_s = now_s
