"""A gateway in memory for the Python client: no socket, a clock moved by hand, and chance by choice."""

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
WITHIN_S = 60.0  # what hangs fails


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a test to its end; whatever it leaves behind, or hides in a task, fails it."""
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
    """Let others run until `claim()` is true; AssertionError when it never is."""
    for _ in range(TURNS):
        if claim():
            return
        await asyncio.sleep(0)
    raise AssertionError("this never came true")


class ManualClock:
    """Time that stands until it is moved."""

    def __init__(self) -> None:
        self._now_s = 1_000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now_s(self) -> float:
        return self._now_s

    @property
    def sleeping(self) -> list[float]:
        """How long each sleeper still sleeps, the shortest first."""
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
        """Wake up who is due, on the next turn of the loop."""
        self._now_s += seconds
        for due_s, waiting in self._sleepers:
            if due_s <= self._now_s + 1e-9 and not waiting.done():
                waiting.set_result(None)


class MemoryLink:
    """One connection: the client's `Transport` on one side, what the gateway says on the other."""

    def __init__(self, gateway: "MemoryGateway", opening: Opening) -> None:
        self.opening = opening
        self.heard_s = opening.now_s()
        self.said: list[dict[str, Any]] = []  # by the client
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
        await asyncio.sleep(0)  # a real one may wait here, and be cancelled

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
        """Some byte came, such as a ping's."""
        self.heard_s = self.opening.now_s()

    def say(self, op: str, **fields: Any) -> None:
        """One message to the client."""
        self.say_raw(msgpack.packb({"op": op, **{name.rstrip("_"): value for name, value in fields.items()}}))

    def say_raw(self, frame: bytes | str) -> None:
        self.hear()
        self._coming.append(frame)
        self._stirred.set()

    def publish(self, channel: str, data: Any, pos: str | None = None) -> None:
        self.say("msg", ch=channel, data=data, **({} if pos is None else {"pos": pos}))

    def end(self, code: int, reason: str = "") -> None:
        """What was said before still arrives."""
        self._ending = self._ending or after_close(code, reason)
        self._stirred.set()

    def commands(self, op: str) -> list[dict[str, Any]]:
        """What the client said, of one kind, without the ids."""
        return [
            {key: value for key, value in each.items() if key not in ("op", "id")}
            for each in self.said
            if each["op"] == op
        ]


@dataclass
class MemoryGateway:
    """Welcomes everybody and grants everything, unless told otherwise."""

    welcome: dict[str, Any] = field(default_factory=lambda: {"user": "42"})
    positions: dict[str, str] = field(default_factory=dict)  # of channels with history, at `subbed`
    recovered: bool = False
    refusals: deque[Exception] = field(default_factory=deque)  # of the next handshakes
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)  # op or channel to the error it meets
    silent: set[str] = field(default_factory=set)  # ops that are not answered
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
    """A client in it, and what it was told."""

    client: Client
    gateway: MemoryGateway
    clock: ManualClock
    errors: list[Exception]
    failed: asyncio.Event  # set when there is one

    async def opened(self, count: int) -> MemoryLink:
        """The link of the `count`th connection, once it was welcomed."""
        await until(lambda: len(self.gateway.links) >= count and self.client.state.value == "open")
        return self.gateway.links[count - 1]

    async def comes_back(self) -> MemoryLink:
        """Pass the time of the back-off; the next connection."""
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
    """A started client that is not connected yet; closed at the end, with every link of it."""
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
