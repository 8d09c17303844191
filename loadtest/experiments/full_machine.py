"""Open as many connections as one machine can hold, with a whole gateway and both ends on the machine.

    python -m loadtest full_machine [--connections 500000] [--shards 27] [--output machine.json]

The gateway is started as its users start it (harness/gateway.py), with tokens, heartbeats and a private bus.
Every connection belongs to a different user with its own token, and has its inbox and one channel that all
share. The run connects them all, rests for a few ping intervals, broadcasts to all of them, and compares the
received publications with the published ones. It fails if a connection was refused, ended or missed a
publication.

A process can have only a limited number of descriptors (20,000 on the usual machine), so that both ends need
many processes: shards and load engines. The gateway's memory is the proportional set size of keeper, shards
and admin process, without the bus. The kernel's memory is the decrease in /proc/meminfo beyond all of these,
for both ends of each connection.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

from loadtest.engine import ConnectPlan, EngineProcess, EngineSettings
from loadtest.harness import processes
from loadtest.harness.gateway import GatewayProcess
from loadtest.scenarios.members import BEARER, COUNTED, SUBBED, WELCOME, make_tokens

__all__ = ["Crowd", "Plan", "main", "measure"]

PER_PROCESS: Final = 18_600  # of 20,000 descriptors: some are left for refusals and files
RESTING_INTERVALS: Final = 3
BROADCASTS: Final = 3
PAYLOAD_BYTES: Final = 130
_CHANNEL: Final = "all"
_STREAM: Final = 1
_WINDOW: Final = 16  # handshakes under way at once, for each engine
_TIMEOUT_S: Final = 60.0
_LIMIT_S: Final = 900.0
_STEP_S: Final = 0.5


class Crowd:
    """The load engines, which together hold all connections."""

    def __init__(self, gateway: GatewayProcess, count: int) -> None:
        """Start the engines; they connect when `connect` is called."""
        self._gateway = gateway
        self._stack = contextlib.ExitStack()
        sizes = _shares(count, math.ceil(count / PER_PROCESS))
        self._members = [
            (self._stack.enter_context(EngineProcess(_settings(number, size))), size)
            for number, size in enumerate(sizes)
        ]

    @property
    def pids(self) -> list[int]:
        """The process ids of the engines."""
        return [engine.pid for engine, _ in self._members]

    def connect(self, show: Callable[[str], None]) -> float:
        """Open all connections, wait for their welcomes, and return the seconds (or raise RuntimeError)."""
        waiting: list[Future[Any]] = []
        first, began_s = 0, time.monotonic()
        for engine, size in self._members:
            users = [f"user-{number}" for number in range(first, first + size)]
            plan = ConnectPlan(
                count=size,
                host="127.0.0.1",
                port=self._gateway.port,
                path=f"/ws?ch={_CHANNEL}",
                headers=BEARER,
                tokens=make_tokens(users, "machine"),
                window=_WINDOW,
                timeout_s=_TIMEOUT_S,
            )
            waiting.append(engine.start("connect", **asdict(plan)))
            first += size
            show(f"{self.count('open'):>9,} open, {time.monotonic() - began_s:.0f} s")
        total = first
        while not all(future.done() for future in waiting):
            if time.monotonic() - began_s > _LIMIT_S:
                raise RuntimeError(f"{self.count('open')} of {total} connected within {_LIMIT_S:.0f} s")
            time.sleep(_STEP_S)
            show(f"{self.count('open'):>9,} open, {time.monotonic() - began_s:.0f} s")
        for future in waiting:
            result = future.result()
            if result["opened"] != result["requested"]:
                raise RuntimeError(f"not all connected: {result}")
        self._await(lambda: self.told(WELCOME) == total and self.told(SUBBED) == 2 * total, "told")
        return time.monotonic() - began_s

    def _await(self, is_done: Callable[[], bool], what: str) -> None:
        until_s = time.monotonic() + _TIMEOUT_S
        while not is_done():
            if time.monotonic() > until_s:
                raise RuntimeError(f"not all were {what}")
            time.sleep(_STEP_S)

    def await_messages(self, count: int) -> None:
        """Wait until all engines together have received so many stamped messages since the last reset."""
        self._await(lambda: self.count("stamped") >= count, "reached")

    def reset(self) -> None:
        """Set the counters of all engines to zero."""
        for engine, _ in self._members:
            engine.reset_stats()

    def count(self, name: str) -> int:
        """Return the sum of one counter over all engines."""
        return sum(stats[name] for stats in self._stats())

    def told(self, beginning: str) -> int:
        """Return how many messages with this beginning arrived."""
        return sum(stats["counted"][beginning] for stats in self._stats())

    def delivery_ms(self, point: str) -> float:
        """Return the latency of deliveries of the worst engine, from the time of publishing."""
        worst: int = max(stats["delivery_latency"][point] for stats in self._stats())
        return worst / 1e6

    def _stats(self) -> Iterable[dict[str, Any]]:
        return (cast("dict[str, Any]", engine.stats()) for engine, _ in self._members)

    def incomplete(self, last: int) -> int:
        """Return how many connections miss any of the publications 1 to `last`."""
        found = (engine.reconcile(_STREAM, first=1, last=last) for engine, _ in self._members)
        return sum(one["incomplete"] for one in found)

    def close(self) -> None:
        """Reset all connections and end the engines."""
        self._stack.close()


def _settings(number: int, size: int) -> EngineSettings:
    return EngineSettings(
        max_connections=size, first_source=f"127.{number + 1}.0.1", first_sequence=1, counted=COUNTED
    )


def _shares(count: int, parts: int) -> list[int]:
    return [count * (part + 1) // parts - count * part // parts for part in range(parts)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The parameters of one run.

    Attributes:
        connections: The number of connections.
        shards: The number of shards of the gateway.
        ping_interval_s: The interval of its pings; heartbeats are measured for RESTING_INTERVALS of it.
        broadcast_every_s: The time from one broadcast to the next, if the first has arrived by then.
    """

    connections: int
    shards: int
    ping_interval_s: int
    broadcast_every_s: float


