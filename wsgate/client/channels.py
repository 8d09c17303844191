"""Keeps the channels of an application subscribed across connections.

This module owns the feeds, by channel. On each new connection it subscribes every feed again, from its
position. It repeats a subscription that the gateway refuses temporarily. A final refusal ends only that feed.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, Final

from wsgate.client.callbacks import Callbacks
from wsgate.client.environment import Environment
from wsgate.client.errors import (
    CommandError,
    CommandTimeout,
    Disconnected,
    TokenError,
    UnauthorizedError,
)
from wsgate.client.feed import Feed, FeedState, Gap
from wsgate.client.options import ClientOptions
from wsgate.client.protocol import INBOX, Dropped, Failed, Publication, Subscribed, Unsubscribed
from wsgate.client.session import Reply, Session
from wsgate.client.tokens import Token, TokenSource

__all__ = ["Channels"]

_ALREADY: Final = "already_subscribed"

GapCallback = Callable[[Gap], object]


class Channels:
    """The feeds of one client, and the tasks that subscribe them on the present connection."""

    def __init__(self, options: ClientOptions, environment: Environment, callbacks: Callbacks) -> None:
        """Create the set of one client, without any channel."""
        self._options = options
        self._environment = environment
        self._callbacks = callbacks
        self._feeds: dict[str, Feed] = {}
        self._gap_callbacks: dict[Feed, GapCallback] = {}
        self._session: Session | None = None  # the session whose welcome has arrived
        self._holding: dict[Feed, asyncio.Task[None]] = {}

    # --- calls of the application ---------------------------------------------------------------------

    def add(
        self,
        channel: str,
        token: TokenSource,
        *,
        on_gap: GapCallback | None,
        since: str | None,
    ) -> Feed:
        """Create the feed of a channel and subscribe it as soon as there is a connection.

        Raises:
            CommandError: `already_subscribed`: the application is subscribed to the channel already.
        """
        if channel in self._feeds:
            raise CommandError(409, _ALREADY)
        feed = Feed(
            channel,
            Token(token, self._options.token_timeout_s),
            queue_limit=self._options.queue_limit,
            on_gap=partial(self._callbacks.tell, on_gap),
            since=since,
        )
        self._feeds[channel] = feed
        if on_gap is not None:
            self._gap_callbacks[feed] = on_gap
        if self._session is not None:
            self._want(self._session, feed)
        return feed

    def leave(self, feed: Feed) -> None:
        """End a feed for the application, and unsubscribe its channel in the background."""
        is_mine = self._forget(feed)
        feed.end(None)
        if (holding := self._holding.pop(feed, None)) is not None:
            holding.cancel()
        if is_mine and self._session is not None and feed.channel != INBOX:
            # This task starts before any later `sub` of the channel: tasks start in the order of their
            # creation.
            self._session.tasks.start(self._unsubscribe(self._session, feed.channel))

    async def _unsubscribe(self, session: Session, channel: str) -> None:
        with suppress(CommandError, Disconnected, TimeoutError):
            async with asyncio.timeout(self._options.command_timeout_s):
                await session.ask("unsub", {"ch": channel})

    def _forget(self, feed: Feed) -> bool:
        """Remove a feed from the table; return False if the channel has another feed or none."""
        if self._feeds.get(feed.channel) is not feed:
            return False
        del self._feeds[feed.channel]
        self._gap_callbacks.pop(feed, None)
        return True

    def position(self, channel: str) -> str | None:
        """Return the last position that the application has received on a channel, or None."""
        feed = self._feeds.get(channel)
        return feed.track.last if feed is not None else None

    def end(self, error: Exception | None) -> None:
        """End all feeds with this error, because the client has ended."""
        self._session = None
        feeds, self._feeds = self._feeds, {}
        self._gap_callbacks.clear()
        for feed in feeds.values():
            feed.end(error)

    # --- beginning and end of a connection ------------------------------------------------------------

    def begin(self, session: Session) -> None:
        """Subscribe all feeds on a session that has received its welcome."""
        self._session = session
        for feed in list(self._feeds.values()):
            self._want(session, feed)

    def suspend(self) -> None:
        """Suspend all feeds, because the connection has ended."""
        self._session = None
        self._holding.clear()  # the session has cancelled these tasks
        for feed in self._feeds.values():
            feed.suspend()

    def _want(self, session: Session, feed: Feed) -> None:
        if feed.channel != INBOX:
            self._hold(session, feed)
        elif INBOX in session.held:
            feed.confirm(session.held[INBOX], recovered=None)
        elif session.welcome is not None and session.welcome.user is None:
            self._refuse(feed, CommandError(400, "bad_request", "an anonymous client has no inbox"))

    def _hold(self, session: Session, feed: Feed, *, delay_s: float = 0.0) -> None:
        if (earlier := self._holding.get(feed)) is not None:
            earlier.cancel()
        self._holding[feed] = session.tasks.start(self._subscribe(session, feed, delay_s))

    async def _subscribe(self, session: Session, feed: Feed, delay_s: float) -> None:
        """Send `sub` for a feed, after a delay, until the gateway confirms it or refuses it finally."""
        random, backoff = self._environment.random, self._options.backoff
        unauthorized = 0
        for attempt in count():
            if delay_s:
                await self._environment.clock.sleep(delay_s)
            least_s = 0.0
            try:
                await self._ask(session, feed)
                return
            except CommandError as error:
                unauthorized += error.code == 401
                may_renew = feed.token.can_renew and unauthorized < self._options.unauthorized_limit
                if not (error.temporary or (error.code == 401 and may_renew)):
                    self._refuse(feed, error)
                    return
                least_s = error.retry_s or 0.0
            except UnauthorizedError as error:
                self._refuse(feed, error)
                return
            except (TokenError, CommandTimeout) as error:
                self._callbacks.report(error)
            except Disconnected:
                return  # `begin` subscribes on the next connection
            delay_s = backoff.delay_s(attempt, random, least_s=least_s)

    async def _ask(self, session: Session, feed: Feed) -> None:
        fields: dict[str, Any] = {"ch": feed.channel}
        token = await feed.token.get()
        if token is not None:
            fields["token"] = token
        if feed.track.last is not None:
            fields["from"] = feed.track.last
        try:
            async with asyncio.timeout(self._options.command_timeout_s):
                await session.ask("sub", fields, then=partial(self._on_answer, session, feed))
        except TimeoutError:
            raise CommandTimeout from None
        except CommandError as error:
            if error.error != _ALREADY:
                raise

    def _on_answer(self, session: Session, feed: Feed, reply: Reply) -> None:
        """Apply the reply to `sub` to the feed, before the next message is handled.

        Publications that follow the reply belong to the subscription already.
        """
        if isinstance(reply, Subscribed):
            feed.confirm(reply.position, recovered=reply.recovered)
        elif isinstance(reply, Failed) and reply.error == _ALREADY:
            # The gateway subscribed this channel because the token lists it; its position was sent at that
            # time.
            feed.confirm(session.held.get(feed.channel), recovered=None)

    def _refuse(self, feed: Feed, error: CommandError | UnauthorizedError) -> None:
        self._forget(feed)
        self._holding.pop(feed, None)
        feed.end(error)

    # --- messages of the gateway ----------------------------------------------------------------------

    def on_publication(self, publication: Publication) -> None:
        """Queue a publication in the feed of its channel, if there is one."""
        feed = self._feeds.get(publication.channel)
        if feed is not None:
            feed.offer(publication)

    def on_subscribed(self, message: Subscribed) -> None:
        """Confirm the inbox, which the gateway subscribes by itself.

        Other channels wait for the reply to `sub`.
        """
        feed = self._feeds.get(message.channel)
        if feed is not None and message.channel == INBOX:
            feed.confirm(message.position, recovered=message.recovered)

    def on_unsubscribed(self, session: Session, message: Unsubscribed) -> None:
        """Suspend a feed that the gateway has unsubscribed; subscribe it again if the gateway allows that.

        The delay is random, so that many clients do not subscribe again at the same time.
        """
        feed = self._feeds.get(message.channel)
        if feed is None:
            return
        feed.suspend()
        if message.resubscribe:
            delay_s = self._options.backoff.delay_s(0, self._environment.random)
            self._hold(session, feed, delay_s=delay_s)
        else:
            self._refuse(feed, CommandError(message.code, message.reason))

    def on_dropped(self, message: Dropped) -> None:
        """Report a gap to the callback of its channel, or to the callbacks of all channels.

        A gap of all channels calls each callback once, even if several channels have the same callback.
        """
        gap = Gap.told(message)
        if gap.channel is not None:
            if (feed := self._feeds.get(gap.channel)) is not None:
                feed.tell_gap(gap)
            return
        live = [feed for feed in self._gap_callbacks if feed.state is FeedState.READY]
        callbacks = {_identity(self._gap_callbacks[feed]): self._gap_callbacks[feed] for feed in live}
        for callback in callbacks.values():
            self._callbacks.tell(callback, gap)


def _identity(callback: object) -> object:
    """Return a key that is equal for two references to the same function or bound method."""
    try:
        hash(callback)
    except TypeError:
        return id(callback)
    return callback
