"""Send a client what concerns its own connection: welcome, subscriptions, errors, bye and Close.

Replies know no bus and decide nothing. The parts above them (subscriptions, logins, commands) decide what a
connection receives; this module builds the message in the connection's dialect, sends it and counts it.

Source: protocols/client/v1/spec.md, "Messages".
"""

import math
import random
import time
from collections.abc import Callable
from typing import Final

from wsgate.auth import Identity, TokenError
from wsgate.dialects import Dialect, is_channel
from wsgate.reactor import Reactor
from wsgate.reasons import REASONS, Reason
from wsgate.shard.backend_events import Events
from wsgate.shard.byes import RETRY_MS, bye, common_byes
from wsgate.shard.options import ShardOptions
from wsgate.shard.publication_encoder import DIALECT_OF

__all__ = ["SHED_RETRY_MS", "Replies", "display_name"]

BAD_MESSAGES_LIMIT: Final = 3
"""Messages in a row that are no commands, after which the connection is closed."""
SHED_RETRY_MS: Final = 2_000, 15_000
"""Range of `retry_ms` for a client whose shard is short of memory or whose user has too many connections."""


def display_name(name: bytes) -> str:
    """Return a channel's name as its client knows it; the bus name of an inbox becomes `@me`."""
    return "@me" if name.startswith(b"@") else name.decode()


