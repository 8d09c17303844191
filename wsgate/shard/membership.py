"""Register this shard on the bus as one that control commands reach, and register its replies to them."""

from collections.abc import Callable
from typing import Final

from wsgate.bus import BusPublisher, Names, hold_lease

__all__ = ["REPLY_TTL_S", "Membership"]

LEASE_S: Final = 60
RENEW_S: Final = 15.0
REPLY_TTL_S: Final = 60
"""How long the bus keeps the reply of a shard to a command; the sender waits much shorter."""


class Membership:
    """Keeps one shard a member of the set of all shards on the bus.

    A backend that sends a control command waits for the reply of every member. So a shard stays a member
    until its lease ends, also if it is suspended or has lost its subscriber: its reply is then missed.

    Args:
        publisher: Sends commands to the bus.
        names: The names of keys on the bus.
        label: The name of this shard in the set: `<node>/<number>`.
    """

    def __init__(self, publisher: BusPublisher, names: Names, label: str) -> None:
        self._publisher: Final = publisher
        self._names: Final = names
        self._label: Final = label
        self._renewed_s: float | None = None  # None: renew with the next tick
        self._has_left = False

    def on_up(self) -> None:
        """Renew the lease with the next tick, because the bus may be a new, empty one."""
        self._renewed_s = None

    def tick(self, now_s: float) -> None:
        """Renew this shard's lease in the set every `RENEW_S` seconds, and after a failure at once.

        Args:
            now_s: A monotonic clock.
        """
        if self._has_left or (self._renewed_s is not None and now_s - self._renewed_s < RENEW_S):
            return
        self._renewed_s = now_s
        hold_lease(self._publisher, self._names.shards(), self._label, LEASE_S * 1000, self._on_renewed)

    def _on_renewed(self, outcome: str, _: bytes) -> None:
        """Let the next tick try again if the bus did not take the renewal."""
        if outcome:
            self._renewed_s = None

    def reply(self, request: str) -> None:
        """Register on the bus that this shard has carried out the command of a request."""
        key = self._names.replies(request)
        hold_lease(self._publisher, key, self._label, REPLY_TTL_S * 1000, _ignore)

    def leave(self, done: Callable[[], None]) -> None:
        """Remove this shard from the set, so that no backend waits for its reply; then call `done`."""
        self._has_left = True
        hold_lease(self._publisher, self._names.shards(), self._label, 0, lambda *_: done())


def _ignore(outcome: str, text: bytes) -> None:
    """Ignore the outcome: a lost reply makes a command seem not carried out, and repeating it is harmless."""
