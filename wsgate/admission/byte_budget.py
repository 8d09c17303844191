"""How many bytes clients may put onto the bus: each connection, and all of a shard together.

Without a limit a dozen clients publish faster than the slowest shard takes, and the bus cuts that shard at
its output limit, at the cost of everybody who is subscribed there. Who is over the limit is told when to try
again.

Pure: the clock is passed in.
"""

from dataclasses import dataclass
from typing import Final

__all__ = ["NO_BYTE_RATES", "ByteBudget", "ByteRates"]

ENTRY_BYTES: Final = 160
"""What a connection that publishes takes in the table: measured 104 to 150."""
EPSILON_S: Final = 1e-6
"""What the sum of rounded times may be off by."""
SWEEP_LEAST: Final = 1_024
"""Entries from which on those that no longer say anything are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRates:
    """What may be put onto the bus; 0 switches a limit off.

    Attributes:
        connection_per_s: Bytes a second of one connection; at once as many.
        shard_per_s: Bytes a second of all connections of a shard together.
        shard_burst: How many of those at once.
    """

    connection_per_s: int = 0
    shard_per_s: int = 0
    shard_burst: int = 0

    @classmethod
    def of_node(cls, connection_per_s: int, node_per_s: int, shards: int, output_bytes: int) -> "ByteRates":
        """Divide what a node may put onto the bus among its shards.

        Args:
            connection_per_s: Of one connection.
            node_per_s: Of all shards together.
            shards: How many, >= 1.
            output_bytes: What may wait in the bus for one shard, of which a burst of all shards may fill a
            half;
                0: not known.
        """
        share = -(-node_per_s // shards)
        burst = share // 4
        if output_bytes:
            burst = min(burst, output_bytes // 2 // shards)
        return cls(connection_per_s=connection_per_s, shard_per_s=share, shard_burst=burst)


NO_BYTE_RATES: Final = ByteRates()


class ByteBudget:
    """The budget of one shard: token buckets, each kept as the time at which it would be full again.

    A bucket that is full lets anything through, so that a rate below the largest message stops nobody for
    good.

    Args:
        rates: The limits.
    """

    def __init__(self, rates: ByteRates) -> None:
        self._rates = rates
        self._full_s: dict[int, float] = {}  # by connection
        self._shard_full_s = 0.0
        self._sweep_at = SWEEP_LEAST

    @property
    def bytes_estimate(self) -> int:
        """Memory of what is known about connections, in bytes."""
        return len(self._full_s) * ENTRY_BYTES

    def take(self, conn: int, size: int, now_s: float) -> int:
        """Let so many bytes of a connection onto the bus.

        Args:
            conn: The connection.
            size: How many.
            now_s: A monotonic clock.

        Returns:
            0 when they may go. Else the milliseconds until they might, and nothing was taken.
        """
        rates = self._rates
        own_s, shard_s = 0.0, 0.0
        if rates.shard_per_s:
            shard_s = max(self._shard_full_s, now_s) + size / rates.shard_per_s
            over_s = shard_s - now_s - rates.shard_burst / rates.shard_per_s
            if over_s > EPSILON_S and self._shard_full_s > now_s:
                return 1 + int(over_s * 1000)
        if rates.connection_per_s:
            full_s = self._full_s.get(conn, 0.0)
            own_s = max(full_s, now_s) + size / rates.connection_per_s
            over_s = own_s - now_s - 1.0
            if over_s > EPSILON_S and full_s > now_s:
                return 1 + int(over_s * 1000)
            self._full_s[conn] = own_s
            if len(self._full_s) >= self._sweep_at:
                self._sweep(now_s)
        self._shard_full_s = shard_s
        return 0

    def forget(self, conn: int) -> None:
        """The connection is gone."""
        if self._full_s:
            self._full_s.pop(conn, None)

    def _sweep(self, now_s: float) -> None:
        """Forget the buckets that are full. Amortized O(1): the table has doubled since the last time."""
        self._full_s = {conn: full_s for conn, full_s in self._full_s.items() if full_s > now_s}
        self._sweep_at = max(SWEEP_LEAST, 2 * len(self._full_s))
