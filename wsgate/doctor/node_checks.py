"""Check the resources of the node's processes: descriptors, memory, cores, the bus, and time for draining."""

import math
from collections.abc import Iterator
from typing import Final

from wsgate.doctor.capacity import FILES_OF_OTHERS
from wsgate.doctor.model import Case, Check, Finding, Severity, judged

__all__ = ["NODE_CHECKS"]

BUS_SLOW_S: Final = 0.005
STOP_GRACE_S: Final = 10.0
"""Time needed after the drain for lingering sockets, the last events and the end of the processes."""


def descriptors(case: Case) -> Iterator[Finding]:
    """Check that each shard has a descriptor for each of its connections."""
    have, want = case.have, case.want.connections
    free = have.descriptors - have.reserve_descriptors
    needed = math.ceil(want / have.shards) + have.reserve_descriptors
    nr_open = case.kernel.nr_open
    raising = f"LimitNOFILE={needed} in the service's unit (ulimit -n {needed} in a shell)"
    if nr_open is not None and needed > nr_open:
        raising = f"sysctl -w fs.nr_open={needed}, then {raising}"
    if free > 0:
        raising += f", or {math.ceil(want / free)} shards"
    yield from judged(
        "RLIMIT_NOFILE",
        Severity.BLOCKING,
        is_good=have.descriptors >= needed,
        now=f"{have.descriptors:,} for each of {have.shards} shards",
        why="each connection needs a descriptor in its shard",
        needed=f"{needed:,}",
        fix=raising,
    )


def file_max(case: Case) -> Iterator[Finding]:
    """Check the limit of open files of the whole machine."""
    kernel = case.kernel
    if kernel.file_max is None or kernel.files_open is None:
        return
    needed = kernel.files_open + case.want.connections + FILES_OF_OTHERS
    yield from judged(
        "fs.file-max",
        Severity.BLOCKING,
        is_good=kernel.file_max >= needed,
        now=f"{kernel.file_max:,}, {kernel.files_open:,} of them open",
        why="the limit of all descriptors of the machine",
        needed=f"{needed:,}",
        fix=f"sysctl -w fs.file-max={needed}",
    )


def memory(case: Case) -> Iterator[Finding]:
    """Check that the memory allows the demanded number of connections."""
    bears = next(each.connections for each in case.capacities if each.resource == "memory")
    have = case.have.memory_bytes
    needed = math.ceil(have * case.want.connections / bears) if bears else 0
    yield from judged(
        "memory",
        Severity.BLOCKING,
        is_good=bears >= case.want.connections,
        now=f"{have / 1e6:,.0f} MB for connections, out of {case.have.memory_source}",
        why=f"allows {bears:,} connections with one publication of {case.want.message_bytes:,} bytes queued"
        " for each receiver",
        needed=f"{needed / 1e6:,.0f} MB" if needed else "more than there is",
        fix="[admission] memory_budget, a larger control group, or more machines",
    )


def processors(case: Case) -> Iterator[Finding]:
    """Check that there are no more shards than cores."""
    have = case.have
    yield from judged(
        "shards",
        Severity.WARNING,
        is_good=have.shards <= have.cores,
        now=f"{have.shards} on {have.cores} cores",
        why="a shard that waits for a core delays its deliveries (54 processes on 2 cores: twice the cost)",
        needed=f"at most {have.cores}",
        fix=f"[server] shards = {have.cores}, where descriptors allow it",
    )


def cpu_quota(case: Case) -> Iterator[Finding]:
    """Check that the control groups allow a whole core for each shard."""
    have = case.have
    if not have.cpu_quota:
        return
    yield from judged(
        "cpu quota",
        Severity.WARNING,
        is_good=have.cpu_quota >= have.shards,
        now=f"the control group allows {have.cpu_quota:g} cores, {have.shards} shards",
        why="a shard without quota stops for the rest of a period, and its clients wait",
        needed=f"{have.shards}",
        fix=f"cpu.max = '{have.shards}00000 100000' (--cpus {have.shards}, limits.cpu: {have.shards})",
    )


def huge_pages(case: Case) -> Iterator[Finding]:
    """Check that transparent huge pages are not always on."""
    if case.kernel.transparent_hugepage is None:
        return
    yield from judged(
        "transparent_hugepage",
        Severity.ADVICE,
        is_good=case.kernel.transparent_hugepage != "always",
        now=case.kernel.transparent_hugepage,
        why="2 MB pages for small allocations: shards use more memory than they account for",
        needed="madvise",
        fix="echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    )


def bus(case: Case) -> Iterator[Finding]:
    """Check the measured round trip to the bus."""
    took_s = case.have.bus_round_trip_s
    if took_s is None:
        return
    yield from judged(
        "bus",
        Severity.WARNING,
        is_good=took_s <= BUS_SLOW_S,
        now=f"{took_s * 1e3:.2f} ms round trip" if math.isfinite(took_s) else "no reply",
        why="every publication is sent to the bus once",
        needed=f"{BUS_SLOW_S * 1e3:.0f} ms",
        fix="a bus in the same zone" if math.isfinite(took_s) else "start the bus, or correct [bus] url",
    )


def stopping(case: Case) -> Iterator[Finding]:
    """Check that the service manager waits long enough for a node to drain."""
    have = case.have
    if have.stop_timeout_s is None:
        return
    needed = math.ceil(have.drain_s + STOP_GRACE_S)
    yield from judged(
        "stop timeout",
        Severity.WARNING,
        is_good=have.stop_timeout_s >= needed,
        now=f"{have.stop_timeout_s:g} s, drain_timeout {have.drain_s:g} s",
        why="a node that is killed while it drains cannot send its clients a time to reconnect",
        needed=f"{needed} s",
        fix=f"TimeoutStopSec={needed} in the unit, or terminationGracePeriodSeconds: {needed}",
    )


NODE_CHECKS: Final[tuple[Check, ...]] = (
    descriptors,
    file_max,
    memory,
    processors,
    cpu_quota,
    huge_pages,
    bus,
    stopping,
)
