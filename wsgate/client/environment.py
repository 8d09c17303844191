"""What a client takes from outside and a test may replace: the clock, chance, and the way to a gateway."""

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
    """Time that only goes forward. Nothing here asks what time of day it is."""

    def now_s(self) -> float:
        """Seconds since some moment."""

    async def sleep(self, seconds: float) -> None:
        """Return when they have passed."""


class MonotonicClock:
    """The machine's own; a wall clock that is set does not move it."""

    def now_s(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The outside of one client.

    Attributes:
        clock: For back-off, silence and refreshing. Time limits of single commands are the event loop's.
        random: For jitter.
        connect: Opens one connection, or raises `Disconnected`.
    """

    clock: Clock = MonotonicClock()  # noqa: RUF009 - it holds no state
    random: Random = random.random
    connect: Callable[[Opening], Coroutine[Any, Any, Transport]] = open_websocket
