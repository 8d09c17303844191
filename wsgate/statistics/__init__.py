"""The shared-memory block: one writer per slot, read by anybody, never a lock.

The lowest room: shards and keeper write, the admin process reads. It knows names and numbers only.
"""

from wsgate.statistics.block import Region, StatisticsBlock
from wsgate.statistics.board import Board
from wsgate.statistics.layout import Layout
from wsgate.statistics.readiness import (
    PHASE_DRAINING,
    PHASE_READY,
    PHASE_STARTING,
    has_beaten,
    why_not_ready,
)

__all__ = [
    "PHASE_DRAINING",
    "PHASE_READY",
    "PHASE_STARTING",
    "Board",
    "Layout",
    "Region",
    "StatisticsBlock",
    "has_beaten",
    "why_not_ready",
]
