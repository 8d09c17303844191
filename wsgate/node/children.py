"""A process the keeper starts, and starts again when it dies, not faster than is good for anybody."""

import os
import signal
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Child"]

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MOST_S: Final = 5.0
LIVED_WELL_S: Final = 10.0
"""A child that lived so long is restarted at once; one that dies sooner waits, each time twice as long."""


class Child:
    """One child by name.

    Args:
        name: For logs: `shard-0`, `admin`, `bus`.
        start: Forks it and returns its pid.
    """

    def __init__(self, name: str, start: Callable[[], int]) -> None:
        self.name = name
        self.pid = 0  # 0: not running
        self.restarts = 0
        self.started_s = 0.0  # monotonic; of the last start
        self._start = start
        self._due_s = 0.0
        self._backoff_s = 0.0

    def start_when_due(self) -> bool:
        """Start it if it is not running and its back-off is over; whether it was started."""
        if self.pid or time.monotonic() < self._due_s:
            return False
        self.started_s = time.monotonic()
        self.pid = self._start()
        return True

    def ended(self) -> None:
        """It died; plan the next start."""
        now_s = time.monotonic()
        self.pid = 0
        self.restarts += 1
        if now_s - self.started_s >= LIVED_WELL_S:
            self._backoff_s = 0.0
        self._due_s = now_s + self._backoff_s
        self._backoff_s = min(BACKOFF_MOST_S, self._backoff_s * 2 or BACKOFF_FIRST_S)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs. It is ours and not reaped yet, so the pid is its own."""
        if self.pid:
            os.kill(self.pid, number)
