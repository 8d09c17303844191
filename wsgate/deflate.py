"""Negotiates permessage-deflate (RFC 7692) in a handshake, and deflates single messages.

There is never a context takeover, in either direction. No window is kept after a message, so compression
costs no memory for an idle connection, and one compressed publication serves all connections of a class.

There are two window classes, so that a publication is deflated at most twice for all subscribers: WIDE_BITS,
and NARROW_BITS for a client that requests any smaller window (a server may use a smaller window than
requested). A message that is not larger than the narrow window is deflated to the same bytes for both
classes.

Rules:
- Linear time, no regular expressions, at most OFFERS_LIMIT offers are parsed.
- An offer with a parameter that is unknown, repeated or out of range is declined and not repaired, and the
  next offer is tried. A header that breaks the grammar of RFC 6455 section 9.1 is a fault of the handshake.
- A window of 8 bits is declined: zlib cannot deflate with 8 bits and silently uses 9.

Source: RFC 7692 sections 5 and 7.1; RFC 6455 section 9.1.
"""

import zlib
from typing import Final, NamedTuple

__all__ = [
    "NARROW_BITS",
    "OFFERS_LIMIT",
    "WIDE_BITS",
    "Agreement",
    "ExtensionError",
    "agree",
    "deflate",
    "is_shared",
]

WIDE_BITS: Final = 15
NARROW_BITS: Final = 9
OFFERS_LIMIT: Final = 16
"""The most extensions that one handshake may name; browsers name one or two."""

# Measured with 130 B, 2 KB, 16 KB and 60 KB of JSON: level 1 makes 88, 471, 3306 and 12272 bytes in 6, 8, 35
# and 124 us; level 6 makes 87, 468, 3070 and 10778 bytes in 7, 15, 100 and 689 us. A memory level of 8 takes
# 15 us more for every message, and so does a window that is larger than the message.
_LEVEL: Final = 1
_MEMORY_LEVEL: Final = 5
_LOOK_AHEAD_BYTES: Final = 262  # zlib uses this much less than its window
_SYNC_TAIL_BYTES: Final = 4  # RFC 7692 section 7.2.1: 00 00 ff ff, removed
_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_BITS: Final = {str(bits): bits for bits in range(8, 16)}  # no sign, no leading zero
_FLAGS: Final = ("server_no_context_takeover", "client_no_context_takeover")


class ExtensionError(ValueError):
    """The Sec-WebSocket-Extensions header is not valid; the message says why, without its value."""


class Agreement(NamedTuple):
    """The accepted parameters of permessage-deflate for one connection."""

    window_bits: int
    """The window of messages that the server sends: WIDE_BITS or NARROW_BITS."""
    response: str
    """The value of Sec-WebSocket-Extensions in the 101 response."""


def agree(offers: str) -> Agreement | None:
    """Return the agreement for the first acceptable offer of permessage-deflate, or None if there is none.

    Args:
        offers: The value of Sec-WebSocket-Extensions, all lines joined by ", ".

    Raises:
        ExtensionError: The value breaks RFC 6455 section 9.1, or names too many extensions.
    """
    elements = [element for element in offers.split(",") if element.strip(" \t")]
    if len(elements) > OFFERS_LIMIT:
        raise ExtensionError(f"more than {OFFERS_LIMIT} extensions")
    parsed = [_parse(element) for element in elements]  # all: a fault after a good offer counts too
    for name, parameters in parsed:
        if name == "permessage-deflate" and (agreement := _judge(parameters)) is not None:
            return agreement
    return None


def _parse(element: str) -> tuple[str, list[tuple[str, str | None]]]:
    """Parse one extension; return its name and its parameters in order.

    A quoted value must be a token, so a comma or semicolon is never part of a value.
    """
    name, *rest = (part.strip(" \t") for part in element.split(";"))
    parameters: list[tuple[str, str | None]] = []
    for part in rest:
        key, equals, value = part.partition("=")
        key, value = key.rstrip(" \t"), value.lstrip(" \t")
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1]
        if not _is_token(key) or (equals and not _is_token(value)):
            raise ExtensionError("a parameter is not a token")
        parameters.append((key, value if equals else None))
    if not _is_token(name):
        raise ExtensionError("a name is not a token")
    return name, parameters


def _is_token(text: str) -> bool:
    """Return whether a text is a token by RFC 9110 section 5.6.2."""
    return bool(text) and _TOKEN.issuperset(text)


def _judge(parameters: list[tuple[str, str | None]]) -> Agreement | None:
    """Return the agreement for the parameters of one offer; None if the offer is declined."""
    found = dict(parameters)
    if len(found) < len(parameters):
        return None
    for flag in _FLAGS:
        if found.pop(flag, None) is not None:
            return None
    client = found.pop("client_max_window_bits", None)
    if client is not None and client not in _BITS:
        return None
    response = "; ".join(("permessage-deflate", *_FLAGS))
    if "server_max_window_bits" not in found:
        return None if found else Agreement(WIDE_BITS, response)
    bits = _BITS.get(found.pop("server_max_window_bits") or "", 0)
    if found or bits < NARROW_BITS:
        return None
    window_bits = WIDE_BITS if bits == WIDE_BITS else NARROW_BITS
    return Agreement(window_bits, f"{response}; server_max_window_bits={window_bits}")


def is_shared(content: bytes) -> bool:
    """Return whether a message is deflated to the same bytes for both window classes."""
    return len(content) <= 1 << NARROW_BITS


def deflate(content: bytes, window_bits: int) -> bytes:
    """Deflate a message and return the payload of its frame; 6 us for 130 bytes, 8 us for 2 KB.

    Args:
        content: The complete message.
        window_bits: The window class, NARROW_BITS or WIDE_BITS.

    Source: RFC 7692 section 7.2.1.
    """
    if is_shared(content):
        bits = NARROW_BITS
    else:
        bits = min(window_bits, (len(content) + _LOOK_AHEAD_BYTES - 1).bit_length())
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -bits, _MEMORY_LEVEL)
    return (compressor.compress(content) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-_SYNC_TAIL_BYTES]
