"""Keeps the token of one connection fresh, so that the connection does not end with the token.

A refresh happens ahead of time when the gateway says how long the token lives, and when the gateway asks for
one. Every moment is drawn at random: connections that began together, or are asked together, do not refresh
together. Two refreshes of one connection begin `LEAST_S` apart at least, whatever the gateway says.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final

from wsgate.client.backoff import Backoff
from wsgate.client.environment import Environment
from wsgate.client.errors import UnauthorizedError
from wsgate.client.tasks import Tasks
from wsgate.errors import BackendError

__all__ = ["Refresher"]

EARLIEST: Final = 0.8
LATEST: Final = 0.9
"""Parts of a token's life: late enough to spare the provider, early enough for several tries."""

LEAST_S: Final = 1.0
"""Between two refreshes. `expires_s` is whole seconds, so that 0 may be anything below one; a provider that
keeps its token until it expires would otherwise be asked thousands of times in that second."""


class Refresher:
    """Refreshes now and then while its tasks live."""

    def __init__(
        self,
        renew: Callable[[bool], Awaitable[int | None]],
        tasks: Tasks,
        *,
        environment: Environment,
        backoff: Backoff,
        on_failure: Callable[[Exception], None],
    ) -> None:
        """Nothing is scheduled yet.

        Args:
            renew: Gets a token and shows it to the gateway; how long it lives in s, None: for ever. Called
                with whether the gateway asked: otherwise the same token again is a failure.
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
        self._due_s: float | None = None  # of the next try; None while one is under way, or there is none
        self._began_s = -math.inf  # the last refresh
        self._is_asked = False  # by the gateway, and not begun yet
        self._asked_delay_s = 0.0

    def expires_in(self, expires_s: int | None) -> None:
        """The token that counts now lives so long: be ahead of that."""
        if expires_s is None:
            self._stop()
        else:
            part = EARLIEST + self._environment.random() * (LATEST - EARLIEST)
            self._schedule(max(0.0, expires_s * part))

    def asked_within(self, within_s: float) -> None:
        """The gateway wants a fresh one: at a random moment of the first half of the time it gives."""
        self._is_asked = True
        delay_s = self._environment.random() * within_s / 2
        if self._timer is not None and self._due_s is None:
            self._asked_delay_s = delay_s  # a refresh is under way: cancelling it would put it off
            return
        self._schedule_at_most(delay_s)

    def _schedule_at_most(self, delay_s: float) -> None:
        """Refresh after this time, unless that is to be done earlier already."""
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
        now_s = self._environment.clock.now_s()
        self._due_s = max(now_s + delay_s, self._began_s + LEAST_S)
        self._timer = self._tasks.start(self._run(self._due_s - now_s))

    async def _run(self, delay_s: float) -> None:
        """Wait, then try until it works or the connection ends with its token."""
        clock = self._environment.clock
        await clock.sleep(delay_s)
        self._due_s = None
        for attempt in count():
            self._began_s = clock.now_s()
            is_asked, self._is_asked = self._is_asked, False
            try:
                expires_s = await self._renew(is_asked)
            except UnauthorizedError:
                return  # the client ends with it
            except BackendError as error:
                self._is_asked |= is_asked
                self._on_failure(error)
            else:
                self.expires_in(expires_s)
                if self._is_asked:  # meanwhile
                    self._schedule_at_most(self._asked_delay_s)
                return
            delay_s = self._backoff.delay_s(attempt, self._environment.random)
            delay_s = max(delay_s, self._began_s + LEAST_S - clock.now_s())
            self._due_s = clock.now_s() + delay_s
            await clock.sleep(delay_s)
            self._due_s = None
