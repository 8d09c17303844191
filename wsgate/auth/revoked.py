"""Revoked tokens: users, each with the time before which the user's tokens must not have been issued.

The number of users is bounded. A revocation that no longer fits is not lost in silence: it is taken over by
one time for all users. No token whose `iat` is earlier than that time is accepted. Only for tokens
without `iat` such a revocation is lost, because refusing them all would lock out every user of an issuer that
writes no `iat`. The caller is informed of both and warns the operator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from types import MappingProxyType
from typing import Final

__all__ = ["NOBODY", "RevokedUsers"]

_USER_BYTES: Final = 180
"""One user beside the bytes of the name: header of the text, the time, entries of table and heap."""


class RevokedUsers:
    """The revocations of each user, at most `limit_users` of them.

    Args:
        limit_users: Most users remembered, >= 1.

    Attributes:
        all_before_s: Tokens of any user issued before this time are refused; 0: no user was displaced yet.
    """

    __slots__ = ("_before", "_by_time", "_limit_users", "_name_bytes", "all_before_s")

    def __init__(self, limit_users: int) -> None:
        self._limit_users = limit_users
        self._before: dict[str, float] = {}
        self._by_time: list[tuple[float, str]] = []  # a heap; entries that were overtaken are skipped
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
        """Each user with its time; a live view that only reads."""
        return MappingProxyType(self._before)

    def before_s(self, user: str) -> float | None:
        """The time before which this user's tokens are revoked; None: no entry."""
        return self._before.get(user)

    def is_revoked(self, user: str, iat: float | None) -> bool:
        """Whether a token of this user that was issued at a time is revoked.

        Most issuers write `iat` in whole seconds, rounded down. Such an `iat` is compared with the second of
        the revocation: a token of that same second may have been issued after it, and would be refused for
        ever. So a token of the same second, issued before the revocation, stays valid.

        Args:
            user: `sub`.
            iat: The claim; None: the token has none. It may be of any age then, and is refused if its user
                has an entry.
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
        """Revoke a user's tokens that were issued before a time. O(log users).

        Of several times the latest counts, so that revocations may come repeated and in any order.

        Returns:
            Whether another user, the one with the earliest time, was displaced: see `all_before_s`.
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
        """Forget the revocation of one user. Its entry in the heap is skipped later."""
        if self._before.pop(user, None) is not None:
            self._name_bytes -= len(user.encode("utf-8", "surrogatepass"))

    def forget_before(self, time_s: float) -> int:
        """Forget revocations of tokens issued before a time; how many users that were."""
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
        """Forget the user with the earliest time; that time."""
        while True:
            before_s, user = heappop(self._by_time)
            if self._before.get(user) == before_s:
                del self._before[user]
                self._name_bytes -= len(user.encode("utf-8", "surrogatepass"))
                return before_s


NOBODY: Final = RevokedUsers(1)
"""No revocations. Nothing is ever added to it."""
