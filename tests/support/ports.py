"""Reserve TCP ports for servers that a test starts, so that no other test takes them in the meantime.

A port that the kernel chose (port 0) and that was closed again may be taken by any other process before the
server binds it, also by an outgoing connection. The ports here lie below the kernel's range for that, and
only one process of the machine holds a port at a time: its reservation is an abstract Unix socket with the
port's number in its name, which the kernel removes when the process ends.
"""

import contextlib
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

__all__ = ["CLUSTER_BUS_OFFSET", "reserved_port", "reserved_ports"]

FIRST: Final = 10_240
LAST: Final = 32_767
"""Linux takes ephemeral ports from 32,768 on (net.ipv4.ip_local_port_range)."""
TRIES: Final = 10_000
CLUSTER_BUS_OFFSET: Final = 10_000
"""From the port of a server of a cluster to the port for the connections of the other servers."""
ANY_ADDRESS: Final = "0.0.0.0"


@contextlib.contextmanager
def reserved_ports(count: int, *, also_at: int = 0) -> Iterator[list[int]]:
    """Reserve ports that no process listens on; the reservation ends with the block.

    Args:
        count: How many ports, all different.
        also_at: If this is not 0, reserve each port plus this number too (the second port of a cluster's
            server). The list does not contain those.
    """
    with ExitStack() as stack:
        ports: list[int] = []
        for _ in range(TRIES):
            if len(ports) == count:
                break
            port = random.SystemRandom().randint(FIRST, LAST - also_at)
            wanted = [port, port + also_at] if also_at else [port]
            with ExitStack() as attempt:
                if all(_reserve(attempt, number) for number in wanted):
                    stack.push(attempt.pop_all())
                    ports.append(port)
        assert len(ports) == count, f"no {count} free ports between {FIRST} and {LAST}"
        yield ports


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve one port that no process listens on; the reservation ends with the block."""
    with reserved_ports(1) as (port,):
        yield port


def _reserve(stack: ExitStack, port: int) -> bool:
    """Return whether the port is reserved now: no other process has reserved or uses it."""
    claim = stack.enter_context(socket.socket(socket.AF_UNIX))
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            claim.bind(f"\0wsgate-test-port-{port}")
            probe.bind((ANY_ADDRESS, port))
            probe.listen()
        except OSError:
            return False
    return True
