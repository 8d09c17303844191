"""Send publications of clients in turns, and commands of the gateway before all of them.

The bus answers when the test allows it. The tests count how many commands went before another.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

import pytest
import uvloop

from tests.support.fake_bus import FakeBus, Talk, fake_bus, until
from wsgate.bus import Publisher, pack, publisher
from wsgate.bus.publisher import WAITING_LIMIT, WINDOW_BYTES, WINDOW_COMMANDS
from wsgate.turns import CROWDED, Sender

GOOD = Sender("good", 0)


@dataclass
class Slow:
    """A bus that answers only as many commands as the test allows."""

    allowed: int = 0
    unanswered: list[tuple[Talk, bytes]] = field(default_factory=list)

    def answer(self, talk: Talk, parts: list[bytes]) -> bytes | None:
        if parts[0] == b"PING":
            return None
        self.unanswered.append((talk, b":1\r\n"))
        return self.give()

    def give(self) -> bytes:
        while self.allowed and self.unanswered:
            self.allowed -= 1
            talk, said = self.unanswered.pop(0)
            if not talk.writer.transport.is_closing():
                talk.writer.write(said)
        return b""

    def allow(self, count: int) -> None:
        self.allowed += count
        self.give()


@dataclass
class Scene:
    """A publisher, its bus, and the outcomes of all publications."""

    bus: FakeBus
    slow: Slow
    publisher: Publisher
    outcomes: dict[object, Counter[str]] = field(default_factory=dict)

    def publish(self, sender: Sender, count: int = 1, size: int = 60) -> None:
        for _ in range(count):
            name = str(sender.party).encode()
            self.publisher.publish(name, bytes(size), partial(self._done, sender.party), sender)

    def _done(self, party: object, outcome: str) -> None:
        self.outcomes.setdefault(party, Counter())[outcome] += 1

    def sent(self) -> list[bytes]:
        """Return the names that arrived on the bus, in order."""
        return [parts[1] for parts in self.bus.commands if parts[0] != b"PING"]


@contextlib.asynccontextmanager
async def running_scene() -> AsyncIterator[Scene]:
    slow = Slow()
    async with fake_bus(slow.answer) as bus:
        speaking = Publisher(bus.address, connect_timeout_s=60, command_timeout_s=60)
        task = asyncio.ensure_future(speaking.run())
        try:
            yield Scene(bus, slow, speaking)
        finally:
            slow.allow(1_000_000)
            await until("everything is answered", lambda: speaking.waiting_bytes == 0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await speaking.close()


def test_publish_of_a_quiet_client_beside_250_busy_ones_waits_for_a_bounded_number() -> None:
    async def main() -> None:
        async with running_scene() as at:
            for party in range(250):
                at.publish(Sender(party, party), 64, size=2_048)
            await until("the window is full", lambda: len(at.sent()) >= WINDOW_BYTES // 4_096)
            for number in range(1, 9):
                before = len(at.sent())
                at.publish(GOOD)
                at.slow.allow(1_000)
                for party in range(250):
                    at.publish(Sender(party, party), 8, size=2_048)
                await until("the publish is sent", lambda: b"good" in at.sent()[before:])  # noqa: B023
                foreign = at.sent()[before:].index(b"good")
                assert foreign <= WINDOW_COMMANDS + 250, f"publish {number}"
            at.slow.allow(1_000_000)
            await until("it is answered", lambda: sum(at.outcomes["good"].values()) == 8)
            assert at.outcomes["good"] == {"": 8}
            assert sum(at.outcomes[party][CROWDED] for party in range(250)) > 0

    uvloop.run(main())


def test_user_with_1000_connections_has_the_same_share_as_users_with_one() -> None:
    async def main() -> None:
        async with running_scene() as at:
            for conn in range(1_000):
                at.publish(Sender("crowd", conn), 4)
            for _ in range(2_000):
                at.publish(Sender("one", 0))
                at.publish(Sender("two", 0))
            await until("the window is full", lambda: len(at.sent()) == WINDOW_COMMANDS)
            at.slow.allow(900)
            await until("they are sent", lambda: len(at.sent()) == WINDOW_COMMANDS + 900)
            assert Counter(at.sent()[WINDOW_COMMANDS:]) == {b"crowd": 300, b"one": 300, b"two": 300}

    uvloop.run(main())


def test_commands_of_the_gateway_are_sent_before_waiting_publications_of_clients() -> None:
    async def main() -> None:
        async with running_scene() as at:
            for party in range(WAITING_LIMIT + 100):
                at.publish(Sender(party, party))
            told: list[str] = []
            await until("the window is full", lambda: len(at.sent()) == WINDOW_COMMANDS)
            at.publisher.call(b"user", pack("EXISTS", "user"), lambda outcome, text: told.append(outcome))
            at.publisher.publish(b"probe", b"1", told.append)
            await until("both are sent", lambda: at.sent()[WINDOW_COMMANDS:] == [b"user", b"probe"])
            at.slow.allow(WINDOW_COMMANDS + 2)
            await until("both are answered", lambda: told == ["", ""])

    uvloop.run(main())


@pytest.mark.parametrize("sizes", [(60, 512), (64 * 1024, 6)])
def test_unanswered_publications_on_the_bus_are_bounded_in_commands_and_bytes(sizes: tuple[int, int]) -> None:
    size, most = sizes

    async def main() -> None:
        async with running_scene() as at:
            for party in range(100):
                at.publish(Sender(party, party), 10, size=size)
            await until("some are sent", lambda: len(at.sent()) >= most - 1)
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert len(at.sent()) <= most

    uvloop.run(main())


def test_publications_sent_are_unknown_and_waiting_ones_down_when_the_bus_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publisher, "STEADY_S", 60.0)

    async def main() -> None:
        async with running_scene() as at:
            for party in range(100):
                at.publish(Sender(party, party), 40)
            await until("the window is full", lambda: len(at.sent()) == WINDOW_COMMANDS)
            for talk in list(at.bus.talks):
                talk.cut()
            await until("all have outcomes", lambda: sum(map(Counter.total, at.outcomes.values())) == 4_000)
            total: Counter[str] = sum(at.outcomes.values(), Counter())
            assert total == {"unknown": WINDOW_COMMANDS, "down": 4_000 - WINDOW_COMMANDS}
            assert at.publisher.waiting_bytes == 0

    uvloop.run(main())


def test_client_refused_as_crowded_may_publish_after_the_bus_has_answered() -> None:
    async def main() -> None:
        async with running_scene() as at:
            at.publish(GOOD, WAITING_LIMIT)
            await asyncio.sleep(0)
            await until("some are refused", lambda: at.outcomes["good"][CROWDED] > 0)
            at.slow.allow(1_000_000)
            await until("the rest is sent", lambda: at.publisher.waiting_bytes == 0)
            at.publish(GOOD)
            accepted = at.outcomes["good"][""]
            await until("it is sent", lambda: at.outcomes["good"][""] == accepted + 1)

    uvloop.run(main())
