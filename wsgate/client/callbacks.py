"""What an application wants to be told, and that its mistakes stay its own.

A callback may be a function or a coroutine function. What it raises is reported; it never reaches the loop
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
    """Calls an application back, from the event loop."""

    def __init__(self, on_error: ErrorCallback | None) -> None:
        """`on_error` is told what goes wrong in the background; by default the log is."""
        self._on_error = on_error
        self.tasks = Tasks(self.report)

    def report(self, error: Exception) -> None:
        """Tell the application what no caller of it waits for."""
        if self._on_error is None:
            _LOG.warning("%s: %s", type(error).__name__, error)
            return
        try:
            self._follow(self._on_error(error))
        except Exception:
            _LOG.exception("on_error raised")

    def tell(self, callback: Callable[[Any], object] | None, what: object) -> None:
        """Call it, if there is one; a coroutine that it gives runs on, and ends with the client."""
        if callback is None:
            return
        try:
            self._follow(callback(what))
        except Exception as error:
            self.report(error)

    def _follow(self, result: object) -> None:
        if inspect.iscoroutine(result):
            self.tasks.start(result)
