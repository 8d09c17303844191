"""HTTP connections of the admin port: which may stay, and what a request may be.

Rules:
- A newcomer takes the place of the oldest connection that has not sent a whole request, or does not take its
  answer, or has sent requests ahead of its answers. So sockets that send half a request, or many, cannot keep
  a health check out.
- Only so many requests are worked on at a time, and health checks do not count: they wait for nothing.
- Requests that are worked on are never cut for a newcomer. They are fewer than there are places.
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
"""Requests that are worked on, above which others are answered 503."""
CONNECTIONS_LIMIT: Final = 256
"""Connections, above which a new one takes the place of another."""
ANSWER_S: Final = 10.0
"""How long a connection may take for one answer: to ask for it, and to take it."""
HEALTH_PATHS: Final = frozenset({"/healthz", "/readyz"})

_NO_LINGER: Final = struct.pack("ii", 1, 0)
_HEAD_END: Final = re.compile(rb"\n\r?\n")  # as lenient as h11 is
_DISPLACED: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain\r\nContent-Length: 33\r\n"
    b"Connection: close\r\n\r\nThe request came in too slowly.\r\n"
)


def with_limit(app: ASGIApp) -> ASGIApp:
    """The application with at most `CONCURRENCY_LIMIT` requests at a time; health checks do not count."""
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
    """An HTTP connection that must get an answer through from time to time.

    uvicorn itself waits for ever for a head that does not end, and for a peer that does not read.
    """

    _deadline: asyncio.TimerHandle | None = None
    _turns: ClassVar[Iterator[int]] = itertools.count(1)
    turn = 0  # of all that connected or got an answer: a clock would not tell apart who came together

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, in the place of another connection where there are too many."""
        super().connection_made(transport)
        self._renew()
        if len(self.connections) > CONNECTIONS_LIMIT:
            others = [each for each in self.connections if isinstance(each, Connection) and each is not self]
            replaceable = [each for each in others if each.is_replaceable]
            oldest = min(replaceable, key=lambda each: each.turn, default=self)
            oldest.give_way()

    def handle_events(self) -> None:
        """Refuse a head that is complete and too long; h11 looks only at those that are not complete."""
        if self.conn.their_state is h11.IDLE:
            waiting, _ = self.conn.trailing_data
            end = _HEAD_END.search(waiting)
            if end is not None and end.end() > HEAD_LIMIT_BYTES:
                self._refuse(431, b"Request Header Fields Too Large")
                return
        super().handle_events()

    def on_response_complete(self) -> None:
        """An answer is through: time for the next one."""
        self._renew()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadline of the connection, which is closed."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    @property
    def is_replaceable(self) -> bool:
        """Whether a newcomer may have its place: unless exactly one whole request is being worked on."""
        is_whole = self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)
        # Reading is paused while a request waits behind the one that is worked on.
        return not is_whole or self.flow.read_paused or self.transport.get_write_buffer_size() > 0

    def give_way(self) -> None:
        """End at once for a newcomer; a peer whose head is not whole is told."""
        if self.conn.our_state is h11.IDLE and not self.transport.get_write_buffer_size():
            self.transport.write(_DISPLACED)
            if not self.transport.get_write_buffer_size():
                self.transport.close()
                self.connections.discard(self)
                return
        self.reset()

    def reset(self) -> None:
        """End it at once. What the kernel still holds for a peer that does not read is dropped too."""
        peer = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()
        self.connections.discard(self)

    def _refuse(self, status: int, reason: bytes) -> None:
        headers = [("Content-Length", "0"), ("Connection", "close")]
        for event in (h11.Response(status_code=status, headers=headers, reason=reason), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _renew(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self.turn = next(self._turns)
        self._deadline = self.loop.call_later(ANSWER_S, self.reset)
