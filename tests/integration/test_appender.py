"""The way to a stream, with a server that answers late, in part, wrongly or not at all."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final

import pytest
import redis

from tests.support.fake_bus import FakeBus, Talk, bulk, fake_bus, until
from tests.support.resp import hostile_reply
from tests.support.valkey import running_valkey
from wsgate.bus import Appender, AppenderOptions, pack
from wsgate.bus.script import TRIM_EVENTS
from wsgate.turns import CROWDED, FULL, Sender

FAST: Final = AppenderOptions(connect_timeout_s=0.3, command_timeout_s=0.3)
ENTRY: Final = bulk(b"1732600000000-0")


def event(number: int) -> bytes:
    return pack(b"XADD", b"s", b"*", b"n", b"%d" % number)


def appended(bus: FakeBus) -> list[int]:
    return [int(parts[-1]) for parts in bus.said(b"XADD")]


class Kept:
    """An appender and what became of its events."""

    def __init__(self, bus: FakeBus, options: AppenderOptions) -> None:
        self.why: list[str] = []
        self.moved = 0
        self.outcomes: dict[int, str] = {}
        self.appender = Appender(lambda: bus.address, options, self.why.append, self.on_moved)

    def on_moved(self) -> None:
        self.moved += 1

    def append(self, number: int, *, is_asked: bool = True) -> bool:
        done = (lambda outcome: self.outcomes.__setitem__(number, outcome)) if is_asked else None
        return self.appender.append(event(number), done=done)


@contextlib.asynccontextmanager
async def appending(bus: FakeBus, options: AppenderOptions = FAST) -> AsyncIterator[Kept]:
    kept = Kept(bus, options)
    running = asyncio.get_running_loop().create_task(kept.appender.run())
    try:
        yield kept
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def good(talk: Talk, parts: list[bytes]) -> bytes | None:
    return ENTRY if parts[0] == b"XADD" else None


def test_events_go_out_in_order_and_are_answered() -> None:
    async def main() -> None:
        async with fake_bus(good) as bus, appending(bus) as kept:
            for number in range(1_000):
                assert kept.append(number)
            await until("all are answered", lambda: len(kept.outcomes) == 1_000)
            assert set(kept.outcomes.values()) == {""}
            assert appended(bus) == list(range(1_000))
            assert (kept.appender.held, kept.appender.held_bytes, kept.appender.appended) == (0, 0, 1_000)
            assert await kept.appender.flush(1.0) == 0

    asyncio.run(main())


def test_what_was_not_answered_when_the_connection_broke_goes_first_once_more() -> None:
    def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
        if parts[0] == b"XADD" and int(parts[-1]) == 3 and not has_cut:
            has_cut.append(True)
            talk.cut()
            return b""
        return good(talk, parts)

    async def main() -> None:
        async with fake_bus(answer) as bus, appending(bus) as kept:
            for number in range(6):
                kept.append(number)
            await until("all are answered", lambda: len(kept.outcomes) == 6)
            assert set(kept.outcomes.values()) == {""}
            told = appended(bus)
            assert list(dict.fromkeys(told)) == list(range(6)), "none is lost, the first appearances in order"
            assert told[-3:] == [3, 4, 5]
            assert kept.appender.repeated >= 3
            assert kept.why

    has_cut: list[bool] = []
    asyncio.run(main())


def test_a_server_that_refuses_is_left_and_the_order_kept() -> None:
    refusals = [b"-READONLY You can't write against a read only replica.\r\n", b"-MOVED 7 127.0.0.1:1\r\n"]

    def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
        if parts[0] == b"XADD" and refusals and int(parts[-1]) == 1:
            return refusals.pop()
        return good(talk, parts)

    async def main() -> None:
        async with fake_bus(answer) as bus, appending(bus) as kept:
            for number in range(3):
                kept.append(number)
            await until("all are answered", lambda: len(kept.outcomes) == 3)
            assert appended(bus)[-2:] == [1, 2]
            assert kept.moved == 1
            assert any("READONLY" in why for why in kept.why)

    asyncio.run(main())


def test_without_an_answer_it_is_sent_again_and_who_asked_is_told_that_nobody_knows() -> None:
    is_deaf = True

    def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
        return b"" if parts[0] == b"XADD" and is_deaf else good(talk, parts)

    async def main() -> None:
        nonlocal is_deaf
        async with fake_bus(answer) as bus, appending(bus) as kept:
            kept.append(1)
            kept.append(2, is_asked=False)
            await until("it is told", lambda: kept.outcomes)
            assert kept.outcomes[1] in ("unknown", "down")
            is_deaf = False
            await until("the other is appended", lambda: kept.appender.held == 0)
            assert appended(bus)[-1] == 2

    asyncio.run(main())


def test_while_nobody_listens_who_asked_is_told_and_the_rest_is_kept_within_bounds() -> None:
    async def main() -> None:
        options = replace(FAST, limit_entries=10)
        async with fake_bus(good) as bus:
            port = bus.address.port
        async with appending(bus, options) as kept:
            assert all(kept.append(number, is_asked=number < 4) for number in range(10))
            assert not kept.append(10)
            await until("they are told", lambda: len(kept.outcomes) == 4)
            assert set(kept.outcomes.values()) == {"down"}
            assert kept.appender.held == 6
            assert kept.append(11, is_asked=False), "there is room again"
            async with fake_bus(good, port=port) as back:
                await until("all is appended", lambda: kept.appender.held == 0)
                assert appended(back) == [4, 5, 6, 7, 8, 9, 11]
        assert kept.appender.held_bytes == 0

    asyncio.run(main())


def test_bytes_are_bounded_too() -> None:
    async def main() -> None:
        async with (
            fake_bus(lambda talk, parts: b"") as bus,
            appending(bus, replace(FAST, limit_bytes=100)) as kept,
        ):
            assert kept.append(1)
            assert not kept.appender.append(bytes(200))
            assert kept.append(2)
            assert not kept.append(3)

    asyncio.run(main())


def test_an_event_of_two_commands_is_done_with_its_second_answer() -> None:
    answers = [ENTRY, b"", ENTRY, b":0\r\n"]

    def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
        return answers.pop(0) if parts[0] in (b"XADD", b"PUBLISH") else None

    async def main() -> None:
        async with fake_bus(answer) as bus, appending(bus) as kept:
            both = event(1) + pack(b"PUBLISH", b"s", b"1")
            kept.appender.append(both, commands=2)
            await until("it is done", lambda: kept.appender.appended == 1)
            assert len(bus.said(b"XADD")) == 2, "after the first connection answered only half of it"
            assert kept.appender.held == 0

    asyncio.run(main())


def test_a_server_that_says_what_it_was_not_asked_is_left() -> None:
    async def main() -> None:
        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return ENTRY + ENTRY if parts[0] == b"XADD" else None

        async with fake_bus(answer) as bus, appending(bus) as kept:
            kept.append(1)
            await until("it is left", lambda: any("not asked" in why for why in kept.why))
            assert kept.outcomes == {1: ""}

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(10))
def test_hostile_answers_end_the_connection_and_no_event_is_lost(seed: int) -> None:
    """Also those to the command that makes room; afterwards the server is a good one again."""

    async def main() -> None:
        dice, is_hostile, faults = random.Random(seed), True, list[object]()
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            if parts[0] == b"EVAL":
                return hostile_reply(dice) if is_hostile else b":1\r\n"
            if parts[0] != b"XADD":
                return None
            if not is_hostile:
                return ENTRY
            return dice.choice((b"-OOM full\r\n", hostile_reply(dice)))

        options = replace(FAST, trimmed_streams=(b"s",))
        async with fake_bus(answer) as bus, appending(bus, options) as kept:
            for number in range(20):
                assert kept.append(number, is_asked=False)
            await until("many tries", lambda: bus.accepted >= 6 or not kept.appender.held)
            is_hostile = False
            await until("all are answered", lambda: not kept.appender.held)
            assert not faults

    asyncio.run(main())


@pytest.mark.parametrize(
    "odd", [b"+OK\r\n", b"$-1\r\n", bulk(b""), bulk(b"9" * 5_000), bulk(b"-1"), bulk(b"\xb2")]
)
def test_an_answer_to_making_room_that_is_no_number_ends_the_connection(odd: bytes) -> None:
    async def main() -> None:
        faults, evals = list[object](), 0
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            nonlocal evals
            if parts[0] == b"EVAL":
                evals += 1
                return odd
            if parts[0] == b"XADD":
                return ENTRY if evals else b"-OOM full\r\n"
            return None

        async with fake_bus(answer) as bus, appending(bus, replace(FAST, trimmed_streams=(b"s",))) as kept:
            assert kept.append(1)
            await until("it is answered", lambda: kept.outcomes)
            assert kept.outcomes == {1: ""}
            assert not faults
            assert kept.appender.trimmed == 0
            assert any("trim_events without a number" in why for why in kept.why)

    asyncio.run(main())


# --- a server without memory --------------------------------------------------------------------------


def trim(bus: redis.Redis, stream_bytes: int) -> int:
    removed = bus.eval(TRIM_EVENTS.text.decode(), 1, "s", str(stream_bytes))
    assert isinstance(removed, int)
    return removed


def ids(bus: redis.Redis) -> list[int]:
    entries: Any = bus.xrange("s")
    return [int(fields[b"n"]) for _, fields in entries]


def test_what_a_group_has_not_acknowledged_is_never_removed_for_want_of_memory() -> None:
    with running_valkey() as server, redis.Redis(port=server.port) as bus:
        assert trim(bus, 0) == 0, "there is no stream"
        for number in range(10):
            bus.xadd("s", {"n": number})
        bus.xgroup_create("s", "one", "0")
        bus.xgroup_create("s", "two", "0")
        assert trim(bus, 0) == 0, "nobody has read anything"
        [(_, rows)] = bus.xreadgroup("one", "c", {"s": ">"}, count=8)
        assert trim(bus, 0) == 0, "the other group has not"
        [(_, others)] = bus.xreadgroup("two", "c", {"s": ">"}, count=6)
        assert trim(bus, 0) == 0, "read is not acknowledged"
        for entry, _ in rows[:2] + rows[3:]:
            bus.xack("s", "one", entry)
        for entry, _ in others:
            bus.xack("s", "two", entry)
        assert trim(bus, 0) == 2 and ids(bus) == list(range(2, 10)), "2 is pending in one"
        bus.xack("s", "one", rows[2][0])
        assert trim(bus, 0) == 4 and ids(bus) == list(range(6, 10)), "two has read up to 5"
        assert trim(bus, 0) == 0 and bus.xpending("s", "one")["pending"] == 0


def test_stream_without_a_group_is_halved_only_when_it_takes_more_than_its_part() -> None:
    with running_valkey() as server, redis.Redis(port=server.port) as bus:
        for number in range(1_000):
            bus.xadd("s", {"n": number, "data": "x" * 500})
        assert trim(bus, 2_000_000) == 0 and bus.xlen("s") == 1_000
        assert trim(bus, 100_000) == 500 and ids(bus) == list(range(500, 1_000))


def test_room_is_made_once_at_a_time_and_what_was_removed_is_known() -> None:
    async def main() -> None:
        held_back = True

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            if parts[0] == b"EVAL":
                return b"" if held_back else b":7\r\n"
            return ENTRY if parts[0] == b"XADD" else None

        options = AppenderOptions(trimmed_streams=(b"s", b"t"), stream_bytes=5_000)
        async with fake_bus(answer) as bus, appending(bus, options) as kept:
            kept.appender.make_room()
            assert not bus.said(b"EVAL"), "there is no connection"
            assert kept.append(1)
            await until("it is answered", lambda: kept.outcomes)
            held_back = False
            kept.appender.make_room()
            kept.appender.make_room()
            await until("both streams are trimmed", lambda: kept.appender.trimmed == 14)
            assert kept.appender.last_trimmed == 14
            assert [parts[1:] for parts in bus.said(b"EVAL")] == [
                [b"1", b"s", b"5000"],
                [b"1", b"t", b"5000"],
            ]
            assert kept.append(2)
            await until("it is answered as well", lambda: len(kept.outcomes) == 2)


# --- room and streams ---------------------------------------------------------------------------------

WRONG: Final = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"


def test_messages_of_clients_leave_room_for_events_about_connections() -> None:
    """400 clients send as fast as they can while 40 others come and leave, and the bus answers nothing."""

    async def main() -> None:
        options = replace(FAST, limit_entries=1_000, command_timeout_s=60.0)
        async with fake_bus(lambda talk, parts: b"") as bus, appending(bus, options) as kept:
            outcomes: list[str] = []
            for number in range(2_000):
                sender = Sender(number % 400, number % 400)
                outcomes.append(kept.appender.offer(event(number), sender, lambda outcome: None))
            assert outcomes.count("") == 500
            assert set(outcomes) == {"", CROWDED}
            assert all(kept.append(number, is_asked=False) for number in range(500))
            assert not kept.append(500, is_asked=False), "the number of connections bounds the rest"
            assert kept.appender.offer(event(1), Sender("late", 0), lambda outcome: None) == FULL

    asyncio.run(main())


def test_a_client_that_sends_little_is_not_refused_for_one_that_sends_much() -> None:
    async def main() -> None:
        options = replace(FAST, limit_entries=1_000, command_timeout_s=60.0)
        async with fake_bus(lambda talk, parts: b"") as bus, appending(bus, options) as kept:
            taken = [
                kept.appender.offer(event(number), Sender("greedy", number), lambda outcome: None)
                for number in range(1_000)
            ]
            assert CROWDED in taken
            for number in range(8):
                assert kept.appender.offer(event(number), Sender("good", 0), lambda outcome: None) == ""

    asyncio.run(main())


class Streams:
    """A bus with several streams, some of which are of the wrong type."""

    def __init__(self, *wrong: bytes) -> None:
        self.wrong = set(wrong)
        self.taken: dict[bytes, list[int]] = {}

    def answer(self, talk: Talk, parts: list[bytes]) -> bytes | None:
        if parts[0] != b"XADD":
            return None
        if parts[1] in self.wrong:
            return WRONG
        self.taken.setdefault(parts[1], []).append(int(parts[-1]))
        return ENTRY


def test_a_stream_that_refuses_does_not_delay_the_others_and_loses_no_event() -> None:
    async def main() -> None:
        streams = Streams(b"bad")
        async with fake_bus(streams.answer) as bus, appending(bus) as kept:

            def append(stream: bytes, number: int) -> bool:
                data = pack(b"XADD", stream, b"*", b"n", b"%d" % number)
                return kept.appender.append(data, stream=stream)

            for number in range(300):
                assert append(b"bad", number) and append(b"good", number)
            await until("the good one has all", lambda: streams.taken.get(b"good") == list(range(300)))
            assert bus.accepted == 1, "the connection is not given up for it"
            assert kept.appender.refuses(b"bad") and not kept.appender.refuses(b"good")
            await until("all of the bad one are back", lambda: kept.appender.held == 300)
            for number in range(300, 400):
                assert append(b"bad", number) and append(b"good", number)
            refused: list[str] = []
            offered = kept.appender.offer(event(1), Sender("a", 1), refused.append, stream=b"bad")
            assert offered == "refused", "a message for it is not kept waiting"
            await until("the good one goes on", lambda: streams.taken[b"good"] == list(range(400)))
            tries = len(bus.said(b"XADD"))
            await until("it is tried again", lambda: len(bus.said(b"XADD")) >= tries + 2)
            assert len(bus.said(b"XADD")) < tries + 20, "one event at a time"
            streams.wrong.clear()
            await until("it has all", lambda: kept.appender.held == 0)
            assert streams.taken[b"bad"] == list(range(400))
            assert not kept.appender.refuses(b"bad")
            assert kept.appender.held_bytes == 0
            assert any("the stream bad refuses" in why for why in kept.why)

    asyncio.run(main())


def test_messages_that_wait_for_a_stream_that_refuses_are_answered() -> None:
    async def main() -> None:
        streams = Streams(b"bad")
        async with fake_bus(streams.answer) as bus, appending(bus) as kept:
            told: list[str] = []
            for number in range(50):
                data = pack(b"XADD", b"bad", b"*", b"n", b"%d" % number)
                assert kept.appender.offer(data, Sender(number, 0), told.append, stream=b"bad") == ""
            await until("all are told", lambda: len(told) == 50)
            assert set(told) == {"refused"}
            assert (kept.appender.held, kept.appender.held_bytes, kept.appender._room.entries) == (0, 0, 0)
            streams.wrong.clear()
            await until("it is looked at again", lambda: not kept.appender.refuses(b"bad"))

    asyncio.run(main())


def test_a_stream_that_refuses_keeps_a_part_of_the_room_only() -> None:
    async def main() -> None:
        streams = Streams(b"bad")
        async with fake_bus(streams.answer) as bus, appending(bus, replace(FAST, limit_entries=100)) as kept:
            data = pack(b"XADD", b"bad", b"*", b"n", b"1")
            assert kept.appender.append(data, stream=b"bad")
            await until("it refuses", lambda: kept.appender.refuses(b"bad"))
            taken = sum(kept.appender.append(data, stream=b"bad") for _ in range(100))
            assert 20 <= taken <= 25
            assert all(kept.append(number, is_asked=False) for number in range(50))

    asyncio.run(main())


def test_a_server_that_refuses_everything_is_said_to_refuse_until_it_takes_an_event() -> None:
    is_full = True

    def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
        return b"-READONLY replica\r\n" if parts[0] == b"XADD" and is_full else good(talk, parts)

    async def main() -> None:
        nonlocal is_full
        async with fake_bus(answer) as bus, appending(bus) as kept:
            kept.append(1, is_asked=False)
            await until("it refuses", lambda: kept.appender.refuses(b"any"))
            is_full = False
            await until("it is answered", lambda: kept.appender.held == 0)
            assert not kept.appender.refuses(b"any")

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(6))
def test_streams_that_change_their_mind_and_cut_connections_lose_nothing_and_keep_their_order(
    seed: int,
) -> None:
    async def main() -> None:
        dice, streams = random.Random(seed), Streams()
        names = [b"a", b"b", b"c"]

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            if parts[0] == b"XADD" and dice.random() < 0.02:
                talk.cut()
                return b""
            return streams.answer(talk, parts)

        async with fake_bus(answer) as bus, appending(bus) as kept:
            for number in range(600):
                if number % 50 == 0:
                    streams.wrong = {name for name in names if dice.random() < 0.4}
                stream = dice.choice(names)
                data = pack(b"XADD", stream, b"*", b"n", b"%d" % number)
                assert kept.appender.append(data, stream=stream)
                if dice.random() < 0.1:
                    await asyncio.sleep(0.001)
            streams.wrong.clear()
            await until("all are taken", lambda: kept.appender.held == 0)
            assert sorted({each for taken in streams.taken.values() for each in taken}) == list(range(600))
            assert (kept.appender.held_bytes, kept.appender._aside_count) == (0, 0)

    asyncio.run(main())
