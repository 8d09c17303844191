"""Log connections in: from an accepted handshake, or a token in a message, to the `welcome`.

A connection is here only while its login is under way: it has shown no token yet, its token waits to be
verified, the bus counts the connections of its user, or the bus has not confirmed the channels that come with
its token. Messages that the client sends meanwhile are buffered, at most one turn of reading, and the pass
runs them when the login releases them (`Logins.take_released`).

Source: protocols/client/v1/spec.md, "Messages".
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from wsgate.auth import Identity, TokenError
from wsgate.bus.names import INBOX_MARK
from wsgate.dialects import Dialect
from wsgate.reactor import Reactor
from wsgate.reasons import REASONS, Reason
from wsgate.shard.access import Access
from wsgate.shard.backend_events import Events
from wsgate.shard.byes import RETRY_MS
from wsgate.shard.handshakes import Entry
from wsgate.shard.hub import Hub
from wsgate.shard.members import Members, now_ms
from wsgate.shard.options import ANONYMOUS, ShardOptions
from wsgate.shard.pausing import Pauser, Pauses
from wsgate.shard.replies import Replies
from wsgate.shard.subscriptions import PENDING_BYTES, Subscriptions
from wsgate.shard.tokens import Tokens
from wsgate.shard.users import Users
from wsgate.shard.welcome import NO_REQUEST, ConnectRequest, Login, Welcome

__all__ = ["LoginParts", "Logins"]

WELCOME_BYTES: Final = 1_000
UNAUTHENTICATED_BYTES: Final = 200
DEFERRED_LIMIT: Final = 16
"""Control commands that are buffered for one connection whose 101 waits for the bus."""
BUFFERED_BYTES: Final = 100
"""Memory of a buffered message, in addition to its own bytes."""

VerifyLater = Callable[[int, int, Callable[[], bool]], object]


class ByteAccount:
    """Bytes that are charged to connections, and their sum."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self._sizes: dict[int, int] = {}

    def set(self, conn: int, size_bytes: int) -> None:
        """Charge a connection this many bytes, in place of what it was charged before."""
        self.clear(conn)
        if size_bytes:
            self._sizes[conn] = size_bytes
            self.total_bytes += size_bytes

    def clear(self, conn: int) -> None:
        """Charge a connection nothing any more."""
        if self._sizes:
            self.total_bytes -= self._sizes.pop(conn, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginParts:
    """The parts of a shard that a login uses.

    Attributes:
        reactor: Holds the connections.
        hub: Holds the shard's own subscriptions on the bus.
        access: The rules of channels.
        tokens: Verifies tokens.
        users: Counts connections by user on the bus.
        events: Records for backends which connections are admitted.
        members: Stores who each connection is.
        replies: Sends answers to clients.
        subscriptions: Subscribes connections to channels.
        pauses: Pauses reading of a connection.
        verify_later: Called with a connection, the size of a token in bytes and a function that verifies it.
            It calls the function when it is the turn of this token.
    """

    reactor: Reactor
    hub: Hub
    access: Access
    tokens: Tokens
    users: Users
    events: Events
    members: Members
    replies: Replies
    subscriptions: Subscriptions
    pauses: Pauses
    verify_later: VerifyLater


class Logins:
    """All logins of one shard that are under way."""

    def __init__(self, options: ShardOptions, parts: LoginParts) -> None:
        self._parts = parts
        self._reactor = parts.reactor
        self._replies = parts.replies
        self.unauthenticated: dict[int, ConnectRequest] = {}
        """Connections that have shown no valid token, with what their handshake requested."""
        self.buffered: dict[int, list[tuple[bytes, int]]] = {}
        """Messages of connections whose login waits, with their opcodes."""
        self._buffered_bytes = 0
        self._counting: set[int] = set()  # upgraded connections that the bus counts
        # Connections whose buffered messages can run, with the reason why reading is paused until they do.
        self._released: deque[tuple[int, Pauser]] = deque()
        self._deferred: dict[int, list[Callable[[], None]]] = {}  # of connections whose 101 waits for the bus
        self._welcomes: dict[int, Welcome] = {}
        self._requests = ByteAccount()
        parts.subscriptions.on_left = self._on_left
        parts.subscriptions.is_in_welcome = self._is_in_welcome
        parts.subscriptions.takes_forbidden = self._takes_forbidden
        self.renew(options)

    def renew(self, options: ShardOptions) -> None:
        """Use these options from now on."""
        self._options = options

    @property
    def waiting_bytes(self) -> int:
        """Memory of everything kept for logins that are under way, in bytes."""
        return (
            self._buffered_bytes
            + self._requests.total_bytes
            + len(self.unauthenticated) * UNAUTHENTICATED_BYTES
        )

    # --- after the handshake --------------------------------------------------------------------------

    def enter(self, conn: int, entry: Entry) -> None:
        """Log in a connection whose handshake was accepted: send 101, now or when its user is counted.

        When the handshake's token names a user whose connections are limited, 101 waits for the bus. That is
        one write less than 101 at once and `welcome` later, which saves 10 us of a handshake. The connection
        is not read meanwhile.
        """
        identity = entry.identity
        if identity is not None and identity.user and self._parts.users.is_counting:
            self._parts.members.identify(conn, identity)
            self._deferred[conn] = []
            self._count_user(Login(conn, entry.dialect, identity, _request_of(entry), entry))
            return
        if self._reactor.upgrade(conn, entry.response, variant=entry.variant):
            self.begin(conn, entry)

    def begin(self, conn: int, entry: Entry) -> None:
        """Go on after 101: verify the token, admit the connection, or wait for its first token."""
        request = _request_of(entry)
        if entry.late_token is not None:
            self.authenticate(conn, entry.dialect, entry.late_token, request)
        elif entry.identity is not None:
            self.admit(conn, entry.dialect, entry.identity, request)
        elif self._options.allow_anonymous:
            self.admit(conn, entry.dialect, ANONYMOUS, request)
        else:
            self._await_first_token(conn, request)

    def _await_first_token(self, conn: int, request: ConnectRequest) -> None:
        """Give a connection without a token `limits.auth_timeout` to send one."""
        self.unauthenticated[conn] = request
        self._requests.set(conn, request.size_bytes)
        self._reactor.set_deadline(
            conn,
            now_ms() + self._options.auth_timeout_ms,
            REASONS[Reason.AUTH_TIMEOUT].close_code,
            is_forgiven=True,
        )

    def defer(self, conn: int, act: Callable[[], None]) -> bool:
        """Buffer a control command for a connection until its 101 was sent; False: it was sent already.

        No frame can be sent before the 101. A connection for which more than `DEFERRED_LIMIT` commands arrive
        while its user is counted is refused instead.
        """
        deferred = self._deferred.get(conn)
        if deferred is None:
            return False
        if len(deferred) < DEFERRED_LIMIT:
            deferred.append(act)
        else:
            self._reactor.abort(conn, reason=Reason.KICKED)
        return True

    def refuse_waiting(self, response: Callable[[], bytes]) -> None:
        """Refuse every connection whose 101 still waits for the bus, because the shard ends.

        Args:
            response: Returns the HTTP response for one connection.
        """
        for conn in list(self._deferred):
            self._reactor.refuse(conn, response())

    # --- tokens in messages ---------------------------------------------------------------------------

    def await_token(self, conn: int, dialect: Dialect, token: str, act: Callable[[], bool]) -> None:
        """Run a command when it is the turn of its token, which is not in the cache.

        The connection is not read meanwhile. Messages that were read with the command run after it, in order.

        Args:
            conn: The connection, of which no token may wait already.
            dialect: The dialect of the connection.
            token: The token to be verified.
            act: Verifies the token and answers the command. It returns whether the token was valid.
        """
        self.buffered[conn] = []
        self._parts.pauses.pause(conn, Pauser.TOKEN)
        self._parts.verify_later(conn, len(token), partial(self._on_turn, conn, dialect, act))

    def _on_turn(self, conn: int, dialect: Dialect, act: Callable[[], bool]) -> bool:
        """Run a command whose token is verified now; return whether the token was valid."""
        if conn not in self.buffered:
            return True  # the connection has closed
        try:
            with self._ends_on_fault(conn, dialect):
                # A control command may have ended the connection while the token waited.
                return conn in self._replies.ended or act()
        finally:
            self._release(conn, Pauser.TOKEN)

    def authenticate(
        self, conn: int, dialect: Dialect, token: str, request: ConnectRequest = NO_REQUEST
    ) -> bool:
        """Verify a token that was shown after 101, then admit or end the connection.

        Returns:
            Whether the token was valid.
        """
        try:
            identity = self._parts.tokens.connection(token, time.time())
        except TokenError as error:
            # Until it has closed, the connection counts as one without a token, however the token came.
            self.unauthenticated.setdefault(conn, NO_REQUEST)
            retry_ms = self._replies.token_error(conn, dialect, error, id=request.id, is_closing=True)
            self._replies.end(conn, dialect, Reason(error.reason), retry_ms=retry_ms or RETRY_MS)
            return False
        self.admit(conn, dialect, identity, request)
        return True

    # --- admission ------------------------------------------------------------------------------------

    def admit(
        self, conn: int, dialect: Dialect, identity: Identity, request: ConnectRequest = NO_REQUEST
    ) -> None:
        """Admit an upgraded connection: store its user, set its expiry, subscribe, then send `welcome`."""
        parts = self._parts
        if self.unauthenticated:
            request = request.after(self.unauthenticated.pop(conn, NO_REQUEST))
        parts.members.set_expiry(conn, identity)
        if parts.users.is_counting and identity.user:
            # The user is known but not admitted yet. Buffer its messages, at most one turn of reading, until
            # the bus has counted it.
            parts.members.identify(conn, identity)
            self.buffered.setdefault(conn, [])
            self._counting.add(conn)
            parts.pauses.pause(conn, Pauser.LOGIN)
            self._count_user(Login(conn, dialect, identity, request))
            return
        self._requests.set(conn, request.size_bytes)
        self._settle(conn, dialect, identity, request)

    def _count_user(self, login: Login) -> None:
        """Have the bus count the connections of the user, and go on with the login when it has."""
        self._requests.set(login.conn, login.request.size_bytes + WELCOME_BYTES)
        self._parts.users.enter(login.conn, login.identity.user, partial(self._on_counted, login))

    def _on_counted(self, login: Login, may_stay: bool) -> None:
        """Admit a connection that the bus has counted, or end it because its user has too many."""
        conn, dialect, identity, request, entry = login
        if entry is None:
            if conn not in self.buffered:
                return  # the connection has closed
        else:
            deferred = self._deferred.pop(conn, [])
            if not self._reactor.upgrade(conn, entry.response, variant=entry.variant):
                return  # the connection has closed, or waited for too long
        try:
            with self._ends_on_fault(conn, dialect):
                if entry is not None and may_stay:
                    self._parts.members.set_expiry(conn, identity)
                    for act in deferred:
                        act()
                if conn in self._replies.ended:
                    return  # a control command ended it while its user was counted
                if may_stay:
                    self._settle(conn, dialect, identity, request)
                else:
                    self._replies.end_crowded(conn, dialect)
        finally:
            if entry is None:
                self._counting.discard(conn)
                self._release(conn, Pauser.LOGIN)

    def _settle(self, conn: int, dialect: Dialect, identity: Identity, request: ConnectRequest) -> None:
        """Store the user, record the event, and send `welcome` when the bus has confirmed the channels."""
        parts = self._parts
        before = self._reactor.meta(conn)
        member = parts.members.keep(conn, identity, None)
        if member is None:
            return  # the connection is gone, and the next poll reports its end
        if parts.events.is_on:
            parts.events.changed(conn, before, member, now_ms())
        if identity is ANONYMOUS:
            self._replies.welcome(conn, dialect, identity, has_bus=parts.hub.is_live)
            parts.subscriptions.subscribe_all(conn, dialect, request.channels, request.positions)
            self._requests.clear(conn)
            return
        login = Login(conn, dialect, identity, request)
        welcome = Welcome(login, parts.hub, self._replies, parts.subscriptions, self._finish)
        for name, policy in self._own_channels(identity):
            welcome.join(name, policy)
        welcome.begin()
        if welcome.is_done:
            self._requests.clear(conn)
        else:
            self._welcomes[conn] = welcome
            waiting = 1 + len(identity.permissions.channels)
            self._requests.set(conn, request.size_bytes + WELCOME_BYTES + waiting * PENDING_BYTES)

    def _own_channels(self, identity: Identity) -> Iterable[tuple[bytes, int]]:
        """Yield the user's inbox and the channels of its token, each with its slow-consumer policy."""
        yield (INBOX_MARK + identity.user).encode(), self._options.inbox_slow_consumer
        for channel in identity.permissions.channels:
            rules = self._parts.access.rules(channel)
            yield channel.encode(), rules.slow_consumer if rules else 0

    @contextmanager
    def _ends_on_fault(self, conn: int, dialect: Dialect) -> Iterator[None]:
        """End the connection if its login raises, which is a fault of ours: it would wait for ever.

        The exception is raised again, for the log of the callback that it was raised in.
        """
        try:
            yield
        except Exception:
            self._replies.end(conn, dialect, Reason.INTERNAL)
            raise

    # --- buffered messages ----------------------------------------------------------------------------

    def buffer(self, conn: int, message: bytes, opcode: int) -> bool:
        """Buffer a message of a connection whose login waits; False: it does not wait, so run the message."""
        messages = self.buffered.get(conn)
        if messages is None:
            return False
        messages.append((message, opcode))
        self._buffered_bytes += len(message) + BUFFERED_BYTES
        return True

    def _release(self, conn: int, pauser: Pauser) -> None:
        """Let one of the next passes run the buffered messages, and then read the connection again.

        Reading stays paused until then, so that no more than one turn of reading is ever buffered.
        """
        if conn in self._counting:  # its token was verified, and its user is being counted
            self._parts.pauses.resume(conn, pauser)
        else:
            self._released.append((conn, pauser))

    @property
    def has_released(self) -> bool:
        """Whether the next pass has messages to run that a login has released."""
        return bool(self._released)

    def take_released(self, most: int) -> list[tuple[int, int, bytes]]:
        """Return messages that logins have released, as (opcode, connection, message) in order.

        Call this before the reactor is polled, and run the messages first: what is read then came later. The
        messages of one connection are returned together; those of further connections stay buffered and
        accounted until the next call.

        Args:
            most: Return no further connection from so many messages on. So the result has fewer than `most`
                messages and one turn of reading together.
        """
        taken: list[tuple[int, int, bytes]] = []
        while self._released and len(taken) < most:
            conn, pauser = self._released.popleft()
            messages = self._take_buffered(conn)
            if messages is not None:  # else the connection has closed
                self._parts.pauses.resume(conn, pauser)
                taken += [(opcode, conn, message) for message, opcode in messages]
        return taken

    def _take_buffered(self, conn: int) -> list[tuple[bytes, int]] | None:
        messages = self.buffered.pop(conn, None)
        if messages:
            self._buffered_bytes -= sum(len(message) + BUFFERED_BYTES for message, _ in messages)
        return messages

    # --- the end --------------------------------------------------------------------------------------

    def _on_left(self, conn: int, name: bytes) -> None:
        """Let a welcome that waits know that the client has unsubscribed one of its channels."""
        if self._welcomes and (welcome := self._welcomes.get(conn)) is not None:
            welcome.left(name)

    def _is_in_welcome(self, conn: int, name: bytes) -> bool:
        """Return whether a welcome of the connection still has to confirm this channel."""
        welcome = self._welcomes.get(conn) if self._welcomes else None
        return welcome is not None and welcome.has(name)

    def _takes_forbidden(self, conn: int, name: bytes) -> bool:
        """Return whether a welcome that is still to be sent refuses this channel, which the bus forbids."""
        welcome = self._welcomes.get(conn) if self._welcomes else None
        return welcome is not None and welcome.forbidden(name)

    def _finish(self, conn: int) -> None:
        """Forget a login whose welcome, and every channel that comes with it, was sent to the client."""
        self._welcomes.pop(conn, None)
        self._requests.clear(conn)

    def forget(self, conn: int) -> None:
        """Drop everything that is kept for a connection that is closed."""
        if self.buffered:
            self._take_buffered(conn)
            self._counting.discard(conn)
        self._requests.clear(conn)
        self._parts.pauses.forget(conn)
        for each in (self.unauthenticated, self._welcomes, self._deferred):
            if each:
                each.pop(conn, None)


def _request_of(entry: Entry) -> ConnectRequest:
    """Return the channels and positions that the URL of a handshake named."""
    if entry.positions or entry.channels:
        return ConnectRequest(None, entry.positions, entry.channels)
    return NO_REQUEST