def measure(plan: Plan, show: Callable[[str], None]) -> dict[str, float]:
    """Do the whole run and return the numbers by name; raise RuntimeError if it fails."""
    connections, shards = plan.connections, plan.shards
    available = _available_bytes()
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(GatewayProcess(shards=shards, ping_interval_s=plan.ping_interval_s))
        empty = gateway.memory()
        crowd = Crowd(gateway, connections)
        stack.callback(crowd.close)
        figures: dict[str, float] = {"connections": connections, "shards": shards}
        cpu_s = gateway.cpu_s()
        figures["connect_s"] = crowd.connect(show)
        figures["handshake_us"] = (gateway.cpu_s() - cpu_s) / connections * 1e6
        figures |= _memory(gateway, crowd, empty, available, connections)
        figures |= _rest(gateway, crowd, plan, show)
        figures |= _broadcast(gateway, crowd, plan, show)
        faults = gateway.faults()
        refused = gateway.metric("refusals_total")
        if faults or refused or crowd.count("open") != connections:
            raise RuntimeError(f"{faults}, {refused:.0f} refused, {crowd.count('open')} left")
        return figures


def _memory(
    gateway: GatewayProcess, crowd: Crowd, empty: dict[str, int], available: int, connections: int
) -> dict[str, float]:
    held = gateway.memory()
    clients = sum(processes.memory(pid).pss_bytes for pid in crowd.pids)
    users = held["pss_bytes"] + held["bus_pss_bytes"] + clients
    return {
        "gateway_mb": held["pss_bytes"] / 1e6,
        "gateway_bytes_per_conn": (held["pss_bytes"] - empty["pss_bytes"]) / connections,
        "bus_mb": held["bus_pss_bytes"] / 1e6,
        "clients_mb": clients / 1e6,
        "kernel_mb": (available - _available_bytes() - users) / 1e6,
    }


def _rest(gateway: GatewayProcess, crowd: Crowd, plan: Plan, show: Callable[[str], None]) -> dict[str, float]:
    """Measure the CPU time of heartbeats while there is no other traffic."""
    crowd.reset()
    duration_s = RESTING_INTERVALS * plan.ping_interval_s
    before_s, began_s = gateway.cpu_s(), time.monotonic()
    while (passed_s := time.monotonic() - began_s) < duration_s:
        time.sleep(_STEP_S)
        show(f"{crowd.count('pings_answered'):>9,} pings answered, {passed_s:.0f} s")
    cpu_s, passed_s = gateway.cpu_s() - before_s, time.monotonic() - began_s
    answered = crowd.count("pings_answered")
    if answered < plan.connections * (RESTING_INTERVALS - 1):
        raise RuntimeError(f"{answered} pings were answered by {plan.connections} connections")
    return {
        "resting_cores": cpu_s / passed_s,
        "pings_per_s": answered / passed_s,
        "ping_cycle_us": cpu_s / answered * 1e6,
    }


