"""Measure one reactor with up to half a million connections: does the cost of each stay the same?

    python -m loadtest large_reactor [--counts 20000 100000 500000] [--output crowd.json]

A process can have only a limited number of descriptors, so slots share UDP sinks whose receiver reads nothing
(wsgate/reactor/testing.pyx); all other code is the code of the package. For each count the program measures:
user memory per connection; CPU time per delivery of a publication to all of them, and per connection of a
whole heartbeat cycle (timers and pings); and the longest single call (publish, flush, poll or tick), which is
the loop's lag. Then 15,000 connections receive a publication of 2 KB, plain and deflated in turn, with the
cost of compressing.

The sends are UDP and cheaper than TCP's (2.6 against 7 us): compare growth, not absolute cost.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import socket
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from loadtest.harness.arithmetic import per_unit_us
from loadtest.harness.processes import memory
from wsgate.deflate import WIDE_BITS, deflate
from wsgate.reactor import Reactor, Settings, event_kinds
from wsgate.reactor.testing import hear_all, let_go, open_slots

__all__ = ["Figures", "measure", "measure_deflated"]

COUNTS: Final = (20_000, 100_000, 500_000)
SINKS: Final = 256
PAYLOAD: Final = b"x" * 130
DEFLATED_COUNT: Final = 15_000
ROUNDS: Final = 5
PING_INTERVAL_MS: Final = 25_000
PATIENCE_MS: Final = 600_000  # no pong arrives
TICK_MS: Final = 250
LAG_MS: Final = 10.0
GROWTH: Final = 1.2
DEFLATED_SHARE: Final = 1.1
_CHANNEL: Final = b"all"


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of one number of connections."""

    count: int
    bytes_per_conn: float
    delivery_us: float
    heartbeat_us: float
    publish_lag_ms: float
    heartbeat_lag_ms: float


class Stopwatch:
    """Keeps the duration of the longest call in `lag_ms`."""

    def __init__(self) -> None:
        self.lag_ms = 0.0

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, time it, and return its result."""
        began_s = time.perf_counter()
        result = call(*arguments)
        self.lag_ms = max(self.lag_ms, (time.perf_counter() - began_s) * 1e3)
        return result


@contextlib.contextmanager
def crowd(count: int, settings: Settings, *, variant: int = 0) -> Iterator[tuple[Reactor, array[int]]]:
    """Yield a reactor with so many subscribers of one channel, and their handles."""
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        receiver.bind(("127.0.0.1", 0))
        sinks = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(SINKS)]
        for sink in sinks:
            sink.connect(receiver.getsockname())
            sink.setblocking(False)
        reactor = Reactor(settings, now_ms=0)
        handles = open_slots(reactor, [sink.fileno() for sink in sinks], count, now_ms=0, variant=variant)
        for handle in handles:
            reactor.subscribe(handle, _CHANNEL)
        try:
            yield reactor, handles
        finally:
            let_go(reactor, handles)
            reactor.shutdown()


def measure(count: int) -> Figures:
    """Measure one number of connections: CPU by the process's clock, lag by the wall clock."""
    gc.collect()
    before = memory().pss_bytes
    with crowd(count, Settings(ping_interval_ms=PING_INTERVAL_MS, pong_timeout_ms=PATIENCE_MS)) as (
        reactor,
        handles,
    ):
        held = memory().pss_bytes - before - handles.itemsize * count
        watch = Stopwatch()
        costs = [_publish(reactor, watch, count) for _ in range(ROUNDS)]
        beats = Stopwatch()
        heartbeat_s = _heartbeats(reactor, beats)
        pings = reactor.counters()["pings_out"]
        if pings < count:
            raise RuntimeError(f"{pings} pings for {count} connections")
    return Figures(
        count, held / count, median(costs), per_unit_us(heartbeat_s, count), watch.lag_ms, beats.lag_ms
    )


