"""Deliver publications from the backlog as fast as the outboxes of connections that read allow.

Publications wait while `Reactor.is_full`: in short, while the outbox of a connection that keeps up is more
than half full. So a burst up to the size of the backlog reaches every reader, in order and complete, at the
pace of the readers. A connection whose peer does not read delays no other one.

When the backlog drops its oldest publications, the subscribers of their channels are sent a gap. No
publication is delivered while a confirmation that was received before it still has waiters to notify.
"""

import time
from collections.abc import Callable
from typing import Final, Protocol

from wsgate.bus import Backlog
from wsgate.reactor import Reactor

__all__ = ["Pacer"]

PASS_PUBLICATIONS: Final = 256
"""Publications that one pass delivers at most."""
PASS_S: Final = 0.002
"""Time after which a pass stops to deliver."""
STEP: Final = 16
"""Publications between two readings of the clock: as many as take 1 to 2 ms if each has 64 KiB."""


class Receiver(Protocol):
    """Delivers publications and sends gaps; implemented by `wsgate.shard.hub.Hub`."""

    def on_message(self, name: bytes, data: bytes | None) -> None:
        """Deliver one publication; None: it was larger than the bus reader takes."""

    def on_dropped(self, name: bytes | None) -> None:
        """Notify the subscribers of a channel, or of all (None), that the backlog dropped publications."""

    @property
    def has_gaps(self) -> bool:
        """Whether the walk that marks all channels is under way."""

    def gap_step(self) -> None:
        """Mark the next part of all channels."""


class Pacer:
    """Takes publications out of one shard's backlog and gives them to the hub, a part in each pass.

    Args:
        backlog: The publications that wait.
        receiver: The hub, which delivers them.
        reactor: Reports when outboxes are full.
        on_fault: Called with an exception of the receiver; only that one publication is lost.
    """

    def __init__(
        self, backlog: Backlog, receiver: Receiver, reactor: Reactor, on_fault: Callable[[Exception], None]
    ) -> None:
        self._backlog: Final = backlog
        self._receiver: Final = receiver
        self._reactor: Final = reactor
        self._on_fault: Final = on_fault

    @property
    def is_ready(self) -> bool:
        """Whether a publication or notice waits, and neither full outboxes nor a confirmation stop it."""
        backlog, reactor = self._backlog, self._reactor
        if backlog.is_held or reactor.is_full:
            return False
        return len(backlog) > 0 or backlog.has_lost or self._receiver.has_gaps

    def step(self) -> None:
        """Deliver publications for the time of one pass; call this again soon while `is_ready`."""
        end_s = time.monotonic() + PASS_S
        for count in range(PASS_PUBLICATIONS):
            if not self.is_ready:
                return
            try:
                self._hand_on()
            except Exception as fault:
                self._on_fault(fault)
            if count % STEP == STEP - 1 and time.monotonic() >= end_s:
                return

    def _hand_on(self) -> None:
        """Let the hub do one step of its walk, else notify of one loss, else deliver one publication."""
        backlog, receiver = self._backlog, self._receiver
        if receiver.has_gaps:
            receiver.gap_step()
        elif backlog.has_lost:
            receiver.on_dropped(backlog.take_lost())
        elif (taken := backlog.take()) is not None:
            receiver.on_message(*taken)
