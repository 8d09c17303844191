"""Drive a reactor with a TCP listener, real clients, and the real handshake.

This module is `reactor_rig` for things that need a listener: accepting, refusing, heads and resets.
Loopback TCP needs time to deliver, so `settle` waits for a condition within a bound, and never for a
duration. Attacks also use its functions for descriptors, for the proportional set size, and for a
Python child that may crash.
"""

import contextlib
import os
import re
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.reactor_rig import Peer, Rig
from wsgate.handshake import Refusal, accept, parse_head
from wsgate.reactor import GateLimits, ListenerOptions, Settings, SharedAddresses, event_kinds, open_listener
from wsgate.reactor.event_kinds import Event

__all__ = [
    "HEAD",
    "REFUSAL",
    "TOO_MANY",
    "Hall",
    "hall",
    "is_readable",
    "open_descriptors",
    "proportional_set_bytes",
    "raise_descriptors",
    "reset",
    "run_child",
    "settle",
    "shake_hands",
]

ROOT: Final = Path(__file__).resolve().parents[2]
HEAD: Final = (
    b"GET /chat HTTP/1.1\r\nHost: example.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 3\r\n"
    b"Content-Length: 5\r\n\r\nfull\n"
)
TOO_MANY: Final = (
    b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n"
)
WAIT_ROUNDS: Final = (
    3000  # of a millisecond: the time that a busy machine may need to deliver a loopback packet
)


def shake_hands(bench: Rig, event: Event) -> None:
    """Answer an `OPEN` as the shard does, with `wsgate.handshake`."""
    kind, conn, value = event
    if kind != event_kinds.OPEN:
        return
    assert isinstance(value, bytes)
    request = parse_head(value)
    if isinstance(request, Refusal):
        bench.reactor.refuse(conn, request.response)
    else:
        bench.reactor.upgrade(conn, accept(request).response)


class Hall(Rig):
    """A rig with a listener, a gate and the handshake."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        limits: GateLimits | None = None,
        options: ListenerOptions | None = None,
        refusal: bytes = REFUSAL,
        on_event: Callable[[Rig, Event], None] | None = shake_hands,
        now_ms: int = 1_000_000,
        addresses: SharedAddresses | None = None,
        shard: int = 0,
        hash_key: bytes | None = None,
    ) -> None:
        """Listen on a free port, without deferred accept unless `options` set it."""
        super().__init__(
            settings, now_ms=now_ms, on_event=on_event, addresses=addresses, shard=shard, hash_key=hash_key
        )
        self.listener = open_listener("127.0.0.1", 0, options or ListenerOptions(defer_accept_s=0))
        self.reactor.set_gate(limits or GateLimits(), refusal, TOO_MANY)
        self.reactor.listen(self.listener.fileno())

    def dial(self, data: bytes = b"", *, receive_buffer_bytes: int = 0, source: str = "127.0.0.1") -> Peer:
        """Return a connected client that has sent `data`; its `conn` is 0 until `meet`."""
        sock = socket.socket()
        sock.bind((source, 0))
        if receive_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.connect(self.listener.getsockname())
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(sock, 0)
        self.peers.append(peer)
        if data:
            assert peer.send(data) == len(data)
        return peer

    def meet(self, peer: Peer) -> Peer:
        """Turn until this client is open; remove the HTTP answer and set the handle."""
        name = "{}:{}".format(*peer.sock.getsockname())

        def look() -> bool:
            for kind, conn, _ in self.events:
                if kind == event_kinds.OPEN and self.reactor.peer(conn) == name:
                    peer.conn = conn
            peer.receive()
            return bool(peer.conn) and b"\r\n\r\n" in peer.received

        settle(self, look)
        head, _, rest = bytes(peer.received).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        peer.received = bytearray(rest)
        return peer

    def close(self) -> None:
        """Close all peers, the reactor and the listener."""
        super().close()
        self.listener.close()


@contextmanager
def hall(
    settings: Settings | None = None,
    *,
    limits: GateLimits | None = None,
    options: ListenerOptions | None = None,
    refusal: bytes = REFUSAL,
    on_event: Callable[[Rig, Event], None] | None = shake_hands,
    now_ms: int = 1_000_000,
    addresses: SharedAddresses | None = None,
    shard: int = 0,
    hash_key: bytes | None = None,
) -> Iterator[Hall]:
    """Yield a `Hall` that is closed at the end."""
    bench = Hall(
        settings,
        limits=limits,
        options=options,
        refusal=refusal,
        on_event=on_event,
        now_ms=now_ms,
        addresses=addresses,
        shard=shard,
        hash_key=hash_key,
    )
    try:
        yield bench
    finally:
        bench.close()


def settle(bench: Rig, condition: Callable[[], bool]) -> None:
    """Turn until the condition holds; fail after a bounded number of rounds."""
    for _ in range(WAIT_ROUNDS):
        bench.turn()
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("the condition never became true")


def is_readable(bench: Rig) -> bool:
    """Whether an event loop would call the reactor now; a reactor that spins is always readable."""
    with select.epoll() as outer:
        outer.register(bench.reactor.fileno(), select.EPOLLIN)
        return bool(outer.poll(0))


def reset(sock: socket.socket) -> None:
    """Close the socket with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def open_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def raise_descriptors(wanted: int) -> int:
    """Raise the soft limit as far as allowed; return how many more may be opened, at most `wanted`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + open_descriptors() + 64
    if soft < need:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (need if hard < 0 else min(need, hard), hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return min(wanted, soft - open_descriptors() - 64)


def proportional_set_bytes() -> int:
    """Return the proportional set size of this process."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


def run_child(code: str, *, debug_malloc: bool = False) -> subprocess.CompletedProcess[str]:
    """Run Python code in a child in the root of the tree; a signal that ends it is in `returncode`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    if debug_malloc:
        environment["PYTHONMALLOC"] = "debug"
        environment["MALLOC_PERTURB_"] = "165"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, cwd=ROOT
    )
