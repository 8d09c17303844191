"""Run a scripted gateway on real sockets: the library `websockets`, in the loop of the test."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgpack
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

__all__ = ["ScriptedGateway", "Visit", "scripted_gateway"]

WITHIN_S = 30.0


@dataclass
class Visit:
    """One connection of a client."""

    socket: ServerConnection
    said: list[dict[str, Any]] = field(default_factory=list)
    stirred: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def token(self) -> str | None:
        assert self.socket.request is not None
        return self.socket.request.headers.get("Authorization", "").removeprefix("Bearer ") or None

    @property
    def path(self) -> str:
        assert self.socket.request is not None
        return self.socket.request.path

    async def say(self, op: str, **fields: Any) -> None:
        await self.socket.send(msgpack.packb({"op": op, **fields}))

    async def heard(self, op: str, count: int = 1) -> dict[str, Any]:
        """Wait for the `count`th command of this kind and return it."""
        async with asyncio.timeout(WITHIN_S):
            while len(found := [each for each in self.said if each["op"] == op]) < count:
                self.stirred.clear()
                await self.stirred.wait()
        return found[count - 1]

    async def close(self, code: int, reason: str = "", retry_ms: int | None = None) -> None:
        """Send `bye` for a code from 4000 on, and the Close."""
        if code >= 4000:
            more = {"retry_ms": retry_ms or 0} if code < 4500 else {}
            await self.say("bye", code=code, reason=reason or "why", reconnect=code < 4500, **more)
        await self.socket.close(code, reason)


@dataclass
class ScriptedGateway:
    """A gateway that accepts every connection and command, unless a test sets otherwise."""

    port: int = 0
    welcome: dict[str, Any] = field(default_factory=lambda: {"user": "42"})
    refusals: deque[tuple[int, dict[str, str]]] = field(
        default_factory=deque
    )  # status and headers of the next refusals
    requests: list[Request] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    async def visit(self, count: int) -> Visit:
        """Wait for the `count`th connection and return it."""
        async with asyncio.timeout(WITHIN_S):
            while len(self.visits) < count:
                self.came.clear()
                await self.came.wait()
        return self.visits[count - 1]

    def judge(self, socket: ServerConnection, request: Request) -> Response | None:
        """Refuse a handshake if a refusal is set; otherwise accept it."""
        self.requests.append(request)
        if not self.refusals:
            return None
        status, headers = self.refusals.popleft()
        response = socket.respond(HTTPStatus(status), "no\n")
        response.headers.update(headers)
        return response

    async def serve(self, socket: ServerConnection) -> None:
        """Serve one connection: welcome it, record its commands and answer them."""
        visit = Visit(socket)
        with contextlib.suppress(ConnectionClosed):
            fields = {"conn": f"{len(self.visits) + 1:016x}", "node": "n", "ping_s": 25, **self.welcome}
            await visit.say("welcome", **fields)
            self.visits.append(visit)
            self.came.set()
            async for message in socket:
                assert isinstance(message, bytes)
                command = msgpack.unpackb(message)
                visit.said.append(command)
                visit.stirred.set()
                await self._answer(visit, command)

    async def _answer(self, visit: Visit, command: dict[str, Any]) -> None:
        number = command["id"]
        if command["op"] == "sub":
            await visit.say("subbed", ch=command["ch"], id=number)
        elif command["op"] == "unsub":
            await visit.say("unsubbed", ch=command["ch"], id=number)
        else:
            more = {"expires_s": 3600} if command["op"] == "refresh" else {}
            await visit.say("ok", id=number, **more)


@contextlib.asynccontextmanager
async def scripted_gateway(gateway: ScriptedGateway | None = None) -> AsyncIterator[ScriptedGateway]:
    """Run a scripted gateway; close it and its connections at the end."""
    gateway = gateway or ScriptedGateway()
    async with serve(
        gateway.serve,
        "127.0.0.1",
        0,
        subprotocols=[Subprotocol("wsgate.v1.msgpack")],
        process_request=gateway.judge,
        ping_interval=None,
        close_timeout=1,
    ) as server:
        gateway.port = next(iter(server.sockets)).getsockname()[1]
        yield gateway
