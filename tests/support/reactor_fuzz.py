"""Send random bytes and random calls to two reactors, and check every promise about events.

The program runs as a child, so that a crash is an exit status and not the end of the tests::

    python -m tests.support.reactor_fuzz <seed> <steps>
    python -m tests.support.reactor_fuzz --seeds 50 --steps 20000       one child for each seed, with progress

After every step each account of both reactors is compared with its structures. The second reactor is
the sibling that receives handed-over sockets. It prints `sound` when no promise was broken and all memory was
given back.
"""

import argparse
import contextlib
import os
import random
import socket
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace

from tests.support.frames import FrameReader, client_close, client_frame, client_header
from tests.support.sizes import draw_size
from wsgate.deflate import WIDE_BITS, deflate
from wsgate.errors import WsgateError
from wsgate.reactor import (
    GateLimits,
    ListenerOptions,
    Reactor,
    Settings,
    SharedAddresses,
    event_kinds,
    open_listener,
)
from wsgate.reactor.testing import audit
from wsgate.reasons import Reason

__all__ = ["Fuzz"]

RESPONSE = b"HTTP/1.1 101 x\r\n\r\n"
HEAD = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
REFUSED_CALLS = (WsgateError, ValueError, OverflowError, TypeError, MemoryError, OSError)
SETTINGS = Settings(
    max_message_bytes=200_000,
    max_fragments=20,
    message_rate_per_s=2000,
    outbox_bytes=150_000,
    outbox_frames=40,
    outbox_age_ms=3_000,
    write_timeout_ms=4_000,
    ping_interval_ms=5_000,
    pong_timeout_ms=2_000,
    idle_timeout_ms=20_000,
    message_timeout_ms=4_000,
    linger_limit_sockets=5,
    linger_limit_bytes=50_000,
    variant_opcodes=(1, 2, 1 | event_kinds.DEFLATED),
    walk_at_once=3,
    max_connections=60,
    max_subscriptions=9,
    report_vacated=True,
)
NAME_LIMIT_BYTES = 1_024
NAMES = 12
USERS = 8
DICE = random.Random()
"""Random numbers for sizes, with the same seed as the module `random`."""
PEERS_MAX = 120


class Client:
    """The other end of one connection."""

    def __init__(self, sock: socket.socket, *, is_open: bool) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.reader = FrameReader()
        self.head = b""
        self.is_open = is_open

    def receive(self) -> None:
        """Read some bytes and parse them strictly: after the handshake the reactor may send only frames."""
        try:
            data = self.sock.recv(random.choice([100, 5000, 1 << 20]))
        except OSError:
            return
        if not self.is_open:
            self.head += data
            _, separator, data = self.head.partition(b"\r\n\r\n")
            if not separator:
                return
            self.is_open = self.head.startswith(RESPONSE)
        if self.is_open:
            self.reader.receive_data(data)


class Watcher:
    """A meta object that calls the reactor when it is dropped, at any time."""

    def __init__(self, reactor: Reactor, conn: int) -> None:
        self.reactor, self.conn = reactor, conn

    def __del__(self) -> None:
        with contextlib.suppress(*REFUSED_CALLS):
            self.reactor.send(self.conn, b"from the grave")
        with contextlib.suppress(*REFUSED_CALLS):
            self.reactor.abort(self.conn)


