"""Subscribe connections to channels and answer their `sub` commands once the bus has confirmed the channel.

The reactor and the hub hold the subscriptions themselves. Here are only the `sub` commands that wait for a
confirmation, because the bus has not answered the shard's own SUBSCRIBE yet.

Source: protocols/client/v1/spec.md, "Commands".
"""

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

from wsgate.auth import Member
from wsgate.bus.names import INBOX_MARK
from wsgate.dialects import Dialect, is_channel
from wsgate.reactor import Reactor
from wsgate.shard.access import Access
from wsgate.shard.backend_events import Events
from wsgate.shard.byes import RETRY_MS
from wsgate.shard.hub import Hub, Joined
from wsgate.shard.options import ShardOptions
from wsgate.shard.publication_encoder import DIALECT_OF
from wsgate.shard.replies import Replies, display_name
from wsgate.shard.unconfirmed import Confirmation

__all__ = ["Subscriptions"]

PENDING_LIMIT: Final = 16
"""Subscribe commands of one connection for one channel that may wait: a client may repeat them."""
PENDING_BYTES: Final = 1_000
"""Memory of one that waits, with its entries in the hub's tables: 416 bytes if repeated, 1,345 if alone."""
FORBIDDEN_CODE: Final = 4503
"""In an `unsubbed` without a command: the bus forbids the channel, now and later."""
NOT_NOW: Final = {
    Joined.BEHIND: ("rate_limited", "subscriptions_behind"),
    Joined.FULL: ("unavailable", "subscriptions_bus_memory"),
}
"""Subscriptions refused for a reason that passes: the name of the error, and the counter of the reason."""


class _PendingReply(NamedTuple):
    """A `sub` command that the bus has not confirmed yet."""

    dialect: Dialect
    id: int | None
    recovered: bool | None
    was_held: bool  # the connection had the channel before: a recovery in place, or a repeated command

    @property
    def is_repeated(self) -> bool:
        """Whether the command is answered 409, once the subscription that it repeats is confirmed."""
        return self.was_held and self.recovered is None


