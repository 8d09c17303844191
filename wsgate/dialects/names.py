"""Check the channel names in the commands of clients. Source: protocols/client/v1/spec.md, "Channels"."""

import re
from typing import Final

__all__ = ["CHANNEL_LIMIT_BYTES", "is_channel"]

CHANNEL_LIMIT_BYTES: Final = 200

# No control characters (C0, DEL, C1), no whitespace of any script, no braces (Redis Cluster's hash tag), and
# no "@" at the start, which marks an inbox. \s is the whitespace of Unicode, with U+0085 and U+2028.
_CHANNEL: Final = re.compile(r"(?!@)[^\x00-\x1f\x7f-\x9f\s{}]+")


def is_channel(name: str, limit_bytes: int = CHANNEL_LIMIT_BYTES) -> bool:
    """Whether a client may use this text as a channel name; False for `@me`, the alias of an inbox.

    Args:
        name: The text from a command.
        limit_bytes: The most bytes of its UTF-8 form; the default is the limit of the protocol.
    """
    if len(name) > limit_bytes or _CHANNEL.fullmatch(name) is None:
        return False
    try:
        return len(name.encode()) <= limit_bytes
    except UnicodeEncodeError:  # a lone surrogate
        return False
