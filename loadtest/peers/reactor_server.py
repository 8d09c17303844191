"""The reactor under uvloop with an echo handler: the server that the bench measures.

Its loop is the one in wsgate/reactor/loop.pyi: poll, act, flush, and again while there is more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from loadtest.peers import control
from loadtest.peers.server import SUBSCRIBE, Server
from wsgate import handshake
from wsgate.reactor import GateLimits, ListenerOptions, Reactor, Settings, event_kinds, open_listener

__all__ = ["ReactorServer"]

_TICK_S = 0.25


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class ReactorServer:
    """An echo server with channels on one reactor.

    Args:
        loop: The running loop.
        settings: Fields of wsgate.reactor.Settings.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: dict[str, Any]) -> None:
        """Listen on a free loopback port, and drive the reactor on the loop."""
        self._loop = loop
        self._reactor = Reactor(Settings(**settings), now_ms=_now_ms())
        self._listener = open_listener("127.0.0.1", 0, ListenerOptions())
        self._is_scheduled = False
        self._waiting: list[asyncio.Future[None]] = []
        self._reactor.listen(self._listener.fileno())
        loop.add_reader(self._reactor.fileno(), self._pump)
        loop.call_later(_TICK_S, self._tick)

    @property
    def port(self) -> int:
        """The TCP port of the reactor's listener."""
        port: int = self._listener.getsockname()[1]
        return port

    def publish(self, channel: str, payloads: Sequence[bytes]) -> int:
        """Queue the messages; writing to the subscribers starts with the next pass of the loop."""
        reached = 0
        for payload in payloads:
            reached = self._reactor.publish(channel.encode(), (payload,))
        self._schedule()
        return reached

    async def drained(self) -> None:
        """Wait until a flush has left nothing to write."""
        done = self._loop.create_future()
        self._waiting.append(done)
        self._schedule()
        await done

    def subscribers(self, channel: str) -> int:
        """Return the reactor's number of subscribers of the channel."""
        return self._reactor.subscribers(channel.encode())

    def limit_connections(self, limit: int) -> None:
        """Limit the connections in the reactor's gate."""
        refusal = handshake.refusal(503, "bench", retry_after_s=10)
        self._reactor.set_gate(GateLimits(connections=limit), refusal.response)

    def counters(self) -> dict[str, int]:
        """Return the counters of the reactor by name."""
        return self._reactor.counters()

    def bytes_held(self) -> dict[str, int]:
        """Return the reactor's memory in bytes, by kind."""
        return self._reactor.bytes_held()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        self._is_scheduled = False
        self._pump()

    def _tick(self) -> None:
        self._loop.call_later(_TICK_S, self._tick)
        self._reactor.tick(_now_ms())
        self._pump()

    def _pump(self) -> None:
        reactor = self._reactor
        now_ms = time.monotonic_ns() // 1_000_000
        for kind, conn, value in reactor.poll(now_ms):
            if kind <= event_kinds.BINARY:
                assert isinstance(value, bytes)
                if value.startswith(SUBSCRIBE):
                    reactor.subscribe(conn, value[len(SUBSCRIBE) :])
                else:
                    reactor.send(conn, value, kind)
            elif kind == event_kinds.OPEN:
                assert isinstance(value, bytes)
                self._on_open(conn, value)
        is_behind = reactor.flush(now_ms)
        if is_behind or reactor.more:
            self._schedule()
        if not is_behind and self._waiting:
            self._wake()

    def _on_open(self, conn: int, head: bytes) -> None:
        request = handshake.parse_head(head)
        if isinstance(request, handshake.Refusal):
            self._reactor.refuse(conn, request.response)
        else:
            self._reactor.upgrade(conn, handshake.accept(request).response)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            if not done.done():
                done.set_result(None)


def _make(loop: asyncio.AbstractEventLoop, settings: dict[str, Any]) -> Server:
    return ReactorServer(loop, settings)


if __name__ == "__main__":
    control.serve(_make)
