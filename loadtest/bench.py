"""`python -m loadtest.bench`: the reactor beside the floor and beside two other servers, in one run.

Starts every process first, opens the idle connections once, then runs each scenario several times: floor,
reactor, pool off, uvloop, websockets, and again, so that a minute in which the machine is slow hits all of
them. Writes loadtest/results/bench.json and prints one table. Ends with status 1 when a message or a
connection was lost.

The server runs on one processor, its clients on another. A server's CPU is that of its whole process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from loadtest import bench_floor, bench_report
from loadtest.bench_machine import processors
from loadtest.bench_math import summarize_all
from loadtest.bench_server import ServerError, ServerProcess
from loadtest.engine import EngineError, EngineProcess
from loadtest.scenarios import SCENARIOS, Contender, Scenario, Sizes, pinging
from loadtest.scenarios.fanout import publish
from loadtest.scenarios.idling import open_idle
from loadtest.scenarios.stage import FEW, MANY, open_connections, start_engine

__all__ = ["main"]

_RESULTS: Final = Path(__file__).resolve().parent / "results" / "bench.json"

# Name in the results: module below loadtest.peers, settings. In the order they take their turns; the reactor
# first, because only the first one's kernel memory is all new.
_SERVERS: Final[dict[str, tuple[str, dict[str, int | bool]]]] = {
    "reactor": ("reactor_server", {"ping_interval_ms": 0}),
    "pool_off": ("reactor_server", {"ping_interval_ms": 0, "pool_enabled": False}),
    "uvloop": ("uvloop_server", {}),
    "websockets": ("websockets_server", {}),
    "floor_same_client": ("floor_server", {}),
}
_HELD_IDLE: Final = frozenset({"reactor", "uvloop", "websockets"})
_NAMES: Final = ("idle", *(scenario.name for scenario in SCENARIOS), "heartbeat")


class Bench:
    """One whole run: processes, figures of the floor, progress.

    Args:
        sizes: How much of everything.
        runs: How often each scenario runs, >= 1.
        chosen: Names of the scenarios to run.
        servers: Names of the servers to run them on.
    """

    def __init__(self, sizes: Sizes, *, runs: int, chosen: frozenset[str], servers: Sequence[str]) -> None:
        """Start nothing yet."""
        self.sizes = sizes
        self.runs = runs
        self.chosen = chosen
        self.servers = tuple(servers)
        self.contenders: dict[str, Contender] = {}
        self.floor_runs: dict[str, list[float]] = {}
        self._processors = processors()
        self._began_s = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line of progress with the time since the start."""
        print(f"[{time.monotonic() - self._began_s:6.1f} s] {text}", flush=True)

    def run(self) -> None:
        """Run everything that was chosen; all processes are gone afterwards, whatever happened."""
        bench_floor.build()
        if self._processors is not None:
            os.sched_setaffinity(0, (self._processors[1],))
        if self.chosen - {"heartbeat"}:
            with contextlib.ExitStack() as stack:
                self._run_scenarios(stack)
        if "heartbeat" in self.chosen:
            self._run_heartbeat()

    def _run_scenarios(self, stack: contextlib.ExitStack) -> None:
        scenarios = [scenario for scenario in SCENARIOS if scenario.name in self.chosen]
        wanted: set[str] = set().union(*(scenario.contenders for scenario in scenarios))
        if "idle" in self.chosen:
            wanted |= _HELD_IDLE
        for name in self.servers:
            if name in wanted:
                self.contenders[name] = self._start(stack, name)
        visitor = start_engine(200, self._client_processor)
        stack.callback(visitor.quit)
        self.say(f"started {', '.join(self.contenders)}")
        for contender in self.contenders.values():
            self._open(contender, needs_many=any(scenario.needs_many for scenario in scenarios))
        for run in range(1, self.runs + 1):
            for scenario in scenarios:
                self._run_once(scenario, visitor, run)

    def _start(self, stack: contextlib.ExitStack, name: str, **settings: int) -> Contender:
        module, defaults = _SERVERS[name]
        processor = None if self._processors is None else self._processors[0]
        server = ServerProcess(module, {**defaults, **settings}, processor=processor)
        stack.callback(server.stop)
        engine = start_engine(10 + list(_SERVERS).index(name), self._client_processor)
        stack.callback(engine.quit)
        return Contender(name=name, server=server, engine=engine)

    @property
    def _client_processor(self) -> int | None:
        return None if self._processors is None else self._processors[1]

    def _open(self, contender: Contender, *, needs_many: bool) -> None:
        """Open the connections that are held: idle ones first, of which some stay and subscribe."""
        engine, server, sizes = contender.engine, contender.server, self.sizes
        keep = sizes.many if needs_many else sizes.few
        if "idle" in self.chosen and contender.name in _HELD_IDLE:
            contender.add(open_idle(contender, sizes.idle))
            engine.close("reset", count=sizes.idle - keep)
            server.settle()
        else:
            open_connections(engine, server, keep)
        self.say(f"{contender.name}: {engine.stats()['open']} connections")
        if needs_many:
            engine.send(f"subscribe:{MANY}", count=sizes.many)
            engine.send(f"subscribe:{FEW}", count=sizes.few)
            self._await_subscribers(contender)
            self._warm_up(contender)

    def _await_subscribers(self, contender: Contender) -> None:
        until_s = time.monotonic() + 30.0
        expected = {MANY: self.sizes.many, FEW: self.sizes.few}
        while any(contender.server.call("subscribers", channel=name) != expected[name] for name in expected):
            if time.monotonic() > until_s:
                raise ServerError(f"{contender.name}: not everyone subscribed")
            time.sleep(0.05)

    def _warm_up(self, contender: Contender) -> None:
        """Publish twice to everyone, unmeasured: what is taken once and kept is no cost of a delivery."""
        for channel, subscribers in ((MANY, self.sizes.many), (FEW, self.sizes.few)):
            publish(contender, channel, subscribers, count=2, size=self.sizes.payload_bytes, gap_s=0.1)

    def _run_once(self, scenario: Scenario, visitor: EngineProcess, run: int) -> None:
        if scenario.floor is not None:
            self._add_floor(scenario.floor(self.sizes, self._processors))
        for name, contender in self.contenders.items():
            if name in scenario.contenders:
                contender.add(scenario.measure(contender, visitor, self.sizes))
        self.say(f"run {run} of {self.runs}: {scenario.name}")

    def _add_floor(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.floor_runs.setdefault(name, []).append(value)

    def _run_heartbeat(self) -> None:
        for _ in range(self.runs):
            self._add_floor(pinging.floor(self.sizes, self._processors))
        for name in self.servers:
            if name in _HELD_IDLE:
                with contextlib.ExitStack() as stack:
                    pinged = self._start(stack, name, **pinging.settings(self.sizes))
                    contender = self.contenders.setdefault(name, pinged)
                    pinged.runs, pinged.lost = contender.runs, contender.lost
                    pinging.measure(pinged, self.sizes, self.runs, self.say)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench from the command line.

    Returns:
        0; 1 when something was lost; 2 when the bench could not run.
    """
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=_NAMES, help="a scenario to run; may be repeated")
    parser.add_argument(
        "--server", action="append", choices=_SERVERS, help="a server to run; may be repeated"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small numbers: shows that it works, not what it costs"
    )
    parser.add_argument("--runs", type=int, default=3, help="how often each scenario runs (default 3)")
    parser.add_argument("--output", type=Path, default=_RESULTS, help="where the JSON goes")
    options = parser.parse_args(arguments)
    sizes = Sizes.quick() if options.quick else Sizes()
    bench = Bench(
        sizes,
        runs=max(1, options.runs),
        chosen=frozenset(options.only or _NAMES),
        servers=options.server or tuple(_SERVERS),
    )
    try:
        bench.run()
    except (ServerError, EngineError, bench_floor.FloorError, RuntimeError) as error:
        print(f"the bench could not run: {error}", file=sys.stderr)
        return 2
    result = bench_report.assemble(
        summarize_all(bench.floor_runs),
        {name: summarize_all(contender.runs) for name, contender in bench.contenders.items()},
        {name: contender.lost for name, contender in bench.contenders.items()},
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(bench_report.table(result, sizes))
    bench.say(f"written to {options.output}")
    return 1 if any(contender.lost for contender in bench.contenders.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
