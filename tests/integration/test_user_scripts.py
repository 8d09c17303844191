"""Run the scripts for the limits of users on real servers: foreign entries refuse no connection."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.support.bus_fleet import running_server
from tests.support.valkey import running_valkey
from wsgate.bus import NODE_CLAIM, RATE_LEASE, SIGN_OF_LIFE, USER_ENTER, Script
from wsgate.bus.script import LEASE, REVOKE

KEY = "w:key"
MINE = "00000000000000aa@me"
HOUR_US = 3_600_000_000


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Yield a client of a real server."""
    if request.param == "valkey":
        with running_valkey() as valkey, redis.Redis(port=valkey.port) as client:
            yield client
    else:
        with running_server() as one, one.client() as client:
            yield client


@pytest.fixture
def bus(server: Any) -> Any:
    server.flushall()
    return server


def enter(bus: Any, member: str, limit: int, left_out: int = 0, most: int = 240) -> list[str]:
    """Register a connection; return the number and the members shown, or nothing when it fits the limit."""
    text: bytes = bus.eval(USER_ENTER.text, 1, KEY, member, limit, 3_600, left_out, most)
    return text.decode().split()


def lease(bus: Any, rate: int, want: int, debt: int = 0) -> tuple[int, int]:
    text: bytes = bus.eval(RATE_LEASE.text, 1, KEY, rate, want, debt)
    granted, wait_ms = text.split()
    return int(granted), int(wait_ms)


def now_us() -> int:
    return time.time_ns() // 1_000


def test_malformed_members_do_not_count_for_the_limit_and_are_removed(bus: Any) -> None:
    odd = [
        *(
            b"nothex@me",
            b"@",
            b"",
            b" ",
            b"a b@c",
            b"00000000000000aa",
            b"00000000000000aa@",
            b"\xff",
            b"\x00",
        ),
        *(b"00000000000000AA@me", b"00000000000000aa@me\n", b"00000000000000aa@m e", b"x" * 100_000, b"\x00"),
        *(b"000000000000000aa@me", b"00000000000000aa@" + b"x" * 60, b"00000000000000aa@m@e"),
    ]
    bus.zadd(KEY, dict.fromkeys(odd, 0))
    assert enter(bus, MINE, 1) == []
    assert bus.zrange(KEY, 0, -1) == [MINE.encode()]


def test_thousand_malformed_members_do_not_hide_the_valid_ones(bus: Any) -> None:
    bus.zadd(KEY, {f"odd{number}": number for number in range(1_000)})
    others = [f"{number:016x}@other" for number in range(3)]
    bus.zadd(KEY, {each: 2_000 + place for place, each in enumerate(others)})
    assert enter(bus, MINE, 2) == ["4", *others, MINE]
    assert bus.zcard(KEY) == 4


def test_oldest_members_are_returned_in_parts_of_at_most_240(bus: Any) -> None:
    others = [f"{number:016x}@{'f' * 47}" for number in range(500)]
    bus.zadd(KEY, {each: place for place, each in enumerate(others)})
    shown = enter(bus, MINE, 10)
    assert shown == ["501", *others[:240]]
    assert len(" ".join(shown)) < 16 * 1_024
    assert enter(bus, MINE, 10, 480) == ["501", *others[480:], MINE]
    assert enter(bus, MINE, 10, 600) == ["501"]
    assert enter(bus, MINE, 10, 0, 1) == ["501", others[0]]


@pytest.mark.parametrize("kind", ["string", "list", "set", "hash", "stream"])
def test_user_key_of_another_type_is_replaced_by_both_scripts(bus: Any, kind: str) -> None:
    fill = {
        "string": lambda: bus.set(KEY, "1"),
        "list": lambda: bus.lpush(KEY, "1"),
        "set": lambda: bus.sadd(KEY, "1"),
        "hash": lambda: bus.hset(KEY, "1", "1"),
        "stream": lambda: bus.xadd(KEY, {"1": "1"}),
    }
    fill[kind]()
    assert enter(bus, MINE, 1) == []
    assert bus.zcard(KEY) == 1
    bus.delete(KEY)
    fill[kind]()
    assert lease(bus, 10, 4) == (4, 0)
    assert bus.type(KEY) == b"string"


