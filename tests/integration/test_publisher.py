"""Run the publisher: every publish has exactly one correct outcome, however the bus fails meanwhile."""

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
from wsgate.bus import BusAddress, Names, Publisher, RevocationKeeper, pack, parse_address, publisher
from wsgate.bus.publisher import WAITING_LIMIT, WAITING_LIMIT_BYTES
from wsgate.bus.push import REPLY_LIMIT_BYTES

OUTCOMES = {"", "down", "full", "refused", "unknown", "moved"}
NAME = b"wsgate:ch:news"


@dataclass
class Recorder:
    """A running publisher and the outcomes that it reported."""

    publisher: Publisher
    outcomes: list[tuple[int, str]] = field(default_factory=list)  # in the order of their arrival
    why: list[str] = field(default_factory=list)
    number: int = 0

    def publish(self, data: bytes | None = None, name: bytes = NAME, *, must_reach: bool = False) -> int:
        """Publish the next number, or other data; return the number of the publish."""
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
        """Return how often each outcome occurred."""
        return dict(Counter(outcome for _, outcome in self.outcomes))

    async def say(self, data: bytes | None = None, name: bytes = NAME) -> str:
        """Publish and wait for the outcome."""
        number = self.publish(data, name)
        await until("answered", lambda: any(each == number for each, _ in self.outcomes))
        return dict(self.outcomes)[number]


@contextlib.asynccontextmanager
async def running_publisher(
    address: BusAddress, *, connect_timeout_s: float = 20, command_timeout_s: float = 20
) -> AsyncIterator[Recorder]:
    why: list[str] = []
    recorder = Recorder(
        Publisher(
            address,
            connect_timeout_s=connect_timeout_s,
            command_timeout_s=command_timeout_s,
            on_failed=why.append,
        ),
        why=why,
    )
    task = asyncio.ensure_future(recorder.publisher.run())
    try:
        yield recorder
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        await recorder.publisher.close()
        await asyncio.sleep(0)
        assert sorted(number for number, _ in recorder.outcomes) == list(range(1, recorder.number + 1))
        assert recorder.publisher.waiting_bytes == 0
        assert recorder.publisher.published == recorder.counted.get("", 0)
        assert recorder.publisher.failed == recorder.number - recorder.publisher.published


def run(main: Coroutine[Any, Any, None]) -> None:
    uvloop.run(main)


def listening(client: redis.Redis) -> redis.client.PubSub:
    heard: redis.client.PubSub = client.pubsub()  # type: ignore[no-untyped-call]
    return heard


