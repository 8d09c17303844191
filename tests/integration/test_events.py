"""Read the events for backends from a real stream: every type, in order, and while the bus is away."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import pytest
import redis

from tests.support.bus_fleet import Cluster, running_cluster
from tests.support.client import Client, connected
from tests.support.gateway import Gateway, running_gateway, wait_until
from tests.support.valkey import Valkey, running_valkey

pytestmark = pytest.mark.slow

ALL: Final = "connected disconnected subscribed unsubscribed message"
VECTORS: Final = Path(__file__).resolve().parents[2] / "protocols" / "backend" / "v1" / "vectors.json"
WITHIN_S: Final = 20.0

Event = dict[str, Any]


def environ(url: str, **more: str) -> dict[str, str]:
    return {"WSGATE_BUS__URL": url, "WSGATE_EVENTS__ENABLED": ALL} | more


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(valkey: Valkey) -> Iterator[Gateway]:
    with running_gateway(environ=environ(valkey.url)) as running:
        yield running


def decoded(fields: dict[bytes, bytes]) -> Event:
    return {name.decode(): value if name == b"data" else value.decode() for name, value in fields.items()}


class Stream:
    """The events that were appended since this object was made."""

    def __init__(self, bus: Any, key: str = "wsgate:events:0") -> None:
        self.bus = bus
        self.key = key
        self.last = (bus.xrevrange(key, count=1) or [(b"0-0", {})])[0][0]

    def take(self, count: int) -> list[Event]:
        """Return the next `count` events, in order."""
        found: list[Event] = []

        def are_there() -> bool:
            for entry, fields in self.bus.xrange(self.key, b"(" + self.last):
                self.last = entry
                found.append(decoded(fields))
            return len(found) >= count

        wait_until(f"{count} events", are_there, WITHIN_S)
        assert len(found) == count, found
        return found


@pytest.fixture
def stream(valkey: Valkey) -> Iterator[Stream]:
    with redis.Redis.from_url(valkey.url) as bus:
        yield Stream(bus)


def test_connection_causes_events_of_every_type_in_order_with_all_fields(
    gateway: Gateway, stream: Stream
) -> None:
    token = gateway.token("42", "--channel", "auto")
    with connected(gateway.ws_url, 1, token=token) as (client,):
        assert sorted(client.receive()["ch"] for _ in range(2)) == ["@me", "auto"]
        client.subscribe("news")
        assert client.ask("send", data={"hello": 1}, id=2) == {"op": "ok", "id": 2}
        client.ask("unsub", ch="news", id=3)
        client.ask("refresh", token=token, id=4)
        conn = client.welcome["conn"]
    told = stream.take(7)
    assert [event["type"] for event in told] == [
        *("connected", "subscribed", "subscribed", "subscribed", "message", "unsubscribed", "disconnected")
    ]
    assert {event["conn"] for event in told} == {conn}
    assert {event["user"] for event in told} == {"42"}
    assert {event["node"] for event in told} == {client.welcome["node"]}
    assert len({event["id"] for event in told}) == 7
    assert sorted(event["ch"] for event in told if event["type"] == "subscribed") == ["@42", "auto", "news"]
    assert told[5]["ch"] == "news"
    assert (told[4]["data"], told[4]["encoding"]) == (b'{"hello": 1}', "json")
    assert told[6]["reason"] == "peer_closed"
    assert int(told[6]["duration_ms"]) >= 0
    assert sorted(told, key=lambda event: int(event["ts"])) == told


@pytest.mark.parametrize(
    ("dialect", "data", "sent"),
    [
        ("json", "text", (b'"text"', "json")),
        ("json", None, (b"null", "json")),
        ("msgpack", {"a": [1, 2]}, (b'{"a":[1,2]}', "json")),
        ("msgpack", b"\x00\xff", (b"\x00\xff", "binary")),
    ],
)
def test_message_event_has_the_data_and_encoding_that_the_client_sent(
    gateway: Gateway, stream: Stream, dialect: str, data: Any, sent: tuple[bytes, str]
) -> None:
    with connected(gateway.ws_url, 1, dialect=dialect) as (client,):
        assert client.ask("send", data=data, id=0) == {"op": "ok", "id": 0}
        client.send("send", data=data)  # without an id there is no answer
        assert client.ask("ping") == {"op": "pong"}
    told = stream.take(4)
    assert [(event["data"], event["encoding"]) for event in told[1:3]] == [sent, sent]
    assert all("user" not in event for event in told), "an anonymous connection has a user"


def test_message_that_json_cannot_represent_is_a_bad_request_without_an_event(
    gateway: Gateway, stream: Stream
) -> None:
    with connected(gateway.ws_url, 1, dialect="msgpack") as (client,):
        assert client.ask("send", data={1: float("nan")}, id=1)["error"] == "bad_request"
    assert [event["type"] for event in stream.take(2)] == ["connected", "disconnected"]


def test_late_token_ends_the_anonymous_connection_and_connects_the_user(
    gateway: Gateway, stream: Stream
) -> None:
    with connected(gateway.ws_url, 1) as (client,):
        client.send("auth", token=gateway.token("late"), id=1)
        assert [client.receive()["op"] for _ in range(2)] == ["welcome", "subbed"]
    told = stream.take(5)
    assert [(event["type"], event.get("user")) for event in told] == [
        ("connected", None),
        ("disconnected", None),
        ("connected", "late"),
        ("subscribed", "late"),
        ("disconnected", "late"),
    ]
    assert [event.get("reason") for event in told][1] == "none"


def test_recovery_of_a_subscribed_channel_causes_no_second_subscribed_event(
    gateway: Gateway, stream: Stream
) -> None:
    with connected(gateway.ws_url, 1) as (client,):
        client.subscribe("news")
        assert client.ask("sub", ch="news", id=2, **{"from": "Qz-5"})["recovered"] is False
    assert [event["type"] for event in stream.take(3)] == ["connected", "subscribed", "disconnected"]


def test_drain_appends_a_disconnected_event_for_each_of_20_clients(valkey: Valkey, stream: Stream) -> None:
    with running_gateway(environ=environ(valkey.url)) as gateway, connected(gateway.ws_url, 20):
        stream.take(20)
        assert gateway.stop() == 0
    told = stream.take(20)
    assert {(event["type"], event["reason"]) for event in told} == {("disconnected", "drain")}


def test_event_partition_is_chosen_by_user_or_by_connection_without_a_user(valkey: Valkey) -> None:
    more = environ(valkey.url, WSGATE_EVENTS__PARTITIONS="3", WSGATE_BUS__PREFIX="parts")
    with redis.Redis.from_url(valkey.url) as bus, running_gateway(environ=more) as gateway:
        streams = [Stream(bus, f"parts:events:{number}") for number in range(3)]
        expected = [0, 0, 0]
        for number in range(12):
            token = gateway.token(f"user-{number}") if number % 2 else ""
            with connected(gateway.ws_url, 1, token=token) as (client,):
                key = f"user-{number}" if token else client.welcome["conn"]
                expected[crc32(key.encode()) % 3] += 3 if token else 2
        for part, count in zip(streams, expected, strict=True):
            part.take(count)


def test_events_are_also_published_when_pubsub_is_enabled(valkey: Valkey) -> None:
    more = environ(valkey.url, WSGATE_EVENTS__PUBSUB="true", WSGATE_BUS__PREFIX="both")
    with redis.Redis.from_url(valkey.url) as bus, bus.pubsub() as listening:
        listening.subscribe("both:events:0")
        listening.get_message(timeout=WITHIN_S)
        with (
            running_gateway(environ=more) as gateway,
            connected(gateway.ws_url, 1, dialect="msgpack") as (client,),
        ):
            client.ask("send", data={"a": 1}, id=1)
            client.ask("send", data=b"\xff", id=2)
        heard: list[Event] = []
        while len(heard) < 4:
            message = listening.get_message(timeout=WITHIN_S)
            assert message is not None
            heard.append(json.loads(message["data"]))
        told = Stream(bus, "both:events:0")
        assert bus.xlen(told.key) == 4
    assert [event["type"] for event in heard] == ["connected", "message", "message", "disconnected"]
    assert heard[1]["data"] == {"a": 1}
    assert heard[2]["b64"] == "/w=="
    assert all(isinstance(event["ts"], int) for event in heard)


def test_event_stream_is_trimmed_to_its_configured_length(valkey: Valkey) -> None:
    more = environ(valkey.url, WSGATE_EVENTS__MAXLEN="50", WSGATE_BUS__PREFIX="trim")
    with redis.Redis.from_url(valkey.url) as bus, running_gateway(environ=more) as gateway:
        with connected(gateway.ws_url, 1) as (client,):
            for number in range(600):
                client.ask("send", data=number, id=1)
        assert 50 <= bus.xlen("trim:events:0") <= 300


def test_events_without_an_enabled_type_create_no_stream_and_refuse_messages(valkey: Valkey) -> None:
    more = environ(valkey.url, WSGATE_BUS__PREFIX="none", WSGATE_EVENTS__ENABLED="")
    with redis.Redis.from_url(valkey.url) as bus, running_gateway(environ=more) as gateway:
        with connected(gateway.ws_url, 1) as (client,):
            assert client.ask("send", data=1, id=1)["error"] == "permission_denied"
        assert bus.exists("none:events:0") == 0


# --- a bus that goes away -----------------------------------------------------------------------------


def send_numbers(client: Client, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        client.send("send", data=number, id=number)


def test_messages_fail_and_other_events_are_buffered_while_the_bus_is_away() -> None:
    with running_valkey(appendonly="yes") as valkey:
        more = environ(valkey.url, WSGATE_BUS__CONNECT_TIMEOUT="500ms", WSGATE_BUS__COMMAND_TIMEOUT="500ms")
        with running_gateway(environ=more) as gateway:
            with connected(gateway.ws_url, 1, token=gateway.token("42")) as (client,):
                client.receive()
                valkey.stop()
                assert client.ask("send", data=1, id=1)["error"] == "unavailable"
            with connected(gateway.ws_url, 5):
                pass
            valkey.restart()
            with redis.Redis.from_url(valkey.url) as bus:

                def told() -> list[Event]:
                    return [decoded(fields) for _, fields in bus.xrange("wsgate:events:0")]

                # At least once: an event in flight when the bus stopped may be stored twice under one id.
                def kinds_by_id() -> dict[str, str]:
                    return {event["id"]: event["type"] for event in told()}

                wait_until("all are stored", lambda: len(kinds_by_id()) >= 2 + 11, WITHIN_S)
                kinds = list(kinds_by_id().values())
            assert kinds.count("disconnected") == 6
            assert kinds.count("connected") == 6
            assert "message" not in kinds, "a message that failed was stored"


def test_every_message_answered_ok_is_stored_although_the_bus_is_killed_three_times() -> None:
    """Messages are stored at least once under one id, and their first appearances are in order."""
    with running_valkey(appendonly="yes", appendfsync="always") as valkey:
        more = environ(valkey.url, WSGATE_EVENTS__ENABLED="message")
        with running_gateway(environ=more) as gateway, connected(gateway.ws_url, 1) as (client,):
            answered: list[int] = []
            for round_ in range(4):
                send_numbers(client, 40, 40 * round_)
                if round_ < 3:
                    valkey.process.kill()
                    valkey.restart()
                for _ in range(40):
                    row = client.receive(WITHIN_S)
                    if row["op"] == "ok":
                        answered.append(row["id"])
            with redis.Redis.from_url(valkey.url) as bus:
                told = [decoded(fields) for _, fields in bus.xrange("wsgate:events:0")]
    assert len(answered) > 100, "too few messages were answered"
    seen = {event["id"]: int(event["data"]) for event in told}
    assert set(answered) <= set(seen.values())
    assert len(set(seen.values())) == len(seen), "a message has two ids"
    first = list(dict.fromkeys(int(event["data"]) for event in told))
    assert first == sorted(first)


def test_stream_key_of_another_type_is_logged_and_events_are_retried_until_it_is_gone(valkey: Valkey) -> None:
    more = environ(valkey.url, WSGATE_BUS__PREFIX="wrong", WSGATE_BUS__COMMAND_TIMEOUT="500ms")
    with redis.Redis.from_url(valkey.url) as bus, running_gateway(environ=more) as gateway:
        bus.set("wrong:events:0", "no stream")
        with connected(gateway.ws_url, 1) as (client,):
            wait_until("it is logged", lambda: any("WRONGTYPE" in line for line in gateway.lines), WITHIN_S)
            assert client.ask("send", data=1, id=1)["error"] == "unavailable"
            bus.delete("wrong:events:0")
            said: list[str] = []

            def is_accepted() -> bool:
                """Messages are refused until the buffered event has been retried and appended."""
                said.append(client.ask("send", data=2, id=2).get("error", "ok"))
                return said[-1] == "ok"

            wait_until("messages are accepted again", is_accepted, WITHIN_S)
            assert set(said[:-1]) <= {"unavailable"}

        def told() -> list[Event]:
            return [decoded(fields) for _, fields in bus.xrange("wrong:events:0")]

        wait_until("all are stored", lambda: "disconnected" in [event["type"] for event in told()], WITHIN_S)
        assert {event["type"] for event in told()} >= {"connected", "message", "disconnected"}
        assert [event["data"] for event in told() if event["type"] == "message"][-1] == b"2"


# --- a cluster ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as fleet:
        yield fleet


def test_messages_are_stored_on_a_cluster_also_after_a_server_of_some_partitions_died(
    cluster: Cluster,
) -> None:
    more = environ(cluster.url, WSGATE_EVENTS__PARTITIONS="8", WSGATE_EVENTS__ENABLED="message")
    names = [f"wsgate:events:{number}" for number in range(8)]
    with running_gateway(environ=more) as gateway, connected(gateway.ws_url, 40) as clients:
        for number, client in enumerate(clients):
            assert client.ask("send", data=number, id=1) == {"op": "ok", "id": 1}
        assert len({cluster.owner_of(name).port for name in names}) > 1
        dead = cluster.owner_of(names[0])
        dead.kill()
        for number, client in enumerate(clients):
            client.send("send", data=100 + number, id=2)
        outcomes = [client.receive(WITHIN_S)["op"] for client in clients]
        assert outcomes.count("ok") >= 10, "messages for living servers failed"
        wait_until(
            "the replica accepts all messages",
            lambda: all(client.ask("send", data=0, id=3)["op"] == "ok" for client in clients),
            60.0,
        )