def _broadcast(
    gateway: GatewayProcess, crowd: Crowd, plan: Plan, show: Callable[[str], None]
) -> dict[str, float]:
    """Publish to all connections several times; each publication must reach all of them."""
    crowd.reset()
    connections = plan.connections
    took_s = []
    before_s = gateway.cpu_s()
    for number in range(1, BROADCASTS + 1):
        began_s = time.monotonic()
        gateway.call(
            "publish",
            channel=_CHANNEL,
            stream=_STREAM,
            first_sequence=number,
            count=1,
            payload_bytes=PAYLOAD_BYTES,
            rate_per_s=1.0,
            timeout_s=_TIMEOUT_S,
        )
        crowd.await_messages(number * connections)
        took_s.append(time.monotonic() - began_s)
        show(f"{number * connections:>9,} deliveries")
        time.sleep(max(0.0, plan.broadcast_every_s - took_s[-1]))
    cpu_s = gateway.cpu_s() - before_s
    if (left_out := crowd.incomplete(BROADCASTS)) or crowd.count("duplicates"):
        raise RuntimeError(f"{left_out} connections missed a broadcast, or had one twice")
    return {
        "delivery_us": cpu_s / (BROADCASTS * connections) * 1e6,
        "broadcast_p50_ms": crowd.delivery_ms("p50"),
        "broadcast_p99_ms": crowd.delivery_ms("p99"),
        "broadcast_last_ms": crowd.delivery_ms("max"),
    }


def _available_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as lines:
        sizes = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    return int(sizes["MemAvailable"].split()[0]) * 1024


_TABLE: Final = (
    ("connections", "connections, each with a token, an inbox and a shared channel", "{:,.0f}"),
    ("shards", "shards", "{:.0f}"),
    ("connect_s", "until all were welcomed and subscribed, s", "{:.0f}"),
    ("handshake_us", "  gateway, us each", "{:.1f}"),
    ("gateway_mb", "memory of keeper, shards and admin process, MB", "{:,.0f}"),
    ("gateway_bytes_per_conn", "  growth, B a connection", "{:.0f}"),
    ("bus_mb", "memory of the private bus, MB", "{:,.0f}"),
    ("clients_mb", "memory of the load engines, MB", "{:,.0f}"),
    ("kernel_mb", "memory of the kernel, both ends, MB", "{:,.0f}"),
    ("pings_per_s", "heartbeats answered per s", "{:,.0f}"),
    ("resting_cores", "  gateway, cores", "{:.2f}"),
    ("ping_cycle_us", "  us each", "{:.1f}"),
    ("delivery_us", "broadcast to all, gateway, us a delivery", "{:.2f}"),
    ("broadcast_p50_ms", "  from PUBLISH to the client, p50, ms", "{:,.0f}"),
    ("broadcast_p99_ms", "  p99, ms", "{:,.0f}"),
    ("broadcast_last_ms", "  the last of all, ms", "{:,.0f}"),
)


def rows(figures: dict[str, float]) -> Iterable[str]:
    """Yield the lines of the table."""
    for name, text, shape in _TABLE:
        yield f"{text:<66}{shape.format(figures[name]):>10}"


def _show(line: str) -> None:
    """Show a line of progress in place, if a terminal is attached."""
    if sys.stderr.isatty():
        print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; return 1 if a connection was refused, ended or missed a publication."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.full_machine")
    parser.add_argument("--connections", type=int, default=500_000)
    parser.add_argument("--shards", type=int, default=0, help="0: as many as the descriptors require")
    parser.add_argument("--ping-interval", type=int, default=25, metavar="S")
    parser.add_argument("--broadcast-every", type=float, default=15.0, metavar="S")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    shards = options.shards or math.ceil(options.connections / PER_PROCESS)
    try:
        plan = Plan(
            connections=options.connections,
            shards=shards,
            ping_interval_s=options.ping_interval,
            broadcast_every_s=options.broadcast_every,
        )
        figures = measure(plan, _show)
    except RuntimeError as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    _show("")
    print("\n".join(rows(figures)))
    print("no connection was refused or ended, and every broadcast was complete")
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
