"""One connection that hears: SUBSCRIBE out, publications in.

Owns the connection, its reconnecting and its budget; knows nothing of what the names mean. Everything
it has to say it says to one listener, on the loop, never from inside a call to it. While the
connection is down it forgets what was subscribed: whoever owns the subscriptions hears `on_up` and
subscribes again. Its memory is bounded: one unfinished reply, one pass of unread data, and the names
not yet sent, which are the caller's subscriptions.
"""

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol, cast

from hiredis import pack_command

from wsgate.bus import push
from wsgate.bus.address import BusAddress

__all__ = ["Subscriber", "SubscriberListener", "SubscriberOptions"]

PASS_REPLIES: Final = 256
"""Replies handed up per pass of the loop: the budget the reactor has as well."""
NAMES_PER_COMMAND: Final = 512
UNREAD_LIMIT_BYTES: Final = 256 * 1024
"""Received but not parsed, above which the socket is not read."""
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MOST_S: Final = 5.0


class SubscriberListener(Protocol):
    """Who is told."""

    def on_up(self) -> None:
        """Connected and authenticated; nothing is subscribed."""

    def on_down(self) -> None:
        """The connection is lost, and every subscription with it."""

    def on_message(self, name: bytes, payload: bytes | None) -> None:
        """A publication to a channel, its name without the prefix; None: larger than the limit."""

    def on_control(self, name: bytes, payload: bytes) -> None:
        """A publication to a name outside the channels' prefix, whole."""

    def on_subscribed(self, name: bytes) -> None:
        """The bus confirmed one SUBSCRIBE of this name: what is published from now on is heard."""

    def on_pass(self) -> None:
        """The replies of one pass were handed up: a good time to write."""


@dataclass(frozen=True, slots=True)
class SubscriberOptions:
    """How to behave; times in seconds, sizes in bytes."""

    connect_timeout_s: float = 5.0
    reply_timeout_s: float = 5.0  # silence after a PING that ends the connection
    ping_interval_s: float = 5.0
    payload_limit_bytes: int = 1024 * 1024


class _Connection(asyncio.Protocol):
    """The socket: feeds the reader, takes replies in passes, stops reading when it falls behind."""

    def __init__(self, owner: "Subscriber", reader: push.PushReader) -> None:
        self.owner = owner
        self.reader = reader
        self.transport: asyncio.Transport | None = None
        self.loop = asyncio.get_running_loop()
        self.replies: asyncio.Queue[tuple[int, bytes]] | None = asyncio.Queue()
        self.closed = self.loop.create_future()
        self.heard_s = self.loop.time()
        self.is_scheduled = False
        self.unread_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.heard_s = self.loop.time()
        self.reader.feed(data)
        self.unread_bytes += len(data)
        if not self.is_scheduled:
            self.take()
        if self.is_scheduled and self.unread_bytes > UNREAD_LIMIT_BYTES and self.transport is not None:
            self.transport.pause_reading()

    def take(self) -> None:
        """One pass: hand up at most PASS_REPLIES, and come back if there are more."""
        try:
            taken = self.reader.take(PASS_REPLIES)
        except push.PushError:
            self.abort()
            return
        self.owner._hand_up(self, taken)
        self.is_scheduled = len(taken) == PASS_REPLIES
        if self.is_scheduled:
            self.loop.call_soon(self.take)
        elif self.unread_bytes:
            if self.unread_bytes > UNREAD_LIMIT_BYTES and self.transport is not None:
                self.transport.resume_reading()
            self.unread_bytes = 0

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if not self.closed.done():
            self.closed.set_result(None)


