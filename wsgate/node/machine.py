"""Find out how many descriptors, cores and bytes of memory the machine and its control groups allow."""

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = [
    "address_space_left",
    "cpu_quota",
    "is_memory_limited",
    "memory_quota",
    "raise_descriptor_limit",
    "usable_cores",
    "usable_memory",
    "usable_quota",
]

_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_NO_LIMIT_BYTES: Final = 1 << 60


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard limit, and return it. Children inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = int((_PROC / "sys/fs/nr_open").read_text())  # the largest limit that the kernel accepts
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def usable_cores() -> int:
    """Return the number of cores that this process may use, by affinity and control groups; at least 1."""
    cores = len(os.sched_getaffinity(0))
    quota = usable_quota()
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def usable_quota() -> float:
    """Return the CPU quota of this process's control groups, in cores; 0: no limit."""
    return cpu_quota(_PROC / "self/cgroup", _CGROUPS)


def cpu_quota(membership: Path, root: Path) -> float:
    """Read the CPU quota of a process from its control groups, in cores; 0: no limit.

    The smallest quota of the process's group and of the groups around it counts. In a container the outer
    groups are invisible, and the container's own group may appear as the root.

    Args:
        membership: The file `/proc/<pid>/cgroup`.
        root: The directory where the control groups are mounted.

    Source: cgroups(7); the kernel's cgroup-v2.rst, cpu.max; cgroup-v1 sched-bwc.rst, cpu.cfs_quota_us.
    """
    quotas = [quota for folder in _groups(membership, root, "cpu") if (quota := _quota_of(folder))]
    return min(quotas, default=0.0)


def usable_memory() -> int:
    """Return the bytes that all processes of a node may use together, by control groups and machine."""
    quota = memory_quota(_PROC / "self/cgroup", _CGROUPS)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(quota, total) if quota else total


def is_memory_limited() -> bool:
    """Whether a control group allows less memory than the machine has."""
    return usable_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_quota(membership: Path, root: Path) -> int:
    """Read the memory limit of a process from its control groups, in bytes; 0: no limit.

    The arguments are those of `cpu_quota`.

    Source: the kernel's cgroup-v2.rst, memory.max and memory.high; cgroup-v1 memory.rst,
    memory.limit_in_bytes, which is the largest multiple of the page size when there is no limit.
    """
    quotas = [
        quota
        for folder in _groups(membership, root, "memory")
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
        if 0 < (quota := _bytes_of(folder / name)) < _NO_LIMIT_BYTES
    ]
    return min(quotas, default=0)


def address_space_left() -> int:
    """Return the bytes that this process, and each it forks, may still map (RLIMIT_AS); 0: no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return 0
    mapped = int((_PROC / "self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return max(1, limit - mapped)


def _bytes_of(file: Path) -> int:
    """Read the number in a limit's file; 0: the file has no number, or does not exist."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def _groups(membership: Path, root: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of the groups that may limit a controller, and of the groups around them."""
    try:
        rows = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        rows = []
    for _, controllers, path in (row for row in rows if len(row) == 3):
        if not controllers:
            mounts = [root, root / "unified"]  # version 2, alone or together with version 1
        elif controller in controllers.split(","):
            mounts = [root / controllers, root / controller]
        else:
            continue
        for mount in mounts:
            below = mount / path.lstrip("/")
            yield from (folder for folder in (below, *below.parents) if folder.is_relative_to(mount))


def _quota_of(folder: Path) -> float:
    """Read the CPU quota in a group's directory, in cores; 0: no limit, or no such file."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return max(0.0, int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return 0.0
