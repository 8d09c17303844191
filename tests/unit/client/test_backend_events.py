"""Check entries of event streams as values, the window of known events, and the URLs of the bus."""

import base64
import inspect
import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tests.support.memory_gateway import run
from wsgate.client.backend import ConsumerOptions, Event, EventConsumer, MalformedEvent, Publisher, bus
from wsgate.client.backend.address import open_client
from wsgate.client.backend.event import parse_event
from wsgate.client.backend.window import Window
from wsgate.errors import SettingsError

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).resolve().parents[3] / "protocols" / "backend" / "v1" / "vectors.json").read_text()
)["vectors"]
STREAM, ENTRY = "wsgate:events:0", "1732600000000-0"
COMMON = {
    b"type": b"connected",
    b"id": b"8f14e45fceea167a-12",
    b"conn": b"9f2c000000000001",
    b"node": b"n1",
    b"ts": b"1732600000000",
}


def event(**more: bytes) -> Event:
    return parse_event(STREAM, ENTRY, COMMON | {name.encode(): value for name, value in more.items()})


@pytest.mark.parametrize("vector", VECTORS, ids=lambda each: each["name"])
def test_every_event_vector_of_the_protocol_is_parsed_to_its_fields(vector: dict[str, Any]) -> None:
    fields = {
        name.encode(): bytes.fromhex(value) if name == "data" else value.encode()
        for name, value in vector["fields"].items()
    }
    found = parse_event(STREAM, ENTRY, fields)
    shown = vector["json"]
    data = base64.b64decode(shown["b64"]) if "b64" in shown else shown.get("data")
    assert found == Event(
        type=shown["type"],
        id=shown["id"],
        conn=shown["conn"],
        user=shown.get("user"),
        node=shown["node"],
        timestamp_ms=shown["ts"],
        reason=shown.get("reason"),
        duration_ms=shown.get("duration_ms"),
        channel=shown.get("ch"),
        data=data,
        encoding=shown.get("encoding"),
        stream=STREAM,
        entry_id=ENTRY,
    )


def test_event_has_the_common_fields_and_ignores_unknown_ones() -> None:
    assert event(user=b"42", later=b"x") == Event(
        type="connected",
        id="8f14e45fceea167a-12",
        conn="9f2c000000000001",
        user="42",
        node="n1",
        timestamp_ms=1_732_600_000_000,
        stream=STREAM,
        entry_id=ENTRY,
    )
    assert event().user is None


def test_event_has_the_fields_of_its_own_type() -> None:
    ended = event(type=b"disconnected", reason=b"peer_closed", duration_ms=b"1500")
    assert (ended.type, ended.reason, ended.duration_ms) == ("disconnected", "peer_closed", 1500)
    assert event(type=b"subscribed", ch="chat:é".encode()).channel == "chat:é"
    assert event(type=b"a_later_one").type == "a_later_one"


@pytest.mark.parametrize(
    ("encoding", "data", "value"),
    [
        (b"json", b'{"a":[1,null]}', {"a": [1, None]}),
        (b"json", b"null", None),
        (b"text", "é".encode(), "é"),
        (b"text", b"", ""),
        (b"binary", b"\xff\x00", b"\xff\x00"),
    ],
)
def test_data_of_an_event_is_decoded_by_its_encoding(encoding: bytes, data: bytes, value: Any) -> None:
    found = event(type=b"message", data=data, encoding=encoding)
    assert (found.data, found.encoding) == (value, encoding.decode())


@pytest.mark.parametrize(
    "more",
    [
        {"type": b""},
        {"id": b""},
        {"conn": b"\xff"},
        {"ts": b"soon"},
        {"ts": b"-1"},
        {"ts": b"1" * 20},
        {"duration_ms": b"1.5"},
        {"user": b"\xff"},
        {"data": b"{", "encoding": b"json"},
        {"data": b"\xff", "encoding": b"json"},
        {"data": b"[" * 100_000, "encoding": b"json"},
        {"data": b"1" * 5_000, "encoding": b"json"},
        {"data": b"\xff", "encoding": b"text"},
        {"data": b"x", "encoding": b"gob"},
        {"data": b"x"},
    ],
    ids=repr,
)
def test_event_with_an_invalid_field_raises_malformed_event(more: dict[str, bytes]) -> None:
    with pytest.raises(MalformedEvent):
        event(**more)


