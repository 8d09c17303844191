"""Whether a node can do its work, judged from its numbers alone. Pure: the clock is passed in."""

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

# The gauge `phase` of a region.
PHASE_STARTING: Final = 0
PHASE_READY: Final = 1
PHASE_DRAINING: Final = 2

SILENT_MS: Final = 2_000
"""A process that has not beaten for so long does not answer."""
AHEAD_MS: Final = 60_000
"""A beat so far in the future was never written by a beat. The writer may be ahead of a reader that was
stopped between looking at the clock and reading, but not by a minute."""


def has_beaten(beat_ms: int, now_ms: int, within_ms: int) -> bool:
    """Whether a beat lies within so many milliseconds before now; False for a time no clock has shown.

    Args:
        beat_ms: The gauge `beat_ms` of a region, whatever bytes it holds.
        now_ms: The machine's monotonic clock.
        within_ms: How old a beat may be.
    """
    return now_ms - within_ms <= beat_ms <= now_ms + AHEAD_MS


def why_not_alive(block: StatisticsBlock, now_ms: int) -> list[str]:
    """Who does not beat: `keeper_silent`, `shard_<n>_silent`; empty when all do.

    Args:
        block: The node's numbers.
        now_ms: The machine's monotonic clock.
    """
    found = ["keeper_silent"] if _is_silent(block.keeper, now_ms) else []
    silent = (number for number in range(block.shards) if _is_silent(block.shard(number), now_ms))
    return found + [f"shard_{number}_silent" for number in silent]


def why_not_ready(block: StatisticsBlock, now_ms: int) -> list[str]:
    """Why no client should be sent here now; empty when all is well.

    Reasons: those of `why_not_alive`, `draining`, and for each shard `shard_<n>_` with `starting`,
    `bus_down` (no subscriber connection), `probe_late` (the bus has not echoed a probe lately) or
    `keys_awaited` (no key set was fetched yet).
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
    return not has_beaten(region["beat_ms"], now_ms, SILENT_MS)


def _shard_fault(region: Region, now_ms: int) -> str:
    if region["phase"] not in (PHASE_READY, PHASE_DRAINING):  # a number that is no phase serves nobody
        return "starting"
    if not region["bus_up"]:
        return "bus_down"
    if region["probe_due_ms"] < now_ms:
        return "probe_late"
    if region["key_set_missing"]:
        return "keys_awaited"
    return ""
