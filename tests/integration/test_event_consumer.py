"""Run the consumer of a backend against real servers: no event is lost, whatever is killed and when."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tests.support.event_stream import GROUP, Hall, consuming, options, running_program, until
from tests.support.memory_gateway import run
from tests.support.valkey import Valkey, running_valkey
from wsgate.client import Backoff
from wsgate.client.backend import (
    BusError,
    ConsumerOptions,
    Event,
    EventConsumer,
    HandlerCancelled,
    MalformedEvent,
    Publisher,
)
from wsgate.client.backend.bus import Bus, Entry, Reader
from wsgate.errors import InternalError, SettingsError
from wsgate.node.embedded_bus import find_server

PAGE = Path(__file__).resolve().parents[2] / "docs" / "backends.md"
AT_ONCE = Backoff(base_s=0, cap_s=0)
SOON = Backoff(base_s=0.01, cap_s=0.05)


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey(appendonly="yes", appendfsync="always") as server:
        yield server


@contextlib.asynccontextmanager
async def empty_stream(server: Valkey) -> AsyncIterator[Hall]:
    async with Redis.from_url(server.url) as client:
        await client.flushall()
        yield Hall(client)


async def ask(client: Any, *command: object) -> Any:
    return await client.execute_command(*command)


def with_stream(server: Valkey, scenario: Any) -> None:
    async def main() -> None:
        async with empty_stream(server) as here:
            await scenario(here)

    run(main())


# --- normal operation ---------------------------------------------------------------------------------


def test_json_binary_and_empty_events_are_handled_and_acknowledged(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        async with consuming(valkey.url, here.handle):
            await here.append(type="message", data=b'{"a":1}', encoding="json")
            await here.append(type="message", data=b"\xff", encoding="binary")
            await here.append(type="disconnected", reason="peer_closed", duration_ms=5)
            await here.heard(lambda: len(here.handled) == 3)
            await here.settled()
        assert [event.data for event in here.handled] == [{"a": 1}, b"\xff", None]
        assert here.handled[2].reason == "peer_closed"
        assert {event.stream for event in here.handled} == {"wsgate:events:0"}
        assert await here.dead() == []

    with_stream(valkey, scenario)


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_client_of_the_application_is_used_and_not_closed(valkey: Valkey, protocol: int) -> None:
    async def scenario(here: Hall) -> None:
        async with Redis.from_url(valkey.url, protocol=protocol) as client:
            async with consuming(client, here.handle):
                await here.append(3)
                await here.heard(lambda: len(here.handled) == 3)
            assert await client.ping()

    with_stream(valkey, scenario)


def test_new_group_starts_at_the_end_and_continues_at_its_place_after_a_restart(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        await here.append(3)
        async with consuming(valkey.url, here.handle, start_at="$"):
            await until("there is a group", here.has_group)
        missed = await here.append(2)
        async with consuming(valkey.url, here.handle, start_at="$"):
            await here.heard(lambda: here.ids == missed)

    with_stream(valkey, scenario)


def test_consumer_reads_and_acknowledges_every_partition(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        async with consuming(valkey.url, here.handle, partitions=3):
            for partition in range(3):
                await here.append(4, partition=partition)
            await here.heard(lambda: len(here.handled) == 12)
            for partition in range(3):
                await here.settled(partition)
        assert Counter(event.stream[-1] for event in here.handled) == {"0": 4, "1": 4, "2": 4}

    with_stream(valkey, scenario)


def test_consumers_with_partitions_of_their_own_read_no_other(valkey: Valkey) -> None:
    """So each user has one consumer, and the order of its events is kept."""

    async def scenario(here: Hall) -> None:
        first: list[str] = []
        second: list[str] = []
        is_done = asyncio.Event()

        async def handle_first(event: Event) -> None:
            handle(event, first)

        async def handle_second(event: Event) -> None:
            handle(event, second)

        def handle(event: Event, handled: list[str]) -> None:
            handled.append(event.stream[-1])
            if len(first) + len(second) == 12:
                is_done.set()

        async with (
            consuming(valkey.url, handle_first, partitions=3, own_partitions=(2, 0)),
            consuming(valkey.url, handle_second, partitions=3, own_partitions=(1,)),
        ):
            for partition in range(3):
                await here.append(4, partition=partition)
            async with asyncio.timeout(30):
                await is_done.wait()
        assert (Counter(first), Counter(second)) == ({"0": 4, "2": 4}, {"1": 4})

    with_stream(valkey, scenario)


@pytest.mark.parametrize("own", [(), (3,), (0, -1)])
def test_consumer_with_a_partition_that_does_not_exist_raises(own: tuple[int, ...]) -> None:
    async def handle(event: Event) -> None:
        raise AssertionError(event)

    options = ConsumerOptions(partitions=3, own_partitions=own)
    with pytest.raises(SettingsError, match="own_partitions"):
        EventConsumer("redis://localhost", "group", handle, options=options)


def test_two_consumers_of_a_group_share_the_events_equally(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        by: Counter[str] = Counter()
        both = asyncio.Barrier(2)

        async def first(event: Event) -> None:
            by["first"] += 1
            await both.wait()
            await here.handle(event)

        async def second(event: Event) -> None:
            by["second"] += 1
            await both.wait()
            await here.handle(event)

        async with (
            consuming(valkey.url, first, concurrency=1),
            consuming(valkey.url, second, concurrency=1),
        ):
            ids = await here.append(10)
            await here.heard(lambda: len(here.handled) == 10)
        assert sorted(here.ids) == sorted(ids)
        assert by["first"] == by["second"] == 5

    with_stream(valkey, scenario)


def test_events_of_one_user_are_handled_in_order_and_of_four_users_concurrently(
    valkey: Valkey,
) -> None:
    async def scenario(here: Hall) -> None:
        running: Counter[str] = Counter()
        most = 0
        all_in = asyncio.Barrier(4)

        async def handle(event: Event) -> None:
            nonlocal most
            assert event.user is not None
            running[event.user] += 1
            most = max(most, sum(running.values()))
            assert running[event.user] == 1, "two events of one user were handled at once"
            if int(event.id.rpartition("-")[2]) <= 4:
                await all_in.wait()  # four users, all handled at the same time
            await asyncio.sleep(0)
            running[event.user] -= 1
            await here.handle(event)

        for _ in range(25):
            for partition, user in enumerate(("a", "b", "c", "d")):
                await here.append(user=user, partition=partition // 2)
        async with consuming(valkey.url, handle, concurrency=4, partitions=2):
            await here.heard(lambda: len(here.handled) == 100)
        assert most == 4
        for user in ("a", "b", "c", "d"):
            mine = [int(each.id.rpartition("-")[2]) for each in here.handled if each.user == user]
            assert mine == sorted(mine)

    with_stream(valkey, scenario)


def test_stop_waits_for_running_handlers_and_reads_no_more_events(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        begun, release = asyncio.Event(), asyncio.Event()

        async def handle(event: Event) -> None:
            begun.set()
            await release.wait()
            await here.handle(event)

        consumer = EventConsumer(valkey.url, GROUP, handle, options=options(concurrency=2))
        running = asyncio.create_task(consumer.run())
        await here.append(5, user="a")
        await begun.wait()
        stopping = asyncio.create_task(consumer.stop())
        await asyncio.sleep(0)
        assert not stopping.done()
        release.set()
        await stopping
        await running
        assert 1 <= len(here.handled) <= 4
        assert await here.pending() == 0
        with pytest.raises(InternalError):
            await consumer.run()

    with_stream(valkey, scenario)


@pytest.mark.parametrize("is_read_late", [False, True])
def test_stop_leaves_later_events_of_a_user_whose_event_failed(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, is_read_late: bool
) -> None:
    """The later event waits when the consumer stops, or is returned by the read that was under way."""
    read_group = Bus.read
    begun, stopped, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def read_late(self: Bus, reader: Reader, cursor: str, **more: Any) -> list[Entry]:
        entries = await read_group(self, reader, cursor, **more)
        if entries and begun.is_set():
            await left.wait()
        return entries

    async def scenario(here: Hall) -> None:
        monkeypatch.setattr(Bus, "read", read_late)

        async def handle(event: Event) -> None:
            if event.id == ids[0]:
                begun.set()
                await stopped.wait()
                asyncio.get_running_loop().call_later(0.1, left.set)
                raise ValueError
            await here.handle(event)

        ids = await here.append(1 if is_read_late else 3, user="a")
        consumer = EventConsumer(valkey.url, GROUP, handle, options=options(), on_error=lambda _: None)
        running = asyncio.create_task(consumer.run())
        await begun.wait()
        ids += await here.append(user="a") if is_read_late else []
        await until("all are read", lambda: _is(here.pending(), len(ids)))
        stopping = asyncio.create_task(consumer.stop())
        await asyncio.sleep(0)
        stopped.set()
        await stopping
        await running
        assert here.ids == []
        async with consuming(valkey.url, here.handle, takeover_idle_s=0.1):
            await here.heard(lambda: len(here.handled) == len(ids))
            await here.settled()
        assert here.ids == ids

    with_stream(valkey, scenario)


# --- handlers that fail -------------------------------------------------------------------------------


def test_failed_event_is_retried_and_becomes_a_dead_letter_after_three_attempts(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        calls: Counter[str] = Counter()

        async def handle(event: Event) -> None:
            calls[event.id] += 1
            if event.user == "poison" or calls[event.id] < 3:
                raise ValueError("a secret")
            await here.handle(event)

        errors: list[Exception] = []
        async with consuming(valkey.url, handle, errors=errors, attempts=3, backoff=AT_ONCE):
            (poison,) = await here.append(user="poison", type="message", data=b"\xff", encoding="binary")
            (twice,) = await here.append(user="other")
            await here.heard(lambda: here.ids == [twice])
            await here.settled()
        assert calls == {poison: 3, twice: 3}
        assert [type(error) for error in errors] == [ValueError] * 5
        (letter,) = await here.dead()
        ((entry, fields),) = await here.redis.xrange("wsgate:events:0", count=1)
        why = {b"error": b"ValueError", b"attempts": b"3", b"stream": b"wsgate:events:0", b"entry": entry}
        assert letter == fields | why
        assert b"secret" not in str(letter).encode()

    with_stream(valkey, scenario)


def test_handler_that_awaits_a_cancelled_future_has_failed_and_is_called_again(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        calls: list[str] = []

        async def handle(event: Event) -> None:
            calls.append(event.id)
            if calls.count(event.id) < 2 or event.user == "poison":
                future = asyncio.get_running_loop().create_future()
                future.cancel()
                await future
            await here.handle(event)

        errors: list[Exception] = []
        async with consuming(valkey.url, handle, errors=errors, attempts=2, backoff=AT_ONCE):
            ids = await here.append(2, user="a")
            await here.append(user="poison")
            await here.heard(lambda: len(here.handled) == 2)
            await here.settled()
        assert here.ids == ids, "a later event of the user was handled first"
        assert [type(error) for error in errors] == [HandlerCancelled] * 4
        (letter,) = await here.dead()
        assert (letter[b"error"], letter[b"attempts"]) == (b"HandlerCancelled", b"2")

    with_stream(valkey, scenario)


def test_malformed_event_is_a_dead_letter_without_an_attempt(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        errors: list[Exception] = []
        async with consuming(valkey.url, here.handle, errors=errors):
            await here.redis.xadd("wsgate:events:0", {"type": "connected", "x": b"\xff"})
            await here.append()
            await here.heard(lambda: len(here.handled) == 1)
            await here.settled()
        (letter,) = await here.dead()
        assert (letter[b"error"], letter[b"attempts"], letter[b"x"]) == (b"MalformedEvent", b"0", b"\xff")
        assert isinstance(errors[0], MalformedEvent)

    with_stream(valkey, scenario)


@pytest.mark.parametrize("refusal", ["NOPERM", "WRONGTYPE"])
def test_dead_letters_that_cannot_be_stored_do_not_stop_the_partition(valkey: Valkey, refusal: str) -> None:
    async def scenario(here: Hall) -> None:
        calls: Counter[str] = Counter()

        async def handle(event: Event) -> None:
            calls[event.id] += 1
            if event.user == "poison":
                raise ValueError
            await here.handle(event)

        keys = ["~wsgate:events:0"]
        if refusal == "WRONGTYPE":
            keys.append("~wsgate:events:dead")
            await here.redis.set("wsgate:events:dead", "no stream")
        await ask(here.redis, "ACL", "SETUSER", "back", "on", ">pass", "resetkeys", *keys, "+@all")
        url = valkey.url.replace("://", "://back:pass@")
        errors: list[Exception] = []
        async with consuming(url, handle, errors=errors, attempts=1, takeover_idle_s=0.5):
            poison = await here.append(20, user="poison")
            (good,) = await here.append(user="good")
            await here.heard(lambda: here.ids == [good])
            await until("only the dead letters are left", lambda: _is(here.pending(), 20))
            (refused,) = [error for error in errors if isinstance(error, BusError)]
            assert not refused.temporary
            assert "wsgate:events:dead" in str(refused)
            if refusal == "WRONGTYPE":
                await here.redis.delete("wsgate:events:dead")
            await ask(here.redis, "ACL", "SETUSER", "back", "~wsgate:events:dead")
            await here.settled()
        assert len([error for error in errors if isinstance(error, BusError)]) == 1
        assert sorted(letter[b"id"].decode() for letter in await here.dead()) == sorted(poison)
        assert {letter[b"error"] for letter in await here.dead()} == {b"ValueError"}
        assert calls == dict.fromkeys([*poison, good], 1)

    with_stream(valkey, scenario)


def test_repeated_event_is_acknowledged_and_handled_once(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        begun, release = asyncio.Event(), asyncio.Event()

        async def handle(event: Event) -> None:
            begun.set()
            await release.wait()
            await here.handle(event)

        async with consuming(valkey.url, handle):
            for _ in range(3):
                await here.append(id="same-1")
            await begun.wait()  # the other two were read or wait to be read while the first is handled
            release.set()
            await here.append(id="same-2")
            await here.append(id="same-1")
            await here.heard(lambda: len(here.handled) == 2)
            await here.settled()
        assert here.ids == ["same-1", "same-2"]

    with_stream(valkey, scenario)


def test_repetition_of_an_event_whose_handler_failed_is_handled(valkey: Valkey) -> None:
    """Only an event that was handled counts as known."""

    async def scenario(here: Hall) -> None:
        failing = asyncio.Event()

        async def handle(event: Event) -> None:
            if not failing.is_set():
                failing.set()
                raise ValueError
            await here.handle(event)

        async with consuming(valkey.url, handle, backoff=AT_ONCE):
            for _ in range(2):
                await here.append(id="same")
            await here.heard(lambda: here.handled)
            await here.settled()
        assert here.ids == ["same"]

    with_stream(valkey, scenario)


def test_event_claimed_by_another_consumer_while_its_handler_fails_is_no_dead_letter(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def do_not_renew(*_: Any, **__: Any) -> None:
        raise BusError("no renewal", temporary=True)

    async def scenario(here: Hall) -> None:
        renew = Bus.renew
        monkeypatch.setattr(Bus, "renew", do_not_renew)
        begun, release = asyncio.Event(), asyncio.Event()

        async def handle(event: Event) -> None:
            if event.user == "after":
                await here.handle(event)
                return
            begun.set()
            await release.wait()
            raise ValueError

        await here.append()
        async with consuming(valkey.url, handle, attempts=1, takeover_idle_s=1, takeover_every_s=3600):
            await begun.wait()
            ((entry, _),) = await here.redis.xrange("wsgate:events:0")
            await here.redis.xclaim("wsgate:events:0", GROUP, "other", 0, [entry])
            await asyncio.sleep(0.6)  # more than half of the takeover time: the renewal is overdue
            monkeypatch.setattr(Bus, "renew", renew)
            release.set()
            await here.append(user="after")
            await here.heard(lambda: here.handled)
        (row,) = await here.redis.xpending_range("wsgate:events:0", GROUP, "-", "+", 9)
        assert row["consumer"] == b"other"
        assert await here.dead() == []

    with_stream(valkey, scenario)


# --- consumers that die -------------------------------------------------------------------------------


def test_events_of_a_cancelled_consumer_are_taken_over_by_another(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        begun = asyncio.Event()

        async def hangs(event: Event) -> None:
            begun.set()
            await asyncio.Event().wait()

        ids = await here.append(5)
        running = asyncio.create_task(EventConsumer(valkey.url, GROUP, hangs, options=options()).run())
        await begun.wait()
        running.cancel()
        await asyncio.wait({running})
        assert running.cancelled()
        assert await here.pending() == 5
        async with consuming(valkey.url, here.handle, takeover_idle_s=0.1):
            await here.heard(lambda: len(here.handled) == 5)
            await here.settled()
        assert sorted(here.ids) == sorted(ids)

    with_stream(valkey, scenario)


def test_consumer_cancelled_after_any_number_of_turns_loses_no_event(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        ids = []
        for turns in range(0, 80, 2):
            ids += await here.append(2)
            consumer = EventConsumer(valkey.url, GROUP, here.handle, options=options(), on_error=print)
            running = asyncio.create_task(consumer.run())
            for _ in range(turns):
                await asyncio.sleep(0.0002)  # the server needs time, not turns of the loop
            running.cancel()
            await asyncio.wait({running})
            assert running.cancelled()
        async with consuming(valkey.url, here.handle, takeover_idle_s=0.1):
            await here.heard(lambda: set(here.ids) == set(ids))
            await here.settled()

    with_stream(valkey, scenario)


KILLED = """
import asyncio
from wsgate.client.backend import ConsumerOptions, EventConsumer

