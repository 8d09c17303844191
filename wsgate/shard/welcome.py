"""Send `welcome` to a connection when the bus has confirmed the channels that come with its token.

Source: protocols/client/v1/spec.md, "Messages".
"""

from collections.abc import Callable, Mapping
from sys import getsizeof
from types import MappingProxyType
from typing import Final, NamedTuple

from wsgate.auth import Identity
from wsgate.dialects import Dialect
from wsgate.shard.handshakes import Entry
from wsgate.shard.hub import Hub, Joined
from wsgate.shard.replies import Replies, display_name
from wsgate.shard.subscriptions import Subscriptions
from wsgate.shard.unconfirmed import Confirmation

__all__ = ["NO_REQUEST", "ConnectRequest", "Login", "Welcome"]


class ConnectRequest(NamedTuple):
    """The channels and positions that a client sent together with its token.

    Attributes:
        id: The id of the `auth` command that carried the token; None where the handshake carried it.
        positions: The position from which the client wants to recover, by channel.
        channels: The channels named in the URL, to be subscribed after `welcome`.
    """

    id: int | None = None
    positions: Mapping[str, str] = MappingProxyType({})
    channels: tuple[str, ...] = ()

    def after(self, earlier: "ConnectRequest") -> "ConnectRequest":
        """Return this request with the channels and positions of an earlier one that it does not replace."""
        if earlier is NO_REQUEST:
            return self
        positions = {**earlier.positions, **self.positions}
        return ConnectRequest(self.id, positions, earlier.channels + self.channels)

    @property
    def size_bytes(self) -> int:
        """Memory of its texts and tables, in bytes. O(channels and positions)."""
        if not (self.positions or self.channels):
            return 0
        texts = (*self.channels, *self.positions, *self.positions.values())
        return sum(map(getsizeof, texts)) + getsizeof(self.positions) + getsizeof(self.channels)


NO_REQUEST: Final = ConnectRequest()


class Login(NamedTuple):
    """A connection whose user is known and whose welcome is still to be sent.

    Attributes:
        conn: The connection.
        dialect: The dialect of the connection.
        identity: From the token of the connection.
        request: What the client sent together with the token.
        entry: The accepted handshake, where its 101 is still to be sent; None: it was sent.
    """

    conn: int
    dialect: Dialect
    identity: Identity
    request: ConnectRequest
    entry: Entry | None = None


