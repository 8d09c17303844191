"""Write event streams as a gateway does, and run a consumer of them in this process or another one."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.exceptions import ResponseError

from wsgate.client.backend import ConsumerOptions, Event, EventConsumer

__all__ = ["GROUP", "QUICK", "Hall", "consuming", "options", "running_program", "until"]

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 30.0
GROUP = "backend"
QUICK: dict[str, Any] = {"start_at": "0", "block_s": 0.05, "takeover_every_s": 0.05, "timeout_s": 5.0}


def options(**more: Any) -> ConsumerOptions:
    """Return settings with short waits."""
    return ConsumerOptions(**{**QUICK, **more})


async def until(what: str, claim: Callable[[], Awaitable[object]]) -> None:
    """Poll until the claim is true; raise AssertionError with `what` when it never is."""
    end_s = asyncio.get_running_loop().time() + WITHIN_S
    while not await claim():
        assert asyncio.get_running_loop().time() < end_s, what
        await asyncio.sleep(0.01)


@dataclass
class Hall:
    """One Redis with event streams, the events that a test appends, and those that a handler received."""

    redis: Any
    prefix: str = "wsgate"
    group: str = GROUP
    appended: int = 0
    handled: list[Event] = field(default_factory=list)
    stirred: asyncio.Event = field(default_factory=asyncio.Event)

    async def append(self, count: int = 1, *, partition: int = 0, **fields: Any) -> list[str]:
        """Append events as a shard does; return their ids."""
        ids = []
        for _ in range(count):
            self.appended += 1
            event = {
                "type": "connected",
                "id": f"8f14e45fceea167a-{self.appended}",
                "conn": f"{self.appended:016x}",
                "user": "42",
                "node": "n1",
                "ts": 1_732_600_000_000,
                **fields,
            }
            await self.redis.xadd(f"{self.prefix}:events:{partition}", event)
            ids.append(event["id"])
        return ids

    async def handle(self, event: Event) -> None:
        """Record an event; this handler never fails."""
        self.handled.append(event)
        self.stirred.set()

    @property
    def ids(self) -> list[str]:
        return [event.id for event in self.handled]

    async def heard(self, claim: Callable[[], object]) -> None:
        """Wait until the handled events make the claim true."""
        async with asyncio.timeout(WITHIN_S):
            while not claim():
                self.stirred.clear()
                await self.stirred.wait()

    async def pending(self, partition: int = 0) -> int:
        """Return the number of entries that were delivered and not acknowledged."""
        found = await self.redis.xpending(f"{self.prefix}:events:{partition}", self.group)
        return int(found["pending"])

    async def settled(self, partition: int = 0) -> None:
        """Wait until nothing is pending and nothing is left to be read."""

        async def is_settled() -> bool:
            (group,) = await self.redis.xinfo_groups(f"{self.prefix}:events:{partition}")
            return group["pending"] == 0 and group["lag"] in (0, None)

        await until("nothing is pending", is_settled)

    async def has_group(self) -> bool:
        """Whether a consumer has created its group."""
        try:
            return bool(await self.redis.xinfo_groups(f"{self.prefix}:events:0"))
        except ResponseError:  # there is no stream
            return False

    async def dead(self) -> list[dict[bytes, bytes]]:
        """Return the dead letters."""
        return [fields for _, fields in await self.redis.xrange(f"{self.prefix}:events:dead")]


@contextlib.asynccontextmanager
async def consuming(
    where: Any,
    handle: Callable[[Event], Awaitable[None]],
    *,
    errors: list[Exception] | None = None,
    **more: Any,
) -> AsyncIterator[EventConsumer]:
    """Run a consumer in this process; stop it at the end and wait for it."""
    told = errors if errors is not None else []
    group = more.pop("group", GROUP)
    consumer = EventConsumer(where, group, handle, options=options(**more), on_error=told.append)
    running = asyncio.create_task(consumer.run())
    try:
        yield consumer
    finally:
        async with asyncio.timeout(WITHIN_S):
            await consumer.stop()
            await running


@contextlib.contextmanager
def running_program(text: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program in a process of its own; kill it at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=ROOT,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(WITHIN_S)
        assert process.stdout is not None
        process.stdout.close()
