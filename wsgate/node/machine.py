"""What this machine lets us have: descriptors and cores."""

import math
import os
import resource
from pathlib import Path

__all__ = ["raise_descriptor_limit", "usable_cores"]

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; children inherit it. Returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def usable_cores() -> int:
    """Cores this process may run on, no more than the control group pays for; at least 1.

    Source: the kernel's cgroup-v2.rst, cpu.max; cgroup-v1 sched-bwc.rst, cpu.cfs_quota_us.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _quota()
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def _quota() -> float:
    """Cores per period the control group may use; 0: no limit."""
    try:
        if _CGROUP_V2.exists():
            quota, period = _CGROUP_V2.read_text().split()
        else:
            quota = (_CGROUP_V1 / "cpu.cfs_quota_us").read_text()
            period = (_CGROUP_V1 / "cpu.cfs_period_us").read_text()
        return max(0.0, int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return 0.0
