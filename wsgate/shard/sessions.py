"""What a connection is told about itself: welcome, subscriptions, errors, goodbye.

Owns no object per connection. Who somebody is stands in the reactor as meta: a `Member`, its permissions
shared by equals, or nothing while no token was shown. What is here per connection is only what is under
way: a welcome or a subscription that waits for the bus, what a client without a token asked for, messages
that made no sense, a Close that is on its way.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, NamedTuple

from msgspec.structs import replace

from wsgate.auth import Identity, Member, TokenError
from wsgate.bus.names import INBOX_MARK
from wsgate.dialects import Dialect, is_channel
from wsgate.reactor import Reactor
from wsgate.reasons import REASONS, Reason
from wsgate.shard.access import Access
from wsgate.shard.backend_events import Events, Tracked
from wsgate.shard.byes import RETRY_MS, bye, common_byes
from wsgate.shard.handshakes import Entry
from wsgate.shard.hub import Confirmation, Hub, Joined
from wsgate.shard.options import ANONYMOUS, ANONYMOUS_MEMBER, ShardOptions
from wsgate.shard.pausing import Pauser, Pauses
from wsgate.shard.publication_encoder import DIALECT_OF
from wsgate.shard.tokens import Tokens
from wsgate.shard.users import Users
from wsgate.shard.welcome import NO_REQUEST, ByteAccount, ConnectRequest, Welcome, shown

__all__ = ["Sessions", "now_ms", "wall_ms"]

BAD_MESSAGES_LIMIT = 3
ASKED_LIMIT = 16
"""Subscriptions of one connection to one channel that may wait for the bus: a recovery may be repeated."""
ASKED_BYTES = 1_000
"""Of one that waits, with its places in the hub's tables: 416 of a repeated one, 1,345 of a lone one."""
WELCOME_BYTES = 1_000
UNAUTHENTICATED_BYTES = 200
DEFERRED_LIMIT = 16
"""Control commands kept for one connection that waits for its 101."""
HELD_BYTES = 100
"""Of a message that is held, beside its own bytes."""
CROWDED_RETRY_MS = 2_000, 15_000
"""When one may come back whose user has too many connections, or whose shard too little memory."""
FORBIDDEN_CODE: Final = 4503
"""In an `unsubbed` that nobody asked for: the channel is forbidden, now and later."""
NOT_NOW = {
    Joined.BEHIND: ("rate_limited", "subscriptions_behind"),
    Joined.FULL: ("unavailable", "subscriptions_bus_memory"),
}
"""Subscriptions refused for a reason that passes: the error, and the counter of the reason."""


def now_ms() -> int:
    """The clock the reactor is driven by: monotonic milliseconds."""
    return time.monotonic_ns() // 1_000_000


def wall_ms() -> int:
    """The wall clock in milliseconds since 1970: what tokens are dated with."""
    return time.time_ns() // 1_000_000


def _retry_ms_of(error: TokenError) -> int | None:
    """When the bearer of a token may show the same token again, in milliseconds; None: never."""
    if error.is_early:
        spread_ms = random.randint(0, RETRY_MS)  # noqa: S311 - spreading, not secrecy
        return math.ceil(error.retry_s * 1000) + spread_ms
    return RETRY_MS if error.is_awaited else None


class _PendingReply(NamedTuple):
    """A `sub` that the bus has not confirmed yet."""

    dialect: Dialect
    id: int | None
    recovered: bool | None
    was_held: bool  # before it: a recovery in place


