"""Make and read WebSocket frames as both ends of a connection, in few lines.

This module shares no code with the reactor, because the tests compare the reactor with it. The reader
refuses every frame that a server may not send, so each test that reads with it checks this too.

Source: RFC 6455 section 5.2.
"""

import struct
from typing import NamedTuple

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "MASK",
    "PING",
    "PONG",
    "TEXT",
    "FrameReader",
    "ServerFrame",
    "client_close",
    "client_frame",
    "client_header",
    "close_code",
]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = bytes.fromhex("37fa213d")  # any mask is possible; this one is from the RFC


def client_header(opcode: int, length: int, *, final: bool = True, rsv: int = 0, mask: bytes = MASK) -> bytes:
    """Return the header of a client's frame with its mask, for any payload."""
    first = final << 7 | rsv << 4 | opcode
    if length < 126:
        return bytes([first, 0x80 | length]) + mask
    if length < 65536:
        return struct.pack("!BBH", first, 0x80 | 126, length) + mask
    return struct.pack("!BBQ", first, 0x80 | 127, length) + mask


def client_frame(
    opcode: int, payload: bytes = b"", *, final: bool = True, rsv: int = 0, mask: bytes = MASK
) -> bytes:
    """Return a whole masked frame. O(len(payload))."""
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return client_header(opcode, size, final=final, rsv=rsv, mask=mask) + masked.to_bytes(size, "big")


def client_close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    """Return a Close frame; a code of None means no payload."""
    return client_frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


class ServerFrame(NamedTuple):
    """One complete frame from the server."""

    opcode: int
    payload: bytes


def close_code(frame: ServerFrame) -> int:
    """Return the code of a Close frame; 1005 when it has none."""
    assert frame.opcode == CLOSE
    assert len(frame.payload) != 1
    if not frame.payload:
        return 1005
    frame.payload[2:].decode("utf-8")
    code: int = struct.unpack("!H", frame.payload[:2])[0]
    return code


class FrameReader:
    """Parse the bytes of a server into frames, for any cut."""

    def __init__(self) -> None:
        self._pending = bytearray()

    @property
    def pending(self) -> bytes:
        """The bytes of a frame that is not complete."""
        return bytes(self._pending)

    def receive_data(self, data: bytes) -> list[ServerFrame]:
        """Return the frames that these bytes complete. O(bytes).

        Raises:
            AssertionError: The server broke RFC 6455: mask, reserved bits, opcode, length encoding, a
                fragment (the gateway never sends one), or a control frame over 125 bytes.
        """
        self._pending += data
        frames = []
        start = 0
        while (end := self._frame_end(start)) is not None:
            payload_start, frame_end = end
            frames.append(
                ServerFrame(self._pending[start] & 0x0F, bytes(self._pending[payload_start:frame_end]))
            )
            start = frame_end
        del self._pending[:start]
        return frames

    def _frame_end(self, start: int) -> tuple[int, int] | None:
        """Return the start and end of the payload of the frame at `start`; None when it is incomplete."""
        if len(self._pending) < start + 2:
            return None
        first, second = self._pending[start : start + 2]
        assert first & 0xF0 == 0x80, "a server's frame is final and has no reserved bit"
        assert first & 0x0F in (TEXT, BINARY, CLOSE, PING, PONG), "unknown opcode"
        assert not second & 0x80, "a server does not mask"
        assert second <= 125 or first & 0x0F < 8, "control frame too long"
        extended = {126: 2, 127: 8}.get(second, 0)
        payload_start = start + 2 + extended
        if len(self._pending) < payload_start:
            return None
        length = second
        if extended:
            length = int.from_bytes(self._pending[start + 2 : payload_start], "big")
            assert length >= (126 if extended == 2 else 65536), "length encoding not minimal"
        end = payload_start + length
        return (payload_start, end) if len(self._pending) >= end else None
