"""Run the commands that clients send: one table leads from the type of a command to its handler.

A handler is called with `(conn, dialect, member, command)`. It answers at once, or later if it waits for the
bus or for the turn of a token. A connection that is not admitted yet may send only `auth` and `ping`.

Source: protocols/client/v1/spec.md, "Commands".
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from wsgate.admission import ByteBudget, PublishRates
from wsgate.auth import Identity, Member, TokenError
from wsgate.bus import BusPublisher, Names, Publication, encode_publication
from wsgate.dialects import BadCommand, Dialect, commands
from wsgate.payload import Payload
from wsgate.reasons import Reason
from wsgate.shard.byes import RETRY_MS
from wsgate.shard.login import LoginParts, Logins
from wsgate.shard.options import ANONYMOUS_MEMBER, ShardOptions
from wsgate.shard.pausing import Pauser
from wsgate.shard.publish_watches import PublishWatch
from wsgate.shard.replies import display_name
from wsgate.shard.welcome import ConnectRequest
from wsgate.turns import CROWDED, Sender

__all__ = ["Commands"]

UNDER_WAY_LIMIT: Final = 64
UNDER_WAY_LIMIT_BYTES: Final = 256 * 1024
"""Commands of one connection that wait for the bus, and their bytes, from which on reading is paused."""

UNDER_WAY_BYTES: Final = 250
"""Memory of the entry of one connection that has commands waiting for the bus."""

Handler = Callable[[int, Dialect, Member, Any], None]


class _UnderWay:
    """Counts the commands of one connection that wait for the bus, and their bytes."""

    __slots__ = ("commands", "resume_at", "size")

    def __init__(self) -> None:
        self.commands = 0
        self.size = 0
        self.resume_at = -1  # reading is paused until so few commands wait; -1: it is not paused


class Commands:
    """Runs the commands of one shard's clients, and pauses reading from clients that send too many."""

    def __init__(
        self,
        options: ShardOptions,
        parts: LoginParts,
        logins: Logins,
        publisher: BusPublisher,
        names: Names,
        *,
        count: Callable[[str, int], None],
        wake: Callable[[], None],
        unheard: Callable[[bytes], None],
    ) -> None:
        """Connect the commands with the parts of one shard that they use.

        Args:
            options: Of the shard.
            parts: The parts that commands share with logins.
            logins: Admits connections, and buffers what they send before they are admitted.
            publisher: Sends publications to the bus.
            names: The names of channels on the bus.
            count: Adds to a counter of the shard, by its name.
            wake: Requests a pass, because a reply of the bus arrives between two passes.
            unheard: Called with a channel that this shard is subscribed to, when the bus had no receiver for
                a publication of it.
        """
        self._reactor = parts.reactor
        self._hub = parts.hub
        self._access = parts.access
        self._tokens = parts.tokens
        self._events = parts.events
        self._users = parts.users
        self._members = parts.members
        self._replies = parts.replies
        self._subscriptions = parts.subscriptions
        self._pauses = parts.pauses
        self._logins = logins
        self._publisher = publisher
        self._names = names
        self._count = count
        self._wake = wake
        self._unheard = unheard
        self._under_way: dict[int, _UnderWay] = {}
        self._rates: PublishRates | None = None
        self._rate = 0, 0  # publishes of one connection: per second, and in a burst
        self.renew(options)
        self._handlers: dict[type, tuple[str, Handler]] = {
            commands.Auth: ("command_auth", self._auth),
            commands.Subscribe: ("command_sub", self._subscribe),
            commands.Unsubscribe: ("command_unsub", self._unsubscribe),
            commands.Publish: ("command_pub", self._publish),
            commands.Send: ("command_send", self._send),
            commands.History: ("command_history", self._ask),
            commands.Presence: ("command_presence", self._ask),
            commands.PresenceStats: ("command_presence_stats", self._ask),
            commands.Refresh: ("command_refresh", self._refresh),
            commands.Ping: ("command_ping", self._ping),
        }

    def run(self, conn: int, dialect: Dialect, message: bytes, opcode: int) -> None:
        """Decode one message of a connection and call the handler of its command.

        Args:
            conn: The connection.
            dialect: The dialect of the connection.
            message: The payload of the message.
            opcode: 1 for a text message, 2 for a binary one.
        """
        replies, logins = self._replies, self._logins
        if replies.ended and conn in replies.ended:
            return  # received in the same read as the message that caused the Close
        if logins.buffered and logins.buffer(conn, message, opcode):
            return
        if opcode != dialect.opcode:
            replies.end(conn, dialect, Reason.UNSUPPORTED_DATA)
            return
        command = dialect.decode(message)
        if type(command) is BadCommand:
            replies.error(conn, dialect, command.error, id=command.id, channel=command.ch)
            replies.bad_message(conn, dialect, is_malformed=command.is_malformed)
            return
        replies.good_message(conn)
        counter, handler = self._handlers[type(command)]
        self._count(counter, 1)
        member: Member | None = self._reactor.meta(conn)
        if member is None:
            if type(command) not in (commands.Auth, commands.Ping):
                channel = getattr(command, "ch", None)
                replies.error(conn, dialect, "unauthorized", id=command.id, channel=channel)
                return
            member = ANONYMOUS_MEMBER
        rates = self._users.rates
        if rates is not None and member.user_utf8 and type(command) is not commands.Ping:
            wait_ms = rates.take(member.user, time.monotonic())
            if wait_ms:
                channel = getattr(command, "ch", None)
                replies.error(conn, dialect, "rate_limited", id=command.id, channel=channel, retry_ms=wait_ms)
                return
        handler(conn, dialect, member, command)

    def renew(self, options: ShardOptions) -> None:
        """Use these options from now on."""
        self.budget = ByteBudget(options.byte_rates)  # for the bytes that clients send to the bus
        rate, burst = options.publish_rate_per_s, options.publish_burst or options.publish_rate_per_s
        if (rate, burst) != self._rate:  # else the buckets stay as they are
            self._rate = rate, burst
            self._rates = PublishRates(rate, burst, time.monotonic()) if rate else None

    @property
    def waiting_bytes(self) -> int:
        """Memory of the commands that wait for the bus and of the publish rates, in bytes."""
        return len(self._under_way) * UNDER_WAY_BYTES + (self._rates.bytes_estimate if self._rates else 0)

    def forget(self, conn: int) -> None:
        """Drop the waiting commands, the publish rate and the byte budget of a connection that is closed."""
        if self._under_way:
            self._under_way.pop(conn, None)
        if self._rates is not None:
            self._rates.forget(conn)
        self.budget.forget(conn)

    def _is_over_budget(
        self, conn: int, dialect: Dialect, sender: Sender, size: int, id: int | None, channel: str | None
    ) -> bool:
        """Charge bytes to the budget of a sender; if it has too few left, send the error and return True."""
        wait_ms = self.budget.take(conn, size, time.monotonic(), party=sender.party)
        if wait_ms:
            self._count("publishes_over_bytes", 1)
            self._replies.error(conn, dialect, "rate_limited", id=id, channel=channel, retry_ms=wait_ms)
        return wait_ms > 0

    # --- users and their tokens -----------------------------------------------------------------------

    def _auth(self, conn: int, dialect: Dialect, member: Member, command: commands.Auth) -> None:
        if member.user_utf8:
            # The connection has a user already. A client sends a new token with `refresh`.
            self._replies.error(conn, dialect, "bad_request", id=command.id)
            return
        token = command.token
        request = ConnectRequest(command.id, command.positions or {})
        known = self._tokens.recall(token, time.time())
        if known is not None:
            self._logins.admit(conn, dialect, known, request)
            return
        self._logins.await_token(
            conn, dialect, token, partial(self._logins.authenticate, conn, dialect, token, request)
        )

    def _refresh(self, conn: int, dialect: Dialect, member: Member, command: commands.Refresh) -> None:
        """Give a connection the expiry and the permissions of a new token, at once if the token is known."""
        known = self._tokens.recall(command.token, time.time())
        if known is not None:
            self._refreshed(conn, dialect, command, known)
            return
        act = partial(self._verify_refresh, conn, dialect, command)
        self._logins.await_token(conn, dialect, command.token, act)

    def _verify_refresh(self, conn: int, dialect: Dialect, command: commands.Refresh) -> bool:
        """Verify the token of a `refresh` that is not in the cache; return whether the token was valid."""
        try:
            fresh = self._tokens.connection(command.token, time.time())
        except TokenError as error:
            self._replies.token_error(conn, dialect, error, id=command.id)
            return False
        self._refreshed(conn, dialect, command, fresh)
        return True

    def _refreshed(self, conn: int, dialect: Dialect, command: commands.Refresh, fresh: Identity) -> None:
        """Use the valid token of a `refresh` from now on, if it belongs to the user of the connection."""
        member: Member | None = self._reactor.meta(conn)
        if member is None:
            return  # the connection has closed meanwhile
        if fresh.user != member.user:
            self._replies.error(conn, dialect, "permission_denied", id=command.id)
            return
        self._members.keep(conn, fresh, member)
        self._members.set_expiry(conn, fresh)
        if command.id is not None:
            expires_s = max(0, int(fresh.expires_at_s - time.time())) if fresh.expires_at_s else None
            self._reactor.send(conn, dialect.ok(command.id, expires_s=expires_s), dialect.opcode)

    def _ping(self, conn: int, dialect: Dialect, member: Member, command: commands.Ping) -> None:
        self._reactor.send(conn, dialect.pong(command.id), dialect.opcode)

    # --- channels -------------------------------------------------------------------------------------

    def _subscribe(self, conn: int, dialect: Dialect, member: Member, command: commands.Subscribe) -> None:
        if command.token is None:
            self._subscriptions.subscribe(conn, dialect, command.ch, command.id, position=command.position)
            return
        name = self._subscriptions.name_of(member, command.ch)
        if name is None or name.startswith(b"@"):
            self._replies.error(conn, dialect, "bad_request", id=command.id, channel=command.ch)
            return
        act = partial(self._verify_subscribe, conn, dialect, command, command.token, name)
        self._logins.await_token(conn, dialect, command.token, act)

    def _verify_subscribe(
        self, conn: int, dialect: Dialect, command: commands.Subscribe, token: str, name: bytes
    ) -> bool:
        """Verify the channel token of a `sub`, then subscribe; return whether the token was valid.

        Channel tokens are not cached.
        """
        channel = command.ch
        member: Member | None = self._reactor.meta(conn)
        if member is None:
            return True  # the connection has closed meanwhile
        try:
            self._tokens.channel(token, channel, member.user, time.time())
        except TokenError as error:
            self._replies.token_error(conn, dialect, error, id=command.id, channel=channel)
            return False
        if fault := self._access.may_subscribe(member, channel, has_channel_token=True):
            self._replies.error(conn, dialect, fault, id=command.id, channel=channel)
        else:
            self._subscriptions.join(conn, dialect, name, command.id, position=command.position)
        return True

    def _unsubscribe(
        self, conn: int, dialect: Dialect, member: Member, command: commands.Unsubscribe
    ) -> None:
        """Unsubscribe from a channel; the answer is the same if the connection was not subscribed."""
        name = self._subscriptions.name_of(member, command.ch)
        if name is None:
            self._replies.error(conn, dialect, "bad_request", id=command.id, channel=command.ch)
            return
        self._subscriptions.leave(conn, name)
        self._reactor.send(conn, dialect.unsubscribed(display_name(name), command.id), dialect.opcode)

    def _ask(self, conn: int, dialect: Dialect, member: Member, command: Any) -> None:
        """Answer `history` and `presence` with `not_available`, because no channel has them yet.

        A client that may not subscribe to the channel receives that error instead, so that `not_available`
        never means a missing permission.
        """
        name = self._subscriptions.name_of(member, command.ch)
        fault = "bad_request" if name is None else None
        if name is not None and not name.startswith(b"@"):
            fault = self._access.may_subscribe(member, command.ch)
        self._replies.error(conn, dialect, fault or "not_available", id=command.id, channel=command.ch)

    def _send(self, conn: int, dialect: Dialect, member: Member, command: commands.Send) -> None:
        """Append a client's message to the backends' event stream; an error if no backend wants messages."""
        events = self._events
        if not events.takes_messages:
            self._replies.error(conn, dialect, "permission_denied", id=command.id)
            return
        payload = dialect.payload(command)
        if payload is None:
            self._replies.error(conn, dialect, "bad_request", id=command.id)
            return
        size = len(payload.data)
        sender = self._sender(conn, member)
        if self._is_over_budget(conn, dialect, sender, size, command.id, None):
            return
        self._hold(conn, size)
        done = partial(self._sent, conn, dialect, command.id, size)
        if refused := events.message(conn, member, payload, sender, done):
            done(refused)

    def _sent(self, conn: int, dialect: Dialect, id: int | None, size: int, outcome: str) -> None:
        """Answer a `send` when the event stream has taken its message, or has not (`outcome`)."""
        self._release(conn, size)
        self._wake()
        self._count("events_refused" if outcome else "events_taken", 1)
        if outcome:
            self._fail(conn, dialect, id, None, outcome)
        elif id is not None:
            self._reactor.send(conn, dialect.ok(id), dialect.opcode)

    # --- publishing -----------------------------------------------------------------------------------

    def _publish(self, conn: int, dialect: Dialect, member: Member, command: commands.Publish) -> None:
        """Send a client's publication to the bus, if its permissions, rate and budget allow that."""
        channel = command.ch
        name = self._subscriptions.name_of(member, channel)
        fault = "bad_request" if name is None else None
        if name is not None:
            is_inbox = name.startswith(b"@")
            fault = "permission_denied" if is_inbox else self._access.may_publish(member, channel)
        payload = dialect.payload(command) if fault is None else None
        if fault is None:
            fault = self._payload_fault(channel, payload)
        if fault or name is None or payload is None:
            self._replies.error(conn, dialect, fault or "bad_request", id=command.id, channel=channel)
            return
        if self._rates is not None and (wait_ms := self._rates.take(conn, time.monotonic())):
            self._count("publishes_over_rate", 1)
            self._replies.error(
                conn, dialect, "rate_limited", id=command.id, channel=channel, retry_ms=wait_ms
            )
            return
        sender = self._sender(conn, member)
        if self._is_over_budget(conn, dialect, sender, len(payload.data), command.id, channel):
            return
        if not self._hub.receives(name):
            self._not_published(conn, dialect, command.id, channel, "down")
            return
        data = encode_publication(
            Publication(
                payload,
                user=member.user or None,
                timestamp_ms=time.time_ns() // 1_000_000,
                exclude=self._reactor.public_id(conn) if command.echo is False else 0,
            )
        )
        self._hold(conn, len(data))
        watch = self._hub.watch(name)
        done = partial(self._published, conn, dialect, command.id, name, len(data), watch)
        self._publisher.publish(self._names.channel(name), data, done, sender, must_reach=watch is not None)

    def _sender(self, conn: int, member: Member) -> Sender:
        """Return the sender that a command to the bus takes its turn as: the user, else the address."""
        return Sender(member.user or self._reactor.origin(conn), conn)

    def _payload_fault(self, channel: str, payload: Payload | None) -> str | None:
        """Return the error for a payload that cannot be decoded or is too large; None: it is in order."""
        if payload is None:
            return "bad_request"
        if len(payload.data) > self._access.max_publish_bytes(channel):
            return "too_large"
        return None

    def _published(
        self,
        conn: int,
        dialect: Dialect,
        id: int | None,
        name: bytes,
        size: int,
        watch: PublishWatch | None,
        outcome: str,
    ) -> None:
        """Answer a `pub`: `ok` only if the bus has the publication and this shard receives the channel.

        Args:
            conn: The connection that published.
            dialect: The dialect of the connection.
            id: The id of the command; None: the client wants no `ok`.
            name: The channel, by its name on the bus.
            size: Bytes that the publication was counted with.
            watch: The watch of the publish; None: this shard has no confirmed subscription to the channel.
            outcome: Empty if the bus took the publication, else the publisher's word for the failure.
        """
        hub = self._hub
        self._release(conn, size)
        self._wake()
        is_unbroken = watch is not None and hub.unwatch(name, watch)
        if outcome == "unheard":
            if is_unbroken:
                self._unheard(self._names.channel(name))
            else:
                outcome = ""  # this shard's subscription ended meanwhile, so that no receiver proves nothing
        if outcome or not hub.receives(name):
            self._not_published(conn, dialect, id, name.decode(), outcome)
            return
        self._count("publishes_sent", 1)
        if id is not None:
            self._reactor.send(conn, dialect.ok(id), dialect.opcode)

    def _not_published(self, conn: int, dialect: Dialect, id: int | None, channel: str, outcome: str) -> None:
        self._count("publishes_failed", 1)
        if outcome == CROWDED:
            self._count("publishes_crowded", 1)
        self._fail(conn, dialect, id, channel, outcome)

    def _fail(self, conn: int, dialect: Dialect, id: int | None, channel: str | None, outcome: str) -> None:
        """Send the error for a command that the bus did not take; pause reading if the sender is crowded."""
        name = "rate_limited" if outcome == CROWDED else "unavailable"
        self._replies.error(conn, dialect, name, id=id, channel=channel, retry_ms=RETRY_MS)
        under_way = self._under_way.get(conn)
        if outcome == CROWDED and under_way is not None and under_way.resume_at < 0:
            self._pause(conn, under_way)

    # --- backpressure ---------------------------------------------------------------------------------

    def _hold(self, conn: int, size: int) -> None:
        """Count one more command that waits for the bus; pause reading from its connection at the limit."""
        under_way = self._under_way.get(conn)
        if under_way is None:
            under_way = self._under_way[conn] = _UnderWay()
        under_way.commands += 1
        under_way.size += size
        if under_way.resume_at < 0 and (
            under_way.commands >= UNDER_WAY_LIMIT or under_way.size >= UNDER_WAY_LIMIT_BYTES
        ):
            self._pause(conn, under_way)

    def _pause(self, conn: int, under_way: _UnderWay) -> None:
        """Pause reading from a connection until half of its commands that wait now are answered."""
        under_way.resume_at = under_way.commands // 2
        self._pauses.pause(conn, Pauser.COMMANDS)

    def _release(self, conn: int, size: int) -> None:
        """Count one command less that waits for the bus, and resume reading when few enough are left."""
        under_way = self._under_way.get(conn)
        if under_way is None:
            return  # the connection is closed
        under_way.commands -= 1
        under_way.size -= size
        if under_way.commands <= under_way.resume_at:
            under_way.resume_at = -1
            self._pauses.resume(conn, Pauser.COMMANDS)
        if not under_way.commands:
            del self._under_way[conn]
