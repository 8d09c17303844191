"""Keeps a client connected: the state, the attempts, and what each connection is told to do.

Owns the one task from which everything else hangs. One connection is a `Session`; which channels are held is
the `Channels`' business, the sockets are the `Transport`'s.

    IDLE -> CONNECTING -> OPEN -> WAITING -> CONNECTING ...      any -> CLOSED, for good
    disconnect(): any but CLOSED -> IDLE, from which start() goes on; to WAITING first where the gateway has
    asked for more time
"""

import asyncio
import hmac
from dataclasses import replace
from enum import Enum
from typing import Any, Final
from urllib.parse import quote, urlsplit

from wsgate.client.callbacks import Callbacks
from wsgate.client.channels import Channels
from wsgate.client.close_info import ABNORMAL, NORMAL, Ending, with_fixed_token, without_token
from wsgate.client.environment import Environment
from wsgate.client.errors import (
    ClosedError,
    CommandTimeout,
    Disconnected,
    NotConnected,
    TokenError,
    UnauthorizedError,
)
from wsgate.client.options import ClientOptions
from wsgate.client.protocol import INBOX, Answer, Dropped, Publication, Subscribed, Unsubscribed, Welcome
from wsgate.client.refresher import Refresher
from wsgate.client.session import Session
from wsgate.client.tokens import Token
from wsgate.client.transport import Opening
from wsgate.client.urls import carries_token, shown_url
from wsgate.errors import InternalError

__all__ = ["ClientState", "Connector"]


class ClientState(Enum):
    """Where a client is on its way."""

    IDLE = "idle"
    """Not started, or let go by `disconnect`."""
    CONNECTING = "connecting"
    """An attempt is under way, up to its welcome."""
    OPEN = "open"
    """Welcomed: commands are carried out."""
    WAITING = "waiting"
    """For the next attempt."""
    CLOSED = "closed"
    """Ended, for good."""


TRANSITIONS: Final = {
    ClientState.IDLE: {ClientState.CONNECTING, ClientState.WAITING, ClientState.CLOSED},
    ClientState.CONNECTING: {ClientState.OPEN, ClientState.WAITING, ClientState.IDLE, ClientState.CLOSED},
    ClientState.OPEN: {ClientState.WAITING, ClientState.IDLE, ClientState.CLOSED},
    ClientState.WAITING: {ClientState.CONNECTING, ClientState.IDLE, ClientState.CLOSED},
    ClientState.CLOSED: set[ClientState](),
}

BY_APPLICATION: Final = Ending(NORMAL, "closed_by_application", may_return=False)


