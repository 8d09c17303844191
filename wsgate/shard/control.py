"""Run the control commands of backends: end a user's connections, request fresh tokens, revoke old ones.

Commands come over the bus as JSON on the control names (protocols/bus/v1, "Control"). The access rules of the
bus decide who may publish there. A malformed command is counted and changes nothing. A command for many
connections is run a part in each pass.
"""

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Annotated, Final, Protocol

import msgspec

from wsgate.auth import Member
from wsgate.reasons import Reason
from wsgate.shard.byes import RETRY_MS
from wsgate.shard.login import LoginParts, Logins
from wsgate.shard.publication_encoder import DIALECT_OF

__all__ = ["Control"]

CONTROL_LIMIT_BYTES: Final = 4 * 1024
"""Size of a command, above which it counts as malformed."""
PER_PASS: Final = 256
"""Connections that one pass applies commands to, at most."""
WITHIN_MOST_S: Final = 3_600
REFRESH_S: Final = 30
"""Time for a fresh token, where the command does not name one."""
USER_LIMIT_BYTES: Final = 128
User = Annotated[str, msgspec.Meta(min_length=1, max_length=USER_LIMIT_BYTES)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=WITHIN_MOST_S)] | None
"""As in tokens, a member that is null counts as missing."""
Id = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]


class _ControlCommand(msgspec.Struct):
    """A command whose sender may wait for the replies of all shards.

    Attributes:
        request: Identifies the replies; None if no reply is wanted.
    """

    request: Id | None = None


class _Disconnect(_ControlCommand, tag_field="op", tag="disconnect"):
    """A command that ends connections with 4520, so that their clients do not reconnect.

    Attributes:
        user: End the connections of this user.
        conn: End only the connection with this public id; with `user` too, only if it belongs to that user.
    """

    user: User | None = None
    conn: Id | None = None


class _Refresh(_ControlCommand, tag_field="op", tag="refresh", kw_only=True):
    """A command that requests fresh tokens from a user's connections.

    Attributes:
        user: The user.
        within_s: How long a client has to send one; 0: end the connections now; None: 30 s.
    """

    user: User
    within_s: Seconds = None


class _Revoke(_ControlCommand, tag_field="op", tag="revoke", kw_only=True):
    """A command that refuses a user's tokens that were issued before a time.

    Attributes:
        user: The user.
        before: The time, in seconds since 1970.
        within_s: Time that connections with such a token have to send a fresh one; 0 or None: end them now.
    """

    user: User
    before: Annotated[float, msgspec.Meta(ge=0)]
    within_s: Seconds = None


class _Unrevoke(_ControlCommand, tag_field="op", tag="unrevoke", kw_only=True):
    """A command that removes the revocation of a user."""

    user: User


class _Replace(msgspec.Struct, tag_field="op", tag="replace"):
    """A command of one shard to another: end a connection with 4509, because its user has a newer one.

    Attributes:
        user: The user of the connection.
        conn: The public id of the connection.
        owner: The shard that has the connection; every other shard ignores the command.
    """

    user: User
    conn: Id
    owner: str


_Command = _Disconnect | _Refresh | _Revoke | _Unrevoke | _Replace
_COMMANDS: Final = msgspec.json.Decoder(_Command)


class Keeper(Protocol):
    """Stores revocations on the bus, where they outlive this shard; see `wsgate.bus.RevocationKeeper`."""

    def store(self, user: str, before_s: float) -> None:
        """Store a revocation on the bus."""

    def forget(self, user: str) -> None:
        """Do not write a revocation to the bus again."""


