"""Restart a node with 20,000 of our own clients: do they reconnect at the same moment, or spread out?

    python -m loadtest node_restart [--clients 20000] [--members 4] [--kill]

Complete `wsgate.client.Client`s, in a few processes, are connected to a gateway, which is then ended and
started again on the same port: with SIGTERM, so that it drains and sends each client a time to come back; or
with `--kill`, so that clients receive nothing. Every attempt to connect is recorded, with the moment for
which its client had set its clock: real phones do not share one interpreter, as these clients do (the delay
is printed). Fails if any 100 ms have more than three times the mean number of attempts, from the first to the
last, or if a client was not connected again in time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

import uvloop

from loadtest.harness.gateway import GatewayProcess
from loadtest.harness.spreading import TIMES_THE_MEAN, draw, worst_share
from loadtest.scenarios.members import make_tokens
from wsgate.client import Client
from wsgate.client.connector import ClientState
from wsgate.client.environment import Environment, MonotonicClock
from wsgate.client.options import ClientOptions
from wsgate.client.transport import Opening, Transport, open_websocket

__all__ = ["main"]

DRAIN_S: Final = 30
PATIENCE_S: Final = 300.0
PER_SHARD: Final = 15_000  # a shard's descriptors end at 20,000, and connections are not spread evenly
_WINDOW: Final = 50  # clients that connect at once at the beginning


class Alarm(MonotonicClock):
    """The clock of one client; `due_s` is the moment at which its last sleep was to end."""

    def __init__(self) -> None:
        self.due_s = time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Sleep, and record when the sleep was to end."""
        due_s = time.monotonic() + seconds
        await super().sleep(seconds)
        self.due_s = due_s


class Attempt(NamedTuple):
    """When an attempt was due, and how much later it was made."""

    due_s: float
    late_s: float


class Member:
    """Some of the clients, in their own process, which answers requests over a pipe."""

    def __init__(self, url: str, tokens: Sequence[str]) -> None:
        self.attempts: list[Attempt] = []
        # A handshake waits for a CPU if both ends are on one machine; that is not measured here.
        options = ClientOptions(open_timeout_s=120.0)
        self._clients = [
            Client(
                url,
                token=token,
                options=options,
                environment=self._environment(),
                on_error=lambda error: None,
            )
            for token in tokens
        ]

    def _environment(self) -> Environment:
        alarm = Alarm()

        async def connect(opening: Opening) -> Transport:
            self.attempts.append(Attempt(alarm.due_s, time.monotonic() - alarm.due_s))
            return await open_websocket(opening)

        return Environment(clock=alarm, connect=connect)

    async def serve(self, pipe: Connection) -> None:
        """Connect all clients, then answer `open` and `attempts` until `end` arrives."""
        window = asyncio.Semaphore(_WINDOW)

        async def begin(client: Client) -> None:
            async with window:
                client.start()
                await client.connected()

        await asyncio.gather(*map(begin, self._clients))
        self.attempts.clear()
        loop = asyncio.get_running_loop()
        while True:
            wish = await loop.run_in_executor(None, pipe.recv)
            if wish == "open":
                pipe.send(sum(client.state is ClientState.OPEN for client in self._clients))
            elif wish == "attempts":
                pipe.send(self.attempts)
            else:
                return


def _serve(url: str, tokens: Sequence[str], pipe: Connection) -> None:
    uvloop.run(Member(url, tokens).serve(pipe))
    pipe.close()
    os._exit(0)  # the connections end with the process, without 5,000 separate Closes


class Members:
    """All processes with clients, and the pipes to them."""

    def __init__(self, url: str, clients: int, members: int) -> None:
        tokens = make_tokens([f"user-{number}" for number in range(clients)], "reconnect")
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for part in range(members):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(url, tokens[part::members], theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def ask(self, wish: str) -> list[Any]:
        """Send a request to each process, and return the answers."""
        for pipe in self._pipes:
            pipe.send(wish)
        return [self._answer(pipe) for pipe in self._pipes]

    def _answer(self, pipe: Connection) -> Any:
        if not pipe.poll(PATIENCE_S):
            raise RuntimeError("a process with clients does not reply")
        return pipe.recv()

    def await_open(self, count: int, what: str) -> None:
        """Wait until so many clients are connected, and show the progress."""
        until_s = time.monotonic() + PATIENCE_S
        while (found := sum(self.ask("open"))) != count:
            if time.monotonic() > until_s:
                raise RuntimeError(f"{found} of {count} are {what}")
            _show(f"{found:>7,} of {count:,} {what}")
            time.sleep(0.5)

    def end(self) -> None:
        """End all processes with clients."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send("end")
        for process in self._processes:
            process.join(10)
            process.kill()


def measure(clients: int, members: int, *, is_killed: bool) -> tuple[list[Attempt], float, float]:
    """Restart once; return the attempts, when the restart began, and how long until all were connected."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    shards = -(-clients // PER_SHARD)
    with contextlib.ExitStack() as stack:
        gateway = GatewayProcess(shards=shards, port=port, drain_timeout_s=DRAIN_S)
        stack.callback(lambda: gateway.stop(is_killed=True))
        crowd = Members(f"ws://127.0.0.1:{port}/ws", clients, members)
        stack.callback(crowd.end)
        crowd.await_open(clients, "connected")
        began_s = time.monotonic()
        gateway.stop(is_killed=is_killed)
        gateway = GatewayProcess(shards=shards, port=port, drain_timeout_s=DRAIN_S)
        crowd.await_open(clients, "back")
        back_s = time.monotonic() - began_s
        attempts = sorted(attempt for part in crowd.ask("attempts") for attempt in part)
    return attempts, began_s, back_s


def _show(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure and draw; return 1 if attempts were not spread or a client did not reconnect."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.node_restart")
    parser.add_argument("--clients", type=int, default=20_000)
    parser.add_argument("--members", type=int, default=4, help="number of processes with clients")
    parser.add_argument("--kill", action="store_true", help="kill the node instead of draining it")
    options = parser.parse_args(arguments)
    try:
        attempts, began_s, back_s = measure(options.clients, options.members, is_killed=options.kill)
    except RuntimeError as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    attempts_s = [attempt.due_s for attempt in attempts]
    most, mean = worst_share(attempts_s)
    late_s = max(attempt.late_s for attempt in attempts)
    _show("")
    print("\n".join(draw(attempts_s, began_s)))
    print(
        f"{options.clients:,} clients back after {back_s:.1f} s, {len(attempts_s):,} attempts;"
        f" in 100 ms {most} at most, {mean:.0f} on average: {most / mean:.2f} times;"
        f" made {late_s:.1f} s late at most"
    )
    return 0 if most <= TIMES_THE_MEAN * mean else 1


if __name__ == "__main__":
    sys.exit(main())
