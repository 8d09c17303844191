"""The part of RFC 6455 that the minimal peers need: the accept key, one header out, complete frames in.

This code is deliberately not strict: no UTF-8 check, no fragments, no limits. The comparison shows the least
work that Python code can do; it is not a server for use.
"""

from __future__ import annotations

import base64
import hashlib
import struct

__all__ = ["CLOSE", "PING", "TEXT", "header", "split_frame", "switching"]

TEXT = 1
CLOSE = 8
PING = 9

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY = b"sec-websocket-key:"


def switching(head: bytes) -> bytes:
    """Return the 101 response to a request head; raise ValueError without a key. RFC 6455 section 4.2.2."""
    at = head.lower().index(_KEY) + len(_KEY)
    key = head[at : head.index(b"\r\n", at)].strip()
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324 - the protocol requires SHA-1
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
    )


def header(opcode: int, size: int) -> bytes:
    """Return the header of an unmasked, unfragmented frame of up to 65,535 bytes. RFC 6455 section 5.2."""
    if size < 126:
        return bytes((0x80 | opcode, size))
    return struct.pack("!BBH", 0x80 | opcode, 126, size)


def split_frame(data: bytes | memoryview, at: int, end: int) -> tuple[int, bytes, int] | None:
    """Decode one masked frame at the beginning of `data[at:end]`.

    Returns:
        Opcode, unmasked payload, and where the next frame starts; None while the frame is incomplete.
    """
    if end - at < 6:
        return None
    opcode, size, body = data[at] & 15, data[at + 1] & 127, at + 2
    if size == 126:
        if end - at < 8:
            return None
        size, body = (data[at + 2] << 8) | data[at + 3], at + 4
    elif size == 127:
        raise ValueError("frames of 64 KiB and more are not for this peer")
    if end < body + 4 + size:
        return None
    mask = bytes(data[body : body + 4])
    masked = data[body + 4 : body + 4 + size]
    # One XOR of big integers is the fastest unmasking in plain Python.
    key = int.from_bytes((mask * (size // 4 + 1))[:size])
    return opcode, (int.from_bytes(masked) ^ key).to_bytes(size), body + 4 + size
