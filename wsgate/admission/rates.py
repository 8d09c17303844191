"""Messages of one user on all nodes: an allowance leased in batches, so that a message asks nobody.

Pure: the clock is passed in, and whoever grants leases is a callable. A message takes one of its user's
lease; when half of that is used the next one is asked for. The first messages of a user go out on credit, so
that none waits for the bus, and what was used on credit is charged with the next lease. On each shard a user
is ahead of its allowance by an eighth of a second or `BURST_LEAST` messages (by a second's, where that is
less), and pays it back.

A lease is good for a second and starts small, so that many shards do not hold what one of them needs. Users
who rest are forgotten after five to ten seconds; nothing of theirs is lost with that.
"""

from collections.abc import Callable
from typing import Final

__all__ = ["Grant", "UserRates"]

LEASE_S: Final = 1.0
FORGET_S: Final = 5.0
FIRST: Final = 4
"""What the first lease of a user asks for."""
SHARE: Final = 8
"""The largest lease, and the credit of high rates: this part of what a second allows."""
BURST_LEAST: Final = 10
"""So many messages at once pass before the bus has answered, if a second allows as many: what a client says
in one packet behind its welcome."""
SHORT_WAIT_MS: Final = 100
"""For who used up its credit before the bus has answered."""

Grant = Callable[[int, int], None]
"""Told how much is granted and, when nothing is, in how many ms something will be."""

Ask = Callable[[str, int, int, Grant], None]
"""Asks for a lease: user, how much, how much was used on credit, who is told. It may never be told."""


class _Lease:
    __slots__ = ("asked_s", "barred_s", "debt", "left", "until_s", "want")

    def __init__(self) -> None:
        self.left = 0
        self.until_s = 0.0
        self.debt = 0  # used, and not told to the bus
        self.want = 0
        self.asked_s = 0.0  # when the lease was asked for that has not come; 0: none was
        self.barred_s = 0.0  # nothing before


class UserRates:
    """What the users of one shard may still send.

    Args:
        rate_per_s: Messages a user may send per second, > 0.
        ask: Asks the bus for a lease.
        clock: Seconds, for when an answer comes.
    """

    def __init__(self, rate_per_s: int, ask: Ask, clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._most = max(1, rate_per_s // SHARE)
        # The message that requests the first lease passes as well, beside those on credit.
        self._credit = max(self._most, min(rate_per_s, BURST_LEAST) - 1)
        self._young: dict[str, _Lease] = {}
        self._old: dict[str, _Lease] = {}
        self._turned_s = clock()

    @property
    def users(self) -> int:
        """How many are remembered."""
        return len(self._young) + len(self._old)

    def take(self, user: str, now_s: float) -> int:
        """One message of a user: 0 to let it pass, else in how many ms to try again. O(1).

        Args:
            user: Whose.
            now_s: The clock.
        """
        lease = self._young.get(user)
        if lease is None:
            lease = self._find(user, now_s)
        if lease.left and now_s < lease.until_s:
            lease.left -= 1
            if lease.left <= lease.want >> 1 and not lease.asked_s:
                self._want(user, lease, now_s, min(self._most, lease.want * 2))
            return 0
        if now_s < lease.barred_s:
            return int((lease.barred_s - now_s) * 1000) + 1
        if lease.debt >= self._credit:
            # An answer that never comes (the bus was lost) is not waited for.
            if now_s - lease.asked_s > LEASE_S:
                self._want(user, lease, now_s, lease.want)
            return SHORT_WAIT_MS
        lease.debt += 1
        if not lease.asked_s:
            self._want(user, lease, now_s, max(1, min(self._most, FIRST, lease.want >> 1 or FIRST)))
        return 0

    def _find(self, user: str, now_s: float) -> _Lease:
        """A user's lease, from the older half or a new one."""
        if now_s - self._turned_s >= FORGET_S:
            self._young, self._old = {}, self._young
            self._turned_s = now_s
        lease = self._old.pop(user, None) or _Lease()
        self._young[user] = lease
        return lease

    def _want(self, user: str, lease: _Lease, now_s: float, want: int) -> None:
        debt, lease.debt = lease.debt, 0
        lease.want = want
        lease.asked_s = now_s
        self._ask(user, want, debt, lambda granted, wait_ms: self._on_grant(lease, granted, wait_ms))

    def _on_grant(self, lease: _Lease, granted: int, wait_ms: int) -> None:
        now_s = self._clock()
        lease.asked_s = 0.0
        if granted:
            rest = lease.left if now_s < lease.until_s else 0
            lease.left = rest + granted
            lease.until_s = now_s + LEASE_S
        else:
            lease.barred_s = now_s + wait_ms / 1000
