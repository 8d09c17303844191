"""Opens and uses one WebSocket with the library `websockets`, and records when the last byte arrived.

This is the only file of the client, besides `listen.py`, that imports the library. It turns the library's
exceptions into `Disconnected`.
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
"""Characters of a refusal's body that an error text shows: enough for the reason that a gateway sends."""

_CLOSE_S: Final = 2.0
"""Seconds for closing: until unsent bytes are sent and the gateway's Close has arrived. Closing must not hang
if the gateway no longer reads or responds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The parameters of one attempt to open a WebSocket.

    Attributes:
        url: `ws://` or `wss://`, with the query.
        token: Sent in the Authorization header, if there is one.
        within_s: Time limit of the handshake in seconds.
        max_message_bytes: Size of the largest message that is accepted from the gateway.
        now_s: The clock that sets `Transport.heard_s`.
        proxy: See `ClientOptions.proxy`.
    """

    url: str
    token: str | None = field(repr=False)
    within_s: float
    max_message_bytes: int
    now_s: Callable[[], float]
    proxy: bool | str = field(default=True, repr=False)


class Transport(Protocol):
    """An open WebSocket; tests replace it with a fake."""

    @property
    def heard_s(self) -> float:
        """The time on the clock when the last byte arrived. Ping frames count."""

    async def send(self, data: bytes) -> None:
        """Send one binary message; the bytes are handed to the socket before this first suspends.

        Raises:
            Disconnected: The connection has ended.
        """

    async def receive(self) -> object:
        """Wait for the next message and return it: bytes for a binary frame, str for a text frame.

        Raises:
            Disconnected: The connection has ended. The error holds the code and the reason of the Close.
        """

    async def ping(self) -> None:
        """Send a ping so that the gateway must send a byte back; do not wait for the pong."""

    async def close(self) -> None:
        """Send a Close, wait at most 2 s until the connection has ended, and then abort it."""

    def abort(self) -> None:
        """Drop the connection without a Close, so that `receive` raises soon."""


class _Connection(ClientConnection):
    """The library's connection, with the time of the last received byte."""

    def __init__(self, *arguments: Any, now_s: Callable[[], float], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.now_s = now_s
        self.heard_s = now_s()

    def data_received(self, data: bytes) -> None:
        self.heard_s = self.now_s()
        super().data_received(data)


class _Dialing(connect):
    """The library's attempt to connect, without following redirects: a gateway sends none.

    The login page of a network may redirect to a path of its own. Its answer there, such as 404, would
    end the client as if the gateway had sent it. A browser does not follow redirects either.
    """

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class _WebSocket:
    """An open WebSocket of the library, as a `Transport`."""

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
            # The library waits without limit until earlier bytes are sent, and only then applies its
            # `close_timeout`. Bytes are never sent if the peer has stopped reading.
            async with asyncio.timeout(_CLOSE_S):
                await self._connection.close()
        except TimeoutError:
            self.abort()
            await self._connection.wait_closed()
        except asyncio.CancelledError:
            self.abort()
            raise

    def abort(self) -> None:
        self._connection.transport.abort()


def _ending(error: Exception) -> Ending:
    """Return the ending for an exception of the library: the Close that arrived, or "connection lost".

    Of the Closes that this side sent, only "message too big" counts: the same message would be sent again
    after every reconnect.
    """
    if isinstance(error, ConnectionClosed):
        received, sent = error.rcvd, error.sent
        if sent is not None and sent.code == TOO_BIG and not error.rcvd_then_sent:
            return after_close(TOO_BIG, "message_too_big")
        if received is not None:
            return after_close(received.code, received.reason)
    return after_close(ABNORMAL, "connection_lost")


async def open_websocket(opening: Opening) -> Transport:
    """Open a WebSocket that uses the subprotocol `wsgate.v1.msgpack`.

    Raises:
        Disconnected: It cannot be opened. Its ending shows whether another attempt may succeed.
    """
    connection = await _dial(opening, [Subprotocol(SUBPROTOCOL)])
    if connection.subprotocol != SUBPROTOCOL:
        connection.transport.abort()
        raise Disconnected(Ending(0, "no_common_subprotocol", may_return=False))
    return _WebSocket(connection)


async def _dial(opening: Opening, subprotocols: list[Subprotocol] | None) -> _Connection:
    """Connect with the library websockets, and turn every failure of it into `Disconnected`."""
    headers = {"Authorization": f"Bearer {opening.token}"} if opening.token else None
    try:
        connection = await _Dialing(
            opening.url,
            subprotocols=subprotocols,
            additional_headers=headers,
            proxy=_proxy(opening),
            open_timeout=opening.within_s,
            close_timeout=_CLOSE_S,
            ping_interval=None,  # the gateway sends pings; the session checks `heard_s` for silence
            max_size=opening.max_message_bytes,
            create_connection=cast(type[ClientConnection], partial(_Connection, now_s=opening.now_s)),
        )
    except Exception as error:  # every exception of the library becomes `Disconnected`
        ending = failure_of(error)
        detail = f"{shown_url(opening.url)}: {_cause(error)}"
        raise Disconnected(replace(ending, detail=detail)) from error
    return cast(_Connection, connection)


def _proxy(opening: Opening) -> str | None:
    """Return the proxy to use for this URL, or None for a direct connection. Loopback is always direct.

    Raises:
        InvalidProxy: The environment or the options hold a proxy address that is not valid.
    """
    if opening.proxy is False or is_loopback(opening.url):
        return None
    proxy = get_proxy(parse_uri(opening.url)) if opening.proxy is True else opening.proxy
    if proxy is not None:
        try:
            parse_proxy(proxy)
        except ValueError as error:  # the port is not valid, or the user name cannot be decoded
            raise InvalidProxy("", "the address cannot be read") from error
    return proxy


def failure_of(error: Exception) -> Ending:
    """Return the ending for a failed attempt to open a connection.

    Source: protocols/codes/passing.json, "client".
    """
    match error:
        case InvalidStatus():
            return after_refusal(error.response.status_code, error.response.headers.get("Retry-After"))
        case InvalidProxyStatus():
            ending = after_refusal(error.response.status_code)
            may_return = ending.may_return and not ending.is_unauthorized  # the proxy has not seen a token
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
    """Describe why an attempt failed, on one line and without the password of a proxy."""
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
            return "no reply in time"
    text = " ".join(str(error).split())
    return text or type(error).__name__