class Sessions:
    """All sessions of one shard."""

    def __init__(
        self,
        options: ShardOptions,
        reactor: Reactor,
        hub: Hub,
        access: Access,
        tokens: Tokens,
        count: Callable[[str, int], None],
        events: Events,
        users: Users,
    ) -> None:
        """Over the shard's reactor and hub; sets what is said before a Close the reactor sends."""
        self.reactor = reactor
        self.hub = hub
        self.access = access
        self.tokens = tokens
        self._permissions = tokens.permissions
        self.count = count
        self.events = events
        self.users = users
        self.unauthenticated: dict[int, ConnectRequest] = {}
        self._welcomes: dict[int, Welcome] = {}
        self._asked: dict[int, dict[bytes, list[_PendingReply]]] = {}
        self.pauses = Pauses(reactor)
        self.held: dict[int, list[tuple[bytes, int]]] = {}  # what they say until it is known if they stay
        self._deferred: dict[int, list[Callable[[], None]]] = {}  # of those whose 101 waits for the bus
        self._held_bytes = 0  # of that
        self._shown = ByteAccount()  # what came with who waits, for its token or its welcome
        self._asked_count = 0
        self.run: Callable[[int, Dialect, bytes, int], None] = lambda *_: None  # how that is run
        # Verifies a token of so many bytes in its turn; the shard's own turns are set by the process.
        self.verify_later: Callable[[int, int, Callable[[], bool]], object] = lambda _conn, _size, act: act()
        self.ended: set[int] = set()  # Close is queued: what they said after it is not run
        self._bad_messages: dict[int, int] = {}
        self.renew(options)
        spoken = self._spoken()
        for reason, rank, messages in common_byes():
            byes = [messages[dialect] for dialect in spoken]
            reactor.set_bye(REASONS[reason].close_code, byes, reason=reason, rank=rank)
        self.spread_shed()

    @property
    def waiting_bytes(self) -> int:
        """On the books: everything kept for those for whom something is under way."""
        return (
            self._held_bytes
            + self._shown.total_bytes
            + self._asked_count * ASKED_BYTES
            + len(self.unauthenticated) * UNAUTHENTICATED_BYTES
        )

    def renew(self, options: ShardOptions) -> None:
        """Other options, from now on."""
        self.options = options
        self._ping_s = options.reactor.ping_interval_ms // 1000

    def _spoken(self) -> tuple[Dialect, ...]:
        """The dialect of each variant that the reactor is configured for."""
        return DIALECT_OF[: len(self.options.reactor.variant_opcodes)]

    def spread_shed(self) -> None:
        """Advise another random `retry_ms` to clients that are cut from now on for want of memory."""
        retry_ms = random.randint(*CROWDED_RETRY_MS)  # noqa: S311 - spreading, not secrecy
        byes = [bye(dialect, Reason.SHED, retry_ms) for dialect in self._spoken()]
        self.reactor.set_bye(REASONS[Reason.SHED].close_code, byes, reason=Reason.SHED)

    # --- beginning ------------------------------------------------------------------------------------

    def count_first(self, conn: int, entry: Entry) -> bool:
        """Whether the bus is asked before 101 is said, because it is known whose connection this is.

        One write less than to say 101, wait, and say welcome: 10 us of a handshake. What the client says
        meanwhile waits unread.
        """
        identity = entry.identity
        if not self.users.is_counting or identity is None or not identity.user:
            return False
        self._own(conn, identity)
        self._deferred[conn] = []
        self._shown.book(conn, _showing_of(entry).size_bytes + WELCOME_BYTES)
        self.users.enter(conn, identity.user, partial(self._on_counted_first, conn, entry, identity))
        return True

    def _own(self, conn: int, identity: Identity) -> None:
        """From here on the index by user contains the connection, so control commands find it."""
        member = identity.member()
        self._set_member(conn, member)
        self.reactor.set_user(conn, member.user_utf8, issued_s=identity.issued_at_s)

    def _set_member(self, conn: int, member: Member) -> None:
        """Attach to a connection who it is. Its permission set is shared, and accounted while it is held."""
        before: Member | None = self.reactor.meta(conn)
        shared = self._permissions.hold(member.permissions)
        if shared is not member.permissions:
            member = replace(member, permissions=shared)
        is_there = self.reactor.set_meta(conn, member)
        if not is_there:
            self._permissions.release(shared)
        elif before is not None:
            self.release_member(before)

    def release_member(self, member: Member) -> None:
        """A connection is gone, or is somebody else now: it holds this permission set no longer."""
        self._permissions.release(member.permissions)

    def refuse_waiting(self, response: Callable[[], bytes]) -> None:
        """Refuse every connection whose 101 still waits for the bus, because the shard ends.

        Args:
            response: Makes the HTTP answer of one.
        """
        for conn in list(self._deferred):
            self.reactor.refuse(conn, response())

    def defer(self, conn: int, act: Callable[[], None]) -> bool:
        """Keep what is to be done to a connection until its 101 was sent; False: it was sent already.

        The peer can be told nothing before that. One that gets more of these than `DEFERRED_LIMIT` while its
        user is counted is refused instead.
        """
        deferred = self._deferred.get(conn)
        if deferred is None:
            return False
        if len(deferred) < DEFERRED_LIMIT:
            deferred.append(act)
        else:
            self.reactor.abort(conn, reason=Reason.KICKED)
        return True

    def _on_counted_first(self, conn: int, entry: Entry, identity: Identity, may_stay: bool) -> None:
        deferred = self._deferred.pop(conn, [])
        if not self.reactor.upgrade(conn, entry.response, variant=entry.variant):
            return  # gone meanwhile, or it waited for too long
        if not may_stay:
            self._end_crowded(conn, entry.dialect)
            return
        with self._ends_on_fault(conn, entry.dialect):
            self.set_expiry(conn, identity)
            for act in deferred:
                act()
            if conn not in self.ended:
                self._settle(conn, entry.dialect, identity, _showing_of(entry))

    def begin(self, conn: int, entry: Entry) -> None:
        """Go on after 101: welcome, or the deadline for a first token."""
        showing = _showing_of(entry)
        if entry.late_token is not None:
            self.authenticate(conn, entry.dialect, entry.late_token, showing)
        elif entry.identity is not None:
            self.welcome(conn, entry.dialect, entry.identity, showing)
        elif self.options.allow_anonymous:
            self.welcome(conn, entry.dialect, ANONYMOUS, showing)
        else:
            self.unauthenticated[conn] = showing
            self._shown.book(conn, showing.size_bytes)
            self.reactor.set_deadline(
                conn,
                now_ms() + self.options.auth_timeout_ms,
                REASONS[Reason.AUTH_TIMEOUT].close_code,
                is_forgiven=True,
            )

    def await_token(self, conn: int, dialect: Dialect, token: str, act: Callable[[], bool]) -> None:
        """Go on with a command when it is the turn of its token, which was not seen before.

        The connection is not read meanwhile, and what it has said already runs afterwards, in order.

        Args:
            conn: The connection, of which no token may wait already.
            dialect: What it speaks.
            token: What is to be verified.
            act: Verifies it and answers the command. It returns whether the token was good.
        """
        self.held[conn] = []
        self.pauses.pause(conn, Pauser.TOKEN)
        self.verify_later(conn, len(token), partial(self._on_turn, conn, dialect, act))

    def _on_turn(self, conn: int, dialect: Dialect, act: Callable[[], bool]) -> bool:
        """It is the turn of a token that waited: verify it, then run what was said behind it."""
        said = self._take_held(conn)
        if said is None:
            return True  # gone meanwhile
        try:
            with self._ends_on_fault(conn, dialect):
                if conn in self.ended:
                    return True  # a control command ended it meanwhile
                is_good = act()
                for message, opcode in said:
                    self.run(conn, dialect, message, opcode)
                return is_good
        finally:
            self.pauses.resume(conn, Pauser.TOKEN)

    def authenticate(
        self, conn: int, dialect: Dialect, token: str, showing: ConnectRequest = NO_REQUEST
    ) -> bool:
        """Judge a token shown after 101: welcome, or error, bye and Close. Whether it was good."""
        try:
            identity = self.tokens.connection(token, time.time())
        except TokenError as error:
            # Until it is gone it is one of those who have shown nothing, by whatever way it came.
            self.unauthenticated.setdefault(conn, NO_REQUEST)
            retry_ms = self.token_error(conn, dialect, error, id=showing.id, is_closing=True)
            self.end(conn, dialect, Reason(error.reason), retry_ms=retry_ms or RETRY_MS)
            return False
        self.welcome(conn, dialect, identity, showing)
        return True

    def welcome(
        self, conn: int, dialect: Dialect, identity: Identity, showing: ConnectRequest = NO_REQUEST
    ) -> None:
        """Make somebody of a connection: its meta, its deadline, its channels, then `welcome`."""
        if self.unauthenticated:
            showing = showing.behind(self.unauthenticated.pop(conn, NO_REQUEST))
        self._shown.book(conn, showing.size_bytes)
        if self.users.is_counting and identity.user:
            # The user is known but not admitted yet. Buffer its messages, at most one turn of reading, until
            # the bus has counted it.
            self._own(conn, identity)
            self.set_expiry(conn, identity)
            self.held[conn] = []
            self._shown.book(conn, showing.size_bytes + WELCOME_BYTES)
            self.pauses.pause(conn, Pauser.LOGIN)
            self.users.enter(conn, identity.user, partial(self._on_counted, conn, dialect, identity, showing))
            return
        self.set_expiry(conn, identity)
        self._settle(conn, dialect, identity, showing)

    def _settle(self, conn: int, dialect: Dialect, identity: Identity, showing: ConnectRequest) -> None:
        """The connection is admitted; its expiry is set, and perhaps brought forward by a control command."""
        member = self.keep(conn, identity, None)
        if self.events.is_on:
            self.events.connected(conn, member)
        if identity is ANONYMOUS:
            self.send_welcome(conn, dialect, identity, has_bus=self.hub.is_live)
            self.subscribe_asked(conn, dialect, showing)
            self._shown.give_back(conn)
            return
        welcome = Welcome(self, conn, dialect, identity, showing)
        for name, policy in self._own_channels(identity):
            welcome.join(name, policy)
        welcome.begin()
        if welcome.is_done:
            self._shown.give_back(conn)
        else:
            self._welcomes[conn] = welcome
            waiting = 1 + len(identity.permissions.channels)
            self._shown.book(conn, showing.size_bytes + WELCOME_BYTES + waiting * ASKED_BYTES)

    def _on_counted(
        self, conn: int, dialect: Dialect, identity: Identity, showing: ConnectRequest, may_stay: bool
    ) -> None:
        """The bus has counted a connection of its user, or there are too many."""
        said = self._take_held(conn)
        if said is None:
            return  # gone meanwhile
        try:
            with self._ends_on_fault(conn, dialect):
                if conn in self.ended:
                    return  # a control command ended it while its user was counted
                if not may_stay:
                    self._end_crowded(conn, dialect)
                    return
                self._settle(conn, dialect, identity, showing)
                for message, opcode in said:
                    self.run(conn, dialect, message, opcode)
        finally:
            self.pauses.resume(conn, Pauser.LOGIN)

    @contextmanager
    def _ends_on_fault(self, conn: int, dialect: Dialect) -> Iterator[None]:
        """End the connection if its login raises, which is a fault of ours: it would wait for ever.

        The exception goes on, to the log of the callback that it was raised in.
        """
        try:
            yield
        except Exception:
            self.end(conn, dialect, Reason.INTERNAL)
            raise

    def _end_crowded(self, conn: int, dialect: Dialect) -> None:
        retry_ms = random.randint(*CROWDED_RETRY_MS)  # noqa: S311 - spreading, not secrecy
        self.end(conn, dialect, Reason.USER_CONNECTIONS, retry_ms=retry_ms)

    def _take_held(self, conn: int) -> list[tuple[bytes, int]] | None:
        said = self.held.pop(conn, None)
        if said:
            self._held_bytes -= sum(len(message) + HELD_BYTES for message, _ in said)
        return said

    def hold(self, conn: int, message: bytes, opcode: int) -> bool:
        """Keep what a connection says until it is known whether it stays; False: that is known."""
        said = self.held.get(conn)
        if said is None:
            return False
        said.append((message, opcode))
        self._held_bytes += len(message) + HELD_BYTES
        return True

    def keep(self, conn: int, identity: Identity, before: Member | None) -> Member:
        """Store the user and permissions of a connection, and enter it in the index by user.

        Args:
            conn: The connection.
            identity: From the token that it showed last.
            before: What the connection kept until now; None: it was not admitted before.

        Returns:
            What the connection keeps from now on; with the time of its admission where events are on.
        """
        member = ANONYMOUS_MEMBER
        if self.events.is_on:
            since_ms = before.since_ms if isinstance(before, Tracked) else now_ms()
            member = self.events.member(identity, since_ms)
        elif identity is not ANONYMOUS:
            member = identity.member()
        self._set_member(conn, member)
        if member.user_utf8:
            self.reactor.set_user(conn, member.user_utf8, issued_s=identity.issued_at_s)
        return member

    def want_refresh(self, conn: int, dialect: Dialect, within_s: int) -> None:
        """Ask for a fresh token; who shows none in time is closed as if its token had expired."""
        code = REASONS[Reason.TOKEN_EXPIRED].close_code
        if self.reactor.set_expiry(conn, wall_ms() + within_s * 1000, code, only_sooner=True):
            self.reactor.send(conn, dialect.refresh(within_s), dialect.opcode)

    def forget_welcome(self, conn: int) -> None:
        """It was said, and so was everything that follows it."""
        self._welcomes.pop(conn, None)
        self._shown.give_back(conn)

    def _own_channels(self, identity: Identity) -> Iterable[tuple[bytes, int]]:
        """The inbox, and what the token subscribes to."""
        yield (INBOX_MARK + identity.user).encode(), self.options.inbox_slow_consumer
        for channel in identity.permissions.channels:
            rules = self.access.rules(channel)
            yield channel.encode(), rules.slow_consumer if rules else 0

    def set_expiry(self, conn: int, identity: Identity) -> None:
        """End the connection when its token expires, leeway included; a token without `exp` never does.

        Expiry is wall-clock time: a pause of the process does not prolong a token.
        """
        code = REASONS[Reason.TOKEN_EXPIRED].close_code
        if identity.expires_at_s:
            ends_at_s = identity.expires_at_s + self.options.tokens.leeway_s
            self.reactor.set_expiry(conn, max(1, int(ends_at_s * 1000)), code)
        else:
            self.reactor.set_deadline(conn, 0, code)

    # --- subscribing ----------------------------------------------------------------------------------

    def subscribe(
        self, conn: int, dialect: Dialect, channel: str, id: int | None, *, position: str | None = None
    ) -> None:
        """Subscribe to a channel that this connection may subscribe to, or say why not."""
        member: Member | None = self.reactor.meta(conn)
        if member is None:
            return  # gone before its welcome
        name = self.name_of(member, channel)
        fault = "bad_request" if name is None else None
        if name is not None and not name.startswith(b"@"):
            fault = self.access.may_subscribe(member, channel)
        if fault or name is None:
            self.error(conn, dialect, fault or "bad_request", id=id, channel=channel)
            return
        self.join(conn, dialect, name, id, position=position)

    def join(
        self, conn: int, dialect: Dialect, name: bytes, id: int | None, *, position: str | None = None
    ) -> None:
        """Subscribe to a channel by its name on the bus; permission is given.

        With a position it is a recovery, in place when the channel is held already. No channel has a
        history, so what was missed can never be proven complete.
        """
        if not self.hub.is_live_for(name):
            self.error(conn, dialect, "unavailable", id=id, channel=shown(name), retry_ms=RETRY_MS)
            return
        is_inbox = name.startswith(b"@")
        rules = None if is_inbox else self.access.rules(shown(name))
        policy = rules.slow_consumer if rules else self.options.inbox_slow_consumer
        recovered = None if position is None else False
        waiter = partial(self._told, conn)
        joined = self.hub.join(conn, name, policy, waiter)
        was_held = joined is Joined.ALREADY
        if was_held and recovered is not None:
            if len(self._asked.get(conn, {}).get(name, ())) >= ASKED_LIMIT:
                joined = Joined.TOO_MANY
            else:
                joined = self.hub.confirm(conn, name, waiter)
        if joined is Joined.WAITS:
            asked = _PendingReply(dialect, id, recovered, was_held)
            self._asked.setdefault(conn, {}).setdefault(name, []).append(asked)
            self._asked_count += 1
        elif joined is Joined.LIVE:
            self.send_subscribed(conn, dialect, name, id, recovered=recovered, is_new=not was_held)
        elif joined is Joined.ALREADY:
            self.error(conn, dialect, "already_subscribed", id=id, channel=shown(name))
        elif joined is Joined.TOO_MANY:
            self.error(conn, dialect, "rate_limited", id=id, channel=shown(name))
        elif joined is Joined.REFUSED:
            self.refuse_for_good(conn, dialect, name, id)
        elif joined in NOT_NOW:
            self.refuse_for_now(conn, dialect, name, joined, id)

    def refuse_for_now(
        self, conn: int, dialect: Dialect, name: bytes, joined: Joined, id: int | None = None
    ) -> None:
        """Refuse a subscription for a reason that passes, and count the reason."""
        error, counter = NOT_NOW[joined]
        self.count(counter, 1)
        retry_ms = random.randint(RETRY_MS, 2 * RETRY_MS)  # noqa: S311 - spreading, not secrecy
        self.error(conn, dialect, error, id=id, channel=shown(name), retry_ms=retry_ms)

    def refuse_for_good(self, conn: int, dialect: Dialect, name: bytes, id: int | None = None) -> None:
        """Refuse a subscription because the bus forbids the channel, and count the reason."""
        self.count("subscriptions_forbidden", 1)
        detail = "the bus does not let the gateway subscribe to this channel"
        self.error(conn, dialect, "permission_denied", id=id, channel=shown(name), detail=detail)

    def on_taken(self, conn: int, name: bytes) -> None:
        """Tell a connection that it holds a channel no more, because the bus forbids it now."""
        dialect = DIALECT_OF[self.reactor.variant(conn)]
        self.count("subscriptions_forbidden", 1)
        self.reactor.send(
            conn, dialect.taken(shown(name), FORBIDDEN_CODE, "permission_denied"), dialect.opcode
        )
        if self.events.tells_subscriptions:
            self.events.unsubscribed(conn, self.reactor.meta(conn), name)

    def _told(self, conn: int, name: bytes, confirmation: Confirmation) -> None:
        """Answer every `sub` of a connection that waits for this channel."""
        asked = self._take_asked(conn, name)
        is_live = confirmation is Confirmation.LIVE
        if not is_live and any(not each.was_held for each in asked):
            self.hub.leave(conn, name)
        for dialect, id, recovered, was_held in asked:
            if confirmation is Confirmation.REFUSED:
                self.refuse_for_good(conn, dialect, name, id)
            elif is_live:
                self.send_subscribed(conn, dialect, name, id, recovered=recovered, is_new=not was_held)
            else:
                self.error(conn, dialect, "unavailable", id=id, channel=shown(name), retry_ms=RETRY_MS)

    def _take_asked(self, conn: int, name: bytes) -> list[_PendingReply]:
        names = self._asked.get(conn)
        asked = names.pop(name, []) if names else []
        self._asked_count -= len(asked)
        if names is not None and not names:
            del self._asked[conn]
        return asked

    def subscribe_asked(self, conn: int, dialect: Dialect, showing: ConnectRequest) -> None:
        """Subscribe to what the URL asked for, as if the client had said so behind `welcome`."""
        for channel in showing.channels:
            self.subscribe(conn, dialect, channel, None, position=showing.positions.get(channel))

    def leave(self, conn: int, name: bytes) -> None:
        """Unsubscribe; a `sub` that still waits is answered first, because it came first."""
        for dialect, id, recovered, was_held in self._take_asked(conn, name):
            self.send_subscribed(conn, dialect, name, id, recovered=recovered, is_new=not was_held)
        if self.hub.leave(conn, name) and self.events.tells_subscriptions:
            self.events.unsubscribed(conn, self.reactor.meta(conn), name)
        if self._welcomes and (welcome := self._welcomes.get(conn)) is not None:
            welcome.left(name)

    def name_of(self, member: Member, channel: str) -> bytes | None:
        """A channel's name on the bus; None for one that no client may say."""
        if channel == "@me":
            return INBOX_MARK.encode() + member.user_utf8 if member.user_utf8 else None
        if not is_channel(channel, self.options.max_channel_name_bytes):
            return None
        return channel.encode()

    # --- telling --------------------------------------------------------------------------------------

    def send_welcome(
        self, conn: int, dialect: Dialect, identity: Identity, *, has_bus: bool, id: int | None = None
    ) -> None:
        """Send `welcome`."""
        expires_s = None
        if identity.expires_at_s:
            expires_s = max(0, int(identity.expires_at_s - time.time()))
        self.reactor.send(
            conn,
            dialect.welcome(
                self.reactor.public_id(conn),
                identity.user or None,
                self.options.node,
                self._ping_s,
                expires_s,
                has_bus=has_bus,
                id=id,
            ),
            dialect.opcode,
        )

    def send_subscribed(
        self,
        conn: int,
        dialect: Dialect,
        name: bytes,
        id: int | None = None,
        *,
        recovered: bool | None = None,
        is_new: bool = True,
    ) -> None:
        """Send `subbed`, and tell backends of a subscription that is new."""
        if is_new and self.events.tells_subscriptions:
            self.events.subscribed(conn, self.reactor.meta(conn), name)
        self.reactor.send(conn, dialect.subscribed(shown(name), id, recovered=recovered), dialect.opcode)

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
        """Send `err`, and count it by its name. A channel that is no channel is not repeated."""
        self.count("error_" + name, 1)
        if channel is not None and channel != "@me" and not is_channel(channel):
            channel = None
        text = dialect.error(name, id=id, ch=channel, retry_ms=retry_ms, detail=detail)
        self.reactor.send(conn, text, dialect.opcode)

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
        """Send `err` for a refused token. What comes back is the time until it may be shown again, in ms.

        The client is told that time here, or in the `bye` that follows when the connection is closed.
        """
        retry_ms = _retry_ms_of(fault)
        detail = fault.text if self.options.is_dev else ""
        told_ms = None if is_closing else retry_ms
        self.error(conn, dialect, "unauthorized", id=id, channel=channel, retry_ms=told_ms, detail=detail)
        return retry_ms

    # --- ending ---------------------------------------------------------------------------------------

    def end(self, conn: int, dialect: Dialect, reason: Reason, *, retry_ms: int = RETRY_MS) -> None:
        """Bye, Close, and the reason on the books."""
        row = REASONS[reason]
        if row.close_code >= 4000:
            self.reactor.send(conn, bye(dialect, reason, retry_ms), dialect.opcode)
        if self.reactor.close(conn, row.close_code, reason.name.lower().encode(), reason=reason):
            self.ended.add(conn)

    def bad_message(self, conn: int, dialect: Dialect, *, is_malformed: bool) -> None:
        """Three messages in a row that are no commands at all end the connection."""
        if not is_malformed:
            self._bad_messages.pop(conn, None)
            return
        seen = self._bad_messages.get(conn, 0) + 1
        self._bad_messages[conn] = seen
        if seen >= BAD_MESSAGES_LIMIT:
            self.end(conn, dialect, Reason.BAD_MESSAGES)

    def good_message(self, conn: int) -> None:
        """A command: the row of bad ones is broken."""
        if self._bad_messages:
            self._bad_messages.pop(conn, None)

    def forget(self, conn: int) -> None:
        """The connection is gone."""
        if self.ended:
            self.ended.discard(conn)
        if self.held:
            self._take_held(conn)
        self.hub.forget(conn)
        self.pauses.forget(conn)
        self._shown.give_back(conn)
        if self._asked and (names := self._asked.get(conn)):
            self._asked_count -= sum(map(len, names.values()))
        for each in (self.unauthenticated, self._welcomes, self._asked, self._bad_messages, self._deferred):
            if each:
                each.pop(conn, None)


def _showing_of(entry: Entry) -> ConnectRequest:
    """What came on the URL."""
    if entry.positions or entry.channels:
        return ConnectRequest(None, entry.positions, entry.channels)
    return NO_REQUEST
