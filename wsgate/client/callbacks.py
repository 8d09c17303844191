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
        self.tasks = Tasks(self.report)

    def report(self, error: Exception) -> None:
        """Report an error for which no caller waits: to `on_error`, or to the log."""
        if self._on_error is None:
            _LOG.warning("%s: %s", type(error).__name__, error)
            return
        try:
            self._follow(self._on_error(error))
        except Exception:
            _LOG.exception("on_error raised")

    def tell(self, callback: Callable[[Any], object] | None, what: object) -> None:
        """Call a callback with one value, if there is a callback; run a coroutine that it returns as a task.

        The task ends at the latest with the client.
        """
        if callback is None:
            return
        try:
            self._follow(callback(what))
        except Exception as error:
            self.report(error)

    def _follow(self, result: object) -> None:
        if inspect.iscoroutine(result):
            self.tasks.start(result)
