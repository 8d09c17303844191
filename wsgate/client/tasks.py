"""A group of tasks that ends with its owner, and that reports each failure."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Tasks"]


class Tasks:
    """The background tasks of one owner, which can all be cancelled together."""

    def __init__(self, on_failure: Callable[[Exception], None]) -> None:
        """Create an empty group. `on_failure` is called with the exception of a task that fails."""
        self._on_failure = on_failure
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task that runs until it returns or its owner cancels the group."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._on_failure(error)

    async def cancel(self) -> None:
        """Cancel all tasks and wait until they have ended, except for the task that calls this."""
        mine = asyncio.current_task()
        for task in self._running:
            if task is not mine:
                task.cancel()
        while others := self._running - {mine}:
            await asyncio.wait(others)
