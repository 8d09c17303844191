"""Let other clients publish as fast as they can: how long do a good client's publishes take?

    python -m loadtest publish_fairness [--clients 250] [--user-connections 1000] [--seconds 8]

One shard with a private bus. 250 clients, each of a different user, publish 60 B and 2 KB, and 12 clients 60
KB; then one user publishes 60 B and 2 KB on 1,000 connections. During each attack a good client publishes 40
times a second with `id`, whether it has replies or not; its latency is measured from sending to `ok`. The
first part of a run has no attack, for comparison.

With each latency the program prints how much of it the shard worked (its CPU time): on a machine with other
work the rest is waiting for a CPU. For the same reason the good client's rate is by the CPU time of the
shard during an attack, which is real time if the shard has its own CPU: a shard that gets a tenth of a
CPU cannot give 251 clients 40 turns in a second.

The attackers are one process with the priority of the gateway. On two CPUs the shard has one, and all
other processes share the other. The good client has real-time priority if that is allowed, so that its own
waiting for a CPU is not measured. The configuration is the default, except that the limits of the rates
of publishes and of their bytes are off: with them no attacker reaches these rates.

Fails if the 99th percentile of the good client is over 50 ms during an attack, or if one of its publishes was
refused or had no reply.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from loadtest.harness.gateway import GatewayProcess
from loadtest.harness.machine_info import processors
from loadtest.harness.verdict import print_verdict
from loadtest.harness.wire_client import WireClient
from loadtest.peers.publish_flood import FloodPlan, PublishFlood, PublishFloodResult
from loadtest.scenarios.members import make_tokens
from loadtest.scenarios.stage import favoured

__all__ = ["Case", "Sample", "judge", "main", "measure", "percentile"]

P99_S: Final = 0.05
RATE_PER_S: Final = 40
LARGE_CLIENTS: Final = 12
ANSWER_S: Final = 30.0
"""How long to wait for the last replies, in seconds."""
SLOWEST: Final = 10.0
"""A run by the shard's CPU time ends after so many times its length, however little time the shard gets."""
_STEP_MS: Final = 1
_WARM_S: Final = 2.0
"""The first turn of each client is not measured, only the time after it."""
_SPARE_S: Final = 30.0

CONFIG: Final = """
[server]
host = "127.0.0.1"
port = {port}
shards = {shards}
drain_timeout = "{drain_timeout_s}s"

[admin]
port = 0

[auth]
hmac_secret = "{secret}"

[limits]
publish_rate = 0  # off: the program measures how turns are shared
publish_byte_rate = 0
node_publish_byte_rate = 0

[channels.default]
subscribe = "authenticated"
publish = "authenticated"

[channels.flood]
subscribe = "authenticated"
publish = "authenticated"
"""


class Case(NamedTuple):
    """One attack: how many clients, of how many users, publish messages of which size."""

    clients: int
    users: int
    size: int

    @property
    def name(self) -> str:
        """A text that names the attack."""
        who = f"one user on {self.clients:,} connections" if self.users == 1 else f"{self.clients} clients"
        size = f"{self.size // 1_024} KB" if self.size >= 1_024 else f"{self.size} B"
        return f"{who} x {size}"


def cases(clients: int, connections: int) -> list[Case]:
    """Return all attacks for these numbers of clients and connections."""
    return [
        Case(clients, clients, 60),
        Case(clients, clients, 2 * 1_024),
        Case(min(LARGE_CLIENTS, clients), min(LARGE_CLIENTS, clients), 60 * 1_024),
        Case(connections, 1, 60),
        Case(connections, 1, 2 * 1_024),
    ]


