"""The publications of one channel that wait for the application, and the position in the channel.

A feed owns the queue, its limit and the position. It does not know the connection: `Channels` reports what
happens, and the application takes publications from the feed. A feed exists longer than a connection. It
accepts publications only while the present connection has confirmed it.

    WANTED --confirm--> READY --suspend--> WANTED     any --end--> ENDED
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Final, Self

from wsgate.client.close_info import NORMAL, Ending
from wsgate.client.errors import ClosedError
from wsgate.client.positions import Track
from wsgate.client.protocol import Dropped, Publication
from wsgate.client.quantities import WAIT_MOST_S, bounded
from wsgate.client.tokens import Token

__all__ = ["Feed", "FeedState", "Gap", "GapReason"]

UNSUBSCRIBED: Final = Ending(NORMAL, "unsubscribed", may_return=False)


class FeedState(Enum):
    """The states of a feed: not confirmed, confirmed on the present connection, or ended."""

    WANTED = "wanted"
    READY = "ready"
    ENDED = "ended"


TRANSITIONS: Final = {
    FeedState.WANTED: {FeedState.READY, FeedState.ENDED},
    FeedState.READY: {FeedState.WANTED, FeedState.ENDED},
    FeedState.ENDED: set[FeedState](),
}


class GapReason(StrEnum):
    """The reasons why publications of a channel are missing."""

    SLOW = "slow"
    """The gateway dropped them: this connection read too slowly, or too much was published at once."""
    BUS = "bus"
    """The gateway's connection to the bus was interrupted. This gap concerns all channels."""
    TOO_LARGE = "too_large"
    """A publication was larger than the channel allows."""
    DROPPED = "dropped"
    """The gateway dropped them for a reason that this version of the client does not know."""
    NOT_RECOVERED = "not_recovered"
    """The client was disconnected, and the gateway could not recover what was published meanwhile."""
    OVERFLOW = "overflow"
    """The application was too slow: the oldest publications in the queue were dropped."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A notice that publications of a channel are missing: load the state again after `retry_ms`.

    A second gap during this wait needs no second load: the load that follows is newer than both.

    Attributes:
        channel: The channel; None if publications may be missing on every channel of this client.
        from_: The last position before the gap, if known.
        to: The last position within the gap, if known.
        reason: Why the publications are missing.
        count: The number of missing publications if it is known (`overflow`), else 0.
        retry_ms: How many milliseconds to wait before the state is loaded, at most an hour. The gateway gives
            each client a different time, so that they do not all load at once.
    """

    channel: str | None
    from_: str | None
    to: str | None
    reason: GapReason
    count: int = 0
    retry_ms: int = 0

    @classmethod
    def told(cls, message: Dropped) -> Self:
        """Create a gap from the gateway's `gap` message."""
        reason = _TOLD.get(message.reason or "", GapReason.DROPPED)
        retry_ms = int(bounded(message.retry_ms, WAIT_MOST_S * 1000))
        return cls(message.channel, message.from_, message.to, reason, retry_ms=retry_ms)


_TOLD: Final = {each.value: each for each in (GapReason.SLOW, GapReason.BUS, GapReason.TOO_LARGE)}


