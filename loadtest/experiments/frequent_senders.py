"""Let 7,000 clients send all the time: how long do a newcomer and a full socket wait for the shard?

    python -m loadtest frequent_senders [--talkers 7000] [--seconds 10]

One shard. The senders are in their own process; each sends a `ping` command as soon as it has the reply to
the one before, so that the shard always has more to read than it can. Two other clients are measured:

- newcomers connect, one after the other and at most 20 a second. The times from the first SYN to the response
  (accepted) and to `welcome` are measured;
- a reader with a small receive buffer lets publications fill its socket, and then reads as fast as it can.
  Whenever its receive buffer is empty, it waits until the gateway notices that the socket is writable and
  writes more. The longest such wait of each round is measured.

On two CPUs the shard has one, and all other processes share the other. The measuring process has
real-time priority if that is allowed, so that its own waiting for a CPU is not measured. The first part
of a run has no senders, for comparison. Fails if the 99th percentile of the newcomers' times until accepted,
or of the reader's waits, is over 50 ms, or if a newcomer has no welcome.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import secrets
import select
import socket
import sys
import time
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

import redis

from loadtest.engine import EchoPlan, EngineProcess
from loadtest.experiments.publish_fairness import percentile
from loadtest.harness.gateway import GatewayProcess
from loadtest.harness.machine_info import processors
from loadtest.harness.verdict import print_verdict
from loadtest.harness.wire_client import WireClient, upgrade_head
from loadtest.scenarios.stage import favoured, open_connections, start_engine

__all__ = ["Waits", "judge", "main", "measure"]

WAIT_S: Final = 0.05
NEWCOMERS_PER_S: Final = 20
ENGINE: Final = 61
CHANNEL: Final = "full"
PUBLICATIONS: Final = 100
PUBLICATION_BYTES: Final = 2_000  # less than an outbox holds in total, and more than both socket buffers
RECEIVE_BUFFER_BYTES: Final = 16_384
LIMIT_S: Final = 10.0
"""A newcomer or a reader that has waited so long is counted as lost."""
_PER_ROUND: Final = 4  # newcomers between two rounds of the reader
_BLOCK_S: Final = 0.1
_PROGRESS_S: Final = 2.0
_WARM_S: Final = 1.0
_RATE_PER_S: Final = 1_000_000.0  # more than can be answered, so that each sends again after its reply
_READ_BYTES: Final = 1 << 16

CONFIG: Final = """
[server]
host = "127.0.0.1"
port = {port}
shards = {shards}
drain_timeout = "{drain_timeout_s}s"

[admin]
port = 0

[auth]
allow_anonymous = true

[channels.default]
subscribe = "anyone"
publish = "anyone"
"""


class Waits(NamedTuple):
    """The times that were measured in one part of a run.

    Attributes:
        accepted_s: For each newcomer: from the first SYN to the response.
        accepted_cpu_s: The shard's CPU time during each of these waits.
        welcomed_s: For each newcomer: from the first SYN to `welcome`.
        served_s: For each round of the reader: its longest wait for more bytes.
        served_cpu_s: The shard's CPU time during each of these waits.
        lost: Newcomers without a welcome, and rounds in which not all bytes arrived.
    """

    accepted_s: list[float]
    accepted_cpu_s: list[float]
    welcomed_s: list[float]
    served_s: list[float]
    served_cpu_s: list[float]
    lost: int

    def told(self) -> str:
        """Return one line of text with all percentiles."""
        rows = {
            "accepted": (self.accepted_s, self.accepted_cpu_s),
            "welcomed": (self.welcomed_s, []),
            "full socket served": (self.served_s, self.served_cpu_s),
        }
        parts = [f"{name} {_told(*values)}" for name, values in rows.items()]
        return "; ".join(parts) + f"; {self.lost} lost"


def _told(values_s: list[float], cpu_s: list[float]) -> str:
    text = ", ".join(
        f"p{share * 100:.0f} {percentile(values_s, share) * 1e3:.1f} ms"
        + (f" (shard {percentile(cpu_s, share) * 1e3:.1f})" if cpu_s else "")
        for share in (0.5, 0.99)
    )
    return f"{text}, of {len(values_s)}"


def judge(beside: Waits) -> dict[str, bool]:
    """Return the checks of the part with senders, and whether each passed."""
    most = f"{WAIT_S * 1e3:.0f} ms at most"
    return {
        f"a newcomer is accepted after {most}, p99": percentile(beside.accepted_s, 0.99) <= WAIT_S,
        f"a full socket is served after {most}, p99": percentile(beside.served_s, 0.99) <= WAIT_S,
        "every newcomer was welcomed, and the reader received all bytes": beside.lost == 0,
    }


# --- what is measured -----------------------------------------------------------------------------------


class Entry(NamedTuple):
    """The times of one newcomer, and the shard's CPU time until it was accepted."""

    accepted_s: float
    accepted_cpu_s: float
    welcomed_s: float


def come_in(gateway: GatewayProcess) -> Entry:
    """Connect as a newcomer, wait for `welcome` and disconnect (OSError)."""
    accepted_s = accepted_cpu_s = 0.0
    heard = b""
    cpu_s, began_s = gateway.cpu_s(), time.monotonic()
    with socket.socket() as client:
        client.settimeout(LIMIT_S)
        client.connect(("127.0.0.1", gateway.port))
        client.sendall(upgrade_head(gateway.port))
        while b'"op":"welcome"' not in heard:
            data = client.recv(_READ_BYTES)
            if not data:
                raise ConnectionError(f"the gateway ended the connection: {heard!r}")
            if not heard:
                accepted_s, accepted_cpu_s = time.monotonic() - began_s, gateway.cpu_s() - cpu_s
            heard += data
        return Entry(accepted_s, accepted_cpu_s, time.monotonic() - began_s)


class FullReader:
    """A subscriber that stops reading until its socket is full, and then reads again."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._client = WireClient(gateway.port, receive_buffer_bytes=RECEIVE_BUFFER_BYTES)
        self._client.subscribe(CHANNEL)
        self._client.begin()
        self._gateway = gateway
        self._bus = redis.Redis(unix_socket_path=gateway.bus_path)
        self._payload = json.dumps(secrets.token_hex((PUBLICATION_BYTES - 2) // 2))

    def round(self) -> tuple[float, float, bool]:
        """Fill the socket and empty it.

        Returns:
            The longest wait for more bytes, the shard's CPU time during it, and whether all bytes arrived.
        """
        self._fill()
        time.sleep(_BLOCK_S)
        return self._drain()

    def _fill(self) -> None:
        """Publish more than the socket accepts, without reading."""
        with self._bus.pipeline(transaction=False) as pipeline:
            for _ in range(PUBLICATIONS):
                pipeline.publish(f"wsgate:ch:{CHANNEL}", self._payload)
            pipeline.execute()

    def _drain(self) -> tuple[float, float, bool]:
        missing, longest = PUBLICATIONS, (0.0, 0.0)
        poll = select.poll()
        poll.register(self._client, select.POLLIN)
        until_s = time.monotonic() + LIMIT_S
        while missing > 0 and time.monotonic() < until_s and not self._client.is_ended:
            cpu_s, began_s = self._gateway.cpu_s(), time.monotonic()
            poll.poll(LIMIT_S * 1e3)
            longest = max(longest, (time.monotonic() - began_s, self._gateway.cpu_s() - cpu_s))
            missing -= sum(self._payload.encode() in payload for payload in self._client.receive())
        return *longest, missing == 0

    def close(self) -> None:
        """Close the reader's connection and its connection to the bus."""
        self._client.close()
        self._bus.close()


