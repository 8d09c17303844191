"""What every driven server can do; the control channel and the publisher know nothing else of it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol

__all__ = ["BACKLOG", "REFUSAL", "SUBSCRIBE", "Server", "loopback_listener"]

BACKLOG = 4096
# A text message that begins so is a subscription and is not echoed.
SUBSCRIBE = b"subscribe:"
# What the peers without a handshake module of their own answer at their connection limit.
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 10\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 0\r\n\r\n"
)


class Server(Protocol):
    """One WebSocket server on loopback, already listening."""

    @property
    def port(self) -> int:
        """The TCP port."""

    def publish(self, channel: str, payloads: Sequence[bytes]) -> int:
        """Queue text messages to every subscriber of a channel, all of them before the first write.

        Returns:
            Subscribers reached.
        """

    async def drained(self) -> None:
        """Wait until everything published was handed to the kernel."""

    def subscribers(self, channel: str) -> int:
        """How many connections subscribed."""

    def limit_connections(self, limit: int) -> None:
        """Refuse with 503 while so many connections are open; 0 is no limit."""

    def counters(self) -> dict[str, int]:
        """Whatever the server counts, by name; may be empty."""

    def bytes_held(self) -> dict[str, int]:
        """Memory the server accounts for, by kind, in bytes; may be empty."""


def loopback_listener() -> socket.socket:
    """Open a non-blocking listener on a free port of 127.0.0.1."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener
