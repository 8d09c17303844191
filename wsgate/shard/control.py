"""What backends may ask of every shard: end a user's connections, ask for a fresh token, revoke old ones.

Commands come over the bus as JSON on the control names (protocols/bus/v1, "Control"). Who may publish
there is the bus's to say. A command that makes no sense is counted and changes nothing; one that does is run
a part per pass, however many connections a user has.
"""

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Annotated, Final

import msgspec

from wsgate.auth import Member
from wsgate.reactor import Reactor
from wsgate.reasons import Reason
from wsgate.shard.sessions import RETRY_MS, Sessions
from wsgate.shard.variants import DIALECT_OF

__all__ = ["Control"]

CONTROL_LIMIT_BYTES: Final = 4 * 1024
PER_PASS: Final = 256
WITHIN_MOST_S: Final = 3_600
User = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


Request = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")] | None
"""The number under which the sender waits for the replies of all shards; None: nobody waits."""


class _Disconnect(msgspec.Struct, tag_field="op", tag="disconnect"):
    """End connections for good: 4520. `conn` or `user`, or both."""

    user: User | None = None
    request: Request = None
    conn: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")] | None = None


class _Refresh(msgspec.Struct, tag_field="op", tag="refresh"):
    """Have a user's connections show fresh tokens."""

    user: User
    within_s: Annotated[int, msgspec.Meta(ge=0, le=WITHIN_MOST_S)] = 30
    request: Request = None


class _Revoke(msgspec.Struct, tag_field="op", tag="revoke"):
    """Tokens of a user issued before a time are not valid any more; who is here shows a fresh one."""

    user: User
    before: Annotated[float, msgspec.Meta(ge=0)]
    within_s: Annotated[int, msgspec.Meta(ge=0, le=WITHIN_MOST_S)] = 0
    request: Request = None


class _Replace(msgspec.Struct, tag_field="op", tag="replace"):
    """End one connection because its user has a newer one: 4509. Of shards to the shard that owns it."""

    user: User
    conn: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    owner: str


_Command = _Disconnect | _Refresh | _Revoke | _Replace
_COMMANDS: Final = msgspec.json.Decoder(_Command)


class Control:
    """Runs control commands of one shard.

    Args:
        reactor: Whose connections they are.
        sessions: For bye, Close and what is said.
        owner: What other shards call this one.
        reply: Called with the request of a command that was carried out.
        keep: Called with a revocation that was heard, `(user, before_s)`: it is to outlive this shard.
    """

    def __init__(
        self,
        reactor: Reactor,
        sessions: Sessions,
        owner: str,
        *,
        reply: Callable[[str], None] = lambda request: None,
        keep: Callable[[str, float], None] = lambda user, before_s: None,
    ) -> None:
        self._reactor = reactor
        self._sessions = sessions
        self._owner = owner
        self._reply = reply
        self._keep = keep
        self._under_way: deque[tuple[_Command, list[int]]] = deque()

    def run(self, payload: bytes) -> None:
        """One command as it came."""
        try:
            if len(payload) > CONTROL_LIMIT_BYTES:
                raise ValueError
            command = _COMMANDS.decode(payload)
        except (ValueError, RecursionError):  # msgspec's are ValueErrors, and so is text that is not UTF-8
            self._sessions.count("controls_malformed", 1)
            return
        if isinstance(command, _Replace) and command.owner != self._owner:
            return  # another shard's
        self._sessions.count("controls_run", 1)
        if isinstance(command, _Revoke):
            self._sessions.tokens.revoke(command.user, command.before)
            self._keep(command.user, command.before)
        self._under_way.append((command, self._whose(command)))

    def learn(self, user: str, before_s: float) -> None:
        """A revocation that the bus has kept: as if it had been heard, but nobody waits for a reply."""
        self._sessions.tokens.revoke(user, before_s)
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
        if not isinstance(command, _Refresh | _Revoke) and command.conn is not None:
            conn = self._reactor.find_public(int(command.conn, 16))
            member = self._reactor.meta(conn) if conn else None
            is_meant = member is not None and command.user in (None, member.user)
            return [conn] if is_meant else []
        if command.user is None:
            return []
        conns = self._reactor.user_connections(command.user.encode())
        return [conn for conn in conns if self._is_of(conn, command.user)]

    def _is_of(self, conn: int, user: str) -> bool:
        """Whether a connection is this user's: the index tells users apart by a hash only."""
        member: Member | None = self._reactor.meta(conn)
        return member is not None and member.user == user

    def _apply(self, command: _Command, conn: int) -> None:
        if self._sessions.defer(conn, partial(self._apply, command, conn)):
            return  # its 101 is still to come: nothing can be said to it before
        variant = self._reactor.variant(conn)
        if variant < 0:
            return  # gone since the command came
        dialect = DIALECT_OF[variant]
        if isinstance(command, _Disconnect):
            self._sessions.end(conn, dialect, Reason.KICKED)
        elif isinstance(command, _Replace):
            self._sessions.end(conn, dialect, Reason.REPLACED)
        elif command.within_s == 0:
            # A thousand a second come back, however many connections the user has.
            spread_ms = random.randint(0, len(self._under_way[0][1])) if self._under_way else 0  # noqa: S311
            self._sessions.end(conn, dialect, Reason.TOKEN_EXPIRED, retry_ms=RETRY_MS + spread_ms)
        else:
            self._sessions.want_refresh(conn, dialect, command.within_s)
