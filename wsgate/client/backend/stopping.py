"""Whether it is time to stop, for who waits between two attempts."""

import asyncio
from contextlib import suppress

__all__ = ["Stopping"]


class Stopping:
    """Set once; whoever pauses wakes up."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def is_set(self) -> bool:
        """Whether to stop."""
        return self._event.is_set()

    def set(self) -> None:
        """Stop."""
        self._event.set()

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until it is time to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
