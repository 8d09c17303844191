"""The stage: sizes, contenders (a server and its client), visitors, and the shape of a scenario.

The gateway is one contender more. Its clients speak a protocol, so it has turns of its own at a scenario
(`Scenario.measure_gateway`), named `gateway_<scenario>`: beside the same floor, but not judged by the same
budgets.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from loadtest.engine import ConnectPlan, EngineProcess, EngineSettings
from loadtest.harness.server import ServerError

__all__ = [
    "FEW",
    "GATEWAY",
    "MANY",
    "Contender",
    "Driven",
    "Figures",
    "Results",
    "Scenario",
    "Sizes",
    "favoured",
    "open_connections",
    "start_engine",
    "visit",
]

FEW = "few"
MANY = "many"
GATEWAY = "gateway"
_SUBSCRIBED_S = 30.0

Figures = dict[str, float]
Processors = tuple[int, int] | None


class Driven(Protocol):
    """A server as a scenario drives it: one of loadtest.peers (server.py), or a whole gateway."""

    module: str
    port: int

    def call(self, command: str, *, timeout_s: float = 0.0, **arguments: Any) -> Any:
        """Run a command of peers/control.py."""

    def start(self, command: str, **arguments: Any) -> int:
        """Begin one."""

    def finish(self, number: int, *, timeout_s: float = 0.0) -> Any:
        """Return the result of one that was begun."""

    def cpu_s(self) -> float:
        """Return the CPU time of what is measured so far."""

    def settle(self, *, timeout_s: float = 15.0) -> None:
        """Wait until it rests."""

    def is_running(self) -> bool:
        """Whether it can still be driven."""

    def stop(self) -> None:
        """End it. Idempotent."""


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
    single_channels: int = 256  # with one subscriber each
    publications: int = 100_000  # of a flood, over all of them
    publications_one: int = 100_000  # to one of them
    pace_s: float = 2.0
    publishers: int = 64
    publishes_in_flight: int = 16  # of each
    client_publish_s: float = 1.0
    resting_shards: int = 30
    resting_s: float = 5.0  # the interval of the gateway's own probes
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
            publications=10_000,
            publications_one=10_000,
            pace_s=0.3,
            publishers=16,
            client_publish_s=0.3,
            resting_shards=4,
            resting_s=1.0,
            quiet_s=0.5,
            flood_s=0.5,
            nonreaders=100,
            nonreaders_s=0.5,
            pinged_many=2_000,
            pinged_few=500,
        )


@dataclass(slots=True, kw_only=True)
class Results:
    """What came of the runs of one server.

    Attributes:
        name: As in the results.
        runs: Figures by name, one value per run.
        lost: One sentence per run that lost a message or a connection.
    """

    name: str
    runs: dict[str, list[float]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def add(self, figures: Mapping[str, float]) -> None:
        """Append one run's figures."""
        for name, value in figures.items():
            self.runs.setdefault(name, []).append(value)


@dataclass(slots=True, kw_only=True)
class Contender(Results):
    """One server, the engine that holds its connections, and what came of the runs.

    Attributes:
        server: The process measured.
        engine: Holds `sizes.many` (or more) connections of it.
        next_sequences: Of the next message to a channel, by its name; 1 for the first.
    """

    server: Driven
    engine: EngineProcess
    next_sequences: dict[str, int] = field(default_factory=dict)

    def pool(self) -> tuple[int, int]:
        """Return (pool hits, pool misses) so far; zeros for a server without a pool."""
        counters: dict[str, int] = self.server.call("stats")["counters"]
        return counters.get("pool_hits", 0), counters.get("pool_misses", 0)

    def open(self, count: int) -> None:
        """Open the connections that are held."""
        open_connections(self.engine, self.server, count)

    def subscribe(self, sizes: Sizes) -> None:
        """Make `sizes.many` of them subscribers of MANY, `sizes.few` of FEW, and wait for it."""
        expected = {MANY: sizes.many, FEW: sizes.few}
        for name, count in expected.items():
            self.engine.send(f"subscribe:{name}", count=count)
        until_s = time.monotonic() + _SUBSCRIBED_S
        while any(self.server.call("subscribers", channel=name) != expected[name] for name in expected):
            if time.monotonic() > until_s:
                raise ServerError(f"{self.name}: not everyone subscribed")
            time.sleep(0.05)

    def faults(self) -> list[str]:
        """Return what else went wrong, when all is done; a sentence each."""
        return []

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
        measure: Returns one contender's figures of one run; the engine is the visitors'. None: the gateway's
            alone.
        measure_gateway: The same of the gateway; None: it takes no part.
    """

    name: str
    contenders: frozenset[str]
    needs_many: bool
    floor: Callable[[Sizes, Processors], Figures] | None
    measure: Callable[[Contender, EngineProcess, Sizes], Figures] | None
    measure_gateway: Callable[[Contender, EngineProcess, Sizes], Figures] | None = None

    def measure_of(self, contender: str) -> Callable[[Contender, EngineProcess, Sizes], Figures] | None:
        """Return how a contender is measured, by its name; None when it takes no part."""
        if contender == GATEWAY:
            return self.measure_gateway
        return self.measure if contender in self.contenders else None

    def choice(self, contender: str) -> str:
        """Return what --only calls a contender's turns at it."""
        return f"{GATEWAY}_{self.name}" if contender == GATEWAY else self.name


def open_connections(
    engine: EngineProcess, server: Driven, count: int, *, window: int = 256, **fields: Any
) -> None:
    """Open connections and insist on all of them (RuntimeError).

    Args:
        engine: Whose they are.
        server: Where to.
        count: How many.
        window: Handshakes under way at once.
        fields: More of ConnectPlan's; the path is /ws.
    """
    # The slowest server loses SYNs of a full backlog and gets them again seconds later.
    fields = {"path": "/ws", "timeout_s": 60.0, **fields}
    result = engine.connect(
        ConnectPlan(count=count, host="127.0.0.1", port=server.port, window=window, **fields)
    )
    if result["opened"] != count:
        raise RuntimeError(f"{server.module}: {result['opened']} of {count} connections opened: {result}")


def start_engine(number: int, processor: int | None, counted: tuple[str, ...] = ()) -> EngineProcess:
    """Start an engine with source addresses of its own: 127.`number`.0.1 and following."""
    settings = EngineSettings(first_source=f"127.{number}.0.1", counted=counted)
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
def visit(contender: Contender, visitor: EngineProcess, count: int, **fields: Any) -> Iterator[None]:
    """Hold `count` further connections of another engine for the length of the block; settled after it.

    Args:
        contender: Whom to visit.
        visitor: Whose connections they are.
        count: How many.
        fields: More of ConnectPlan's.
    """
    visitor.reset_stats()
    open_connections(visitor, contender.server, count, **fields)
    contender.server.settle()
    try:
        yield
    finally:
        visitor.close("reset")
        contender.server.settle()
