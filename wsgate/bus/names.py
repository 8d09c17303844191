"""Build the names of pub/sub channels, streams and keys on the bus. Pure.

Source: protocols/bus/v1/spec.md, "Names".
"""

from typing import Final

__all__ = ["INBOX_MARK", "Names"]

INBOX_MARK: Final = "@"
"""The first character of an inbox: the inbox of a user is `@` and the user id. Clients call theirs `@me`."""


class Names:
    """All names on the bus that begin with one prefix, the setting `bus.prefix`."""

    def __init__(self, prefix: str) -> None:
        """Keep the prefix, 1 to 32 bytes."""
        self.channels: Final = f"{prefix}:ch:".encode()
        self._prefix = prefix

    def channel(self, name: bytes) -> bytes:
        """Return the pub/sub name of a channel: the prefix and the unchanged name, whatever its bytes are."""
        return self.channels + name

    def events(self, partition: int) -> bytes:
        """Return the name of one partition of the events: its stream's key and its pub/sub name."""
        return f"{self._prefix}:events:{partition}".encode()

    def user(self, user: str) -> bytes:
        """Return the key of the sorted set of a user's connections on all nodes."""
        return f"{self._prefix}:user:{user}".encode()

    def rate(self, user: str) -> bytes:
        """Return the key of a user's rate limit bucket, which all shards share."""
        return f"{self._prefix}:rate:{user}".encode()

    def alive(self, owner: str) -> bytes:
        """Return the liveness key of a shard: the key exists while the shard renews it."""
        return f"{self._prefix}:alive:{owner}".encode()

    def revoked(self) -> bytes:
        """Return the key of the revocations: users by the time before which their tokens are not valid."""
        return f"{self._prefix}:revoked".encode()

    def node(self, node: str) -> bytes:
        """Return the key of the lease of a node's name; its value is the holder of the name."""
        return f"{self._prefix}:node:{node}".encode()

    def shards(self) -> bytes:
        """Return the key of the set of shards of all nodes, each with a lease."""
        return f"{self._prefix}:shards".encode()

    def replies(self, request: str) -> bytes:
        """Return the key of the set of shards that have carried out the control command of a request."""
        return f"{self._prefix}:reply:{request}".encode()

    def control(self, node: str) -> tuple[bytes, bytes]:
        """Return the pub/sub names of control commands to every shard, and to the shards of one node."""
        return f"{self._prefix}:ctl".encode(), f"{self._prefix}:ctl:{node}".encode()

    def probe(self, node: str, shard: int) -> bytes:
        """Return the pub/sub name of a shard's probes, which prove that the bus delivers publications."""
        return f"{self._prefix}:probe:{node}:{shard}".encode()
