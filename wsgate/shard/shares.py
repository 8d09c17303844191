"""Divide the limits of a node among its shards.

A shard takes its part at its start and again when the settings are reloaded, each time from the numbers of
the node, so that no rounding adds up.
"""

from dataclasses import dataclass, replace
from typing import Final

from wsgate.reactor import GateLimits

__all__ = ["NO_NODE_LIMITS", "NodeLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLimits:
    """Limits of a whole node; 0 switches one off.

    Attributes:
        shards: How many shards divide them, at least 1.
        connections: Connections at once.
        connections_of_shard: Connections that the descriptors of one shard allow.
        handshake_rate_per_s: Handshakes per second. Each shard starts with an equal part; later the parts
            follow the room that each shard has.
        handshakes_in_progress: Handshakes under way at once, in each shard.
        partial_bytes: Unfinished input of all clients together.
    """

    shards: int = 1
    connections: int = 0
    connections_of_shard: int = 0
    handshake_rate_per_s: int = 0
    handshakes_in_progress: int = 1_024
    partial_bytes: int = 0

    def gate(self, common: GateLimits, number: int) -> GateLimits:
        """Return the limits of one shard's gate.

        Args:
            common: The limits that are the same for every shard; the divided ones in it are replaced.
            number: The number of the shard, from 0.
        """
        return replace(
            common,
            connections=self._connections(number),
            handshakes_in_progress=self.handshakes_in_progress,
            handshake_rate_per_s=-(-self.handshake_rate_per_s // self.shards),
            partial_bytes=-(-self.partial_bytes // self.shards),
        )

    def unauthenticated_limit(self, number: int) -> int:
        """Return how many upgraded connections of one shard may have shown no token yet.

        Args:
            number: The number of the shard, from 0.
        """
        return self.handshakes_in_progress or self._connections(number)

    def _connections(self, number: int) -> int:
        """Return the limit of connections of one shard: its part of the node, or what descriptors allow."""
        share = self.connections // self.shards + (number < self.connections % self.shards)
        return min(share or self.connections_of_shard, self.connections_of_shard) or share


NO_NODE_LIMITS: Final = NodeLimits()