def look(gateway: GatewayProcess, reader: FullReader, seconds: float) -> Waits:
    """Let newcomers connect one after the other for so long; fill and drain the reader between them."""
    waits = Waits([], [], [], [], [], 0)
    lost = number = 0
    began_s = due_s = shown_s = time.monotonic()
    while due_s < began_s + seconds:
        time.sleep(max(0.0, due_s - time.monotonic()))
        number += 1
        try:
            entry = come_in(gateway)
            waits.accepted_s.append(entry.accepted_s)
            waits.accepted_cpu_s.append(entry.accepted_cpu_s)
            waits.welcomed_s.append(entry.welcomed_s)
        except OSError:
            lost += 1
        if number % _PER_ROUND == 0:
            served_s, served_cpu_s, is_whole = reader.round()
            waits.served_s.append(served_s)
            waits.served_cpu_s.append(served_cpu_s)
            lost += not is_whole
        due_s = max(due_s + 1 / NEWCOMERS_PER_S, time.monotonic())
        if due_s > shown_s + _PROGRESS_S:
            shown_s = due_s
            print(f"    {number} newcomers, {due_s - began_s:.0f} of {seconds:.0f} s", flush=True)
    return waits._replace(lost=lost)


def _talk(engine: EngineProcess, seconds: float) -> Future[Any]:
    """Let every sender send as soon as it has a reply, for so long."""
    plan = EchoPlan(
        duration_s=seconds,
        rate_per_s=_RATE_PER_S,
        in_flight=1,
        message='{"op":"ping"}',
        answer='{"op":"pong"',
        is_text=True,
    )
    return engine.start("echo", **dataclasses.asdict(plan))


class Talk(NamedTuple):
    """The rate of the senders' replies, and the shard's CPU time for one of them."""

    per_s: float
    cpu_us: float


def measure(talkers: int, seconds: float, pinned: tuple[int, int] | None) -> tuple[Waits, Waits, Talk]:
    """Return the times without senders, the times with them, and the senders' rate."""
    shard, rest = pinned if pinned is not None else (None, None)
    with (
        GatewayProcess(processor=shard, config=CONFIG) as gateway,
        start_engine(ENGINE, rest) as engine,
    ):
        open_connections(engine, gateway, talkers)
        print(f"    {talkers} talkers are connected", flush=True)
        reader = FullReader(gateway)
        gateway.settle()
        with favoured(os.getpid()):
            before = look(gateway, reader, seconds / 2)
            talk = _talk(engine, seconds + _WARM_S + 3 * LIMIT_S)
            time.sleep(_WARM_S)
            first, began_s, cpu_s = engine.stats()["echoes_received"], time.monotonic(), gateway.cpu_s()
            beside = look(gateway, reader, seconds)
            passed_s, cpu_s = time.monotonic() - began_s, gateway.cpu_s() - cpu_s
            answered = max(1, engine.stats()["echoes_received"] - first)
        if talk.done():
            raise RuntimeError("the talkers ended before the measurement did")
        reader.close()
    return before, beside, Talk(answered / passed_s, cpu_s / answered * 1e6)


def main(arguments: list[str] | None = None) -> int:
    """Measure once; return 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.frequent_senders")
    parser.add_argument("--talkers", type=int, default=7_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args(arguments)
    pinned = processors()
    if pinned is not None:
        os.sched_setaffinity(0, (pinned[1],))
        print(f"processor {pinned[0]} is the shard's; bus, talkers and clients share processor {pinned[1]}")
    before, beside, talk = measure(options.talkers, options.seconds, pinned)
    print(f"    before  {before.told()}")
    print(f"    beside  {beside.told()}")
    print(
        f"    the talkers: {talk.per_s:,.0f} messages a second, {talk.cpu_us:.1f} us of the shard's CPU each"
    )
    return print_verdict({"the senders had replies": talk.per_s > 1} | judge(beside))


if __name__ == "__main__":
    sys.exit(main())
