"""Which names a channel can have. Source: protocols/client/v1/spec.md, "Channels"."""

import re
from typing import Final

__all__ = ["CHANNEL_LIMIT_BYTES", "is_channel"]

CHANNEL_LIMIT_BYTES: Final = 200

# No control characters (C0, DEL, C1), no whitespace of any script, no braces (Redis Cluster's hash tag),
# no "@" in front: that is where inboxes live. \s is Unicode's whitespace, which U+0085 and U+2028 are too.
_CHANNEL: Final = re.compile(r"(?!@)[^\x00-\x1f\x7f-\x9f\s{}]+")


def is_channel(name: str, limit_bytes: int = CHANNEL_LIMIT_BYTES) -> bool:
    """Whether a client may say this name; `@me` is no channel's name but a way to say one.

    Args:
        name: What came from the wire.
        limit_bytes: Of its UTF-8 form; the protocol's own limit by default.
    """
    if len(name) > limit_bytes or _CHANNEL.fullmatch(name) is None:
        return False
    try:
        return len(name.encode()) <= limit_bytes
    except UnicodeEncodeError:  # half a surrogate pair
        return False