class Sample(NamedTuple):
    """The results of the good client's publishes.

    Attributes:
        latencies_s: The latencies of those with the reply `ok`.
        cpu_s: The shard's CPU time during each of them.
        refused: The number with another reply.
        unanswered: The number without a reply.
    """

    latencies_s: list[float]
    cpu_s: list[float]
    refused: int
    unanswered: int

    def told(self) -> str:
        """Return one line of text with all numbers."""
        parts = (
            f"p{share * 100:.0f} {percentile(self.latencies_s, share) * 1e3:.1f} ms"
            f" (shard worked {percentile(self.cpu_s, share) * 1e3:.1f})"
            for share in (0.5, 0.99)
        )
        return (
            f"{', '.join(parts)}, {len(self.latencies_s)} ok, {self.refused} refused,"
            f" {self.unanswered} unanswered"
        )


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all values does not exceed; infinite without values."""
    if not values:
        return float("inf")
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def judge(name: str, during: Sample) -> dict[str, bool]:
    """Return the checks of one attack, and whether each passed."""
    return {
        f"{name}: p99 is {P99_S * 1e3:.0f} ms at most": percentile(during.latencies_s, 0.99) <= P99_S,
        f"{name}: none is refused": not during.refused and not during.unanswered,
    }


class GoodClient:
    """The client that is measured: it publishes at a fixed rate and records the time of each reply."""

    def __init__(self, gateway: GatewayProcess) -> None:
        (token,) = make_tokens(["good"], "fair")
        self._gateway = gateway
        self._client = WireClient(gateway.port, token=token)
        self._client.begin()
        self._id = 0

    def run(self, seconds: float, clock: Callable[[], float]) -> Sample:
        """Publish by this clock for so long, then wait for the remaining replies."""
        due: dict[int, tuple[float, float]] = {}
        found = Sample([], [], 0, 0)
        poll = select.poll()
        poll.register(self._client, select.POLLIN)
        began_s, until_s = clock(), time.monotonic() + seconds * SLOWEST
        for number in range(int(seconds * RATE_PER_S)):
            while (is_in_time := time.monotonic() < until_s) and clock() < began_s + number / RATE_PER_S:
                poll.poll(_STEP_MS)
                found = self._take(due, found)
            if not is_in_time:
                break
            self._id += 1
            due[self._id] = time.monotonic(), self._gateway.cpu_s()
            self._client.send(op="pub", ch="good", data=self._id, id=self._id)
        until_s = time.monotonic() + ANSWER_S
        while due and not self._client.is_ended and (left_s := until_s - time.monotonic()) > 0:
            poll.poll(left_s * 1e3)
            found = self._take(due, found)
        return found._replace(unanswered=len(due))

    def _take(self, due: dict[int, tuple[float, float]], found: Sample) -> Sample:
        """Read and record the replies that have arrived."""
        for message in map(json.loads, self._client.receive()):
            due_s, cpu_s = due.pop(message.get("id"), (0.0, 0.0))
            if due_s and message["op"] == "ok":
                found.latencies_s.append(time.monotonic() - due_s)
                found.cpu_s.append(self._gateway.cpu_s() - cpu_s)
            elif due_s:
                found = found._replace(refused=found.refused + 1)
        return found

    def close(self) -> None:
        """Close the good client's connection."""
        self._client.close()


def measure(case: Case, seconds: float, processor: int | None) -> tuple[Sample, Sample, PublishFloodResult]:
    """Run one attack on its own gateway.

    Returns:
        The good client's results before and during the attack, and the result of the flood.
    """
    users = [f"flooder-{number % case.users}" for number in range(case.clients)]
    with GatewayProcess(processor=processor, config=CONFIG) as gateway:
        plan = FloodPlan(gateway.port, make_tokens(users, "flood"), case.size, seconds * SLOWEST + _SPARE_S)
        with PublishFlood(plan) as flood:
            gateway.settle()
            good = GoodClient(gateway)
            with favoured(os.getpid()):
                before = good.run(seconds / 2, time.monotonic)
                flood.begin()
                time.sleep(_WARM_S)
                during = good.run(seconds, gateway.cpu_s)
            result = flood.finish()
            good.close()
        if gateway.metric("restarts_total"):
            raise RuntimeError("a process of the gateway ended")
    return before, during, result


def _run(options: argparse.Namespace, processor: int | None) -> Iterator[Mapping[str, bool]]:
    for case in cases(options.clients, options.user_connections):
        print(f"{case.name}", flush=True)
        before, during, flood = measure(case, options.seconds, processor)
        print(f"    before  {before.told()}")
        print(f"    during  {during.told()}")
        print(
            f"    attack  {flood['accepted'] / flood['elapsed_s']:,.0f} publishes/s answered ok,"
            f" {flood['refused'] / flood['elapsed_s']:,.0f}/s refused, {flood['ended']} connections ended",
            flush=True,
        )
        yield judge(case.name, during)


def main(arguments: list[str] | None = None) -> int:
    """Run every attack; return 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.publish_fairness")
    parser.add_argument("--clients", type=int, default=250)
    parser.add_argument("--user-connections", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args(arguments)
    pinned = processors()
    shard, rest = pinned if pinned is not None else (None, None)
    if rest is not None:
        os.sched_setaffinity(0, (rest,))
        print(f"processor {shard} is the shard's; bus, attackers and good client share processor {rest}")
    print("publish_rate, publish_byte_rate and node_publish_byte_rate are switched off in the configuration")
    checks: dict[str, bool] = {}
    for found in _run(options, shard):
        checks |= found
    return print_verdict(checks)


if __name__ == "__main__":
    sys.exit(main())
