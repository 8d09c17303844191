"""The dependencies of a client that tests replace: the clock, the randomness, and the opening of sockets."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from wsgate.client.backoff import Random
from wsgate.client.transport import Opening, Transport, open_websocket

__all__ = ["Clock", "Environment", "MonotonicClock"]


class Clock(Protocol):
    """A monotonic clock for delays and time limits. It does not give the time of day."""

    def now_s(self) -> float:
        """Return seconds since a fixed but arbitrary moment."""

    async def sleep(self, seconds: float) -> None:
        """Return after this number of seconds."""


class MonotonicClock:
    """The clock of this machine; setting the time of day does not change it."""

    def now_s(self) -> float:
        """Return the seconds of `time.monotonic`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Sleep on the event loop."""
        await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The dependencies of one client on the outside.

    Attributes:
        clock: Used for back-off, silence and refreshing. The time limits of single commands use the event
            loop.
        random: Used for jitter.
        connect: Opens one connection, or raises `Disconnected`.
    """

    clock: Clock = MonotonicClock()  # noqa: RUF009 - the clock has no state, so that sharing it is safe
    random: Random = random.random
    connect: Callable[[Opening], Coroutine[Any, Any, Transport]] = open_websocket
