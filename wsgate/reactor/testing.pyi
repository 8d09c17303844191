"""More connections than a process may have descriptors; see testing.pyx."""

from array import array
from collections.abc import Iterable

from wsgate.reactor.audit import audit as audit
from wsgate.reactor.loop import Reactor

__all__ = ["audit", "hear_all", "let_go", "open_slots", "read_proxy_header", "step_walks", "trust_charges"]

def open_slots(
    reactor: Reactor, fds: Iterable[int], count: int, *, now_ms: int, variant: int = 0
) -> array[int]:
    """Open connections that share descriptors in turn, in state open.

    Args:
        reactor: Whose slots.
        fds: Sinks: what `send` always succeeds on, such as UDP sockets connected to one nobody reads. They
            stay the caller's.
        count: How many.
        now_ms: The reactor's clock.
        variant: Their form of publications.

    Returns:
        Their handles, 64 bits each. Before one of them ends, or the reactor, `let_go` must be called: else
        the first to close takes its sink from all that share it.

    Raises:
        MemoryError: No slot is left (`Settings.max_connections`).
    """

def hear_all(reactor: Reactor) -> int:
    """As if every open peer had just said something, so that no heartbeat ends one.

    Returns:
        How many open connections there are.
    """

def read_proxy_header(data: bytes) -> tuple[int, bytes | None]:
    """What the gate makes of the first bytes of a proxy's connection.

    Returns:
        The size of the header (0: it is not whole, -1: it is none) and the 16 bytes of the address it
        names, IPv4 mapped; None when it names nobody.
    """

def trust_charges(reactor: Reactor) -> None:
    """Believe every charge as it is, and count inflating as nothing.

    So a test that counts turns does not depend on the speed of the machine.
    """

def step_walks(reactor: Reactor, most: int) -> bool:
    """Serve so many more subscribers of the oldest publication that is on its way into a large channel.

    Returns:
        Whether there was one.
    """

def let_go(reactor: Reactor, handles: Iterable[int]) -> None:
    """Take the sinks away from their slots: what closes afterwards closes no descriptor."""
