"""Keep which connections wait for an unconfirmed channel, and how many such channels each connection causes.

A channel is unconfirmed from the SUBSCRIBE of the shard until the bus has answered it. The hub decides what
is requested and what an answer means; here are only its two tables of connections, which are empty in a shard
at rest.
"""

from collections import deque
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Final

from wsgate.bus import Covers

__all__ = ["NOTIFIED_PER_PASS", "Confirmation", "UnconfirmedCharges", "Waiter", "Waiters"]

NOTIFIED_PER_PASS: Final = 512
"""Connections whose waiters are called in one pass: about 2 ms."""


class Confirmation(IntEnum):
    """The outcome of a subscription that waited for the bus."""

    LOST = 0  # the bus was lost before it confirmed the subscription
    LIVE = 1  # the bus confirmed it
    REFUSED = 2  # the bus forbids the channel


Waiter = Callable[[bytes, Confirmation], None]
"""Called with the name of a channel and the outcome of the subscription."""


class Waiters:
    """The callbacks of connections that wait until the bus confirms a channel, by channel and connection."""

    def __init__(self) -> None:
        self._by_channel: dict[bytes, dict[int, list[Waiter]]] = {}
        self._by_connection: dict[int, set[bytes]] = {}  # the same channels, to forget a connection
        self._lost: deque[tuple[bytes, int]] = deque()  # channels and connections to be notified of a loss

    def __len__(self) -> int:
        return len(self._by_channel)

    def add(self, conn: int, name: bytes, waiter: Waiter) -> None:
        """Call `waiter` when the outcome for a channel is known; a connection may have several."""
        self._by_channel.setdefault(name, {}).setdefault(conn, []).append(waiter)
        self._by_connection.setdefault(conn, set()).add(name)

    def count(self, name: bytes) -> int:
        """Return how many connections wait for a channel, with those whose end is not handled yet."""
        return len(self._by_channel.get(name, ()))

    def has(self, conn: int, name: bytes) -> bool:
        """Return whether a connection waits for a channel."""
        return conn in self._by_channel.get(name, ())

    def connections(self, name: bytes) -> Iterable[int]:
        """Return the connections that wait for a channel, among them those whose end is not handled yet."""
        return self._by_channel.get(name, ())

    def drop(self, conn: int, name: bytes) -> list[Waiter]:
        """Take the waiters of a connection for one channel out of the table, and return them uncalled."""
        waiting = self._by_channel.get(name)
        if waiting is None:
            return []
        taken = waiting.pop(conn, [])
        if not waiting:
            del self._by_channel[name]
        if taken:
            names = self._by_connection[conn]
            names.discard(name)
            if not names:
                del self._by_connection[conn]
        return taken

    def forget(self, conn: int) -> None:
        """Drop every waiter of a connection that is closed."""
        if self._by_connection:
            for name in list(self._by_connection.get(conn, ())):
                self.drop(conn, name)

    def notify(self, name: bytes, confirmation: Confirmation) -> bool:
        """Call the waiters of up to `NOTIFIED_PER_PASS` connections; return whether all of them were called.

        The newest connection comes first, because the last entry of a dictionary is found in constant time.
        """
        for _ in range(NOTIFIED_PER_PASS):
            waiting = self._by_channel.get(name)
            if waiting is None:
                return True
            self._call(next(reversed(waiting)), name, confirmation)
        return name not in self._by_channel

    def _call(self, conn: int, name: bytes, confirmation: Confirmation) -> None:
        for waiter in self.drop(conn, name):
            waiter(name, confirmation)

    # --- loss of the bus ------------------------------------------------------------------------------

    def lose(self, covers: Covers | None) -> None:
        """Queue every waiter of the channels that a lost connection covered, to be notified of the loss."""
        self._lost.extend(
            (name, conn)
            for name, waiting in self._by_channel.items()
            if covers is None or covers(name)
            for conn in waiting
        )

    def lose_channel(self, name: bytes) -> None:
        """Queue every waiter of one channel, to be notified of a loss."""
        self._lost.extend((name, conn) for conn in self._by_channel.get(name, ()))

    def cancel_losses(self, covers: Covers | None) -> None:
        """Drop the notices of loss that were not given yet for the channels of a connection that is back."""
        self._lost = deque(each for each in self._lost if covers is not None and not covers(each[0]))

    @property
    def has_losses(self) -> bool:
        """Whether waiters are still to be notified of a loss."""
        return bool(self._lost)

    def notify_losses(self) -> None:
        """Call up to `NOTIFIED_PER_PASS` connections' waiters with the loss of their channel."""
        for _ in range(min(len(self._lost), NOTIFIED_PER_PASS)):
            name, conn = self._lost.popleft()
            self._call(conn, name, Confirmation.LOST)


class UnconfirmedCharges:
    """Charge each unconfirmed channel to the connection that it was requested for.

    The charge stays when the connection leaves the channel, because the bus has still to answer.
    """

    def __init__(self) -> None:
        self._conns: dict[bytes, int] = {}  # the connection that is charged, by channel
        self._counts: dict[int, int] = {}  # channels that are charged to it, by connection

    def __len__(self) -> int:
        return len(self._conns) + len(self._counts)

    def count(self, conn: int) -> int:
        """Return how many unconfirmed channels are charged to a connection."""
        return self._counts.get(conn, 0)

    def charge(self, conn: int, name: bytes) -> None:
        """Charge a channel to a connection, and to no other one any more."""
        self.release(name)
        self._conns[name] = conn
        self._counts[conn] = self._counts.get(conn, 0) + 1

    def release(self, name: bytes) -> None:
        """End the charge for a channel that was answered or that no answer will come for."""
        conn = self._conns.pop(name, None)
        if conn is None:
            return
        left = self._counts.get(conn, 0) - 1
        if left > 0:
            self._counts[conn] = left
        else:
            self._counts.pop(conn, None)

    def release_covered(self, covers: Covers | None) -> None:
        """End the charges for all channels that a lost connection covered; None: for every channel."""
        if covers is None:
            self._conns.clear()
            self._counts.clear()
        else:
            for name in [name for name in self._conns if covers(name)]:
                self.release(name)

    def forget(self, conn: int) -> None:
        """Drop the count of a connection that is closed."""
        if self._counts:
            self._counts.pop(conn, None)
