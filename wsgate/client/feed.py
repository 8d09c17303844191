"""One channel that an application listens to: what came and was not taken yet, and where it stands.

Owns the queue, its limit and the position. Knows no connection: the client tells it what happens, and the
application takes from it. It outlives connections; a feed that is not confirmed on the present one takes
nothing in.

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
    """See the module."""

    WANTED = "wanted"
    READY = "ready"
    ENDED = "ended"


TRANSITIONS: Final = {
    FeedState.WANTED: {FeedState.READY, FeedState.ENDED},
    FeedState.READY: {FeedState.WANTED, FeedState.ENDED},
    FeedState.ENDED: set[FeedState](),
}


class GapReason(StrEnum):
    """Why publications are missing."""

    SLOW = "slow"
    """The gateway dropped them: this connection read too slowly, or too much was published at once."""
    BUS = "bus"
    """The gateway did not receive from the bus for a while. It says so of all channels at once."""
    TOO_LARGE = "too_large"
    """A publication was larger than the channel allows."""
    DROPPED = "dropped"
    """The gateway dropped them for a reason that this client does not know."""
    NOT_RECOVERED = "not_recovered"
    """Nobody can prove that nothing was missed while the client was away."""
    OVERFLOW = "overflow"
    """The application took too slowly: the oldest in the queue were dropped."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Publications are missing: load the state anew, after `retry_ms`.

    Another gap that comes during this time needs no further load: what will be loaded is newer.

    Attributes:
        channel: Where; None: perhaps on every channel of this client.
        from_: The last position before the gap, as far as it is known.
        to: The last position within it, as far as it is known.
        reason: Why they are missing.
        count: How many, where that is known (`overflow`); else 0.
        retry_ms: How long to wait before the state is loaded, at most an hour. The gateway gives every client
            another time, so that they do not all load at once.
    """

    channel: str | None
    from_: str | None
    to: str | None
    reason: GapReason
    count: int = 0
    retry_ms: int = 0

    @classmethod
    def told(cls, message: Dropped) -> Self:
        """The gap that the gateway tells of."""
        reason = _TOLD.get(message.reason or "", GapReason.DROPPED)
        retry_ms = int(bounded(message.retry_ms, WAIT_MOST_S * 1000))
        return cls(message.channel, message.from_, message.to, reason, retry_ms=retry_ms)


_TOLD: Final = {each.value: each for each in (GapReason.SLOW, GapReason.BUS, GapReason.TOO_LARGE)}


class Feed:
    """See the module.

    Attributes:
        channel: What it is subscribed to.
        token: Where its channel token comes from.
        track: Where it stands.
        state: See the module.
        dropped: How many publications the application was too slow for, in all.
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
        """A feed that is wanted.

        Args:
            channel: Its name.
            token: Of the channel.
            queue_limit: Publications that may wait, >= 1.
            on_gap: Called at once, must not raise.
            since: Where the application stood the last time.
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
        self._stirred = asyncio.Event()  # something for `take`
        self._settled = asyncio.Event()  # not WANTED

    def _to(self, state: FeedState) -> None:
        assert state in TRANSITIONS[self.state], (self.state, state)
        self.state = state
        if state is FeedState.WANTED:
            self._settled.clear()
        else:
            self._settled.set()

    # --- what the client tells ------------------------------------------------------------------------

    def confirm(self, position: str | None, *, recovered: bool | None) -> None:
        """The gateway has confirmed the subscription: what comes now is taken in.

        When it has recovered what was missed, that follows, so the place stays. Otherwise the place is the
        gateway's, and who stood here before is told.

        Args:
            position: The gateway's, None on a channel without history.
            recovered: As it said; None when it was not asked.
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
        """The connection is lost, or the gateway took the channel: it must be confirmed again."""
        if self.state is FeedState.READY:
            self._to(FeedState.WANTED)

    def offer(self, publication: Publication) -> None:
        """Queue a publication, unless it was seen before. The oldest goes when the queue is full."""
        if self.state is not FeedState.READY or not self.track.advance(publication.position):
            return
        if len(self._queue) >= self._queue_limit:
            self._drop(self._queue.popleft())
        self._queue.append(publication)
        self._stirred.set()

    def tell_gap(self, gap: Gap) -> None:
        """The gateway says that some are missing."""
        if self.state is FeedState.READY:
            self._on_gap(gap)

    def end(self, error: Exception | None) -> None:
        """No more comes: what is queued may still be taken, then `error`, or the end of the iteration."""
        if self.state is not FeedState.ENDED:
            self._error = error
            self._to(FeedState.ENDED)
            self._stirred.set()

    def _drop(self, oldest: Publication) -> None:
        """Told when the first goes; how many it were in the end is told when the application reads on."""
        self.dropped += 1
        if self._hole is not None:
            self._hole = replace(self._hole, to=oldest.position, count=self._hole.count + 1)
            return
        self._hole = Gap(self.channel, self._taken, oldest.position, GapReason.OVERFLOW, 1)
        self._on_gap(self._hole)

    # --- what the application asks --------------------------------------------------------------------

    async def ready(self) -> None:
        """Until it is confirmed; raises why it ended before that."""
        while self.state is FeedState.WANTED:
            await self._settled.wait()
        if self.state is FeedState.ENDED:
            raise self._error or ClosedError(UNSUBSCRIBED)

    async def take(self) -> Publication:
        """The oldest publication that waits.

        Cancelling it loses nothing: what is taken off the queue is returned without another await.

        Raises:
            StopAsyncIteration: The application has ended it.
            Exception: Why it ended otherwise.
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
