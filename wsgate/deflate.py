"""permessage-deflate (RFC 7692): what a handshake agrees on, and one message deflated.

Always without context takeover in both directions: no window outlives a message, so a connection
costs nothing for being compressed, and one compressed publication serves everybody who may be sent it.

There are two window classes, so that a publication is deflated at most twice for all: WIDE_BITS, and
NARROW_BITS for whoever asks for anything smaller (a server may use less than it was asked for). A
message not larger than the narrow window is the same for both.

Rules:
- Linear time, no regex, at most OFFERS_LIMIT offers looked at.
- An offer with a parameter that is unknown, repeated or out of range is declined, not repaired; the
  next one is looked at. What breaks the grammar of RFC 6455 section 9.1 is a fault of the handshake.
- A window of 8 bits is declined: zlib cannot deflate with it and silently takes 9.

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
"""Extensions named in one handshake; browsers name one or two."""

# Measured with 130 B, 2 KB, 16 KB and 60 KB of JSON, bytes and us: level 1 makes 88, 471, 3306, 12272 in
# 6, 8, 35, 124; level 6 makes 87, 468, 3070, 10778 in 7, 15, 100, 689. A memory level of 8 costs 15 us more
# for every message, and so does a window larger than the message.
_LEVEL: Final = 1
_MEMORY_LEVEL: Final = 5
_LOOK_AHEAD_BYTES: Final = 262  # zlib looks back this much less than its window
_SYNC_TAIL_BYTES: Final = 4  # RFC 7692 section 7.2.1: 00 00 ff ff, taken off
_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_BITS: Final = {str(bits): bits for bits in range(8, 16)}  # no sign, no leading zero
_FLAGS: Final = ("server_no_context_takeover", "client_no_context_takeover")


class ExtensionError(ValueError):
    """Sec-WebSocket-Extensions breaks its grammar; the message says how, without the value."""


class Agreement(NamedTuple):
    """What was agreed on."""

    window_bits: int
    """Of what is sent: WIDE_BITS or NARROW_BITS."""
    response: str
    """The value of Sec-WebSocket-Extensions in the 101."""


def agree(offers: str) -> Agreement | None:
    """The first acceptable offer of permessage-deflate, or None.

    Args:
        offers: The value of Sec-WebSocket-Extensions, all lines joined by ", ".

    Raises:
        ExtensionError: The value breaks RFC 6455 section 9.1, or names too many extensions.
    """
    elements = [element for element in offers.split(",") if element.strip(" \t")]
    if len(elements) > OFFERS_LIMIT:
        raise ExtensionError(f"more than {OFFERS_LIMIT} extensions")
    parsed = [_parse(element) for element in elements]  # all of them: a fault behind a good offer is one too
    for name, parameters in parsed:
        if name == "permessage-deflate" and (agreement := _judge(parameters)) is not None:
            return agreement
    return None


def _parse(element: str) -> tuple[str, list[tuple[str, str | None]]]:
    """One extension: its name and its parameters in order.

    A quoted value must be a token inside, so a comma or semicolon never belongs to one.
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
    return bool(text) and _TOKEN.issuperset(text)


def _judge(parameters: list[tuple[str, str | None]]) -> Agreement | None:
    """An offer of permessage-deflate; None: declined."""
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
    """Whether this content is deflated to the same bytes for both window classes."""
    return len(content) <= 1 << NARROW_BITS


def deflate(content: bytes, window_bits: int) -> bytes:
    """The payload of a compressed message with this content; 6 us for 130 bytes, 8 us for 2 KB.

    Args:
        content: The whole message.
        window_bits: NARROW_BITS or WIDE_BITS.

    Source: RFC 7692 section 7.2.1.
    """
    if is_shared(content):
        bits = NARROW_BITS
    else:
        bits = min(window_bits, (len(content) + _LOOK_AHEAD_BYTES - 1).bit_length())
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -bits, _MEMORY_LEVEL)
    return (compressor.compress(content) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-_SYNC_TAIL_BYTES]
