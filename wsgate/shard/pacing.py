"""Hands publications on from the backlog, as fast as the outboxes of connections that read allow.

A publication is handed on when no connection that is not judged by its limits is over half of them
(`Reactor.is_full`). So a burst of up to the backlog's size reaches every reader, in order and complete, at
the pace of the readers; and a connection that is judged, because its peer does not read, delays nobody.

When the backlog drops its oldest publications, the subscribers of their channels are sent a gap; losses of a
channel within two seconds of such a notice are told by the next one. Nothing is handed on while a
confirmation that was received before it is not dealt with yet.
"""

import time
from collections.abc import Callable
from typing import Final, Protocol

from wsgate.bus import Backlog
from wsgate.reactor import Reactor

__all__ = ["Pacer"]

PASS_PUBLICATIONS: Final = 256
PASS_S: Final = 0.002
STEP: Final = 16
"""Publications between two looks at the clock: as many as cost 1 to 2 ms when each holds 64 KiB."""


class Receiver(Protocol):
    """Takes publications; see `wsgate.shard.hub.Hub`."""

    def on_message(self, name: bytes, data: bytes | None) -> None:
        """One publication."""

    def on_dropped(self, name: bytes | None) -> None:
        """Publications of a channel, or (None) of any channel, were dropped before they came here."""

    @property
    def has_gaps(self) -> bool:
        """Whether a notice to all channels is under way."""

    def gap_step(self) -> None:
        """Do the next part of it."""


class Pacer:
    """The way from one shard's backlog to its hub.

    Args:
        backlog: Where publications wait.
        receiver: The hub.
        reactor: Says when outboxes are full.
        on_fault: Called with an exception of the receiver; it costs that one publication.
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
        """Whether something waits that need not wait for outboxes or confirmations."""
        backlog, reactor = self._backlog, self._reactor
        if backlog.is_held or reactor.is_full:
            return False
        return len(backlog) > 0 or backlog.has_lost or self._receiver.has_gaps

    def step(self) -> None:
        """Hand on what a pass of the loop allows. Call again soon while `is_ready`."""
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
        """One publication, or one notice."""
        backlog, receiver = self._backlog, self._receiver
        if receiver.has_gaps:
            receiver.gap_step()
        elif backlog.has_lost:
            receiver.on_dropped(backlog.take_lost())
        elif (taken := backlog.take()) is not None:
            receiver.on_message(*taken)
