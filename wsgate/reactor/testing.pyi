"""Helpers for tests and measurements: connections without own descriptors, and access to internals."""

from array import array
from collections.abc import Iterable

from wsgate.reactor.audit import audit as audit
from wsgate.reactor.loop import Reactor

__all__ = ["audit", "hear_all", "let_go", "open_slots", "read_proxy_header", "step_walks", "trust_charges"]

def open_slots(
    reactor: Reactor, fds: Iterable[int], count: int, *, now_ms: int, variant: int = 0
) -> array[int]:
    """Create connections in state OPEN that share a few descriptors, for more connections than descriptors.

    Args:
        reactor: The reactor that gets the connections.
        fds: Sinks: sockets on which `send` always succeeds, such as UDP sockets connected to one that no
            process reads. They stay the caller's, and the connections use them in turn.
        count: How many connections to create.
        now_ms: The reactor's clock.
        variant: The variant in which the connections take publications.

    Returns:
        The handles, 64 bits each. Call `let_go` before one of the connections or the reactor ends: otherwise
        the first connection that closes also closes the sink of all that share it.

    Raises:
        MemoryError: No slot is left (`Settings.max_connections`).
    """

def hear_all(reactor: Reactor) -> int:
    """Mark every open connection as if a byte had just come from its peer, so that no heartbeat ends it.

    Returns:
        The number of open connections.
    """

def read_proxy_header(data: bytes) -> tuple[int, bytes | None]:
    """Parse the PROXY header at the beginning of `data`, as for a connection of a trusted proxy.

    Returns:
        The size of the header (0: not complete, -1: not valid), and the 16 bytes of the address that it
        names, IPv4-mapped, or None if it names no address.
    """

def trust_charges(reactor: Reactor) -> None:
    """Apply every charge without checking it by a clock, and do not charge for inflating.

    A test that counts turns then does not depend on the speed of the machine.
    """

def step_walks(reactor: Reactor, most: int) -> bool:
    """Queue up to `most` more entries of the oldest publication under way into a large channel.

    Returns:
        False if no publication is under way.
    """

def let_go(reactor: Reactor, handles: Iterable[int]) -> None:
    """Remove the sinks from connections of `open_slots`, which then close without closing a descriptor."""
