"""Measure the CPU time to make, pack and append one event through `wsgate.bus.Appender`.

``python -m loadtest bus_appender`` starts its own server and prints the microseconds of this process's CPU
time per event: for connections that begin, and for messages of 150 bytes. The server shares the cores of the
machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import uvloop

from loadtest.micro.bus_publisher import PAYLOAD, own_server, report
from wsgate.auth import NO_PERMISSIONS, Identity
from wsgate.bus import Appender, AppenderOptions, BusAddress
from wsgate.payload import JSON, Payload
from wsgate.shard.backend_events import EVENT_TYPES, Events
from wsgate.shard.options import EventOptions
from wsgate.turns import Sender

__all__ = ["main"]

_EVENTS: Final = 50_000
_TOGETHER: Final = 500


def _ignore(outcome: str) -> None:
    """Ignore the outcome, which a gateway would send to the client."""


async def _run(what: str, events: Events, tell: Callable[[int], object]) -> None:
    """Record events in groups; each group starts when the one before is appended."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for first in range(0, _EVENTS, _TOGETHER):
        for number in range(first, first + _TOGETHER):
            tell(number)
        await events.flush(10.0)
    report(what, _EVENTS, time.perf_counter() - wall_s, time.process_time() - cpu_s)


async def _main(path: Path) -> None:
    address = BusAddress(path=str(path))
    appender = Appender(lambda: address, AppenderOptions(), print)
    running = asyncio.ensure_future(appender.run())
    options = EventOptions(enabled=frozenset(EVENT_TYPES))
    events = Events(options, "node-1", [b"bench"], [appender], lambda conn: conn, lambda name, amount: None)
    member = events.member(Identity("user-42", NO_PERMISSIONS, 0), 0)
    payload = Payload(JSON, PAYLOAD)
    for _ in range(2):
        await _run("connected", events, lambda number: events.connected(number, member))
        await _run(
            "message",
            events,
            lambda number: events.message(number, member, payload, Sender("user-42", number), _ignore),
        )
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def main() -> None:
    """Measure and print each kind twice; the second time everything is warm."""
    with own_server() as path:
        uvloop.run(_main(path))


if __name__ == "__main__":
    main()
