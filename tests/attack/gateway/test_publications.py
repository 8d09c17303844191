"""Publish on the bus what no backend should: the gateway drops and counts it, or sends a valid form."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgpack
import pytest
import redis

from tests.support.attack_rig import (
    besieged,
    configured_gateway,
    fresh_counters,
    make_token,
    proportional_bytes_of,
    shard_pid,
)
from tests.support.gateway import Gateway
from tests.support.raw_client import RawClient

pytestmark = pytest.mark.slow

MSGPACK: Final = ("Sec-WebSocket-Protocol", "wsgate.v1.msgpack")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with configured_gateway(tmp_path_factory.mktemp("publications")) as running:
        yield running


@pytest.fixture(scope="module")
def bus(gateway: Gateway) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(gateway.bus_url) as client:
        yield client


def packed(**fields: Any) -> bytes:
    return bytes(msgpack.packb(fields))


HEAD: Final = b"\xc1\x01"
GOOD: Final = HEAD + packed(data=b'"good"', encoding="json")

BROKEN_ENVELOPES: Final = [
    b"\xc1",
    HEAD,
    HEAD + b"\xc1",
    HEAD + b"\x80",
    HEAD + b"\x90",
    HEAD + b"\x81",
    GOOD[:-1],
    GOOD[: len(GOOD) // 2],
    GOOD + b"\x00",
    b"\xc1\x00" + GOOD[2:],
    b"\xc1\x02" + GOOD[2:],  # of a later version
    b"\xc1\xff" + GOOD[2:],
    HEAD + GOOD,
    HEAD + packed(data="a str"),
    HEAD + packed(data=1),
    HEAD + packed(data=None),
    HEAD + packed(encoding="json"),
    HEAD + packed(data=b"{", encoding="json"),
    HEAD + packed(data=b"\xff", encoding="text"),
    HEAD + packed(data=b"1", encoding="gzip"),
    HEAD + packed(data=b"1", encoding=1),
    HEAD + packed(data=b"1", user=b"42"),
    HEAD + packed(data=b"1", user=[1]),
    HEAD + packed(data=b"1", ts="now"),
    HEAD + packed(data=b"1", ts=1e300),
    HEAD + packed(data=b"1", pos=5),
    HEAD + packed(data=b"1", exclude=-1),
    HEAD + packed(data=b"1", exclude="x"),
    HEAD + b"\x82\xa4data\xc4\x01\x31\x90\x01",  # a list as a key
    HEAD + b"\x82\xa4data\xc4\x01\x31\x81\x01\x02\x01",  # a map as a key
    HEAD + b"\x82\xa4data\xc4\x01\x31\xd4\x01\x01\x01",  # an ext as a key
    HEAD + b"\xdf\xff\xff\xff\xff",
    HEAD + b"\x81\xa4data\xc6\xff\xff\xff\xff1",
    HEAD + b"\x82\xa4data\xc4\x01\x31\xa1x" + b"\x91" * 5_000,
    HEAD + b"\x82\xa4data\xc4\x01\x31\xa1x" + b"\x81\xa1a" * 2_000,
]
MALFORMED: Final = 'wsgate_publications_total{outcome="malformed"}'
DELIVERED: Final = 'wsgate_publications_total{outcome="delivered"}'


def publish_all(bus: redis.Redis, channel: str, payloads: Sequence[bytes]) -> None:
    with bus.pipeline(transaction=False) as pipeline:
        for payload in payloads:
            pipeline.publish(f"wsgate:ch:{channel}", payload)
        assert set(pipeline.execute()) == {1}


def test_s24_broken_envelope_is_dropped_and_counted_and_the_next_publication_delivered(
    gateway: Gateway, bus: redis.Redis
) -> None:
    before = fresh_counters(gateway)
    with (
        besieged(gateway),
        RawClient.welcomed(gateway, make_token("hearer")) as one,
        RawClient.welcomed(gateway, make_token("hearer"), MSGPACK) as other,
    ):
        for client in (one, other):
            client.say(op="sub", ch="open:bad", id=1)
            client.hear_answer(1)
        for payload in BROKEN_ENVELOPES:
            publish_all(bus, "open:bad", [payload, GOOD])
            for client in (one, other):
                assert client.hear() == {"op": "msg", "ch": "open:bad", "data": "good"}, payload[:40]
    after = fresh_counters(gateway)
    assert after[MALFORMED] - before[MALFORMED] == len(BROKEN_ENVELOPES)
    assert after[DELIVERED] - before[DELIVERED] >= len(BROKEN_ENVELOPES)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x00\xff\xfe",
        b'{"half":',
        b"\xed\xa0\x80",
        b'"\\ud800"',
        b"[" * 30_000,
        b"9" * 4_000,  # more digits than most parsers accept
        b"1e999",
        b"NaN",
        bytes(range(256)),
    ],
)
@pytest.mark.parametrize("headers", [(), (MSGPACK,)])
def test_s24_payload_that_is_not_json_is_delivered_as_data_or_base64_in_both_dialects(
    gateway: Gateway, bus: redis.Redis, payload: bytes, headers: Sequence[tuple[str, str]]
) -> None:
    with RawClient.welcomed(gateway, make_token("hearer"), *headers) as client:
        client.say(op="sub", ch="open:bad", id=1)
        client.hear_answer(1)
        publish_all(bus, "open:bad", [payload, GOOD])
        said = client.hear()
        assert said["op"] == "msg"
        assert ("data" in said) != ("b64" in said)
        assert client.hear()["data"] == "good"


def pour(bus: redis.Redis, client: RawClient, flood: list[bytes]) -> None:
    for _ in range(2):
        publish_all(bus, "open:flood", flood)
    publish_all(bus, "open:flood", [GOOD])
    assert client.hear()["data"] == "good"


def test_s24_flood_of_broken_envelopes_does_not_increase_shard_memory(
    gateway: Gateway, bus: redis.Redis
) -> None:
    """A leak of 64 bytes per publication would be 3 MB at the end."""
    pid = shard_pid(gateway)
    flood = (BROKEN_ENVELOPES[:-2] * 160)[:5_000]

    before = fresh_counters(gateway)
    with besieged(gateway), RawClient.welcomed(gateway, make_token("hearer")) as client:
        client.say(op="sub", ch="open:flood", id=1)
        client.hear_answer(1)
        pour(bus, client, flood)
        settled = proportional_bytes_of(pid)
        for _ in range(5):
            pour(bus, client, flood)
        assert proportional_bytes_of(pid) - settled < 1_500_000
    after = fresh_counters(gateway)
    assert after[MALFORMED] - before[MALFORMED] == 6 * 2 * len(flood)
