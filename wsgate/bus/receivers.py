"""Check the target of a publication: whether its channel name is valid, and how large its data may be. Pure.

The API and the command line share these rules. They refuse a publication that the shards would drop, so that
the publisher receives the refusal.

Source: protocols/bus/v1/spec.md, "Names".
"""

import unicodedata
from collections.abc import Mapping
from typing import Final

from wsgate.bus.names import INBOX_MARK

__all__ = ["ANY_NAMESPACE", "is_channel", "is_user", "publish_limit_bytes"]

CHANNEL_LIMIT_BYTES: Final = 200
USER_LIMIT_BYTES: Final = 128

ANY_NAMESPACE: Final = "*"
"""The key of a table of limits for all namespaces without a row. No namespace can have this name."""

_DEFAULT: Final = "default"


def is_channel(name: str) -> bool:
    """Check whether a text is a valid channel name or the inbox `@user` of a valid user."""
    if name.startswith(INBOX_MARK):
        return is_user(name.removeprefix(INBOX_MARK))
    if not 1 <= _size_bytes(name) <= CHANNEL_LIMIT_BYTES:
        return False
    return not any(_is_control(sign) or sign.isspace() or sign in "{}" for sign in name)


def is_user(user: str) -> bool:
    """Check whether a text is a valid user id, as in the claim `sub` of a token."""
    return 1 <= _size_bytes(user) <= USER_LIMIT_BYTES and not any(map(_is_control, user))


def publish_limit_bytes(limits: Mapping[str, int], channel: str) -> int | None:
    """Return the largest data that one publication to a channel may have, in bytes.

    Args:
        limits: The setting `max_publish` of each namespace, in bytes, perhaps with `ANY_NAMESPACE`.
        channel: A valid channel name. An inbox belongs to no namespace, so the smallest limit holds for it.

    Returns:
        The limit in bytes, or None when the namespace of the channel is not configured.
    """
    if channel.startswith(INBOX_MARK):
        return min(limits.values())
    namespace, colon, _ = channel.partition(":")
    return limits.get(namespace if colon else _DEFAULT, limits.get(ANY_NAMESPACE))


def _size_bytes(text: str) -> int:
    """Return the size of a text in UTF-8; 0 when it has a lone surrogate, which UTF-8 cannot encode."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0


def _is_control(sign: str) -> bool:
    return unicodedata.category(sign) == "Cc"
