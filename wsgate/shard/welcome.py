"""The beginning of a session: `welcome`, and the channels that come with it, once the bus has them.

An object here lives while its welcome waits for the bus, and as long as a channel of it does.

Source: protocols/client/v1/spec.md, "Messages".
"""

from collections.abc import Mapping
from sys import getsizeof
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from wsgate.auth import Identity
from wsgate.dialects import Dialect
from wsgate.shard.hub import Confirmation, Joined

if TYPE_CHECKING:
    from wsgate.shard.sessions import Sessions

__all__ = ["NO_REQUEST", "ConnectRequest", "Welcome", "shown"]


class ConnectRequest(NamedTuple):
    """What came with a client beside its token.

    Attributes:
        id: Of the command that brought the token.
        positions: Where the client stood, by channel.
        channels: What it asked for on its URL, to be subscribed behind `welcome`.
    """

    id: int | None = None
    positions: Mapping[str, str] = MappingProxyType({})
    channels: tuple[str, ...] = ()

    def behind(self, earlier: "ConnectRequest") -> "ConnectRequest":
        """This one, with what came earlier and was not said anew."""
        if earlier is NO_REQUEST:
            return self
        return ConnectRequest(
            self.id, {**earlier.positions, **self.positions}, earlier.channels + self.channels
        )

    @property
    def size_bytes(self) -> int:
        """Of its text, and of the tables that hold it. O(its channels and positions)."""
        if not (self.positions or self.channels):
            return 0
        texts = (*self.channels, *self.positions, *self.positions.values())
        return sum(map(getsizeof, texts)) + getsizeof(self.positions) + getsizeof(self.channels)


class ByteAccount:
    """How much is kept for which connection, and for all of them."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self._sizes: dict[int, int] = {}

    def book(self, conn: int, size_bytes: int) -> None:
        """So much, instead of what it was."""
        self.give_back(conn)
        if size_bytes:
            self._sizes[conn] = size_bytes
            self.total_bytes += size_bytes

    def give_back(self, conn: int) -> None:
        """Nothing any more."""
        if self._sizes:
            self.total_bytes -= self._sizes.pop(conn, 0)


NO_REQUEST: Final = ConnectRequest()


def shown(name: bytes) -> str:
    """A channel's name as its client sees it: every inbox is `@me` to its owner."""
    return "@me" if name.startswith(b"@") else name.decode()


class Welcome:
    """A welcome that waits until the bus has confirmed the channels that come with it."""

    __slots__ = (
        "_conn",
        "_dialect",
        "_identity",
        "_is_said",
        "_live",
        "_refused",
        "_sessions",
        "_showing",
        "_waiting",
    )

    def __init__(
        self, sessions: "Sessions", conn: int, dialect: Dialect, identity: Identity, showing: ConnectRequest
    ) -> None:
        """For one connection; nothing is said yet."""
        self._sessions = sessions
        self._conn = conn
        self._dialect = dialect
        self._identity = identity
        self._showing = showing
        self._waiting: set[bytes] = set()
        self._live: list[bytes] = []
        self._refused: list[tuple[bytes, Joined]] = []
        self._is_said = False

    @property
    def is_done(self) -> bool:
        """Whether everything was told."""
        return self._is_said and not self._waiting

    def join(self, name: bytes, policy: int) -> None:
        """Subscribe to a channel that comes with the token."""
        hub = self._sessions.hub
        joined = hub.join(self._conn, name, policy, self.told)
        if joined is Joined.ALREADY:  # the client was here before it showed its token
            joined = hub.confirm(self._conn, name, self.told)
        if joined is Joined.WAITS:
            self._waiting.add(name)
        elif joined is Joined.LIVE:
            self._live.append(name)
        elif joined in (Joined.TOO_MANY, Joined.BEHIND, Joined.FULL, Joined.REFUSED):
            self._refused.append((name, joined))

    def begin(self, confirmed: bytes = b"") -> None:
        """Send the welcome now, unless every channel that is waited for will soon be confirmed.

        Args:
            confirmed: The channel that the hub confirms by this very call, if there is one.
        """
        if not self._waiting or not all(map(self._sessions.hub.is_live_for, self._waiting)):
            self._say(confirmed)

    def told(self, name: bytes, confirmation: Confirmation) -> None:
        """One channel was confirmed or refused, or the bus was lost before it was."""
        if name not in self._waiting:
            return  # the client has left it meanwhile
        if confirmation is Confirmation.REFUSED:
            self._refuse(name)
            return
        if confirmation is Confirmation.LOST:
            self._sessions.hub.wait(self._conn, name, self.told)
            if not self._is_said:
                self._say()
            return
        self._waiting.discard(name)
        if self._is_said:
            self._tell(name)
        else:
            self._live.append(name)
            self.begin(confirmed=name)
        self._finish()

    def _refuse(self, name: bytes) -> None:
        """The bus forbids a channel that comes with the token: the welcome does not wait for it any more."""
        self._waiting.discard(name)
        self._sessions.hub.leave(self._conn, name)
        if self._is_said:
            self._sessions.refuse_for_good(self._conn, self._dialect, name)
        else:
            self._refused.append((name, Joined.REFUSED))
            self.begin()
        self._finish()

    def left(self, name: bytes) -> None:
        """The client has left a channel: nothing is to be told about it any more."""
        self._waiting.discard(name)
        if name in self._live:
            self._live.remove(name)
        if not self._is_said:
            self.begin()
        self._finish()

    def _finish(self) -> None:
        if self.is_done:
            self._sessions.forget_welcome(self._conn)

    def _say(self, confirmed: bytes = b"") -> None:
        """Send the welcome, then what is live, then what the URL asked for.

        Each channel is asked for by itself whether it is still live: it was when it was confirmed, but its
        server may be lost since, and the servers of a cluster come and go one by one. A channel that is not
        live waits to be confirmed again; one that is live must not wait, for nobody would confirm it.
        """
        self._is_said = True
        sessions, conn, dialect, showing = self._sessions, self._conn, self._dialect, self._showing
        live: list[bytes] = []
        for name in self._live:
            if name == confirmed or sessions.hub.confirm(conn, name, self.told) is Joined.LIVE:
                live.append(name)
            else:
                self._waiting.add(name)
        self._live = []
        has_bus = not self._waiting
        sessions.send_welcome(conn, dialect, self._identity, has_bus=has_bus, id=showing.id)
        for name in live:
            self._tell(name)
        for name, joined in self._refused:
            if joined is Joined.TOO_MANY:
                sessions.error(conn, dialect, "rate_limited", channel=shown(name))
            elif joined is Joined.REFUSED:
                sessions.refuse_for_good(conn, dialect, name)
            else:
                sessions.refuse_for_now(conn, dialect, name, joined)
        sessions.subscribe_asked(conn, dialect, showing)

    def _tell(self, name: bytes) -> None:
        recovered = False if shown(name) in self._showing.positions else None
        self._sessions.send_subscribed(self._conn, self._dialect, name, recovered=recovered)
