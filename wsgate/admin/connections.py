"""Limit the HTTP connections of the admin port: their number, their time, and the requests handled at once.

Rules:
- At the limit of connections, a new connection replaces the oldest one that has not sent a whole request,
  does not read its response, or has sent requests ahead of its responses. So clients that send incomplete
  requests, or many, cannot keep a health check out.
- At most `CONCURRENCY_LIMIT` requests are handled at a time. Health checks do not count, because they never
  wait.
- A new connection never replaces one whose request is being handled. There are fewer such requests than
  places.
"""

import asyncio
import contextlib
import itertools
import re
import socket
import struct
from collections.abc import Iterator
from typing import ClassVar, Final

import h11
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["CONCURRENCY_LIMIT", "HEAD_LIMIT_BYTES", "Connection", "with_limit"]

HEAD_LIMIT_BYTES: Final = 16 * 1024
CONCURRENCY_LIMIT: Final = 128
"""The most requests handled at a time; further requests are refused with 503."""
CONNECTIONS_LIMIT: Final = 256
"""The most connections; a further connection replaces another one."""
ANSWER_S: Final = 10.0
"""The longest time to send a request, and then the longest time until its response is read."""
HEALTH_PATHS: Final = frozenset({"/healthz", "/readyz"})

_NO_LINGER: Final = struct.pack("ii", 1, 0)
_HEAD_END: Final = re.compile(rb"\n\r?\n")  # accepts the same line ends as h11
_DISPLACED: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain\r\nContent-Length: 33\r\n"
    b"Connection: close\r\n\r\nThe request came in too slowly.\r\n"
)


def with_limit(app: ASGIApp) -> ASGIApp:
    """Wrap an application so that it handles at most `CONCURRENCY_LIMIT` requests, health checks excepted."""
    under_way = 0

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal under_way
        if scope["path"] in HEALTH_PATHS:
            await app(scope, receive, send)
            return
        if under_way >= CONCURRENCY_LIMIT:
            busy = PlainTextResponse("Service Unavailable", 503, {"Connection": "close", "Retry-After": "1"})
            await busy(scope, receive, send)
            return
        under_way += 1
        try:
            await app(scope, receive, send)
        finally:
            under_way -= 1

    return limited


class Connection(H11Protocol):
    """An HTTP connection that must complete each request, and then its response, within `ANSWER_S`.

    Without this, uvicorn waits without limit for the end of a request head, and for a peer that does not
    read.
    """

    _deadline: asyncio.TimerHandle | None = None
    _turns: ClassVar[Iterator[int]] = itertools.count(1)
    turn = 0  # a number and not a time, so that connections of the same moment have an order

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start a new connection; above `CONNECTIONS_LIMIT` it replaces the oldest replaceable one."""
        super().connection_made(transport)
        self._renew()
        if len(self.connections) > CONNECTIONS_LIMIT:
            others = [each for each in self.connections if isinstance(each, Connection) and each is not self]
            replaceable = [each for each in others if each.is_replaceable]
            oldest = min(replaceable, key=lambda each: each.turn, default=self)
            oldest.give_way()

    def handle_events(self) -> None:
        """Refuse a complete request head that is too long; h11 limits only incomplete heads."""
        if self.conn.their_state is h11.IDLE:
            waiting, _ = self.conn.trailing_data
            end = _HEAD_END.search(waiting)
            if end is not None and end.end() > HEAD_LIMIT_BYTES:
                self._refuse(431, b"Request Header Fields Too Large")
                return
        was_whole = self._is_whole
        super().handle_events()
        if self._is_whole and not was_whole:
            # The time that the client was idle, or took to send, is not part of the time for the response.
            self._restart_deadline()

    def on_response_complete(self) -> None:
        """Start the deadline of the next exchange, because a response is complete."""
        self._renew()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadline of the connection, which is closed."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    @property
    def _is_whole(self) -> bool:
        """Whether the request that is being handled was received completely."""
        return self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)

    @property
    def is_replaceable(self) -> bool:
        """Whether a new connection may replace this one: unless just one whole request is being handled."""
        # Reading is paused while a second request waits behind the one that is being handled.
        return not self._is_whole or self.flow.read_paused or self.transport.get_write_buffer_size() > 0

    def give_way(self) -> None:
        """Close this connection for a new one; send 408 first if the request head is incomplete."""
        if self.conn.our_state is h11.IDLE and not self.transport.get_write_buffer_size():
            self.transport.write(_DISPLACED)
            if not self.transport.get_write_buffer_size():
                self.transport.close()
                self.connections.discard(self)
                return
        self.reset()

    def reset(self) -> None:
        """Close the connection with a TCP reset, so that the kernel drops unsent data too."""
        peer = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()
        self.connections.discard(self)

    def _refuse(self, status: int, reason: bytes) -> None:
        """Send a response without a body, and close the connection."""
        headers = [("Content-Length", "0"), ("Connection", "close")]
        for event in (h11.Response(status_code=status, headers=headers, reason=reason), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _renew(self) -> None:
        """Restart the deadline, and give the connection the newest turn."""
        self.turn = next(self._turns)
        self._restart_deadline()

    def _restart_deadline(self) -> None:
        """Reset the connection in `ANSWER_S`, unless this is called again before."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(ANSWER_S, self.reset)
