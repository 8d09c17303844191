"""A minimal server as a uvloop protocol: one shared receive buffer, and frames in plain Python.

This is the fastest that Python does without its own compiled code. Settings: ``ping_interval_ms`` (0: no
heartbeat).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from loadtest.peers import control, frames
from loadtest.peers.server import REFUSAL, SUBSCRIBE, Server, loopback_listener

__all__ = ["UvloopServer"]

_TICK_S = 0.25
_PING = frames.header(frames.PING, 0)
# One buffer for all connections: it is parsed before the next read, and an incomplete frame is copied out.
_BUFFER = memoryview(bytearray(64 * 1024))


class _Connection(asyncio.BufferedProtocol):
    """One connection of the server; slots keep it small."""

    __slots__ = ("_is_open", "_partial", "_server", "transport")

    def __init__(self, server: UvloopServer) -> None:
        self._server = server
        self._partial = b""
        self._is_open = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self._server.forget(self)
        self.transport = None

    def get_buffer(self, _hint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, size: int) -> None:
        if not self._is_open:
            self._on_head(bytes(_BUFFER[:size]))
        elif self._partial:
            self._on_frames(self._partial + _BUFFER[:size], len(self._partial) + size)
        else:
            self._on_frames(_BUFFER, size)

    def _on_head(self, data: bytes) -> None:
        head = self._partial + data
        if not head.endswith(b"\r\n\r\n"):
            self._partial = head
            return
        self._partial = b""
        assert self.transport is not None
        if self._server.is_full():
            self.transport.write(REFUSAL)
            self.transport.close()
            return
        self.transport.write(frames.switching(head))
        self._is_open = True
        self._server.connections.add(self)

    def _on_frames(self, data: bytes | memoryview, end: int) -> None:
        at = 0
        while (found := frames.split_frame(data, at, end)) is not None:
            opcode, payload, at = found
            self._on_frame(opcode, payload)
        self._partial = bytes(data[at:end])

    def _on_frame(self, opcode: int, payload: bytes) -> None:
        if self.transport is None:
            return
        if opcode == frames.CLOSE:
            self.transport.write(frames.header(opcode, len(payload)) + payload)
            self.transport.close()
        elif payload.startswith(SUBSCRIBE):
            self._server.subscribe(self, payload[len(SUBSCRIBE) :].decode())
        elif opcode < frames.CLOSE:
            self.transport.write(frames.header(opcode, len(payload)) + payload)


class UvloopServer:
    """An echo server with channels on uvloop transports.

    Args:
        loop: The running loop.
        settings: See the module.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: dict[str, Any]) -> None:
        """Listen on a free loopback port; uvloop accepts connections from the next pass of the loop on."""
        self._loop = loop
        self._listener = loopback_listener()
        self._limit = 0
        self.connections: set[_Connection] = set()
        self._channels: dict[str, set[_Connection]] = {}
        self._serving = loop.create_task(loop.create_server(lambda: _Connection(self), sock=self._listener))
        self._ticks = settings.get("ping_interval_ms", 0) / 1e3 / _TICK_S
        self._round: list[_Connection] = []
        if self._ticks > 0:
            loop.call_later(_TICK_S, self._tick)

    @property
    def port(self) -> int:
        """The TCP port of the uvloop server."""
        port: int = self._listener.getsockname()[1]
        return port

    def subscribe(self, connection: _Connection, channel: str) -> None:
        """Add a connection to the subscribers of a channel."""
        self._channels.setdefault(channel, set()).add(connection)

    def forget(self, connection: _Connection) -> None:
        """Remove a connection from the server and from all channels."""
        self.connections.discard(connection)
        for members in self._channels.values():
            members.discard(connection)

    def is_full(self) -> bool:
        """Whether the connection limit is reached."""
        return 0 < self._limit <= len(self.connections)

    def publish(self, channel: str, payloads: Sequence[bytes]) -> int:
        """Encode once, and write the same bytes to every transport; uvloop joins the writes of one pass."""
        members = self._channels.get(channel, set())
        encoded = b"".join(frames.header(frames.TEXT, len(payload)) + payload for payload in payloads)
        for connection in members:
            if connection.transport is not None:
                connection.transport.write(encoded)
        return len(members)

    async def drained(self) -> None:
        """Let uvloop flush: it writes at the end of the pass in which `write` was called."""
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def subscribers(self, channel: str) -> int:
        """Return how many uvloop connections are subscribed to the channel."""
        return len(self._channels.get(channel, ()))

    def limit_connections(self, limit: int) -> None:
        """Refuse connections above this number, after the protocol has read their head."""
        self._limit = limit

    def counters(self) -> dict[str, int]:
        """Return the number of open connections as the only counter."""
        return {"open": len(self.connections)}

    def bytes_held(self) -> dict[str, int]:
        """Return nothing: transports do not report their memory."""
        return {}

    def _tick(self) -> None:
        """Send a ping to a part of the connections, so that each has one ping per interval."""
        self._loop.call_later(_TICK_S, self._tick)
        if not self._round:
            self._round = list(self.connections)
        size = max(1, round(len(self.connections) / self._ticks))
        now, self._round = self._round[:size], self._round[size:]
        for connection in now:
            if connection.transport is not None:
                connection.transport.write(_PING)


def _make(loop: asyncio.AbstractEventLoop, settings: dict[str, Any]) -> Server:
    return UvloopServer(loop, settings)


if __name__ == "__main__":
    control.serve(_make)
