"""Run the appender of events against servers that answer late, in part, wrongly or not at all."""

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


class Recorder:
    """An appender and the outcomes of its events."""

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
async def running_appender(bus: FakeBus, options: AppenderOptions = FAST) -> AsyncIterator[Recorder]:
    recorder = Recorder(bus, options)
    running = asyncio.get_running_loop().create_task(recorder.appender.run())
    try:
        yield recorder
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def good(talk: Talk, parts: list[bytes]) -> bytes | None:
    return ENTRY if parts[0] == b"XADD" else None


def test_thousand_events_are_appended_in_order_and_all_confirmed() -> None:
    async def main() -> None:
        async with fake_bus(good) as bus, running_appender(bus) as recorder:
            for number in range(1_000):
                assert recorder.append(number)
            await until("all are answered", lambda: len(recorder.outcomes) == 1_000)
            assert set(recorder.outcomes.values()) == {""}
            assert appended(bus) == list(range(1_000))
            assert (recorder.appender.held, recorder.appender.held_bytes, recorder.appender.appended) == (
                0,
                0,
                1_000,
            )
            assert await recorder.appender.flush(1.0) == 0

    asyncio.run(main())


def test_unconfirmed_events_of_a_broken_connection_are_sent_again_first() -> None:
    def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
        if parts[0] == b"XADD" and int(parts[-1]) == 3 and not has_cut:
            has_cut.append(True)
            talk.cut()
            return b""
        return good(talk, parts)

    async def main() -> None:
        async with fake_bus(answer) as bus, running_appender(bus) as recorder:
            for number in range(6):
                recorder.append(number)
            await until("all are answered", lambda: len(recorder.outcomes) == 6)
            assert set(recorder.outcomes.values()) == {""}
            told = appended(bus)
            assert list(dict.fromkeys(told)) == list(range(6)), "an event is lost or out of order"
            assert told[-3:] == [3, 4, 5]
            assert recorder.appender.repeated >= 3
            assert recorder.why

    has_cut: list[bool] = []
    asyncio.run(main())


def test_events_refused_with_readonly_or_moved_are_sent_again_in_order() -> None:
    refusals = [b"-READONLY You can't write against a read only replica.\r\n", b"-MOVED 7 127.0.0.1:1\r\n"]

    def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
        if parts[0] == b"XADD" and refusals and int(parts[-1]) == 1:
            return refusals.pop()
        return good(talk, parts)

    async def main() -> None:
        async with fake_bus(answer) as bus, running_appender(bus) as recorder:
            for number in range(3):
                recorder.append(number)
            await until("all are answered", lambda: len(recorder.outcomes) == 3)
            assert appended(bus)[-2:] == [1, 2]
            assert recorder.moved == 1
            assert any("READONLY" in why for why in recorder.why)

    asyncio.run(main())


def test_event_without_a_reply_is_sent_again_but_a_waiting_caller_receives_unknown() -> None:
    is_deaf = True

    def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
        return b"" if parts[0] == b"XADD" and is_deaf else good(talk, parts)

    async def main() -> None:
        nonlocal is_deaf
        async with fake_bus(answer) as bus, running_appender(bus) as recorder:
            recorder.append(1)
            recorder.append(2, is_asked=False)
            await until("the caller has an outcome", lambda: recorder.outcomes)
            assert recorder.outcomes[1] in ("unknown", "down")
            is_deaf = False
            await until("the other event is appended", lambda: recorder.appender.held == 0)
            assert appended(bus)[-1] == 2

    asyncio.run(main())


def test_events_without_a_server_fail_for_waiting_callers_and_are_buffered_otherwise() -> None:
    async def main() -> None:
        options = replace(FAST, limit_entries=10)
        async with fake_bus(good) as bus:
            port = bus.address.port
        async with running_appender(bus, options) as recorder:
            assert all(recorder.append(number, is_asked=number < 4) for number in range(10))
            assert not recorder.append(10)
            await until("the callers have outcomes", lambda: len(recorder.outcomes) == 4)
            assert set(recorder.outcomes.values()) == {"down"}
            assert recorder.appender.held == 6
            assert recorder.append(11, is_asked=False), "no room became free"
            async with fake_bus(good, port=port) as back:
                await until("all is appended", lambda: recorder.appender.held == 0)
                assert appended(back) == [4, 5, 6, 7, 8, 9, 11]
        assert recorder.appender.held_bytes == 0

    asyncio.run(main())


def test_buffered_events_have_a_limit_in_bytes() -> None:
    async def main() -> None:
        async with (
            fake_bus(lambda talk, parts: b"") as bus,
            running_appender(bus, replace(FAST, limit_bytes=100)) as recorder,
        ):
            assert recorder.append(1)
            assert not recorder.appender.append(bytes(200))
            assert recorder.append(2)
            assert not recorder.append(3)

    asyncio.run(main())


