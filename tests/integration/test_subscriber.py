"""Run the bus subscriber against a real Valkey and against servers that break the protocol."""

import asyncio
import contextlib
import itertools
import random
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import redis
import uvloop

from tests.support.fake_bus import Answer, FakeBus, Talk, bulk, fake_bus, message, until
from tests.support.valkey import Valkey, running_valkey
from wsgate.bus import Backlog, BusAddress, Subscriber, connection, parse_address, subscriber
from wsgate.bus.connection import PASS_REPLIES, REPLIES_LIMIT, UNREAD_LIMIT_BYTES
from wsgate.bus.subscriber import UNANSWERED_LIMIT, SubscriberOptions

PREFIX = b"wsgate:ch:"
PATIENT = SubscriberOptions(connect_timeout_s=20, reply_timeout_s=20, ping_interval_s=20)
SHORT = SubscriberOptions(connect_timeout_s=0.3, reply_timeout_s=0.3, ping_interval_s=0.2)
ODD_NAMES = [
    b"a\r\nb",
    b"a b",
    b"*",
    b"news*",
    b"[a-z]",
    b"?",
    b"\x00",
    b"{x}",
    b"\r\n$1\r\nx",
    "é".encode(),
    b"a",
]


@dataclass
class Recorder:
    """A listener of the subscriber that records every call."""

    names: list[bytes] = field(default_factory=list)  # subscribed whenever the connection is up
    messages: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    controls: list[tuple[bytes, bytes]] = field(default_factory=list)
    confirmed: list[bytes] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)  # number of replies per pass
    refused: list[bytes] = field(default_factory=list)
    is_strict: bool = False  # a refused channel makes the connection useless
    ups: int = 0
    downs: int = 0
    why: list[str] = field(default_factory=list)
    replies: int = 0
    put_off: int = 0  # how often on_subscribed returns False
    messages_before: list[int] = field(default_factory=list)  # number of messages at each of its calls

    def on_up(self) -> None:
        self.ups += 1
        self.subscriber.subscribe(self.names)

    def on_down(self) -> None:
        self.downs += 1

    def on_failed(self, why: str) -> None:
        self.why.append(why)

    def on_control(self, name: bytes, payload: bytes | None) -> None:
        self.replies += 1
        if payload == b"poison":
            raise ValueError("poison")
        if payload is not None:
            self.controls.append((name, payload))

    def on_subscribed(self, name: bytes) -> bool:
        self.replies += 1
        self.messages_before.append(len(self.messages))
        if self.put_off:
            self.put_off -= 1
            return False
        self.confirmed.append(name)
        return True

    def on_refused(self, name: bytes) -> bool:
        self.refused.append(name)
        return not self.is_strict

    def on_lost(self, name: bytes, *, was_asked: bool) -> None:
        raise AssertionError("one server moves no slots")

    def on_pass(self) -> None:
        self.passes.append(self.replies)
        self.replies = 0
        while not self.backlog.is_held and (taken := self.backlog.take()):
            self.messages.append(taken)

    backlog: Backlog = field(default_factory=lambda: Backlog(256 << 20))
    subscriber: Subscriber = field(init=False)


@contextlib.asynccontextmanager
async def running_subscriber(
    address: BusAddress, *names: bytes, options: SubscriberOptions = PATIENT
) -> AsyncIterator[Recorder]:
    recorder = Recorder(list(names))
    recorder.subscriber = Subscriber(address, PREFIX, recorder, recorder.backlog, options)
    task = asyncio.ensure_future(recorder.subscriber.run())
    try:
        yield recorder
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        await asyncio.sleep(0)


def ask(client: redis.Redis, *command: object) -> object:
    return client.execute_command(*command)  # type: ignore[no-untyped-call]


def run(main: Coroutine[Any, Any, None]) -> None:
    uvloop.run(main)


