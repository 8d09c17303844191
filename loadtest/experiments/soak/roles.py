"""The clients of the population: a well-behaved control group, and other clients that disturb it.

Each role is a coroutine that runs until it is cancelled, and that reconnects after every end of its
connection, so that the population is the same after a fault as before. The ends of connections are counted by
code and reason.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from loadtest.experiments.soak.record import Published, Session
from loadtest.harness.gateway import SECRET

__all__ = ["CONTROL_CHANNELS", "Town", "population"]

CONTROL_CHANNELS: Final = tuple(f"control:{number}" for number in range(6))
BULK_CHANNELS: Final = tuple(f"bulk:{number}" for number in range(4))
_AGAIN_S: Final = 0.1, 1.0
_OPEN_S: Final = 10.0
_ANSWER_S: Final = 10.0
_STORM_S: Final = 7.0
_GONE: Final = (OSError, ConnectionClosed, InvalidHandshake, TimeoutError, EOFError)


@dataclass(slots=True)
class Town:
    """The state that all clients of the population share.

    Attributes:
        port: The port of the gateway.
        chance: The randomness of the run, from its seed.
        published: The publications to the control channels.
        sessions: The sessions of the control group, also ended ones.
        pings_s: The round-trip times of the control group's pings.
        closes: The ends of connections by role, code and reason.
        refusals: The refusals of handshakes by role and status.
    """

    port: int
    chance: random.Random
    published: Published = field(default_factory=Published)
    sessions: list[Session] = field(default_factory=list)
    pings_s: list[float] = field(default_factory=list)
    closes: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    refusals: Counter[tuple[str, int]] = field(default_factory=Counter)

    def token(self, user: str) -> str:
        """Return a token that stays valid after every step of the clock."""
        return jwt.encode({"sub": user, "exp": int(time.time()) + 7 * 86_400}, SECRET, algorithm="HS256")

    @contextlib.asynccontextmanager
    async def connection(self, role: str, user: str) -> AsyncIterator[ClientConnection]:
        """Connect as a user, and count how the connection ends."""
        url = f"ws://127.0.0.1:{self.port}/ws"
        headers = {"Authorization": f"Bearer {self.token(user)}"}
        try:
            ws = await connect(
                url,
                subprotocols=["wsgate.v1.json"],  # type: ignore[list-item]
                additional_headers=headers,
                compression=None,
                ping_interval=None,
                open_timeout=_OPEN_S,
                close_timeout=1.0,
            )
        except InvalidHandshake as error:
            response = getattr(error, "response", None)
            self.refusals[role, response.status_code if response is not None else 0] += 1
            raise
        said = ""
        try:
            yield ws
        finally:
            await ws.close()
            said = ws.close_reason or ""
            self.closes[role, ws.close_code or 1006, said] += 1


_Waiting = dict[Any, float | tuple[str, int, float]]
"""By the id of a command: when a ping was sent, or what was published and when."""
Role = Callable[[Town, int], Awaitable[None]]


async def _for_ever(town: Town, role: Role, number: int) -> None:
    while True:
        with contextlib.suppress(*_GONE):
            await role(town, number)
        await asyncio.sleep(town.chance.uniform(*_AGAIN_S))


# --- the control group --------------------------------------------------------------------------------


async def control(town: Town, number: int) -> None:
    """Subscribe to two channels, record everything, and ping; every fifth client publishes."""
    async with town.connection("control", f"control-{number}") as ws:
        session = Session()
        waiting: _Waiting = {}
        town.sessions.append(session)
        speaker = asyncio.ensure_future(_speak(ws, town, number, waiting))
        try:
            async for text in ws:
                _note(json.loads(text), town, session, waiting, f"client-{number}")
        finally:
            speaker.cancel()
            session.ended_s = time.monotonic()


def _note(
    message: dict[str, Any],
    town: Town,
    session: Session,
    waiting: _Waiting,
    source: str,
) -> None:
    now_s, op = time.monotonic(), message.get("op")
    if op == "msg" and message["ch"] in CONTROL_CHANNELS:
        session.receive(message["ch"], message["data"]["source"], message["data"]["number"])
    elif op == "subbed":
        session.subscribed_s.setdefault(message["ch"], now_s)
    elif op == "gap":
        session.gap(message.get("ch", ""), now_s)
    elif op in ("ok", "pong", "err"):
        began = waiting.pop(message.get("id"), None)
        if isinstance(began, float) and op == "pong":
            town.pings_s.append(now_s - began)
        elif isinstance(began, tuple) and op == "ok":
            town.published.add(began[0], source, began[1], began[2], now_s)


_numbers: Counter[str] = Counter()


async def _speak(ws: ClientConnection, town: Town, number: int, waiting: _Waiting) -> None:
    channels = CONTROL_CHANNELS[number % len(CONTROL_CHANNELS)], CONTROL_CHANNELS[0]
    for channel in dict.fromkeys(channels):
        await ws.send(json.dumps({"op": "sub", "ch": channel}))
    source = f"client-{number}"
    for id in range(1, 1_000_000_000):
        await asyncio.sleep(town.chance.uniform(0.2, 0.4))
        if id % 3 == 0:
            waiting[id] = time.monotonic()
            await ws.send(json.dumps({"op": "ping", "id": id}))
        elif number % 5 == 0:
            _numbers[source] += 1
            data = {"source": source, "number": _numbers[source]}
            waiting[id] = channels[0], _numbers[source], time.monotonic()
            await ws.send(json.dumps({"op": "pub", "ch": channels[0], "data": data, "id": id}))


# --- neighbours ---------------------------------------------------------------------------------------


async def churn(town: Town, number: int) -> None:
    """Connect, subscribe, disconnect; sometimes without a Close."""
    async with town.connection("churn", f"churn-{number}") as ws:
        for _ in range(town.chance.randint(0, 5)):
            op = town.chance.choice(("sub", "unsub", "ping"))
            await ws.send(json.dumps({"op": op, "ch": f"bulk:{town.chance.randint(0, 99)}", "id": 1}))
        await asyncio.sleep(town.chance.uniform(0.0, 1.0))
        if town.chance.random() < 0.3:
            ws.transport.abort()


async def talker(town: Town, number: int) -> None:
    """Send small commands all the time."""
    async with town.connection("talker", f"talker-{number}") as ws:
        reader = asyncio.ensure_future(_drain(ws))
        try:
            for id in range(1, 1_000_000_000):
                await ws.send(json.dumps({"op": town.chance.choice(("ping", "send")), "data": id, "id": id}))
                await asyncio.sleep(0.01)
        finally:
            reader.cancel()


async def burst(town: Town, number: int) -> None:
    """Publish 200 messages at once to channels with slow readers, every few seconds."""
    async with town.connection("burst", f"burst-{number}") as ws:
        reader = asyncio.ensure_future(_drain(ws))
        try:
            while True:
                await asyncio.sleep(town.chance.uniform(1.0, 4.0))
                for id in range(200):
                    data = "x" * town.chance.choice((10, 100, 2_000))
                    channel = BULK_CHANNELS[id % len(BULK_CHANNELS)]
                    await ws.send(json.dumps({"op": "pub", "ch": channel, "data": data, "id": id}))
        finally:
            reader.cancel()


async def storm(town: Town, number: int) -> None:
    """Be disconnected together with all clients of this role, and reconnect at once."""
    async with town.connection("storm", f"storm-{number}") as ws:
        await ws.send(json.dumps({"op": "sub", "ch": BULK_CHANNELS[number % len(BULK_CHANNELS)]}))
        reader = asyncio.ensure_future(_drain(ws))
        try:
            await asyncio.sleep(_STORM_S - time.monotonic() % _STORM_S)
        finally:
            reader.cancel()
        ws.transport.abort()


async def _drain(ws: ClientConnection) -> None:
    with contextlib.suppress(*_GONE):
        async for _ in ws:
            pass


async def slow(town: Town, number: int) -> None:
    """Subscribe to busy channels; read a kilobyte a second, or nothing, or much at long intervals."""
    reader, writer = await asyncio.open_connection("127.0.0.1", town.port, limit=1_024)
    try:
        key = base64.b64encode(os.urandom(16)).decode()
        head = (
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{town.port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            f"Authorization: Bearer {town.token(f'slow-{number}')}\r\n\r\n"
        )
        writer.write(head.encode())
        async with asyncio.timeout(_OPEN_S):
            answer = await reader.readuntil(b"\r\n\r\n")
        if b" 101 " not in answer.split(b"\r\n", 1)[0]:
            town.refusals["slow", int(answer.split()[1])] += 1
            return
        for channel in BULK_CHANNELS:
            writer.write(_text_frame(json.dumps({"op": "sub", "ch": channel}).encode()))
        pause_s, size = ((1.0, 1_000), (30.0, 1), (3.0, 100_000))[number % 3]
        while await reader.read(size):  # noqa: ASYNC110 - the rate of a slow reader
            await asyncio.sleep(pause_s)
        town.closes["slow", 0, "end of stream"] += 1
    finally:
        writer.close()


def _text_frame(payload: bytes) -> bytes:
    """Return one text frame of at most 125 bytes (RFC 6455 section 5.2), masked with zeros."""
    return struct.pack("!BB", 0x81, 0x80 | len(payload)) + bytes(4) + payload


_ROLES: Final[tuple[tuple[Role, int], ...]] = (
    (control, 30),
    (churn, 30),
    (slow, 18),
    (talker, 10),
    (burst, 3),
    (storm, 60),
)


def population(town: Town) -> list[asyncio.Task[None]]:
    """Start all clients as tasks; cancel the tasks to disconnect them."""
    return [
        asyncio.create_task(_for_ever(town, role, number))
        for role, count in _ROLES
        for number in range(count)
    ]
