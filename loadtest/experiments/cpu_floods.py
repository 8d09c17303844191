"""Flood a shard with messages that are costly to handle: how long do a good client's replies take?

    python -m loadtest cpu_floods [--clients 30] [--only NAME] [--seconds 5]

One shard with the default limits. 20 good clients send `ping`, 20 times a second each, before and during each
flood of costly_flood.py. Fails if the p99 of their replies is above 10 ms with up to 30 flooders, or 20 ms
with more, or if a good client had no reply. Run it on a machine without other work: the flood, the good
clients and the shard need a CPU each.
"""

from __future__ import annotations

import argparse
import select
import statistics
import sys
import time
from typing import Final

from loadtest.harness.gateway import GatewayProcess
from loadtest.harness.verdict import print_verdict
from loadtest.peers.costly_flood import FLOODS, HANDSHAKES, question
from loadtest.peers.message_flood import FloodProcess, Peer

__all__ = ["main"]

GOOD: Final = 20
ASKED_PER_S: Final = 20
LIMITS_MS: Final = ((30, 10.0), (sys.maxsize, 20.0))  # number of flooders, limit in ms
WARM_UP_S: Final = 0.5  # the cost of a flood's first messages is not known to the shard
_LOST_S: Final = 5.0
_BUFFER_BYTES: Final = 1 << 16

_CONFIG: Final = """
[server]
host = "127.0.0.1"
port = 0
shards = {shards}
compression = {compression}
drain_timeout = "1s"

[admin]
port = 0

[auth]
hmac_secret = "{secret}"
allow_anonymous = true

[channels.default]
subscribe = "token"
publish = "anyone"
"""


class _Good(Peer):
    """A good client: it sends a ping, and records the time until the reply."""

    def __init__(self, port: int) -> None:
        super().__init__(port, question('{"op":"ping"}'))
        self.answers_s: list[float] = []
        self.asked_s = 0.0

    def ask(self) -> None:
        """Send a ping, unless the reply to the last one has not arrived."""
        if not self.asked_s:
            self.asked_s = time.perf_counter()
            self.write()

    def take(self, buffer: bytearray) -> None:
        """Read a reply; a message without an open ping is the welcome."""
        if not self.read(buffer):
            raise RuntimeError("a good client was disconnected")
        if self.asked_s:
            self.answers_s.append(time.perf_counter() - self.asked_s)
            self.asked_s = 0.0


class _Group:
    """All good clients, and the poll object that serves them."""

    def __init__(self, port: int) -> None:
        self._buffer = bytearray(_BUFFER_BYTES)
        self._clients = [_Good(port) for _ in range(GOOD)]
        self._by_fd = {client.socket.fileno(): client for client in self._clients}
        self._poll = select.epoll()
        for descriptor in self._by_fd:
            self._poll.register(descriptor, select.EPOLLIN)
        self._wait(0.5)  # for their welcomes

    def measure(self, seconds: float) -> list[float]:
        """Send pings in turn for this time; return the times of all replies, in seconds.

        Raises:
            RuntimeError: A good client was disconnected, or has waited for a reply for more than `_LOST_S`.
        """
        for client in self._clients:
            client.answers_s.clear()
        step_s = 1 / (GOOD * ASKED_PER_S)
        began_s = time.perf_counter()
        asked = 0
        while (passed_s := time.perf_counter() - began_s) < seconds:
            while asked * step_s <= passed_s:
                self._clients[asked % GOOD].ask()
                asked += 1
            self._wait(max(0.0, asked * step_s - passed_s))
        until_s = time.perf_counter() + _LOST_S
        while any(client.asked_s for client in self._clients):
            if time.perf_counter() > until_s:
                raise RuntimeError("a good client was not answered")
            self._wait(0.1)
        return [each for client in self._clients for each in client.answers_s]

    def close(self) -> None:
        """Close the sockets of all good clients."""
        self._poll.close()
        for client in self._clients:
            client.socket.close()

    def _wait(self, timeout_s: float) -> None:
        for descriptor, _ in self._poll.poll(timeout_s):
            self._by_fd[descriptor].take(self._buffer)


def _shown(answers_s: list[float]) -> tuple[str, float]:
    """Return the p50 and the p99 in milliseconds as a text, and the p99."""
    cuts_ms = [1e3 * each for each in statistics.quantiles(answers_s, n=100)]
    return f"{cuts_ms[49]:.1f}/{cuts_ms[98]:.1f}", cuts_ms[98]


def _run(name: str, clients: int, seconds: float) -> float:
    """Run and print one flood; return the p99 of the good clients' replies during it, in milliseconds."""
    with GatewayProcess(compression=True, config=_CONFIG) as gateway:
        group = _Group(gateway.port)
        limit_s = 4 * (seconds + WARM_UP_S + _LOST_S)
        arguments = (name,)
        with FloodProcess(
            gateway.port, clients, limit_s=limit_s, module="loadtest.peers.costly_flood", arguments=arguments
        ) as flood:
            before, _ = _shown(group.measure(seconds))
            flood.begin()
            group.measure(WARM_UP_S)
            cpu_s, began_s = gateway.cpu_s(), time.perf_counter()
            during, p99_ms = _shown(group.measure(seconds))
            busy = (gateway.cpu_s() - cpu_s) / (time.perf_counter() - began_s)
            result = flood.finish()
        group.close()
    print(
        f"{name:12} {result['sent_bytes'] / result['elapsed_s'] / 1e6:7.1f} MB/s, shard {busy:4.0%} busy,"
        f" {result['ended']} flooders cut; ping p50/p99 before {before} ms, during {during} ms",
        flush=True,
    )
    return p99_ms


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen floods; return 1 if good clients waited too long."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.cpu_floods")
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--only", choices=[*FLOODS, HANDSHAKES])
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args(arguments)
    limit_ms = next(limit_ms for clients, limit_ms in LIMITS_MS if options.clients <= clients)
    names = [options.only] if options.only else [*FLOODS, HANDSHAKES]
    return print_verdict(
        {
            f"{name}: p99 <= {limit_ms:.0f} ms": _run(name, options.clients, options.seconds) <= limit_ms
            for name in names
        }
    )


if __name__ == "__main__":
    sys.exit(main())