@pytest.fixture(autouse=True)
def wait_ceilings(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the waits between attempts by short ones; record the ceilings of the random waits."""
    ceilings: list[float] = []

    def uniform(least: float, most: float) -> float:
        assert least == 0
        ceilings.append(most)
        return 0.01

    monkeypatch.setattr(subscriber, "random", type("Random", (), {"uniform": staticmethod(uniform)}))
    return ceilings


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
def test_publications_after_the_confirmation_arrive_completely_and_in_order(
    valkey: Valkey, backend: redis.Redis, way: str
) -> None:
    async def main() -> None:
        async with running_subscriber(parse_address(getattr(valkey, way)), b"news") as recorder:
            await until("confirmed", lambda: recorder.confirmed == [b"news"])
            for number in range(100):
                assert backend.publish("wsgate:ch:news", b"%d" % number) == 1
            await until("delivered", lambda: len(recorder.messages) == 100)
            assert recorder.messages == [(b"news", b"%d" % number) for number in range(100)]

    run(main())


def test_channel_names_with_patterns_and_line_ends_are_taken_literally_s26(
    valkey: Valkey, backend: redis.Redis
) -> None:
    async def main() -> None:
        async with running_subscriber(parse_address(valkey.url), *ODD_NAMES) as recorder:
            await until("confirmed", lambda: recorder.confirmed == ODD_NAMES)
            for name in [b"newsroom", b"b", b"ab", *ODD_NAMES]:
                backend.publish(PREFIX + name, name)
            await until("delivered", lambda: len(recorder.messages) == len(ODD_NAMES))
            assert recorder.messages == [(name, name) for name in ODD_NAMES]
            assert ask(backend, "PUBSUB", "NUMPAT") == 0
            recorder.subscriber.unsubscribe(ODD_NAMES)
            await until("gone", lambda: not backend.pubsub_channels(b"wsgate:ch:*"))

    run(main())


def test_twelve_thousand_subscriptions_are_confirmed_in_bounded_passes(
    valkey: Valkey, backend: redis.Redis
) -> None:
    names = [b"%d" % number for number in range(12_000)]

    async def main() -> None:
        async with running_subscriber(parse_address(valkey.url), *names) as recorder:
            await until("confirmed", lambda: len(recorder.confirmed) == len(names))
            assert recorder.confirmed == names
            assert max(recorder.passes) <= PASS_REPLIES
            assert ask(backend, "PUBSUB", "NUMSUB", b"wsgate:ch:11999") == [b"wsgate:ch:11999", 1]

    run(main())


def test_unsubscribe_and_subscribe_before_a_reply_keep_their_order(
    valkey: Valkey, backend: redis.Redis
) -> None:
    async def main() -> None:
        async with running_subscriber(parse_address(valkey.url), b"last") as recorder:
            await until("confirmed", lambda: recorder.confirmed == [b"last"])
            for _ in range(50):
                assert recorder.subscriber.subscribe([b"a", b"b"]) == []
                await asyncio.sleep(0)  # sent, and not yet answered
                assert recorder.subscriber.unsubscribe([b"a"]) == []
                await asyncio.sleep(0)
            recorder.subscriber.subscribe([b"end"])
            await until("confirmed", lambda: recorder.confirmed[-1] == b"end")
            assert recorder.confirmed[1:-1] == [b"a", b"b"] * 50
            listed = sorted(backend.pubsub_channels("wsgate:ch:*"))
            assert listed == [b"wsgate:ch:b", b"wsgate:ch:end", b"wsgate:ch:last"]

    run(main())


def test_name_that_is_unsubscribed_before_it_is_sent_is_never_sent(
    valkey: Valkey, backend: redis.Redis
) -> None:
    async def main() -> None:
        async with running_subscriber(parse_address(valkey.url), b"last") as recorder:
            await until("confirmed", lambda: recorder.confirmed == [b"last"])
            assert recorder.subscriber.subscribe([b"a", b"b"]) == []
            for _ in range(50):
                assert recorder.subscriber.unsubscribe([b"a"]) == [b"a"]
                assert recorder.subscriber.subscribe([b"a", b"b"]) == [b"b"]
            assert recorder.subscriber.unsubscribe([b"a"]) == [b"a"]
            recorder.subscriber.subscribe([b"end"])
            await until("confirmed", lambda: recorder.confirmed[-1] == b"end")
            assert recorder.confirmed == [b"last", b"b", b"end"]
            listed = sorted(backend.pubsub_channels("wsgate:ch:*"))
            assert listed == [b"wsgate:ch:b", b"wsgate:ch:end", b"wsgate:ch:last"]

    run(main())


def ignore_subscriptions(talk: Talk, parts: list[bytes]) -> bytes | None:
    """Answer SUBSCRIBE and UNSUBSCRIBE with nothing, as a server that stands still after its greeting."""
    return b"" if parts[0] in (b"SUBSCRIBE", b"UNSUBSCRIBE") else None


def names_in(bus: FakeBus) -> int:
    return sum(len(names) for word in (b"SUBSCRIBE", b"UNSUBSCRIBE") for names in bus.said(word))


def test_server_that_stands_still_is_sent_few_names_and_waiting_ones_are_accounted() -> None:
    async def main() -> None:
        async with fake_bus(ignore_subscriptions) as bus, running_subscriber(bus.address) as recorder:
            await until("up", lambda: recorder.ups == 1)
            subscriber_ = recorder.subscriber
            most_bytes = 0
            for turn in range(200):
                names = [b"%d-%d" % (turn, number) + b"x" * 180 for number in range(100)]
                for name in names:
                    subscriber_.subscribe([name])
                if turn % 2:
                    await asyncio.sleep(0)  # the names that may be sent are sent now
                most_bytes = max(most_bytes, subscriber_.waiting_bytes)
                for name in names:
                    subscriber_.unsubscribe([name])
                if turn % 2:
                    await asyncio.sleep(0)
            await until("all names that may be sent have arrived", lambda: names_in(bus) == UNANSWERED_LIMIT)
            # Names that were sent before they were unsubscribed have an UNSUBSCRIBE that may still wait.
            assert subscriber_.unsent <= UNANSWERED_LIMIT
            assert UNANSWERED_LIMIT * 100 < most_bytes < 4 * UNANSWERED_LIMIT * 256
            kept = [b"kept-%d" % number for number in range(5_000)]
            before = subscriber_.waiting_bytes
            assert subscriber_.subscribe(kept) == []
            assert subscriber_.waiting_bytes - before >= sum(map(len, kept)) + 5_000 * 100
            assert subscriber_.unsubscribe(kept) == kept
            assert subscriber_.waiting_bytes == before

    run(main())


def test_waiting_names_are_confirmed_when_a_stopped_server_continues(
    valkey: Valkey, backend: redis.Redis
) -> None:
    async def main() -> None:
        async with running_subscriber(parse_address(valkey.url)) as recorder:
            await until("up", lambda: recorder.ups == 1)
            valkey.process.send_signal(signal.SIGSTOP)
            try:
                kept = [b"kept-%d" % number for number in range(3 * UNANSWERED_LIMIT)]
                left = [b"left-%d" % number for number in range(3 * UNANSWERED_LIMIT)]
                assert recorder.subscriber.subscribe(kept + left) == []
                await asyncio.sleep(0.01)
                cancelled = recorder.subscriber.unsubscribe(left)
                assert len(cancelled) == len(left)  # the kept names use the whole limit of sent names
            finally:
                valkey.process.send_signal(signal.SIGCONT)
            await until("all are confirmed", lambda: len(recorder.confirmed) == len(kept))
            assert recorder.confirmed == kept
            assert recorder.subscriber.waiting_bytes == 0

    run(main())


def test_subscriber_whose_connection_is_killed_subscribes_again_each_time(
    valkey: Valkey, backend: redis.Redis
) -> None:
    async def main() -> None:
        async with running_subscriber(parse_address(valkey.url), b"news") as recorder:
            for times in range(1, 6):
                await until("up", lambda: len(recorder.confirmed) == times)  # noqa: B023
                assert backend.publish("wsgate:ch:news", b"%d" % times) == 1
                await until("delivered", lambda: recorder.messages[-1:] == [(b"news", b"%d" % times)])  # noqa: B023
                backend.client_kill_filter(_type="pubsub")
            await until("up", lambda: recorder.ups == 6)
            assert (recorder.downs, len(recorder.why), recorder.subscriber.failures) == (5, 5, 5)

    run(main())


def test_stopped_server_is_noticed_by_its_missing_reply_to_ping_r7(valkey: Valkey) -> None:
    async def main() -> None:
        async with running_subscriber(parse_address(valkey.url), b"news", options=SHORT) as recorder:
            await until("confirmed", lambda: recorder.confirmed)
            with valkey.paused():
                await until("down", lambda: recorder.downs == 1)
                assert recorder.why[0] == "no reply to PING"
                await until("not greeted", lambda: "no reply within 0.3 s" in recorder.why)
            await until("up again", lambda: len(recorder.confirmed) == 2)

    run(main())


def test_idle_connection_that_answers_pings_is_kept() -> None:
    async def main() -> None:
        options = replace(SHORT, reply_timeout_s=20, ping_interval_s=0.01)
        for names in ([], [b"news"]):  # the reply to PING has two forms
            async with (
                fake_bus() as bus,
                running_subscriber(bus.address, *names, options=options) as recorder,
            ):
                await until("asked", lambda: len(bus.said(b"PING")) >= 10)
                assert (recorder.ups, recorder.downs) == (1, 0)

    run(main())


def test_wrong_user_or_password_is_reported_without_the_password_r10(
    valkey: Valkey, backend: redis.Redis
) -> None:
    ask(backend, "ACL", "SETUSER", "gate", "on", ">s3cret word", "&wsgate:*", "+@all")
    address = parse_address(valkey.url)
    cases = [
        (replace(address, username="gate", password="s3cret word"), ""),
        (replace(address, username="gate", password="hunter2"), "WRONGPASS"),
        (replace(address, username="nobody"), "WRONGPASS"),
        (replace(address, password="hunter2"), "ERR AUTH <password> called without any password"),
    ]

    async def main() -> None:
        for tried, said in cases:
            async with running_subscriber(tried, b"news") as recorder:
                await until("answered", lambda: recorder.confirmed or recorder.why)
                assert bool(recorder.confirmed) == (not said)
                assert all(said in why and "hunter2" not in why for why in recorder.why)

    run(main())


def test_subscriber_without_a_password_reports_noauth_r10() -> None:
    async def main() -> None:
        with running_valkey(requirepass="s3cret") as server:
            async with running_subscriber(parse_address(server.url)) as recorder:
                await until("refused", lambda: recorder.why)
                assert "NOAUTH" in recorder.why[0]
                assert recorder.ups == 0

    run(main())


@pytest.fixture
def narrow(valkey: Valkey, backend: redis.Redis) -> BusAddress:
    """Return the server with a user that may subscribe to a few channels."""
    rights = ("resetchannels", f"&{PREFIX.decode()}open*", "&ours", "+@all")
    ask(backend, "ACL", "SETUSER", "narrow", "on", ">s3cret", *rights)
    return replace(parse_address(valkey.url), username="narrow", password="s3cret")


def test_forbidden_channel_is_refused_and_the_others_of_its_command_are_confirmed(
    narrow: BusAddress, backend: redis.Redis
) -> None:
    names = [b"open1", b"news", b"open2", b"secret", b"open3"]

    async def main() -> None:
        async with running_subscriber(narrow, *names) as recorder:
            await until("answered", lambda: len(recorder.confirmed) == 3 and len(recorder.refused) == 2)
            assert recorder.confirmed == [b"open1", b"open2", b"open3"]
            assert recorder.refused == [b"news", b"secret"]
            recorder.subscriber.subscribe([b"secret"])  # the only name of its command
            await until("refused again", lambda: len(recorder.refused) == 3)
            backend.publish(PREFIX + b"open3", b"one")
            await until("delivered", lambda: recorder.messages)
            assert (recorder.ups, recorder.downs, recorder.why) == (1, 0, [])
            assert recorder.subscriber.waiting_bytes == 0, "a name still waits for its reply"

    run(main())


def test_name_unsubscribed_before_the_refusal_of_a_forbidden_one_is_not_subscribed_again(
    narrow: BusAddress, backend: redis.Redis
) -> None:
    async def main() -> None:
        async with running_subscriber(narrow) as recorder:
            await until("up", lambda: recorder.ups)
            subscriber = recorder.subscriber
            subscriber.subscribe([b"open1", b"secret", b"open2", b"open3"])
            await asyncio.sleep(0)  # sent, and not answered
            subscriber.unsubscribe([b"open1"])
            subscriber.unsubscribe([b"open2"])
            subscriber.subscribe([b"open2"])  # cancels the unsubscribe
            await until("answered", lambda: b"secret" in recorder.refused and len(recorder.confirmed) == 2)
            assert sorted(recorder.confirmed) == [b"open2", b"open3"]
            await until("answered", lambda: subscriber.waiting_bytes == 0)
            held = backend.pubsub_channels(PREFIX + b"open*")
            assert sorted(held) == [PREFIX + b"open2", PREFIX + b"open3"]
            assert recorder.downs == 0

    run(main())


def test_connection_is_closed_when_its_listener_requires_the_forbidden_channel(narrow: BusAddress) -> None:
    async def main() -> None:
        async with running_subscriber(narrow) as recorder:
            await until("up", lambda: recorder.ups)
            recorder.is_strict = True
            recorder.subscriber.subscribe([b"news"])
            await until("refused", lambda: recorder.why)
            assert recorder.why[0].startswith("the bus refuses: NOPERM")

    run(main())


def test_connection_is_closed_when_a_control_name_is_forbidden(narrow: BusAddress) -> None:
    async def main() -> None:
        async with running_subscriber(narrow, b"open1") as recorder:
            await until("up", lambda: recorder.ups)
            recorder.subscriber.subscribe_control(b"ours")
            recorder.subscriber.subscribe_control(b"theirs")
            await until("refused", lambda: recorder.why)
            assert recorder.why[0].startswith("the bus refuses: NOPERM")
            assert recorder.refused == []

    run(main())


def test_server_without_free_clients_is_retried_with_back_off_until_it_has_room_r10(
    wait_ceilings: list[float],
) -> None:
    async def main() -> None:
        with running_valkey() as server, redis.Redis(port=server.port) as backend:
            backend.config_set("maxclients", 1)
            async with running_subscriber(parse_address(server.url), b"news") as recorder:
                await until("refused", lambda: len(recorder.why) >= 3)
                # A reset may arrive before the cause is read.
                assert any("max number of clients" in why or "reset" in why.lower() for why in recorder.why)
                backend.config_set("maxclients", 100)
                await until("up", lambda: recorder.confirmed == [b"news"])
        assert wait_ceilings[:3] == [0.1, 0.2, 0.25]

    run(main())


def test_subscriber_cut_for_its_output_buffer_reconnects_and_receives_again_r11(
    valkey: Valkey, backend: redis.Redis
) -> None:
    before = str(backend.config_get("client-output-buffer-limit")["client-output-buffer-limit"])

    async def main() -> None:
        async with running_subscriber(parse_address(valkey.url), b"news") as recorder:
            await until("confirmed", lambda: recorder.confirmed)
            backend.config_set("client-output-buffer-limit", "pubsub 65536 65536 1")
            for _ in range(200):
                # All in one turn of the loop, so that the subscriber does not read meanwhile.
                if not backend.publish("wsgate:ch:news", b"x" * 500_000):
                    break
            else:
                raise AssertionError("the subscriber was never cut")
            backend.config_set("client-output-buffer-limit", before)
            await until("up again", lambda: len(recorder.confirmed) == 2)
            assert backend.publish("wsgate:ch:news", b"good") == 1
            # Valkey delivers some of the large messages before it cuts, Redis 7.0 none.
            await until("delivered", lambda: recorder.messages[-1:] == [(b"news", b"good")])

    run(main())


def test_waits_between_attempts_on_an_absent_server_grow_to_five_seconds(wait_ceilings: list[float]) -> None:
    async def main() -> None:
        for address in (BusAddress("127.0.0.1", 1), BusAddress(path="/nowhere/bus.sock")):
            wait_ceilings.clear()
            async with running_subscriber(address) as recorder:
                await until("tried", lambda: len(recorder.why) >= 47)
                assert recorder.ups == 0
            assert wait_ceilings[:46] == [0.1, 0.2, *[0.25] * 38, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]

    run(main())


@pytest.mark.parametrize("address", [BusAddress("a..b"), BusAddress(path="/a\0b"), BusAddress("x" * 300)])
def test_address_that_cannot_be_resolved_is_retried_like_other_failures(address: BusAddress) -> None:
    async def main() -> None:
        async with running_subscriber(address) as recorder:
            await until("tried", lambda: len(recorder.why) >= 2)

    run(main())


# --- a server that breaks the protocol ----------------------------------------------------------------


def answering(word: bytes, said: bytes) -> Answer:
    """Answer one command with these bytes, and the others correctly."""
    return lambda talk, parts: said if parts[0] == word else None


async def cause_of_loss(bus: FakeBus, recorder: Recorder) -> str:
    """Wait until the connection is closed and opened again; return the cause."""
    await until("closed", lambda: recorder.why and bus.accepted >= 2)
    return recorder.why[0]


def test_bus_that_accepts_and_never_answers_is_left_after_the_connect_timeout() -> None:
    async def main() -> None:
        async with (
            fake_bus(lambda talk, parts: b"") as bus,
            running_subscriber(bus.address, options=SHORT) as recorder,
        ):
            assert await cause_of_loss(bus, recorder) == "no reply within 0.3 s"
            assert recorder.ups == recorder.downs == 0

    run(main())


def test_bus_that_answers_pings_and_never_confirms_is_left_after_the_reply_timeout() -> None:
    async def main() -> None:
        async with (
            fake_bus(answering(b"SUBSCRIBE", b"")) as bus,
            running_subscriber(bus.address, b"news", options=SHORT) as recorder,
        ):
            assert await cause_of_loss(bus, recorder) == "no reply to SUBSCRIBE"
            assert len(bus.said(b"PING")) > 1

    run(main())


def test_bus_that_is_loading_its_data_is_retried_until_it_confirms_r10() -> None:
    async def main() -> None:
        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return b"-LOADING server is loading the dataset\r\n" if bus.accepted < 3 else None

        async with fake_bus(answer) as bus, running_subscriber(bus.address, b"news") as recorder:
            await until("confirmed", lambda: recorder.confirmed == [b"news"])
            assert recorder.why == ["the bus refuses: LOADING server is loading the dataset"] * 2

    run(main())


def test_bus_that_cuts_every_connection_is_retried_with_growing_waits_r6(wait_ceilings: list[float]) -> None:
    async def main() -> None:
        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            if parts[0] == b"SUBSCRIBE":
                talk.cut()
            return None

        async with fake_bus(answer) as bus, running_subscriber(bus.address, b"news") as recorder:
            await until("cut", lambda: recorder.downs >= 47)
        assert wait_ceilings[:40] == [0.1, 0.2, *[0.25] * 38]
        assert wait_ceilings[40:46] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]

    run(main())


def test_bus_connection_that_lasted_is_replaced_with_the_shortest_wait(
    wait_ceilings: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "STEADY_S", 0.0)

    async def main() -> None:
        async with fake_bus() as bus, running_subscriber(bus.address, b"news") as recorder:
            for times in range(1, 5):
                await until("up", lambda: len(recorder.confirmed) == times and bus.talks)  # noqa: B023
                bus.talks[0].cut()
        assert set(wait_ceilings) == {0.05}

    run(main())


def test_password_that_the_server_repeats_in_its_error_is_not_reported() -> None:
    said = b"-ERR unknown command 'AUTH', with args beginning with: 'gate' 'hunter2' \r\n"

    async def main() -> None:
        async with fake_bus(answering(b"AUTH", said)) as bus:
            address = replace(bus.address, username="gate", password="hunter2")
            async with running_subscriber(address) as recorder:
                assert await cause_of_loss(bus, recorder) == "the bus refuses: ERR unknown command"

    run(main())


EVIL = {
    "a huge array": b"*1000000000\r\n",
    "a huge array of arrays": b"*3\r\n" * 100_000,
    "a huge bulk": b"$1000000000\r\n",
    "a huge name": b"*3\r\n$7\r\nmessage\r\n$99999999\r\n",
    "a payload beyond any server": b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$99999999999\r\n",
    "a line without end": b"+" + b"x" * 1_000_000,
    "a map": b"%2\r\n+a\r\n+b\r\n",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a pattern's message": b"*4\r\n" + bulk(b"pmessage") + bulk(b"*") + bulk(b"a") + bulk(b"b"),
    "nothing at all": b"\x00" * 1_000,
}


@pytest.mark.parametrize("word", [b"PING", b"SUBSCRIBE"])
@pytest.mark.parametrize("wire", EVIL.values(), ids=EVIL.keys())
def test_server_that_sends_malformed_or_oversized_resp_is_disconnected_s26(wire: bytes, word: bytes) -> None:
    async def main() -> None:
        async with (
            fake_bus(answering(word, wire)) as bus,
            running_subscriber(bus.address, b"news") as recorder,
        ):
            await cause_of_loss(bus, recorder)
            assert recorder.messages == [] and recorder.confirmed == []

    run(main())


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (b"PING", b"+PONG\r\n" * 2),
        (b"PING", b"+PONG\r\n" * 50_000),
        (b"PING", message(PREFIX + b"news", b"1")),
        (b"SUBSCRIBE", (b"*3\r\n" + bulk(b"subscribe") + bulk(PREFIX + b"news") + b":1\r\n") * 2),
        (b"SUBSCRIBE", (b"*3\r\n" + bulk(b"unsubscribe") + bulk(PREFIX + b"news") + b":0\r\n") * 50_000),
    ],
)
def test_server_that_sends_replies_without_a_command_is_disconnected_s26(word: bytes, said: bytes) -> None:
    async def main() -> None:
        async with (
            fake_bus(answering(word, said)) as bus,
            running_subscriber(bus.address, b"news") as recorder,
        ):
            assert "unrequested" in await cause_of_loss(bus, recorder)
            assert len(recorder.confirmed) <= 2 * recorder.ups

    run(main())


def test_payload_over_the_limit_is_delivered_as_none_and_the_next_one_whole_s24() -> None:
    options = replace(PATIENT, payload_limit_bytes=1_000)

    async def main() -> None:
        async with fake_bus() as bus, running_subscriber(bus.address, b"news", options=options) as recorder:
            await until("confirmed", lambda: recorder.confirmed)
            bus.publish(PREFIX + b"news", b"x" * 5_000_000)
            bus.publish(PREFIX + b"news", b"good")
            await until("delivered", lambda: recorder.messages == [(b"news", None), (b"news", b"good")])
            assert recorder.downs == 0

    run(main())


def test_listener_that_raises_loses_only_that_control_command() -> None:
    async def main() -> None:
        faults: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: faults.append(context.get("exception")))
        async with fake_bus() as bus, running_subscriber(bus.address, b"news") as recorder:
            await until("confirmed", lambda: recorder.confirmed)
            recorder.subscriber.subscribe_control(b"control")
            await until("asked", lambda: b"control" in bus.talks[0].names)
            for payload in (b"1", b"poison", b"2"):
                bus.publish(b"control", payload)
            await until("delivered", lambda: recorder.controls == [(b"control", b"1"), (b"control", b"2")])
            assert [type(fault) for fault in faults] == [ValueError]
            assert recorder.downs == 0

    run(main())


def test_confirmation_that_needs_several_passes_is_delivered_before_the_messages_behind_it() -> None:
    async def main() -> None:
        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            if parts[0] != b"SUBSCRIBE":
                return None
            return bus._good(talk, parts) + message(PREFIX + b"news", b"1")

        async with fake_bus(answer) as bus:
            async with running_subscriber(bus.address, b"news") as recorder:
                recorder.put_off = 5
                await until("delivered", lambda: recorder.messages)
                assert recorder.confirmed == [b"news"]
                assert recorder.put_off == 0 and recorder.messages_before == [0] * 6
                assert len(recorder.passes) >= 6

    run(main())


def test_parsed_replies_that_wait_are_limited_and_accounted() -> None:
    """Control commands behind a confirmation that the listener has not taken yet keep their payloads."""
    flood = b"".join(message(b"control", b"x" * 10_000) for _ in range(3 * REPLIES_LIMIT))
    sizes: list[int] = []

    async def main() -> None:
        def answer(talk: Talk, parts: list[bytes]) -> bytes | None:
            return bus._good(talk, parts) + flood if parts[0] == b"SUBSCRIBE" else None

        async with fake_bus(answer) as bus, running_subscriber(bus.address, b"news") as recorder:
            assert recorder.subscriber.held_bytes == 0
            recorder.put_off = 1_000_000
            hand_over = recorder.on_pass

            def on_pass() -> None:
                sizes.append(recorder.subscriber.held_bytes)
                if len(recorder.subscriber._connection._replies) == REPLIES_LIMIT:  # type: ignore[union-attr]
                    recorder.put_off = 0
                hand_over()

            recorder.on_pass = on_pass  # type: ignore[method-assign]
            await until("delivered", lambda: len(recorder.controls) == 3 * REPLIES_LIMIT)
            assert REPLIES_LIMIT * 9_900 < max(sizes) < REPLIES_LIMIT * 10_100 + 4 * UNREAD_LIMIT_BYTES
            await until("handled", lambda: recorder.subscriber.held_bytes < 2 * UNREAD_LIMIT_BYTES)

    run(main())


def test_control_command_inside_a_20_mb_flood_is_delivered_before_the_publications() -> None:
    """No publication leaves the backlog meanwhile; all of them are in it, and arrive in order."""
    order = random.Random(7)
    payloads = [b"x" * order.choice((10, 1_000, 64_000)) for _ in range(900)]
    first, last = (
        b"".join(message(PREFIX + b"news", payload) for payload in part)
        for part in (payloads[:450], payloads[450:])
    )

    async def main() -> None:
        async with fake_bus() as bus, running_subscriber(bus.address, b"news") as recorder:
            await until("confirmed", lambda: recorder.confirmed)
            recorder.backlog.hold()
            bus.talks[0].writer.write(first + message(b"control", b"now") + last)
            await until("received", lambda: len(recorder.backlog) == len(payloads))
            assert recorder.controls == [(b"control", b"now")]
            assert recorder.messages == []
            assert sum(map(len, payloads)) < recorder.backlog.held_bytes < 32 << 20
            recorder.backlog.release()
            recorder.on_pass()
            assert [payload for _, payload in recorder.messages] == payloads

    run(main())


def test_unparsed_bytes_of_a_20_mb_flood_stay_bounded() -> None:
    """Small and large messages are mixed."""
    order = random.Random(7)
    payloads = [b"x" * order.choice((10, 1_000, 64_000)) for _ in range(900)]
    wire = b"".join(message(PREFIX + b"news", payload) for payload in payloads)

    async def main() -> None:
        async with fake_bus() as bus, running_subscriber(bus.address, b"news") as recorder:
            await until("confirmed", lambda: recorder.confirmed)
            connection_ = recorder.subscriber._connection
            assert connection_ is not None
            sizes: list[int] = []
            hand_over = recorder.on_pass

            def on_pass() -> None:
                sizes.append(connection_.held_bytes)
                hand_over()

            recorder.on_pass = on_pass  # type: ignore[method-assign]
            bus.talks[0].writer.write(wire)
            await until("delivered", lambda: len(recorder.messages) == len(payloads))
            assert [payload for _, payload in recorder.messages] == payloads
            # Two reads of uvloop, one unfinished reply, and room to the next power of two.
            assert max(sizes) <= 4 * (UNREAD_LIMIT_BYTES + 256_000)

    run(main())


def test_pass_over_replies_ends_when_its_time_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    clock = type("Clock", (), {"monotonic": staticmethod(lambda: next(ticks) / 1000)})
    monkeypatch.setattr(connection, "time", clock)  # each reading of the clock is 1 ms later

    async def main() -> None:
        async with fake_bus() as bus, running_subscriber(bus.address, b"news") as recorder:
            await until("confirmed", lambda: recorder.confirmed)
            bus.talks[0].writer.write(message(b"control", b"1") * 3_000)
            await until("delivered", lambda: len(recorder.controls) == 3_000)
            assert max(recorder.passes) <= 3 * connection.STEP_REPLIES

    run(main())


def test_other_callbacks_of_the_loop_run_between_the_passes_of_a_flood() -> None:
    async def main() -> None:
        async with fake_bus() as bus, running_subscriber(bus.address, b"news") as recorder:
            await until("confirmed", lambda: recorder.confirmed)
            wire = message(b"control", b"1") * 50_000
            turns: list[int] = []

            def turn() -> None:
                turns.append(len(recorder.controls))
                if len(recorder.controls) < 50_000:
                    asyncio.get_running_loop().call_soon(turn)

            bus.talks[0].writer.write(wire)
            turn()
            await until("delivered", lambda: len(recorder.controls) == 50_000)
            # Other callbacks of the loop have a turn after every pass.
            steps = [after - before for before, after in itertools.pairwise(turns)]
            assert max(steps) <= PASS_REPLIES

    run(main())


def test_message_on_a_control_name_is_delivered_as_control_and_not_as_publication() -> None:
    control = b"wsgate:probe:n:0"

    async def main() -> None:
        async with fake_bus() as bus, running_subscriber(bus.address, b"news") as recorder:
            await until("confirmed", lambda: recorder.confirmed)
            recorder.subscriber.subscribe_control(control)
            await until("subscribed", lambda: control in bus.talks[0].names)
            bus.publish(control, b"7")
            await until("delivered", lambda: recorder.controls == [(control, b"7")])
            assert recorder.confirmed == [b"news"]
            recorder.subscriber.renew("renewed by the test")
            await until("new", lambda: recorder.ups == 2)
            assert recorder.why == ["renewed by the test"]

    run(main())