def test_event_of_two_commands_is_appended_only_after_both_replies() -> None:
    answers = [ENTRY, b"", ENTRY, b":0\r\n"]

    def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
        return answers.pop(0) if parts[0] in (b"XADD", b"PUBLISH") else None

    async def main() -> None:
        async with fake_bus(answer) as bus, running_appender(bus) as recorder:
            both = event(1) + pack(b"PUBLISH", b"s", b"1")
            recorder.appender.append(both, commands=2)
            await until("it is done", lambda: recorder.appender.appended == 1)
            assert len(bus.said(b"XADD")) == 2, "the event was not sent again after one of two replies"
            assert recorder.appender.held == 0

    asyncio.run(main())


def test_appender_leaves_a_server_that_sends_an_extra_reply() -> None:
    async def main() -> None:
        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return ENTRY + ENTRY if parts[0] == b"XADD" else None

        async with fake_bus(answer) as bus, running_appender(bus) as recorder:
            recorder.append(1)
            await until("the connection is closed", lambda: any("unrequested" in why for why in recorder.why))
            assert recorder.outcomes == {1: ""}

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(10))
def test_hostile_replies_to_the_appender_end_the_connection_and_lose_no_event(seed: int) -> None:
    """Replies to the command that trims streams are hostile too; at the end the server is a good one."""

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
        async with fake_bus(answer) as bus, running_appender(bus, options) as recorder:
            for number in range(20):
                assert recorder.append(number, is_asked=False)
            await until("many attempts", lambda: bus.accepted >= 6 or not recorder.appender.held)
            is_hostile = False
            await until("all are answered", lambda: not recorder.appender.held)
            assert not faults

    asyncio.run(main())


@pytest.mark.parametrize(
    "odd", [b"+OK\r\n", b"$-1\r\n", bulk(b""), bulk(b"9" * 5_000), bulk(b"-1"), bulk(b"\xb2")]
)
def test_reply_to_a_trim_that_is_no_number_ends_the_connection_and_loses_no_event(odd: bytes) -> None:
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

        async with (
            fake_bus(answer) as bus,
            running_appender(bus, replace(FAST, trimmed_streams=(b"s",))) as recorder,
        ):
            assert recorder.append(1)
            await until("it is answered", lambda: recorder.outcomes)
            assert recorder.outcomes == {1: ""}
            assert not faults
            assert recorder.appender.trimmed == 0
            assert any("trim_events without a number" in why for why in recorder.why)

    asyncio.run(main())


# --- a server whose memory is full --------------------------------------------------------------------


def trim(bus: redis.Redis, stream_bytes: int) -> int:
    removed = bus.eval(TRIM_EVENTS.text.decode(), 1, "s", str(stream_bytes))
    assert isinstance(removed, int)
    return removed


def ids(bus: redis.Redis) -> list[int]:
    entries: Any = bus.xrange("s")
    return [int(fields[b"n"]) for _, fields in entries]


def test_trim_script_removes_only_entries_that_every_group_has_acknowledged() -> None:
    with running_valkey() as server, redis.Redis(port=server.port) as bus:
        assert trim(bus, 0) == 0, "entries were removed without a stream"
        for number in range(10):
            bus.xadd("s", {"n": number})
        bus.xgroup_create("s", "one", "0")
        bus.xgroup_create("s", "two", "0")
        assert trim(bus, 0) == 0, "unread entries were removed"
        [(_, rows)] = bus.xreadgroup("one", "c", {"s": ">"}, count=8)
        assert trim(bus, 0) == 0, "entries were removed that the other group has not read"
        [(_, others)] = bus.xreadgroup("two", "c", {"s": ">"}, count=6)
        assert trim(bus, 0) == 0, "entries were removed that are not acknowledged"
        for entry, _ in rows[:2] + rows[3:]:
            bus.xack("s", "one", entry)
        for entry, _ in others:
            bus.xack("s", "two", entry)
        assert trim(bus, 0) == 2 and ids(bus) == list(range(2, 10)), "entry 2 is pending in group one"
        bus.xack("s", "one", rows[2][0])
        assert trim(bus, 0) == 4 and ids(bus) == list(range(6, 10)), "group two has read up to 5"
        assert trim(bus, 0) == 0 and bus.xpending("s", "one")["pending"] == 0


def test_trim_script_halves_a_stream_without_groups_only_over_its_size() -> None:
    with running_valkey() as server, redis.Redis(port=server.port) as bus:
        for number in range(1_000):
            bus.xadd("s", {"n": number, "data": "x" * 500})
        assert trim(bus, 2_000_000) == 0 and bus.xlen("s") == 1_000
        assert trim(bus, 100_000) == 500 and ids(bus) == list(range(500, 1_000))


