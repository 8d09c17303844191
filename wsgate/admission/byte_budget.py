"""Limits how many bytes clients publish to the bus per second: each connection, and a shard in total.

Without these limits a dozen clients could publish faster than the slowest shard reads. The bus would then
close the connection of that shard at its output limit, and all its subscribers would lose publications. A
client over the limit gets the time after which it can try again.

Pure: the clock is passed in.
"""

from dataclasses import dataclass
from typing import Final

__all__ = ["NO_BYTE_RATES", "ByteBudget", "ByteRates"]

ENTRY_BYTES: Final = 160
"""Memory of the table entry of a connection that publishes; 104 to 150 bytes were measured."""
EPSILON_S: Final = 1e-6
"""The error that the sum of rounded times may have."""
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


class ByteBudget:
    """The token buckets for the published bytes of one shard and of each of its connections.

    A bucket is stored as the time at which it will be full again. A full bucket accepts a publication of any
    size, so that a rate below the largest message does not block a client for ever.

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
        """Return the estimated memory of the byte buckets of connections."""
        return len(self._full_s) * ENTRY_BYTES

    def take(self, conn: int, size: int, now_s: float) -> int:
        """Take `size` bytes from the buckets of a connection and of the shard, or say when to try again.

        Args:
            conn: The connection that publishes.
            size: The number of bytes.
            now_s: A monotonic clock.

        Returns:
            0 if the publication is allowed. Otherwise after how many milliseconds to try again; nothing is
            taken.
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
        """Remove the byte bucket of a connection that has ended."""
        if self._full_s:
            self._full_s.pop(conn, None)

    def _sweep(self, now_s: float) -> None:
        """Remove all full buckets. Amortized O(1), because the table has doubled since the last time."""
        self._full_s = {conn: full_s for conn, full_s in self._full_s.items() if full_s > now_s}
        self._sweep_at = max(SWEEP_LEAST, 2 * len(self._full_s))