@pytest.mark.parametrize("name", sorted(COMMON))
def test_event_without_a_required_field_raises_malformed_event(name: bytes) -> None:
    with pytest.raises(MalformedEvent):
        parse_event(STREAM, ENTRY, {key: value for key, value in COMMON.items() if key != name})


@given(
    st.dictionaries(st.sampled_from([*COMMON, b"data", b"encoding", b"duration_ms"]), st.binary(max_size=9))
)
def test_random_entry_raises_only_a_final_malformed_event(fields: dict[bytes, bytes]) -> None:
    try:
        parse_event(STREAM, ENTRY, COMMON | fields)
    except MalformedEvent as error:
        assert not error.temporary


# --- known events ----------------------------------------------------------------------------------


def test_window_forgets_the_event_that_was_not_met_for_longest() -> None:
    window = Window(3)
    for name in ("a", "b", "c"):
        window.add(name)
    assert "a" in window
    window.add("d")
    assert [name in window for name in ("a", "b", "c", "d")] == [True, False, True, True]
    window.add("d")
    assert len(window) == 3
    nothing = Window(0)
    nothing.add("a")
    assert "a" not in nothing


# --- URLs of the bus ---------------------------------------------------------------------------------


def test_scheme_of_a_url_selects_the_kind_of_redis_client() -> None:
    async def main() -> None:
        for url, kind in (
            ("redis://u:p@h:1", Redis),
            ("rediss://h", Redis),
            ("unix:///run/r.sock", Redis),
            ("redis+sentinel://a,b:7,[::1]/main", Redis),
            ("redis+cluster://u:p@a:7000,b", RedisCluster),
            ("rediss+cluster://a?ssl_ca_certs=/a.pem", RedisCluster),
        ):
            opened = open_client(url)
            assert type(opened.client) is kind
            await opened.close()
        sentinels = open_client("rediss+sentinel://u:p%40@a,b:7/main?sentinel_password=s")
        pool = sentinels.client.connection_pool
        assert isinstance(pool, SentinelConnectionPool)
        assert pool.service_name == "main"
        assert (pool.connection_kwargs["username"], pool.connection_kwargs["password"]) == ("u", "p@")
        asked = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
        assert [(each["host"], each["port"], each["password"]) for each in asked] == [
            ("a", 26379, "s"),
            ("b", 7, "s"),
        ]
        await sentinels.close()

    run(main())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:6379",
        "http://u:hunter2@h",
        "redis://u:hunter2@h:x",
        "redis+sentinel://u:hunter2@h",
        "redis+sentinel://u:hunter2@h/",
        "redis+cluster://u:hunter2@h:99999",
        "redis+cluster://u:hunter2@",
        "redis+cluster://u:hunter2@a,,b",
    ],
)
def test_invalid_bus_url_raises_settings_error_without_the_password(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_client(url)
    assert "hunter2" not in str(caught.value)


def test_redis_client_that_decodes_responses_is_refused_by_the_consumer() -> None:
    async def handle(_: Event) -> None:
        return

    once = Retry(NoBackoff(), 0)
    clients = (
        Redis(decode_responses=True, retry=once),
        RedisCluster(host="h", decode_responses=True, retry=once),
    )
    for client in clients:
        with pytest.raises(SettingsError, match="decode_responses"):
            EventConsumer(client, "g", handle)


# --- settings of the consumer ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("partitions", "concurrency", "attempts") for value in (0, -1, 1.0, "1")),
        *((name, value) for name in ("deliveries_limit", "dead_limit") for value in (0, True, None)),
        ("seen_limit", -1),
        *((name, value) for name in ("block_s", "timeout_s") for value in (0, 0.0009, -1, "2", None)),
        *((name, 0) for name in ("takeover_idle_s", "takeover_every_s")),
        *(("takeover_idle_s", value) for value in (math.nan, math.inf)),
        *((name, value) for name in ("prefix", "consumer") for value in ("", b"wsgate")),
        *(("start_at", value) for value in ("", 0, "beginning", ">", "1-", "$ ")),
        ("backoff", 1.0),
    ],
)
def test_consumer_option_out_of_range_raises_an_error_that_names_it(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=rf"^(ConsumerOptions\.)?{name}: "):
        ConsumerOptions(**{name: value})


def test_smallest_consumer_options_are_accepted() -> None:
    numbers = dict.fromkeys(("partitions", "concurrency", "attempts", "deliveries_limit", "dead_limit"), 1)
    times = dict.fromkeys(("takeover_idle_s", "takeover_every_s", "block_s", "timeout_s"), 0.001)
    for start_at in ("$", "0", "0-0", "1732600000000-1"):
        options: dict[str, Any] = {**numbers, **times, "seen_limit": 0, "start_at": start_at}
        assert ConsumerOptions(**options).start_at == start_at


