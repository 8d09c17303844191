"""Measure the time of Python's cycle collector, so that no client is charged for it.

The collector runs in the middle of the message that is handled when it is due. One run takes milliseconds in
a full shard. Before, a client that published 40 times a second was charged for it, and for seconds it had its
turns after clients that flood.
"""

import gc
import time
from typing import Any, Final

__all__ = ["CollectorClock"]


class CollectorClock:
    """Adds up the time of the cycle collector in this process, from `start` to `stop`."""

    def __init__(self) -> None:
        self._spent_ns = 0
        self._began_ns = 0
        self._callback: Final = self._on_phase  # one bound method, so that it can be removed again

    def start(self) -> None:
        """Begin to measure the runs of the collector."""
        gc.callbacks.append(self._callback)

    def stop(self) -> None:
        """Stop to measure; this may be called without `start`."""
        if self._callback in gc.callbacks:
            gc.callbacks.remove(self._callback)

    def take_ns(self) -> int:
        """Return the nanoseconds that the collector has taken since the last call, and reset them."""
        spent_ns, self._spent_ns = self._spent_ns, 0
        return spent_ns

    def _on_phase(self, phase: str, info: dict[str, Any]) -> None:
        now_ns = time.perf_counter_ns()
        if phase == "start":
            self._began_ns = now_ns
        elif self._began_ns:
            self._spent_ns += now_ns - self._began_ns
