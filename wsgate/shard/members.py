"""Keep who each connection is: its user, its permissions and when its token expires.

Owns no object per connection. A connection's `Member` is the meta object in the reactor, and equal permission
sets are shared by all connections that have them.
"""

import time
from typing import Final

from msgspec.structs import replace

from wsgate.auth import Identity, Member, PermissionTable
from wsgate.dialects import Dialect
from wsgate.reactor import Reactor
from wsgate.reasons import REASONS, Reason
from wsgate.shard.backend_events import Events, Identified, Tracked
from wsgate.shard.options import ANONYMOUS, ANONYMOUS_MEMBER, ShardOptions

__all__ = ["Members", "now_ms", "wall_ms"]

FRACTION_BYTES: Final = 160
"""Memory of a time of issue with its table entry; 85 to 150 bytes were measured."""
_ISSUED_MOST_S: Final = 2**32
_EXPIRED_CODE: Final = REASONS[Reason.TOKEN_EXPIRED].close_code


def now_ms() -> int:
    """Return the clock that drives the reactor: monotonic milliseconds."""
    return time.monotonic_ns() // 1_000_000


def wall_ms() -> int:
    """Return the wall clock, which dates tokens, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Members:
    """The users and permissions of one shard's connections.

    Args:
        options: Of the shard.
        reactor: Holds the connections, and an index of them by user.
        permissions: Shares equal permission sets and accounts them.
        events: Adds the time of admission to a member where backends want events.
    """

    def __init__(
        self, options: ShardOptions, reactor: Reactor, permissions: PermissionTable, events: Events
    ) -> None:
        self._reactor = reactor
        self._permissions = permissions
        self._events = events
        self._fractional: dict[int, float] = {}  # `iat` of the connections whose token has a fraction in it
        self.renew(options)

    def renew(self, options: ShardOptions) -> None:
        """Use these options from now on."""
        self._leeway_s = options.tokens.leeway_s

    def identify(self, conn: int, identity: Identity) -> None:
        """Enter a connection in the index by user before it is admitted, so that control commands find it.

        A connection that was admitted as anonymous keeps the time of that admission, because its end is still
        to be recorded for backends.
        """
        member, before = identity.member(), self._reactor.meta(conn)
        if isinstance(before, Tracked):
            member = Identified(member.user_utf8, member.permissions, before.since_ms)
        if self._set(conn, member):
            self._enter(conn, member, identity.issued_at_s)

    def keep(self, conn: int, identity: Identity, before: Member | None) -> Member | None:
        """Store the user and permissions of a connection, and enter it in the index by user.

        Args:
            conn: The connection.
            identity: From the newest token of the connection.
            before: What was stored for the connection; None: it was not admitted before.

        Returns:
            What is stored from now on; with the time of its admission where events are on. None: the
            connection is gone, and its end is still to be reported.
        """
        member = ANONYMOUS_MEMBER
        if self._events.is_on:
            since_ms = before.since_ms if isinstance(before, Tracked) else now_ms()
            member = self._events.member(identity, since_ms)
        elif identity is not ANONYMOUS:
            member = identity.member()
        if not self._set(conn, member):
            return None
        if member.user_utf8:
            self._enter(conn, member, identity.issued_at_s)
        return member

    def _enter(self, conn: int, member: Member, issued_at_s: float) -> None:
        """Enter a connection in the index by user, with the time when its token was issued.

        The index has whole seconds, which is what most issuers write.
        """
        self._reactor.set_user(conn, member.user_utf8, issued_s=int(issued_at_s))
        if issued_at_s % 1:
            self._fractional[conn] = issued_at_s
        elif self._fractional:
            self._fractional.pop(conn, None)

    def issued_before(self, user: bytes, before_s: float) -> list[int]:
        """Return the connections that a revocation is about, as `RevokedUsers.is_revoked` decides for tokens.

        Args:
            user: The user. The index compares hashes, so connections of other users may be returned too.
            before_s: The time before which the tokens were issued, in seconds since 1970.
        """
        # At least 1, because with 0 the reactor would return every connection; with 1 it returns those whose
        # token has no time of issue.
        whole_s = max(1, int(min(before_s, _ISSUED_MOST_S)))
        conns = self._reactor.user_connections(user, issued_before_s=whole_s)
        if self._fractional and before_s > whole_s:
            found = set(conns)
            for conn in self._reactor.user_connections(user, issued_before_s=whole_s + 1):
                if conn not in found and self._fractional.get(conn, before_s) < before_s:
                    conns.append(conn)
        return conns

    @property
    def waiting_bytes(self) -> int:
        """Memory of the times of issue that have a fraction, in bytes."""
        return len(self._fractional) * FRACTION_BYTES

    def forget(self, conn: int) -> None:
        """Drop the time of issue of a connection that is closed."""
        if self._fractional:
            self._fractional.pop(conn, None)

    def _set(self, conn: int, member: Member) -> bool:
        """Attach a member to a connection; its permission set is accounted as long as it is attached.

        Returns:
            Whether the member is attached; False: the connection is gone.
        """
        before: Member | None = self._reactor.meta(conn)
        shared = self._permissions.hold(member.permissions)
        if shared is not member.permissions:
            member = replace(member, permissions=shared)
        if not self._reactor.set_meta(conn, member):
            self._permissions.release(shared)
            return False
        if before is not None:
            self.release(before)
        return True

    def release(self, member: Member) -> None:
        """Release the permission set of a member whose connection is closed or has another member now."""
        self._permissions.release(member.permissions)

    def set_expiry(self, conn: int, identity: Identity) -> None:
        """Close the connection when its token expires, leeway included; a token without `exp` never does.

        Expiry is wall-clock time: a pause of the process does not prolong a token.
        """
        if identity.expires_at_s:
            ends_at_s = identity.expires_at_s + self._leeway_s
            self._reactor.set_expiry(conn, max(1, int(ends_at_s * 1000)), _EXPIRED_CODE)
        else:
            self._reactor.set_deadline(conn, 0, _EXPIRED_CODE)

    def request_refresh(self, conn: int, dialect: Dialect, within_s: int) -> None:
        """Request a fresh token from the client; without one in time, the connection closes as expired."""
        if self._reactor.set_expiry(conn, wall_ms() + within_s * 1000, _EXPIRED_CODE, only_sooner=True):
            self._reactor.send(conn, dialect.refresh(within_s), dialect.opcode)