class Subscriptions:
    """The subscriptions of one shard's connections, as their clients see them.

    Args:
        options: Of the shard.
        reactor: Holds the connections.
        hub: Holds the shard's own subscriptions on the bus.
        access: Decides which channels a connection may subscribe to.
        replies: Sends answers to clients.
        events: Records for backends who subscribes and unsubscribes.
        count: Adds to a counter of the shard, by its name.
    """

    def __init__(
        self,
        options: ShardOptions,
        reactor: Reactor,
        hub: Hub,
        access: Access,
        replies: Replies,
        events: Events,
        count: Callable[[str, int], None],
    ) -> None:
        self._reactor = reactor
        self._hub = hub
        self._access = access
        self._replies = replies
        self._events = events
        self._count = count
        self._pending: dict[int, dict[bytes, list[_PendingReply]]] = {}  # by connection and channel
        self._pending_count = 0
        self.on_left: Callable[[int, bytes], object] = lambda conn, name: None
        """Called with each connection and channel that the client has unsubscribed."""
        self.is_in_welcome: Callable[[int, bytes], bool] = lambda conn, name: False
        """Returns whether a welcome still has to confirm this channel to its connection."""
        self.takes_forbidden: Callable[[int, bytes], bool] = lambda conn, name: False
        """Called with each connection and channel that the bus forbids; returns whether a welcome answers."""
        self.renew(options)

    def renew(self, options: ShardOptions) -> None:
        """Use these options from now on."""
        self._options = options

    @property
    def waiting_bytes(self) -> int:
        """Memory of all `sub` commands that wait for the bus, in bytes."""
        return self._pending_count * PENDING_BYTES

    def name_of(self, member: Member, channel: str) -> bytes | None:
        """Translate a channel's name from the client's to the bus's; None: no client may use this name."""
        if channel == "@me":
            return INBOX_MARK.encode() + member.user_utf8 if member.user_utf8 else None
        if not is_channel(channel, self._options.max_channel_name_bytes):
            return None
        return channel.encode()

    def subscribe(
        self, conn: int, dialect: Dialect, channel: str, id: int | None, *, position: str | None = None
    ) -> None:
        """Subscribe to a channel if the connection's token permits it; otherwise send the error."""
        member: Member | None = self._reactor.meta(conn)
        if member is None:
            return  # the connection closed before its welcome
        name = self.name_of(member, channel)
        fault = "bad_request" if name is None else None
        if name is not None and not name.startswith(b"@"):
            fault = self._access.may_subscribe(member, channel)
        if fault or name is None:
            self._replies.error(conn, dialect, fault or "bad_request", id=id, channel=channel)
            return
        self.join(conn, dialect, name, id, position=position)

    def join(
        self, conn: int, dialect: Dialect, name: bytes, id: int | None, *, position: str | None = None
    ) -> None:
        """Subscribe to a channel for which the permission was checked, by its name on the bus.

        With a position the command is a recovery; when the connection has the channel already, the recovery
        happens in place. No channel has a history, so a recovery is never complete.

        Without a position, a command for a channel that the connection has is answered 409. A client counts
        that answer as a confirmation. Therefore, until the first confirmation was sent to the connection, the
        command waits for that confirmation too. For a channel that was confirmed and then lost, the answer is
        sent at once: the gap of the channel follows.
        """
        replies, channel = self._replies, display_name(name)
        if not self._hub.is_live_for(name):
            replies.error(conn, dialect, "unavailable", id=id, channel=channel, retry_ms=RETRY_MS)
            return
        rules = None if name.startswith(b"@") else self._access.rules(channel)
        policy = rules.slow_consumer if rules else self._options.inbox_slow_consumer
        recovered = None if position is None else False
        waiter = partial(self._on_confirmed, conn)
        joined = self._hub.join(conn, name, policy, waiter)
        was_held = joined is Joined.ALREADY
        is_awaited = was_held and (self._hub.is_waiting(conn, name) or self.is_in_welcome(conn, name))
        if was_held and (recovered is not None or is_awaited):
            if len(self._pending.get(conn, {}).get(name, ())) >= PENDING_LIMIT:
                joined = Joined.TOO_MANY
            else:
                joined = self._hub.confirm(conn, name, waiter)
        command = _PendingReply(dialect, id, recovered, was_held)
        if joined is Joined.WAITS:
            self._pending.setdefault(conn, {}).setdefault(name, []).append(command)
            self._pending_count += 1
        elif joined in (Joined.LIVE, Joined.ALREADY):
            self._answer(conn, name, command)
        else:
            self.refuse(conn, dialect, name, joined, id)

    def _answer(self, conn: int, name: bytes, command: _PendingReply) -> None:
        """Answer a `sub` of a channel that the connection has: `subbed`, or 409 for a repeated one."""
        dialect, id, recovered, was_held = command
        if command.is_repeated:
            self._replies.error(conn, dialect, "already_subscribed", id=id, channel=display_name(name))
        else:
            self._replies.subscribed(conn, dialect, name, id, recovered=recovered, is_new=not was_held)

    def refuse(self, conn: int, dialect: Dialect, name: bytes, joined: Joined, id: int | None = None) -> None:
        """Send the error for a subscription that the hub did not make.

        Args:
            conn: The connection.
            dialect: The dialect of the connection.
            name: The channel, by its name on the bus.
            joined: The hub's answer: TOO_MANY of the connection, BEHIND or FULL for a while, REFUSED by the
                bus's access rules, which does not pass.
            id: The id of the command.
        """
        replies, channel = self._replies, display_name(name)
        if joined is Joined.TOO_MANY:
            replies.error(conn, dialect, "rate_limited", id=id, channel=channel)
        elif joined is Joined.REFUSED:
            self._count("subscriptions_forbidden", 1)
            detail = "the bus does not let the gateway subscribe to this channel"
            replies.error(conn, dialect, "permission_denied", id=id, channel=channel, detail=detail)
        elif joined in NOT_NOW:
            error, counter = NOT_NOW[joined]
            self._count(counter, 1)
            retry_ms = random.randint(RETRY_MS, 2 * RETRY_MS)  # noqa: S311 - spreading, not secrecy
            replies.error(conn, dialect, error, id=id, channel=channel, retry_ms=retry_ms)

    def on_forbidden(self, conn: int, name: bytes) -> None:
        """Send `unsubbed` to a connection whose channel the bus forbids from now on.

        A channel that the client was not told of is refused after the welcome instead.
        """
        if self.takes_forbidden(conn, name):
            return
        dialect = DIALECT_OF[self._reactor.variant(conn)]
        self._count("subscriptions_forbidden", 1)
        text = dialect.taken(display_name(name), FORBIDDEN_CODE, "permission_denied")
        self._reactor.send(conn, text, dialect.opcode)
        if self._events.tells_subscriptions:
            self._events.unsubscribed(conn, self._reactor.meta(conn), name)

    def _on_confirmed(self, conn: int, name: bytes, confirmation: Confirmation) -> None:
        """Answer every `sub` command of a connection that waits for this channel."""
        pending = self._take_pending(conn, name)
        is_live = confirmation is Confirmation.LIVE
        # The welcome, if there is one, waits for the channel too, and requires the subscription.
        is_ended = not is_live and any(not each.was_held for each in pending)
        if is_ended and not self.is_in_welcome(conn, name):
            self._hub.leave(conn, name)
        for command in pending:
            dialect, id = command.dialect, command.id
            if confirmation is Confirmation.REFUSED:
                self.refuse(conn, dialect, name, Joined.REFUSED, id)
            elif is_live:
                self._answer(conn, name, command)
            else:
                channel = display_name(name)
                self._replies.error(conn, dialect, "unavailable", id=id, channel=channel, retry_ms=RETRY_MS)

    def _take_pending(self, conn: int, name: bytes) -> list[_PendingReply]:
        names = self._pending.get(conn)
        pending = names.pop(name, []) if names else []
        self._pending_count -= len(pending)
        if names is not None and not names:
            del self._pending[conn]
        return pending

    def subscribe_all(
        self, conn: int, dialect: Dialect, channels: tuple[str, ...], positions: Mapping[str, str]
    ) -> None:
        """Subscribe to channels as if the client had sent one `sub` for each of them after its `welcome`."""
        for channel in channels:
            self.subscribe(conn, dialect, channel, None, position=positions.get(channel))

    def leave(self, conn: int, name: bytes) -> None:
        """Unsubscribe; a `sub` that still waits is answered first, because the client sent it first."""
        for command in self._take_pending(conn, name):
            self._answer(conn, name, command)
        if self._hub.leave(conn, name) and self._events.tells_subscriptions:
            self._events.unsubscribed(conn, self._reactor.meta(conn), name)
        self.on_left(conn, name)

    def forget(self, conn: int) -> None:
        """Drop what waits for a connection that is closed."""
        self._hub.forget(conn)
        if self._pending and (names := self._pending.pop(conn, None)):
            self._pending_count -= sum(map(len, names.values()))
