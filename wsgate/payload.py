"""What is published: bytes that are JSON, text or binary, and proven to be so once.

A backend publishes whatever it likes; what subscribers get is decided here and nowhere else. Valid JSON
is relayed as it is; else valid UTF-8 is a text; else it is binary. Pure.

Source: protocols/bus/v1/spec.md, "Payloads".
"""

from typing import Final, NamedTuple

import msgspec

__all__ = ["BINARY", "JSON", "TEXT", "Payload", "classify", "is_json"]

JSON: Final = 1
TEXT: Final = 2
BINARY: Final = 3


class Payload(NamedTuple):
    """Bytes and what they are proven to be: `JSON` (a whole document), `TEXT` (UTF-8) or `BINARY`."""

    encoding: int
    data: bytes


# Proves the grammar without making an object of anything: numbers may be of any size.
_walk = msgspec.json.Decoder(msgspec.Raw).decode


def is_json(data: bytes) -> bool:
    """Whether the bytes are one JSON document (RFC 8259) in UTF-8. O(bytes).

    Stricter than the grammar in two places where parsers fail: half a surrogate pair, and nesting beyond
    about a thousand levels.
    """
    try:
        _walk(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    # The walk takes the bytes inside a string as they come: whether they are UTF-8 is asked apart.
    return _is_text(data)


def classify(data: bytes) -> Payload:
    """What raw bytes are. O(bytes), once per publication and process."""
    if is_json(data):
        return Payload(JSON, data)
    return Payload(TEXT if _is_text(data) else BINARY, data)


def _is_text(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
