"""What an application holds of one channel: an iterator of publications."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from wsgate.client.errors import NotConnected
from wsgate.client.feed import Feed, FeedState
from wsgate.client.protocol import Publication

__all__ = ["Subscription"]


class Subscription:
    """A channel's publications, in the order in which they came, each once.

    Iterate over it; several may, and share what comes. It outlives reconnects, and ends when it or its client
    is closed. When it is refused for good, or the client ends by itself, iterating raises why, after what had
    come before. As a context manager it is entered when confirmed, and closed at the end.
    """

    def __init__(self, feed: Feed, leave: Callable[[Feed], None], was_started: Callable[[], bool]) -> None:
        """Made by `Client.subscribe` and `Client.inbox`."""
        self._feed = feed
        self._leave = leave
        self._was_started = was_started

    @property
    def channel(self) -> str:
        """What it is subscribed to."""
        return self._feed.channel

    @property
    def dropped(self) -> int:
        """How many publications this application was too slow for, in all."""
        return self._feed.dropped

    async def ready(self) -> None:
        """Wait until the gateway has confirmed it: what is published after that is heard.

        While there is no connection, and while the gateway's bus is away, this waits.

        Raises:
            CommandError: It was refused, such as with `permission_denied`.
            ClosedError: It or its client was closed before.
            NotConnected: The client was never started.
        """
        self._check_started()
        await self._feed.ready()

    def _check_started(self) -> None:
        """Raise where waiting would be in vain: nothing comes to a client that was never started."""
        if self._feed.state is FeedState.WANTED and not self._was_started():
            raise NotConnected

    async def close(self) -> None:
        """Listen no more; whoever iterates takes what is queued and ends. Waits for nobody."""
        self._leave(self._feed)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Publication:
        self._check_started()
        return await self._feed.take()

    async def __aenter__(self) -> Self:
        try:
            await self.ready()
        except BaseException:  # cancelled too: it will not be left
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