class Welcome:
    """A welcome that waits until the bus has confirmed the channels that come with the token.

    It lives while the welcome waits, and after that as long as one of its channels waits for the bus.
    """

    __slots__ = (
        "_conn",
        "_dialect",
        "_done",
        "_hub",
        "_identity",
        "_is_sent",
        "_live",
        "_refused",
        "_replies",
        "_request",
        "_subscriptions",
        "_waiting",
    )

    def __init__(
        self,
        login: Login,
        hub: Hub,
        replies: Replies,
        subscriptions: Subscriptions,
        done: Callable[[int], None],
    ) -> None:
        """Send nothing yet; `done` is called with the connection when nothing is left to be sent."""
        self._hub = hub
        self._replies = replies
        self._subscriptions = subscriptions
        self._done = done
        self._conn = login.conn
        self._dialect = login.dialect
        self._identity = login.identity
        self._request = login.request
        self._waiting: set[bytes] = set()
        self._live: list[bytes] = []
        self._refused: list[tuple[bytes, Joined]] = []
        self._is_sent = False

    @property
    def is_done(self) -> bool:
        """Whether the welcome was sent and no channel waits for the bus."""
        return self._is_sent and not self._waiting

    def join(self, name: bytes, policy: int) -> None:
        """Subscribe to a channel that comes with the token."""
        joined = self._hub.join(self._conn, name, policy, self._on_confirmed)
        if joined is Joined.ALREADY:  # the connection subscribed before it showed its token
            joined = self._hub.confirm(self._conn, name, self._on_confirmed)
        if joined is Joined.WAITS:
            self._waiting.add(name)
        elif joined is Joined.LIVE:
            self._live.append(name)
        elif joined in (Joined.TOO_MANY, Joined.BEHIND, Joined.FULL, Joined.REFUSED):
            self._refused.append((name, joined))

    def begin(self, confirmed: bytes = b"") -> None:
        """Send the welcome now, unless the bus will soon confirm every channel that waits.

        Args:
            confirmed: The channel that the hub confirms by this very call, if there is one.
        """
        if not self._waiting or not all(map(self._hub.is_live_for, self._waiting)):
            self._send(confirmed)

    def _on_confirmed(self, name: bytes, confirmation: Confirmation) -> None:
        """Note that the bus has confirmed or refused a channel, or was lost before it did."""
        if name not in self._waiting:
            return  # the client has unsubscribed meanwhile
        if confirmation is Confirmation.REFUSED:
            self._refuse(name)
            return
        if confirmation is Confirmation.LOST:
            self._hub.wait(self._conn, name, self._on_confirmed)
            if not self._is_sent:
                self._send()
            return
        self._waiting.discard(name)
        if self._is_sent:
            self._send_subscribed(name)
        else:
            self._live.append(name)
            self.begin(confirmed=name)
        self._finish()

    def _refuse(self, name: bytes) -> None:
        """Give up a channel of the token that the bus refuses, and tell the client."""
        self._waiting.discard(name)
        self._hub.leave(self._conn, name)
        if self._is_sent:
            self._subscriptions.refuse(self._conn, self._dialect, name, Joined.REFUSED)
        else:
            self._refused.append((name, Joined.REFUSED))
            self.begin()
        self._finish()

    def has(self, name: bytes) -> bool:
        """Return whether this channel comes with the token and was not confirmed to the client yet."""
        return name in self._waiting or name in self._live

    def forbidden(self, name: bytes) -> bool:
        """Refuse a confirmed channel that the bus forbids from now on, if the welcome is still to be sent.

        Returns:
            True: the client does not know of the subscription, and receives an error after its `welcome`.
            False: the client knows the subscription as confirmed, or the channel is not of this welcome.
        """
        if name not in self._live:
            return False
        self._live.remove(name)
        self._refused.append((name, Joined.REFUSED))
        return True

    def left(self, name: bytes) -> None:
        """Send nothing more about a channel that the client has unsubscribed."""
        self._waiting.discard(name)
        if name in self._live:
            self._live.remove(name)
        if not self._is_sent:
            self.begin()
        self._finish()

    def _finish(self) -> None:
        if self.is_done:
            self._done(self._conn)

    def _send(self, confirmed: bytes = b"") -> None:
        """Send the welcome, then the channels that are live, then subscribe to those of the URL.

        The hub confirms again that each channel is live. It was live when it was confirmed before, but its
        server may be lost since, and the servers of a cluster come and go one by one. A channel that is not
        live waits to be confirmed again. One that is live must not wait, because nothing would confirm it.
        """
        self._is_sent = True
        conn, dialect, request = self._conn, self._dialect, self._request
        live: list[bytes] = []
        for name in self._live:
            if name == confirmed or self._hub.confirm(conn, name, self._on_confirmed) is Joined.LIVE:
                live.append(name)
            else:
                self._waiting.add(name)
        self._live = []
        has_bus = not self._waiting
        self._replies.welcome(conn, dialect, self._identity, has_bus=has_bus, id=request.id)
        for name in live:
            self._send_subscribed(name)
        for name, joined in self._refused:
            self._subscriptions.refuse(conn, dialect, name, joined)
        self._subscriptions.subscribe_all(conn, dialect, request.channels, request.positions)

    def _send_subscribed(self, name: bytes) -> None:
        recovered = False if display_name(name) in self._request.positions else None
        self._replies.subscribed(self._conn, self._dialect, name, recovered=recovered)
