"""Append 20,000 events a second on one shard: by how much are deliveries delayed?

    python -m loadtest event_interference [--rate 20000] [--runs 5]

One shard on its own CPU. A backend publishes 2,000 messages a second, to 200 channels with one
subscriber each. Meanwhile 2,000 other clients send commands at a fixed rate: none; `ping`, which is read,
decoded and answered; `send`, which is read, decoded and appended to the event stream. The last case is `ping`
while another process appends as many entries, which shows the cost of the bus's own work. The program prints
the latency of deliveries from their intended time, and the load of the shard's CPU. Fails if `send`
increased the 99th percentile by more than 2 ms compared with `ping` (medians of the runs), or if an event was
lost.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import redis

from loadtest.engine import ConnectPlan, Engine, EngineProcess, EngineSettings
from loadtest.harness.gateway import GatewayProcess
from loadtest.harness.machine_info import processors
from loadtest.scenarios.members import BEARER, COUNTED, make_tokens
from loadtest.scenarios.stage import favoured, start_engine

__all__ = ["main"]

TALKERS: Final = 2_000
LISTENERS: Final = 200
DELIVERIES_PER_S: Final = 2_000
RUN_S: Final = 5.0
P99_MOVES_MOST_MS: Final = 2.0
_STREAM: Final = 300
_STEP_S: Final = 0.001
_EVENT_BYTES: Final = 160
_WAIT_S: Final = 30.0
_FRESH_S: Final = 1.3  # a shard writes its statistics once a second
COMMANDS: Final = {
    "nothing": b"",
    "ping": b'{"op":"ping"}',
    "ping, and appends of another": b'{"op":"ping"}',
    "send": b'{"op":"send","data":{"text":"hello"}}',
}
_ANOTHER: Final = "another"


class Beside(NamedTuple):
    """The numbers of one run: latency of deliveries, load of the shard, rate of commands."""

    p50_ms: float
    p99_ms: float
    busy_share: float
    commands_per_s: float


class Hall:
    """A gateway with the clients that receive deliveries, and those that send commands."""

    def __init__(self, gateway: GatewayProcess, visitor: EngineProcess) -> None:
        self._gateway, self._visitor = gateway, visitor
        # The backend's pipes are polled with select, which supports 1,024 descriptors, so it is started
        # first.
        gateway.call("hello")
        self._talkers = Engine(EngineSettings(max_connections=TALKERS, counted=COUNTED))
        self._sequence = 1
        users = [f"user-{number}" for number in range(TALKERS)]
        where: dict[str, Any] = {"host": "127.0.0.1", "port": gateway.port}
        talkers = ConnectPlan(
            count=TALKERS, path="/ws", headers=BEARER, tokens=make_tokens(users, "talk"), **where
        )
        listeners = ConnectPlan(count=LISTENERS, path="/ws?ch=one-{index}", **where)
        for opened, wanted in (
            (self._talkers.connect(talkers)["opened"], TALKERS),
            (visitor.connect(listeners)["opened"], LISTENERS),
        ):
            if opened != wanted:
                raise RuntimeError(f"{opened} of {wanted} are connected")

    def run(self, command: bytes, rate_per_s: int) -> Beside:
        """Deliver for `RUN_S` while clients send commands at a rate; raise RuntimeError after a loss."""
        gateway, visitor = self._gateway, self._visitor
        each = int(DELIVERIES_PER_S * RUN_S / LISTENERS)
        gateway.settle()
        visitor.reset_stats()
        began_s, cpu_s = time.monotonic(), gateway.cpu_s()
        with favoured(gateway.backend_pid), favoured(gateway.bus_pid), favoured(visitor.pid):
            publishing = gateway.start(
                "pace",
                channels=[f"one-{number}" for number in range(LISTENERS)],
                stream=_STREAM,
                first_sequence=self._sequence,
                count=each,
                payload_bytes=128,
                rate_per_s=DELIVERIES_PER_S,
            )
            sent = self._talk(command, rate_per_s if command else 0)
            passed_s, used_s = time.monotonic() - began_s, gateway.cpu_s() - cpu_s
            gateway.finish(publishing, timeout_s=_WAIT_S)
            visitor.run(_WAIT_S, until_messages=each * LISTENERS)
        self._sequence += each
        stats = visitor.stats()
        if stats["stamped"] != each * LISTENERS or stats["missing"] or stats["reordered"]:
            raise RuntimeError(f"{stats['stamped']} of {each * LISTENERS} deliveries arrived")
        latency = stats["delivery_latency"]
        return Beside(latency["p50"] / 1e6, latency["p99"] / 1e6, used_s / passed_s, sent / passed_s)

    def _talk(self, command: bytes, rate_per_s: int) -> int:
        """Send commands at a fixed rate, from each client in turn; return how many were sent."""
        began_s, sent = time.monotonic(), 0
        while (passed_s := time.monotonic() - began_s) < RUN_S:
            due = int(passed_s * rate_per_s)
            while sent < due:
                first = sent % TALKERS
                sent += self._talkers.send(command, first=first, count=min(due - sent, TALKERS - first))
            self._talkers.step(_STEP_S)
        return sent

    def close(self) -> None:
        """Close the clients that send commands."""
        self._talkers.shut()


@contextlib.contextmanager
def _appending(path: str, rate_per_s: int) -> Iterator[None]:
    """Append entries of the size of an event at a fixed rate, in another process, during the block."""
    process = multiprocessing.get_context("spawn").Process(
        target=_append, args=(path, rate_per_s), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _append(path: str, rate_per_s: int) -> None:
    bus = redis.Redis(unix_socket_path=path)
    began_s, sent = time.monotonic(), 0
    while (passed_s := time.monotonic() - began_s) < _WAIT_S:
        with bus.pipeline(transaction=False) as pipeline:
            for _ in range(int(passed_s * rate_per_s) - sent):
                pipeline.xadd("wsgate:another", {"event": bytes(_EVENT_BYTES)}, maxlen=100_000)
                sent += 1
            pipeline.execute()
        time.sleep(_STEP_S)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; return 1 if events delayed deliveries too much."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.event_interference")
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(arguments)
    pinned = processors()
    shard, rest = pinned if pinned is not None else (None, None)
    if rest is not None:
        os.sched_setaffinity(0, (rest,))
    runs: dict[str, list[Beside]] = {name: [] for name in COMMANDS}
    with (
        GatewayProcess(processor=shard, events=("message",)) as gateway,
        start_engine(2, rest, COUNTED) as visitor,
    ):
        beside = Hall(gateway, visitor)
        for _ in range(options.runs):
            for name, command in COMMANDS.items():
                is_another = name.endswith(_ANOTHER)
                with _appending(gateway.bus_path, options.rate) if is_another else contextlib.nullcontext():
                    runs[name].append(beside.run(command, options.rate))
        beside.close()
        time.sleep(_FRESH_S)
        sent, appended = (
            gateway.metric("commands_total", op="send"),
            gateway.metric("events_total", outcome="appended"),
        )
        faults = gateway.faults()
    medians = {
        name: Beside(*map(statistics.median, zip(*found, strict=True))) for name, found in runs.items()
    }
    for name, found in medians.items():
        print(
            f"{name:>28}: {found.commands_per_s:>6,.0f}/s, deliveries p50 {found.p50_ms:.2f} ms,"
            f" p99 {found.p99_ms:.2f} ms, shard busy {found.busy_share:.0%}"
        )
    print(f"{sent:,.0f} messages sent, {appended:,.0f} events appended")
    for fault in faults:
        print(f"FAULT: {fault}")
    moved_ms = medians["send"].p99_ms - medians["ping"].p99_ms
    return int(moved_ms > P99_MOVES_MOST_MS or sent != appended or bool(faults))


if __name__ == "__main__":
    sys.exit(main())
