"""The parts of which scenarios are made: sizes, contenders (a server and its engine), visitors, `Scenario`.

The gateway is one more contender. Its clients use a protocol, so it has its own turns in a scenario
(`Scenario.measure_gateway`), named `gateway_<scenario>`: with the same floor, but with other budgets.
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
    """A server that a scenario can measure: one of loadtest.peers (harness/server.py), or a whole gateway."""

    module: str
    port: int

    def call(self, command: str, *, timeout_s: float = 0.0, **arguments: Any) -> Any:
        """Run a command of peers/control.py and return its result."""

    def start(self, command: str, **arguments: Any) -> int:
        """Start a command, and return the number for `finish`."""

    def finish(self, number: int, *, timeout_s: float = 0.0) -> Any:
        """Wait for the result of a command that was started."""

    def cpu_s(self) -> float:
        """Return the CPU time of the measured process until now, in seconds."""

    def settle(self, *, timeout_s: float = 15.0) -> None:
        """Wait until the measured process uses almost no CPU."""

    def is_running(self) -> bool:
        """Whether the server still runs."""

    def stop(self) -> None:
        """End the server. May be called twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of all scenarios; a count unless the name has another unit."""

    idle: int = 19_000  # a process has 20,000 descriptors on the usual machine
    many: int = 15_000
    few: int = 1_000
    payload_bytes: int = 130  # a frame of 134 bytes
    many_rounds: int = 6
    many_rate_per_s: int = 3  # `websockets` needs 0.25 s for a publication
    few_rounds: int = 40
    few_rate_per_s: int = 25
    coalesced_rounds: int = 3
    coalesced_rate_per_s: int = 2
    handshakes: int = 2_000
    handshake_window: int = 64
    refusals: int = 2_000
    refusal_window: int = 24  # fewer than the 32 sockets that the gate drains at once
    echo_connections: int = 256
    echo_s: float = 1.0
    floor_echoes: int = 300  # per connection
    walk_s: float = 2.5
    walk_rate_per_s: int = 400  # echoes on the control connection
    single_channels: int = 256  # with one subscriber each
    publications: int = 100_000  # in one flood, over all channels
    publications_one: int = 100_000  # in one flood, to one channel
    pace_s: float = 2.0
    publishers: int = 64
    publishes_in_flight: int = 16  # per publisher
    client_publish_s: float = 1.0
    resting_shards: int = 30
    resting_s: float = 5.0  # the interval of the gateway's own probes
    control_connections: int = 20
    control_rate_per_s: int = 500  # over all of them together
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
        """Return sizes for a run of about a minute, which only shows that everything works."""
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
    """The numbers and losses of one server over all runs.

    Attributes:
        name: The name in the results.
        runs: Figures by name, one value per run.
        lost: One sentence per run that lost a message or a connection.
    """

    name: str
    runs: dict[str, list[float]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def add(self, figures: Mapping[str, float]) -> None:
        """Append the numbers of one run."""
        for name, value in figures.items():
            self.runs.setdefault(name, []).append(value)


@dataclass(slots=True, kw_only=True)
class Contender(Results):
    """One server under test with the engine that holds its connections, and its results.

    Attributes:
        server: The measured process.
        engine: Holds `sizes.many` connections (or more) to it.
        next_sequences: The sequence of the next message to each channel, by its name; 1 for the first.
    """

    server: Driven
    engine: EngineProcess
    next_sequences: dict[str, int] = field(default_factory=dict)

    def pool(self) -> tuple[int, int]:
        """Return (pool hits, pool misses) until now; zeros for a server without a pool."""
        counters: dict[str, int] = self.server.call("stats")["counters"]
        return counters.get("pool_hits", 0), counters.get("pool_misses", 0)

    def open(self, count: int) -> None:
        """Open the connections that stay open during all runs."""
        open_connections(self.engine, self.server, count)

    def subscribe(self, sizes: Sizes) -> None:
        """Subscribe `sizes.many` connections to MANY and `sizes.few` to FEW, and wait until that is done."""
        expected = {MANY: sizes.many, FEW: sizes.few}
        for name, count in expected.items():
            self.engine.send(f"subscribe:{name}", count=count)
        until_s = time.monotonic() + _SUBSCRIBED_S
        while any(self.server.call("subscribers", channel=name) != expected[name] for name in expected):
            if time.monotonic() > until_s:
                raise ServerError(f"{self.name}: not everyone subscribed")
            time.sleep(0.05)

    def faults(self) -> list[str]:
        """Return a sentence for each further fault, after the last run."""
        return []

    def stop(self) -> None:
        """End the engine, which resets its connections, and then the server."""
        self.engine.quit()
        self.server.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One kind of work, which the floor and each contender do once in every run.

    Attributes:
        name: The value of --only.
        contenders: The names of the servers that take part.
        needs_many: Whether the `many` subscribers must be connected.
        floor: Returns the floor's numbers of one run; None if C has nothing to compare with.
        measure: Returns one contender's numbers of one run; its engine argument is the visitor. None: only
            the gateway is measured.
        measure_gateway: The same for the gateway; None: the gateway takes no part.
    """

    name: str
    contenders: frozenset[str]
    needs_many: bool
    floor: Callable[[Sizes, Processors], Figures] | None
    measure: Callable[[Contender, EngineProcess, Sizes], Figures] | None
    measure_gateway: Callable[[Contender, EngineProcess, Sizes], Figures] | None = None

    def measure_of(self, contender: str) -> Callable[[Contender, EngineProcess, Sizes], Figures] | None:
        """Return the function that measures this contender; None if the contender takes no part."""
        if contender == GATEWAY:
            return self.measure_gateway
        return self.measure if contender in self.contenders else None

    def choice(self, contender: str) -> str:
        """Return the value of --only for this contender's turns in the scenario."""
        return f"{GATEWAY}_{self.name}" if contender == GATEWAY else self.name


def open_connections(
    engine: EngineProcess, server: Driven, count: int, *, window: int = 256, **fields: Any
) -> None:
    """Open connections, and raise RuntimeError unless all of them open.

    Args:
        engine: The engine that holds them.
        server: The server to connect to.
        count: The number of connections.
        window: How many handshakes are under way at once.
        fields: Further fields of ConnectPlan; the default path is /ws.
    """
    # The slowest server loses SYNs when its backlog is full, and receives them again seconds later.
    fields = {"path": "/ws", "timeout_s": 60.0, **fields}
    result = engine.connect(
        ConnectPlan(count=count, host="127.0.0.1", port=server.port, window=window, **fields)
    )
    if result["opened"] != count:
        raise RuntimeError(f"{server.module}: {result['opened']} of {count} connections opened: {result}")


def start_engine(number: int, processor: int | None, counted: tuple[str, ...] = ()) -> EngineProcess:
    """Start an engine with its own source addresses, from 127.`number`.0.1 on."""
    settings = EngineSettings(first_source=f"127.{number}.0.1", counted=counted)
    return EngineProcess(settings, cpus=() if processor is None else (processor,))


@contextlib.contextmanager
def favoured(pid: int) -> Iterator[bool]:
    """Give a measuring process real-time priority during the block; yield False if that is not allowed.

    The time in which it waits for a CPU is then not part of the numbers.
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
    """Hold `count` more connections with another engine during the block, and wait for an idle server.

    Args:
        contender: The server to connect to.
        visitor: The engine that holds these connections.
        count: The number of connections.
        fields: Further fields of ConnectPlan.
    """
    visitor.reset_stats()
    open_connections(visitor, contender.server, count, **fields)
    contender.server.settle()
    try:
        yield
    finally:
        visitor.close("reset")
        contender.server.settle()
