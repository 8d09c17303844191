"""Statistics in shared memory: each slot has one writer, every process can read it, and there is no lock.

The shards and the keeper write the statistics, and the admin process reads them. This package knows only
names and numbers, and imports nothing of wsgate but its errors.
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