def test_handler_that_is_not_a_coroutine_function_is_refused_before_it_is_called() -> None:
    calls: list[object] = []
    for handle in (calls.append, lambda _: calls.append(1), None, print):
        with pytest.raises(SettingsError, match=r"^handle: .*async def"):
            EventConsumer("redis://h", "g", cast(Any, handle))
    assert calls == []


def test_coroutine_functions_of_every_kind_are_accepted_as_handler() -> None:
    class Handler:
        async def __call__(self, _: Event) -> None:
            return

        async def method(self, _: Event) -> None:
            return

    async def with_more(_: object, event: Event) -> None:
        return

    for handle in (Handler(), Handler().method, partial(with_more, None), AsyncMock()):
        EventConsumer("redis://h", "g", handle)


@pytest.mark.parametrize("group", ["", None, b"g"])
def test_group_without_a_name_is_refused(group: Any) -> None:
    with pytest.raises(SettingsError, match=r"^group: "):
        EventConsumer("redis://h", group, AsyncMock())


@pytest.mark.parametrize(
    ("client", "longest_s"),
    [
        (Redis.from_url("redis://h"), 5),
        (Redis.from_url("redis://h", socket_timeout=1.5), 1.5),
        (Redis(retry=Retry(NoBackoff(), 0), socket_timeout=3), 3),
        (RedisCluster(host="h", retry=Retry(NoBackoff(), 0), socket_timeout=4), 4),
    ],
)
def test_block_as_long_as_the_read_timeout_of_the_client_is_refused(client: Any, longest_s: float) -> None:
    with pytest.raises(SettingsError, match=r"^block_s: .* socket_timeout"):
        EventConsumer(client, "g", AsyncMock(), options=ConsumerOptions(block_s=longest_s))
    EventConsumer(client, "g", AsyncMock(), options=ConsumerOptions(block_s=longest_s - 0.001))


def test_block_has_no_limit_for_a_url_or_a_client_without_a_read_timeout() -> None:
    for where in ("redis://h", Redis.from_url("redis://h", socket_timeout=None)):
        EventConsumer(where, "g", AsyncMock(), options=ConsumerOptions(block_s=3600))


def test_default_read_timeout_is_that_of_redis_py() -> None:
    default_s = inspect.signature(AbstractConnection.__init__).parameters["socket_timeout"].default
    assert default_s == bus._READ_TIMEOUT_S


@pytest.mark.parametrize("timeout_s", [0, -1.0, math.nan])
def test_publisher_without_time_for_a_reply_is_refused(timeout_s: float) -> None:
    with pytest.raises(SettingsError, match=r"^timeout_s: "):
        Publisher("redis://h", timeout_s=timeout_s)


# --- clients that are passed in -----------------------------------------------------------------------

make_sentinel: Any = Sentinel  # redis-py gives Sentinel no types


@pytest.mark.parametrize(
    ("client", "retries"),
    [
        (Redis(), 10),
        (Redis(retry=Retry(NoBackoff(), -1)), -1),
        (Redis(connection_pool=ConnectionPool(retry=Retry(NoBackoff(), 2))), 2),
        (Redis(connection_pool=ConnectionPool(retry_on_error=[RedisError])), 1),
        (Redis.from_url("redis://h?retry_on_timeout=yes"), 1),
        (RedisCluster(host="h"), 10),
        (RedisCluster(host="h", retry=Retry(NoBackoff(), 1)), 1),
    ],
)
def test_redis_client_that_repeats_commands_is_refused(client: Any, retries: int) -> None:
    """A command whose reply is lost may have been executed, so repeating it would publish twice."""

    async def handle(_: Event) -> None:
        return

    text = re.escape(f"(its retries: {retries})")
    with pytest.raises(SettingsError, match=text):
        Publisher(client)
    with pytest.raises(SettingsError, match=text):
        EventConsumer(client, "g", handle)


@pytest.mark.parametrize(
    "client",
    [
        Redis(retry=Retry(NoBackoff(), 0)),
        Redis.from_url("redis://h"),
        RedisCluster(host="h", retry=Retry(NoBackoff(), 0)),
        make_sentinel([("h", 26379)]).master_for("main"),
    ],
)
def test_redis_client_without_retries_is_accepted(client: Any) -> None:
    assert isinstance(Publisher(client), Publisher)
