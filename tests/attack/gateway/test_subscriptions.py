"""Subscribe without end: a connection has a limit, and shard and bus return to their former state."""

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


def channels_on_the_bus(bus: redis.Redis) -> int:
    return len(bus.pubsub_channels("wsgate:ch:open:*"))


def accounts_of_subscriptions(gateway: Gateway) -> tuple[float, ...]:
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


def outcomes_of_subscribing(client: RawClient, count: int) -> list[str]:
    """Return the outcome of each `sub`: `subbed`, or the name of the error."""
    client.sock.sendall(
        b"".join(
            client_frame(TEXT, json.dumps({"op": "sub", "ch": f"open:{number}", "id": number}).encode())
            for number in range(count)
        )
    )
    answers = [client.hear() for _ in range(count)]
    outcomes = {said["id"]: said.get("error", said["op"]) for said in answers}
    return [outcomes[number] for number in range(count)]


def test_s23_subscriptions_over_the_limit_of_a_connection_are_rate_limited(
    gateway: Gateway, bus: redis.Redis
) -> None:
    base = channels_on_the_bus(bus)
    with besieged(gateway), RawClient.welcomed(gateway, make_token("greedy")) as client:
        outcomes = outcomes_of_subscribing(client, 2000)
        fit = MAX_SUBSCRIPTIONS  # the inbox does not count
        assert outcomes == ["subbed"] * fit + ["rate_limited"] * (2000 - fit)
        assert channels_on_the_bus(bus) == base + fit
        client.say(op="unsub", ch="open:0", id=5000)
        client.hear_answer(5000)
        client.say(op="sub", ch="open:last", id=5001)
        assert client.hear_answer(5001)["op"] == "subbed"
    wait_until("no channel is subscribed on the bus", lambda: channels_on_the_bus(bus) == base, LIMIT_S)


def test_s23_channel_names_in_the_url_have_the_limit_of_subscriptions(
    gateway: Gateway, bus: redis.Redis
) -> None:
    base = channels_on_the_bus(bus)
    path = "/ws?" + "&".join(f"ch=open:{number}" for number in range(60))
    with RawClient(gateway) as client:
        assert client.ask(request(path, headers=[bearer(make_token("greedy"))])).status == 101
        ops = [client.hear() for _ in range(2 + 60)]
        assert sorted(said.get("error", said["op"]) for said in ops) == sorted(
            ["welcome"] + ["subbed"] * (1 + MAX_SUBSCRIPTIONS) + ["rate_limited"] * (60 - MAX_SUBSCRIPTIONS)
        )
    wait_until("no channel is subscribed on the bus", lambda: channels_on_the_bus(bus) == base, LIMIT_S)


def test_s23_channels_in_a_token_have_the_limit_of_subscriptions(gateway: Gateway, bus: redis.Redis) -> None:
    base = channels_on_the_bus(bus)
    token = make_token("greedy", channels=[f"open:{number}" for number in range(128)])
    with RawClient(gateway) as client:
        assert client.ask(request(headers=[bearer(token)])).status == 101
        assert client.hear()["op"] == "welcome"
        client.say(op="ping", id=1)
        client.hear_answer(1)
        assert channels_on_the_bus(bus) <= base + MAX_SUBSCRIPTIONS
    wait_until("no channel is subscribed on the bus", lambda: channels_on_the_bus(bus) == base, LIMIT_S)


@pytest.mark.parametrize("size", [201, 5_000, 60_000])
def test_s23_too_long_channel_name_is_a_bad_request_that_does_not_repeat_the_name(
    client: RawClient, size: int
) -> None:
    for op in ("sub", "unsub", "pub", "presence"):
        client.say(op=op, ch="open:" + "x" * size, data=1, id=1)
        said = client.hear_answer(1)
        assert (said["error"], "ch" in said) == ("bad_request", False)


def test_s23_command_with_a_channel_name_of_a_megabyte_closes_with_1009(client: RawClient) -> None:
    frame = client_frame(TEXT, b'{"op":"sub","ch":"' + b"x" * 1_000_000 + b'"}')
    # The header has the length. The gateway discards at most 256 KiB in a second, then it resets a peer that
    # continues to send; a busy machine may not send the rest before that.
    client.sock.sendall(frame[:200_000])
    assert client.ending() == (1009, [])


def churn(client: RawClient, pairs: int, names: int) -> None:
    """Subscribe and unsubscribe as fast as possible, 400 commands at a time."""
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


def test_s23_twenty_thousand_subscribes_and_unsubscribes_leave_the_accounts_as_before(
    gateway: Gateway, bus: redis.Redis
) -> None:
    base = channels_on_the_bus(bus)
    with besieged(gateway), RawClient.welcomed(gateway, make_token("restless")) as client:
        churn(client, 400, 30)  # after this, the memory that is kept for reuse exists
        wait_until("the first churn is over", lambda: channels_on_the_bus(bus) == base, LIMIT_S)
        fresh_counters(gateway)
        before = accounts_of_subscriptions(gateway)
        churn(client, 10_000, 30)
        assert client.sock.fileno() >= 0
        wait_until("no channel is subscribed on the bus", lambda: channels_on_the_bus(bus) == base, LIMIT_S)
        fresh_counters(gateway)
        assert accounts_of_subscriptions(gateway) == before


def test_s23_channels_and_inbox_of_vanished_connections_are_unsubscribed_on_the_bus(
    gateway: Gateway, bus: redis.Redis
) -> None:
    base = channels_on_the_bus(bus)
    with besieged(gateway):
        for _ in range(20):
            with RawClient.welcomed(gateway, make_token("fleeting")) as client:
                outcomes_of_subscribing(client, MAX_SUBSCRIPTIONS)
        wait_until("no channel is subscribed on the bus", lambda: channels_on_the_bus(bus) == base, LIMIT_S)
        inboxes = bus.pubsub_numsub("wsgate:ch:@fleeting")
        wait_until(
            "the inbox is unsubscribed", lambda: bus.pubsub_numsub("wsgate:ch:@fleeting")[0][1] == 0, LIMIT_S
        )
        assert inboxes
