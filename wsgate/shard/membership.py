"""Registers this shard on the bus, and its replies to control commands."""

from collections.abc import Callable
from typing import Final

from wsgate.bus import BusPublisher, Names, hold_lease

__all__ = ["REPLY_TTL_S", "Membership"]

LEASE_S: Final = 60
RENEW_S: Final = 15.0
REPLY_TTL_S: Final = 60
"""For so long the bus remembers that a shard has carried out a command; its sender waits much shorter."""


class Membership:
    """One shard in the set of all shards on the bus.

    Whoever sends a control command waits for the reply of every member. So a shard is a member while it
    lives, also while it is stopped or has lost its subscriber: the command is then known not to have reached
    it.

    Args:
        publisher: The way to the bus.
        names: What things are called there.
        label: What this shard is called: `<node>/<number>`.
    """

    def __init__(self, publisher: BusPublisher, names: Names, label: str) -> None:
        self._publisher: Final = publisher
        self._names: Final = names
        self._label: Final = label
        self._renewed_s: float | None = None  # None: renew with the next tick
        self._has_left = False

    def on_up(self) -> None:
        """The bus is there, perhaps an empty one: join with the next tick."""
        self._renewed_s = None

    def tick(self, now_s: float) -> None:
        """Renew the lease when it is time.

        Args:
            now_s: A monotonic clock.
        """
        if self._has_left or (self._renewed_s is not None and now_s - self._renewed_s < RENEW_S):
            return
        self._renewed_s = now_s
        hold_lease(self._publisher, self._names.shards(), self._label, LEASE_S * 1000, self._on_renewed)

    def _on_renewed(self, outcome: str, _: bytes) -> None:
        if outcome:
            self._renewed_s = None

    def reply(self, request: str) -> None:
        """Register that this shard has carried out a command."""
        key = self._names.replies(request)
        hold_lease(self._publisher, key, self._label, REPLY_TTL_S * 1000, _ignore)

    def leave(self, done: Callable[[], None]) -> None:
        """Remove this shard from the set, so that no control call waits for it; then call `done`."""
        self._has_left = True
        hold_lease(self._publisher, self._names.shards(), self._label, 0, lambda *_: done())


def _ignore(outcome: str, text: bytes) -> None:
    """A reply that is lost makes the command look undone, and repeating it is harmless."""
