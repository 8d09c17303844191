"""Run a gateway in memory for the Python client: no socket, a manual clock, and chosen random numbers."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgpack

from wsgate.client import Client, ClientOptions, Disconnected, Ending, Environment, Opening
from wsgate.client.close_info import after_close

__all__ = ["ManualClock", "MemoryGateway", "MemoryLink", "World", "run", "until", "world"]

TURNS = 2_000
PING_S = 25
WITHIN_S = 60.0  # a test that hangs fails after this time


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a test to its end; a task that is left, or an error in a task, fails it."""
    complaints: list[str] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
        async with asyncio.timeout(WITHIN_S):
            await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    asyncio.run(watched())
    assert not complaints, complaints


async def until(claim: Callable[[], object]) -> None:
    """Let other tasks run until `claim()` is true; raise AssertionError when it never is."""
    for _ in range(TURNS):
        if claim():
            return
        await asyncio.sleep(0)
    raise AssertionError("this never came true")


class ManualClock:
    """A clock that moves only when a test advances it."""

    def __init__(self) -> None:
        self._now_s = 1_000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now_s(self) -> float:
        return self._now_s

    @property
    def sleeping(self) -> list[float]:
        """Return the remaining time of each sleeper, the shortest first."""
        return sorted(due_s - self._now_s for due_s, _ in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        sleeper = (self._now_s + seconds, asyncio.get_running_loop().create_future())
        self._sleepers.append(sleeper)
        try:
            await sleeper[1]
        finally:
            self._sleepers.remove(sleeper)

    def advance(self, seconds: float) -> None:
        """Move the clock, and wake the sleepers that are due on the next turn of the loop."""
        self._now_s += seconds
        for due_s, waiting in self._sleepers:
            if due_s <= self._now_s + 1e-9 and not waiting.done():
                waiting.set_result(None)


class MemoryLink:
    """One connection: the `Transport` of the client on one side, messages of the gateway on the other."""

    def __init__(self, gateway: "MemoryGateway", opening: Opening) -> None:
        self.opening = opening
        self.heard_s = opening.now_s()
        self.said: list[dict[str, Any]] = []  # commands of the client
        self.pings = 0
        self.is_closed = False
        self._gateway = gateway
        self._coming: deque[bytes | str] = deque()
        self._ending: Ending | None = None
        self._stirred = asyncio.Event()

    # --- the client's side ----------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        if self._ending is not None:
            raise Disconnected(self._ending)
        command: dict[str, Any] = msgpack.unpackb(data)
        self.said.append(command)
        self._gateway.answer(self, command)
        await asyncio.sleep(0)  # a real transport may wait here, and be cancelled

    async def receive(self) -> object:
        while not self._coming:
            if self._ending is not None:
                raise Disconnected(self._ending)
            self._stirred.clear()
            await self._stirred.wait()
        return self._coming.popleft()

    async def ping(self) -> None:
        self.pings += 1

    async def close(self) -> None:
        self.is_closed = True
        self.end(1000)
        await asyncio.sleep(0)

    def abort(self) -> None:
        self._coming.clear()
        self.end(1006)

    @property
    def has_ended(self) -> bool:
        return self._ending is not None

    # --- the gateway's side ---------------------------------------------------------------------------

    def hear(self) -> None:
        """Note that a byte arrived, such as one of a ping."""
        self.heard_s = self.opening.now_s()

    def say(self, op: str, **fields: Any) -> None:
        """Send one message to the client."""
        self.say_raw(msgpack.packb({"op": op, **{name.rstrip("_"): value for name, value in fields.items()}}))

    def say_raw(self, frame: bytes | str) -> None:
        self.hear()
        self._coming.append(frame)
        self._stirred.set()

    def publish(self, channel: str, data: Any, pos: str | None = None) -> None:
        self.say("msg", ch=channel, data=data, **({} if pos is None else {"pos": pos}))

    def end(self, code: int, reason: str = "") -> None:
        """End the connection; earlier messages still arrive."""
        self._ending = self._ending or after_close(code, reason)
        self._stirred.set()

    def commands(self, op: str) -> list[dict[str, Any]]:
        """Return the commands of one kind that the client sent, without the ids."""
        return [
            {key: value for key, value in each.items() if key not in ("op", "id")}
            for each in self.said
            if each["op"] == op
        ]


@dataclass
class MemoryGateway:
    """A gateway that accepts every connection and command, unless a test sets otherwise."""

    welcome: dict[str, Any] = field(default_factory=lambda: {"user": "42"})
    positions: dict[str, str] = field(default_factory=dict)  # positions in `subbed` of channels with history
    recovered: bool = False
    refusals: deque[Exception] = field(default_factory=deque)  # errors of the next handshakes
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)  # from an op or channel to its error
    silent: set[str] = field(default_factory=set)  # ops without an answer
    openings: list[Opening] = field(default_factory=list)
    links: list[MemoryLink] = field(default_factory=list)

    @property
    def link(self) -> MemoryLink:
        return self.links[-1]

    async def connect(self, opening: Opening) -> MemoryLink:
        self.openings.append(opening)
        await asyncio.sleep(0)
        if self.refusals:
            raise self.refusals.popleft()
        link = MemoryLink(self, opening)
        self.links.append(link)
        if "welcome" not in self.silent:
            link.say(
                "welcome",
                **{"conn": f"{len(self.links):016x}", "node": "n", "ping_s": PING_S, **self.welcome},
            )
            if self.welcome.get("user") and "@me" not in self.silent:
                link.say("subbed", **self._subbed("@me", None if "from=" not in opening.url else ""))
        return link

    def answer(self, link: MemoryLink, command: dict[str, Any]) -> None:
        op, number = command["op"], command.get("id")
        if op in self.silent or command.get("ch") in self.silent:
            return
        fault = self.faults.get(op) or self.faults.get(command.get("ch", ""))
        if fault is not None:
            code, error = fault
            link.say("err", id=number, code=code, error=error, message="no")
        elif op == "sub":
            link.say("subbed", id=number, **self._subbed(command["ch"], command.get("from")))
        elif op == "unsub":
            link.say("unsubbed", id=number, ch=command["ch"])
        elif op == "refresh":
            link.say("ok", id=number, expires_s=self.welcome.get("expires_s", 3600))
        else:
            link.say("ok", id=number)

    def _subbed(self, channel: str, stood: str | None) -> dict[str, Any]:
        fields: dict[str, Any] = {"ch": channel}
        if channel in self.positions:
            fields["pos"] = self.positions[channel]
        if stood is not None:
            fields["recovered"] = self.recovered
        return fields


