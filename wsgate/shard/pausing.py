"""Counts the parts of a shard that have paused reading of a connection."""

from enum import IntFlag
from typing import Final

from wsgate.reactor import Reactor

__all__ = ["Pauser", "Pauses"]


class Pauser(IntFlag):
    """A part of the shard that pauses reading for a reason of its own."""

    LOGIN = 1  # the bus counts the user's connections
    COMMANDS = 2  # too many commands of the connection await the bus
    TOKEN = 4  # a token that it has sent waits to be verified


class Pauses:
    """Pauses and resumes reading; resumes only when no part wants the pause any more.

    The reactor has one switch for each connection. Without this, the part that is ready first would
    resume a connection that another part still holds back.
    """

    def __init__(self, reactor: Reactor) -> None:
        """For the connections of this reactor."""
        self._reactor: Final = reactor
        self._held: dict[int, Pauser] = {}

    def pause(self, conn: int, pauser: Pauser) -> None:
        """Stop reading the connection for this reason; harmless when it is paused for it already."""
        held = self._held.get(conn)
        self._held[conn] = pauser if held is None else held | pauser
        if held is None:
            self._reactor.pause_reading(conn)

    def resume(self, conn: int, pauser: Pauser) -> None:
        """Drop one reason for a pause; read the connection again if no other reason is left."""
        held = self._held.get(conn)
        if held is None:
            return
        if left := held & ~pauser:
            self._held[conn] = left
            return
        del self._held[conn]
        self._reactor.resume_reading(conn)

    def forget(self, conn: int) -> None:
        """Forget the pauses of a connection that is closed."""
        if self._held:
            self._held.pop(conn, None)