class Subscriber:
    """A subscriber connection that comes back by itself."""

    def __init__(
        self,
        address: BusAddress,
        prefix: bytes,
        listener: SubscriberListener,
        options: SubscriberOptions | None = None,
    ) -> None:
        """Not connected yet; see `run`.

        Args:
            address: Where the bus is; the name is resolved anew for every attempt.
            prefix: What channel names start with on the bus.
            listener: Who is told.
            options: Defaults to `SubscriberOptions()`.
        """
        self._address = address
        self._prefix = prefix
        self._listener = listener
        self._options = options or SubscriberOptions()
        self._connection: _Connection | None = None
        self._commands: list[tuple[bytes, list[bytes]]] = []
        self._is_write_scheduled = False
        self.connects = 0
        self.failures = 0

    @property
    def is_up(self) -> bool:
        """Whether there is a connection that can be subscribed on."""
        return self._connection is not None

    def subscribe(self, names: Iterable[bytes]) -> None:
        """SUBSCRIBE to channels by names without the prefix; written with the next pass, in batches.

        Does nothing while the connection is down: `on_up` is the time to subscribe.
        """
        self._enqueue(b"SUBSCRIBE", [self._prefix + name for name in names])

    def subscribe_control(self, name: bytes) -> None:
        """SUBSCRIBE to a name as it is."""
        self._enqueue(b"SUBSCRIBE", [name])

    def unsubscribe(self, names: Iterable[bytes]) -> None:
        """UNSUBSCRIBE from channels, in order with the calls of `subscribe`."""
        self._enqueue(b"UNSUBSCRIBE", [self._prefix + name for name in names])

    async def run(self) -> None:
        """Connect, hear, and connect again after full-jitter back-off; until cancelled."""
        attempt = 0
        while True:
            try:
                await self._session()
                attempt = 0
            except (OSError, TimeoutError, push.PushError):
                self.failures += 1
            # Full jitter: a thousand shards whose bus went away do not come back in step.
            most_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(attempt, 10))
            attempt += 1
            await asyncio.sleep(random.uniform(0, most_s))  # noqa: S311 - spreading, not secrecy

    # --- one connection's life ------------------------------------------------------------------------

    async def _session(self) -> None:
        async with asyncio.timeout(self._options.connect_timeout_s):
            connection = await self._connect()
        try:
            async with asyncio.timeout(self._options.connect_timeout_s):
                await self._greet(connection)
            self.connects += 1
            connection.replies = None
            self._connection = connection
            self._listener.on_up()
            await self._watch(connection)
        finally:
            was_up, self._connection = self._connection is not None, None
            self._commands.clear()
            connection.abort()
            if was_up:
                self._listener.on_down()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        reader = push.PushReader(self._prefix, self._options.payload_limit_bytes)
        address = self._address
        if address.path:
            _, connection = await loop.create_unix_connection(lambda: _Connection(self, reader), address.path)
        else:
            _, connection = await loop.create_connection(
                lambda: _Connection(self, reader), address.host, address.port
            )
        return connection

    async def _greet(self, connection: _Connection) -> None:
        """AUTH when there is a password, then PING: a server that is loading or full says so here."""
        if self._address.password:
            user = [self._address.username] if self._address.username else []
            await self._ask(connection, "AUTH", *user, self._address.password)
        await self._ask(connection, "PING")

    async def _ask(self, connection: _Connection, *command: str) -> None:
        assert connection.transport is not None and connection.replies is not None
        connection.transport.write(_packed(*command))
        answer = asyncio.ensure_future(connection.replies.get())
        await asyncio.wait((answer, connection.closed), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            raise ConnectionResetError("the bus closed the connection")
        if answer.result()[0] == push.ERROR:
            raise ConnectionRefusedError("the bus refused: " + answer.result()[1].decode("latin-1")[:80])

    async def _watch(self, connection: _Connection) -> None:
        """Until it is lost; a PING when nothing was heard for a while, and its answer within its time."""
        options, loop = self._options, connection.loop
        while not connection.closed.done():
            quiet_s = loop.time() - connection.heard_s
            if quiet_s >= options.ping_interval_s + options.reply_timeout_s:
                return
            if quiet_s >= options.ping_interval_s and connection.transport is not None:
                connection.transport.write(_packed("PING"))
                wait_s = options.reply_timeout_s
            else:
                wait_s = options.ping_interval_s - quiet_s
            await asyncio.wait((connection.closed,), timeout=wait_s + 0.01)

    # --- both ways ------------------------------------------------------------------------------------

    def _hand_up(self, connection: _Connection, taken: list[tuple[int, bytes, bytes | None]]) -> None:
        if connection.replies is not None:
            for kind, text, _ in taken:
                connection.replies.put_nowait((kind, text))
            return
        if connection is not self._connection:
            return
        listener = self._listener
        for kind, name, payload in taken:
            if kind == push.MESSAGE or kind == push.TOO_LARGE:
                listener.on_message(name, payload)
            elif kind == push.SUBSCRIBED:
                listener.on_subscribed(name)
            elif kind == push.CONTROL:
                assert payload is not None
                listener.on_control(name, payload)
            elif kind == push.ERROR:
                # An ACL that forbids a channel, for instance: nothing heard here can be relied on.
                connection.abort()
                return
        listener.on_pass()

    def _enqueue(self, command: bytes, names: list[bytes]) -> None:
        if self._connection is None or not names:
            return
        if self._commands and self._commands[-1][0] == command:
            self._commands[-1][1].extend(names)
        else:
            self._commands.append((command, names))
        if not self._is_write_scheduled:
            self._is_write_scheduled = True
            self._connection.loop.call_soon(self._write)

    def _write(self) -> None:
        self._is_write_scheduled = False
        commands, self._commands = self._commands, []
        if self._connection is None or self._connection.transport is None:
            return
        for command, names in commands:
            for start in range(0, len(names), NAMES_PER_COMMAND):
                part = names[start : start + NAMES_PER_COMMAND]
                self._connection.transport.write(_packed(command, *part))


def _packed(*command: str | bytes) -> bytes:
    """A command as Redis reads it: every part literally, whatever bytes it has (S26)."""
    packed: bytes = pack_command(command)  # type: ignore[arg-type] # typed as a tuple of one; takes any
    return packed
