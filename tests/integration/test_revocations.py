"""Store revocations on real servers: every shard reads all of them, also while they change."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
import uvloop

from tests.support.bus_fleet import running_cluster, running_sentinels, running_server
from tests.support.fake_bus import until
from tests.support.valkey import running_valkey
from wsgate.bus import BusPublisher, Names, make_publisher, parse_address
from wsgate.bus.revocations import (
    PAGE_BYTES,
    RETENTION_S,
    ReadPosition,
    Revocation,
    load_revocations,
    read_page,
    store_revocation,
)
from wsgate.bus.script import REVOCATIONS_PAGE, REVOKE

NAMES = Names("w")
KEY = "w:revoked"


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """Yield the URL of a single server, and a client of it."""
    if request.param == "valkey":
        with running_valkey() as valkey, redis.Redis(port=valkey.port) as client:
            yield valkey.url, client
    else:
        with running_server() as one, one.client() as client:
            yield f"redis://127.0.0.1:{one.port}", client


@pytest.fixture
def bus(server: tuple[str, Any]) -> tuple[str, Any]:
    server[1].flushall()
    return server


@contextlib.asynccontextmanager
async def running_publisher(url: str) -> AsyncIterator[BusPublisher]:
    publisher, parts = make_publisher(
        parse_address(url), connect_timeout_s=20, command_timeout_s=20, on_failed=lambda why: None
    )
    tasks = [asyncio.ensure_future(part.run()) for part in parts]
    try:
        yield publisher
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await publisher.close()


async def store(publisher: BusPublisher, user: str, before_s: float) -> tuple[str, bytes]:
    told: list[tuple[str, bytes]] = []
    store_revocation(publisher, NAMES, Revocation(user, before_s), lambda *answer: told.append(answer))
    await until("stored", lambda: told)
    return told[0]


async def load(publisher: BusPublisher) -> tuple[list[Revocation], str]:
    found, told = list[Revocation](), list[str]()
    load_revocations(publisher, NAMES, found.append, told.append)
    await until("read", lambda: told)
    return found, told[0]


async def run_script(publisher: BusPublisher, script: Any, *arguments: bytes) -> tuple[str, bytes]:
    told: list[tuple[str, bytes]] = []
    script.run(publisher, NAMES.revoked(), arguments, lambda *answer: told.append(answer))
    await until("answered", lambda: told)
    return told[0]


def test_latest_revocation_time_of_a_user_is_kept_in_any_order(bus: tuple[str, Any]) -> None:
    async def scenario() -> None:
        now_s = time.time()
        async with running_publisher(bus[0]) as publisher:
            for before_s in (now_s, now_s + 2.25, now_s + 1, now_s + 2.25):
                assert await store(publisher, "a b:c\u00e9 1 ", before_s) == ("", b"0")
            assert await store(publisher, "always", 99_999_999_999.0) == ("", b"0")
            assert await load(publisher) == (
                [Revocation("always", 99_999_999_999.0), Revocation("a b:c\u00e9 1 ", now_s + 2.25)],
                "",
            )
        assert 0 < bus[1].ttl(KEY) <= 315_360_000

    uvloop.run(scenario())


def test_revocation_expires_after_the_longest_life_of_a_token(bus: tuple[str, Any]) -> None:
    async def scenario() -> None:
        now_s = time.time()
        async with running_publisher(bus[0]) as publisher:
            assert await load(publisher) == ([], "")
            bus[1].zadd(KEY, {"old": now_s - RETENTION_S - 10})
            assert await load(publisher) == ([], "")
            await store(publisher, "ann", now_s - RETENTION_S + 100)
            assert [user for user, _ in (await load(publisher))[0]] == ["ann"]
            assert 0 < bus[1].ttl(KEY) <= 101
            assert bus[1].zcard(KEY) == 1
            await store(publisher, "older", now_s - RETENTION_S - 10)
            assert bus[1].zcard(KEY) == 1

    uvloop.run(scenario())


def test_revocation_over_the_limit_removes_the_oldest_ones_and_returns_their_number(
    bus: tuple[str, Any],
) -> None:
    async def scenario() -> None:
        now_s = int(time.time())
        async with running_publisher(bus[0]) as publisher:
            bus[1].zadd(KEY, {f"u{number}": now_s + number for number in range(12)})
            arguments = (b"new", b"%d" % (now_s + 50), b"%d" % RETENTION_S, b"10")
            assert await run_script(publisher, REVOKE, *arguments) == ("", b"3")
            assert [int(each.user[1:]) for each in (await load(publisher))[0][1:]] == list(range(11, 2, -1))

    uvloop.run(scenario())


def test_5000_revocations_with_equal_times_are_all_read_over_many_pages(bus: tuple[str, Any]) -> None:
    async def scenario() -> None:
        now_s = int(time.time())
        users = {f"{number:0100d}": now_s + number // 1_000 for number in range(5_000)}
        async with running_publisher(bus[0]) as publisher:
            bus[1].zadd(KEY, users)
            found, outcome = await load(publisher)
            assert outcome == ""
            assert {user: int(before_s) for user, before_s in found} == users
            assert len(found) == len(users)

    uvloop.run(scenario())


def test_revocation_removed_or_moved_between_two_pages_hides_no_other(bus: tuple[str, Any]) -> None:
    """The last user of a page is removed or has a later time, or earlier ones of the same time are."""

    async def scenario() -> None:
        now_s = int(time.time())
        users = {f"{number:0100d}": now_s for number in range(600)}
        async with running_publisher(bus[0]) as publisher:
            for change in ("remove", "later", "earlier ones removed", "earlier ones later"):
                bus[1].delete(KEY)
                bus[1].zadd(KEY, users)
                seen: set[str] = set()
                last: ReadPosition | None = ReadPosition()
                while last is not None:
                    numbers = (last.number, RETENTION_S, PAGE_BYTES, 128)
                    arguments = (last.user, last.score, *(b"%d" % each for each in numbers))
                    page = read_page((await run_script(publisher, REVOCATIONS_PAGE, *arguments))[1])
                    seen |= {each.user for each in page.revocations}
                    last = page.last
                    if last is not None and change.startswith("earlier"):
                        some = [each.user for each in page.revocations][:-1:3] or ["nobody"]
                        bus[1].zrem(KEY, *some) if "removed" in change else bus[1].zadd(
                            KEY, dict.fromkeys(some, now_s + 5)
                        )
                    elif last is not None and len(seen) < 300:
                        bus[1].zrem(KEY, last.user) if change == "remove" else bus[1].zadd(
                            KEY, {last.user: now_s + 5}
                        )
                assert seen == set(users), change

    uvloop.run(scenario())


def test_malformed_revocations_are_removed_and_a_key_of_another_type_is_refused(bus: tuple[str, Any]) -> None:
    async def scenario() -> None:
        now_s = int(time.time())
        async with running_publisher(bus[0]) as publisher:
            odd = {b"x" * 129 + b"%d" % number: now_s + 1 for number in range(1_100)}
            bus[1].zadd(KEY, odd | {b"": now_s + 1, b"y" * 70_000: now_s + 1, b"\xff": now_s + 1})
            bus[1].zadd(KEY, {"ann": now_s, "inf": float("inf"), "minus": float("-inf")})
            found, outcome = await load(publisher)
            assert (found, outcome) == ([Revocation("ann", now_s)], "")
            assert bus[1].zcard(KEY) == 4, "an impossible user was not removed"
            bus[1].set(KEY, "1")
            assert (await load(publisher)) == ([], "refused")
            assert (await store(publisher, "bob", now_s))[0] == "refused"

    uvloop.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("running", [running_cluster, running_sentinels])
def test_revocations_are_stored_and_loaded_on_a_cluster_and_behind_sentinels(running: Any) -> None:
    async def scenario(url: str) -> None:
        now_s = time.time()
        async with running_publisher(url) as publisher:
            loop = asyncio.get_running_loop()
            end_s = loop.time() + 20
            while await store(publisher, "ann", now_s) != ("", b"0"):  # the map is not loaded yet
                assert loop.time() < end_s
                await asyncio.sleep(0.05)
            assert await load(publisher) == ([Revocation("ann", now_s)], "")

    with running() as fleet:
        uvloop.run(scenario(fleet.url))
