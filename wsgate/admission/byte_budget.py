"""Limits how many bytes clients publish to the bus per second: each connection, and a shard in total.

Without these limits a dozen clients could publish faster than the slowest shard reads. The bus would then
close the connection of that shard at its output limit, and all its subscribers would lose publications. A
client over the limit gets the time after which it can try again.

The budget of the shard is fair by party: a user, or the address of a client without a user. Each accepted
byte is charged to its party until the shard's bucket has drained, and the charges of all parties drain in
proportion. A party may be charged at most as much as is still free in the bucket. So each of N greedy parties
has at most 1/(N + 1) of the burst and of the rate, and a party with a small charge finds room.
Source: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998.

Pure: the clock is passed in.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

__all__ = ["NO_BYTE_RATES", "ByteBudget", "ByteRates"]

ENTRY_BYTES: Final = 160
"""Memory of the table entry of a connection that publishes; 104 to 150 bytes were measured."""
EPSILON_S: Final = 1e-6
"""The error that the sum of rounded times may have."""
PARTY_BYTES: Final = 320
"""Memory of the table entry of a party, whose user id has at most 128 bytes."""
SPARSE: Final = 16
"""A party also passes with a charge of at most one part in so many of what is free, whatever the size of its
publication: otherwise no publication would pass that is larger than the share of a party."""
TINY: Final = 1_024
"""A party whose charge stays within one part in so many of the burst finds an eighth of the burst more,
because large publications of others may pass the end of the burst."""
SCALE_LEAST: Final = 1e-9
"""The scale of charges from which on all are written anew; a party has less than one byte by then."""
SWEEP_LEAST: Final = 1_024
"""The number of table entries from which on entries of full buckets are removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRates:
    """The limits on bytes published to the bus; 0 switches a limit off.

    Attributes:
        connection_per_s: Bytes per second of one connection; its burst is one second's worth.
        shard_per_s: Bytes per second of all connections of a shard together.
        shard_burst: Bytes that all connections of a shard may publish at once.
    """

    connection_per_s: int = 0
    shard_per_s: int = 0
    shard_burst: int = 0

    @classmethod
    def of_node(cls, connection_per_s: int, node_per_s: int, shards: int, output_bytes: int) -> "ByteRates":
        """Divide the byte rate of a node equally among its shards, with a burst that the bus can buffer.

        Args:
            connection_per_s: Bytes per second of one connection.
            node_per_s: Bytes per second of all shards together.
            shards: The number of shards, >= 1.
            output_bytes: Bytes that may wait in the bus for one shard, of which the bursts of all shards may
                fill half; 0: not known.
        """
        share = -(-node_per_s // shards)
        burst = share // 4
        if output_bytes:
            burst = min(burst, output_bytes // 2 // shards)
        return cls(connection_per_s=connection_per_s, shard_per_s=share, shard_burst=burst)


NO_BYTE_RATES: Final = ByteRates()


class _SharedBucket:
    """The token bucket of a shard, with the charges of all parties, whose sum is the level of the bucket.

    A charge is stored divided by a scale that is common to all parties, so that draining the bucket changes
    one number. When the bucket is empty, all charges are removed at once.

    Args:
        rate_per_s: Bytes per second that drain, > 0.
        burst: Bytes that the bucket can take at once.
    """

    __slots__ = ("_burst", "_charges", "_level", "_rate_per_s", "_scale", "_since_s", "_sweep_at")

    def __init__(self, rate_per_s: int, burst: int) -> None:
        self._rate_per_s: Final = rate_per_s
        self._burst: Final = burst
        self._level = 0.0  # bytes
        self._since_s = 0.0  # when the level was computed
        self._scale = 1.0
        self._charges: dict[Hashable, float] = {}  # by party
        self._sweep_at = SWEEP_LEAST

    def __len__(self) -> int:
        return len(self._charges)

    def wait_s(self, party: Hashable, size: int, now_s: float) -> float:
        """Return 0 if a publication of `size` bytes may pass, else the seconds after which it may. O(1).

        The time is right if no other publication passes meanwhile.
        """
        self._drain(now_s)
        level, burst = self._level, float(self._burst)
        if not level:
            return 0.0
        charge = self._charges.get(party, 0.0) * self._scale
        if (charge + size) * TINY <= burst:
            burst += burst / 8
        free = burst - level
        if free > 0 and (charge + size / 2 <= free or charge * SPARSE <= free):
            return 0.0
        # While the bucket drains, the charge stays the same part of the level.
        part = charge / level
        passes_at = max((burst - size / 2) / (1 + part), burst / (1 + part * SPARSE), 0.0)
        return max(level - passes_at, EPSILON_S) / self._rate_per_s

    def take(self, party: Hashable, size: int) -> None:
        """Charge a party that may pass, see `wait_s`. Amortized O(1)."""
        self._level += size
        self._charges[party] = self._charges.get(party, 0.0) + size / self._scale
        if len(self._charges) >= self._sweep_at:
            self._sweep()

    def _drain(self, now_s: float) -> None:
        """Compute the level for this time."""
        level = self._level - max(0.0, now_s - self._since_s) * self._rate_per_s
        self._since_s = now_s
        if level > EPSILON_S:
            self._scale *= level / self._level
            self._level = level
            if self._scale < SCALE_LEAST:
                self._sweep()
        elif self._level:
            self._level, self._scale, self._sweep_at = 0.0, 1.0, SWEEP_LEAST
            self._charges = {}

    def _sweep(self) -> None:
        """Write all charges anew with the scale 1, without those below one byte."""
        scale, self._scale = self._scale, 1.0
        self._charges = {party: part * scale for party, part in self._charges.items() if part * scale >= 1}
        self._sweep_at = max(SWEEP_LEAST, 2 * len(self._charges))


class ByteBudget:
    """The token buckets for the published bytes of one shard and of each of its connections.

    The bucket of a connection is stored as the time at which it will be full again. A full bucket accepts a
    publication of any size, so that a rate below the largest message does not block a client for ever.

    Args:
        rates: The limits.
    """

    def __init__(self, rates: ByteRates) -> None:
        self._rates = rates
        self._full_s: dict[int, float] = {}  # by connection
        self._shared: _SharedBucket | None = None
        if rates.shard_per_s:
            self._shared = _SharedBucket(rates.shard_per_s, rates.shard_burst)
        self._sweep_at = SWEEP_LEAST

    @property
    def bytes_estimate(self) -> int:
        """Return the estimated memory of the byte buckets of connections and of the charges of parties."""
        parties = 0 if self._shared is None else len(self._shared)
        return len(self._full_s) * ENTRY_BYTES + parties * PARTY_BYTES

    def take(self, conn: int, size: int, now_s: float, *, party: Hashable) -> int:
        """Take `size` bytes from the buckets of a connection and of the shard, or say when to try again.

        Args:
            conn: The connection that publishes.
            size: The number of bytes.
            now_s: A monotonic clock.
            party: The user of the connection, or its address if it has no user.

        Returns:
            0 if the publication is allowed. Otherwise after how many milliseconds to try again; nothing is
            taken.
        """
        shared, rate_per_s = self._shared, self._rates.connection_per_s
        if shared is not None and (wait_s := shared.wait_s(party, size, now_s)):
            return 1 + int(wait_s * 1000)
        if rate_per_s:
            full_s = self._full_s.get(conn, 0.0)
            own_s = max(full_s, now_s) + size / rate_per_s
            over_s = own_s - now_s - 1.0
            if over_s > EPSILON_S and full_s > now_s:
                return 1 + int(over_s * 1000)
            self._full_s[conn] = own_s
            if len(self._full_s) >= self._sweep_at:
                self._sweep(now_s)
        if shared is not None:
            shared.take(party, size)
        return 0

    def forget(self, conn: int) -> None:
        """Remove the byte bucket of a connection that has ended."""
        if self._full_s:
            self._full_s.pop(conn, None)

    def _sweep(self, now_s: float) -> None:
        """Remove all full buckets. Amortized O(1), because the table has doubled since the last time."""
        self._full_s = {conn: full_s for conn, full_s in self._full_s.items() if full_s > now_s}
        self._sweep_at = max(SWEEP_LEAST, 2 * len(self._full_s))
