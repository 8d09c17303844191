"""A flag that ends a consumer, and pauses that end early when the flag is set."""

import asyncio
from contextlib import suppress

__all__ = ["Stopping"]


class Stopping:
    """The stop flag of one consumer. It is set once and wakes every pause."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def is_set(self) -> bool:
        """Whether the consumer has to stop."""
        return self._event.is_set()

    def set(self) -> None:
        """Set the flag, and end all pauses."""
        self._event.set()

    async def pause(self, seconds: float) -> None:
        """Sleep for so many seconds, or until the flag is set."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
