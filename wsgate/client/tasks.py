"""The tasks of one owner: none outlives it, and none fails unheard."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Tasks"]


class Tasks:
    """Tasks that end with their owner."""

    def __init__(self, on_failure: Callable[[Exception], None]) -> None:
        """`on_failure` is called with what a task raised, unless it was cancelled."""
        self._on_failure = on_failure
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it until it ends or its owner does."""
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
        """End them all; when this returns none runs, but the one that calls it."""
        mine = asyncio.current_task()
        for task in self._running:
            if task is not mine:
                task.cancel()
        while others := self._running - {mine}:
            await asyncio.wait(others)
