"""One connection from its welcome to its end: messages in, commands out, and whether the gateway lives.

Owns what waits for an answer, and every task that works for this connection. What messages mean to an
application is its listener's business.

Rules: an answer that nobody waits for any more is dropped. What changes where a channel stands is told in
the order in which it came, before the next message is looked at.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from wsgate.client.close_info import ABNORMAL, Ending, after_close
from wsgate.client.environment import Clock
from wsgate.client.errors import BadMessage, CommandError, Disconnected
from wsgate.client.options import ClientOptions
from wsgate.client.protocol import (
    Answer,
    Bye,
    Dropped,
    Failed,
    Message,
    Publication,
    RefreshAsked,
    Subscribed,
    Unsubscribed,
    Welcome,
    decode,
    encode,
)
from wsgate.client.tasks import Tasks
from wsgate.client.transport import Transport

__all__ = ["Listener", "Reply", "Session"]

Reply = Answer | Subscribed | Unsubscribed | Failed
"""What answers a command."""

TURN_MESSAGES: Final = 64
"""Messages between two chances for others: one read may hold thousands, and whoever takes them from a
queue of 1,000 must get a turn before it is full."""

PROBE_S: Final = 1.0
"""How long a client without a token waits for its welcome before it asks whether a token is needed. A
gateway that lets anonymous clients in has welcomed them by then, so almost none of them asks."""
PROBE_ID: Final = 0
"""Of the question. Commands of applications count from 1."""


class Listener(Protocol):
    """Who is told what comes unasked."""

    def on_welcome(self, session: "Session", welcome: Welcome) -> None:
        """The connection is in."""

    def on_publication(self, publication: Publication) -> None:
        """Something was published."""

    def on_subscribed(self, session: "Session", message: Subscribed) -> None:
        """The gateway subscribed this connection to a channel by itself."""

    def on_unsubscribed(self, session: "Session", message: Unsubscribed) -> None:
        """The gateway took a channel."""

    def on_dropped(self, message: Dropped) -> None:
        """The gateway dropped publications."""

    def on_refresh_asked(self, session: "Session", within_s: float) -> None:
        """The gateway wants a fresh token."""

    def on_end(self) -> None:
        """The connection is over: nothing is to be asked on it any more."""

    def on_failure(self, error: Exception) -> None:
        """Something failed that no caller waits for."""


class Session:
    """See the module.

    Attributes:
        held: Channels that the gateway subscribed by itself, and the position it said.
        tasks: What works for this connection; ends with it.
        welcome: What the gateway said first, None before.
    """

    def __init__(
        self,
        transport: Transport,
        listener: Listener,
        options: ClientOptions,
        clock: Clock,
        *,
        has_token: bool = True,
    ) -> None:
        """Take an open connection; `run` makes it work.

        Args:
            transport: The connection.
            listener: Receives what comes unasked.
            options: Of the client.
            clock: For silence.
            has_token: Whether a token was shown. Without one the session ends as soon as the gateway says
                that it wants one.
        """
        self.held: dict[str, str | None] = {}
        self.tasks = Tasks(listener.on_failure)
        self.welcome: Welcome | None = None
        self._transport = transport
        self._listener = listener
        self._options = options
        self._clock = clock
        self._waiting: dict[int, tuple[asyncio.Future[Reply | Ending], Callable[[Reply], None] | None]] = {}
        self._last_id = 0
        self._bye: Bye | None = None
        self._is_silent = False
        self._verdict: Ending | None = None  # of the client itself
        self._ending: Ending | None = None
        self._has_token = has_token
        self._is_token_missing = False

    @property
    def waiting(self) -> int:
        """How many commands wait for an answer."""
        return len(self._waiting)

    async def run(self) -> Ending:
        """Read until the connection ends; how it did.

        Cancelled, it says goodbye. Whichever way it goes, its tasks have ended and its callers know.
        """
        ending = Ending(0, "cancelled")
        try:
            ending = await self._read()
        finally:
            self._ending = ending
            self._listener.on_end()
            for answer, _ in self._waiting.values():
                if not answer.done():
                    answer.set_result(ending)
            try:
                await self.tasks.cancel()
            finally:
                await self._transport.close()
        return ending

    def give_up(self, ending: Ending) -> None:
        """End the connection from this side: `run` returns this ending soon."""
        self._verdict = ending
        self._transport.abort()

    async def ask(
        self, op: str, fields: dict[str, Any], *, then: Callable[[Reply], None] | None = None
    ) -> Reply:
        """Send a command and return its answer.

        Cancelled, the command may have been carried out; its answer is dropped.

        Args:
            op: Which.
            fields: The rest of it.
            then: Called with the answer, whatever it is, before any later message is looked at.

        Raises:
            CommandError: It was refused.
            Disconnected: The connection ended before the answer.
            TypeError, ValueError, OverflowError: `fields` hold what msgpack cannot; nothing was sent.
        """
        if self._ending is not None:
            raise Disconnected(self._ending)
        number = self._last_id + 1
        message = encode({"op": op, **fields, "id": number})
        self._last_id = number
        answer: asyncio.Future[Reply | Ending] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (answer, then)
        try:
            await self._transport.send(message)
            reply = await answer
        finally:
            self._waiting.pop(number, None)
        if isinstance(reply, Ending):
            raise Disconnected(reply)
        if isinstance(reply, Failed):
            raise _refused(reply)
        return reply

    # --- reading --------------------------------------------------------------------------------------

    async def _read(self) -> Ending:
        try:
            try:
                async with asyncio.timeout(self._options.open_timeout_s):
                    await self._read_welcome()
            except TimeoutError:
                return Ending(0, "welcome_timeout")
            if self._is_token_missing:
                detail = "the gateway wants a token and this client has none"
                return Ending(401, "unauthorized", may_return=False, detail=detail)
            assert self.welcome is not None
            self.tasks.start(self._watch(self.welcome.ping_s))
            while True:
                for _ in range(TURN_MESSAGES):
                    self._handle(decode(await self._transport.receive()))
                await asyncio.sleep(0)
        except BadMessage as error:
            self._listener.on_failure(error)
            return Ending(0, "bad_message")
        except Disconnected as error:
            return self._judge(error.ending)

    async def _read_welcome(self) -> None:
        """Read until the welcome, or until the gateway says that a token is missing.

        A gateway that wants a token waits for `auth` in silence, so a client that has none asks: every other
        command but `ping` is answered `401 unauthorized` before the welcome, and `unsub` of a channel that is
        not held changes nothing after it.
        """
        asking = None if self._has_token else self.tasks.start(self._probe())
        while self.welcome is None and not self._is_token_missing:
            self._handle(decode(await self._transport.receive()))
        if asking is not None:
            asking.cancel()

    async def _probe(self) -> None:
        await asyncio.sleep(PROBE_S)
        with suppress(Disconnected):  # the task that receives gets the same error
            await self._transport.send(encode({"op": "unsub", "ch": "probe", "id": PROBE_ID}))

    def _judge(self, ending: Ending) -> Ending:
        """What `bye` said counts where the Close behind it was lost; how long to wait counts always."""
        if self._verdict is not None:
            return self._verdict
        if self._is_silent:
            return Ending(0, "silence")
        bye = self._bye
        if bye is None:
            return ending
        is_same = ending.code in (ABNORMAL, bye.code)
        code, reason = (bye.code, bye.reason) if is_same else (ending.code, ending.reason)
        return after_close(code, reason, retry_s=bye.retry_ms / 1000)

    def _handle(self, message: Message) -> None:
        listener = self._listener
        match message:
            case Failed(code=401) if self.welcome is None and not self._has_token:
                self._is_token_missing = True
            case Publication():
                listener.on_publication(message)
            case Answer(id=int()) | Failed(id=int()) | Subscribed(id=int()) | Unsubscribed(id=int()):
                self._answer(message)
            case Failed():
                listener.on_failure(_refused(message))
            case Subscribed():
                self.held[message.channel] = message.position
                listener.on_subscribed(self, message)
            case Unsubscribed():
                self.held.pop(message.channel, None)
                listener.on_unsubscribed(self, message)
            case Dropped():
                listener.on_dropped(message)
            case Welcome() if self.welcome is None:
                self.welcome = message
                listener.on_welcome(self, message)
            case RefreshAsked():
                listener.on_refresh_asked(self, message.within_s)
            case Bye():
                self._bye = message

    def _answer(self, reply: Reply) -> None:
        assert reply.id is not None
        answer, then = self._waiting.get(reply.id, (None, None))
        if answer is None or answer.done():
            return
        if then is not None:
            then(reply)
        answer.set_result(reply)

    # --- whether the gateway lives --------------------------------------------------------------------

    async def _watch(self, ping_s: int) -> None:
        """Cut a connection on which nothing came for too long: a gateway that vanished sends no Close."""
        silence_s = 2 * (ping_s or self._options.own_ping_s) + self._options.silence_margin_s
        while (left_s := self._transport.heard_s + silence_s - self._clock.now_s()) > 0:
            if ping_s:
                await self._clock.sleep(left_s)
            else:
                with suppress(Disconnected):  # the task that receives gets the same error
                    await self._transport.ping()
                await self._clock.sleep(min(left_s, self._options.own_ping_s))
        self._is_silent = True
        self._transport.abort()


def _refused(failed: Failed) -> CommandError:
    retry_s = None if failed.retry_ms is None else failed.retry_ms / 1000
    return CommandError(failed.code, failed.error, failed.message, retry_s=retry_s)
