"""Offer a node 2.5 times the handshakes that it takes, for 8 s: which are served, and which are refused?

    python -m loadtest overload [--rate 3200] [--seconds 8]

The ratios are those of 50,000 a second offered to a node that takes 20,000, with at most 3,000 in progress; a
machine that holds both ends needs smaller numbers. Clients connect at a fixed rate, whatever the result of
earlier ones, from one engine for each shard. Fails unless every admitted client was served, every other
client read a 429 or 503, no connection was reset, the p99 from the first SYN to the answer is at most a
second, and the node's memory grew by no more than the accounts of its connections.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import threading
import time
from collections import Counter
from typing import Final, NamedTuple

from loadtest.engine import ConnectPlan, ConnectResult
from loadtest.harness import processes
from loadtest.harness.gateway import GatewayProcess
from loadtest.harness.verdict import print_verdict
from loadtest.scenarios.stage import start_engine

__all__ = ["main"]

SHARDS: Final = 2
OFFERED: Final = 2.5  # offered handshakes, as a multiple of those taken
IN_PROGRESS: Final = 3_000 / 20_000  # as a share of those taken in a second
P99_S: Final = 1.0
SLACK_BYTES: Final = 6 << 20  # two heaps that had not been as busy before
OWN_BYTES: Final = 300  # memory of one connection in the process, with the growth of tables
_SAMPLE_S: Final = 0.25


class Outcome(NamedTuple):
    """The result of one run of overload."""

    offered: int
    opened: int
    refused: Counter[str]
    failed: Counter[str]
    p99_s: float
    took_s: float
    grown_bytes: int


class Watch(threading.Thread):
    """A thread that records the highest memory of the node."""

    def __init__(self, gateway: GatewayProcess) -> None:
        super().__init__(daemon=True)
        self._pids = gateway.shard_pids
        self._is_over = threading.Event()
        self.first_bytes = self.most_bytes = self._now()

    def _now(self) -> int:
        return sum(processes.memory(pid).pss_bytes for pid in self._pids)

    def run(self) -> None:
        """Sample the memory until `stop` is called."""
        while not self._is_over.wait(_SAMPLE_S):
            self.most_bytes = max(self.most_bytes, self._now())

    def stop(self) -> int:
        """Stop, and return by how many bytes the memory grew."""
        self._is_over.set()
        self.join()
        return self.most_bytes - self.first_bytes


def run(gateway: GatewayProcess, rate_per_s: int, seconds: float) -> Outcome:
    """Offer the handshakes from two engines, and return the result."""
    each_per_s = OFFERED * rate_per_s / SHARDS
    plan = ConnectPlan(
        count=int(each_per_s * seconds),
        host="127.0.0.1",
        port=gateway.port,
        path="/ws",
        rate_per_s=each_per_s,
        timeout_s=20.0,
        is_overcommitted=True,
        is_refusal_reset=True,
    )
    engines = [start_engine(21 + number, None) for number in range(SHARDS)]
    watch = Watch(gateway)
    watch.start()
    try:
        began_s = time.monotonic()
        futures = [engine.start("connect", **dataclasses.asdict(plan)) for engine in engines]
        results: list[ConnectResult] = [future.result(timeout=seconds + 60) for future in futures]
        took_s = time.monotonic() - began_s
        p99_s = max(engine.stats()["connect_latency"]["p99"] for engine in engines) / 1e9
        grown_bytes = watch.stop()
    finally:
        for engine in engines:
            engine.quit()
    refused: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for result in results:
        refused.update(result["refused"])
        failed.update(result["failed"])
    opened = sum(result["opened"] for result in results)
    return Outcome(SHARDS * plan.count, opened, refused, failed, p99_s, took_s, grown_bytes)


def main(arguments: list[str] | None = None) -> int:
    """Run once, print, and return 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.overload")
    parser.add_argument("--rate", type=int, default=3_200, help="handshakes per second that the node takes")
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args(arguments)
    in_progress = int(options.rate * IN_PROGRESS / SHARDS)
    limits = {"handshake_rate": options.rate, "handshakes_in_progress": in_progress}
    gateway = GatewayProcess(shards=SHARDS, admission=limits)
    try:
        outcome = run(gateway, options.rate, options.seconds)
        faults = gateway.faults()
        upgrades = gateway.metric("upgrades_total")
        paused = gateway.metric("accepts_paused_total")
    finally:
        gateway.stop()
    print(f"offered   {outcome.offered:>8}  {outcome.offered / options.seconds:>8.0f} a second")
    print(f"served    {outcome.opened:>8}  {outcome.opened / options.seconds:>8.0f} a second")
    for status, count in sorted(outcome.refused.items()):
        print(f"{status:<10}{count:>8}")
    print(f"failed    {sum(outcome.failed.values()):>8}  {dict(outcome.failed) or ''}")
    print(f"p99 {outcome.p99_s * 1000:.1f} ms, over after {outcome.took_s:.1f} s")
    print(f"accepting paused {paused:.0f} times, memory grew by {outcome.grown_bytes / 1e6:.1f} MB")
    most_bytes = outcome.opened * OWN_BYTES + SLACK_BYTES
    checks = {
        "every admitted client was served": outcome.opened == upgrades,
        "at least the rate that the node takes was served": outcome.opened
        >= 0.95 * options.rate * options.seconds,
        "every other client read a 429 or a 503": set(outcome.refused) <= {"429", "503"}
        and outcome.opened + sum(outcome.refused.values()) == outcome.offered,
        "no connection was reset": not outcome.failed,
        "p99 is a second at most": outcome.p99_s <= P99_S,
        "memory grew by no more than the accounts of the connections": outcome.grown_bytes <= most_bytes,
        "the gateway reports no fault": not faults,
    }
    return print_verdict(checks)


if __name__ == "__main__":
    sys.exit(main())
