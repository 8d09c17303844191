"""Whether a node can do its work, judged from its numbers alone. Pure: the clock is passed in."""

from typing import Final

from wsgate.statistics.block import Region, StatisticsBlock

__all__ = ["PHASE_DRAINING", "PHASE_READY", "PHASE_STARTING", "SILENT_MS", "why_not_alive", "why_not_ready"]

# The gauge `phase` of a region.
PHASE_STARTING: Final = 0
PHASE_READY: Final = 1
PHASE_DRAINING: Final = 2

SILENT_MS: Final = 2_000
"""A process that has not beaten for so long does not answer."""


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
    return now_ms - region["beat_ms"] > SILENT_MS


def _shard_fault(region: Region, now_ms: int) -> str:
    if region["phase"] == PHASE_STARTING:
        return "starting"
    if not region["bus_up"]:
        return "bus_down"
    if region["probe_due_ms"] < now_ms:
        return "probe_late"
    if region["keys_awaited"]:
        return "keys_awaited"
    return ""