async def handle(event):
    print(event.id, flush=True)
    await asyncio.Event().wait()

options = ConsumerOptions(start_at="0", consumer="the-dead")
asyncio.run(EventConsumer("URL", "backend", handle, options=options).run())
"""


def test_events_of_a_killed_process_are_taken_over_in_order(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        ids = await here.append(3, user="a")
        with running_program(KILLED.replace("URL", valkey.url)) as process:
            assert process.stdout is not None
            assert (await asyncio.to_thread(process.stdout.readline)).strip() == ids[0]
            process.kill()
            process.wait()
        assert await here.pending() == 3
        async with consuming(valkey.url, here.handle, takeover_idle_s=0.1):
            await here.heard(lambda: here.ids == ids)
            await here.settled()

    with_stream(valkey, scenario)


def test_pending_events_of_another_consumer_are_not_taken_over_before_the_idle_time(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        ids = await here.append(2)
        await here.redis.xgroup_create("wsgate:events:0", GROUP, id="0")
        await here.redis.xreadgroup(GROUP, "another", {"wsgate:events:0": ">"}, count=1)
        async with consuming(valkey.url, here.handle, takeover_idle_s=3600):
            await here.heard(lambda: here.handled)
        assert here.ids == ids[1:]
        assert await here.pending() == 1

    with_stream(valkey, scenario)


def test_pending_events_of_the_same_consumer_name_are_read_again_at_once(valkey: Valkey) -> None:
    """The consumer has the name of a former process, so no takeover is needed."""

    async def scenario(here: Hall) -> None:
        ids = await here.append(3)
        await here.redis.xgroup_create("wsgate:events:0", GROUP, id="0")
        await here.redis.xreadgroup(GROUP, "me", {"wsgate:events:0": ">"}, count=2)
        async with consuming(valkey.url, here.handle, consumer="me", concurrency=1, takeover_idle_s=3600):
            await here.heard(lambda: len(here.handled) == 3)
            await here.settled()
        assert here.ids == ids

    with_stream(valkey, scenario)


def test_event_delivered_too_often_without_an_acknowledgement_is_a_dead_letter(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        await here.append()
        await here.redis.xgroup_create("wsgate:events:0", GROUP, id="0")
        await here.redis.xreadgroup(GROUP, "one", {"wsgate:events:0": ">"})
        for name in ("two", "three"):
            await here.redis.xautoclaim("wsgate:events:0", GROUP, name, 0)
        async with consuming(valkey.url, here.handle, deliveries_limit=3, takeover_idle_s=0.1):
            await until("it is a dead letter", here.dead)
            await here.settled()
        assert here.handled == []
        assert (await here.dead())[0][b"error"] == b"Abandoned"

    with_stream(valkey, scenario)


@pytest.mark.parametrize("is_lookup_first", [False, True])
def test_dead_letter_claimed_again_before_its_acknowledgement_is_not_handled(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, is_lookup_first: bool
) -> None:
    """The second claim reads the entry; the count of its deliveries is looked up before or after the XACK."""
    lookups = 0
    count, acknowledge = Bus.deliveries, Bus.acknowledge
    claimed_again, moved = asyncio.Event(), asyncio.Event()

    async def count_late(self: Bus, reader: Reader, entries: Sequence[Entry]) -> dict[str, int]:
        nonlocal lookups
        lookups += 1
        if lookups != 2:
            return await count(self, reader, entries)
        claimed_again.set()
        await moved.wait()
        for _ in range(10):
            await asyncio.sleep(0)  # tasks that waited for the acknowledgement continue
        if is_lookup_first:
            return dict.fromkeys((entry.id for entry in entries), 1)
        return await count(self, reader, entries)

    async def acknowledge_late(self: Bus, *arguments: Any) -> None:
        await claimed_again.wait()
        await acknowledge(self, *arguments)
        moved.set()

    async def do_not_renew(*_: Any, **__: Any) -> None:
        return

    async def scenario(here: Hall) -> None:
        monkeypatch.setattr(Bus, "deliveries", count_late)
        monkeypatch.setattr(Bus, "acknowledge", acknowledge_late)
        monkeypatch.setattr(Bus, "renew", do_not_renew)  # a renewed entry would not be claimed again
        await here.append()
        await here.redis.xgroup_create("wsgate:events:0", GROUP, id="0")
        await here.redis.xreadgroup(GROUP, "one", {"wsgate:events:0": ">"})
        for name in ("two", "three"):
            await here.redis.xautoclaim("wsgate:events:0", GROUP, name, 0)
        async with consuming(valkey.url, here.handle, deliveries_limit=3, takeover_idle_s=0.1):
            await moved.wait()
            (after,) = await here.append()
            await here.heard(lambda: after in here.ids)
            await here.settled()
        assert here.ids == [after]
        assert len(await here.dead()) == 1

    with_stream(valkey, scenario)


def test_consumer_without_the_right_to_renew_reports_that_and_handles_its_events(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        async def handle(event: Event) -> None:
            await asyncio.sleep(0.1)
            await here.handle(event)

        rights = ("on", ">pass", "resetkeys", "~wsgate:events:*", "+@all", "-xclaim")
        await ask(here.redis, "ACL", "SETUSER", "back", *rights)
        url = valkey.url.replace("://", "://back:pass@")
        ids = await here.append(8, user="a")
        errors: list[Exception] = []
        async with consuming(
            url, handle, errors=errors, backoff=SOON, takeover_idle_s=0.6, takeover_every_s=3600
        ):
            await here.heard(lambda: len(here.handled) == 8)
            await here.settled()
        assert here.ids == ids
        assert errors
        assert all(isinstance(error, BusError) and not error.temporary for error in errors)

    with_stream(valkey, scenario)


def test_events_that_wait_longer_than_the_takeover_time_are_handled_once_and_in_order(valkey: Valkey) -> None:
    """One consumer reads 16 events of one user at once; another one searches for entries to claim."""

    async def scenario(here: Hall) -> None:
        begun = asyncio.Event()

        async def first(event: Event) -> None:
            begun.set()
            await asyncio.sleep(0.15)
            await here.handle(event)

        ids = await here.append(16, user="a")
        async with consuming(valkey.url, first, consumer="first", takeover_idle_s=1):
            await begun.wait()
            async with consuming(valkey.url, here.handle, consumer="second", takeover_idle_s=1):
                await here.heard(lambda: ids[9] in here.ids)  # the others wait since more than a second
                entries = await here.redis.xpending_range("wsgate:events:0", GROUP, "-", "+", 16)
                await here.heard(lambda: len(here.handled) == 16)
                await here.settled()
        assert here.ids == ids
        assert {(row["consumer"], row["times_delivered"]) for row in entries} == {(b"first", 1)}

    with_stream(valkey, scenario)


def test_waiting_event_that_another_consumer_has_claimed_is_not_handled_later(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that could not renew its entries checks before each late start that it still owns them."""
    is_broken = True
    renew = Bus.renew

    async def renew_if_whole(self: Bus, *arguments: Any, **more: Any) -> None:
        if is_broken:
            raise BusError("no renewal", temporary=True)
        await renew(self, *arguments, **more)

    async def scenario(here: Hall) -> None:
        nonlocal is_broken
        monkeypatch.setattr(Bus, "renew", renew_if_whole)
        release = asyncio.Event()

        async def handle(event: Event) -> None:
            await release.wait()
            await here.handle(event)

        ids = [(await here.append(user=user))[0] for user in ("a", "a", "a", "b", "b", "c", "c")]
        async with consuming(valkey.url, handle, takeover_idle_s=2, takeover_every_s=3600, backoff=SOON):
            await until("there is a group", here.has_group)
            await until("all are read", lambda: _is(here.pending(), 7))
            entries = [entry for entry, _ in await here.redis.xrange("wsgate:events:0")]
            claimed = [entries[number] for number in (1, 2, 4)]
            await here.redis.xclaim("wsgate:events:0", GROUP, "other", 0, claimed)
            await here.redis.xack("wsgate:events:0", GROUP, entries[1])
            await here.redis.xdel("wsgate:events:0", entries[6])
            await asyncio.sleep(1.1)  # more than half of the takeover time: the renewal is overdue
            is_broken = False
            release.set()
            (after,) = await here.append(user="d")
            await here.heard(lambda: after in here.ids and ids[6] in here.ids)
            await until("two are left", lambda: _is(here.pending(), 2))
        assert sorted(here.ids) == sorted([ids[0], ids[3], ids[5], ids[6], after])

    with_stream(valkey, scenario)


