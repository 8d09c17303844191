"""The attacking clients: many plain sockets that one thread drives, with little memory of their own."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, Self

from tests.support.frames import PING, PONG, TEXT, FrameReader, client_frame

__all__ = ["ADDRESSES", "BROKEN", "Client", "Crowd", "command"]

HEAD: Final = (
    "GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    "Authorization: Bearer {}\r\n\r\n"
)
BROKEN: Final = b"\xff\x80\x00\x00\x00\x00"
"""A frame that violates the protocol: the gateway closes the connection that sends it."""
ADDRESSES: Final = 20
"""The number of addresses from which the attack comes, so that there are enough ports."""
OPEN_S: Final = 120.0
WINDOW: Final = 64
"""Handshakes under way at once."""


def command(**fields: Any) -> bytes:
    """Return one command of a client as a masked text frame."""
    return client_frame(TEXT, json.dumps(fields).encode())


class Client:
    """One connection with a non-blocking socket."""

    __slots__ = ("head", "is_open", "reader", "said", "sock", "unsent")

    def __init__(self, port: int, source: str, receive_buffer_bytes: int) -> None:
        self.sock = socket.socket()
        self.sock.bind((source, 0))
        if receive_buffer_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setblocking(False)
        self.unsent = bytearray()
        self.head = bytearray()
        self.is_open = True
        self.reader = FrameReader()
        self.said: list[bytes] = []

    def send(self, data: bytes) -> None:
        """Send as much as the socket accepts; `flush` sends the rest."""
        self.unsent += data
        self.flush()

    def flush(self) -> None:
        """Send the bytes that were not sent yet."""
        with contextlib.suppress(BlockingIOError):
            while self.unsent and self.is_open:
                try:
                    del self.unsent[: self.sock.send(self.unsent)]
                except ConnectionError:
                    self.is_open = False

    def receive(self) -> bool:
        """Read once, and answer pings; return whether there was data."""
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return False
        except ConnectionError:
            data = b""
        if not data:
            self.is_open = False
            return False
        if b"\r\n\r\n" not in self.head:
            self.head += data
            data = bytes(self.head.partition(b"\r\n\r\n")[2])
        for frame in self.reader.receive_data(data):
            if frame.opcode == TEXT:
                self.said.append(frame.payload)
            elif frame.opcode == PING:
                self.send(client_frame(PONG, frame.payload))
        return True

    @property
    def status(self) -> int:
        """The status of the handshake's answer; 0 if none has arrived."""
        return int(self.head[9:12] or b"0")


class Crowd:
    """Connections that are opened, driven and closed together."""

    def __init__(self, port: int, *, receive_buffer_bytes: int = 0) -> None:
        self._port = port
        self._receive_buffer_bytes = receive_buffer_bytes
        self.clients: list[Client] = []
        self.refused = 0

    def open(self, tokens: Sequence[str]) -> list[Client]:
        """Open a connection for each token; refused ones are counted and removed."""
        before = len(self.clients)
        for first in range(0, len(tokens), WINDOW):
            part = tokens[first : first + WINDOW]
            for place, token in enumerate(part, first):
                source = f"127.77.0.{1 + place % ADDRESSES}"
                self.clients.append(Client(self._port, source, self._receive_buffer_bytes))
                self.clients[-1].send(HEAD.format(token).encode())
            self._await_answers(self.clients[-len(part) :])
        new = self.clients[before:]
        for client in new:
            if client.status != 101:
                self.refused += 1
                client.sock.close()
                self.clients.remove(client)
        return self.clients[before:]

    def _await_answers(self, clients: list[Client]) -> None:
        """Receive until each client has the answer to its handshake, or has ended."""
        until_s = time.monotonic() + OPEN_S
        while any(each.is_open and not each.status for each in clients) and time.monotonic() < until_s:
            receive_all(each for each in clients if not each.status)

    def receive(self, seconds: float = 0.0) -> None:
        """Receive for so many seconds, or until there is nothing to receive."""
        until_s = time.monotonic() + seconds
        while receive_all(self.clients) or time.monotonic() < until_s:
            if time.monotonic() > until_s + OPEN_S:
                return

    def close(self) -> None:
        """Reset every connection, so that nothing is left of it on this side."""
        for client in self.clients:
            with contextlib.suppress(OSError):
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sock.close()
        self.clients.clear()

    def __enter__(self) -> Self:
        """Return the Crowd itself on entry."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close every connection of the crowd."""
        self.close()


def receive_all(clients: Iterable[Client]) -> bool:
    """Read once from each client with data, waiting 10 ms for the first; return whether one had data."""
    with selectors.DefaultSelector() as selector:
        for client in clients:
            if client.is_open:
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.unsent else 0)
                selector.register(client.sock, wanted, client)
        ready = selector.select(0.01)
        for key, _ in ready:
            key.data.flush()
            key.data.receive()
    return bool(ready)