def test_two_requests_to_trim_run_once_and_count_the_removed_entries() -> None:
    async def main() -> None:
        held_back = True

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            if parts[0] == b"EVAL":
                return b"" if held_back else b":7\r\n"
            return ENTRY if parts[0] == b"XADD" else None

        options = AppenderOptions(trimmed_streams=(b"s", b"t"), stream_bytes=5_000)
        async with fake_bus(answer) as bus, running_appender(bus, options) as recorder:
            recorder.appender.make_room()
            assert not bus.said(b"EVAL"), "a trim was sent without a connection"
            assert recorder.append(1)
            await until("it is answered", lambda: recorder.outcomes)
            held_back = False
            recorder.appender.make_room()
            recorder.appender.make_room()
            await until("both streams are trimmed", lambda: recorder.appender.trimmed == 14)
            assert recorder.appender.last_trimmed == 14
            assert [parts[1:] for parts in bus.said(b"EVAL")] == [
                [b"1", b"s", b"5000"],
                [b"1", b"t", b"5000"],
            ]
            assert recorder.append(2)
            await until("it is answered as well", lambda: len(recorder.outcomes) == 2)


# --- room and streams ---------------------------------------------------------------------------------

WRONG: Final = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"


def test_messages_of_clients_fill_only_half_of_the_buffer_and_leave_the_rest_to_events() -> None:
    """400 clients send as fast as they can, while events about other connections need room too.

    The bus answers nothing.
    """

    async def main() -> None:
        options = replace(FAST, limit_entries=1_000, command_timeout_s=60.0)
        async with fake_bus(lambda talk, parts: b"") as bus, running_appender(bus, options) as recorder:
            outcomes: list[str] = []
            for number in range(2_000):
                sender = Sender(number % 400, number % 400)
                outcomes.append(recorder.appender.offer(event(number), sender, lambda outcome: None))
            assert outcomes.count("") == 500
            assert set(outcomes) == {"", CROWDED}
            assert all(recorder.append(number, is_asked=False) for number in range(500))
            assert not recorder.append(500, is_asked=False), "the buffer accepted more than its limit"
            assert recorder.appender.offer(event(1), Sender("late", 0), lambda outcome: None) == FULL

    asyncio.run(main())


def test_messages_are_accepted_again_after_a_server_without_memory_refused_all_and_nothing_waits() -> None:
    """No other event is enabled, so only a message can show that the server has recovered."""

    async def main() -> None:
        is_full = True

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return (b"-OOM full\r\n" if is_full else ENTRY) if parts[0] == b"XADD" else None

        options = replace(FAST, connect_timeout_s=0.1, command_timeout_s=0.1)
        async with fake_bus(answer) as bus, running_appender(bus, options) as recorder:
            outcomes: list[str] = []

            def offer() -> str:
                return recorder.appender.offer(event(1), Sender("ann", 0), outcomes.append)

            assert offer() == ""
            await until("given up", lambda: outcomes and not recorder.appender.held)
            is_full = False
            assert offer() == ""
            await until("appended", lambda: len(outcomes) == 2)
            assert outcomes == ["down", ""]

    asyncio.run(main())


def test_message_of_a_quiet_client_is_accepted_while_a_busy_one_is_crowded_out() -> None:
    async def main() -> None:
        options = replace(FAST, limit_entries=1_000, command_timeout_s=60.0)
        async with fake_bus(lambda talk, parts: b"") as bus, running_appender(bus, options) as recorder:
            taken = [
                recorder.appender.offer(event(number), Sender("greedy", number), lambda outcome: None)
                for number in range(1_000)
            ]
            assert CROWDED in taken
            for number in range(8):
                assert recorder.appender.offer(event(number), Sender("good", 0), lambda outcome: None) == ""

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


def test_stream_that_refuses_delays_no_other_stream_and_its_events_arrive_later_in_order() -> None:
    async def main() -> None:
        streams = Streams(b"bad")
        async with fake_bus(streams.answer) as bus, running_appender(bus) as recorder:

            def append(stream: bytes, number: int) -> bool:
                data = pack(b"XADD", stream, b"*", b"n", b"%d" % number)
                return recorder.appender.append(data, stream=stream)

            for number in range(300):
                assert append(b"bad", number) and append(b"good", number)
            await until("the good stream has all", lambda: streams.taken.get(b"good") == list(range(300)))
            assert bus.accepted == 1, "the connection was replaced"
            assert recorder.appender.refuses(b"bad") and not recorder.appender.refuses(b"good")
            await until("all events of the bad stream are buffered", lambda: recorder.appender.held == 300)
            for number in range(300, 400):
                assert append(b"bad", number) and append(b"good", number)
            refused: list[str] = []
            offered = recorder.appender.offer(event(1), Sender("a", 1), refused.append, stream=b"bad")
            assert offered == "refused", "a message for the bad stream was buffered"
            await until("the good stream continues", lambda: streams.taken[b"good"] == list(range(400)))
            tries = len(bus.said(b"XADD"))
            await until("the bad stream is tried again", lambda: len(bus.said(b"XADD")) >= tries + 2)
            assert len(bus.said(b"XADD")) < tries + 20, (
                "the bad stream was tried with more than one event at a time"
            )
            streams.wrong.clear()
            await until("the bad stream has all", lambda: recorder.appender.held == 0)
            assert streams.taken[b"bad"] == list(range(400))
            assert not recorder.appender.refuses(b"bad")
            assert recorder.appender.held_bytes == 0
            assert any("the stream bad refuses" in why for why in recorder.why)

    asyncio.run(main())


