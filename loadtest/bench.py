"""Measure the reactor and the gateway in one run with the floor and two other servers: ratios to the floor.

The program starts every process first and opens the idle connections once. Then it runs each scenario several
times in turn: floor, reactor, gateway, pool off, uvloop, websockets. A minute in which the machine is slow
therefore affects all of them. It writes loadtest/results/bench.json and prints two tables. It exits with 1 if
a message or a connection was lost, or if something could not be measured: a failure costs the further results
of the part that failed, not those of the others.

The server runs on one CPU, and its clients on another. The CPU time of a server is that of its whole
process, that of the gateway is the time of its shard.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from loadtest.engine import EngineError, EngineProcess
from loadtest.harness import floor_probe, report, tables
from loadtest.harness.arithmetic import summarize_all
from loadtest.harness.gateway import GatewayProcess
from loadtest.harness.machine_info import processors
from loadtest.harness.server import ServerProcess
from loadtest.scenarios import SCENARIOS, Contender, Results, Scenario, Sizes, pinging, resting
from loadtest.scenarios.fanout import publish
from loadtest.scenarios.idling import open_idle
from loadtest.scenarios.members import COUNTED, GatewayContender
from loadtest.scenarios.stage import FEW, GATEWAY, MANY, start_engine

__all__ = ["main"]

_RESULTS: Final = Path(__file__).resolve().parent / "results" / "bench.json"

# Name in the results, then the module below loadtest.peers and its settings. They take turns in this order.
# The reactor is first, because only the kernel memory of the first server is all new.
_SERVERS: Final[dict[str, tuple[str, dict[str, int | bool]]]] = {
    "reactor": ("reactor_server", {"ping_interval_ms": 0}),
    "pool_off": ("reactor_server", {"ping_interval_ms": 0, "pool_enabled": False}),
    "uvloop": ("uvloop_server", {}),
    "websockets": ("websockets_server", {}),
    "floor_same_client": ("floor_server", {}),
}
_HELD_IDLE: Final = frozenset({"reactor", "uvloop", "websockets"})
_CONTENDERS: Final = ("reactor", GATEWAY, *(name for name in _SERVERS if name != "reactor"))
_GATEWAY_TURNS: Final = (
    "gateway_idle",
    *(scenario.choice(GATEWAY) for scenario in SCENARIOS if scenario.measure_gateway),
    "gateway_resting",
)
_TURNS: Final = (
    "idle",
    *(scenario.name for scenario in SCENARIOS if scenario.measure),
    "heartbeat",
    *_GATEWAY_TURNS,
)


class Bench:
    """One run of the bench: its processes, its results and the numbers of the floor.

    Args:
        sizes: The sizes of all scenarios.
        runs: How often each scenario runs, >= 1.
        chosen: The turns to run: the name of a scenario, or `gateway_` and the name of a scenario.
        servers: The names of the servers to run.

    Attributes:
        results: The results of each server, by its name.
        floor_runs: The numbers of the floor by name, one value per run.
        failures: A sentence with the cause for everything that could not be measured.
    """

    def __init__(self, sizes: Sizes, *, runs: int, chosen: frozenset[str], servers: Sequence[str]) -> None:
        """Create a bench that has started no process."""
        self.sizes = sizes
        self.runs = runs
        self.chosen = chosen
        self.servers = tuple(servers)
        self.results: dict[str, Results] = {}
        self.floor_runs: dict[str, list[float]] = {}
        self.failures: list[str] = []
        self._contenders: dict[str, Contender] = {}
        self._visitor: EngineProcess | None = None
        # Pairs of a scenario and a contender (or the floor) that failed. They are not tried again, so that
        # the n-th figure of a server and the n-th of the floor are from about the same time.
        self._given_up: set[tuple[str, str]] = set()
        self._processors = processors()
        self._began_s = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line of progress with the seconds since the start."""
        print(f"[{time.monotonic() - self._began_s:6.1f} s] {text}", flush=True)

    def run(self) -> None:
        """Run all chosen turns. All processes have ended afterwards, also after an error."""
        floor_probe.build()
        if self._processors is not None:
            os.sched_setaffinity(0, (self._processors[1],))
        if self.chosen - {"heartbeat", "gateway_resting"}:
            try:
                self._run_scenarios()
            finally:
                self._stop_all()
        if "heartbeat" in self.chosen:
            self._run_heartbeat()
        if "gateway_resting" in self.chosen and GATEWAY in self.servers:
            self._run_resting()

    @contextlib.contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """Record an error of the block as a failure, and continue after it."""
        try:
            yield
        # One failure must not cost the results of the others. It is recorded, and the exit status shows it.
        except Exception as error:
            self.failures.append(f"{what}: {type(error).__name__}: {error}")
            self.say(f"FAILED {self.failures[-1]}")

    # --- the scenarios --------------------------------------------------------------------------------

    def _run_scenarios(self) -> None:
        scenarios = [scenario for scenario in SCENARIOS if self._takers(scenario)]
        wanted = {name for scenario in scenarios for name in self._takers(scenario)}
        wanted |= _HELD_IDLE if "idle" in self.chosen else set()
        wanted |= {GATEWAY} if "gateway_idle" in self.chosen else set()
        for name in self.servers:
            if name in wanted:
                with self._surviving(f"{name}, starting"):
                    self._contenders[name] = self._start(name)
        self._visitor = self._start_engine(200)
        self.say(f"started {', '.join(self._contenders)}")
        for name in tuple(self._contenders):
            needs_many = any(scenario.needs_many and name in self._takers(scenario) for scenario in scenarios)
            before = len(self.failures)
            with self._surviving(f"{name}, opening its connections"):
                self._open(self._contenders[name], needs_many=needs_many)
            if len(self.failures) > before:
                self._contenders.pop(name).stop()
        for run in range(1, self.runs + 1):
            for scenario in scenarios:
                self._run_once(scenario, run)
        for contender in self._contenders.values():
            with self._surviving(f"{contender.name}, at the end"):
                contender.lost += contender.faults()

    def _takers(self, scenario: Scenario) -> list[str]:
        """Return the names of the servers with a chosen turn in this scenario."""
        return [
            name
            for name in self.servers
            if scenario.measure_of(name) is not None and scenario.choice(name) in self.chosen
        ]

    def _start(self, name: str, **settings: int) -> Contender:
        engine = self._start_engine(10 + _CONTENDERS.index(name))
        try:
            processor = None if self._processors is None else self._processors[0]
            contender: Contender
            if name == GATEWAY:
                gateway = GatewayProcess(processor=processor)
                contender = GatewayContender(name=name, server=gateway, engine=engine)
            else:
                module, defaults = _SERVERS[name]
                server = ServerProcess(module, {**defaults, **settings}, processor=processor)
                contender = Contender(name=name, server=server, engine=engine)
        except BaseException:
            engine.quit()
            raise
        known = self.results.setdefault(name, contender)
        contender.runs, contender.lost = known.runs, known.lost
        return contender

    def _start_engine(self, number: int) -> EngineProcess:
        return start_engine(number, None if self._processors is None else self._processors[1], COUNTED)

    def _stop_all(self) -> None:
        if self._visitor is not None:
            self._visitor.quit()
        for contender in self._contenders.values():
            contender.stop()
        self._contenders.clear()

    def _open(self, contender: Contender, *, needs_many: bool) -> None:
        """Open the connections that stay open: idle ones first, some of which then subscribe."""
        engine, server, sizes = contender.engine, contender.server, self.sizes
        keep = sizes.many if needs_many else sizes.few
        if contender.name == GATEWAY and "gateway_idle" in self.chosen:
            contender.add(open_idle(contender, sizes.many))
        elif contender.name in _HELD_IDLE and "idle" in self.chosen:
            contender.add(open_idle(contender, sizes.idle))
            engine.close("reset", count=sizes.idle - keep)
            server.settle()
        else:
            contender.open(keep)
        self.say(f"{contender.name}: {engine.stats()['open']} connections")
        if needs_many:
            contender.subscribe(sizes)
            self._warm_up(contender)

    def _warm_up(self, contender: Contender) -> None:
        """Publish twice to all subscribers without measuring.

        Memory that is taken once and kept is no cost of a delivery.
        """
        for channel, subscribers in ((MANY, self.sizes.many), (FEW, self.sizes.few)):
            publish(contender, channel, subscribers, count=2, size=self.sizes.payload_bytes, gap_s=0.1)

    def _run_once(self, scenario: Scenario, run: int) -> None:
        takers = [name for name in self._takers(scenario) if name in self._contenders]
        takers = [name for name in takers if (scenario.name, name) not in self._given_up]
        if not takers or (scenario.name, "floor") in self._given_up:
            return
        if scenario.floor is not None:
            before = len(self.failures)
            with self._surviving(f"{scenario.name}, the floor, run {run}"):
                self._add_floor(scenario.floor(self.sizes, self._processors))
            if len(self.failures) > before:
                self._given_up.add((scenario.name, "floor"))
                return
        for name in takers:
            self._measure(scenario, self._contenders[name], run)
        self.say(f"run {run} of {self.runs}: {scenario.name}")

    def _measure(self, scenario: Scenario, contender: Contender, run: int) -> None:
        measure = scenario.measure_of(contender.name)
        assert measure is not None and self._visitor is not None
        before = len(self.failures)
        with self._surviving(f"{scenario.choice(contender.name)}, {contender.name}, run {run}"):
            contender.add(measure(contender, self._visitor, self.sizes))
        if len(self.failures) == before:
            return
        self._given_up.add((scenario.name, contender.name))
        self._visitor.kill()  # The engine may be the cause, and must not affect later measurements.
        self._visitor = self._start_engine(200)
        if not contender.server.is_running():
            self._contenders.pop(contender.name).stop()

    def _add_floor(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.floor_runs.setdefault(name, []).append(value)

    # --- turns with their own servers -----------------------------------------------------------------

    def _run_heartbeat(self) -> None:
        with self._surviving("heartbeat, the floor"):
            for _ in range(self.runs):
                self._add_floor(pinging.floor(self.sizes, self._processors))
        for name in self.servers:
            if name in _HELD_IDLE:
                with self._surviving(f"heartbeat, {name}"), contextlib.ExitStack() as stack:
                    contender = self._start(name, **pinging.settings(self.sizes))
                    stack.callback(contender.stop)
                    pinging.measure(contender, self.sizes, self.runs, self.say)

    def _run_resting(self) -> None:
        results = self.results.setdefault(GATEWAY, Results(name=GATEWAY))
        processor = None if self._processors is None else self._processors[0]
        with self._surviving("gateway_resting"):
            resting.measure(
                results,
                lambda shards: GatewayProcess(shards=shards, processor=processor),
                self.sizes,
                self.runs,
            )
            self.say(f"resting: 1 shard, {self.sizes.resting_shards} shards")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench from the command line.

    Returns:
        0; 1 if something was lost or could not be measured; 2 if the bench could not run at all.
    """
    parser = argparse.ArgumentParser(prog="python -m loadtest bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        action="append",
        choices=(*_TURNS, GATEWAY),
        help="a turn to run; may be repeated; `gateway` means all turns of the gateway",
    )
    parser.add_argument(
        "--server", action="append", choices=_CONTENDERS, help="a server to run; may be repeated"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, which only show that everything works"
    )
    parser.add_argument("--runs", type=int, default=3, help="how often each scenario runs (default 3)")
    parser.add_argument("--output", type=Path, default=_RESULTS, help="the path of the JSON file")
    options = parser.parse_args(arguments)
    sizes = Sizes.quick() if options.quick else Sizes()
    chosen = frozenset(options.only or _TURNS)
    if GATEWAY in chosen:
        chosen |= frozenset(_GATEWAY_TURNS)
    bench = Bench(sizes, runs=max(1, options.runs), chosen=chosen, servers=options.server or _CONTENDERS)
    try:
        bench.run()
    except (EngineError, floor_probe.FloorError) as error:
        print(f"the bench could not run: {error}", file=sys.stderr)
        return 2
    result = report.assemble(
        summarize_all(bench.floor_runs),
        {name: summarize_all(results.runs) for name, results in bench.results.items()},
        {name: results.lost for name, results in bench.results.items()},
        bench.failures,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(tables.table(result, sizes))
    bench.say(f"written to {options.output}")
    return 1 if bench.failures or any(results.lost for results in bench.results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
