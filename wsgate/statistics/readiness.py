"""Decides from its statistics whether a node is alive and ready for clients. Pure: the clock is passed in."""

from typing import Final

from wsgate.statistics.block import Region, StatisticsBlock

__all__ = [
    "PHASE_DRAINING",
    "PHASE_READY",
    "PHASE_STARTING",
    "SILENT_MS",
    "has_beaten",
    "why_not_alive",
    "why_not_ready",
]

# The values of the gauge `phase` of a region.
PHASE_STARTING: Final = 0
PHASE_READY: Final = 1
PHASE_DRAINING: Final = 2

SILENT_MS: Final = 2_000
"""A process whose last heartbeat is older than this counts as silent."""
AHEAD_MS: Final = 60_000
"""A heartbeat time further in the future than this is not valid. The clock of the writer can be ahead of a
reader that was stopped between reading the clock and reading the gauge, but not by a minute."""


def has_beaten(beat_ms: int, now_ms: int, within_ms: int) -> bool:
    """Return whether the last heartbeat of a process is recent; False for a time too far in the future.

    Args:
        beat_ms: The gauge `beat_ms` of a region, which may contain any bytes.
        now_ms: The machine's monotonic clock.
        within_ms: The largest age of a recent heartbeat.
    """
    return now_ms - within_ms <= beat_ms <= now_ms + AHEAD_MS


def why_not_alive(block: StatisticsBlock, now_ms: int) -> list[str]:
    """Return the processes without a recent heartbeat, as `keeper_silent` and `shard_<n>_silent`.

    Args:
        block: The node's statistics.
        now_ms: The machine's monotonic clock.
    """
    found = ["keeper_silent"] if _is_silent(block.keeper, now_ms) else []
    silent = (number for number in range(block.shards) if _is_silent(block.shard(number), now_ms))
    return found + [f"shard_{number}_silent" for number in silent]


def why_not_ready(block: StatisticsBlock, now_ms: int) -> list[str]:
    """Return the reasons why no client should be sent to this node now; empty if it is ready.

    The reasons are those of `why_not_alive`, `draining`, and for each shard `shard_<n>_` followed by
    `starting`, `bus_down` (no subscriber connection, or the bus has echoed no probe since it was made),
    `probe_late` (the last echo of a server is too old) or `keys_awaited` (no key set with a usable key was
    fetched yet).
    """
    found = why_not_alive(block, now_ms)
    if block.keeper["phase"] == PHASE_DRAINING:
        found.append("draining")
    for number in range(block.shards):
        fault = _shard_fault(block.shard(number), now_ms)
        if fault and f"shard_{number}_silent" not in found:
            found.append(f"shard_{number}_{fault}")
    return found


def _is_silent(region: Region, now_ms: int) -> bool:
    """Return whether the process that writes a region has sent no recent heartbeat."""
    return not has_beaten(region["beat_ms"], now_ms, SILENT_MS)


def _shard_fault(region: Region, now_ms: int) -> str:
    """Return the first reason why a shard is not ready, or ""."""
    if region["phase"] not in (PHASE_READY, PHASE_DRAINING):  # any other number counts as starting
        return "starting"
    if not region["bus_up"]:
        return "bus_down"
    if region["probe_due_ms"] < now_ms:
        return "probe_late"
    if region["key_set_missing"]:
        return "keys_awaited"
    return ""
