"""What backends may ask of every shard: end a user's connections, ask for a fresh token, revoke old ones.

Commands come over the bus as JSON on the control names (protocols/bus/v1, "Control"). Who may publish
there is the bus's to say. A command that makes no sense is counted and changes nothing; one that does is run
a part per pass, however many connections a user has.
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
PER_PASS: Final = 256
WITHIN_MOST_S: Final = 3_600
ISSUED_MOST_S: Final = 2**32
REFRESH_S: Final = 30
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
    """End connections for good: 4520. `conn` or `user`, or both."""

    user: User | None = None
    conn: Id | None = None


class _Refresh(_ControlCommand, tag_field="op", tag="refresh", kw_only=True):
    """Have a user's connections show fresh tokens."""

    user: User
    within_s: Seconds = None


class _Revoke(_ControlCommand, tag_field="op", tag="revoke", kw_only=True):
    """Refuse tokens of a user that were issued before a time; their connections show a fresh one."""

    user: User
    before: Annotated[float, msgspec.Meta(ge=0)]
    within_s: Seconds = None


class _Unrevoke(_ControlCommand, tag_field="op", tag="unrevoke", kw_only=True):
    """Take the revocation of a user back."""

    user: User


class _Replace(msgspec.Struct, tag_field="op", tag="replace"):
    """End one connection because its user has a newer one: 4509. Of shards to the shard that owns it."""

    user: User
    conn: Id
    owner: str


_Command = _Disconnect | _Refresh | _Revoke | _Unrevoke | _Replace
_COMMANDS: Final = msgspec.json.Decoder(_Command)


class Keeper(Protocol):
    """Keeps revocations beyond the life of this shard; see `wsgate.bus.RevocationKeeper`."""

    def store(self, user: str, before_s: float) -> None:
        """Keep a revocation on the bus."""

    def forget(self, user: str) -> None:
        """Do not write a revocation to the bus again."""


class Control:
    """Runs control commands of one shard.

    Args:
        parts: The parts of the shard that commands of backends act on.
        logins: Buffers commands for connections whose 101 is still to be sent.
        count: Adds to a counter of the shard, by its name.
        owner: The name by which other shards address this one.
        reply: Called with the request of a command that was carried out.
        keeper: Keeps the revocations that are received; None: nothing does.
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
        """One command as it came."""
        try:
            if len(payload) > CONTROL_LIMIT_BYTES:
                raise ValueError
            command = _COMMANDS.decode(payload)
            if command.user is not None and len(command.user.encode()) > USER_LIMIT_BYTES:
                raise ValueError
        except (ValueError, RecursionError):  # msgspec's are ValueErrors, and so is text that is not UTF-8
            self._count("controls_malformed", 1)
            return
        if isinstance(command, _Replace) and command.owner != self._owner:
            return  # another shard's
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
        """Apply a revocation that was read from the bus; send no reply."""
        self._tokens.revoke(user, before_s)
        command = _Revoke(user=user, before=before_s)
        self._under_way.append((command, self._whose(command)))

    def step(self) -> bool:
        """The next part of what is under way; True when there is more."""
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
        """The handles of the connections that a command is about.

        They are found by the reactor's index of users, which nothing a client says can change: one that left
        its inbox, or waits for its welcome, is found like any other.
        """
        if isinstance(command, _Disconnect | _Replace) and command.conn is not None:
            conn = self._reactor.find_public(int(command.conn, 16))
            member = self._reactor.meta(conn) if conn else None
            is_meant = member is not None and command.user in (None, member.user)
            return [conn] if is_meant else []
        if command.user is None or isinstance(command, _Unrevoke):
            return []
        issued_before_s = 0
        if isinstance(command, _Revoke):
            # Connections with a token that is still accepted stay. 1: at least those that do not say when.
            issued_before_s = max(1, min(int(command.before), ISSUED_MOST_S))
        user = command.user.encode()
        conns = self._reactor.user_connections(user, issued_before_s=issued_before_s)
        return [conn for conn in conns if self._is_of(conn, user)]

    def _is_of(self, conn: int, user: bytes) -> bool:
        """Whether a connection is this user's: the index tells users apart by a hash only."""
        member: Member | None = self._reactor.meta(conn)
        return member is not None and member.user_utf8 == user

    def _apply(self, command: _Command, conn: int) -> None:
        if self._logins.defer(conn, partial(self._apply, command, conn)):
            return  # its 101 is still to come: nothing can be said to it before
        variant = self._reactor.variant(conn)
        if variant < 0:
            return  # gone since the command came
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
        """When a connection may come back that ends with others: a thousand of them a second."""
        others = len(self._under_way[0][1]) if self._under_way else 0
        return RETRY_MS + random.randint(0, others)  # noqa: S311 - spreading, not secrecy