def ask(client: redis.Redis, *command: object) -> object:
    return client.execute_command(*command)  # type: ignore[no-untyped-call]


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attempts follow at once, and accept connections that do not last."""
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


# --- a real server ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["url", "unix_url"])
def test_ten_thousand_publishes_arrive_and_are_confirmed_in_order(
    valkey: Valkey, backend: redis.Redis, way: str
) -> None:
    heard = listening(backend)
    heard.subscribe(NAME)
    assert (heard.get_message(timeout=20) or {})["type"] == "subscribe"

    async def main() -> None:
        async with running_publisher(parse_address(getattr(valkey, way))) as recorder:
            for _ in range(20):
                for _ in range(500):
                    recorder.publish()
                await asyncio.sleep(0)
                await until("there is room", lambda: recorder.number - len(recorder.outcomes) < 5_000)
            await until("answered", lambda: recorder.is_done)
            assert recorder.outcomes == [(number, "") for number in range(1, 10_001)]

    run(main())
    for number in range(1, 10_001):
        assert (heard.get_message(timeout=20) or {})["data"] == b"%d" % number
    heard.close()


def test_channel_names_and_payloads_with_line_ends_are_sent_literally_s26(
    valkey: Valkey, backend: redis.Redis
) -> None:
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
        async with running_publisher(parse_address(valkey.url)) as recorder:
            for each in odd:
                assert await recorder.say(each, b":" + each) == ""

    run(main())
    for each in odd:
        found = heard.get_message(timeout=20) or {}
        assert (found["channel"], found["data"]) == (b":" + each, each)
    heard.close()


def test_publishes_fail_as_down_while_the_server_is_stopped_and_work_after_its_restart(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "FAILING_PAUSE_S", 0.05)

    async def main() -> None:
        async with running_publisher(parse_address(valkey.url)) as recorder:
            assert await recorder.say() == ""
            valkey.stop()
            assert await recorder.say() in ("down", "unknown")
            await until("down", lambda: "down" in recorder.counted or recorder.publish() == 0)
            assert recorder.why
            valkey.restart()
            for _ in range(1_000):
                if await recorder.say() == "":
                    break
            else:
                raise AssertionError("no publish succeeded after the restart")

    run(main())


def test_publish_to_a_stopped_server_is_unknown_and_the_next_one_down_r7(valkey: Valkey) -> None:
    async def main() -> None:
        async with running_publisher(
            parse_address(valkey.url), command_timeout_s=0.3, connect_timeout_s=0.3
        ) as recorder:
            assert await recorder.say() == ""
            with valkey.paused():
                assert await recorder.say() == "unknown"
                assert await recorder.say() == "down"  # no publish waits for a bus that does not answer
                assert recorder.why == ["no reply within 0.3 s"]
            await until("it answers again", lambda: recorder.outcomes[-1][1] == "" or recorder.publish() == 0)

    run(main())


def test_publish_without_permission_is_refused_and_the_password_is_not_reported_r10(
    valkey: Valkey, backend: redis.Redis
) -> None:
    ask(backend, "ACL", "SETUSER", "gate", "on", ">s3cret", "resetchannels", "&wsgate:*", "+@all")
    address = replace(parse_address(valkey.url), username="gate", password="s3cret")

    async def main() -> None:
        async with running_publisher(address) as recorder:
            assert [await recorder.say(b"x", name) for name in (NAME, b"other", NAME)] == ["", "refused", ""]
            assert "NOPERM" in recorder.why[0]
        async with running_publisher(replace(address, password="hunter2")) as recorder:
            assert await recorder.say() == "down"
            assert "WRONGPASS" in recorder.why[0] and "hunter2" not in recorder.why[0]

    run(main())


def test_publish_works_without_free_memory_and_is_down_without_free_clients_r10() -> None:
    async def main() -> None:
        # An empty Valkey 9 uses more than 1 MB, an empty Redis 7.0 less: one byte is too little for each.
        with running_valkey(maxmemory="1", maxmemory_policy="noeviction") as server:
            with redis.Redis(port=server.port) as backend:
                with pytest.raises(redis.exceptions.OutOfMemoryError):
                    backend.set("a", "x")
                async with running_publisher(parse_address(server.url)) as recorder:
                    assert await recorder.say() == ""
                    backend.config_set("maxclients", 2)
                    async with running_publisher(parse_address(server.url)) as another:
                        assert await another.say() == "down"
                    assert await recorder.say() == ""

    run(main())


def test_replies_in_single_bytes_and_with_a_delay_are_assigned_to_the_right_publish_r8(
    valkey: Valkey,
) -> None:
    async def main() -> None:
        with fault_proxy("127.0.0.1", valkey.port) as proxy:
            async with running_publisher(parse_address(proxy.url)) as recorder:
                proxy.faults.slice_bytes = 1
                for _ in range(500):
                    recorder.publish()
                await until("answered", lambda: recorder.is_done)
                proxy.faults.delay_s = 0.2
                for _ in range(500):
                    recorder.publish()
                await until("answered", lambda: recorder.is_done)
                assert recorder.outcomes == [(number, "") for number in range(1, 1_001)]

    run(main())


# --- a server that breaks the protocol ----------------------------------------------------------------


def is_refused(number: int) -> bool:
    """Whether the fake refuses this number, so that a reply to the wrong caller shows."""
    return random.Random(number).random() < 0.3


@dataclass
class Cutting:
    """A bus that answers by number, and now and then cuts the connection in the middle of a reply."""

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
            # A FIN, after which earlier replies arrive, or a reset, which may discard them.
            if self._random.random() < 0.5:
                talk.cut()
            else:
                talk.writer.close()
            return b""
        return said


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_thousand_publishes_over_connections_cut_anywhere_have_one_correct_outcome_s25(
    seed: int, without_pauses: None
) -> None:
    order = random.Random(seed)

    async def main() -> None:
        cutting = Cutting(seed)
        async with fake_bus(cutting.answer) as bus, running_publisher(bus.address) as recorder:
            while recorder.number < 10_000:
                for _ in range(order.randrange(1, 60)):
                    recorder.publish()
                for _ in range(order.randrange(3)):
                    await asyncio.sleep(0)
                await until("there is room", lambda: recorder.number - len(recorder.outcomes) < 100)
            await until("answered", lambda: recorder.is_done)
            for number, outcome in recorder.outcomes:
                if outcome == "":
                    assert number in cutting.got and not is_refused(number)
                elif outcome == "refused":
                    assert number in cutting.got and is_refused(number)
                elif outcome == "down":
                    assert number not in cutting.got
                else:
                    assert outcome == "unknown"
            counted = recorder.counted
            # The cuts really happen, and only publishes in flight at a cut are unknown.
            assert cutting.cuts > 10 and counted["unknown"] >= cutting.cuts / 2
            assert counted[""] > 4_000 and counted["refused"] > 1_500
            sent = [number for number, outcome in recorder.outcomes if outcome != "down"]
            assert sent == sorted(sent)

    run(main())


@pytest.mark.parametrize("turns", range(12))
def test_publisher_stopped_at_any_moment_gives_every_publish_an_outcome_s25(turns: int) -> None:
    async def main() -> None:
        async with fake_bus() as bus:
            async with running_publisher(bus.address) as recorder:
                for _ in range(300):
                    recorder.publish()
                for _ in range(turns):
                    await asyncio.sleep(0)
            assert set(recorder.counted) <= {"", "unknown", "down"}
            done = [number for number, outcome in recorder.outcomes if outcome == ""]
            assert len(bus.said(b"PUBLISH")) >= len(done)
            recorder.publish()
            await asyncio.sleep(0)
            assert recorder.outcomes[-1][1] == "down"

    run(main())


def test_publishes_answered_before_the_connection_ends_are_published_and_the_rest_unknown(
    without_pauses: None,
) -> None:
    """The server answers 60 of 100 publishes and then closes."""

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

        async with fake_bus(answer) as bus, running_publisher(bus.address) as recorder:
            for _ in range(100):
                recorder.publish()
            await until("answered", lambda: recorder.is_done)
            assert recorder.counted == {"": 60, "unknown": 40}

    run(main())


def test_publishes_without_a_reply_end_at_the_timeout_and_over_the_limit_as_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publisher, "WRITE_COMMANDS", 10)
    monkeypatch.setattr(publisher, "STEADY_S", 0.0)

    async def main() -> None:
        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return b"" if parts[0] == b"PUBLISH" else None

        async with fake_bus(answer) as bus, running_publisher(bus.address, command_timeout_s=0.3) as recorder:
            for _ in range(WAITING_LIMIT):
                recorder.publish()
            assert recorder.outcomes == []
            recorder.publish()
            await until("answered", lambda: recorder.outcomes)
            assert recorder.outcomes == [(WAITING_LIMIT + 1, "full")]
            await until("answered", lambda: recorder.is_done)
            assert set(recorder.counted) <= {"unknown", "down", "full"}
            assert recorder.counted["unknown"] == len(bus.said(b"PUBLISH"))
            assert bus.accepted == 1

    run(main())


def test_bytes_waiting_for_a_bus_that_does_not_read_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "STEADY_S", 0.0)
    accepted: list[int] = []

    async def main() -> None:
        listener = await asyncio.start_server(greet_and_stall, "127.0.0.1", 0)
        async with listener:
            address = BusAddress("127.0.0.1", listener.sockets[0].getsockname()[1])
            async with running_publisher(address, command_timeout_s=0.5) as recorder:
                size = 1024 * 1024
                for _ in range(WAITING_LIMIT_BYTES // size):
                    recorder.publish(bytes(size))
                recorder.publish(bytes(size))
                await until("full", lambda: recorder.outcomes)
                assert recorder.outcomes == [(recorder.number, "full")]
                await until("answered", lambda: recorder.is_done)
                # A publish that was never written to the connection is certainly not published.
                assert recorder.counted["down"] > 0 and recorder.counted["unknown"] > 0
                assert len(accepted) == 1  # no publish waits for another attempt
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


def test_revocations_are_read_again_within_two_seconds_after_a_passing_error() -> None:
    read_at_s: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            if parts[0] != b"EVALSHA":
                return None
            read_at_s.append(loop.time())
            return b"-CLUSTERDOWN The cluster is down\r\n" if len(read_at_s) == 1 else bulk(b"")

        async with fake_bus(answer) as bus, running_publisher(bus.address) as recorder:
            keeper = RevocationKeeper(
                recorder.publisher, Names("w"), {}, lambda user, before_s: None, lambda name, amount: None
            )
            keeper.on_up()

            def has_read() -> bool:
                keeper.tick(loop.time())
                return keeper.has_read

            await until("read", has_read, 5)
            assert read_at_s[1] - read_at_s[0] < 2

    run(main())


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (b"-LOADING server is loading the dataset in memory\r\n", "down"),
        (b"-NOAUTH Authentication required.\r\n", "down"),
        (b"-READONLY You can't write against a read only replica.\r\n", "down"),
        (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", "down"),
        (b"-CLUSTERDOWN The cluster is down\r\n", "down"),
        (b"-BUSY Valkey is busy running a script.\r\n", "down"),
        (b"-ASK 1 127.0.0.1:7000\r\n", "down"),
        (b"-NOPERM this user has no permissions to access one of the channels\r\n", "refused"),
        (b"-ERR unknown command\r\n", "refused"),
    ],
)
def test_error_reply_fails_only_its_own_publish_and_reports_the_cause_r10(said: bytes, outcome: str) -> None:
    async def main() -> None:
        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return said if parts[0] == b"PUBLISH" and parts[2] == b"2" else None

        async with fake_bus(answer) as bus, running_publisher(bus.address) as recorder:
            for _ in range(3):
                recorder.publish()
            await until("answered", lambda: recorder.is_done)
            assert recorder.outcomes == [(1, ""), (2, outcome), (3, "")]
            [why] = recorder.why
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
def test_bus_that_answers_a_publish_with_malformed_resp_is_disconnected_s26(
    wire: bytes, without_pauses: None
) -> None:
    async def main() -> None:
        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return wire if parts[0] == b"PUBLISH" and bus.accepted == 1 else None

        async with fake_bus(answer) as bus, running_publisher(bus.address) as recorder:
            assert await recorder.say() == "unknown"
            assert await recorder.say() == ""
            assert bus.accepted == 2

    run(main())


def test_bus_that_sends_an_extra_reply_to_a_publish_is_disconnected(without_pauses: None) -> None:
    async def main() -> None:
        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return b":1\r\n:1\r\n" if parts[0] == b"PUBLISH" else None

        async with fake_bus(answer) as bus, running_publisher(bus.address) as recorder:
            assert await recorder.say() == ""
            await until("closed", lambda: not bus.talks)
            assert await recorder.say() == ""
            assert bus.accepted == 2

    run(main())


def test_publish_not_yet_sent_when_the_connection_is_lost_is_sent_on_the_next_one(
    without_pauses: None,
) -> None:
    async def main() -> None:
        async with fake_bus() as bus, running_publisher(bus.address) as recorder:
            assert await recorder.say() == ""
            assert recorder.publisher._connection is not None
            recorder.publisher._connection.abort("lost")
            assert await recorder.say() == ""  # accepted before the loss was noticed
            assert bus.accepted == 2

    run(main())


def test_idle_connection_closed_by_the_bus_fails_no_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "STEADY_S", 0.0)

    async def main() -> None:
        async with fake_bus() as bus, running_publisher(bus.address) as recorder:
            for times in range(1, 5):
                assert await recorder.say() == ""
                bus.talks[0].writer.close()
                await until("closed", lambda: not bus.talks and recorder.publisher._connection is None)
                assert bus.accepted == times
            assert recorder.why == []

    run(main())


def test_idle_connection_is_pinged_and_replaced_when_it_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, without_pauses: None
) -> None:
    monkeypatch.setattr(publisher, "IDLE_PING_S", 0.01)

    async def main() -> None:
        is_mute = False

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return b"" if is_mute and bus.accepted == 1 else None

        async with fake_bus(answer) as bus, running_publisher(bus.address, command_timeout_s=0.2) as recorder:
            assert await recorder.say() == ""
            await until("pinged", lambda: len(bus.said(b"PING")) >= 3)
            is_mute = True
            await until("closed", lambda: recorder.publisher._connection is None)
            assert await recorder.say() == ""  # the publish did not have to fail first

    run(main())


def test_renewing_the_connection_keeps_the_outcome_of_a_publish_in_flight() -> None:
    async def main() -> None:
        gate: list[Callable[[], None]] = []

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            if parts[0] == b"PUBLISH" and bus.accepted == 1:
                gate.append(lambda: talk.writer.write(b":1\r\n"))
                return b""
            return None

        async with fake_bus(answer) as bus, running_publisher(bus.address) as recorder:
            recorder.publish()
            await until("sent", lambda: gate)
            recorder.publisher.renew("renewed by the test")
            recorder.publish()
            await asyncio.sleep(0.02)
            assert recorder.outcomes == [] and len(gate) == 1  # nothing more is sent on the old connection
            publisher_pause = recorder.publisher
            gate[0]()
            await until("answered", lambda: recorder.outcomes)
            assert recorder.outcomes[0] == (1, "")
            await until("answered", lambda: recorder.is_done)
            assert publisher_pause is recorder.publisher

    run(main())


def test_callback_that_raises_does_not_affect_the_next_publish() -> None:
    async def main() -> None:
        faults: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: faults.append(context.get("exception")))

        def fail(outcome: str) -> None:
            raise ValueError(outcome)

        async with fake_bus() as bus, running_publisher(bus.address) as recorder:
            recorder.publish()
            await until("answered", lambda: recorder.is_done)
            recorder.publisher.publish(NAME, b"x", fail)
            assert await recorder.say() == ""
            assert [type(fault) for fault in faults] == [ValueError]
            recorder.publisher.published -= 1  # this publish is not in `outcomes`

    run(main())


def test_publish_from_inside_a_callback_has_an_outcome(without_pauses: None) -> None:
    async def main() -> None:
        async with fake_bus() as bus, running_publisher(bus.address) as recorder:
            again: list[str] = []

            def once_more(outcome: str) -> None:
                again.append(outcome)
                if len(again) < 3:
                    recorder.publisher.publish(NAME, b"x", once_more)

            recorder.publisher.publish(NAME, b"x", once_more)
            await until("answered", lambda: len(again) == 3)
            assert again == ["", "", ""]
            recorder.publisher.published -= 3

    run(main())


def test_600_publishes_of_one_pass_leave_in_three_writes(valkey: Valkey) -> None:
    async def main() -> None:
        async with fake_bus() as bus, running_publisher(bus.address) as recorder:
            assert await recorder.say() == ""
            assert isinstance(bus, FakeBus)
            writes: list[int] = []
            connection = recorder.publisher._connection
            assert connection is not None
            write = connection.write

            def counted(data: bytes) -> None:
                writes.append(data.count(b"PUBLISH"))
                write(data)

            connection.write = counted  # type: ignore[method-assign]
            for _ in range(600):
                recorder.publish()
            await until("answered", lambda: recorder.is_done)
            assert writes == [256, 256, 88]

    run(main())


@pytest.mark.parametrize("seed", range(10))
def test_every_command_has_an_outcome_when_the_replies_are_hostile(
    seed: int,
) -> None:
    async def scenario() -> None:
        dice, faults = random.Random(seed), list[object]()
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        answers: list[tuple[str, bytes]] = []

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return hostile_reply(dice) if parts[0] != b"PING" or dice.random() < 0.2 else None

        async with fake_bus(answer) as bus, running_publisher(bus.address, command_timeout_s=0.1) as recorder:
            for turn in range(1, 31):
                recorder.publish()
                recorder.publisher.call(b"k", pack("EXISTS", "k"), lambda *each: answers.append(each))
                await until("answered", lambda: recorder.is_done and len(answers) == turn)  # noqa: B023
            assert {outcome for _, outcome in recorder.outcomes} <= OUTCOMES
            assert {outcome for outcome, _ in answers} <= OUTCOMES | {"unscripted"}
        assert not faults

    uvloop.run(scenario())


def test_publish_that_must_reach_a_subscriber_and_reaches_none_is_unheard(valkey: Valkey) -> None:
    async def main() -> None:
        async with running_publisher(parse_address(valkey.url)) as recorder:
            for must_reach in (True, False):
                recorder.publish(must_reach=must_reach)
            await until("answered", lambda: recorder.is_done)
            assert recorder.outcomes == [(1, "unheard"), (2, "")]

    run(main())


def test_resume_ends_the_pause_after_a_failure_so_that_the_next_publish_connects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publisher, "FAILING_PAUSE_S", 3_600.0)

    async def main() -> None:
        async with fake_bus() as bus:
            address = bus.address
        async with running_publisher(address) as recorder:
            assert await recorder.say() == "down"
            async with fake_bus(port=address.port) as back:
                assert await recorder.say() == "down", "the bus was tried during the pause"
                recorder.publisher.resume()
                assert await recorder.say() == ""
                assert [parts[1] for parts in back.said(b"PUBLISH")] == [b"3"]

    run(main())


@pytest.mark.parametrize("size", [0, 1, 1_023, 1_024, 1_025, 4_096, REPLY_LIMIT_BYTES - 1, REPLY_LIMIT_BYTES])
def test_call_with_a_reply_of_up_to_the_limit_returns_it_whole(size: int) -> None:
    async def scenario() -> None:
        told: list[tuple[str, bytes]] = []

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return bulk(b"x" * size) if parts[0] == b"GET" else None

        async with fake_bus(answer) as bus, running_publisher(bus.address) as recorder:
            recorder.publisher.call(b"k", pack("GET", "k"), lambda *each: told.append(each))
            await until("answered", lambda: told)
            assert told == [("", b"x" * size)]

    uvloop.run(scenario())


def test_call_with_a_reply_over_the_limit_is_unknown() -> None:
    async def scenario() -> None:
        told: list[tuple[str, bytes]] = []

        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return bulk(b"x" * (REPLY_LIMIT_BYTES + 1)) if parts[0] == b"GET" else None

        async with fake_bus(answer) as bus, running_publisher(bus.address) as recorder:
            recorder.publisher.call(b"k", pack("GET", "k"), lambda *each: told.append(each))
            await until("answered", lambda: told)
            assert told == [("unknown", b"")]

    uvloop.run(scenario())
