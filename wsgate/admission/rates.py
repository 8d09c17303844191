"""Limits the messages of a user per second on all nodes, with an allowance that each shard leases in batches.

Pure: the clock is passed in, and a callable requests leases from the bus. A message takes one unit of its
user's lease, so most messages need no request. When half of a lease is used, the next one is requested. The
first messages of a user are accepted on credit, so that they do not wait for the bus, and the credit that was
used is charged with the next lease. So on each shard a user can be ahead of its allowance by an eighth of a
second or by `BURST_LEAST` messages (at most by one second's worth), which is charged afterwards.

A lease is valid for a second and starts small, so that many shards do not reserve units that one of them
needs. A user without messages is forgotten after five to ten seconds, which loses nothing of its allowance.
"""

from collections.abc import Callable
from typing import Final

__all__ = ["Grant", "UserRates"]

LEASE_S: Final = 1.0
FORGET_S: Final = 5.0
FIRST: Final = 4
"""The most messages that the first lease of a user requests."""
SHARE: Final = 8
"""The largest lease, and the credit at high rates, is 1/8 of the messages allowed per second."""
BURST_LEAST: Final = 10
"""The messages that are accepted before the first reply of the bus, if the rate per second allows as many: a
client sends about this many in one packet after its welcome."""
SHORT_WAIT_MS: Final = 100
"""The waiting time for a user whose credit is used up before the bus has replied."""

Grant = Callable[[int, int], None]
"""Is called with the number of granted messages and, if that is 0, with the ms until some are available."""

Ask = Callable[[str, int, int, Grant], None]
"""Requests a lease: user, messages wanted, messages used on credit, callback. The callback may never run."""


class _Lease:
    """The lease of one user on this shard, with the messages used on credit that are not charged yet."""

    __slots__ = ("asked_s", "barred_s", "debt", "left", "until_s", "want")

    def __init__(self) -> None:
        self.left = 0
        self.until_s = 0.0
        self.debt = 0  # messages used on credit and not yet charged at the bus
        self.want = 0
        self.asked_s = 0.0  # when the pending lease was requested; 0: no request is pending
        self.barred_s = 0.0  # no message is accepted before this time


class UserRates:
    """The leases of all users of one shard, from which each message of a user takes one unit.

    Args:
        rate_per_s: Messages that a user may send per second, > 0.
        ask: Requests a lease from the bus.
        clock: Returns the time in seconds, for replies of the bus.
    """

    def __init__(self, rate_per_s: int, ask: Ask, clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._most = max(1, rate_per_s // SHARE)
        # The message that requests the first lease is accepted in addition to the credit.
        self._credit = max(self._most, min(rate_per_s, BURST_LEAST) - 1)
        self._young: dict[str, _Lease] = {}
        self._old: dict[str, _Lease] = {}
        self._turned_s = clock()

    @property
    def users(self) -> int:
        """Return the number of users whose lease is stored."""
        return len(self._young) + len(self._old)

    def take(self, user: str, now_s: float) -> int:
        """Take one message from the lease of a user; return 0, or in how many ms to try again. O(1).

        Args:
            user: The user that sent the message.
            now_s: The present time of `clock`.
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
            # Do not wait for ever for a reply: the connection to the bus may be lost.
            if now_s - lease.asked_s > LEASE_S:
                self._want(user, lease, now_s, lease.want)
            return SHORT_WAIT_MS
        lease.debt += 1
        if not lease.asked_s:
            self._want(user, lease, now_s, max(1, min(self._most, FIRST, lease.want >> 1 or FIRST)))
        return 0

    def _find(self, user: str, now_s: float) -> _Lease:
        """Return a user's lease, from the older generation or new, and begin a generation if it is time."""
        if now_s - self._turned_s >= FORGET_S:
            self._young, self._old = {}, self._young
            self._turned_s = now_s
        lease = self._old.pop(user, None) or _Lease()
        self._young[user] = lease
        return lease

    def _want(self, user: str, lease: _Lease, now_s: float, want: int) -> None:
        """Request a lease of `want` messages for a user, and charge its debt with the request."""
        debt, lease.debt = lease.debt, 0
        lease.want = want
        lease.asked_s = now_s
        self._ask(user, want, debt, lambda granted, wait_ms: self._on_grant(lease, granted, wait_ms))

    def _on_grant(self, lease: _Lease, granted: int, wait_ms: int) -> None:
        """Add granted messages to a lease, or bar its user until the bus has some again."""
        now_s = self._clock()
        lease.asked_s = 0.0
        if granted:
            rest = lease.left if now_s < lease.until_s else 0
            lease.left = rest + granted
            lease.until_s = now_s + LEASE_S
        else:
            lease.barred_s = now_s + wait_ms / 1000