class Fuzz:
    """One reactor with a sibling, its peers, and the history of every handle."""

    def __init__(self, seed: int) -> None:
        """Start with a seed: the calls are the same for it, but the kernel may act differently."""
        random.seed(seed)
        DICE.seed(seed)
        self.now_ms = random.choice([0, 1, 1_000_003, 2**28 - 9_000, 2**32 - 9_000, 10**12])
        self.wall_ms = 1_764_000_000_000
        self.settings = replace(
            SETTINGS,
            pool_enabled=random.random() < 0.7,
            blocked_grace_ms=random.choice([0, 700]),
            blocked_moving_ms=random.choice([0, 250]),
            pool_idle_limit_bytes=random.choice([0, 4_096, 1 << 24]),
        )
        self.addresses = SharedAddresses(2, 60)
        self.reactor = Reactor(
            self.settings, now_ms=self.now_ms, gap_encoder=self.encode_gap, addresses=self.addresses, shard=0
        )
        self.sibling = Reactor(self.settings, now_ms=self.now_ms, addresses=self.addresses, shard=1)
        self.names = [random.randbytes(draw_size(DICE, NAME_LIMIT_BYTES, least=1)) for _ in range(NAMES)]
        self.users = [random.randbytes(draw_size(DICE, 128, least=1)) for _ in range(USERS)]
        self.listener = open_listener("127.0.0.1", 0, ListenerOptions(defer_accept_s=0))
        self.reactor.listen(self.listener.fileno())
        self.clients: list[Client] = []
        self.handles: list[int] = []
        self.history: dict[int, list[int]] = {}
        self.batch: list[int] = []
        self.operations = self.weighted()

    def weighted(self) -> list[Callable[[], object]]:
        """Return the operations, each as often as its weight."""
        often = [self.talk, self.call, self.poll]
        usual = [self.read, self.publish, self.flush]
        return [
            *often * 4,
            *usual * 3,
            self.join,
            self.connect,
            self.dial,
            self.leave,
            self.tick,
            self.regulate,
            self.renew,
            self.shed,
            self.hand_over,
            self.serve_sibling,
            self.rename,
            self.notify,
        ]

    def join(self) -> None:
        """Subscribe one open connection to a few channels."""
        if self.handles:
            conn = random.choice(self.handles)
            for _ in range(4):
                number = random.randrange(NAMES)
                self.reactor.subscribe(conn, self.names[number], policy=number % 3, is_counted=number != 0)

    def rename(self) -> None:
        """Replace one of the channel names, so that names of every length are used and left."""
        self.names[random.randrange(NAMES)] = random.randbytes(draw_size(DICE, NAME_LIMIT_BYTES, least=1))
        with contextlib.suppress(*REFUSED_CALLS):
            self.reactor.take_vacated(random.choice([0, 1, 100]))

    def renew(self) -> None:
        """Apply other limits to all connections, some of them below the present use."""
        self.settings = replace(
            self.settings,
            outbox_bytes=draw_size(DICE, 200_000, least=1_024),
            outbox_frames=random.choice([1, 2, 40, 400]),
            max_message_bytes=random.choice([1_000, 200_000]),
            max_subscriptions=random.choice([0, 1, 4, 9]),
            walk_at_once=random.choice([0, 3, 1_000]),
            linger_limit_sockets=random.choice([0, 5, 100]),
            ping_interval_ms=random.choice([0, 5_000]),
            pool_enabled=random.random() < 0.7,
        )
        self.reactor.renew(self.settings)

    def shed(self) -> None:
        """Set a memory budget near the counted use, so that some connections are shed; mostly remove it."""
        held = sum(self.reactor.bytes_held().values())
        budget = random.choice([held // 2, held, held + held // 16, held * 2, 0])
        self.reactor.set_gate(
            GateLimits(memory_bytes=budget, per_address_rate_per_s=random.choice([0, 50])), b"no"
        )
        self.reactor.book(random.choice([0, 0, 10_000]), refuses_newcomers=random.random() < 0.1)
        self.tick()
        if random.random() < 0.7:
            self.reactor.set_gate(GateLimits(), b"HTTP/1.1 503 x\r\n\r\n")

    def hand_over(self) -> None:
        """Leave no room, so that accepted sockets are handed to the sibling, or back to the reactor."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        theirs.setblocking(False)
        fd = ours.fileno()
        self.reactor.set_handover(fd, next_fd=random.choice([fd, -1]), handovers=random.choice([0, 1, 2]))
        self.reactor.set_gate(GateLimits(connections=1), b"HTTP/1.1 503 x\r\n\r\n")
        for _ in range(random.randrange(4)):
            self.dial()
        self.poll()
        while True:
            try:
                said, descriptors, _, _ = socket.recv_fds(theirs, 1, 1)
            except BlockingIOError:
                break
            for descriptor in descriptors:
                taker = random.choice([self.sibling, self.sibling, self.reactor])
                taker.accept_handover(descriptor, now_ms=self.now_ms, handovers=said[0])
        self.reactor.set_handover(-1)
        self.reactor.set_gate(GateLimits(), b"HTTP/1.1 503 x\r\n\r\n")
        ours.close()
        theirs.close()

    def serve_sibling(self) -> None:
        """Run a turn of the sibling, which upgrades, subscribes and answers."""
        self.sibling.tick(self.now_ms)
        for kind, conn, value in self.sibling.poll(self.now_ms):
            if kind == event_kinds.OPEN:
                self.sibling.upgrade(conn, RESPONSE)
                self.sibling.set_user(conn, random.choice(self.users))
                self.sibling.subscribe(conn, random.choice(self.names))
            elif kind in (event_kinds.TEXT, event_kinds.BINARY) and isinstance(value, bytes):
                self.sibling.send(conn, value)
        self.sibling.publish(random.choice(self.names), [b"text", b"binary", 0])
        self.sibling.flush(self.now_ms)

    def encode_gap(self, variant: int, channel: bytes, first: int, last: int) -> bytes:
        """Encode a gap; sometimes fail, return nonsense, or call the reactor."""
        choice = random.random()
        if choice < 0.05:
            raise RuntimeError("planted")
        if choice < 0.1:
            return None  # type: ignore[return-value]
        if choice < 0.3:
            self.call()
            with contextlib.suppress(*REFUSED_CALLS):
                self.reactor.shutdown()
                os._exit(3)  # the reactor must refuse it
        return b"gap %d %b %d %d" % (variant, channel, first, last)

    def handle(self) -> int:
        """Return a handle: mostly a live one, sometimes a former, an invented or an impossible one."""
        choice = random.random()
        if choice < 0.8 and self.handles:
            return random.choice(self.handles)
        if choice < 0.9 and self.handles:
            return random.choice(self.handles) ^ (1 << random.randrange(64))
        return random.choice([0, 1, -1, 2**63, 2**64 - 1, 2**64, random.getrandbits(64), 0xFFFFFFFF])

    def connect(self) -> None:
        """Connect a socket pair, upgraded or with a head to come."""
        ours, theirs = socket.socketpair()
        if random.random() < 0.5:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        is_open = random.random() < 0.7
        fd = ours.detach()
        try:
            conn = self.reactor.adopt(
                fd, now_ms=self.now_ms, upgraded=is_open, variant=random.choice([0, 1, 2])
            )
        except MemoryError:
            os.close(fd)
            theirs.close()
            return
        self.handles.append(conn)
        if is_open:
            self.history[conn] = []
        self.clients.append(Client(theirs, is_open=is_open))

    def dial(self) -> None:
        """Connect a TCP client."""
        if len(self.clients) < PEERS_MAX:
            sock = socket.create_connection(self.listener.getsockname())
            self.clients.append(Client(sock, is_open=False))

    def talk(self) -> None:
        """Send valid or invalid bytes from a client, whole or cut."""
        if not self.clients:
            return
        client = random.choice(self.clients)
        payload = random.randbytes(draw_size(DICE, 199_000))
        sound: list[Callable[[], bytes]] = [
            lambda: client_frame(2, payload),
            lambda: client_frame(1, b"text" * (len(payload) // 4)),
            lambda: client_frame(9, payload[:125]) * random.choice([1, 1, 40]),
            lambda: client_frame(10, payload[:125]),
            lambda: client_frame(2, b"", final=False) + client_frame(9) + client_frame(0, payload),
            lambda: client_frame(2, b"small") * random.randrange(300),
            lambda: client_frame(2, deflate(payload, WIDE_BITS), rsv=4),
            lambda: client_frame(2, deflate(bytes(300_000), WIDE_BITS), rsv=4, final=False) + client_frame(0),
        ]
        broken: list[Callable[[], bytes]] = [
            lambda: client_frame(2, payload, final=False),
            lambda: client_frame(0, payload, final=False) * 30,
            lambda: client_header(random.randrange(16), random.getrandbits(random.randrange(1, 64))),
            lambda: client_close(random.choice([1000, 1001, 1006, 3000, 4999, None])),
            lambda: HEAD,
            lambda: HEAD + client_frame(9, b"early") + client_frame(1, b"early"),
            lambda: b"GET / HTTP/1.1\r\n",
            lambda: random.randbytes(random.randrange(40)),
        ]
        make = random.choice(sound if random.random() < 0.93 else broken)
        data = make()
        if not client.is_open and random.random() < 0.7:
            data = HEAD
        if random.random() < 0.05:
            data = data[: random.randrange(len(data) + 1)]
        with contextlib.suppress(OSError):
            client.sock.send(data)

    def leave(self) -> None:
        """End a client with FIN, with RST, or only its sending side."""
        if not self.clients or random.random() < 0.8:
            return
        client = random.choice(self.clients)
        choice = random.random()
        with contextlib.suppress(OSError):
            if choice < 0.3:
                client.sock.shutdown(socket.SHUT_WR)
                return
            if choice < 0.6:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sock.close()
        self.clients.remove(client)

    def read(self) -> None:
        """Let one client read."""
        if self.clients:
            random.choice(self.clients).receive()

    def call(self) -> None:
        """Make one call with arguments that are plausible or impossible."""
        reactor, conn = self.reactor, self.handle()
        number = random.choice([0, 1, 2, 999, 1000, 1006, 4000, 5000, -1, 2**31, 2**63, 10**30])
        payload = bytes(draw_size(DICE, 140_000))
        channel = random.choice(self.names)
        user = random.choice(self.users)
        calls: list[Callable[[], object]] = [
            lambda: reactor.send(conn, payload, random.choice([1, 2, 1, 2, number])),
            lambda: reactor.send(conn, payload),
            lambda: reactor.upgrade(conn, RESPONSE, variant=random.choice([0, 1, 2, 0, 1, number])),
            lambda: reactor.upgrade(conn, RESPONSE),
            lambda: reactor.refuse(conn, payload),
            lambda: reactor.close(conn, random.choice([1000, 4000, number]), payload),
            lambda: reactor.abort(conn),
            lambda: reactor.pause_reading(conn),
            lambda: reactor.resume_reading(conn),
            lambda: reactor.resume_reading(conn),
            lambda: reactor.subscribe(conn, channel, policy=random.choice([0, 1, 2, number])),
            lambda: reactor.subscribe(conn, channel, policy=1),
            lambda: reactor.subscribe(conn, channel, policy=2),
            lambda: reactor.subscribe(conn, channel, is_counted=False),
            lambda: reactor.subscribe(conn, bytes(random.choice([0, 1_025, 70_000]))),
            lambda: reactor.set_user(conn, user),
            lambda: reactor.set_user(conn, user),
            lambda: reactor.set_user(conn, b""),
            lambda: reactor.user_connections(user),
            lambda: reactor.set_expiry(conn, self.wall_ms + random.choice([-1, 500, 5_000, number]), 4001),
            lambda: reactor.set_expiry(conn, self.wall_ms + 500, 4001, only_sooner=True),
            lambda: reactor.claim_address(conn, random.randbytes(random.choice([16, 16, 16, 15]))),
            lambda: reactor.answer_page(conn),
            lambda: reactor.take_vacated(random.choice([0, 1, 100])),
            lambda: reactor.connections(random.choice([0, number]), 100),
            lambda: reactor.trim(),
            lambda: reactor.unsubscribe(conn, channel),
            lambda: reactor.subscriptions(conn),
            lambda: reactor.subscribers(channel),
            lambda: reactor.set_meta(conn, random.choice([None, Watcher(reactor, conn), object()])),
            lambda: reactor.meta(conn),
            lambda: reactor.set_deadline(conn, random.choice([number, self.now_ms + 500]), 4000),
            lambda: reactor.set_deadline(conn, self.now_ms + 500, number),
            lambda: reactor.peer(conn),
            lambda: reactor.inspect(conn),
            lambda: reactor.set_bye(random.choice([4010, 4008, number]), [random.choice([b"bye", None])]),
            lambda: reactor.adopt(random.choice([-1, 10_000, reactor.fileno()]), now_ms=self.now_ms),
            lambda: reactor.listen(self.listener.fileno()),
        ]
        with contextlib.suppress(*REFUSED_CALLS):
            random.choice(calls)()

    def regulate(self) -> None:
        """Change the gate, and sometimes stop and start listening."""
        limits = GateLimits(
            connections=random.choice([0, 0, 30]),
            handshakes_in_progress=random.choice([0, 5]),
            handshake_rate_per_s=random.choice([0, 20]),
            partial_bytes=random.choice([0, 0, 60_000]),
            refusal_drains=random.choice([0, 2, 32]),
        )
        self.reactor.set_gate(limits, b"HTTP/1.1 503 x\r\n\r\n")
        if random.random() < 0.2:
            self.reactor.stop_listening()
            self.reactor.listen(self.listener.fileno())

    def publish(self) -> None:
        """Publish to a channel that may not exist."""
        channel = random.choice(self.names)
        variants: list[bytes | int | None] = random.choice(
            [
                [b"text", b"binary", 0],
                [b"t" * 3000, b"b" * 9000, 1],
                [b"t" * 60_000],
                [bytes(draw_size(DICE, 66_000))],
                [],
                [None, None, None],
                [b"text", None, 0],
            ]
        )
        if self.settings.blocked_grace_ms and self.reactor.is_full:
            return
        position = random.choice([0, 1, 7, 2**62, -1])
        self.reactor.publish(channel, variants, position=position, exclude=abs(self.handle()) % 2**64)

    def notify(self) -> None:
        """Announce a loss: a part of a walk of notices, or of one channel."""
        for _ in range(random.randrange(3)):
            self.reactor.mark_lost(random.choice(self.names), random.randrange(1, 4))
        count, size = random.choice((1, 2, 31, 32)), draw_size(DICE, 1_000)
        forms: list[list[bytes | int | None]] = [[bytes(size), b"binary", 0]] * count
        channel = random.choice((None, random.choice(self.names)))
        start = random.choice((0, 1, 1_023, 1_024, 2**32 - 1, random.randrange(2_048)))
        self.reactor.send_notices(start, random.choice((0, 1, 64, 2**31)), forms, round=2, channel=channel)

    def poll(self) -> None:
        """Poll, check the promises, and sometimes make a call in the middle of the batch."""
        for kind, conn, value in self.reactor.poll(self.now_ms):
            self.check(kind, conn, value)
            if kind == event_kinds.OPEN:
                self.handles.append(conn)
                if random.random() < 0.95:
                    self.reactor.upgrade(conn, RESPONSE, variant=random.choice([0, 1, 2]))
            elif (
                kind in (event_kinds.TEXT, event_kinds.BINARY)
                and isinstance(value, bytes)
                and random.random() < 0.3
            ):
                self.reactor.send(conn, value, kind)
            if random.random() < 0.05:
                self.call()
        if random.random() < 0.9:
            self.flush()

    def check(self, kind: int, conn: int, value: bytes | int) -> None:
        """Check the order of the events of one handle."""
        past = self.history.setdefault(conn, [])
        assert event_kinds.CLOSED not in past, "an event after `CLOSED`"
        if kind == event_kinds.OPEN:
            assert past == [], "`OPEN` is the first event, once"
        if kind in (event_kinds.TEXT, event_kinds.BINARY, event_kinds.FAILING, event_kinds.PEER_CLOSED):
            assert event_kinds.FAILING not in past, "an event after `FAILING`"
            assert event_kinds.PEER_CLOSED not in past, "an event after `PEER_CLOSED`"
        if kind == event_kinds.TEXT:
            assert isinstance(value, bytes)
            value.decode()
        if kind == event_kinds.CLOSED:
            assert Reason(int(value)) != Reason.NONE
            assert self.reactor.inspect(conn) is None
            if conn in self.handles:
                self.handles.remove(conn)
                if random.random() < 0.2:
                    self.handles.append(conn)  # and continue to use it
        past.append(kind)

    def flush(self) -> None:
        """Flush the reactor."""
        self.reactor.flush(self.now_ms)

    def tick(self) -> None:
        """Advance the clock: usually by a step, sometimes by a stall, sometimes backwards."""
        self.now_ms += random.choice([0, 1, 60, 250, 250, 250, 250, 300, 500, 1000])
        if random.random() < 0.02:
            self.now_ms += random.choice([3_000, 10_000, 70_000])
        self.wall_ms += random.choice([0, 250, 250, 300, -1_000, 3_600_000])
        self.reactor.tick(self.now_ms - random.choice([0, 0, 0, 500]), random.choice([None, self.wall_ms]))

    def settle(self) -> None:
        """Close all clients, let time pass, and check that all memory is returned."""
        for client in self.clients:
            client.sock.close()
        self.reactor.stop_listening()
        self.reactor.set_gate(GateLimits(), b"")
        self.reactor.book(0)
        for _ in range(600):
            self.now_ms += 250
            self.reactor.tick(self.now_ms)
            self.serve_sibling()
            for conn in [conn for conn in self.handles if self.reactor.inspect(conn)]:
                with contextlib.suppress(*REFUSED_CALLS):
                    self.reactor.resume_reading(conn)
                    self.reactor.refuse(conn, b"no")
            for kind, conn, value in self.reactor.poll(self.now_ms):
                self.check(kind, conn, value)
            self.flush()
        self.reactor.take_vacated(1_000)
        counters = self.reactor.counters()
        census = {name: count for name, count in counters.items() if name.startswith("now_") and count}
        assert not census, census
        assert not self.reactor.more
        self.audit("after all clients have left")
        held = self.reactor.bytes_held()
        for account in ("outbox", "partial", "subscription", "kernel_queued"):
            assert held[account] == 0, (account, held)
        unfinished = [conn for conn, past in self.history.items() if past[-1:] != [event_kinds.CLOSED]]
        assert not unfinished, "no `CLOSED`"

    def run(self, steps: int) -> None:
        """Run this many random operations, settle, and shut down."""
        descriptors = len(os.listdir("/proc/self/fd"))
        for number in range(steps):
            operation = random.choice(self.operations)
            operation()
            self.audit(f"step {number}, {operation.__name__}")
        self.settle()
        assert len(os.listdir("/proc/self/fd")) <= descriptors
        # All accounts are compared before `shutdown`, which sets them to zero.
        self.audit("at the end")
        self.reactor.shutdown()
        self.sibling.shutdown()
        self.listener.close()

    def audit(self, moment: str) -> None:
        """Compare every account of both reactors with its structures."""
        for name, reactor in (("reactor", self.reactor), ("sibling", self.sibling)):
            faults = audit(reactor)
            assert not faults, f"{name}, {moment}: " + "; ".join(faults[:5])


def main(arguments: list[str]) -> int:
    """Run one seed here, or many seeds as children; return 0 when all were sound."""
    parser = argparse.ArgumentParser(prog="tests.support.reactor_fuzz")
    parser.add_argument("seed", type=int, nargs="?", default=0, help="of the run, or of the first of several")
    parser.add_argument("steps", type=int, nargs="?", default=5_000)
    parser.add_argument("--seeds", type=int, default=0, help="run so many seeds, each as a child")
    parser.add_argument("--steps", dest="steps_each", type=int, default=0, help="of each of these")
    options = parser.parse_args(arguments)
    if not options.seeds:
        warnings.simplefilter("ignore")
        sys.unraisablehook = lambda unraisable: None
        Fuzz(options.seed).run(options.steps)
        print("sound")
        return 0
    steps = options.steps_each or options.steps
    return run_seeds(range(options.seed, options.seed + options.seeds), steps)


def run_seeds(seeds: range, steps: int) -> int:
    """Run one child for each seed, two at a time; print each seed that failed and how to repeat it."""
    began_s, failed, waiting = time.monotonic(), 0, list(seeds)
    children: dict[int, subprocess.Popen[str]] = {}
    done = 0
    while waiting or children:
        while waiting and len(children) < 2:
            seed = waiting.pop(0)
            command = [sys.executable, "-m", "tests.support.reactor_fuzz", str(seed), str(steps)]
            children[seed] = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        for seed, child in list(children.items()):
            try:
                said, _ = child.communicate(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
            del children[seed]
            done += 1
            if child.returncode or not said.endswith("sound\n"):
                failed += 1
                print(
                    f"{said[-3_000:]}\nagain: python -m tests.support.reactor_fuzz {seed} {steps}", flush=True
                )
            spent_s = time.monotonic() - began_s
            print(
                f"{done} of {len(seeds)} seeds, {done * steps:,} steps, {failed} failed, {spent_s:.0f} s",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
