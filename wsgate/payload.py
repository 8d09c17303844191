"""What is published: bytes that are JSON, text or binary, and proven to be so once.

A backend publishes whatever it likes; what subscribers get is decided here and nowhere else. Valid JSON
is relayed as it is; else valid UTF-8 is a text; else it is binary. Pure.

Source: protocols/bus/v1/spec.md, "Payloads".
"""

from typing import Final, NamedTuple

import msgspec

__all__ = ["BINARY", "JSON", "TEXT", "Payload", "classify", "is_json", "is_text"]

JSON: Final = 1
TEXT: Final = 2
BINARY: Final = 3


class Payload(NamedTuple):
    """Bytes and what they are proven to be: `JSON` (a whole document), `TEXT` (UTF-8) or `BINARY`."""

    encoding: int
    data: bytes


# Proves the grammar without making an object of anything: numbers may be of any size.
_walk = msgspec.json.Decoder(msgspec.Raw).decode

_SHALLOW: Final = 256
"""Brackets that nobody needs to look into: too few to nest too deep."""
_MARGIN: Final = 100
"""Levels that whoever accepts a document leaves to those who read it later from a deeper stack."""


def is_json(data: bytes, *, has_margin: bool = True) -> bool:
    """Whether the bytes are one JSON document (RFC 8259) in UTF-8. O(bytes).

    Stricter than the grammar in two places where parsers fail: half a surrogate pair, and nesting beyond
    about nine hundred levels.

    Args:
        data: What came.
        has_margin: Whether to refuse what is so deep that it just fits here and may not elsewhere. False
            for what another process has accepted with it.
    """
    if has_margin and data.count(b"[") + data.count(b"{") > _SHALLOW:
        return _is_document(b"[" * _MARGIN + data + b"]" * _MARGIN) and _is_document(data)
    return _is_document(data)


def _is_document(data: bytes) -> bool:
    try:
        _walk(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    # The walk takes the bytes inside a string as they come: whether they are UTF-8 is asked apart.
    return is_text(data)


def classify(data: bytes) -> Payload:
    """What raw bytes are. O(bytes), once per publication and process."""
    if is_json(data):
        return Payload(JSON, data)
    return Payload(TEXT if is_text(data) else BINARY, data)


def is_text(data: bytes) -> bool:
    """Whether the bytes are UTF-8. O(bytes)."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
