"""The way out: every publish has one outcome, the right one, whatever becomes of the bus meanwhile."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import redis
import uvloop

from tests.support.fake_bus import FakeBus, Talk, bulk, fake_bus, message, until
from tests.support.fault_proxy import fault_proxy
from tests.support.resp import hostile_reply
from tests.support.valkey import Valkey, running_valkey
from wsgate.bus import BusAddress, Publisher, pack, parse_address, publisher
from wsgate.bus.publisher import WAITING_LIMIT, WAITING_LIMIT_BYTES
from wsgate.bus.push import REPLY_LIMIT_BYTES

OUTCOMES = {"", "down", "full", "refused", "unknown", "moved"}
NAME = b"wsgate:ch:news"


@dataclass
class Asked:
    """A publisher that runs, and what it said to each publish."""

    publisher: Publisher
    outcomes: list[tuple[int, str]] = field(default_factory=list)  # in the order they came
    why: list[str] = field(default_factory=list)
    number: int = 0

    def publish(self, data: bytes | None = None, name: bytes = NAME, *, must_reach: bool = False) -> int:
        """Publish its own number, or something else; the number."""
        self.number += 1
        payload = b"%d" % self.number if data is None else data
        done = partial(self._done, self.number)
        self.publisher.publish(name, payload, done, must_reach=must_reach)
        return self.number

    def _done(self, number: int, outcome: str) -> None:
        self.outcomes.append((number, outcome))

    @property
    def is_done(self) -> bool:
        return len(self.outcomes) >= self.number

    @property
    def counted(self) -> dict[str, int]:
        """How often each outcome came."""
        return dict(Counter(outcome for _, outcome in self.outcomes))

    async def say(self, data: bytes | None = None, name: bytes = NAME) -> str:
        """Publish and await the outcome."""
        number = self.publish(data, name)
        await until("answered", lambda: any(each == number for each, _ in self.outcomes))
        return dict(self.outcomes)[number]


@contextlib.asynccontextmanager
async def speaking(
    address: BusAddress, *, connect_timeout_s: float = 20, command_timeout_s: float = 20
) -> AsyncIterator[Asked]:
    why: list[str] = []
    asked = Asked(
        Publisher(
            address,
            connect_timeout_s=connect_timeout_s,
            command_timeout_s=command_timeout_s,
            on_failed=why.append,
        ),
        why=why,
    )
    task = asyncio.ensure_future(asked.publisher.run())
    try:
        yield asked
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        await asked.publisher.close()
        await asyncio.sleep(0)
        assert sorted(number for number, _ in asked.outcomes) == list(range(1, asked.number + 1))
        assert asked.publisher.waiting_bytes == 0
        assert asked.publisher.published == asked.counted.get("", 0)
        assert asked.publisher.failed == asked.number - asked.publisher.published


def run(main: Coroutine[Any, Any, None]) -> None:
    uvloop.run(main)


def listening(client: redis.Redis) -> redis.client.PubSub:
    heard: redis.client.PubSub = client.pubsub()  # type: ignore[no-untyped-call]
    return heard


def ask(client: redis.Redis, *command: object) -> object:
    return client.execute_command(*command)  # type: ignore[no-untyped-call]


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who failed may try again at once, and a connection need not last."""
    monkeypatch.setattr(publisher, "FAILING_PAUSE_S", 0.0)
    monkeypatch.setattr(publisher, "STEADY_S", 0.0)


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture
def backend(valkey: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis(port=valkey.port) as client:
        yield client


# --- a real one ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["url", "unix_url"])
def test_ten_thousand_are_heard_in_order_and_answered_in_order(
    valkey: Valkey, backend: redis.Redis, way: str
) -> None:
    heard = listening(backend)
    heard.subscribe(NAME)
    assert (heard.get_message(timeout=20) or {})["type"] == "subscribe"

    async def main() -> None:
        async with speaking(parse_address(getattr(valkey, way))) as asked:
            for _ in range(20):
                for _ in range(500):
                    asked.publish()
                await asyncio.sleep(0)
                await until("there is room", lambda: asked.number - len(asked.outcomes) < 5_000)
            await until("answered", lambda: asked.is_done)
            assert asked.outcomes == [(number, "") for number in range(1, 10_001)]

    run(main())
    for number in range(1, 10_001):
        assert (heard.get_message(timeout=20) or {})["data"] == b"%d" % number
    heard.close()


def test_odd_names_and_payloads_go_literally_s26(valkey: Valkey, backend: redis.Redis) -> None:
    odd = [
        b"a\r\nb",
        b"a b",
        b"*",
        b"\x00",
        b"{x}",
        b"",
        b"\r\n*3\r\n$7\r\nPUBLISH\r\n",
        bytes(range(256)) * 300,
    ]
    heard = listening(backend)
    heard.psubscribe("*")
    assert (heard.get_message(timeout=20) or {})["type"] == "psubscribe"

    async def main() -> None:
        async with speaking(parse_address(valkey.url)) as asked:
            for each in odd:
                assert await asked.say(each, b":" + each) == ""

    run(main())
    for each in odd:
        found = heard.get_message(timeout=20) or {}
        assert (found["channel"], found["data"]) == (b":" + each, each)
    heard.close()


def test_a_server_that_went_away_fails_them_at_once_and_is_found_again(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "FAILING_PAUSE_S", 0.05)

    async def main() -> None:
        async with speaking(parse_address(valkey.url)) as asked:
            assert await asked.say() == ""
            valkey.stop()
            assert await asked.say() in ("down", "unknown")
            await until("down", lambda: "down" in asked.counted or asked.publish() == 0)
            assert asked.why
            valkey.restart()
            for _ in range(1_000):
                if await asked.say() == "":
                    break
            else:
                raise AssertionError("not found again")

    run(main())


def test_a_stopped_server_may_have_it_r7(valkey: Valkey) -> None:
    async def main() -> None:
        async with speaking(parse_address(valkey.url), command_timeout_s=0.3, connect_timeout_s=0.3) as asked:
            assert await asked.say() == ""
            with valkey.paused():
                assert await asked.say() == "unknown"
                assert await asked.say() == "down"  # nobody waits for a bus that does not answer
                assert asked.why == ["no reply within 0.3 s"]
            await until("it answers again", lambda: asked.outcomes[-1][1] == "" or asked.publish() == 0)

    run(main())


def test_what_a_user_may_not_publish_is_refused_with_the_reason_r10(
    valkey: Valkey, backend: redis.Redis
) -> None:
    ask(backend, "ACL", "SETUSER", "gate", "on", ">s3cret", "resetchannels", "&wsgate:*", "+@all")
    address = replace(parse_address(valkey.url), username="gate", password="s3cret")

    async def main() -> None:
        async with speaking(address) as asked:
            assert [await asked.say(b"x", name) for name in (NAME, b"other", NAME)] == ["", "refused", ""]
            assert "NOPERM" in asked.why[0]
        async with speaking(replace(address, password="hunter2")) as asked:
            assert await asked.say() == "down"
            assert "WRONGPASS" in asked.why[0] and "hunter2" not in asked.why[0]

    run(main())


def test_a_full_memory_stops_no_publication_and_a_full_server_is_down_r10() -> None:
    async def main() -> None:
        # An empty Valkey 9 uses more than 1 MB, an empty Redis 7.0 less: one byte is too little for each.
        with running_valkey(maxmemory="1", maxmemory_policy="noeviction") as server:
            with redis.Redis(port=server.port) as backend:
                with pytest.raises(redis.exceptions.OutOfMemoryError):
                    backend.set("a", "x")
                async with speaking(parse_address(server.url)) as asked:
                    assert await asked.say() == ""
                    backend.config_set("maxclients", 2)
                    async with speaking(parse_address(server.url)) as another:
                        assert await another.say() == "down"
                    assert await asked.say() == ""

    run(main())


def test_slow_and_sliced_answers_are_nobody_elses_r8(valkey: Valkey) -> None:
    async def main() -> None:
        with fault_proxy("127.0.0.1", valkey.port) as proxy:
            async with speaking(parse_address(proxy.url)) as asked:
                proxy.faults.slice_bytes = 1
                for _ in range(500):
                    asked.publish()
                await until("answered", lambda: asked.is_done)
                proxy.faults.delay_s = 0.2
                for _ in range(500):
                    asked.publish()
                await until("answered", lambda: asked.is_done)
                assert asked.outcomes == [(number, "") for number in range(1, 1_001)]

    run(main())


# --- one that is not what it should be ----------------------------------------------------------------


def is_refused(number: int) -> bool:
    """Which ones the fake refuses: an answer that met another caller shows."""
    return random.Random(number).random() < 0.3


@dataclass
class Cutting:
    """A bus that answers by number and cuts the connection in the middle of an answer, now and then."""

    seed: int
    got: set[int] = field(default_factory=set)
    cuts: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def answer(self, talk: Talk, parts: list[bytes]) -> bytes | None:
        if parts[0] != b"PUBLISH":
            return None
        if talk.writer.transport.is_closing():
            return b""
        number = int(parts[2])
        self.got.add(number)
        said = b"-NOPERM %d\r\n" % number if is_refused(number) else b":%d\r\n" % number
        if self._random.random() < 0.003:
            self.cuts += 1
            talk.writer.write(said[: self._random.randrange(len(said) + 1)])
            # An orderly end, so that what was answered before arrives; or a reset, which may lose it.
            if self._random.random() < 0.5:
                talk.cut()
            else:
                talk.writer.close()
            return b""
        return said


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_thousand_publishes_cut_anywhere_have_one_right_outcome_each_s25(
    seed: int, no_pause: None
) -> None:
    order = random.Random(seed)

    async def main() -> None:
        cutting = Cutting(seed)
        async with fake_bus(cutting.answer) as bus, speaking(bus.address) as asked:
            while asked.number < 10_000:
                for _ in range(order.randrange(1, 60)):
                    asked.publish()
                for _ in range(order.randrange(3)):
                    await asyncio.sleep(0)
                await until("there is room", lambda: asked.number - len(asked.outcomes) < 100)
            await until("answered", lambda: asked.is_done)
            for number, outcome in asked.outcomes:
                if outcome == "":
                    assert number in cutting.got and not is_refused(number)
                elif outcome == "refused":
                    assert number in cutting.got and is_refused(number)
                elif outcome == "down":
                    assert number not in cutting.got
                else:
                    assert outcome == "unknown"
            counted = asked.counted
            # Not vacuous, and not lazily unknown: a cut costs what was under way, no more.
            assert cutting.cuts > 10 and counted["unknown"] >= cutting.cuts / 2
            assert counted[""] > 4_000 and counted["refused"] > 1_500
            sent = [number for number, outcome in asked.outcomes if outcome != "down"]
            assert sent == sorted(sent)

    run(main())


@pytest.mark.parametrize("turns", range(12))
def test_stopping_at_any_moment_leaves_no_publish_without_an_outcome_s25(turns: int) -> None:
    async def main() -> None:
        async with fake_bus() as bus:
            async with speaking(bus.address) as asked:
                for _ in range(300):
                    asked.publish()
                for _ in range(turns):
                    await asyncio.sleep(0)
            assert set(asked.counted) <= {"", "unknown", "down"}
            done = [number for number, outcome in asked.outcomes if outcome == ""]
            assert len(bus.said(b"PUBLISH")) >= len(done)
            asked.publish()
            await asyncio.sleep(0)
            assert asked.outcomes[-1][1] == "down"

    run(main())


def test_answers_that_came_before_the_end_count(no_pause: None) -> None:
    """Sixty answered, then the end: sixty are published, and only the rest is unknown."""

    async def main() -> None:
        answered = 0

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            nonlocal answered
            if parts[0] != b"PUBLISH":
                return None
            answered += 1
            if answered == 61:
                talk.writer.close()
            return b":1\r\n" if answered <= 60 else b""

        async with fake_bus(answer) as bus, speaking(bus.address) as asked:
            for _ in range(100):
                asked.publish()
            await until("answered", lambda: asked.is_done)
            assert asked.counted == {"": 60, "unknown": 40}

    run(main())


def test_a_bus_that_never_answers_holds_nobody_longer_than_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "WRITE_COMMANDS", 10)
    monkeypatch.setattr(publisher, "STEADY_S", 0.0)

    async def main() -> None:
        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return b"" if parts[0] == b"PUBLISH" else None

        async with fake_bus(answer) as bus, speaking(bus.address, command_timeout_s=0.3) as asked:
            for _ in range(WAITING_LIMIT):
                asked.publish()
            assert asked.outcomes == []
            asked.publish()
            await until("answered", lambda: asked.outcomes)
            assert asked.outcomes == [(WAITING_LIMIT + 1, "full")]
            await until("answered", lambda: asked.is_done)
            assert set(asked.counted) <= {"unknown", "down", "full"}
            assert asked.counted["unknown"] == len(bus.said(b"PUBLISH"))
            assert bus.accepted == 1

    run(main())


