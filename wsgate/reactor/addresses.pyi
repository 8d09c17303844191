"""Counts the connections and the rate of arrivals of every address, summed over all shards of a node."""

from typing import final

__all__ = ["SharedAddresses"]

@final
class SharedAddresses:
    """The shared memory in which all shards of a node count the connections of each address.

    Make it before the shards are forked; each shard passes it to its `Reactor` with its own number. The
    kernel provides its memory page by page as connections are counted: 8 bytes for each connection, and 64 to
    128 for the rows of each address.

    Args:
        shards: The number of shards, 1 to 4096.
        connections: The slots of each shard, 1 to 16777216. A connection in a higher slot is not counted for
            its address, and `addresses_uncounted` counts it instead.
        key: 16 secret bytes for the hash of addresses; random by default.

    Raises:
        SettingsError: An argument is out of range.
    """

    def __init__(self, shards: int, connections: int, *, key: bytes | None = None) -> None: ...
    def retire(self, shard: int) -> int:
        """Remove the connections of an ended shard from all counts; returns how many. O(slots of a shard)."""

    def connections(self) -> int:
        """Sum the connections that are counted now for all addresses. O(cells), for tests and operators."""
