"""Injects the faults of a run in random order: kills, cuts and pauses of the bus, reloads, clock steps."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import redis.asyncio
from redis.exceptions import RedisError

from loadtest.harness.gateway import GatewayProcess

__all__ = ["FAULTS", "Faults", "find_faketime"]

FAULTS: Final = ("reload", "kill_shard", "kill_bus", "cut_bus", "pause_bus", "step_clock")
_EVERY_S: Final = 2.0, 8.0
_PAUSE_S: Final = 0.7
_CUTS: Final = 5
_STEPS: Final = "+0", "+1h", "-1h", "+3s", "-3s"


def find_faketime() -> str | None:
    """Return the library that shifts the wall clock of one process; None if it is not installed."""
    return next((str(path) for path in Path("/usr/lib").glob("**/libfaketimeMT.so.1")), None)


class Faults:
    """Injects one fault after another into one gateway.

    Args:
        gateway: The gateway whose processes are affected.
        chance: The randomness of the run.
        offset: The file that the clock library reads; None: the clock is not changed.
        chosen: Which of `FAULTS` are injected.
    """

    def __init__(
        self, gateway: GatewayProcess, chance: random.Random, offset: Path | None, chosen: frozenset[str]
    ) -> None:
        self.done: Counter[str] = Counter()
        self._gateway = gateway
        self._chance = chance
        self._offset = offset
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            name: getattr(self, "_" + name) for name in FAULTS if name in chosen
        }
        if offset is None:
            self._kinds.pop("step_clock", None)

    async def run(self) -> None:
        """Inject faults at random times until the task is cancelled."""
        while self._kinds:
            await asyncio.sleep(self._chance.uniform(*_EVERY_S))
            name, fault = self._chance.choice(list(self._kinds.items()))
            self.done[name] += 1
            with contextlib.suppress(OSError, RedisError, IndexError, KeyError):
                await fault()

    async def _reload(self) -> None:
        self._gateway.signal(signal.SIGHUP)

    async def _kill_shard(self) -> None:
        os.kill(self._chance.choice(self._gateway.pids_now("wsgate-shard-")), signal.SIGKILL)

    async def _kill_bus(self) -> None:
        os.kill(self._gateway.pids_now("wsgate-bus")[0], signal.SIGKILL)

    async def _cut_bus(self) -> None:
        async with redis.asyncio.Redis(unix_socket_path=self._gateway.bus_path) as client:
            for _ in range(self._chance.randint(1, _CUTS)):
                await client.client_kill_filter(_type="pubsub")
                await asyncio.sleep(self._chance.uniform(0.05, 0.5))

    async def _pause_bus(self) -> None:
        pid = self._gateway.pids_now("wsgate-bus")[0]
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(_PAUSE_S)
        finally:
            os.kill(pid, signal.SIGCONT)

    async def _step_clock(self) -> None:
        assert self._offset is not None
        self._offset.write_text(self._chance.choice(_STEPS))
