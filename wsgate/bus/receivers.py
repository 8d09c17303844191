"""Whom a publication can reach: which names are valid, and how large its data may be.

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
"""In a table of limits: every namespace that has no row of its own. No namespace can be called so."""

_DEFAULT: Final = "default"


def is_channel(name: str) -> bool:
    """Whether somebody can be subscribed to this name; `@user` is the inbox of a user."""
    if name.startswith(INBOX_MARK):
        return is_user(name.removeprefix(INBOX_MARK))
    if not 1 <= _size_bytes(name) <= CHANNEL_LIMIT_BYTES:
        return False
    return not any(_is_control(sign) or sign.isspace() or sign in "{}" for sign in name)


def is_user(user: str) -> bool:
    """Whether the claim `sub` of a token can hold this text."""
    return 1 <= _size_bytes(user) <= USER_LIMIT_BYTES and not any(map(_is_control, user))


def publish_limit_bytes(limits: Mapping[str, int], channel: str) -> int | None:
    """The largest data that the channel takes, in bytes.

    Args:
        limits: The setting `max_publish` by namespace, in bytes, perhaps with `ANY_NAMESPACE`.
        channel: A valid name. An inbox belongs to no namespace and takes what the strictest one takes.

    Returns:
        Bytes, or None when there is no such namespace.
    """
    if channel.startswith(INBOX_MARK):
        return min(limits.values())
    namespace, colon, _ = channel.partition(":")
    return limits.get(namespace if colon else _DEFAULT, limits.get(ANY_NAMESPACE))


def _size_bytes(text: str) -> int:
    """The size of a text in UTF-8; 0 when it holds half a surrogate pair, which UTF-8 cannot."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0


def _is_control(sign: str) -> bool:
    return unicodedata.category(sign) == "Cc"