class Connector:
    """See the module. A `Session`'s listener.

    Attributes:
        state: See `ClientState`.
        session: The welcomed connection, None while there is none.
        ending: Why the client has ended, once it has.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        options: ClientOptions,
        environment: Environment,
        callbacks: Callbacks,
    ) -> None:
        """Nothing happens before `start`."""
        self.state = ClientState.IDLE
        self.session: Session | None = None
        self.ending = BY_APPLICATION
        self.channels = Channels(options, environment, callbacks)
        self.token = token
        self._url = url
        self._options = options
        self._environment = environment
        self._callbacks = callbacks
        self._changed = asyncio.Event()
        self._refresher: Refresher | None = None
        self._shown: str | None = None  # the token that counts on the present connection
        self._running: asyncio.Task[None] | None = None
        self._was_started = False
        self._is_letting_go = False  # the task was cancelled by `disconnect`
        self._failures = 0  # attempts since a connection lasted
        self._unauthorized = 0  # handshakes in a row that were refused for their token
        self._not_before_s = 0.0  # when the gateway allows the next attempt

    @property
    def was_started(self) -> bool:
        """Whether the client was ever started. Before that nothing can come."""
        return self._was_started

    def start(self) -> None:
        """Begin, on the running loop; again only after `disconnect`."""
        if self.state is not ClientState.IDLE or self._running is not None:
            raise InternalError("a client is started once")
        self._was_started = True
        self._is_letting_go = False
        self._running = asyncio.create_task(self._run())
        # Even a task that is cancelled before its first step has ended the client, or let it go.
        self._running.add_done_callback(self._on_done)

    async def restart(self) -> None:
        """Begin unless that was done already; after a `disconnect` that is under way has ended."""
        while self._is_letting_go and self._running is not None:
            await asyncio.wait({self._running})
        if self._running is None and self.state is ClientState.IDLE:
            self.start()

    def _on_done(self, _: asyncio.Task[None]) -> None:
        if self._is_letting_go:
            self._running = None
            self._is_letting_go = False
            if self.state not in (ClientState.IDLE, ClientState.CLOSED):
                self._to(ClientState.IDLE)
            else:
                self._wake()
        else:
            self._end(BY_APPLICATION)

    async def disconnect(self) -> None:
        """Let the connection go, keep the subscriptions, and wait until nothing of the connection runs."""
        running = self._running
        if running is None or self.state is ClientState.CLOSED:
            return
        if not self._is_letting_go:
            self._is_letting_go = True
            running.cancel()
        await asyncio.wait({running})

    async def close(self) -> None:
        """End it, and wait until nothing of it runs."""
        running = self._running
        if running is None:
            self._end(BY_APPLICATION)
            await self._callbacks.tasks.cancel()
            return
        self._is_letting_go = False
        if self.state is not ClientState.CLOSED:
            running.cancel()
        await asyncio.wait({running})

    async def closed(self) -> Ending:
        """Wait until it has ended; why."""
        while self.state is not ClientState.CLOSED:
            await self._changed.wait()
        return self.ending

    async def open_session(self, *, is_patient: bool = True) -> Session:
        """The present connection, as soon as there is one.

        Args:
            is_patient: Whether to wait also while the client is let go, because somebody may connect again.

        Raises:
            ClosedError: There will be none.
            NotConnected: The client was never started, or, unless `is_patient`, it was let go.
        """
        while self.session is None:
            if self.state is ClientState.CLOSED:
                raise ClosedError(self.ending)
            if self._running is None and not (is_patient and self._was_started):
                raise NotConnected
            await self._changed.wait()
        return self.session

    async def ask(self, op: str, fields: dict[str, Any]) -> Answer:
        """Send a command on the present connection, or the next one, and return what came of it.

        Raises:
            CommandError, CommandTimeout, Disconnected, ClosedError, NotConnected: See there.
        """
        try:
            async with asyncio.timeout(self._options.command_timeout_s):
                reply = await (await self.open_session()).ask(op, fields)
        except TimeoutError:
            raise CommandTimeout from None
        # What answers another command than this one was is an answer without fields.
        return reply if isinstance(reply, Answer) else Answer(reply.id)

    async def refresh(self, token: str | None = None) -> int | None:
        """Show this token, or the provider's; how long it lives in s, None: for ever."""
        return await self._show(token or await self._fresh_token())

    async def _renew(self, is_asked: bool) -> int | None:
        """Show the provider's token; the one that counts already is shown again only when that was asked."""
        token = await self._fresh_token()
        is_same = hmac.compare_digest((token or "").encode(), (self._shown or "").encode())
        if is_same and not is_asked:
            raise TokenError("the token provider gave the token that is about to expire")
        return await self._show(token)

    async def _fresh_token(self) -> str | None:
        try:
            return await self.token.get()
        except UnauthorizedError as error:
            if self.session is not None:
                self.session.give_up(self._judge(error))
            raise

    async def _show(self, token: str | None) -> int | None:
        answer = await self.ask("refresh", {"token": token})
        self._shown = token
        if token:
            self.token.replace(token)
        if self._refresher is not None:
            self._refresher.expires_in(answer.expires_s)
        return answer.expires_s

    # --- the loop of attempts -------------------------------------------------------------------------

    async def _run(self) -> None:
        ending = BY_APPLICATION  # whoever cancels is the application
        try:
            ending = await self._keep_connected()
        finally:
            if not (self._is_letting_go and ending is BY_APPLICATION):
                self._is_letting_go = False
                self._end(ending)
                await self._callbacks.tasks.cancel()

    async def _keep_connected(self) -> Ending:
        """Until a connection ends that none should follow; how."""
        clock, options = self._environment.clock, self._options
        if (left_s := self._not_before_s - clock.now_s()) > 0:  # it was let go while it waited
            self._to(ClientState.WAITING)
            await clock.sleep(options.backoff.delay_s(0, self._environment.random, least_s=left_s))
        while True:
            self._to(ClientState.CONNECTING)
            began_s = clock.now_s()
            error = await self._attempt()
            ending = self._judge(error)
            if not isinstance(error, TokenError):
                self._unauthorized = self._unauthorized + 1 if ending.is_unauthorized else 0
            limit = options.unauthorized_limit if self.token.can_renew else 1
            if self._unauthorized >= limit:
                ending = replace(ending, may_return=False, retry_s=0.0)
            self._callbacks.report(Disconnected(ending) if isinstance(error, Disconnected) else error)
            if not ending.may_return:
                return ending
            if self.state is ClientState.OPEN and clock.now_s() - began_s >= options.steady_s:
                self._failures = 0
            self._not_before_s = clock.now_s() + ending.retry_s
            self._to(ClientState.WAITING)
            random = self._environment.random
            delay_s = options.backoff.delay_s(self._failures, random, least_s=ending.retry_s)
            self._failures += 1
            await clock.sleep(delay_s)

    def _judge(self, error: Exception) -> Ending:
        """Judge the end of an attempt by whether this client's token can change."""
        if isinstance(error, UnauthorizedError):
            return Ending(401, "unauthorized", may_return=False, detail=str(error))
        if not isinstance(error, Disconnected):
            return Ending(0, "failed", detail=str(error))
        ending = error.ending
        if not ending.detail and ending.code in (0, ABNORMAL):
            ending = replace(ending, detail=shown_url(self._url))
        if self._has_fixed_token:
            return with_fixed_token(ending)
        return ending if self.token.can_renew else without_token(ending)

    @property
    def _has_fixed_token(self) -> bool:
        return self.token.is_fixed or (not self.token.can_renew and carries_token(self._url))

    async def _attempt(self) -> Exception:
        """One connection from its token to its end; why it ended."""
        environment, options = self._environment, self._options
        try:
            self._shown = await self.token.get()
            opening = Opening(
                url=self._address(),
                token=self._shown,
                within_s=options.open_timeout_s,
                max_message_bytes=options.max_message_bytes,
                now_s=environment.clock.now_s,
                proxy=options.proxy,
            )
            transport = await environment.connect(opening)
            has_token = self.token.can_renew or self._has_fixed_token
            session = Session(transport, self, options, environment.clock, has_token=has_token)
            return Disconnected(await session.run())
        except Exception as error:  # a fault of ours or of a library costs an attempt, never the client
            return error

    def _address(self) -> str:
        """The URL, with where the application stood in its inbox: nobody sends `sub` for that."""
        position = self.channels.position(INBOX)
        if position is None:
            return self._url
        mark = "&" if urlsplit(self._url).query else "?"
        return f"{self._url}{mark}from={quote(f'{INBOX}:{position}', safe='')}"

    def _to(self, state: ClientState) -> None:
        assert state in TRANSITIONS[self.state], (self.state, state)
        self.state = state
        self._wake()

    def _wake(self) -> None:
        """Wake all tasks that wait for a change of the state."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _end(self, ending: Ending) -> None:
        if self.state is not ClientState.CLOSED:
            self.ending = ending
            self._to(ClientState.CLOSED)
            self.channels.end(None if ending is BY_APPLICATION else ClosedError(ending))

    # --- what a session tells -------------------------------------------------------------------------

    def on_welcome(self, session: Session, welcome: Welcome) -> None:
        """The connection is in: commands may be sent, and channels are subscribed anew."""
        self.session = session
        if self.token.can_renew:
            self._refresher = Refresher(
                self._renew,
                session.tasks,
                environment=self._environment,
                backoff=self._options.backoff,
                on_failure=self._callbacks.report,
            )
            self._refresher.expires_in(welcome.expires_s)
        self._to(ClientState.OPEN)
        self.channels.begin(session)

    def on_end(self) -> None:
        """The connection is over."""
        self.session = self._refresher = None
        self.channels.suspend()

    def on_refresh_asked(self, session: Session, within_s: float) -> None:
        """The gateway wants a fresh token."""
        if self._refresher is not None:
            self._refresher.asked_within(within_s)
        else:
            self.on_failure(TokenError("the gateway wants a fresh token, and there is no token provider"))

    def on_failure(self, error: Exception) -> None:
        """Something failed that no caller waits for."""
        self._callbacks.report(error)

    def on_publication(self, publication: Publication) -> None:
        """See `Channels`."""
        self.channels.on_publication(publication)

    def on_subscribed(self, session: Session, message: Subscribed) -> None:
        """See `Channels`."""
        self.channels.on_subscribed(message)

    def on_unsubscribed(self, session: Session, message: Unsubscribed) -> None:
        """See `Channels`."""
        self.channels.on_unsubscribed(session, message)

    def on_dropped(self, message: Dropped) -> None:
        """See `Channels`."""
        self.channels.on_dropped(message)
