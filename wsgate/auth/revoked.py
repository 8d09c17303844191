"""Keep the revocations of tokens: for each user the time before which the user's tokens are not valid.

The number of users is bounded. When there is no room for another user, the earliest revocation is removed,
and its time becomes a limit for all users: no token with an earlier `iat` is accepted. For tokens without
`iat` the removed revocation is lost, because refusing them all would lock out every user of an issuer that
writes no `iat`. `RevokedUsers.revoke` returns whether this has happened, so that the caller can warn the
operator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from types import MappingProxyType
from typing import Final

__all__ = ["NOBODY", "RevokedUsers"]

_USER_BYTES: Final = 180
"""Memory of one user without the bytes of the name: header of the text, time, entries of table and heap."""


class RevokedUsers:
    """The revocations of at most `limit_users` users, each with the latest time.

    Args:
        limit_users: The most users, >= 1.

    Attributes:
        all_before_s: Tokens of every user that were issued before this time are refused; 0: no revocation was
            removed for lack of room yet.
    """

    __slots__ = ("_before", "_by_time", "_limit_users", "_name_bytes", "all_before_s")

    def __init__(self, limit_users: int) -> None:
        self._limit_users = limit_users
        self._before: dict[str, float] = {}
        self._by_time: list[tuple[float, str]] = []  # a heap; replaced entries are skipped
        self._name_bytes = 0
        self.all_before_s = 0.0

    def __len__(self) -> int:
        return len(self._before)

    def __contains__(self, user: str) -> bool:
        return user in self._before

    @property
    def bytes_estimate(self) -> int:
        """The estimated memory of all entries in bytes. O(1)."""
        return self._name_bytes + len(self._before) * _USER_BYTES

    @property
    def users(self) -> Mapping[str, float]:
        """A read-only view of all users and their times in Unix time; it follows later changes."""
        return MappingProxyType(self._before)

    def before_s(self, user: str) -> float | None:
        """Return the time before which this user's tokens are revoked; None: the user has no entry."""
        return self._before.get(user)

    def is_revoked(self, user: str, iat: float | None) -> bool:
        """Decide whether a token of this user with this time of issue is revoked.

        Most issuers write `iat` in whole seconds, rounded down. Such an `iat` is compared with the whole
        second of the revocation. Otherwise a token that was issued after the revocation, in the same second,
        would be refused permanently. So a token from before the revocation, in the same second, stays valid
        too.

        Args:
            user: The claim `sub`.
            iat: The claim `iat`; None: the token has none. Its age is unknown then, so it is revoked if the
                user has an entry.
        """
        before_s = self._before.get(user)
        if iat is None:
            return before_s is not None
        if before_s is None and not self.all_before_s:
            return False
        latest_s = max(before_s or 0.0, self.all_before_s)
        is_whole = isinstance(iat, int) or iat.is_integer()
        return iat < (math.floor(latest_s) if is_whole else latest_s)

    def revoke(self, user: str, before_s: float) -> bool:
        """Revoke a user's tokens that were issued before a time. Amortised O(log users).

        The latest time of a user counts, so revocations may come repeatedly and in any order.

        Returns:
            Whether the revocation with the earliest time was removed for lack of room: see `all_before_s`.
        """
        known_s = self._before.get(user)
        if known_s is not None and before_s <= known_s:
            return False
        if known_s is None:
            self._name_bytes += len(user.encode("utf-8", "surrogatepass"))
        self._before[user] = before_s
        heappush(self._by_time, (before_s, user))
        if len(self._by_time) > 2 * len(self._before) + 64:
            self._by_time = [(time_s, each) for each, time_s in self._before.items()]
            heapify(self._by_time)
        if len(self._before) <= self._limit_users:
            return False
        self.all_before_s = max(self.all_before_s, self._drop_earliest())
        return True

    def forget(self, user: str) -> None:
        """Remove the revocation of one user, if there is one. Its entry in the heap is skipped later."""
        if self._before.pop(user, None) is not None:
            self._name_bytes -= len(user.encode("utf-8", "surrogatepass"))

    def forget_before(self, time_s: float) -> int:
        """Remove all revocations whose time is earlier than `time_s`; return how many users that were."""
        count = 0
        while self._by_time and self._by_time[0][0] < time_s:
            before_s, user = self._by_time[0]
            if self._before.get(user) == before_s:
                self._drop_earliest()
                count += 1
            else:
                heappop(self._by_time)
        return count

    def _drop_earliest(self) -> float:
        """Remove the revocation with the earliest time, and return this time."""
        while True:
            before_s, user = heappop(self._by_time)
            if self._before.get(user) == before_s:
                del self._before[user]
                self._name_bytes -= len(user.encode("utf-8", "surrogatepass"))
                return before_s


NOBODY: Final = RevokedUsers(1)
"""A set without revocations, for callers that have none. Never add to it."""
