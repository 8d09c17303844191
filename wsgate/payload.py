"""Classifies published bytes as JSON, text or binary.

A backend can publish any bytes. Only this module decides in which form subscribers receive them: valid JSON
is relayed as JSON, other valid UTF-8 as text, and all other bytes as binary. Pure.

Source: protocols/bus/v1/spec.md, "Payloads".
"""

from typing import Final, NamedTuple

import msgspec

__all__ = ["BINARY", "JSON", "TEXT", "Payload", "classify", "is_json", "is_text"]

JSON: Final = 1
TEXT: Final = 2
BINARY: Final = 3


class Payload(NamedTuple):
    """Published bytes with their class: `JSON` (one complete document), `TEXT` (UTF-8) or `BINARY`."""

    encoding: int
    data: bytes


# Checks the grammar without creating objects, so numbers can be of any size.
_walk = msgspec.json.Decoder(msgspec.Raw).decode

_SHALLOW: Final = 256
"""A document with at most this many brackets cannot be nested too deeply, so it needs no second check."""
_MARGIN: Final = 100
"""Levels of nesting left free for processes that parse an accepted document later, from a deeper stack."""


def is_json(data: bytes, *, has_margin: bool = True) -> bool:
    """Return whether the bytes are one JSON document (RFC 8259) in UTF-8. O(bytes).

    Two valid forms are refused because parsers fail on them: half a surrogate pair, and nesting beyond about
    nine hundred levels.

    Args:
        data: The bytes to check.
        has_margin: Whether to refuse a document that is nested so deeply that it can be parsed here but
            perhaps not elsewhere. False for a document that another process has accepted with a margin.
    """
    if has_margin and data.count(b"[") + data.count(b"{") > _SHALLOW:
        return _is_document(b"[" * _MARGIN + data + b"]" * _MARGIN) and _is_document(data)
    return _is_document(data)


def _is_document(data: bytes) -> bool:
    """Return whether the bytes are one JSON document in UTF-8 whose nesting can be parsed here."""
    try:
        _walk(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    # The walk does not check the bytes inside a string: check separately whether they are UTF-8.
    return is_text(data)


def classify(data: bytes) -> Payload:
    """Return the bytes with their class; O(bytes), once per publication and process."""
    if is_json(data):
        return Payload(JSON, data)
    return Payload(TEXT if is_text(data) else BINARY, data)


def is_text(data: bytes) -> bool:
    """Return whether the bytes are valid UTF-8 text. O(bytes)."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