@dataclass
class World:
    """A client of a gateway in memory, and the errors that it reported."""

    client: Client
    gateway: MemoryGateway
    clock: ManualClock
    errors: list[Exception]
    failed: asyncio.Event  # set at the first error

    async def opened(self, count: int) -> MemoryLink:
        """Wait until the `count`th connection is welcomed; return its link."""
        await until(lambda: len(self.gateway.links) >= count and self.client.state.value == "open")
        return self.gateway.links[count - 1]

    async def comes_back(self) -> MemoryLink:
        """Advance the clock by the back-off; return the link of the next connection."""
        count = len(self.gateway.links)
        await until(lambda: self.client.state.value == "waiting" and self.clock.sleeping)
        self.clock.advance(self.clock.sleeping[0])
        return await self.opened(count + 1)


@contextlib.asynccontextmanager
async def world(
    gateway: MemoryGateway | None = None,
    *,
    token: Any = None,
    options: ClientOptions | None = None,
    random: Callable[[], float] = lambda: 0.5,
    url: str = "ws://gateway/ws",
) -> AsyncIterator[World]:
    """Yield a started client that is not connected yet; close it and all its links at the end."""
    gateway = gateway or MemoryGateway()
    clock, errors, failed = ManualClock(), list[Exception](), asyncio.Event()

    def on_error(error: Exception) -> None:
        errors.append(error)
        failed.set()

    environment = Environment(clock=clock, random=random, connect=gateway.connect)
    client = Client(url, token=token, options=options, on_error=on_error, environment=environment)
    async with client:
        yield World(client, gateway, clock, errors, failed)
    assert all(link.is_closed for link in gateway.links)
