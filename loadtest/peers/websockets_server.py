"""A minimal server on the asyncio part of the `websockets` library, under uvloop, without compression.

Settings: ``ping_interval_ms`` (0: no heartbeat).
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Sequence
from typing import Any

from websockets.asyncio.server import Server as WebSocketsServer
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from loadtest.peers import control
from loadtest.peers.server import SUBSCRIBE, Server, loopback_listener

__all__ = ["WebsocketsServer"]


class WebsocketsServer:
    """An echo server with channels on the `websockets` library.

    Args:
        loop: The running loop.
        settings: See the module.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: dict[str, Any]) -> None:
        """Listen on a free loopback port; the library accepts from the next pass of the loop on."""
        self._listener = loopback_listener()
        self._limit = 0
        self._open = 0
        self._channels: dict[str, set[ServerConnection]] = {}
        self._ping_interval_s = settings.get("ping_interval_ms", 0) / 1e3 or None
        self._serving = loop.create_task(self._serve())

    @property
    def port(self) -> int:
        """The TCP port of the `websockets` server."""
        port: int = self._listener.getsockname()[1]
        return port

    async def _serve(self) -> WebSocketsServer:
        return await serve(
            self._handle,
            sock=self._listener,
            compression=None,
            ping_interval=self._ping_interval_s,
            open_timeout=60,  # the library's handshakes wait longer than its default of 10 s
            process_request=self._judge,
            server_header=None,
        )

    def publish(self, channel: str, payloads: Sequence[bytes]) -> int:
        """Broadcast one message after the other: the library cannot queue several for one write."""
        members = self._channels.get(channel, set())
        for payload in payloads:
            broadcast(members, payload, text=True)
        return len(members)

    async def drained(self) -> None:
        """Let the loop write the bytes that the sockets did not accept at once."""
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def subscribers(self, channel: str) -> int:
        """Return how many of the library's connections are subscribed to the channel."""
        return len(self._channels.get(channel, ()))

    def limit_connections(self, limit: int) -> None:
        """Refuse connections above this number in process_request, the library's earliest place."""
        self._limit = limit

    def counters(self) -> dict[str, int]:
        """Return the number of connections in the library's handler as the only counter."""
        return {"open": self._open}

    def bytes_held(self) -> dict[str, int]:
        """Return nothing: the library does not account for memory."""
        return {}

    def _judge(self, connection: ServerConnection, _request: Request) -> Response | None:
        if 0 < self._limit <= self._open:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "")
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        self._open += 1
        names: list[str] = []
        try:
            async for message in connection:
                if isinstance(message, str) and message.startswith("subscribe:"):
                    names.append(message[len(SUBSCRIBE) :])
                    self._channels.setdefault(names[-1], set()).add(connection)
                else:
                    await connection.send(message)
        except ConnectionClosed:
            pass
        finally:
            self._open -= 1
            for name in names:
                self._channels[name].discard(connection)


def _make(loop: asyncio.AbstractEventLoop, settings: dict[str, Any]) -> Server:
    return WebsocketsServer(loop, settings)


if __name__ == "__main__":
    control.serve(_make)
