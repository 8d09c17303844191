"""Encodes a publication for the bus: the bare payload, or an envelope with a user or an exclusion. Pure.

Source: protocols/bus/v1/spec.md, "Payloads" and "Envelope".
"""

import json
import re
from typing import Any, Final

import msgpack

__all__ = ["encode_publication"]

_MARK: Final = b"\xc1"
_HEAD: Final = b"\xc1\x01"

_SHALLOW: Final = 256
"""With fewer brackets than this a value cannot nest too deep, so its depth is not measured."""
_DEPTH_LIMIT: Final = 800
"""A depth that every JSON parser accepts here; the protocol allows about 900."""
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def encode_publication(data: Any, *, user: str | None = None, exclude: str | int | None = None) -> bytes:
    """Encode a publication to the bytes that are published on the bus.

    Args:
        data: Bytes are the payload itself; any other value is encoded as JSON.
        user: The user who published it.
        exclude: The public id of the connection that does not receive it: as in its `welcome`, or as a
            number.

    Raises:
        TypeError, ValueError, RecursionError: JSON cannot represent `data`, or `exclude` is not such an id.
    """
    payload = bytes(data) if isinstance(data, bytes | bytearray | memoryview) else _json(data)
    if user is None and exclude is None and not payload.startswith(_MARK):
        return payload
    envelope: dict[str, Any] = {"data": payload}
    if (
        encoding := "json" if not isinstance(data, bytes | bytearray | memoryview) else _encoding(payload)
    ) != "json":
        envelope["encoding"] = encoding
    if user is not None:
        envelope["user"] = user
    if exclude is not None:
        envelope["exclude"] = _connection(exclude)
    packed: bytes = msgpack.packb(envelope)
    return _HEAD + packed


def _json(data: Any) -> bytes:
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _connection(conn: str | int) -> int:
    number = int(conn, 16) if isinstance(conn, str) else conn
    if not 0 <= number < 1 << 64:
        raise ValueError("exclude: must be a connection's public id")
    return number


def _encoding(payload: bytes) -> str:
    """Return the encoding that subscribers receive; the gateway drops an envelope whose encoding is wrong."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return "binary"
    try:
        # Numbers may have any size and are not needed, so they are not converted.
        value = json.loads(text, parse_int=_ignore, parse_float=_ignore, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return "text"
    if payload.count(b"[") + payload.count(b"{") > _SHALLOW and _depth(value) > _DEPTH_LIMIT:
        return "text"
    if _SURROGATE.search(payload) and not _is_unicode(value):
        return "text"
    return "json"


def _ignore(number: str) -> int:
    return 0


def _refuse(constant: str) -> None:
    raise ValueError  # NaN and infinities are not JSON


def _is_unicode(value: Any) -> bool:
    """Whether no string holds an unpaired surrogate."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _depth(value: Any) -> int:
    """Return how many levels a value nests. O(values)."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return depth
