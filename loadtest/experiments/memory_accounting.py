"""Compare a shard's memory accounts with its real memory, for random mixes of clients.

    python -m loadtest memory_accounting [--mixes 6] [--seed N]

Each mix has its own gateway in a memory control group (needs root). A mix is a number of users, the channels
to which each is subscribed, the lengths of their names, a share of clients that read nothing, and
publications that wait for those. The real memory is the growth of the shard's own memory (proportional set
size), and the kernel memory that was charged to the group: sockets, and the bytes queued in them. The
accounts are the growth of the sum of `wsgate_memory_bytes`. Fails if they differ by more than 15 %. The seed
is printed; the same seed draws the same mixes. In some mixes clients use compression, or never finish a
message that they have begun (check A3).
"""

from __future__ import annotations

import argparse
import contextlib
import random
import secrets
import socket
import sys
import time
from typing import Final, NamedTuple

import redis

from loadtest.engine import EngineProcess
from loadtest.harness import processes
from loadtest.harness.gateway import GatewayProcess
from loadtest.scenarios.members import BEARER, COUNTED, await_told, make_tokens
from loadtest.scenarios.stage import open_connections, start_engine
from tests.support.memory_group import MemoryGroup, memory_group

__all__ = ["main"]

GROUP_BYTES: Final = 8 << 30
READ_BYTES: Final = 600_000_000
OFF_BY: Final = 0.15
HEAD: Final = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
DEFLATE: Final = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
HALF: Final = b"\xfe\xea\x60" + bytes(4 + 30_000)  # announces 60,000 bytes; the mask is 0
_PING_S: Final = 5
_FRESH_S: Final = 2.3  # a shard writes its statistics once a second
_LOOK_S: Final = 6.0
_UNLIMITED: Final = str(1 << 60)


class Mix(NamedTuple):
    """The parameters of one mix of clients."""

    connections: int
    channels: int  # subscribed by each client, in addition to its inbox and the channel of all
    is_shared: bool  # those channels are shared by all clients, or each client has its own
    name_bytes: int
    stalled_share: float
    publications: int
    payload_bytes: int
    unfinished: int  # further clients that each have sent half a message
    is_compressing: bool  # those further clients use compression

    @classmethod
    def draw(cls, chance: random.Random) -> Mix:
        """Draw a mix at random."""
        connections, payload_bytes = chance.randrange(2_000, 8_001), chance.randrange(100, 8_000)
        # Clients that read receive everything: more than they can read in time would make them stalled too.
        most = READ_BYTES // (connections * payload_bytes)
        return cls(
            connections=connections,
            channels=chance.choice((0, 1, 3, 10)),
            is_shared=chance.random() < 0.5,
            name_bytes=chance.randrange(12, 150),
            stalled_share=chance.choice((0.0, 0.0, 0.02, 0.1)),
            publications=min(chance.randrange(20, 200), max(1, most)),
            payload_bytes=payload_bytes,
            unfinished=chance.choice((0, 0, 100, 400)),
            is_compressing=chance.random() < 0.5,
        )

    def told(self) -> str:
        """Return one line of text that describes the mix."""
        kind = "shared" if self.is_shared else "own"
        text = f"{self.connections} clients"
        if self.channels:
            text += f", {self.channels} {kind} channels of {self.name_bytes} B"
        if self.stalled_share:
            text += f", {self.stalled_share:.0%} stalled behind {self.publications} x {self.payload_bytes} B"
        if self.unfinished:
            text += f", {self.unfinished} that do not finish" + ", deflated" * self.is_compressing
        return text


class Sums(NamedTuple):
    """The accounts, and the shards' own and kernel memory, at one moment, in bytes."""

    books: float
    own: float
    kernel: float


class Scale:
    """Reads the accounts and the real memory of one gateway."""

    def __init__(self, gateway: GatewayProcess, group: MemoryGroup) -> None:
        self._gateway = gateway
        self._group = group

    def read(self) -> Sums:
        """Read both when the shard's statistics are up to date."""
        time.sleep(_FRESH_S)
        own = sum(processes.memory(pid).pss_bytes for pid in self._gateway.shard_pids)
        return Sums(self._gateway.metric("memory_bytes"), own, self._kernel())

    def _kernel(self) -> int:
        names = ("memory.kmem.usage_in_bytes", "memory.kmem.tcp.usage_in_bytes")
        if (self._group.folder / names[0]).exists():
            return sum(int((self._group.folder / name).read_text()) for name in names)
        rows = dict(line.split() for line in (self._group.folder / "memory.stat").read_text().splitlines())
        return int(rows["kernel"]) + int(rows["sock"])


