"""Run a mixed population and one fault after another: is anything lost without a notice?

    python -m loadtest soak [--seconds 60] [--seed 1] [--fault NAME ...]

A control group of 30 clients subscribes, publishes and pings. Other connections connect and disconnect, read
slowly or not at all, send all the time, publish in bursts, or are all cut and reconnect together. Meanwhile
shards and the bus are killed, the bus's connections are cut, the bus is paused, the configuration is
reloaded, and the wall clock is set forward and back (with libfaketime, if it is installed).

The run fails if a subscriber of the control group missed a publication that had a positive reply and received
no `gap`, if one was repeated or out of order, if a connection ended for a final reason, if the control
group's p99 is too long, if the gateway wrote a traceback, or if memory, descriptors and accounts do not
return to their first values after all clients have disconnected.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

import redis.asyncio
from redis.exceptions import RedisError

from loadtest.experiments.soak.faults import FAULTS, Faults, find_faketime
from loadtest.experiments.soak.roles import CONTROL_CHANNELS, Town, population
from loadtest.harness import processes
from loadtest.harness.gateway import GatewayProcess
from loadtest.harness.verdict import print_verdict

__all__ = ["main"]

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

[heartbeat]
ping_interval = "5s"

[events]
enabled = {events}

[channels.default]
subscribe = "authenticated"
publish = "authenticated"

[channels.control]
subscribe = "authenticated"
publish = "authenticated"

[channels.bulk]
subscribe = "authenticated"
publish = "authenticated"
"""
CALM_S: Final = 6.0
"""At the end no fault is injected for this long, so that notices arrive and all clients reconnect."""
P99_S: Final = 1.0
"""Limit for a ping of the control group, faults included: a pause of the bus must not delay clients."""
REST_S: Final = 40.0
MEMORY_SLACK_BYTES: Final = 24 << 20
"""For all shards: each keeps 4 MiB of buffers for the next connections, and the interpreter keeps arenas."""
ACCOUNT_SLACK_BYTES: Final = 1 << 20
"""For all shards: each keeps one block of 256 KiB of its backlog, and caches tokens for 5 minutes."""
DESCRIPTORS_SLACK: Final = 4
# Memory that is kept for the next connections and released only under pressure.
KEPT_KINDS: Final = frozenset({"pool", "table", "channel", "user"})
FINAL_CODES: Final = frozenset({1002, 1003, 1007, 1008, 1009, 1010, *range(4500, 4600)})
_BACKEND_EVERY_S: Final = 0.005
_PROGRESS_S: Final = 5.0


class Footprint(NamedTuple):
    """The memory, descriptors and accounts of all shards together."""

    memory_bytes: int
    descriptors: int
    accounts_bytes: int


def footprint(gateway: GatewayProcess) -> Footprint:
    """Measure the memory, descriptors and accounts of all shards at present."""
    pids = gateway.pids_now("wsgate-shard-")
    return Footprint(
        sum(processes.memory(pid).pss_bytes for pid in pids),
        sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
        int(
            gateway.metric("memory_bytes")
            - sum(gateway.metric("memory_bytes", kind=kind) for kind in KEPT_KINDS)
        ),
    )


async def backend(town: Town, bus_path: str) -> None:
    """Publish numbered items to the control channels, as a backend does; record those that Redis accepted."""
    client = redis.asyncio.Redis(unix_socket_path=bus_path, socket_timeout=2.0)
    number = 0
    try:
        while True:
            await asyncio.sleep(_BACKEND_EVERY_S)
            number += 1
            channel = CONTROL_CHANNELS[number % len(CONTROL_CHANNELS)]
            began_s = time.monotonic()
            with contextlib.suppress(OSError, RedisError, TimeoutError):
                await client.publish(
                    f"wsgate:ch:{channel}", json.dumps({"source": "backend", "number": number})
                )
                town.published.add(channel, "backend", number, began_s, time.monotonic())
    finally:
        await client.aclose()