class Control:
    """Runs the control commands that one shard receives from the bus.

    Args:
        parts: The parts of the shard that commands of backends act on.
        logins: Buffers commands for connections whose 101 is still to be sent.
        count: Adds to a counter of the shard, by its name.
        owner: The name by which other shards address this one.
        reply: Called with the request of a command that was carried out.
        keeper: Stores the revocations that are received; None: they are not stored.
    """

    def __init__(
        self,
        parts: LoginParts,
        logins: Logins,
        owner: str,
        count: Callable[[str, int], None],
        *,
        reply: Callable[[str], None] = lambda request: None,
        keeper: Keeper | None = None,
    ) -> None:
        self._reactor = parts.reactor
        self._replies = parts.replies
        self._members = parts.members
        self._tokens = parts.tokens
        self._logins = logins
        self._count = count
        self._owner = owner
        self._reply = reply
        self._keeper = keeper
        self._under_way: deque[tuple[_Command, list[int]]] = deque()

    def run(self, payload: bytes) -> None:
        """Decode a command and queue it for the connections that it is about; revoke tokens at once.

        Args:
            payload: The JSON text of the command, as it arrived over the bus.
        """
        try:
            if len(payload) > CONTROL_LIMIT_BYTES:
                raise ValueError
            command = _COMMANDS.decode(payload)
            if command.user is not None and len(command.user.encode()) > USER_LIMIT_BYTES:
                raise ValueError
        except (ValueError, RecursionError):  # errors of msgspec are ValueErrors, also for text not in UTF-8
            self._count("controls_malformed", 1)
            return
        if isinstance(command, _Replace) and command.owner != self._owner:
            return  # the command is for another shard
        self._count("controls_run", 1)
        if isinstance(command, _Revoke):
            self._tokens.revoke(command.user, command.before)
            if self._keeper is not None:
                self._keeper.store(command.user, command.before)
        elif isinstance(command, _Unrevoke):
            self._tokens.unrevoke(command.user)
            if self._keeper is not None:
                self._keeper.forget(command.user)
        self._under_way.append((command, self._whose(command)))

    def learn(self, user: str, before_s: float) -> None:
        """Apply a revocation that was read from the bus, without a reply to a backend."""
        self._tokens.revoke(user, before_s)
        command = _Revoke(user=user, before=before_s)
        self._under_way.append((command, self._whose(command)))

    def step(self) -> bool:
        """Apply the queued commands to up to `PER_PASS` connections; return whether more are left.

        A command that was applied to all its connections is replied to, if its sender wants that.
        """
        left = PER_PASS
        while self._under_way and left:
            command, conns = self._under_way[0]
            for conn in conns[:left]:
                self._apply(command, conn)
            done = min(left, len(conns))
            left -= done
            del conns[:done]
            if not conns:
                self._under_way.popleft()
                if not isinstance(command, _Replace) and command.request is not None:
                    self._reply(command.request)
        return bool(self._under_way)

    def _whose(self, command: _Command) -> list[int]:
        """Return the connections that a command is about.

        A user's connections are found in the reactor's index by user, which a client cannot change. So a
        connection that has left its inbox, or that waits for its welcome, is found like any other.
        """
        if isinstance(command, _Disconnect | _Replace) and command.conn is not None:
            conn = self._reactor.find_public(int(command.conn, 16))
            member = self._reactor.meta(conn) if conn else None
            is_meant = member is not None and command.user in (None, member.user)
            return [conn] if is_meant else []
        if command.user is None or isinstance(command, _Unrevoke):
            return []
        user = command.user.encode()
        if isinstance(command, _Revoke):  # connections with a token that is still accepted stay
            conns = self._members.issued_before(user, command.before)
        else:
            conns = self._reactor.user_connections(user)
        return [conn for conn in conns if self._is_of(conn, user)]

    def _is_of(self, conn: int, user: bytes) -> bool:
        """Return whether a connection belongs to this user; the index compares hashes only."""
        member: Member | None = self._reactor.meta(conn)
        return member is not None and member.user_utf8 == user

    def _apply(self, command: _Command, conn: int) -> None:
        """Apply a command to one connection, or defer that until its 101 was sent."""
        if self._logins.defer(conn, partial(self._apply, command, conn)):
            return  # the 101 is still to be sent, and no message may come before it
        variant = self._reactor.variant(conn)
        if variant < 0:
            return  # the connection has closed since the command arrived
        dialect = DIALECT_OF[variant]
        if isinstance(command, _Disconnect):
            self._replies.end(conn, dialect, Reason.KICKED)
        elif isinstance(command, _Replace):
            self._replies.end(conn, dialect, Reason.REPLACED)
        elif isinstance(command, _Revoke) and not command.within_s:
            self._replies.end(conn, dialect, Reason.TOKEN_EXPIRED, retry_ms=self._spread_ms())
        elif isinstance(command, _Refresh) and command.within_s == 0:
            self._replies.end(conn, dialect, Reason.TOKEN_EXPIRED, retry_ms=self._spread_ms())
        elif isinstance(command, _Refresh | _Revoke):
            self._members.request_refresh(conn, dialect, command.within_s or REFRESH_S)

    def _spread_ms(self) -> int:
        """Draw a `retry_ms` for one of many connections that end, so that about 1,000 return in a second."""
        others = len(self._under_way[0][1]) if self._under_way else 0
        return RETRY_MS + random.randint(0, others)  # noqa: S311 - spreading, not secrecy