@pytest.mark.parametrize("ahead_us", [1, HOUR_US, 10**15, 9 * 10**15, float("inf")])
def test_new_connection_is_registered_as_the_newest_although_the_clock_was_set_back(
    bus: Any, ahead_us: float
) -> None:
    first = "0000000000000001@other"
    bus.zadd(KEY, {first: now_us() + ahead_us})
    shown = enter(bus, MINE, 1)
    assert shown[0] == "2"
    if now_us() + ahead_us < 2**53:
        assert shown[1:] == [first, MINE]


def test_message_allowance_continues_after_the_clock_was_set_back_two_hours(bus: Any) -> None:
    assert lease(bus, 10, 10) == (10, 0)
    full, written = (int(part) for part in bus.get(KEY).split())
    # As if this had been written before the clock was set back by two hours.
    bus.set(KEY, f"{full + 2 * HOUR_US} {written + 2 * HOUR_US}")
    granted, wait_ms = lease(bus, 10, 1)
    assert granted == 1 or 0 < wait_ms <= 100


@pytest.mark.parametrize("rate", [1, 10, 1_000])
def test_malformed_rate_value_delays_a_user_by_at_most_12_seconds(bus: Any, rate: int) -> None:
    now = now_us()
    for value in [
        *(str(now + 2 * HOUR_US), f"{now + 2 * HOUR_US} {now}", f"{now + 2 * HOUR_US} x", f"x {now}"),
        *("", " ", "x", "nan", "inf", "-inf", "1e300", "-1", "1e300 1e300", "nan nan", "0x7fffffffffffff"),
        *(f"inf {now}", f"{now} inf", "1 2 3", "9" * 400, "9" * 400 + " 1", "9007199254740991 1", "\x00"),
        f"9007199254740991 {now + HOUR_US}",
    ]:
        bus.set(KEY, value)
        granted, wait_ms = lease(bus, rate, 1)
        assert granted == 1 or 0 < wait_ms <= 12_000, value
        bus.delete(KEY)
        bus.set(KEY, value)
        assert lease(bus, rate, 1, 1)[1] <= 13_000, value
        # -1 would be a key without a lifetime. At 1,000 a second it may have expired already.
        assert bus.pttl(KEY) != -1 and bus.pttl(KEY) <= 15_000, value


def test_messages_sent_on_credit_by_20_leases_are_all_charged_to_the_wait(bus: Any) -> None:
    """The limit of a wait must not cancel the debt of many shards."""
    for _ in range(20):
        lease(bus, 10, 1, 2)
    assert 3_000 <= lease(bus, 10, 1)[1] <= 3_600


def test_rate_value_in_the_older_format_is_read(bus: Any) -> None:
    bus.set(KEY, str(now_us() + 600_000))
    assert lease(bus, 10, 10)[0] in (3, 4)


# --- a server that has reached its `maxmemory` --------------------------------------------------------


@contextlib.contextmanager
def full(bus: Any) -> Iterator[None]:
    """Make the server refuse every command that needs memory, while the context is open."""
    bus.set("w:fill", "x" * 2_000_000)
    bus.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            bus.set("w:one more", "1")
        yield
    finally:
        bus.config_set("maxmemory", "0")


def test_connections_of_a_user_are_counted_although_the_server_has_reached_its_memory(bus: Any) -> None:
    members = [f"{number:016x}@me" for number in range(3)]
    with full(bus):
        assert enter(bus, members[0], 2) == []
        assert enter(bus, members[1], 2) == []
        assert enter(bus, members[2], 2) == ["3", *members]
        assert 0 < bus.ttl(KEY) <= 3_600


def test_messages_of_a_user_are_counted_although_the_server_has_reached_its_memory(bus: Any) -> None:
    with full(bus):
        assert lease(bus, 10, 10) == (10, 0)
        granted, wait_ms = lease(bus, 10, 10)
        assert granted < 10 and (granted or wait_ms > 0)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        pytest.param(SIGN_OF_LIFE, (60,), id="sign of life"),
        pytest.param(LEASE, ("node/0", 60_000), id="lease of a shard"),
        pytest.param(NODE_CLAIM, ("me", 15_000, ""), id="name of a node"),
        pytest.param(REVOKE, ("ann", int(time.time()), 3_600, 100), id="revocation"),
    ],
)
def test_keys_of_the_gateway_itself_are_stored_although_the_server_has_reached_its_memory(
    bus: Any, script: Script, arguments: tuple[Any, ...]
) -> None:
    with full(bus):
        bus.eval(script.text, 1, KEY, *arguments)
        assert bus.exists(KEY)
        assert bus.ttl(KEY) > 0
