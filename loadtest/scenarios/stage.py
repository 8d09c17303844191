"""The stage: sizes, contenders (a server and its client), visitors, and the shape of a scenario."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from loadtest.bench_server import ServerProcess
from loadtest.engine import ConnectPlan, EngineProcess, EngineSettings

__all__ = [
    "FEW",
    "MANY",
    "Contender",
    "Figures",
    "Scenario",
    "Sizes",
    "favoured",
    "open_connections",
    "start_engine",
    "visit",
]

FEW = "few"
MANY = "many"

Figures = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much of everything; counts unless the name carries another unit."""

    idle: int = 19_000  # a process has 20,000 descriptors here
    many: int = 15_000
    few: int = 1_000
    payload_bytes: int = 130  # a frame of 134 bytes
    many_rounds: int = 6
    many_rate_per_s: int = 3  # `websockets` needs 0.25 s a publication
    few_rounds: int = 40
    few_rate_per_s: int = 25
    coalesced_rounds: int = 3
    coalesced_rate_per_s: int = 2
    handshakes: int = 2_000
    handshake_window: int = 64
    refusals: int = 2_000
    refusal_window: int = 24  # below the 32 sockets the gate drains at once
    echo_connections: int = 256
    echo_s: float = 1.0
    floor_echoes: int = 300  # per connection
    walk_s: float = 2.5
    walk_rate_per_s: int = 400  # echoes on the control connection
    control_connections: int = 20
    control_rate_per_s: int = 500  # over all of them
    control_payload_bytes: int = 64
    quiet_s: float = 2.0
    flooders: int = 10
    flood_s: float = 3.0
    nonreaders: int = 500
    nonreaders_s: float = 2.4  # 240 publications: fewer than the 256 frames at which an outbox is full
    nonreaders_rate_per_s: int = 100
    nonreaders_payload_bytes: int = 2_048
    ping_interval_ms: int = 2_000
    pinged_many: int = 15_000  # 7,500 pings/s
    pinged_few: int = 1_500  # 750 pings/s
    ping_windows: int = 1  # ping intervals measured per run

    @classmethod
    def quick(cls) -> Sizes:
        """Small enough for a minute; shows that everything works, not what it costs."""
        return cls(
            idle=3_000,
            many=2_000,
            few=500,
            many_rounds=3,
            many_rate_per_s=10,
            few_rounds=10,
            coalesced_rounds=2,
            coalesced_rate_per_s=4,
            handshakes=500,
            refusals=500,
            echo_connections=64,
            echo_s=0.3,
            floor_echoes=100,
            walk_s=0.5,
            quiet_s=0.5,
            flood_s=0.5,
            nonreaders=100,
            nonreaders_s=0.5,
            pinged_many=2_000,
            pinged_few=500,
        )


@dataclass(slots=True, kw_only=True)
class Contender:
    """One server, the engine that holds its connections, and what came of the runs.

    Attributes:
        name: As in the results.
        server: The process measured.
        engine: Holds `sizes.many` (or more) connections of it.
        runs: Figures by name, one value per run.
        lost: One sentence per run that lost a message or a connection.
    """

    name: str
    server: ServerProcess
    engine: EngineProcess
    runs: dict[str, list[float]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    next_sequences: dict[str, int] = field(default_factory=dict)

    def add(self, figures: Mapping[str, float]) -> None:
        """Append one run's figures."""
        for name, value in figures.items():
            self.runs.setdefault(name, []).append(value)

    def pool(self) -> tuple[int, int]:
        """Return (pool hits, pool misses) so far; zeros for a server without a pool."""
        counters: dict[str, int] = self.server.call("stats")["counters"]
        return counters.get("pool_hits", 0), counters.get("pool_misses", 0)

    def stop(self) -> None:
        """End both processes, the client first: it resets its connections."""
        self.engine.quit()
        self.server.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One kind of work, done once by the floor and once by each contender in every run.

    Attributes:
        name: What --only takes.
        contenders: Who takes part, by name.
        needs_many: Whether the `many` subscribers must be there.
        floor: Returns the floor's figures of one run; None when C has nothing to compare with.
        measure: Returns one contender's figures of one run; the engine is the visitors'.
    """

    name: str
    contenders: frozenset[str]
    needs_many: bool
    floor: Callable[[Sizes, tuple[int, int] | None], Figures] | None
    measure: Callable[[Contender, EngineProcess, Sizes], Figures]


def open_connections(engine: EngineProcess, server: ServerProcess, count: int, *, window: int = 256) -> None:
    """Open connections and insist on all of them (RuntimeError)."""
    result = engine.connect(
        # The slowest server loses SYNs of a full backlog and gets them again seconds later.
        ConnectPlan(count=count, host="127.0.0.1", port=server.port, path="/ws", window=window, timeout_s=60)
    )
    if result["opened"] != count:
        raise RuntimeError(f"{server.module}: {result['opened']} of {count} connections opened: {result}")


def start_engine(number: int, processor: int | None) -> EngineProcess:
    """Start an engine with source addresses of its own: 127.`number`.0.1 and following."""
    settings = EngineSettings(first_source=f"127.{number}.0.1")
    return EngineProcess(settings, cpus=() if processor is None else (processor,))


@contextlib.contextmanager
def favoured(pid: int) -> Iterator[bool]:
    """Give a measuring process real-time priority for the length of the block.

    Its own waiting for a processor is then not measured. Yields False where that is not allowed.
    """
    try:
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))


@contextlib.contextmanager
def visit(contender: Contender, visitor: EngineProcess, count: int) -> Iterator[None]:
    """Hold `count` further connections of another engine for the length of the block; settled after it."""
    visitor.reset_stats()
    open_connections(visitor, contender.server, count)
    contender.server.settle()
    try:
        yield
    finally:
        visitor.close("reset")
        contender.server.settle()
