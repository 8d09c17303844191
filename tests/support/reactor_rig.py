"""Drive a reactor in a test: socket pairs, a clock that the test moves, and a record of every event.

Every account of the reactor is compared with its structures after each turn and at the end.

A turn of a connection costs 5 us a message, however fast the machine is.

Nothing sleeps: `turn` runs poll and flush until nothing happens any more, `pass_ms` moves the clock in
steps of the wheel. What the reactor does in real time (slices of 2 ms) is the only real time here.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support.frames import FrameReader, ServerFrame
from wsgate.reactor import Reactor, Settings, SharedAddresses, event_kinds
from wsgate.reactor.event_kinds import Event
from wsgate.reactor.testing import audit, trust_charges

__all__ = ["Peer", "Rig", "rig"]

TICK_MS = 250
TURNS_MAX = 2000  # a rig that is not idle by then spins


class Peer:
    """The client's end of one connection: a socket that does not block, and the bytes read from it."""

    def __init__(self, sock: socket.socket, conn: int) -> None:
        """Wrap the socket; `conn` is the handle of the other end."""
        sock.setblocking(False)
        self.sock = sock
        self.conn = conn
        self.reader = FrameReader()
        self.received = bytearray()
        self.ended = False

    def send(self, data: bytes) -> int:
        """Send data and return the number of bytes that the kernel took; 0 when it takes none."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def receive(self) -> bytes:
        """Return all waiting bytes; set `ended` at the end of the stream."""
        taken = bytearray()
        while True:
            try:
                piece = self.sock.recv(1 << 16)
            except BlockingIOError:
                break
            except ConnectionResetError:
                self.ended = True
                break
            if not piece:
                self.ended = True
                break
            taken += piece
        self.received += taken
        return bytes(taken)

    def frames(self) -> list[ServerFrame]:
        """Return the frames that arrived since the last call."""
        return self.reader.receive_data(self.receive())

    def close(self) -> None:
        """Close this end."""
        self.sock.close()


class Rig:
    """One reactor with its clock, its peers and its events."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        now_ms: int = 1_000_000,
        gap_encoder: Callable[[int, bytes, int, int], bytes] | None = None,
        on_event: Callable[["Rig", Event], None] | None = None,
        addresses: SharedAddresses | None = None,
        shard: int = 0,
        hash_key: bytes | None = None,
    ) -> None:
        """Start without peers; `on_event` receives every event inside its batch, before the flush."""
        self.now_ms = now_ms
        self.reactor = Reactor(
            settings or Settings(),
            now_ms=now_ms,
            gap_encoder=gap_encoder,
            hash_key=hash_key,
            addresses=addresses,
            shard=shard,
        )
        trust_charges(self.reactor)  # the speed of this machine must not change the result
        self.events: list[Event] = []
        self.on_event = on_event
        self.peers: list[Peer] = []

    def connect(
        self, *, upgraded: bool = True, variant: int = 0, send_buffer_bytes: int = 0, tcp: bool = False
    ) -> Peer:
        """Make a connection; `send_buffer_bytes` > 0 makes the reactor's side block early."""
        ours, theirs = _tcp_pair() if tcp else socket.socketpair()
        if send_buffer_bytes:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, send_buffer_bytes)
        conn = self.reactor.adopt(ours.detach(), now_ms=self.now_ms, upgraded=upgraded, variant=variant)
        peer = Peer(theirs, conn)
        self.peers.append(peer)
        return peer

    def step(self) -> list[Event]:
        """Poll once, handle the events, and flush once."""
        batch = self.reactor.poll(self.now_ms)
        self.events += batch
        if self.on_event:
            for event in batch:
                self.on_event(self, event)
        self.reactor.flush(self.now_ms)
        return batch

    def turn(self) -> list[Event]:
        """Poll and flush until nothing happens; return the events of all passes."""
        seen: list[Event] = []
        quiet = 0
        for _ in range(TURNS_MAX):
            batch = self.step()
            seen += batch
            unfinished = self.reactor.flush(self.now_ms) or self.reactor.more
            quiet = 0 if batch or unfinished else quiet + 1
            if quiet == 2:
                self.audit()
                return seen
        raise AssertionError(f"not idle after {TURNS_MAX} turns")

    def pass_ms(self, duration_ms: int, *, turns: bool = True) -> list[Event]:
        """Advance the clock in steps of the wheel, with a turn after each tick."""
        seen: list[Event] = []
        end = self.now_ms + duration_ms
        while self.now_ms < end:
            self.now_ms = min(self.now_ms + TICK_MS, end)
            self.reactor.tick(self.now_ms)
            if turns:
                seen += self.turn()
        return seen

    def audit(self) -> None:
        """Compare every account of the reactor with its structures."""
        faults = audit(self.reactor)
        assert not faults, "\n".join(faults)

    def of(self, peer: Peer) -> list[tuple[int, bytes | int]]:
        """Return all events of one connection until now, as (kind, value)."""
        return [(kind, value) for kind, conn, value in self.events if conn == peer.conn]

    def messages(self, peer: Peer) -> list[bytes]:
        """Return all messages of one connection until now."""
        return [
            value
            for kind, value in self.of(peer)
            if kind in (event_kinds.TEXT, event_kinds.BINARY) and isinstance(value, bytes)
        ]

    def count(self, name: str) -> int:
        """Return one counter of the reactor."""
        return self.reactor.counters()[name]

    def held(self) -> dict[str, int]:
        """Return bytes held, without the pool, the table of slots and the account "connections"."""
        held = self.reactor.bytes_held()
        return {kind: size for kind, size in held.items() if kind not in ("pool", "table", "connections")}

    def close(self) -> None:
        """Audit the reactor, close every peer, and shut the reactor down."""
        try:
            self.audit()
        finally:
            for peer in self.peers:
                peer.close()
            self.reactor.shutdown()


@contextmanager
def rig(
    settings: Settings | None = None,
    *,
    now_ms: int = 1_000_000,
    gap_encoder: Callable[[int, bytes, int, int], bytes] | None = None,
    on_event: Callable[[Rig, Event], None] | None = None,
) -> Iterator[Rig]:
    """Yield a `Rig` that is closed at the end."""
    bench = Rig(settings, now_ms=now_ms, gap_encoder=gap_encoder, on_event=on_event)
    try:
        yield bench
    finally:
        bench.close()


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of one loopback TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    return ours, theirs