class Feed:
    """The queue and the position of one subscribed channel, across reconnects.

    Attributes:
        channel: The name of the channel.
        token: The source of the channel token.
        track: The position in the channel.
        state: See the module.
        dropped: The number of publications that were dropped because the application was too slow.
    """

    def __init__(
        self,
        channel: str,
        token: Token,
        *,
        queue_limit: int,
        on_gap: Callable[[Gap], None],
        since: str | None = None,
    ) -> None:
        """Create a feed in the state WANTED.

        Args:
            channel: The name of the channel.
            token: The source of the channel token.
            queue_limit: The largest number of queued publications, >= 1.
            on_gap: Called as soon as a gap is known. Must not raise.
            since: The position of the last publication that the application processed before, if any.
        """
        self.channel = channel
        self.token = token
        self.track = Track(since)
        self.state = FeedState.WANTED
        self.dropped = 0
        self._queue_limit = queue_limit
        self._on_gap = on_gap
        self._stood = since is not None
        self._queue: deque[Publication] = deque()
        self._taken = since
        self._hole: Gap | None = None
        self._error: Exception | None = None
        self._stirred = asyncio.Event()  # wakes `take`: a publication was queued, or the feed has ended
        self._settled = asyncio.Event()  # set unless the state is WANTED

    def _to(self, state: FeedState) -> None:
        assert state in TRANSITIONS[self.state], (self.state, state)
        self.state = state
        if state is FeedState.WANTED:
            self._settled.clear()
        else:
            self._settled.set()

    # --- reports from the client ----------------------------------------------------------------------

    def confirm(self, position: str | None, *, recovered: bool | None) -> None:
        """Mark the feed as confirmed by the gateway, so that it accepts publications.

        If the gateway recovers the missed publications, they follow, and the position stays. Otherwise the
        position is the gateway's, and a gap is reported if the feed was confirmed before or had a `since`.

        Args:
            position: The gateway's position, None on a channel without history.
            recovered: The gateway's `recovered`; None if the client did not request recovery.
        """
        if self.state is FeedState.ENDED:
            return
        if self.state is FeedState.WANTED:
            self._to(FeedState.READY)
        before = self.track.last
        if not recovered:
            self.track.restart(position)
            if self._stood:
                self._on_gap(Gap(self.channel, before, position, GapReason.NOT_RECOVERED))
        self._stood = True

    def suspend(self) -> None:
        """Go back to WANTED, because the connection or the subscription is lost."""
        if self.state is FeedState.READY:
            self._to(FeedState.WANTED)

    def offer(self, publication: Publication) -> None:
        """Queue a publication, unless it was received before; drop the oldest one if the queue is full."""
        if self.state is not FeedState.READY or not self.track.advance(publication.position):
            return
        if len(self._queue) >= self._queue_limit:
            self._drop(self._queue.popleft())
        self._queue.append(publication)
        self._stirred.set()

    def tell_gap(self, gap: Gap) -> None:
        """Report a gap that the gateway has announced, if the feed is confirmed."""
        if self.state is FeedState.READY:
            self._on_gap(gap)

    def end(self, error: Exception | None) -> None:
        """Accept no more publications; after the queued ones `take` raises `error` or ends the iteration."""
        if self.state is not FeedState.ENDED:
            self._error = error
            self._to(FeedState.ENDED)
            self._stirred.set()

    def _drop(self, oldest: Publication) -> None:
        """Count a dropped publication, and report the gap when its first publication is dropped.

        The number of all publications dropped in this gap is reported by the next `take`.
        """
        self.dropped += 1
        if self._hole is not None:
            self._hole = replace(self._hole, to=oldest.position, count=self._hole.count + 1)
            return
        self._hole = Gap(self.channel, self._taken, oldest.position, GapReason.OVERFLOW, 1)
        self._on_gap(self._hole)

    # --- calls of the application ---------------------------------------------------------------------

    async def ready(self) -> None:
        """Wait until the gateway has confirmed the feed; raise the reason if the feed ends before."""
        while self.state is FeedState.WANTED:
            await self._settled.wait()
        if self.state is FeedState.ENDED:
            raise self._error or ClosedError(UNSUBSCRIBED)

    async def take(self) -> Publication:
        """Wait for the oldest queued publication and remove it from the queue.

        Cancelling loses no publication: after the removal there is no further await.

        Raises:
            StopAsyncIteration: The application has ended the subscription.
            Exception: The reason why the feed has ended otherwise.
        """
        while not self._queue:
            if self.state is FeedState.ENDED:
                raise self._error or StopAsyncIteration
            self._stirred.clear()
            await self._stirred.wait()
        hole, self._hole = self._hole, None
        if hole is not None and hole.count > 1:
            self._on_gap(hole)
        publication = self._queue.popleft()
        self._taken = publication.position
        return publication
