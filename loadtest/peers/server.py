"""The interface of every server in loadtest.peers, which the control channel and the publisher use."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol

__all__ = ["BACKLOG", "REFUSAL", "SUBSCRIBE", "Server", "loopback_listener"]

BACKLOG = 4096
# A text message that starts with this is a subscription and is not echoed.
SUBSCRIBE = b"subscribe:"
# The answer of peers without a handshake module at their connection limit.
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 10\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 0\r\n\r\n"
)


class Server(Protocol):
    """A WebSocket server that listens on loopback."""

    @property
    def port(self) -> int:
        """The TCP port on which the server listens."""

    def publish(self, channel: str, payloads: Sequence[bytes]) -> int:
        """Queue text messages for every subscriber of a channel, all of them before the first write.

        Returns:
            The number of subscribers.
        """

    async def drained(self) -> None:
        """Wait until everything that was published is in the kernel."""

    def subscribers(self, channel: str) -> int:
        """Return how many connections are subscribed to the channel."""

    def limit_connections(self, limit: int) -> None:
        """Refuse connections with 503 while so many are open; 0: no limit."""

    def counters(self) -> dict[str, int]:
        """Return the server's counters by name; may be empty."""

    def bytes_held(self) -> dict[str, int]:
        """Return the memory for which the server accounts, by kind, in bytes; may be empty."""


def loopback_listener() -> socket.socket:
    """Open a non-blocking listener on a free port of 127.0.0.1."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener
