"""Describes the machine and the measured commit, and reads the kernel's memory for sockets."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import NamedTuple

__all__ = ["KernelMemory", "commit", "kernel_memory", "machine", "processors"]

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ROOT = Path(__file__).resolve().parents[2]


class KernelMemory(NamedTuple):
    """Kernel memory of the whole machine at one moment; it includes both ends of every loopback connection.

    Attributes:
        slab_bytes: The pages of all slab caches.
        object_bytes: The objects in use in all slab caches, without the free room inside slabs.
        socket_bytes: The memory of TCP for queued data.
    """

    slab_bytes: int
    object_bytes: int
    socket_bytes: int


def kernel_memory() -> KernelMemory | None:
    """Read the kernel's memory from /proc/slabinfo and /proc/net/sockstat; None without root's rights."""
    try:
        lines = Path("/proc/slabinfo").read_text(encoding="ascii").splitlines()[2:]
        sockets = Path("/proc/net/sockstat").read_text(encoding="ascii")
    except OSError:
        return None
    slab_bytes = object_bytes = 0
    for line in lines:
        # name active_objs num_objs objsize objperslab pagesperslab : tunables ... : slabdata active num
        # shared
        fields = line.split()
        slab_bytes += int(fields[14]) * int(fields[5]) * _PAGE_BYTES
        object_bytes += int(fields[1]) * int(fields[3])
    words = next(line for line in sockets.splitlines() if line.startswith("TCP:")).split()
    return KernelMemory(slab_bytes, object_bytes, int(words[words.index("mem") + 1]) * _PAGE_BYTES)


def machine() -> dict[str, str | int]:
    """Return the CPU, cores, memory and Python version of this machine."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.machine()
    )
    return {
        "processor": model,
        "cores": os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES,
        "python": platform.python_version(),
    }


def commit() -> str:
    """Return the checked-out commit, with "-dirty" for a changed tree; "unknown" outside a repository."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def processors() -> tuple[int, int] | None:
    """Return one CPU for the server and one for its clients; None on a machine with only one."""
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else None
