"""Refreshes the token of one connection before it expires, so that the gateway does not close the connection.

The refresher acts before the end of a token's life, and when the gateway requests a fresh token. Every moment
is random, so that connections that began or received a request together do not refresh together. Two
refreshes of one connection begin at least `LEAST_S` apart, whatever times the gateway sends.
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
"""Fractions of a token's life between which it is refreshed: late enough to spare the provider, early enough
for several tries."""

LEAST_S: Final = 1.0
"""Seconds between the beginnings of two refreshes. `expires_s` is in whole seconds, so that 0 means any time
below one second. Without this minimum, a provider that returns the same token until it expires would be
called thousands of times in that second."""


class Refresher:
    """Schedules and repeats the token refreshes of one connection."""

    def __init__(
        self,
        renew: Callable[[bool], Awaitable[int | None]],
        tasks: Tasks,
        *,
        environment: Environment,
        backoff: Backoff,
        on_failure: Callable[[Exception], None],
    ) -> None:
        """Create a refresher without a scheduled refresh.

        Args:
            renew: Gets a token and sends it to the gateway. Returns the seconds until it expires, None:
                never. Its argument is whether the gateway requested the refresh; if not, the same token again
                is a failure.
            tasks: The tasks of the connection.
            environment: The clock and the randomness.
            backoff: The delay after a refresh that failed.
            on_failure: Called with the error of each refresh that failed.
        """
        self._renew = renew
        self._tasks = tasks
        self._environment = environment
        self._backoff = backoff
        self._on_failure = on_failure
        self._timer: asyncio.Task[None] | None = None
        # time of the next try; None while one runs, and if none is scheduled
        self._due_s: float | None = None
        self._began_s = -math.inf  # when the last refresh began
        self._is_asked = False  # the gateway has requested a refresh that has not begun
        self._asked_delay_s = 0.0

    def expires_in(self, expires_s: int | None) -> None:
        """Schedule the next refresh at a random moment between 80 and 90 % of this life.

        None means that the token does not expire: cancel the scheduled refresh.
        """
        if expires_s is None:
            self._stop()
        else:
            part = EARLIEST + self._environment.random() * (LATEST - EARLIEST)
            self._schedule(max(0.0, expires_s * part))

    def asked_within(self, within_s: float) -> None:
        """Schedule a refresh that the gateway requested.

        The moment is random, in the first half of the given seconds.
        """
        self._is_asked = True
        delay_s = self._environment.random() * within_s / 2
        if self._timer is not None and self._due_s is None:
            self._asked_delay_s = delay_s  # do not cancel the refresh that runs: that would delay it
            return
        self._schedule_at_most(delay_s)

    def _schedule_at_most(self, delay_s: float) -> None:
        """Schedule a refresh after this time, unless an earlier one is scheduled already."""
        if self._due_s is not None:
            delay_s = min(delay_s, max(0.0, self._due_s - self._environment.clock.now_s()))
        self._schedule(delay_s)

    def _stop(self) -> None:
        # This may run in the timer's own task, after a refresh succeeded; it must not cancel itself.
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
        """Wait, then try to refresh until one try succeeds or the connection ends."""
        clock = self._environment.clock
        await clock.sleep(delay_s)
        self._due_s = None
        for attempt in count():
            self._began_s = clock.now_s()
            is_asked, self._is_asked = self._is_asked, False
            try:
                expires_s = await self._renew(is_asked)
            except UnauthorizedError:
                return  # the client ends with this error
            except BackendError as error:
                self._is_asked |= is_asked
                self._on_failure(error)
            else:
                self.expires_in(expires_s)
                if self._is_asked:  # the gateway sent a request during the refresh
                    self._schedule_at_most(self._asked_delay_s)
                return
            delay_s = self._backoff.delay_s(attempt, self._environment.random)
            delay_s = max(delay_s, self._began_s + LEAST_S - clock.now_s())
            self._due_s = clock.now_s() + delay_s
            await clock.sleep(delay_s)
            self._due_s = None
