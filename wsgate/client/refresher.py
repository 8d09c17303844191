"""Keeps the token of one connection fresh, so that it does not end with it.

Ahead of time when the gateway says how long the token lives, and when the gateway asks for it. Every moment
is drawn at random: connections that began together, or are asked together, do not refresh together.
"""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final

from wsgate.client.backoff import Backoff
from wsgate.client.environment import Environment
from wsgate.client.tasks import Tasks
from wsgate.errors import BackendError

__all__ = ["Refresher"]

EARLIEST: Final = 0.8
LATEST: Final = 0.9
"""Parts of a token's life: late enough to spare the provider, early enough for several tries."""


class Refresher:
    """Refreshes now and then while its tasks live."""

    def __init__(
        self,
        renew: Callable[[], Awaitable[int | None]],
        tasks: Tasks,
        *,
        environment: Environment,
        backoff: Backoff,
        on_failure: Callable[[Exception], None],
    ) -> None:
        """Nothing is scheduled yet.

        Args:
            renew: Gets a token and shows it to the gateway; how long it lives in s, None: for ever.
            tasks: Of the connection.
            environment: Clock and chance.
            backoff: Between tries that fail.
            on_failure: Told of each.
        """
        self._renew = renew
        self._tasks = tasks
        self._environment = environment
        self._backoff = backoff
        self._on_failure = on_failure
        self._timer: asyncio.Task[None] | None = None
        self._due_s: float | None = None  # when the timer goes off; None while it refreshes, or there is none

    def expires_in(self, expires_s: int | None) -> None:
        """The token that counts now lives so long: be ahead of that."""
        if expires_s is None:
            self._stop()
        else:
            part = EARLIEST + self._environment.random() * (LATEST - EARLIEST)
            self._schedule(expires_s * part)

    def asked_within(self, within_s: float) -> None:
        """The gateway wants a fresh one: at a random moment of the first half of the time it gives."""
        delay_s = self._environment.random() * within_s / 2
        if self._due_s is not None:
            delay_s = min(delay_s, max(0.0, self._due_s - self._environment.clock.now_s()))
        self._schedule(delay_s)

    def _stop(self) -> None:
        # It may be the timer itself that asks, when its refreshing was answered.
        if self._timer is not None and self._timer is not asyncio.current_task():
            self._timer.cancel()
        self._timer = None
        self._due_s = None

    def _schedule(self, delay_s: float) -> None:
        self._stop()
        self._due_s = self._environment.clock.now_s() + delay_s
        self._timer = self._tasks.start(self._run(delay_s))

    async def _run(self, delay_s: float) -> None:
        """Wait, then try until it works or the connection ends with its token."""
        clock = self._environment.clock
        await clock.sleep(delay_s)
        self._due_s = None
        for attempt in count():
            try:
                expires_s = await self._renew()
            except BackendError as error:
                self._on_failure(error)
            else:
                self.expires_in(expires_s)
                return
            await clock.sleep(self._backoff.delay_s(attempt, self._environment.random))
