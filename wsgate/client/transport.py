"""One WebSocket to a gateway, on `websockets`: bytes out, frames in, and when anything was last heard.

The only file of the client that knows the library. What the library raises leaves here as `Disconnected`.
"""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidProxy,
    InvalidProxyStatus,
    InvalidStatus,
    ProxyError,
    WebSocketException,
)
from websockets.proxy import get_proxy, parse_proxy
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from wsgate.client.close_info import ABNORMAL, TOO_BIG, Ending, after_close, after_refusal
from wsgate.client.errors import Disconnected
from wsgate.client.protocol import SUBPROTOCOL
from wsgate.client.urls import is_loopback, shown_url

__all__ = ["Opening", "Transport", "failure_of", "open_websocket"]

_BODY_CHARACTERS: Final = 100
"""How much of the body of a refusal an error shows: enough for the reason that a gateway gives."""

_CLOSE_S: Final = 2.0
"""How long a gateway may take to answer our Close; leaving must not hang on a dead one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What to open.

    Attributes:
        url: `ws://` or `wss://`, with its query.
        token: Goes into the Authorization header when given.
        within_s: Time limit of the handshake.
        max_message_bytes: Largest message taken from the gateway.
        now_s: The clock by which `Transport.heard_s` is told.
        proxy: See `ClientOptions.proxy`.
    """

    url: str
    token: str | None = field(repr=False)
    within_s: float
    max_message_bytes: int
    now_s: Callable[[], float]
    proxy: bool | str = field(default=True, repr=False)


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
            proxy=_proxy(opening),
            open_timeout=opening.within_s,
            close_timeout=_CLOSE_S,
            ping_interval=None,  # the gateway pings; silence is watched by whoever asks `heard_s`
            max_size=opening.max_message_bytes,
            create_connection=cast(type[ClientConnection], partial(_Connection, now_s=opening.now_s)),
        )
    except Exception as error:  # whatever the library and those below it raise ends here
        ending = failure_of(error)
        detail = f"{shown_url(opening.url)}: {_cause(error)}"
        raise Disconnected(replace(ending, detail=detail)) from error
    return cast(_Connection, connection)


def _proxy(opening: Opening) -> str | None:
    """The proxy for this address; None to connect directly, as always to this machine.

    Raises:
        InvalidProxy: The environment or the options name something that is no proxy.
    """
    if opening.proxy is False or is_loopback(opening.url):
        return None
    proxy = get_proxy(parse_uri(opening.url)) if opening.proxy is True else opening.proxy
    if proxy is not None:
        try:
            parse_proxy(proxy)
        except ValueError as error:  # its port, or a user name that cannot be decoded
            raise InvalidProxy("", "the address cannot be read") from error
    return proxy


def failure_of(error: Exception) -> Ending:
    """What a failed attempt to open a connection means. Source: protocols/codes/passing.json, "client"."""
    match error:
        case InvalidStatus():
            return after_refusal(error.response.status_code, error.response.headers.get("Retry-After"))
        case InvalidProxyStatus():
            ending = after_refusal(error.response.status_code)
            may_return = ending.may_return and not ending.is_unauthorized  # no token is shown to a proxy
            reason = "proxy_failed" if may_return else "proxy_refused"
            return replace(ending, code=0, reason=reason, may_return=may_return)
        case InvalidProxy() | ImportError():  # SOCKS needs a package that may be missing
            return Ending(0, "proxy_unusable", may_return=False)
        case ProxyError():
            return Ending(0, "proxy_failed")
        case TimeoutError():
            return Ending(0, "handshake_timeout")
        case ssl.SSLError():
            return Ending(0, "tls_failed")
        case OSError():
            return Ending(0, "unreachable")
    return Ending(0, "handshake_failed")


def _cause(error: Exception) -> str:
    """Why an attempt failed, in words and on one line, without the password of a proxy."""
    match error:
        case InvalidStatus():
            body = bytes(error.response.body or b"").decode("ascii", "replace").split("\n")[0]
            text = "".join(sign for sign in body if sign.isprintable())[:_BODY_CHARACTERS]
            return f"answered {error.response.status_code}" + (f", {text}" if text else "")
        case InvalidProxyStatus():
            return f"the proxy answered {error.response.status_code}"
        case InvalidProxy():
            return f"the proxy that is configured is not valid: {error.msg}; see ClientOptions.proxy"
        case ImportError():
            return f"{error}; see ClientOptions.proxy"
        case TimeoutError():
            return "no answer in time"
    text = " ".join(str(error).split())
    return text or type(error).__name__
