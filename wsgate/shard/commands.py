"""What a client's command does: one table from command to handler.

A handler is `(conn, dialect, member, command)`. It answers through the sessions, later if it waits
for the bus. Who has shown no token yet may say `auth` and `ping`, and nothing else.

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
from wsgate.reactor import Reactor
from wsgate.reasons import Reason
from wsgate.shard.byes import RETRY_MS
from wsgate.shard.hub import Watch
from wsgate.shard.options import ANONYMOUS_MEMBER
from wsgate.shard.pausing import Pauser
from wsgate.shard.sessions import Sessions
from wsgate.shard.welcome import ConnectRequest, shown
from wsgate.turns import CROWDED, Sender

__all__ = ["Commands"]

UNDER_WAY_LIMIT: Final = 64
UNDER_WAY_LIMIT_BYTES: Final = 256 * 1024
"""Commands of one connection that await the bus, and their bytes, above which it is not read."""

UNDER_WAY_BYTES: Final = 250
"""Memory of what is remembered about a connection of which something is under way."""

Handler = Callable[[int, Dialect, Member, Any], None]


class _UnderWay:
    """What of one connection awaits the bus, and from how little of it on the connection is read again."""

    __slots__ = ("commands", "resume_at", "size")

    def __init__(self) -> None:
        self.commands = 0
        self.size = 0
        self.resume_at = -1  # commands; -1: it is read


class Commands:
    """Runs the commands of one shard's clients."""

    def __init__(
        self,
        reactor: Reactor,
        sessions: Sessions,
        publisher: BusPublisher,
        names: Names,
        wake: Callable[[], None],
        unheard: Callable[[bytes], None],
    ) -> None:
        """Over the shard's parts.

        Args:
            reactor: Holds the clients.
            sessions: Answers them.
            publisher: The way to the bus.
            names: What channels are called there.
            wake: Asks for a pass, because an answer of the bus comes between two.
            unheard: Called with a name this shard is subscribed to, when the bus had nobody to hand it to.
        """
        self._reactor = reactor
        self._sessions = sessions
        self._publisher = publisher
        self._names = names
        self._wake = wake
        self._unheard = unheard
        self._count = sessions.count
        self._users = sessions.users
        sessions.run = self.run
        self._under_way: dict[int, _UnderWay] = {}
        self._rates: PublishRates | None = None
        self._rate = 0, 0  # publishes per second, and at once
        self.budget = ByteBudget(sessions.options.byte_rates)  # of bytes onto the bus
        self.renew()
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
        """Run one message of a connection.

        Args:
            conn: Its handle.
            dialect: What it speaks.
            message: As it came.
            opcode: 1 text, 2 binary.
        """
        sessions = self._sessions
        if sessions.ended and conn in sessions.ended:
            return  # said in the same breath as what it was closed for
        if sessions.held and sessions.hold(conn, message, opcode):
            return
        if opcode != dialect.opcode:
            sessions.end(conn, dialect, Reason.UNSUPPORTED_DATA)
            return
        command = dialect.decode(message)
        if type(command) is BadCommand:
            sessions.error(conn, dialect, command.error, id=command.id, channel=command.ch)
            sessions.bad_message(conn, dialect, is_malformed=command.is_malformed)
            return
        sessions.good_message(conn)
        counter, handler = self._handlers[type(command)]
        self._count(counter, 1)
        member: Member | None = self._reactor.meta(conn)
        if member is None:
            if type(command) not in (commands.Auth, commands.Ping):
                channel = getattr(command, "ch", None)
                sessions.error(conn, dialect, "unauthorized", id=command.id, channel=channel)
                return
            member = ANONYMOUS_MEMBER
        rates = self._users.rates
        if rates is not None and member.user_utf8 and type(command) is not commands.Ping:
            wait_ms = rates.take(member.user, time.monotonic())
            if wait_ms:
                channel = getattr(command, "ch", None)
                sessions.error(
                    conn, dialect, "rate_limited", id=command.id, channel=channel, retry_ms=wait_ms
                )
                return
        handler(conn, dialect, member, command)

    def renew(self) -> None:
        """Other options of the sessions, from now on."""
        options = self._sessions.options
        rate, burst = options.publish_rate_per_s, options.publish_burst or options.publish_rate_per_s
        if (rate, burst) != self._rate:  # else the buckets stay as they are
            self._rate = rate, burst
            self._rates = PublishRates(rate, burst, time.monotonic()) if rate else None

    @property
    def waiting_bytes(self) -> int:
        """Memory of what is remembered about connections that publish, in bytes."""
        return len(self._under_way) * UNDER_WAY_BYTES + (self._rates.bytes_estimate if self._rates else 0)

    def forget(self, conn: int) -> None:
        """The connection is gone."""
        if self._under_way:
            self._under_way.pop(conn, None)
        if self._rates is not None:
            self._rates.forget(conn)
        self.budget.forget(conn)

    def _is_over_budget(
        self, conn: int, dialect: Dialect, size: int, id: int | None, channel: str | None
    ) -> bool:
        """Whether a client has put too many bytes onto the bus; it is told when to try again."""
        wait_ms = self.budget.take(conn, size, time.monotonic())
        if wait_ms:
            self._count("publishes_over_bytes", 1)
            self._sessions.error(conn, dialect, "rate_limited", id=id, channel=channel, retry_ms=wait_ms)
        return wait_ms > 0

    # --- who somebody is ------------------------------------------------------------------------------

    def _auth(self, conn: int, dialect: Dialect, member: Member, command: commands.Auth) -> None:
        if member.user_utf8:
            # A new token comes by `refresh`.
            self._sessions.error(conn, dialect, "bad_request", id=command.id)
            return
        sessions, token = self._sessions, command.token
        showing = ConnectRequest(command.id, command.positions or {})
        known = sessions.tokens.recall(token, time.time())
        if known is not None:
            sessions.welcome(conn, dialect, known, showing)
            return
        sessions.await_token(
            conn, dialect, token, partial(sessions.authenticate, conn, dialect, token, showing)
        )

    def _refresh(self, conn: int, dialect: Dialect, member: Member, command: commands.Refresh) -> None:
        """A later end for the connection, and the permissions of the new token."""
        known = self._sessions.tokens.recall(command.token, time.time())
        if known is not None:
            self._refreshed(conn, dialect, command, known)
            return
        act = partial(self._verify_refresh, conn, dialect, command)
        self._sessions.await_token(conn, dialect, command.token, act)

    def _verify_refresh(self, conn: int, dialect: Dialect, command: commands.Refresh) -> bool:
        """Judge a `refresh` whose token was not seen before; whether the token was good."""
        try:
            fresh = self._sessions.tokens.connection(command.token, time.time())
        except TokenError as error:
            self._sessions.token_error(conn, dialect, error, id=command.id)
            return False
        self._refreshed(conn, dialect, command, fresh)
        return True

    def _refreshed(self, conn: int, dialect: Dialect, command: commands.Refresh, fresh: Identity) -> None:
        """The token of a `refresh` is good: it counts from now on if it is of the same user."""
        sessions = self._sessions
        member: Member | None = self._reactor.meta(conn)
        if member is None:
            return  # gone meanwhile
        if fresh.user != member.user:
            sessions.error(conn, dialect, "permission_denied", id=command.id)
            return
        sessions.keep(conn, fresh, member)
        sessions.set_expiry(conn, fresh)
        if command.id is not None:
            expires_s = max(0, int(fresh.expires_at_s - time.time())) if fresh.expires_at_s else None
            self._reactor.send(conn, dialect.ok(command.id, expires_s=expires_s), dialect.opcode)

    def _ping(self, conn: int, dialect: Dialect, member: Member, command: commands.Ping) -> None:
        self._reactor.send(conn, dialect.pong(command.id), dialect.opcode)

    # --- channels -------------------------------------------------------------------------------------

    def _subscribe(self, conn: int, dialect: Dialect, member: Member, command: commands.Subscribe) -> None:
        sessions = self._sessions
        if command.token is None:
            sessions.subscribe(conn, dialect, command.ch, command.id, position=command.position)
            return
        name = sessions.name_of(member, command.ch)
        if name is None or name.startswith(b"@"):
            sessions.error(conn, dialect, "bad_request", id=command.id, channel=command.ch)
            return
        act = partial(self._verify_subscribe, conn, dialect, command, command.token, name)
        sessions.await_token(conn, dialect, command.token, act)

    def _verify_subscribe(
        self, conn: int, dialect: Dialect, command: commands.Subscribe, token: str, name: bytes
    ) -> bool:
        """Judge a `sub` with a token of the channel, which no cache holds; whether the token was good."""
        sessions, channel = self._sessions, command.ch
        member: Member | None = self._reactor.meta(conn)
        if member is None:
            return True  # gone meanwhile
        try:
            sessions.tokens.channel(token, channel, member.user, time.time())
        except TokenError as error:
            sessions.token_error(conn, dialect, error, id=command.id, channel=channel)
            return False
        if fault := sessions.access.may_subscribe(member, channel, has_channel_token=True):
            sessions.error(conn, dialect, fault, id=command.id, channel=channel)
        else:
            sessions.join(conn, dialect, name, command.id, position=command.position)
        return True

    def _unsubscribe(
        self, conn: int, dialect: Dialect, member: Member, command: commands.Unsubscribe
    ) -> None:
        """Leave a channel; leaving one that was not held is answered the same: it is not held."""
        name = self._sessions.name_of(member, command.ch)
        if name is None:
            self._sessions.error(conn, dialect, "bad_request", id=command.id, channel=command.ch)
            return
        self._sessions.leave(conn, name)
        self._reactor.send(conn, dialect.unsubscribed(shown(name), command.id), dialect.opcode)

    def _ask(self, conn: int, dialect: Dialect, member: Member, command: Any) -> None:
        """Answer `not_available` to a client that may subscribe to the channel: neither is built yet.

        It is final and no matter of permissions, so that nobody looks for one.
        """
        sessions = self._sessions
        name = sessions.name_of(member, command.ch)
        fault = "bad_request" if name is None else None
        if name is not None and not name.startswith(b"@"):
            fault = sessions.access.may_subscribe(member, command.ch)
        sessions.error(conn, dialect, fault or "not_available", id=command.id, channel=command.ch)

    def _send(self, conn: int, dialect: Dialect, member: Member, command: commands.Send) -> None:
        """To the backend's event stream, where one listens."""
        events = self._sessions.events
        if not events.takes_messages:
            self._sessions.error(conn, dialect, "permission_denied", id=command.id)
            return
        payload = dialect.payload(command)
        if payload is None:
            self._sessions.error(conn, dialect, "bad_request", id=command.id)
            return
        size = len(payload.data)
        if self._is_over_budget(conn, dialect, size, command.id, None):
            return
        self._hold(conn, size)
        done = partial(self._sent, conn, dialect, command.id, size)
        if refused := events.message(conn, member, payload, self._sender(conn, member), done):
            done(refused)

    def _sent(self, conn: int, dialect: Dialect, id: int | None, size: int, outcome: str) -> None:
        self._release(conn, size)
        self._wake()
        self._count("events_refused" if outcome else "events_taken", 1)
        if outcome:
            self._fail(conn, dialect, id, None, outcome)
        elif id is not None:
            self._reactor.send(conn, dialect.ok(id), dialect.opcode)

    # --- publishing -----------------------------------------------------------------------------------

    def _publish(self, conn: int, dialect: Dialect, member: Member, command: commands.Publish) -> None:
        sessions, channel = self._sessions, command.ch
        name = sessions.name_of(member, channel)
        fault = "bad_request" if name is None else None
        if name is not None:
            is_inbox = name.startswith(b"@")
            fault = "permission_denied" if is_inbox else sessions.access.may_publish(member, channel)
        payload = dialect.payload(command) if fault is None else None
        if fault is None:
            fault = self._payload_fault(channel, payload)
        if fault or name is None or payload is None:
            sessions.error(conn, dialect, fault or "bad_request", id=command.id, channel=channel)
            return
        if self._rates is not None and (wait_ms := self._rates.take(conn, time.monotonic())):
            self._count("publishes_over_rate", 1)
            sessions.error(conn, dialect, "rate_limited", id=command.id, channel=channel, retry_ms=wait_ms)
            return
        if self._is_over_budget(conn, dialect, len(payload.data), command.id, channel):
            return
        if not sessions.hub.receives(name):
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
        watch = sessions.hub.watch(name)
        done = partial(self._published, conn, dialect, command.id, name, len(data), watch)
        sender = self._sender(conn, member)
        self._publisher.publish(self._names.channel(name), data, done, sender, must_reach=watch is not None)

    def _sender(self, conn: int, member: Member) -> Sender:
        """Whose turn it takes: a user's, or, without one, its address's."""
        return Sender(member.user or self._reactor.origin(conn), conn)

    def _payload_fault(self, channel: str, payload: Payload | None) -> str | None:
        if payload is None:
            return "bad_request"
        if len(payload.data) > self._sessions.access.max_publish_bytes(channel):
            return "too_large"
        return None

    def _published(
        self,
        conn: int,
        dialect: Dialect,
        id: int | None,
        name: bytes,
        size: int,
        watch: Watch | None,
        outcome: str,
    ) -> None:
        """Answer a publish: `ok` only when the bus has it and this shard receives from the bus."""
        hub = self._sessions.hub
        self._release(conn, size)
        self._wake()
        is_unbroken = watch is not None and hub.unwatch(name, watch)
        if outcome == "unheard":
            if is_unbroken:
                self._unheard(self._names.channel(name))
            else:
                outcome = ""  # the last subscriber here left meanwhile
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
        """Answer what the bus does not have. Who has too much under way is not read until it has less."""
        name = "rate_limited" if outcome == CROWDED else "unavailable"
        self._sessions.error(conn, dialect, name, id=id, channel=channel, retry_ms=RETRY_MS)
        under_way = self._under_way.get(conn)
        if outcome == CROWDED and under_way is not None and under_way.resume_at < 0:
            self._pause(conn, under_way)

    # --- backpressure ---------------------------------------------------------------------------------

    def _hold(self, conn: int, size: int) -> None:
        """One more command of this connection awaits the bus; too many, and it is not read."""
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
        under_way.resume_at = under_way.commands // 2
        self._sessions.pauses.pause(conn, Pauser.COMMANDS)

    def _release(self, conn: int, size: int) -> None:
        under_way = self._under_way.get(conn)
        if under_way is None:
            return  # the connection is gone
        under_way.commands -= 1
        under_way.size -= size
        if under_way.commands <= under_way.resume_at:
            under_way.resume_at = -1
            self._sessions.pauses.resume(conn, Pauser.COMMANDS)
        if not under_way.commands:
            del self._under_way[conn]
