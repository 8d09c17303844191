"""Publishes of one connection per second: a token bucket for each connection that publishes. Pure.

A bucket is one number: the time at which it is full again (the generic cell rate algorithm). Buckets that are
full need not be remembered, so they are forgotten a whole generation at a time: O(1), and nobody is walked.

Source: ITU-T I.371, annex A, "virtual scheduling algorithm".
"""

from math import ceil
from typing import Final

__all__ = ["BUCKET_BYTES", "PublishRates"]

BUCKET_BYTES: Final = 120
"""Memory of one bucket with its place in the table."""


class PublishRates:
    """What the connections of one shard may publish.

    Args:
        rate_per_s: Publishes a connection may send per second, > 0.
        burst: How many at once, > 0.
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
        """Memory of all buckets, in bytes."""
        return (len(self._young) + len(self._old)) * BUCKET_BYTES

    def take(self, conn: int, now_s: float) -> int:
        """One publish of a connection: 0 to let it pass, else in how many ms to try again. O(1)."""
        if now_s - self._turned_s >= self._depth_s:
            # Who is only in the older half has not published for so long that its bucket is full.
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
        """The connection is gone."""
        self._young.pop(conn, None)
        self._old.pop(conn, None)