@pytest.mark.parametrize(
    "said", [b"-NOPERM no permissions to access a channel\r\n", b"-READONLY a replica\r\n"]
)
def test_event_whose_publish_is_refused_is_appended_once_and_its_stream_goes_on(said: bytes) -> None:
    def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
        return said if parts[0] == b"PUBLISH" else good(talk, parts)

    async def main() -> None:
        async with fake_bus(answer) as bus, running_appender(bus) as recorder:
            told: list[str] = []
            for number in range(20):
                both = event(number) + pack(b"PUBLISH", b"s", b"%d" % number)
                assert recorder.appender.append(both, commands=2, done=told.append, stream=b"s")
            await until("all are answered", lambda: len(told) == 20)
            await asyncio.sleep(2 * FAST.command_timeout_s)
            assert set(told) == {""}
            assert appended(bus) == list(range(20))
            assert not recorder.appender.refuses(b"s")
            assert (recorder.appender.held, bus.accepted) == (0, 1)
            assert any("an event is not published" in why for why in recorder.why)

    asyncio.run(main())


def test_messages_waiting_for_a_stream_that_refuses_fail_as_refused() -> None:
    async def main() -> None:
        streams = Streams(b"bad")
        async with fake_bus(streams.answer) as bus, running_appender(bus) as recorder:
            told: list[str] = []
            for number in range(50):
                data = pack(b"XADD", b"bad", b"*", b"n", b"%d" % number)
                assert recorder.appender.offer(data, Sender(number, 0), told.append, stream=b"bad") == ""
            await until("all have outcomes", lambda: len(told) == 50)
            assert set(told) == {"refused"}
            assert (
                recorder.appender.held,
                recorder.appender.held_bytes,
                recorder.appender._room.entries,
            ) == (0, 0, 0)
            streams.wrong.clear()
            await until("the stream is tried again", lambda: not recorder.appender.refuses(b"bad"))

    asyncio.run(main())


def test_events_of_a_stream_that_refuses_use_at_most_a_quarter_of_the_buffer() -> None:
    async def main() -> None:
        streams = Streams(b"bad")
        async with (
            fake_bus(streams.answer) as bus,
            running_appender(bus, replace(FAST, limit_entries=100)) as recorder,
        ):
            data = pack(b"XADD", b"bad", b"*", b"n", b"1")
            assert recorder.appender.append(data, stream=b"bad")
            await until("it refuses", lambda: recorder.appender.refuses(b"bad"))
            taken = sum(recorder.appender.append(data, stream=b"bad") for _ in range(100))
            assert 20 <= taken <= 25
            assert all(recorder.append(number, is_asked=False) for number in range(50))

    asyncio.run(main())


def test_every_stream_counts_as_refusing_while_the_server_is_read_only() -> None:
    is_full = True

    def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
        return b"-READONLY replica\r\n" if parts[0] == b"XADD" and is_full else good(talk, parts)

    async def main() -> None:
        nonlocal is_full
        async with fake_bus(answer) as bus, running_appender(bus) as recorder:
            recorder.append(1, is_asked=False)
            await until("it refuses", lambda: recorder.appender.refuses(b"any"))
            is_full = False
            await until("it is answered", lambda: recorder.appender.held == 0)
            assert not recorder.appender.refuses(b"any")

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(6))
def test_streams_that_refuse_at_random_and_broken_connections_lose_no_event(
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

        async with fake_bus(answer) as bus, running_appender(bus) as recorder:
            for number in range(600):
                if number % 50 == 0:
                    streams.wrong = {name for name in names if dice.random() < 0.4}
                stream = dice.choice(names)
                data = pack(b"XADD", stream, b"*", b"n", b"%d" % number)
                assert recorder.appender.append(data, stream=stream)
                if dice.random() < 0.1:
                    await asyncio.sleep(0.001)
            streams.wrong.clear()
            await until("all are appended", lambda: recorder.appender.held == 0)
            assert sorted({each for taken in streams.taken.values() for each in taken}) == list(range(600))
            assert (recorder.appender.held_bytes, recorder.appender._aside_count) == (0, 0)

    asyncio.run(main())