class Replies:
    """Sends messages about a connection to that connection, and ends connections.

    Args:
        options: Of the shard.
        reactor: Holds the connections. The messages that it sends before its own Closes are set here.
        events: Records for backends which subscriptions are new.
        count: Adds to a counter of the shard, by its name.
    """

    def __init__(
        self, options: ShardOptions, reactor: Reactor, events: Events, count: Callable[[str, int], None]
    ) -> None:
        self._reactor = reactor
        self._events = events
        self._count = count
        self.ended: set[int] = set()
        """Connections whose Close is queued. Messages that they sent after its cause are ignored."""
        self._bad_messages: dict[int, int] = {}  # in a row, by connection
        self.renew(options)
        dialects = self._configured_dialects()
        for reason, rank, messages in common_byes():
            byes = [messages[dialect] for dialect in dialects]
            reactor.set_bye(REASONS[reason].close_code, byes, reason=reason, rank=rank)
        self.spread_shed()

    def renew(self, options: ShardOptions) -> None:
        """Use these options from now on."""
        self._options = options
        self._ping_s = options.reactor.ping_interval_ms // 1000

    def _configured_dialects(self) -> tuple[Dialect, ...]:
        """Return the dialect of each variant that the reactor is configured for."""
        return DIALECT_OF[: len(self._options.reactor.variant_opcodes)]

    def spread_shed(self) -> None:
        """Draw another random `retry_ms` for the clients that are closed from now on to free memory."""
        retry_ms = random.randint(*SHED_RETRY_MS)  # noqa: S311 - spreading, not secrecy
        byes = [bye(dialect, Reason.SHED, retry_ms) for dialect in self._configured_dialects()]
        self._reactor.set_bye(REASONS[Reason.SHED].close_code, byes, reason=Reason.SHED)

    def welcome(
        self, conn: int, dialect: Dialect, identity: Identity, *, has_bus: bool, id: int | None = None
    ) -> None:
        """Send `welcome`, with the connection's public id and the time until its token expires.

        Args:
            conn: The connection.
            dialect: The dialect of the connection.
            identity: From the token of the connection.
            has_bus: Whether the channels that come with the token are confirmed by the bus.
            id: The id of the `auth` command that this answers; None for a token in the handshake.
        """
        expires_s = None
        if identity.expires_at_s:
            expires_s = max(0, int(identity.expires_at_s - time.time()))
        self._reactor.send(
            conn,
            dialect.welcome(
                self._reactor.public_id(conn),
                identity.user or None,
                self._options.node,
                self._ping_s,
                expires_s,
                has_bus=has_bus,
                id=id,
            ),
            dialect.opcode,
        )

    def subscribed(
        self,
        conn: int,
        dialect: Dialect,
        name: bytes,
        id: int | None = None,
        *,
        recovered: bool | None = None,
        is_new: bool = True,
    ) -> None:
        """Send `subbed`, and record an event for backends if the subscription is new."""
        if is_new and self._events.tells_subscriptions:
            self._events.subscribed(conn, self._reactor.meta(conn), name)
        text = dialect.subscribed(display_name(name), id, recovered=recovered)
        self._reactor.send(conn, text, dialect.opcode)

    def error(
        self,
        conn: int,
        dialect: Dialect,
        name: str,
        *,
        id: int | None = None,
        channel: str | None = None,
        retry_ms: int | None = None,
        detail: str = "",
    ) -> None:
        """Send `err`, and count it by its name. A channel that is not a valid name is not repeated."""
        self._count("error_" + name, 1)
        if channel is not None and channel != "@me" and not is_channel(channel):
            channel = None
        text = dialect.error(name, id=id, ch=channel, retry_ms=retry_ms, detail=detail)
        self._reactor.send(conn, text, dialect.opcode)

    def token_error(
        self,
        conn: int,
        dialect: Dialect,
        fault: TokenError,
        *,
        id: int | None = None,
        channel: str | None = None,
        is_closing: bool = False,
    ) -> int | None:
        """Send `err` for a token that was refused.

        Args:
            conn: The connection.
            dialect: The dialect of the connection.
            fault: Why the token was refused.
            id: The id of the command that carried the token.
            channel: The channel of that command.
            is_closing: A `bye` follows, which carries the time to retry instead of the error.

        Returns:
            After how many milliseconds the same token may be sent again; None: never.
        """
        retry_ms = _retry_ms_of(fault)
        detail = fault.text if self._options.is_dev else ""
        sent_ms = None if is_closing else retry_ms
        self.error(conn, dialect, "unauthorized", id=id, channel=channel, retry_ms=sent_ms, detail=detail)
        return retry_ms

    def end(self, conn: int, dialect: Dialect, reason: Reason, *, retry_ms: int = RETRY_MS) -> None:
        """Send bye and Close for a reason, under which the end of the connection is counted."""
        row = REASONS[reason]
        if row.close_code >= 4000:
            self._reactor.send(conn, bye(dialect, reason, retry_ms), dialect.opcode)
        is_closed = self._reactor.close(conn, row.close_code, reason.name.lower().encode(), reason=reason)
        # A Close or a fault of the peer in the same read may have ended the connection already. The messages
        # before it are handed over all the same, and must not be run.
        if is_closed or self._reactor.variant(conn) >= 0:
            self.ended.add(conn)

    def end_crowded(self, conn: int, dialect: Dialect) -> None:
        """End a connection because its user has too many; the client may retry after a random time."""
        retry_ms = random.randint(*SHED_RETRY_MS)  # noqa: S311 - spreading, not secrecy
        self.end(conn, dialect, Reason.USER_CONNECTIONS, retry_ms=retry_ms)

    def bad_message(self, conn: int, dialect: Dialect, *, is_malformed: bool) -> None:
        """Count an undecodable message; end the connection after three malformed ones in a row."""
        if not is_malformed:
            self._bad_messages.pop(conn, None)
            return
        seen = self._bad_messages.get(conn, 0) + 1
        self._bad_messages[conn] = seen
        if seen >= BAD_MESSAGES_LIMIT:
            self.end(conn, dialect, Reason.BAD_MESSAGES)

    def good_message(self, conn: int) -> None:
        """Note a message that is a command, so that malformed ones before it no longer count."""
        if self._bad_messages:
            self._bad_messages.pop(conn, None)

    def forget(self, conn: int) -> None:
        """Drop what is kept about a connection that is closed."""
        if self.ended:
            self.ended.discard(conn)
        if self._bad_messages:
            self._bad_messages.pop(conn, None)


def _retry_ms_of(error: TokenError) -> int | None:
    """Return after how many milliseconds a refused token may be sent again; None: never."""
    if error.is_early:
        spread_ms = random.randint(0, RETRY_MS)  # noqa: S311 - spreading, not secrecy
        return math.ceil(error.retry_s * 1000) + spread_ms
    return RETRY_MS if error.is_awaited else None
