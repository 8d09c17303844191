"""Subscriptions without end: bounded for a connection, and given back by the shard and on the bus."""

import json
from collections.abc import Iterator
from typing import Final

import pytest
import redis

from tests.support.attack_rig import besieged, configured_gateway, fresh_counters, make_token, scrape
from tests.support.frames import TEXT, client_frame
from tests.support.gateway import Gateway, wait_until
from tests.support.raw_client import LIMIT_S, RawClient, bearer, request

pytestmark = pytest.mark.slow

MAX_SUBSCRIPTIONS: Final = 32


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = f"[limits]\nmax_subscriptions = {MAX_SUBSCRIPTIONS}\n"
    with configured_gateway(tmp_path_factory.mktemp("subscriptions"), settings) as running:
        yield running


@pytest.fixture(scope="module")
def bus(gateway: Gateway) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(gateway.bus_url) as client:
        yield client


@pytest.fixture
def client(gateway: Gateway) -> Iterator[RawClient]:
    with RawClient.welcomed(gateway, make_token("teller")) as made:
        yield made


def heard_on_the_bus(bus: redis.Redis) -> int:
    return len(bus.pubsub_channels("wsgate:ch:open:*"))


def held(gateway: Gateway) -> tuple[float, ...]:
    numbers = scrape(gateway)
    names = (
        'memory_bytes{kind="channel"',
        'memory_bytes{kind="subscription"',
        "channels{",
        "subscriptions_pending{",
    )
    return tuple(
        sum(value for key, value in numbers.items() if key.startswith(f"wsgate_{name}")) for name in names
    )


def subscribe_to_many(client: RawClient, count: int) -> list[str]:
    """What became of each `sub`: `subbed`, or the error's name."""
    client.sock.sendall(
        b"".join(
            client_frame(TEXT, json.dumps({"op": "sub", "ch": f"open:{number}", "id": number}).encode())
            for number in range(count)
        )
    )
    answers = [client.hear() for _ in range(count)]
    outcomes = {said["id"]: said.get("error", said["op"]) for said in answers}
    return [outcomes[number] for number in range(count)]


def test_s23_a_connection_holds_so_many_channels_and_no_more(gateway: Gateway, bus: redis.Redis) -> None:
    base = heard_on_the_bus(bus)
    with besieged(gateway), RawClient.welcomed(gateway, make_token("greedy")) as client:
        outcomes = subscribe_to_many(client, 2000)
        fit = MAX_SUBSCRIPTIONS  # the inbox is none of them
        assert outcomes == ["subbed"] * fit + ["rate_limited"] * (2000 - fit)
        assert heard_on_the_bus(bus) == base + fit
        client.say(op="unsub", ch="open:0", id=5000)
        client.hear_answer(5000)
        client.say(op="sub", ch="open:last", id=5001)
        assert client.hear_answer(5001)["op"] == "subbed"
    wait_until("the bus is asked for none of them", lambda: heard_on_the_bus(bus) == base, LIMIT_S)


def test_s23_many_names_in_the_url_have_the_same_limit(gateway: Gateway, bus: redis.Redis) -> None:
    base = heard_on_the_bus(bus)
    path = "/ws?" + "&".join(f"ch=open:{number}" for number in range(60))
    with RawClient(gateway) as client:
        assert client.ask(request(path, headers=[bearer(make_token("greedy"))])).status == 101
        ops = [client.hear() for _ in range(2 + 60)]
        assert sorted(said.get("error", said["op"]) for said in ops) == sorted(
            ["welcome"] + ["subbed"] * (1 + MAX_SUBSCRIPTIONS) + ["rate_limited"] * (60 - MAX_SUBSCRIPTIONS)
        )
    wait_until("the bus is asked for none of them", lambda: heard_on_the_bus(bus) == base, LIMIT_S)


def test_s23_a_token_that_brings_more_channels_than_fit_is_no_way_around(
    gateway: Gateway, bus: redis.Redis
) -> None:
    base = heard_on_the_bus(bus)
    token = make_token("greedy", channels=[f"open:{number}" for number in range(128)])
    with RawClient(gateway) as client:
        assert client.ask(request(headers=[bearer(token)])).status == 101
        assert client.hear()["op"] == "welcome"
        client.say(op="ping", id=1)
        client.hear_answer(1)
        assert heard_on_the_bus(bus) <= base + MAX_SUBSCRIPTIONS
    wait_until("the bus is asked for none of them", lambda: heard_on_the_bus(bus) == base, LIMIT_S)


@pytest.mark.parametrize("size", [201, 5_000, 60_000])
def test_s23_a_long_name_is_a_bad_request_and_is_not_repeated(client: RawClient, size: int) -> None:
    for op in ("sub", "unsub", "pub", "presence"):
        client.say(op=op, ch="open:" + "x" * size, data=1, id=1)
        said = client.hear_answer(1)
        assert (said["error"], "ch" in said) == ("bad_request", False)


def test_s23_a_name_of_a_megabyte_is_too_big_a_message(client: RawClient) -> None:
    frame = client_frame(TEXT, b'{"op":"sub","ch":"' + b"x" * 1_000_000 + b'"}')
    # The header says how long it is. The gateway discards 256 KiB in a second at most, then it resets a peer
    # that goes on; a busy machine may not send the rest before that.
    client.sock.sendall(frame[:200_000])
    assert client.ending() == (1009, [])


def churn(client: RawClient, pairs: int, names: int) -> None:
    """Subscribe and unsubscribe as fast as can be, a few hundred commands at a time."""
    for first in range(0, pairs, 200):
        commands = []
        for number in range(first, first + 200):
            for op in ("sub", "unsub"):
                text = f'{{"op":"{op}","ch":"open:{number % names}","id":{number}}}'
                commands.append(client_frame(TEXT, text.encode()))
        client.sock.sendall(b"".join(commands))
        for _ in range(400):
            said = client.hear()
            assert said["op"] in ("subbed", "unsubbed"), said


def test_s23_twenty_thousand_changes_leave_nothing_behind(gateway: Gateway, bus: redis.Redis) -> None:
    base = heard_on_the_bus(bus)
    with besieged(gateway), RawClient.welcomed(gateway, make_token("restless")) as client:
        churn(client, 400, 30)  # what is kept for reuse is there now
        wait_until("the first churn is over", lambda: heard_on_the_bus(bus) == base, LIMIT_S)
        fresh_counters(gateway)
        before = held(gateway)
        churn(client, 10_000, 30)
        assert client.sock.fileno() >= 0
        wait_until("the bus is asked for none of them", lambda: heard_on_the_bus(bus) == base, LIMIT_S)
        fresh_counters(gateway)
        assert held(gateway) == before


def test_s23_connections_that_vanish_with_their_channels_leave_nothing_behind(
    gateway: Gateway, bus: redis.Redis
) -> None:
    base = heard_on_the_bus(bus)
    with besieged(gateway):
        for _ in range(20):
            with RawClient.welcomed(gateway, make_token("fleeting")) as client:
                subscribe_to_many(client, MAX_SUBSCRIPTIONS)
        wait_until("the bus is asked for none of them", lambda: heard_on_the_bus(bus) == base, LIMIT_S)
        inboxes = bus.pubsub_numsub("wsgate:ch:@fleeting")
        wait_until(
            "the inbox is given up", lambda: bus.pubsub_numsub("wsgate:ch:@fleeting")[0][1] == 0, LIMIT_S
        )
        assert inboxes
