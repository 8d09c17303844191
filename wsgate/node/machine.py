"""What this machine lets us have: descriptors and cores."""

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["cpu_quota", "raise_descriptor_limit", "usable_cores"]

_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; children inherit it. Returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = int((_PROC / "sys/fs/nr_open").read_text())  # the most the kernel takes for a limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def usable_cores() -> int:
    """Cores this process may run on, no more than its control groups pay for; at least 1."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(_PROC / "self/cgroup", _CGROUPS)
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def cpu_quota(membership: Path, root: Path) -> float:
    """Cores the control groups of a process let it use; 0: no limit.

    The tightest of its own group and those around it holds. In a container the groups around it are
    not to be seen, and its own may be shown as the root.

    Args:
        membership: `/proc/<pid>/cgroup`.
        root: Where the groups are mounted.

    Source: cgroups(7); the kernel's cgroup-v2.rst, cpu.max; cgroup-v1 sched-bwc.rst, cpu.cfs_quota_us.
    """
    quotas = [quota for folder in _groups(membership, root) if (quota := _quota_of(folder))]
    return min(quotas, default=0.0)


def _groups(membership: Path, root: Path) -> Iterator[Path]:
    """Folders of the groups that may limit processors, each with all around it."""
    try:
        rows = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        rows = []
    for _, controllers, path in (row for row in rows if len(row) == 3):
        if not controllers:
            mounts = [root, root / "unified"]  # version 2, alone or beside version 1
        elif "cpu" in controllers.split(","):
            mounts = [root / controllers, root / "cpu"]
        else:
            continue
        for mount in mounts:
            below = mount / path.lstrip("/")
            yield from (folder for folder in (below, *below.parents) if folder.is_relative_to(mount))


def _quota_of(folder: Path) -> float:
    """Cores per period; 0: no limit, or no such file."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return max(0.0, int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return 0.0
