"""One WebSocket to a gateway, on `websockets`: bytes out, frames in, and when anything was last heard.

The only file of the client that knows the library. What the library raises leaves here as `Disconnected`.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from wsgate.client.endings import ABNORMAL, TOO_BIG, Ending, after_close, after_refusal
from wsgate.client.errors import Disconnected
from wsgate.client.protocol import SUBPROTOCOL

__all__ = ["Opening", "Transport", "open_websocket"]

_CLOSE_S: Final = 2.0
"""How long a gateway may take to answer our Close; leaving must not hang on a dead one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What to open.

    Attributes:
        url: `ws://` or `wss://`, with its query.
        token: Goes into the Authorization header when given.
        within_s: Time limit of the handshake.
        message_limit_bytes: Largest message taken from the gateway.
        now_s: The clock by which `Transport.heard_s` is told.
    """

    url: str
    token: str | None = field(repr=False)
    within_s: float
    message_limit_bytes: int
    now_s: Callable[[], float]


class Transport(Protocol):
    """An open connection."""

    @property
    def heard_s(self) -> float:
        """When any byte last came, a ping's included."""

    async def send(self, data: bytes) -> None:
        """Write one binary message. It is under way before the first suspension.

        Raises:
            Disconnected: The connection has ended.
        """

    async def receive(self) -> object:
        """The next message: bytes, or a str for a text frame.

        Raises:
            Disconnected: The connection has ended; with the Close code and reason.
        """

    async def ping(self) -> None:
        """Make the other side say something; not waited for."""

    async def close(self) -> None:
        """Say goodbye and wait until the connection is gone, for a bounded time."""

    def abort(self) -> None:
        """Cut it off now: `receive` raises soon."""


class _Connection(ClientConnection):
    """The library's connection, noting when it heard something."""

    def __init__(self, *arguments: Any, now_s: Callable[[], float], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.now_s = now_s
        self.heard_s = now_s()

    def data_received(self, data: bytes) -> None:
        self.heard_s = self.now_s()
        super().data_received(data)


class _WebSocket:
    """See `Transport`."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    @property
    def heard_s(self) -> float:
        return self._connection.heard_s

    async def send(self, data: bytes) -> None:
        try:
            await self._connection.send(data)
        except (WebSocketException, OSError) as error:
            raise Disconnected(_ending(error)) from error

    async def receive(self) -> object:
        try:
            return await self._connection.recv()
        except (WebSocketException, OSError) as error:
            raise Disconnected(_ending(error)) from error

    async def ping(self) -> None:
        try:
            await self._connection.ping()
        except (WebSocketException, OSError) as error:
            raise Disconnected(_ending(error)) from error

    async def close(self) -> None:
        try:
            await self._connection.close()
        except asyncio.CancelledError:
            self.abort()
            raise

    def abort(self) -> None:
        self._connection.transport.abort()


def _ending(error: Exception) -> Ending:
    """The Close that came; else that none came.

    Of our own Closes only one counts: a message beyond the limit would come again after every reconnect.
    """
    if isinstance(error, ConnectionClosed):
        received, sent = error.rcvd, error.sent
        if sent is not None and sent.code == TOO_BIG and not error.rcvd_then_sent:
            return after_close(TOO_BIG, "message_too_big")
        if received is not None:
            return after_close(received.code, received.reason)
    return after_close(ABNORMAL, "connection_lost")


async def open_websocket(opening: Opening) -> Transport:
    """Open a connection that speaks `wsgate.v1.msgpack`.

    Raises:
        Disconnected: It cannot be opened; its ending says whether another attempt may help.
    """
    connection = await _dial(opening, [Subprotocol(SUBPROTOCOL)])
    if connection.subprotocol != SUBPROTOCOL:
        connection.transport.abort()
        raise Disconnected(Ending(0, "no_common_subprotocol", may_return=False))
    return _WebSocket(connection)


async def _dial(opening: Opening, subprotocols: list[Subprotocol] | None) -> _Connection:
    """The library's connection, set up as this client wants it. Raises as `open_websocket` does."""
    headers = {"Authorization": f"Bearer {opening.token}"} if opening.token else None
    try:
        connection = await connect(
            opening.url,
            subprotocols=subprotocols,
            additional_headers=headers,
            open_timeout=opening.within_s,
            close_timeout=_CLOSE_S,
            ping_interval=None,  # the gateway pings; silence is watched by whoever asks `heard_s`
            max_size=opening.message_limit_bytes,
            create_connection=cast(type[ClientConnection], partial(_Connection, now_s=opening.now_s)),
        )
    except InvalidStatus as error:
        answer = error.response
        raise Disconnected(after_refusal(answer.status_code, answer.headers.get("Retry-After"))) from error
    except TimeoutError as error:
        raise Disconnected(Ending(0, "handshake_timeout")) from error
    except OSError as error:
        raise Disconnected(Ending(0, "unreachable")) from error
    except WebSocketException as error:
        raise Disconnected(Ending(0, "handshake_failed")) from error
    return cast(_Connection, connection)
