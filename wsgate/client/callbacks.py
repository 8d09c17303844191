"""Calls the functions of the application, and keeps their exceptions away from the client.

A callback may be a function or a coroutine function. Its exceptions are reported; they never reach the code
that called it.
"""

import inspect
import logging
from collections.abc import Callable
from typing import Any, Final

from wsgate.client.tasks import Tasks

__all__ = ["Callbacks", "ErrorCallback"]

ErrorCallback = Callable[[Exception], object]

_LOG: Final = logging.getLogger("wsgate.client")


class Callbacks:
    """Calls the application's callbacks on the event loop, and runs coroutines that they return."""

    def __init__(self, on_error: ErrorCallback | None) -> None:
        """Create the caller. `on_error` receives errors of the background; without it they are logged."""
        self._on_error = on_error
        self._tasks = Tasks(self.report)
        # A failure of `on_error` is only logged: if `on_error` received it, it would fail again without end.
        self._reports = Tasks(_log_failed_report)

    def report(self, error: Exception) -> None:
        """Report an error for which no caller waits: to `on_error`, or to the log."""
        if self._on_error is None:
            _LOG.warning("%s: %s", type(error).__name__, error)
            return
        try:
            _follow(self._on_error(error), self._reports)
        except Exception as failure:
            _log_failed_report(failure)

    def tell(self, callback: Callable[[Any], object] | None, what: object) -> None:
        """Call a callback with one value, if there is a callback; run a coroutine that it returns as a task.

        The task ends at the latest with the client.
        """
        if callback is None:
            return
        try:
            _follow(callback(what), self._tasks)
        except Exception as error:
            self.report(error)

    async def cancel(self) -> None:
        """Cancel the coroutines of all callbacks, and wait until they have ended."""
        await self._tasks.cancel()
        await self._reports.cancel()  # the last, because a callback may fail while it is cancelled


def _follow(result: object, tasks: Tasks) -> None:
    if inspect.iscoroutine(result):
        tasks.start(result)


def _log_failed_report(error: Exception) -> None:
    _LOG.error("on_error raised", exc_info=error)