async def live(gateway: GatewayProcess, faults: Faults, town: Town, seconds: float) -> None:
    """Run the population for so long, with faults until shortly before the end."""
    people = population(town)
    speaker = asyncio.create_task(backend(town, gateway.bus_path))
    trouble = asyncio.create_task(faults.run())
    began_s = time.monotonic()
    while (passed_s := time.monotonic() - began_s) < seconds:
        if passed_s > seconds - CALM_S:
            trouble.cancel()
        await asyncio.sleep(min(_PROGRESS_S, seconds - passed_s))
        print(
            f"[{time.monotonic() - began_s:6.1f} s] published {town.published.count},"
            f" received {sum(session.count for session in town.sessions)},"
            f" notices {sum(len(times) for session in town.sessions for times in session.gaps.values())},"
            f" faults {dict(faults.done)}",
            flush=True,
        )
    speaker.cancel()
    await asyncio.sleep(CALM_S / 2)
    left = {speaker, *people}
    while left:  # a library may swallow a cancellation while it closes a connection
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=1.0)


def rested(gateway: GatewayProcess, before: Footprint) -> tuple[Footprint, bool]:
    """Wait at most `REST_S` until no client is connected and the shards use what they used before."""
    until_s = time.monotonic() + REST_S
    while True:
        after = footprint(gateway)
        is_rested = (
            gateway.metric("connections_held") == 0
            and after.memory_bytes <= before.memory_bytes + MEMORY_SLACK_BYTES
            and after.descriptors <= before.descriptors + DESCRIPTORS_SLACK
            and after.accounts_bytes <= before.accounts_bytes + ACCOUNT_SLACK_BYTES
        )
        if is_rested or time.monotonic() > until_s:
            return after, is_rested
        time.sleep(1.0)


def main(arguments: list[str] | None = None) -> int:
    """Run the population once, and print whether each check passed."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.soak")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument(
        "--fault", choices=FAULTS, action="append", help="a fault to inject; may be repeated; default: all"
    )
    options = parser.parse_args(arguments)
    chance = random.Random(options.seed)
    library = find_faketime()
    with tempfile.TemporaryDirectory(prefix="wsgate-soak-") as directory:
        offset = Path(directory) / "offset"
        offset.write_text("+0")
        shifted = ["env", f"LD_PRELOAD={library}", f"FAKETIME_TIMESTAMP_FILE={offset}"]
        shifted += ["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"]
        gateway = GatewayProcess(
            shards=options.shards, events=("message",), prefix=shifted if library else (), config=CONFIG
        )
        try:
            gateway.settle()
            before = footprint(gateway)
            town = Town(gateway.port, chance)
            chosen = frozenset(options.fault or FAULTS)
            faults = Faults(gateway, chance, offset if library else None, chosen)
            asyncio.run(live(gateway, faults, town, options.seconds))
            after, is_rested = rested(gateway, before)
            kinds = gateway.metric_by("memory_bytes", "kind")
            tracebacks = gateway.log_text().count("Traceback")
        finally:
            gateway.stop()
    lost = [fault for session in town.sessions for fault in session.lost(town.published)]
    pings = sorted(town.pings_s)
    p99_s = pings[int(len(pings) * 0.99)] if pings else float("inf")
    final = {key: count for key, count in town.closes.items() if key[1] in FINAL_CODES}
    print(f"clock steps: {'yes' if library else 'no, libfaketime is not installed'}; seed {options.seed}")
    print(f"sessions of the control group {len(town.sessions)}; pings {len(pings)}, p99 {p99_s * 1e3:.1f} ms")
    print(f"closes {dict(town.closes.most_common(20))}")
    print(f"refusals {dict(town.refusals)}")
    print(f"before {before}, after {after}; accounts after, by kind: {kinds}")
    for fault in lost[:20]:
        print(f"  {fault}")
    return print_verdict(
        {
            f"no publication was lost without a notice ({len(lost)})": not lost,
            "the control group received publications": any(session.count for session in town.sessions),
            f"a ping of the control group took {P99_S:.1f} s at most, p99": p99_s <= P99_S,
            f"no connection ended for a reason that is final ({final})": not final,
            f"the gateway wrote no traceback ({tracebacks})": not tracebacks,
            "memory, descriptors and accounts are as before": is_rested,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
