"""Decide which channels a token allows: names subscribed on connect, and patterns for other requests.

This module has the grammar of patterns and shares equal sets of permissions. The rules of namespaces are not
here; the shard checks them in addition.

A pattern is a full channel name, or a prefix followed by one `*`. No pattern matches an inbox, whose name on
the bus starts with `@`; not even `*` does.

Source: protocols/client/v1/spec.md, "Permissions".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from sys import getsizeof
from typing import Final

__all__ = [
    "CHANNEL_LIMIT_BYTES",
    "NO_PERMISSIONS",
    "PermissionNumbers",
    "PermissionTable",
    "Permissions",
    "is_channel_name",
    "is_pattern",
]

CHANNEL_LIMIT_BYTES: Final = 200
"""The most bytes of UTF-8 in a channel name or pattern."""

# Control characters (Cc), the white space of Unicode, braces (hash tags of Redis Cluster), and lone
# surrogates, which UTF-8 cannot encode.
_FORBIDDEN: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\s{}\ud800-\udfff]")


def is_channel_name(name: str) -> bool:
    """Whether a text is a valid channel name: 1 to 200 bytes, no forbidden character, no `@` at the start."""
    return (
        0 < len(name) <= CHANNEL_LIMIT_BYTES
        and name[0] != "@"
        and not _FORBIDDEN.search(name)
        and len(name.encode()) <= CHANNEL_LIMIT_BYTES
    )


def is_pattern(text: str) -> bool:
    """Whether a text is a valid pattern: a channel name with no `*`, or with one as its last character."""
    return "*" not in text[:-1] and is_channel_name(text)


_NO_NAMES: Final[frozenset[str]] = frozenset()  # shared, because each empty set is an object of 216 bytes


def _in_order(patterns: Iterable[str]) -> tuple[str, ...]:
    """Sort patterns and remove duplicates, so that equal sets become equal tuples."""
    return tuple(sorted(set(patterns)))


@dataclass(frozen=True, slots=True)
class Permissions:
    """The permissions of one token. The order of patterns in the claims does not affect equality.

    Args:
        channels: The names of channels to subscribe to on connect, in this order.
        subscribe: The patterns of channels that the client may subscribe to.
        publish: The patterns of channels that the client may publish to.

    Raises:
        ValueError: An entry is not a valid name or pattern.
    """

    channels: tuple[str, ...]
    subscribe: tuple[str, ...]
    publish: tuple[str, ...]
    _subscribe_names: frozenset[str] = field(init=False, repr=False, compare=False)
    _subscribe_prefixes: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _publish_names: frozenset[str] = field(init=False, repr=False, compare=False)
    _publish_prefixes: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for text in self.channels:
            if "*" in text or not is_channel_name(text):
                raise ValueError("not a channel name")
        for text in (*self.subscribe, *self.publish):
            if not is_pattern(text):
                raise ValueError("not a pattern")
        put = object.__setattr__  # the way to set fields of a frozen dataclass
        put(self, "channels", tuple(dict.fromkeys(self.channels)))
        for claim in ("subscribe", "publish"):
            patterns = _in_order(getattr(self, claim))
            put(self, claim, patterns)
            names = frozenset(each for each in patterns if each[-1] != "*")
            put(self, f"_{claim}_names", names or _NO_NAMES)
            put(self, f"_{claim}_prefixes", tuple(each[:-1] for each in patterns if each[-1] == "*"))

    def may_subscribe(self, channel: str) -> bool:
        """Whether a pattern of `subscribe` matches this channel; False for an inbox."""
        if channel.startswith("@"):
            return False
        return channel in self._subscribe_names or channel.startswith(self._subscribe_prefixes)

    def may_publish(self, channel: str) -> bool:
        """Whether a pattern of `publish` matches this channel; False for an inbox."""
        if channel.startswith("@"):
            return False
        return channel in self._publish_names or channel.startswith(self._publish_prefixes)


NO_PERMISSIONS: Final = Permissions((), (), ())
"""The permissions of a token without claims about channels, and of a client without a token."""


class PermissionTable:
    """A table with one shared object for each set of permissions in use, and the memory of all of them.

    Connections and the cache of verified tokens are the holders. A set stays in the table while it has a
    holder, so the memory shrinks when connections close.

    Attributes:
        bytes_held: Estimated memory of the sets in the table, each counted once.
    """

    __slots__ = ("_sets", "bytes_held")

    def __init__(self) -> None:
        self._sets: dict[_Claims, _Shared] = {}
        self.bytes_held = 0

    def __len__(self) -> int:
        return len(self._sets)

    def intern(
        self, channels: Iterable[str], subscribe: Iterable[str], publish: Iterable[str]
    ) -> Permissions:
        """Return the shared set for these claims if the table has it, else a new one that is not registered.

        O(names). Names are checked only for a new set.

        Raises:
            ValueError: An entry is not a valid name or pattern.
        """
        key = (tuple(dict.fromkeys(channels)), _in_order(subscribe), _in_order(publish))
        if not any(key):
            return NO_PERMISSIONS
        shared = self._sets.get(key)
        return Permissions(*key) if shared is None else shared.permissions

    def hold(self, permissions: Permissions) -> Permissions:
        """Register one more holder of a set, and return the shared set, to be released once. O(names)."""
        key = _claims(permissions)
        if not any(key):
            return NO_PERMISSIONS
        shared = self._sets.get(key)
        if shared is None:
            shared = self._sets[key] = _Shared(permissions)
            self.bytes_held += shared.size_bytes
        shared.holders += 1
        return shared.permissions

    def release(self, permissions: Permissions) -> None:
        """Remove one holder of a set, and remove the set from the table with its last holder. O(names)."""
        key = _claims(permissions)
        if not any(key):
            return
        shared = self._sets[key]
        shared.holders -= 1
        if shared.holders == 0:
            del self._sets[key]
            self.bytes_held -= shared.size_bytes


_Claims = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def _claims(permissions: Permissions) -> _Claims:
    return permissions.channels, permissions.subscribe, permissions.publish


class _Shared:
    """A set in the table, with its size in bytes and the number of its holders."""

    __slots__ = ("holders", "permissions", "size_bytes")

    def __init__(self, permissions: Permissions) -> None:
        self.permissions = permissions
        self.size_bytes = _size_bytes(permissions)
        self.holders = 0


class PermissionNumbers:
    """Assign small numbers to sets of permissions, so that a packed record can refer to a set.

    A number is valid while it has a holder; each `hold` needs one `release`.

    Args:
        table: The table in which each numbered set has one holder.

    Attributes:
        bytes_held: Estimated memory of the numbered sets, each once, also if connections hold the same set.
    """

    __slots__ = ("_free", "_holders", "_numbers", "_sets", "_table", "bytes_held")

    def __init__(self, table: PermissionTable) -> None:
        self._table = table
        self._numbers: dict[Permissions, int] = {}
        self._sets: list[Permissions] = []
        self._holders: list[int] = []
        self._free: list[int] = []
        self.bytes_held = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> Permissions:
        return self._sets[number]

    def hold(self, permissions: Permissions) -> int:
        """Return the number of a set, and add one holder of the number. O(names)."""
        number = self._numbers.get(permissions)
        if number is None:
            number = self._take(permissions)
        self._holders[number] += 1
        return number

    def clear(self) -> None:
        """Release every set, so that no number is valid any more."""
        for permissions in self._numbers:
            self._table.release(permissions)
        self._numbers, self._sets, self._holders, self._free = {}, [], [], []
        self.bytes_held = 0

    def release(self, number: int) -> None:
        """Remove one holder of a number; without a holder the number is free for another set."""
        self._holders[number] -= 1
        if self._holders[number] == 0:
            permissions = self._sets[number]
            del self._numbers[permissions]
            self._table.release(permissions)
            self.bytes_held -= _size_bytes(permissions)
            self._sets[number] = NO_PERMISSIONS
            self._free.append(number)

    def _take(self, permissions: Permissions) -> int:
        """Assign a free or a new number to a set, and hold the set in the table."""
        if self._free:
            number = self._free.pop()
        else:
            number = len(self._sets)
            self._sets.append(NO_PERMISSIONS)
            self._holders.append(0)
        permissions = self._sets[number] = self._table.hold(permissions)
        self._numbers[permissions] = number
        self.bytes_held += _size_bytes(permissions)
        return number


# Bytes of a set without names: its object, five tuples, entries of a dict and of two lists, the number.
_SET_BYTES: Final = 450


def _size_bytes(permissions: Permissions) -> int:
    """Estimate the memory of a set of permissions, in bytes."""
    # A pattern is stored twice: as text and as a prefix, or as text and in the hash table of a set of names.
    patterns = (*permissions.subscribe, *permissions.publish)
    return (
        _SET_BYTES
        + sum(getsizeof(name) + 8 for name in permissions.channels)
        + sum(2 * (getsizeof(pattern) + 8) for pattern in patterns)
    )
