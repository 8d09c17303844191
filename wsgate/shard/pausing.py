"""Pause and resume reading from connections for several parts of a shard, each with its own reason."""

from enum import IntFlag
from typing import Final

from wsgate.reactor import Reactor

__all__ = ["Pauser", "Pauses"]


class Pauser(IntFlag):
    """The parts of a shard that pause reading, as bits; each has one reason."""

    LOGIN = 1  # the bus is counting the user's connections
    COMMANDS = 2  # too many commands of the connection wait for the bus
    TOKEN = 4  # a token that the connection has sent waits to be verified


class Pauses:
    """Keeps the reasons for pauses by connection, and resumes reading when the last reason is dropped.

    The reactor has one switch for each connection. Without this table, the part that is ready first would
    resume a connection that another part still pauses.
    """

    def __init__(self, reactor: Reactor) -> None:
        """Begin without a pause; `reactor` holds the connections."""
        self._reactor: Final = reactor
        self._held: dict[int, Pauser] = {}

    def pause(self, conn: int, pauser: Pauser) -> None:
        """Stop reading from a connection for this reason; a second call for the same reason has no effect."""
        held = self._held.get(conn)
        self._held[conn] = pauser if held is None else held | pauser
        if held is None:
            self._reactor.pause_reading(conn)

    def resume(self, conn: int, pauser: Pauser) -> None:
        """Drop one reason for a pause; read from the connection again if no other reason is left."""
        held = self._held.get(conn)
        if held is None:
            return
        if left := held & ~pauser:
            self._held[conn] = left
            return
        del self._held[conn]
        self._reactor.resume_reading(conn)

    def forget(self, conn: int) -> None:
        """Drop the reasons of a connection that is closed."""
        if self._held:
            self._held.pop(conn, None)
