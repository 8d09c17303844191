"""One WebSocket connection from its opening to its end: commands, replies, messages and the silence check.

A session owns the commands that wait for a reply, and every task that works for this connection. It passes
each message of the gateway to its listener, which knows what the message means for the application.

Rules: a reply for which no caller waits any more is ignored. The effect of a message on a channel is applied
before the next message is read.
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
"""The messages that can be the reply to a command."""

TURN_MESSAGES: Final = 64
"""After so many messages the session yields to other tasks. One read can bring thousands of messages, and the
task that empties a queue of 1,000 publications must run before the queue is full."""

PROBE_S: Final = 1.0
"""Seconds that a client without a token waits for its welcome before it sends the probe. A gateway that
accepts anonymous clients has usually sent the welcome by then, so that few clients send a probe."""
PROBE_ID: Final = 0
"""Command id of the probe. Commands of applications count from 1."""


class Listener(Protocol):
    """Receives the messages of a connection that are not replies to commands."""

    def on_welcome(self, session: "Session", welcome: Welcome) -> None:
        """The gateway has sent the welcome, so the session accepts commands."""

    def on_publication(self, publication: Publication) -> None:
        """A publication has arrived on a channel."""

    def on_subscribed(self, session: "Session", message: Subscribed) -> None:
        """The gateway has subscribed this connection to a channel without a command of the client."""

    def on_unsubscribed(self, session: "Session", message: Unsubscribed) -> None:
        """The gateway has unsubscribed this connection from a channel without a command of the client."""

    def on_dropped(self, message: Dropped) -> None:
        """The gateway reports a gap: it has dropped publications."""

    def on_refresh_asked(self, session: "Session", within_s: float) -> None:
        """Called when the gateway requests a fresh token within this number of seconds."""

    def on_end(self) -> None:
        """The connection has ended: no command can be sent on it any more."""

    def on_failure(self, error: Exception) -> None:
        """An error has occurred for which no caller waits."""


class Session:
    """One connection to a gateway, from its opening to its end.

    Attributes:
        held: Channels that the gateway subscribed without a command, with the position that it sent for each.
        tasks: The tasks that work for this connection. They end with it.
        welcome: The gateway's welcome, or None before it arrived.
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
        """Take over an open connection. Nothing is read before `run`.

        Args:
            transport: The connection.
            listener: Receives the messages that are not replies.
            options: The settings of the client.
            clock: Measures how long the gateway has been silent.
            has_token: Whether the client has a token. Without one the session ends when the gateway requires
                a token.
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
        self._verdict: Ending | None = None  # set by `give_up`
        self._ending: Ending | None = None
        self._has_token = has_token
        self._is_token_missing = False

    @property
    def waiting(self) -> int:
        """The number of commands that wait for a reply."""
        return len(self._waiting)

    async def run(self) -> Ending:
        """Read and handle messages until the connection ends, and return how it ended.

        When this task is cancelled, it closes the connection. In every case the tasks of the session have
        ended and all waiting commands have failed when this returns.
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
        """Abort the connection from the client's side, so that `run` returns this ending soon."""
        self._verdict = ending
        self._transport.abort()

    async def ask(
        self, op: str, fields: dict[str, Any], *, then: Callable[[Reply], None] | None = None
    ) -> Reply:
        """Send a command to the gateway and return the reply.

        If the caller is cancelled, the command may still be carried out, and its reply is ignored.

        Args:
            op: The name of the command.
            fields: The other fields of the command.
            then: Called with the reply, also with a refusal, before the next message is handled.

        Raises:
            CommandError: The gateway refused the command.
            Disconnected: The connection ended before the reply.
            TypeError, ValueError, OverflowError: msgpack cannot encode `fields`; nothing was sent.
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
                detail = "the gateway requires a token, and this client has none"
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
        """Handle messages until the welcome has arrived, or until the gateway has reported a missing token.

        A gateway that requires a token waits for `auth` without sending anything. A client without a token
        therefore sends a probe: before the welcome the gateway answers every command but `auth` and `ping`
        with `401 unauthorized`, and after the welcome `unsub` of a channel without a subscription changes
        nothing.
        """
        asking = None if self._has_token else self.tasks.start(self._probe())
        while self.welcome is None and not self._is_token_missing:
            self._handle(decode(await self._transport.receive()))
        if asking is not None:
            asking.cancel()

    async def _probe(self) -> None:
        await asyncio.sleep(PROBE_S)
        with suppress(Disconnected):  # the reading task gets the same error
            await self._transport.send(encode({"op": "unsub", "ch": "probe", "id": PROBE_ID}))

    def _judge(self, ending: Ending) -> Ending:
        """Combine the Close, an earlier `bye` and decisions of the client into the ending of the connection.

        The code of the `bye` counts if the Close was lost. The retry time of the `bye` always counts.
        """
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

    # --- detecting a silent gateway -------------------------------------------------------------------

    async def _watch(self, ping_s: int) -> None:
        """Abort the connection if no byte has arrived for too long: a host that vanished sends no Close.

        Silence alone proves nothing, because a reload of the gateway may make its ping interval longer. The
        client therefore sends a ping of its own and waits `silence_margin_s` for any byte before it gives up.
        """
        quiet_s = 2 * ping_s if ping_s else self._options.own_ping_s
        while True:
            heard_s = self._transport.heard_s
            left_s = heard_s + quiet_s - self._clock.now_s()
            if left_s > 0:
                await self._clock.sleep(left_s)
                continue
            pinging = self.tasks.start(self._ping())
            await self._clock.sleep(self._options.silence_margin_s)
            pinging.cancel()
            if self._transport.heard_s == heard_s:
                self._is_silent = True
                self._transport.abort()
                return

    async def _ping(self) -> None:
        """Send a ping; a task of its own, because this never returns while the send buffer stays full."""
        with suppress(Disconnected):  # the reading task gets the same error
            await self._transport.ping()


def _refused(failed: Failed) -> CommandError:
    retry_s = None if failed.retry_ms is None else failed.retry_ms / 1000
    return CommandError(failed.code, failed.error, failed.message, retry_s=retry_s)