def test_delivery_counts_cover_several_replies_and_leave_out_acknowledged_entries(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsgate.client.backend.bus._PENDING_LIMIT", 2)

    async def scenario(here: Hall) -> None:
        await here.append(6)
        await here.redis.xgroup_create("wsgate:events:0", GROUP, id="0")
        reader = Reader("wsgate:events:0", GROUP, "one")
        bus = Bus(here.redis, timeout_s=5)
        entries = await bus.read(reader, ">", count=6, block_s=1)
        await bus.acknowledge(reader, entries[3])
        expected = {entry.id: 1 for entry in entries if entry != entries[3]}
        assert await bus.deliveries(reader, entries) == expected

    with_stream(valkey, scenario)


def test_pending_entry_that_was_trimmed_does_not_delay_later_events(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        await here.append(2)
        await here.redis.xgroup_create("wsgate:events:0", GROUP, id="0")
        await here.redis.xreadgroup(GROUP, "me", {"wsgate:events:0": ">"})
        await here.redis.xtrim("wsgate:events:0", maxlen=0, approximate=False)
        async with consuming(valkey.url, here.handle, consumer="me", takeover_idle_s=0.1):
            await until("nothing is pending", lambda: _is(here.pending(), 0))
            await here.append()
            await here.heard(lambda: len(here.handled) == 1)
        assert await here.dead() == []

    with_stream(valkey, scenario)


async def _is(number: Coroutine[Any, Any, int], expected: int) -> bool:
    return await number == expected


# --- the bus goes away --------------------------------------------------------------------------------


def test_bus_restarted_while_events_are_handled_loses_no_event(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        begun, release = asyncio.Event(), asyncio.Event()

        async def handle(event: Event) -> None:
            begun.set()
            await release.wait()
            await here.handle(event)

        errors: list[Exception] = []
        async with consuming(
            valkey.url, handle, errors=errors, backoff=SOON, concurrency=3, takeover_idle_s=0.3
        ):
            ids = await here.append(10)
            await begun.wait()
            await asyncio.to_thread(valkey.stop)
            release.set()  # handled while no acknowledgement can be sent
            await here.heard(lambda: here.handled)
            await until("it was noticed", lambda: _has(errors, BusError))
            await asyncio.to_thread(valkey.restart)
            await until("it is back", lambda: _answers(here.redis))
            ids += await here.append(10)
            await here.heard(lambda: set(here.ids) == set(ids))
            await here.settled()
        assert len(here.ids) == len(ids), "an event was handled twice in this process"
        assert all(isinstance(error, BusError) for error in errors)

    with_stream(valkey, scenario)


async def _has(errors: list[Exception], kind: type[Exception]) -> bool:
    return any(isinstance(error, kind) for error in errors)


async def _answers(client: Any) -> bool:
    with contextlib.suppress(RedisError):
        return bool(await client.ping())
    return False


def test_group_is_created_again_on_an_emptied_bus_and_reads_earlier_events(
    valkey: Valkey,
) -> None:
    async def scenario(here: Hall) -> None:
        async with consuming(valkey.url, here.handle, start_at="$", backoff=SOON):
            await until("there is a group", here.has_group)
            await here.append()
            await here.heard(lambda: len(here.handled) == 1)
            async with here.redis.pipeline(transaction=True) as pipeline:
                pipeline.flushall()
                pipeline.xadd(
                    "wsgate:events:0", {"type": "connected", "id": "new", "conn": "c", "node": "n", "ts": 1}
                )
                await pipeline.execute()
            await here.heard(lambda: here.ids[-1] == "new")
            await here.settled()

    with_stream(valkey, scenario)


def test_consumer_started_without_the_bus_reads_events_when_it_returns() -> None:
    async def main() -> None:
        with running_valkey() as server:
            await asyncio.to_thread(server.stop)
            async with Redis.from_url(server.url) as client:
                here, errors = Hall(client), list[Exception]()
                async with consuming(server.url, here.handle, errors=errors, backoff=SOON):
                    await until("it was noticed", lambda: _has(errors, BusError))
                    await asyncio.to_thread(server.restart)
                    await until("it is back", lambda: _answers(client))
                    await here.append(2)
                    await here.heard(lambda: len(here.handled) == 2)

    run(main())


def test_consumer_leaves_a_bus_that_hangs_and_continues_afterwards(valkey: Valkey) -> None:
    async def scenario(here: Hall) -> None:
        errors: list[Exception] = []
        async with consuming(valkey.url, here.handle, errors=errors, backoff=SOON, timeout_s=0.2):
            await here.append()
            await here.heard(lambda: len(here.handled) == 1)
            with valkey.paused():
                await until("it was noticed", lambda: _has(errors, BusError))
            await here.append()
            await here.heard(lambda: len(here.handled) == 2)
            await here.settled()

    with_stream(valkey, scenario)


# --- clusters and sentinels ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def one_node_cluster() -> AsyncIterator[Valkey]:
    """Run a cluster with all slots on one server, which refuses transactions over several slots."""
    with running_valkey(cluster_enabled="yes") as server:
        async with Redis.from_url(server.url) as client:
            await ask(client, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)

            async def is_up() -> bool:
                return b"cluster_state:ok" in await ask(client, "CLUSTER", "INFO")

            await until("the cluster is up", is_up)
            yield server


def test_consumer_and_publisher_work_on_a_cluster_with_dead_letters_and_sharded_channels() -> None:
    async def main() -> None:
        async with one_node_cluster() as server:
            url = f"redis+cluster://127.0.0.1:{server.port}"
            async with (
                RedisCluster(host="127.0.0.1", port=server.port, retry=Retry(NoBackoff(), 0)) as client,
                Publisher(url) as publisher,
            ):
                here = Hall(client)

                async def handle(event: Event) -> None:
                    if event.user == "poison":
                        raise ValueError
                    await here.handle(event)

                async with consuming(url, handle, partitions=3, attempts=2, backoff=AT_ONCE):
                    await here.append(2, partition=1)
                    await here.append(2, partition=2)
                    await here.append(user="poison")
                    await here.heard(lambda: len(here.handled) == 4)
                    await until("it is dead", here.dead)
                    for partition in range(3):
                        await here.settled(partition)
                async with consuming(client, here.handle, group="another", partitions=3):
                    await here.heard(lambda: len(here.handled) == 9)
                assert await publisher.publish("news", 1) == 0
                async with Redis.from_url(server.url) as plain:
                    heard: Any = plain.pubsub()
                    await ask(heard, "SSUBSCRIBE", "wsgate:ch:news")
                    await until("subscribed", lambda: plain.pubsub_shardnumsub("wsgate:ch:news"))
                    assert await publisher.publish("news", 1) == 1
                    await heard.aclose()

    run(main())


@contextlib.contextmanager
def sentinel(primary: Valkey) -> Iterator[int]:
    """Run a sentinel that watches this primary as `main`; yield its port."""
    with tempfile.TemporaryDirectory(prefix="wsgate-sentinel-") as name, running_valkey() as placeholder:
        port = placeholder.port
        placeholder.stop()
        config = Path(name) / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {name}\n"
            f"sentinel monitor main 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
        )
        process = subprocess.Popen([find_server(os.environ), config, "--sentinel"], stdout=subprocess.DEVNULL)
        try:
            yield port
        finally:
            process.kill()
            process.wait(10)


def test_consumer_follows_a_sentinel_failover_while_events_are_handled() -> None:
    async def main() -> None:
        with (
            running_valkey() as primary,
            running_valkey(replicaof=f"127.0.0.1 {primary.port}") as replica,
            sentinel(primary) as port,
        ):
            url = f"redis+sentinel://127.0.0.1:{port}/main"
            async with (
                Redis.from_url(primary.url) as old,
                Redis.from_url(replica.url) as new,
                Redis(port=port) as asked,
                Publisher(url) as publisher,
            ):
                here, errors = Hall(old), list[Exception]()

                async def knows_the_replica() -> bool:
                    with contextlib.suppress(RedisError):
                        replicas = await asked.sentinel_slaves("main")
                        return [each["master-link-status"] for each in replicas] == ["ok"]
                    return False

                await until("the sentinel knows the replica", knows_the_replica)
                begun, release = asyncio.Event(), asyncio.Event()

                async def handle(event: Event) -> None:
                    begun.set()
                    await release.wait()
                    await here.handle(event)

                async with consuming(url, handle, errors=errors, backoff=SOON, takeover_idle_s=0.5):
                    ids = await here.append(3)
                    await begun.wait()
                    assert await old.wait(1, 5000) == 1
                    await asyncio.to_thread(primary.stop)
                    release.set()

                    async def is_primary() -> bool:
                        with contextlib.suppress(RedisError):  # a promoted replica closes its connections
                            return bool((await ask(new, "ROLE"))[0] in (b"master", "master"))
                        return False

                    await until("the replica was promoted", is_primary)
                    here.redis = new
                    ids += await here.append(3)
                    await here.heard(lambda: set(here.ids) == set(ids))
                    await here.settled()
                assert await publisher.publish("news", 1) == 0
                assert all(isinstance(error, BusError) for error in errors)

    run(main())


# --- the page -----------------------------------------------------------------------------------------


def test_first_backend_of_the_documents_runs_as_written(valkey: Valkey) -> None:
    (text,) = re.findall(r"```python\n# answer\.py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert "redis://localhost:6379" in text

    async def scenario(here: Hall) -> None:
        here.group = "answers"
        heard = here.redis.pubsub()
        await heard.subscribe("wsgate:ch:@42")
        with running_program(text.replace("redis://localhost:6379", valkey.url)) as process:
            await until("there is a group", here.has_group)
            await here.append()
            await here.append(type="message", data=b'"hi"', encoding="json")
            said: dict[bytes, bytes] = {}
            while not said:
                message = await heard.get_message(ignore_subscribe_messages=True, timeout=20)
                assert message is not None or process.poll() is None
                if message is not None:
                    said[message["channel"]] = message["data"]
            assert said == {b"wsgate:ch:@42": b'{"you sent":"hi"}'}
            await here.settled()
            process.send_signal(signal.SIGINT)
            assert process.wait(20) is not None
        await heard.aclose()

    with_stream(valkey, scenario)
