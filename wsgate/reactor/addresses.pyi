"""Who comes from where: connections and arrivals of every address, summed over all shards of a node."""

from typing import final

__all__ = ["SharedAddresses"]

@final
class SharedAddresses:
    """Shared memory that all shards of a node count their peers in.

    Made before the shards are forked; each hands it to its `Reactor` with its own number. Costs memory only
    where an address has a place: 8 bytes a connection and 64 to 128 for its row.

    Args:
        shards: How many there are, 1 to 4096.
        connections: Slots of each, 1 to 16777216; what lies above is not counted, and that is counted.
        key: 16 secret bytes for the hash of addresses; random by default.

    Raises:
        SettingsError: An argument is out of range.
    """

    def __init__(self, shards: int, connections: int, *, key: bytes | None = None) -> None: ...
    def retire(self, shard: int) -> int:
        """Take back everything a dead shard had counted; how many connections that were. O(its slots)."""

    def connections(self) -> int:
        """Connections counted now, of all addresses together. O(cells): for tests and operators."""
