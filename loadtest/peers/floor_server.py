"""The floor with the engine as its receiver: the C probe's fan-out loop on sockets with a Python handshake.

`loadtest/floor` measures its loop with a C receiver that only reads. The cost of a send depends on the
receiver too (a sleeping one must be woken, a busy one need not be), so the same loop is measured here with
the client that the other servers have. Only fan-out is measured; the rest of the code opens the sockets.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.peers import control, frames
from loadtest.peers.server import REFUSAL, SUBSCRIBE, Server, loopback_listener

__all__ = ["FloorServer"]

_LIBRARY = Path(__file__).resolve().parents[1] / "floor" / "libfloor.so"
_FRAME_BYTES = 134  # FRAME_BYTES in floor.h
_BUFFER_BYTES = 16 * 1024  # as on the gateway's listener; the kernel doubles it


class FloorServer:
    """Channels on plain sockets, to which the floor's C loop writes.

    Args:
        loop: The running loop.
        settings: None are used.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, _settings: dict[str, Any]) -> None:
        """Listen on a free loopback port."""
        self._loop = loop
        self._listener = loopback_listener()
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._listener.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets: dict[int, socket.socket] = {}
        self._channels: dict[str, array[int]] = {}
        self._limit = 0
        self._send_round = ctypes.PyDLL(str(_LIBRARY)).floor_send_round
        self._send_round.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
        self._send_round.restype = ctypes.c_int
        loop.add_reader(self._listener, self._accept)

    @property
    def port(self) -> int:
        """The TCP port of the floor's listener."""
        port: int = self._listener.getsockname()[1]
        return port

    def publish(self, channel: str, payloads: Sequence[bytes]) -> int:
        """Send to every subscriber in C; raise RuntimeError if a socket did not accept all frames."""
        members = self._channels.get(channel, array("i"))
        encoded = b"".join(frames.header(frames.TEXT, len(payload)) + payload for payload in payloads)
        assert len(encoded) == _FRAME_BYTES * len(payloads), "the floor's frames are 134 bytes"
        address, count = members.buffer_info()
        written = self._send_round(address, count, encoded, len(payloads))
        if written != count:
            raise RuntimeError(f"{count - written} of {count} sockets did not take the whole round")
        return count

    async def drained(self) -> None:
        """Return at once: everything is written when `publish` returns."""

    def subscribers(self, channel: str) -> int:
        """Return how many plain sockets are subscribed to the channel."""
        return len(self._channels.get(channel, ()))

    def limit_connections(self, limit: int) -> None:
        """Refuse sockets above this number, after their request head was read."""
        self._limit = limit

    def counters(self) -> dict[str, int]:
        """Return the number of open sockets as the only counter."""
        return {"open": len(self._sockets)}

    def bytes_held(self) -> dict[str, int]:
        """Return nothing: this server does not account for memory."""
        return {}

    def _accept(self) -> None:
        for _ in range(64):
            try:
                connection, _address = self._listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            self._sockets[connection.fileno()] = connection
            self._loop.add_reader(connection, self._read, connection)

    def _read(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(16 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._forget(connection)
        elif data.startswith(b"GET ") and 0 < self._limit < len(self._sockets):
            connection.send(REFUSAL)
            self._forget(connection)
        elif data.startswith(b"GET "):
            connection.send(frames.switching(data))
        elif (found := frames.split_frame(data, 0, len(data))) is not None:
            opcode, payload, _ = found
            if payload.startswith(SUBSCRIBE):
                name = payload[len(SUBSCRIBE) :].decode()
                self._channels.setdefault(name, array("i")).append(connection.fileno())
            elif opcode == frames.CLOSE:
                connection.send(frames.header(opcode, len(payload)) + payload)
                self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        descriptor = connection.fileno()
        self._loop.remove_reader(connection)
        del self._sockets[descriptor]
        for members in self._channels.values():
            if descriptor in members:
                members.remove(descriptor)
        connection.close()


def _make(loop: asyncio.AbstractEventLoop, settings: dict[str, Any]) -> Server:
    return FloorServer(loop, settings)


if __name__ == "__main__":
    control.serve(_make)
