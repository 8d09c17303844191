"""Limits the publish commands of each connection per second, with one token bucket for each connection. Pure.

A bucket is one number: the time at which it is full again (the generic cell rate algorithm). A full bucket
need not be stored, so buckets are removed a whole generation at a time, in O(1) and without a loop over them.

Source: ITU-T I.371, annex A, "virtual scheduling algorithm".
"""

from math import ceil
from typing import Final

__all__ = ["BUCKET_BYTES", "PublishRates"]

BUCKET_BYTES: Final = 120
"""Memory of one bucket with its table entry, in bytes."""


class PublishRates:
    """The token buckets for the publish commands of all connections of a shard.

    Args:
        rate_per_s: Publish commands that a connection may send per second, > 0.
        burst: Publish commands that it may send at once, > 0.
        now_s: A monotonic clock.
    """

    def __init__(self, rate_per_s: int, burst: int, now_s: float) -> None:
        self._cost_s: Final = 1 / rate_per_s
        self._depth_s: Final = burst / rate_per_s
        self._young: dict[int, float] = {}
        self._old: dict[int, float] = {}
        self._turned_s = now_s

    @property
    def bytes_estimate(self) -> int:
        """Return the estimated memory of all publish buckets, in bytes."""
        return (len(self._young) + len(self._old)) * BUCKET_BYTES

    def take(self, conn: int, now_s: float) -> int:
        """Take one publish command of a connection; return 0, or in how many ms to try again. O(1)."""
        if now_s - self._turned_s >= self._depth_s:
            # A connection only in the older half has not published for so long that its bucket is full.
            self._young, self._old = {}, self._young
            self._turned_s = now_s
        full_s = self._young.get(conn)
        if full_s is None:
            full_s = self._old.pop(conn, now_s)
        full_s = max(full_s, now_s) + self._cost_s
        late_s = full_s - now_s - self._depth_s
        if late_s > self._cost_s / 1000:  # a sum of fractions is never exact
            self._young[conn] = full_s - self._cost_s
            return ceil(late_s * 1000)
        self._young[conn] = full_s
        return 0

    def forget(self, conn: int) -> None:
        """Remove the publish bucket of a connection that has ended."""
        self._young.pop(conn, None)
        self._old.pop(conn, None)