def test_a_bus_that_does_not_read_bounds_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "STEADY_S", 0.0)
    accepted: list[int] = []

    async def main() -> None:
        listener = await asyncio.start_server(greet_and_stall, "127.0.0.1", 0)
        async with listener:
            address = BusAddress("127.0.0.1", listener.sockets[0].getsockname()[1])
            async with speaking(address, command_timeout_s=0.5) as asked:
                size = 1024 * 1024
                for _ in range(WAITING_LIMIT_BYTES // size):
                    asked.publish(bytes(size))
                asked.publish(bytes(size))
                await until("full", lambda: asked.outcomes)
                assert asked.outcomes == [(asked.number, "full")]
                await until("answered", lambda: asked.is_done)
                # What never left our memory for the connection is known not to have been published.
                assert asked.counted["down"] > 0 and asked.counted["unknown"] > 0
                assert len(accepted) == 1  # nobody waits for another attempt after that
        greeted.set()

    greeted = asyncio.Event()

    async def greet_and_stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(1)
        await reader.readuntil(b"PING\r\n")
        writer.write(b"+PONG\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await greeted.wait()
        writer.close()

    run(main())


@pytest.mark.parametrize(
    "said",
    [
        b"-LOADING server is loading the dataset in memory\r\n",
        b"-NOAUTH Authentication required.\r\n",
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    ],
)
def test_an_error_is_a_refusal_of_this_one_and_says_why_r10(said: bytes) -> None:
    async def main() -> None:
        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return said if parts[0] == b"PUBLISH" and parts[2] == b"2" else None

        async with fake_bus(answer) as bus, speaking(bus.address) as asked:
            for _ in range(3):
                asked.publish()
            await until("answered", lambda: asked.is_done)
            assert asked.outcomes == [(1, ""), (2, "refused"), (3, "")]
            [why] = asked.why
            assert why.startswith("the bus refuses: " + said[1:7].decode().strip())
            assert bus.accepted == 1

    run(main())


EVIL = {
    "a huge array": b"*1000000000\r\n",
    "arrays in arrays": b"*1\r\n" * 100_000,
    "a huge bulk": b"$1000000000\r\n",
    "a line without end": b"+" + b"x" * 1_000_000,
    "no number": b"+OK\r\n",
    "nothing": b"$-1\r\n",
    "a publication": message(NAME, b"1"),
    "a subscription": b"*3\r\n" + bulk(b"subscribe") + bulk(NAME) + b":1\r\n",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("wire", EVIL.values(), ids=EVIL.keys())
def test_who_does_not_answer_like_redis_is_cut_off_s26(wire: bytes, no_pause: None) -> None:
    async def main() -> None:
        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return wire if parts[0] == b"PUBLISH" and bus.accepted == 1 else None

        async with fake_bus(answer) as bus, speaking(bus.address) as asked:
            assert await asked.say() == "unknown"
            assert await asked.say() == ""
            assert bus.accepted == 2

    run(main())


def test_who_answers_more_than_was_asked_is_cut_off(no_pause: None) -> None:
    async def main() -> None:
        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return b":1\r\n:1\r\n" if parts[0] == b"PUBLISH" else None

        async with fake_bus(answer) as bus, speaking(bus.address) as asked:
            assert await asked.say() == ""
            await until("left", lambda: not bus.talks)
            assert await asked.say() == ""
            assert bus.accepted == 2

    run(main())


def test_what_was_not_sent_when_the_connection_was_lost_is_sent_on_the_next(no_pause: None) -> None:
    async def main() -> None:
        async with fake_bus() as bus, speaking(bus.address) as asked:
            assert await asked.say() == ""
            assert asked.publisher._connection is not None
            asked.publisher._connection.abort("lost")
            assert await asked.say() == ""  # accepted before that was known
            assert bus.accepted == 2

    run(main())


def test_a_connection_closed_while_it_rested_costs_no_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "STEADY_S", 0.0)

    async def main() -> None:
        async with fake_bus() as bus, speaking(bus.address) as asked:
            for times in range(1, 5):
                assert await asked.say() == ""
                bus.talks[0].writer.close()
                await until("closed", lambda: not bus.talks and asked.publisher._connection is None)
                assert bus.accepted == times
            assert asked.why == []

    run(main())


def test_a_resting_connection_is_asked_whether_it_lives(
    monkeypatch: pytest.MonkeyPatch, no_pause: None
) -> None:
    monkeypatch.setattr(publisher, "IDLE_PING_S", 0.01)

    async def main() -> None:
        is_mute = False

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return b"" if is_mute and bus.accepted == 1 else None

        async with fake_bus(answer) as bus, speaking(bus.address, command_timeout_s=0.2) as asked:
            assert await asked.say() == ""
            await until("asked", lambda: len(bus.said(b"PING")) >= 3)
            is_mute = True
            await until("left", lambda: asked.publisher._connection is None)
            assert await asked.say() == ""  # it did not have to find out

    run(main())


def test_a_renewed_connection_loses_nothing_that_was_under_way() -> None:
    async def main() -> None:
        gate: list[Callable[[], None]] = []

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            if parts[0] == b"PUBLISH" and bus.accepted == 1:
                gate.append(lambda: talk.writer.write(b":1\r\n"))
                return b""
            return None

        async with fake_bus(answer) as bus, speaking(bus.address) as asked:
            asked.publish()
            await until("sent", lambda: gate)
            asked.publisher.renew("somebody said so")
            asked.publish()
            await asyncio.sleep(0.02)
            assert asked.outcomes == [] and len(gate) == 1  # nothing more goes out on the old one
            publisher_pause = asked.publisher
            gate[0]()
            await until("answered", lambda: asked.outcomes)
            assert asked.outcomes[0] == (1, "")
            await until("answered", lambda: asked.is_done)
            assert publisher_pause is asked.publisher

    run(main())


def test_a_caller_that_fails_harms_nobody_behind_it() -> None:
    async def main() -> None:
        faults: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: faults.append(context.get("exception")))

        def fail(outcome: str) -> None:
            raise ValueError(outcome)

        async with fake_bus() as bus, speaking(bus.address) as asked:
            asked.publish()
            await until("answered", lambda: asked.is_done)
            asked.publisher.publish(NAME, b"x", fail)
            assert await asked.say() == ""
            assert [type(fault) for fault in faults] == [ValueError]
            asked.publisher.published -= 1  # of the one that is not in `outcomes`

    run(main())


def test_who_publishes_from_a_callback_is_answered_too(no_pause: None) -> None:
    async def main() -> None:
        async with fake_bus() as bus, speaking(bus.address) as asked:
            again: list[str] = []

            def once_more(outcome: str) -> None:
                again.append(outcome)
                if len(again) < 3:
                    asked.publisher.publish(NAME, b"x", once_more)

            asked.publisher.publish(NAME, b"x", once_more)
            await until("answered", lambda: len(again) == 3)
            assert again == ["", "", ""]
            asked.publisher.published -= 3

    run(main())


def test_many_publishes_of_a_pass_leave_together(valkey: Valkey) -> None:
    async def main() -> None:
        async with fake_bus() as bus, speaking(bus.address) as asked:
            assert await asked.say() == ""
            assert isinstance(bus, FakeBus)
            writes: list[int] = []
            connection = asked.publisher._connection
            assert connection is not None
            write = connection.write

            def counted(data: bytes) -> None:
                writes.append(data.count(b"PUBLISH"))
                write(data)

            connection.write = counted  # type: ignore[method-assign]
            for _ in range(600):
                asked.publish()
            await until("answered", lambda: asked.is_done)
            assert writes == [256, 256, 88]

    run(main())


@pytest.mark.parametrize("seed", range(10))
def test_hostile_answers_end_the_connection_and_every_command_has_an_outcome(seed: int) -> None:
    async def scenario() -> None:
        dice, faults = random.Random(seed), list[object]()
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        answers: list[tuple[str, bytes]] = []

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return hostile_reply(dice) if parts[0] != b"PING" or dice.random() < 0.2 else None

        async with fake_bus(answer) as bus, speaking(bus.address, command_timeout_s=0.1) as asked:
            for turn in range(1, 31):
                asked.publish()
                asked.publisher.call(b"k", pack("EXISTS", "k"), lambda *each: answers.append(each))
                await until("answered", lambda: asked.is_done and len(answers) == turn)  # noqa: B023
            assert {outcome for _, outcome in asked.outcomes} <= OUTCOMES
            assert {outcome for outcome, _ in answers} <= OUTCOMES | {"unscripted"}
        assert not faults

    uvloop.run(scenario())


def test_what_must_reach_somebody_and_reaches_nobody_says_so(valkey: Valkey) -> None:
    async def main() -> None:
        async with speaking(parse_address(valkey.url)) as asked:
            for must_reach in (True, False):
                asked.publish(must_reach=must_reach)
            await until("answered", lambda: asked.is_done)
            assert asked.outcomes == [(1, "unheard"), (2, "")]

    run(main())


def test_a_bus_that_is_known_to_be_back_is_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "FAILING_PAUSE_S", 3_600.0)

    async def main() -> None:
        async with fake_bus() as bus:
            address = bus.address
        async with speaking(address) as asked:
            assert await asked.say() == "down"
            async with fake_bus(port=address.port) as back:
                assert await asked.say() == "down", "it is not tried"
                asked.publisher.resume()
                assert await asked.say() == ""
                assert [parts[1] for parts in back.said(b"PUBLISH")] == [b"3"]

    run(main())


@pytest.mark.parametrize("size", [0, 1, 1_023, 1_024, 1_025, 4_096, REPLY_LIMIT_BYTES - 1, REPLY_LIMIT_BYTES])
def test_a_call_may_be_answered_with_all_that_is_promised(size: int) -> None:
    async def scenario() -> None:
        told: list[tuple[str, bytes]] = []

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return bulk(b"x" * size) if parts[0] == b"GET" else None

        async with fake_bus(answer) as bus, speaking(bus.address) as asked:
            asked.publisher.call(b"k", pack("GET", "k"), lambda *each: told.append(each))
            await until("answered", lambda: told)
            assert told == [("", b"x" * size)]

    uvloop.run(scenario())


def test_a_larger_answer_to_a_call_ends_the_connection() -> None:
    async def scenario() -> None:
        told: list[tuple[str, bytes]] = []

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return bulk(b"x" * (REPLY_LIMIT_BYTES + 1)) if parts[0] == b"GET" else None

        async with fake_bus(answer) as bus, speaking(bus.address) as asked:
            asked.publisher.call(b"k", pack("GET", "k"), lambda *each: told.append(each))
            await until("answered", lambda: told)
            assert told == [("unknown", b"")]

    uvloop.run(scenario())