def _crowd(engine: EngineProcess, gateway: GatewayProcess, mix: Mix) -> None:
    tokens = make_tokens([f"user-{number}" for number in range(mix.connections)], "mix")
    open_connections(
        engine,
        gateway,
        mix.connections,
        path="/ws?ch=all",
        headers=BEARER,
        tokens=tokens,
        slow_share=mix.stalled_share,
        receive_buffer_bytes=8_192 if mix.stalled_share else 0,
    )
    for number in range(mix.channels):
        stem = f"{number}-" + "x" * (mix.name_bytes - 8)
        if mix.is_shared:
            engine.send(f'{{"op":"sub","ch":"{stem}"}}')
        else:
            for place in range(mix.connections):
                engine.send(f'{{"op":"sub","ch":"{stem}{place}"}}', first=place, count=1)
    if mix.stalled_share == 0:
        await_told(engine, welcome=mix.connections, subbed=mix.connections * (2 + mix.channels))
    gateway.settle()


def _begin_a_message(port: int, *, is_compressing: bool) -> socket.socket:
    """Open a client that has sent half a message."""
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(HEAD + DEFLATE * is_compressing + b"\r\n")
    while not client.recv(4_096).endswith(b"}"):  # the welcome is the last message that the client receives
        continue
    client.sendall((b"\xc2" if is_compressing else b"\x82") + HALF)
    return client


def weigh(mix: Mix) -> tuple[Sums, Sums]:
    """Return the accounts and the real memory before the clients connect and with them."""
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(memory_group(GROUP_BYTES))
        with contextlib.suppress(OSError):  # version 1 counts the bytes in sockets only if they are limited
            (group.folder / "memory.kmem.tcp.limit_in_bytes").write_text(_UNLIMITED)
        gateway = GatewayProcess(prefix=group.prefix, compression=mix.is_compressing, ping_interval_s=_PING_S)
        stack.callback(gateway.stop)
        engine = start_engine(11, None, COUNTED)
        stack.callback(engine.quit)
        scale = Scale(gateway, group)
        before = scale.read()
        _crowd(engine, gateway, mix)
        if mix.stalled_share:
            with redis.Redis(unix_socket_path=gateway.bus_path) as bus:
                for _ in range(mix.publications):
                    bus.publish("wsgate:ch:all", secrets.token_hex(mix.payload_bytes // 2))
            gateway.settle()
        if mix.stalled_share:
            time.sleep(_LOOK_S)  # the shard checks sockets that are not full in turn
        halves = [
            stack.enter_context(_begin_a_message(gateway.port, is_compressing=mix.is_compressing))
            for _ in range(mix.unfinished)
        ]
        after = scale.read()
        if gateway.metric("connections_held") != mix.connections + len(halves):
            raise RuntimeError("some clients were disconnected, so the mix is not the one that was drawn")
        return before, after


def main(arguments: list[str] | None = None) -> int:
    """Compare several mixes and print; return 1 if the accounts differ too much."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.memory_accounting")
    parser.add_argument("--mixes", type=int, default=6)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    options = parser.parse_args(arguments)
    chance = random.Random(options.seed)
    print(f"seed {options.seed}")
    print(f"{'accounts':>9}{'own':>9}{'kernel':>9}  {'accounts/real':<17}a connection  mix")
    worst = 0.0
    for _ in range(options.mixes):
        mix = Mix.draw(chance)
        before, after = weigh(mix)
        books, own, kernel = (late - early for late, early in zip(after, before, strict=True))
        ratio = books / (own + kernel)
        worst = max(worst, abs(ratio - 1))
        each = (own + kernel) / (mix.connections + mix.unfinished)
        sums = f"{books / 1e6:>7.1f}MB{own / 1e6:>7.1f}MB{kernel / 1e6:>7.1f}MB"
        print(f"{sums}  {ratio:<17.3f}{each:>8.0f} B    {mix.told()}", flush=True)
    print(f"{'ok  ' if worst <= OFF_BY else 'MISS'} off by {worst:.1%} at most, <= {OFF_BY:.0%}")
    return int(worst > OFF_BY)


if __name__ == "__main__":
    sys.exit(main())