def _publish(reactor: Reactor, watch: Stopwatch, count: int) -> float:
    """Publish once to all connections; return the CPU time in us per delivery."""
    before = reactor.counters()["deliveries"]
    began_s = time.process_time()
    watch.run(reactor.publish, _CHANNEL, [PAYLOAD])
    while watch.run(reactor.flush, 0):
        pass
    cost_us = per_unit_us(time.process_time() - began_s, count)
    if reactor.counters()["deliveries"] - before != count:
        raise RuntimeError("a publication did not reach all subscribers")
    return cost_us


def _heartbeats(reactor: Reactor, watch: Stopwatch) -> float:
    """Run one ping interval tick by tick; return the CPU time in seconds."""
    began_s = time.process_time()
    for now_ms in range(TICK_MS, PING_INTERVAL_MS + 2 * TICK_MS, TICK_MS):
        watch.run(reactor.tick, now_ms)
        while reactor.more:
            watch.run(reactor.poll, now_ms)
        while watch.run(reactor.flush, now_ms):
            pass
    cpu_s = time.process_time() - began_s
    hear_all(reactor)
    return cpu_s


def measure_deflated() -> tuple[float, float]:
    """Return the CPU us per delivery of 2 KB to 15,000 connections: plain, and deflated.

    The figure for deflated deliveries includes the compression.
    """
    content = json.dumps([{"id": number, "name": f"user-{number}"} for number in range(64)]).encode()[:2_048]
    opcodes = (event_kinds.TEXT, event_kinds.TEXT | event_kinds.DEFLATED)
    costs: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(ROUNDS):
        for variant, found in costs.items():
            with crowd(DEFLATED_COUNT, Settings(variant_opcodes=opcodes), variant=variant) as (
                reactor,
                _handles,
            ):
                began_s = time.process_time()
                forms = [None, deflate(content, WIDE_BITS)] if variant else [content]
                reactor.publish(_CHANNEL, forms)
                while reactor.flush(0):
                    pass
                found.append(per_unit_us(time.process_time() - began_s, DEFLATED_COUNT))
    return median(costs[0]), median(costs[1])


def judge(found: list[Figures], plain_us: float, deflated_us: float) -> list[tuple[str, float, float]]:
    """Return the checks: name, value, and the largest allowed value."""
    least, most = found[0], found[-1]
    return [
        ("memory per connection, growth", most.bytes_per_conn / least.bytes_per_conn, GROWTH),
        ("delivery, growth", most.delivery_us / least.delivery_us, GROWTH),
        ("heartbeat cycle, growth", most.heartbeat_us / least.heartbeat_us, GROWTH),
        ("loop lag while one publication walks, ms", most.publish_lag_ms, LAG_MS),
        ("loop lag of heartbeats, ms", most.heartbeat_lag_ms, LAG_MS),
        ("deflated delivery, times a plain one", deflated_us / plain_us, DEFLATED_SHARE),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; return 1 if a value exceeds its limit."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.large_reactor")
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    print(f"{'connections':>12} {'B each':>8} {'us a delivery':>14} {'us a heartbeat':>15} {'lag, ms':>16}")
    found = []
    for count in options.counts:
        one = measure(count)
        found.append(one)
        print(
            f"{one.count:>12,} {one.bytes_per_conn:>8.0f} {one.delivery_us:>14.2f} {one.heartbeat_us:>15.2f}"
            f" {one.publish_lag_ms:>7.2f} {one.heartbeat_lag_ms:>7.2f}",
            flush=True,
        )
    plain_us, deflated_us = measure_deflated()
    print(f"2 KB to {DEFLATED_COUNT:,}: plain {plain_us:.2f} us a delivery, deflated {deflated_us:.2f}\n")
    verdicts = judge(found, plain_us, deflated_us)
    for name, value, most in verdicts:
        print(f"{'ok  ' if value <= most else 'MISS'} {name:<42} {value:>8.2f}  <= {most}")
    if options.output:
        results = {"crowds": [asdict(one) for one in found], "plain_us": plain_us, "deflated_us": deflated_us}
        options.output.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if all(value <= most for _, value, most in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
