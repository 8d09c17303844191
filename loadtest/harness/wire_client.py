"""A minimal WebSocket client on one socket, for programs that measure many clients in one loop.

It connects in one blocking call, which returns after `welcome`. Then it is read without blocking, whenever
the loop finds its socket readable. It answers pings. It does not check what the test suites check.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any, Final, Self

__all__ = ["WireClient", "upgrade_head", "wire_frame"]

OPEN_S: Final = 60.0
READ_BYTES: Final = 1 << 16
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10


def wire_frame(payload: bytes, opcode: int = _TEXT) -> bytes:
    """Return one client frame (RFC 6455 section 5.2), with a mask of zeros, which changes no byte."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 65_536:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + bytes(4) + payload


def upgrade_head(port: int, path: str = "/ws", token: str = "") -> bytes:
    """Return the request of an opening handshake, with an Authorization header if there is a token."""
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n{bearer}\r\n"
    ).encode()


class WireClient:
    """A connection to a gateway that has received its welcome.

    Args:
        port: The port of a gateway on 127.0.0.1.
        token: The token of the user; empty for an anonymous client.
        path: The path, with channels in its query if they are to be subscribed from the beginning.
        source: The address to connect from, any of 127.0.0.0/8.
        receive_buffer_bytes: SO_RCVBUF, set before connecting; 0 leaves the kernel's default.

    Attributes:
        is_ended: Whether the connection has ended.
        close_code: The code of the gateway's Close; 0 before it.
    """

    def __init__(
        self,
        port: int,
        *,
        token: str = "",
        path: str = "/ws",
        source: str = "127.0.0.1",
        receive_buffer_bytes: int = 0,
    ) -> None:
        """Connect and wait for `welcome`; raise OSError or RuntimeError if that fails."""
        self.is_ended = False
        self.close_code = 0
        self._pending = bytearray()
        self.socket = socket.socket()
        try:
            self.socket.settimeout(OPEN_S)
            self.socket.bind((source, 0))
            if receive_buffer_bytes:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            self.socket.connect(("127.0.0.1", port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.sendall(upgrade_head(port, path, token))
            self._open()
            self.wait_for("welcome")
        except BaseException:
            self.socket.close()
            raise

    def _open(self) -> None:
        while b"\r\n\r\n" not in self._pending:
            data = self.socket.recv(READ_BYTES)
            if not data:
                raise RuntimeError(f"the gateway ended the handshake: {bytes(self._pending)!r}")
            self._pending += data
        head, _, rest = bytes(self._pending).partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(f"the gateway refused: {head!r}")
        self._pending = bytearray(rest)

    def wait_for(self, op: str, **fields: object) -> Mapping[str, Any]:
        """Read until a message with this `op` and these fields arrives; ignore other messages.

        For use before a measurement: messages that arrive together with the awaited one are lost.

        Raises:
            RuntimeError: The connection ended, or the message did not arrive in time.
        """
        until_s = time.monotonic() + OPEN_S
        payloads = self._messages()  # some messages may have arrived together with the response
        while time.monotonic() < until_s and not self.is_ended:
            for payload in payloads:
                message: dict[str, Any] = json.loads(payload)
                if message.get("op") == op and fields.items() <= message.items():
                    return message
            payloads = self.receive()
        raise RuntimeError(f"no {op} came")

    def subscribe(self, channel: str) -> None:
        """Subscribe to a channel and wait until the subscription is confirmed."""
        self.send(op="sub", ch=channel, id=1)
        self.wait_for("subbed", ch=channel)

    def begin(self) -> None:
        """Make the client's socket non-blocking, because the measurement starts."""
        self.socket.setblocking(False)

    def send(self, **fields: object) -> None:
        """Send one command as a text frame.

        Commands are small: if the socket does not accept all bytes, the connection ends.
        """
        self.send_raw(wire_frame(json.dumps(fields, separators=(",", ":")).encode()))

    def send_raw(self, data: bytes) -> None:
        """Send bytes without a frame around them; see `send`."""
        try:
            if self.socket.send(data) != len(data):
                self.is_ended = True
        except OSError:
            self.is_ended = True

    def receive(self) -> list[bytes]:
        """Read once, and return the payloads of all messages that are complete."""
        try:
            data = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.is_ended = True
            return []
        self._pending += data
        return self._messages()

    def _messages(self) -> list[bytes]:
        """Remove the complete frames from the input, answer pings, and return the messages' payloads."""
        pending, at, found = self._pending, 0, []
        while len(pending) >= at + 2:
            size, start = pending[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(pending[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                size, start = int.from_bytes(pending[at + 2 : at + 10], "big"), at + 10
            if len(pending) < start + size:
                break
            opcode, payload = pending[at] & 0x0F, bytes(pending[start : start + size])
            if opcode == _PING:
                self.send_raw(wire_frame(payload, _PONG))
            elif opcode == _CLOSE:
                self.close_code = int.from_bytes(payload[:2], "big") or 1005
            elif opcode != _PONG:
                found.append(payload)
            at = start + size
        del pending[:at]
        return found

    def fileno(self) -> int:
        """Return the file descriptor, for select and epoll."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close the connection with a reset, which leaves no TIME_WAIT."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> Self:
        """Return the client itself on entry."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the client's connection with a reset."""
        self.close()
