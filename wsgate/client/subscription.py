"""A subscription as the application uses it: an asynchronous iterator of the publications of a channel."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from wsgate.client.errors import NotConnected
from wsgate.client.feed import Feed, FeedState
from wsgate.client.protocol import Publication

__all__ = ["Subscription"]


class Subscription:
    """The publications of one channel, in the order in which they arrived, each one once.

    Iterate over it. Several tasks may iterate over one subscription; each publication is then given to one of
    them. A subscription continues after reconnects, and ends when it or its client is closed. If the gateway
    refuses the channel, or the client ends by itself, the iterator first returns the queued publications and
    then raises the reason. `async with` waits on entry until the channel is confirmed, and closes the
    subscription on exit.
    """

    def __init__(self, feed: Feed, leave: Callable[[Feed], None], was_started: Callable[[], bool]) -> None:
        """Wrap a feed; applications call `Client.subscribe` or `Client.inbox` instead."""
        self._feed = feed
        self._leave = leave
        self._was_started = was_started

    @property
    def channel(self) -> str:
        """The name of the subscribed channel."""
        return self._feed.channel

    @property
    def dropped(self) -> int:
        """The number of publications that were dropped because this application was too slow."""
        return self._feed.dropped

    async def ready(self) -> None:
        """Wait until the gateway has confirmed the subscription: later publications will be received.

        This also waits while there is no connection, and while the gateway has no connection to its bus.

        Raises:
            CommandError: The gateway refused it, for example with `permission_denied`.
            ClosedError: The subscription or its client was closed before.
            NotConnected: The client was never started.
        """
        self._check_started()
        await self._feed.ready()

    def _check_started(self) -> None:
        """Raise NotConnected if waiting would never end, because the client was never started."""
        if self._feed.state is FeedState.WANTED and not self._was_started():
            raise NotConnected

    async def close(self) -> None:
        """End the subscription without waiting for the gateway; iterators still return what is queued."""
        self._leave(self._feed)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Publication:
        self._check_started()
        return await self._feed.take()

    async def __aenter__(self) -> Self:
        try:
            await self.ready()
        # `__aexit__` is not called after a failed entry, not even after a cancelled one
        except BaseException:
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
