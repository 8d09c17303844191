"""Keeps a client connected: the client's state, the attempts to connect, and the token of each connection.

The connector owns the main task of the client. Each connection is a `Session`. `Channels` owns the
subscriptions, and the `Transport` owns the socket.

    IDLE -> CONNECTING -> OPEN -> WAITING -> CONNECTING ...      any -> CLOSED, which is final
    disconnect(): any but CLOSED -> IDLE. start() leaves IDLE, to WAITING first if the gateway has requested
    a delay that has not passed yet.
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
    """The states of a client, from not started to closed."""

    IDLE = "idle"
    """The client is not started, or `disconnect` was called."""
    CONNECTING = "connecting"
    """An attempt to connect is under way, and its welcome has not arrived."""
    OPEN = "open"
    """The gateway has sent the welcome: commands are carried out."""
    WAITING = "waiting"
    """The client waits before the next attempt."""
    CLOSED = "closed"
    """The client has ended and cannot be started again."""


TRANSITIONS: Final = {
    ClientState.IDLE: {ClientState.CONNECTING, ClientState.WAITING, ClientState.CLOSED},
    ClientState.CONNECTING: {ClientState.OPEN, ClientState.WAITING, ClientState.IDLE, ClientState.CLOSED},
    ClientState.OPEN: {ClientState.WAITING, ClientState.IDLE, ClientState.CLOSED},
    ClientState.WAITING: {ClientState.CONNECTING, ClientState.IDLE, ClientState.CLOSED},
    ClientState.CLOSED: set[ClientState](),
}

BY_APPLICATION: Final = Ending(NORMAL, "closed_by_application", may_return=False)


class Connector:
    """Runs the loop of attempts of one client, and listens to the messages of its `Session`.

    Attributes:
        state: See `ClientState`.
        session: The session after its welcome, None while there is none.
        ending: The reason why the client has ended; only valid in the state CLOSED.
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
        """Create a connector in the state IDLE. Nothing runs before `start`."""
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
        self._shown: str | None = None  # the token that the gateway has accepted last on this connection
        self._running: asyncio.Task[None] | None = None
        self._was_started = False
        self._is_letting_go = False  # the task was cancelled by `disconnect`
        self._failures = 0  # failed attempts since a connection lasted `steady_s`
        self._unauthorized = 0  # handshakes in a row that were refused with 401 or 403
        self._welcomed_s = 0.0  # time on the clock of the last welcome
        self._not_before_s = 0.0  # time on the clock before which the gateway wants no attempt

    @property
    def was_started(self) -> bool:
        """Whether `start` was ever called. Before that no publication can arrive."""
        return self._was_started

    def start(self) -> None:
        """Start the loop of attempts as a task on the running event loop.

        Raises:
            InternalError: It runs already, or the client has ended.
        """
        if self.state is not ClientState.IDLE or self._running is not None:
            raise InternalError("the client is started already, or has ended")
        self._was_started = True
        self._is_letting_go = False
        self._running = asyncio.create_task(self._run())
        # This callback also runs if the task is cancelled before its first step, when `_run` cannot clean up.
        self._running.add_done_callback(self._on_done)

    async def restart(self) -> None:
        """Wait until a `disconnect` that is under way has ended, then start the loop of attempts.

        Does not start it if it runs already, or if the client has ended.
        """
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
        """Cancel the loop of attempts, keep the subscriptions, and wait until the task has ended."""
        running = self._running
        if running is None or self.state is ClientState.CLOSED:
            return
        if not self._is_letting_go:
            self._is_letting_go = True
            running.cancel()
        await asyncio.wait({running})

    async def close(self) -> None:
        """Put the client into the state CLOSED, and wait until all its tasks have ended."""
        running = self._running
        if running is None:
            self._end(BY_APPLICATION)
            await self._callbacks.cancel()
            return
        self._is_letting_go = False
        if self.state is not ClientState.CLOSED:
            running.cancel()
        await asyncio.wait({running})

    async def closed(self) -> Ending:
        """Wait for the state CLOSED, and return the reason."""
        while self.state is not ClientState.CLOSED:
            await self._changed.wait()
        return self.ending

    async def open_session(self, *, is_patient: bool = True) -> Session:
        """Wait for a session with a welcome, and return it.

        Args:
            is_patient: Whether to wait also after a `disconnect`, because the application may connect again.

        Raises:
            ClosedError: The client has ended.
            NotConnected: The client was never started, or `disconnect` was called and `is_patient` is false.
        """
        while self.session is None:
            if self.state is ClientState.CLOSED:
                raise ClosedError(self.ending)
            if self._running is None and not (is_patient and self._was_started):
                raise NotConnected
            await self._changed.wait()
        return self.session

    async def ask(self, op: str, fields: dict[str, Any]) -> Answer:
        """Send a command on the open or the next session, within `command_timeout_s`, and return its result.

        Raises:
            CommandError, CommandTimeout, Disconnected, ClosedError, NotConnected: See `wsgate.client.errors`.
        """
        try:
            async with asyncio.timeout(self._options.command_timeout_s):
                reply = await (await self.open_session()).ask(op, fields)
        except TimeoutError:
            raise CommandTimeout from None
        # A reply of the wrong kind (`subbed`, `unsubbed`) has no fields that a caller could use.
        return reply if isinstance(reply, Answer) else Answer(reply.id)

    async def refresh(self, token: str | None = None) -> int | None:
        """Send this token, or a fresh one of the provider, to the gateway, and return its remaining life.

        The life is in seconds. None means that the token does not expire.
        """
        return await self._show(token or await self._fresh_token())

    async def _renew(self, is_asked: bool) -> int | None:
        """Send the provider's token to the gateway, for the refresher.

        Args:
            is_asked: Whether the gateway requested a token. Only then is the token that it has already sent
                again.

        Raises:
            TokenError: The provider returned the token that the gateway already has.
        """
        token = await self._fresh_token()
        is_same = hmac.compare_digest((token or "").encode(), (self._shown or "").encode())
        if is_same and not is_asked:
            raise TokenError("the token provider returned the token that is about to expire")
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
        ending = BY_APPLICATION  # only the application cancels this task
        try:
            ending = await self._keep_connected()
        finally:
            if not (self._is_letting_go and ending is BY_APPLICATION):
                self._is_letting_go = False
                self._end(ending)
                await self._callbacks.cancel()

    async def _keep_connected(self) -> Ending:
        """Connect again and again until an ending forbids another attempt, and return that ending."""
        clock, options = self._environment.clock, self._options
        if (left_s := self._not_before_s - clock.now_s()) > 0:  # `disconnect` came during a wait
            self._to(ClientState.WAITING)
            await clock.sleep(options.backoff.delay_s(0, self._environment.random, least_s=left_s))
        while True:
            self._to(ClientState.CONNECTING)
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
            self._not_before_s = clock.now_s() + ending.retry_s
            self._to(ClientState.WAITING)
            random = self._environment.random
            delay_s = options.backoff.delay_s(self._failures, random, least_s=ending.retry_s)
            self._failures += 1
            await clock.sleep(delay_s)

    def _judge(self, error: Exception) -> Ending:
        """Decide from the error of an attempt whether another attempt may help, given this client's token."""
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
        """Open one connection, run its session to the end, and return the error that ended it."""
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
        except Exception as error:  # an unexpected error fails this attempt but does not end the client
            return error

    def _address(self) -> str:
        """The URL with the last position in the inbox as `from`: no `sub` command carries that position."""
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

    # --- listener of the session ----------------------------------------------------------------------

    def on_welcome(self, session: Session, welcome: Welcome) -> None:
        """Make the session available to commands, start the refresher, and subscribe all channels."""
        self.session = session
        self._welcomed_s = self._environment.clock.now_s()
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
        """Forget the session and suspend all channels until the next welcome.

        Restart the back-off if the connection has lasted: a slow handshake and a slow close do not count.
        """
        lasted_s = self._environment.clock.now_s() - self._welcomed_s
        if self.session is not None and lasted_s >= self._options.steady_s:
            self._failures = 0
        self.session = self._refresher = None
        self.channels.suspend()

    def on_refresh_asked(self, session: Session, within_s: float) -> None:
        """Schedule a refresh, or report that there is no token provider."""
        if self._refresher is not None:
            self._refresher.asked_within(within_s)
        else:
            self.on_failure(TokenError("the gateway requested a fresh token, and there is no token provider"))

    def on_failure(self, error: Exception) -> None:
        """Report an error of the session to the application."""
        self._callbacks.report(error)

    def on_publication(self, publication: Publication) -> None:
        """Pass a publication on to `Channels`."""
        self.channels.on_publication(publication)

    def on_subscribed(self, session: Session, message: Subscribed) -> None:
        """Pass a subscription that the gateway made on to `Channels`."""
        self.channels.on_subscribed(message)

    def on_unsubscribed(self, session: Session, message: Unsubscribed) -> None:
        """Pass an unsubscription that the gateway made on to `Channels`."""
        self.channels.on_unsubscribed(session, message)

    def on_dropped(self, message: Dropped) -> None:
        """Pass a report of dropped publications on to `Channels`."""
        self.channels.on_dropped(message)
