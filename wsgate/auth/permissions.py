"""What a token lets its bearer do: channels it brings, patterns it may subscribe and publish to.

Owns the grammar of patterns and the sharing of equal sets. Must not know namespaces: what a channel's
own rules allow is the shard's to add.

A pattern is a full channel name, or a prefix ending in one `*`. It never reaches an inbox, whose name
on the bus starts with `@`: not even `*` does.

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
"""Bytes of UTF-8 in a channel name or pattern, at most."""

# Control characters (Cc), white space as Unicode has it, braces (hash tags of Redis Cluster), and
# halves of surrogate pairs, which no UTF-8 has.
_FORBIDDEN: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\s{}\ud800-\udfff]")


def is_channel_name(name: str) -> bool:
    """Whether a client may name a channel so (`@me` aside): 1-200 bytes and no odd character."""
    return (
        0 < len(name) <= CHANNEL_LIMIT_BYTES
        and name[0] != "@"
        and not _FORBIDDEN.search(name)
        and len(name.encode()) <= CHANNEL_LIMIT_BYTES
    )


def is_pattern(text: str) -> bool:
    """Whether this is a channel name whose only `*`, if any, is its last character."""
    return "*" not in text[:-1] and is_channel_name(text)


_NO_NAMES: Final[frozenset[str]] = frozenset()  # each empty set is an object of its own, of 216 bytes


def _in_order(patterns: Iterable[str]) -> tuple[str, ...]:
    """Sorted, each once: how equal sets become equal tuples."""
    return tuple(sorted(set(patterns)))


@dataclass(frozen=True, slots=True)
class Permissions:
    """What one token allows. Equal sets are equal however their claims were ordered.

    Args:
        channels: Names to subscribe on connect, in this order.
        subscribe: Patterns.
        publish: Patterns.

    Raises:
        ValueError: Something is no name, or no pattern.
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
        put = object.__setattr__  # the dataclass is frozen for everybody else
        put(self, "channels", tuple(dict.fromkeys(self.channels)))
        for claim in ("subscribe", "publish"):
            patterns = _in_order(getattr(self, claim))
            put(self, claim, patterns)
            names = frozenset(each for each in patterns if each[-1] != "*")
            put(self, f"_{claim}_names", names or _NO_NAMES)
            put(self, f"_{claim}_prefixes", tuple(each[:-1] for each in patterns if each[-1] == "*"))

    def may_subscribe(self, channel: str) -> bool:
        """Whether a `subscribe` pattern matches this channel; never an inbox."""
        if channel.startswith("@"):
            return False
        return channel in self._subscribe_names or channel.startswith(self._subscribe_prefixes)

    def may_publish(self, channel: str) -> bool:
        """Whether a `publish` pattern matches this channel; never an inbox."""
        if channel.startswith("@"):
            return False
        return channel in self._publish_names or channel.startswith(self._publish_prefixes)


NO_PERMISSIONS: Final = Permissions((), (), ())
"""A token without claims about channels, and a client without a token."""


class PermissionTable:
    """One shared object for each set of permissions that is held, and the memory of all of them.

    A set is in the table as long as somebody holds it: a connection, or the cache of verified tokens. So the
    table is as small as its holders are few, and its account falls when connections leave.

    Attributes:
        bytes_held: Estimated memory of the sets that are held; every set once, however many hold it.
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
        """The set of these claims: the shared one where somebody holds it, else a new one.

        O(names). Names are checked when the set is new.

        Raises:
            ValueError: Something is no name, or no pattern.
        """
        key = (tuple(dict.fromkeys(channels)), _in_order(subscribe), _in_order(publish))
        if not any(key):
            return NO_PERMISSIONS
        shared = self._sets.get(key)
        return Permissions(*key) if shared is None else shared.permissions

    def hold(self, permissions: Permissions) -> Permissions:
        """Register one more holder, who is to keep the shared set and to release it once. O(names)."""
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
        """Register that one holder is gone; with the last one the set leaves the table. O(names)."""
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
    """A set that is held, its size, and by how many it is held."""

    __slots__ = ("holders", "permissions", "size_bytes")

    def __init__(self, permissions: Permissions) -> None:
        self.permissions = permissions
        self.size_bytes = _size_bytes(permissions)
        self.holders = 0


class PermissionNumbers:
    """Small numbers for permission sets, so that a packed record can refer to one.

    A number is good while it is held; each `hold` needs one `release`.

    Args:
        table: Where the sets are held meanwhile.

    Attributes:
        bytes_held: What the held sets take, roughly; every set once, even if others hold it too.
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
        """The number of this set, held once more. O(names)."""
        number = self._numbers.get(permissions)
        if number is None:
            number = self._take(permissions)
        self._holders[number] += 1
        return number

    def clear(self) -> None:
        """Release every set."""
        for permissions in self._numbers:
            self._table.release(permissions)
        self._numbers, self._sets, self._holders, self._free = {}, [], [], []
        self.bytes_held = 0

    def release(self, number: int) -> None:
        """One holder less; the last one frees the number for another set."""
        self._holders[number] -= 1
        if self._holders[number] == 0:
            permissions = self._sets[number]
            del self._numbers[permissions]
            self._table.release(permissions)
            self.bytes_held -= _size_bytes(permissions)
            self._sets[number] = NO_PERMISSIONS
            self._free.append(number)

    def _take(self, permissions: Permissions) -> int:
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


# A set without names: its object, five tuples, entries of a dict and of two lists, the number.
_SET_BYTES: Final = 450


def _size_bytes(permissions: Permissions) -> int:
    # A pattern twice: as it is and as a prefix, or as it is and in the table of the set of names.
    patterns = (*permissions.subscribe, *permissions.publish)
    return (
        _SET_BYTES
        + sum(getsizeof(name) + 8 for name in permissions.channels)
        + sum(2 * (getsizeof(pattern) + 8) for pattern in patterns)
    )
