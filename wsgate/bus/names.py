"""What things are called on the bus. Source: protocols/bus/v1/spec.md, "Names"."""

from typing import Final

__all__ = ["INBOX_MARK", "Names"]

INBOX_MARK: Final = "@"
"""Before a user's id: the name of the user's inbox on the bus. Clients say `@me`."""


class Names:
    """Names under one prefix."""

    def __init__(self, prefix: str) -> None:
        """With a prefix of 1 to 32 bytes, `wsgate` by default."""
        self.channels: Final = f"{prefix}:ch:".encode()
        self._prefix = prefix

    def channel(self, name: bytes) -> bytes:
        """The pub/sub name of a channel: the prefix and the name as it is, whatever bytes it has."""
        return self.channels + name

    def events(self, partition: int) -> bytes:
        """The stream of one partition of the events, and the pub/sub name of what is published besides."""
        return f"{self._prefix}:events:{partition}".encode()

    def user(self, user: str) -> bytes:
        """The sorted set of a user's connections on all nodes."""
        return f"{self._prefix}:user:{user}".encode()

    def rate(self, user: str) -> bytes:
        """What a user has left of its messages per second."""
        return f"{self._prefix}:rate:{user}".encode()

    def alive(self, owner: str) -> bytes:
        """Says that a shard lives, for as long as it does."""
        return f"{self._prefix}:alive:{owner}".encode()

    def revoked(self) -> bytes:
        """The sorted set of revoked users, by the time before which their tokens are not valid."""
        return f"{self._prefix}:revoked".encode()

    def node(self, node: str) -> bytes:
        """Return the key of the lease of a node's name; its value is the holder of the name."""
        return f"{self._prefix}:node:{node}".encode()

    def shards(self) -> bytes:
        """The leases of all shards of all nodes."""
        return f"{self._prefix}:shards".encode()

    def replies(self, request: str) -> bytes:
        """The shards that have carried out the control command of this request."""
        return f"{self._prefix}:reply:{request}".encode()

    def control(self, node: str) -> tuple[bytes, bytes]:
        """The pub/sub names of what every shard is told, and of what those of one node are."""
        return f"{self._prefix}:ctl".encode(), f"{self._prefix}:ctl:{node}".encode()

    def probe(self, node: str, shard: int) -> bytes:
        """The pub/sub name on which a shard hears itself: proof that the bus delivers."""
        return f"{self._prefix}:probe:{node}:{shard}".encode()
