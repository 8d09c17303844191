"""Answer every command of a gateway with malformed RESP: no client is harmed, and it recovers (S26)."""

import contextlib
import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Final

import pytest
import redis
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.client import Client, connected
from tests.support.gateway import Gateway, running_gateway, wait_until
from tests.support.hostile_bus import HostileBus, hostile_bus
from tests.support.valkey import Valkey, running_valkey

pytestmark = pytest.mark.slow

HOSTILE_S: Final = 6.0
REPLIES_LEAST: Final = 40
ACCEPTED_MOST: Final = 600
"""Connections in the whole test: two shards with about four each, which back off."""
WITHIN_S: Final = 40.0
ENVIRON: Final = {
    "WSGATE_BUS__CONNECT_TIMEOUT": "1s",
    "WSGATE_BUS__COMMAND_TIMEOUT": "1s",
    "WSGATE_HEALTH__CANARY_INTERVAL": "1s",
    "WSGATE_EVENTS__ENABLED": "connected disconnected subscribed message",
    "WSGATE_ADMISSION__PER_USER_CONNECTIONS": "3",
    "WSGATE_ADMISSION__PER_USER_RATE": "1000",
}
ASKED: Final = {"PING", "EVALSHA", "XADD"}
ASKED_BY_KIND: Final = {
    "single": {"SUBSCRIBE", "PUBLISH"},
    "sentinel": {"SUBSCRIBE", "PUBLISH", "SENTINEL", "ROLE"},
    "cluster": {"SSUBSCRIBE", "SPUBLISH", "CLUSTER"},
}
FAULTS: Final = ("Traceback", "task_failed", "callback_failed", "command_failed", " died ")


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


def publish(gateway: Gateway) -> None:
    """Publish through the API and check that there is an answer of any kind."""
    body = json.dumps({"channel": "news", "data": 1}).encode()
    request = urllib.request.Request(f"{gateway.admin_url}/api/publish", body)
    with urllib.request.urlopen(request, timeout=WITHIN_S) as answer:
        assert set(json.loads(answer.read())) & {"result", "error"}


def assert_ping_answered(client: Client, number: int) -> None:
    """Assert that a ping has its pong; all messages before it are answers or publications."""
    client.send("ping", id=number)
    end_s = time.monotonic() + WITHIN_S
    while (said := client.receive(WITHIN_S)) != {"op": "pong", "id": number}:
        assert said["op"] in ("err", "msg", "ok", "subbed", "unsubbed", "gap"), said
        assert time.monotonic() < end_s


def use_hostile_bus(gateway: Gateway, bus: HostileBus, clients: list[Client], token: str) -> None:
    """Send commands of every kind while the bus is hostile, until it sent enough wrong replies."""
    end_s, number = time.monotonic() + HOSTILE_S, 0
    while time.monotonic() < end_s or (bus.commands.total() < REPLIES_LEAST and number < 200):
        number += 1
        for place, client in enumerate(clients):
            client.send("pub", ch="news", data=number, id=3 * number)
            client.send("sub" if number % 2 else "unsub", ch=f"c:{place}:{number // 2}", id=3 * number + 1)
            client.send("send", data=number, id=3 * number + 2)
            assert_ping_answered(client, number)
        publish(gateway)
        # New connections are accepted or refused; they always have an answer.
        with contextlib.suppress(ConnectionClosed, InvalidStatus, TimeoutError):
            with connected(gateway.ws_url, token=token):
                pass


@pytest.mark.parametrize("kind", ["single", "sentinel", "cluster"])
@pytest.mark.parametrize("seed", [1, 2])
def test_gateway_survives_malformed_replies_of_the_bus_and_uses_it_again_when_it_is_sane(
    valkey: Valkey, kind: str, seed: int
) -> None:
    with (
        hostile_bus((valkey.host, valkey.port), seed) as bus,
        running_gateway("--redis", bus.url(kind), "--shards", "2", environ=ENVIRON) as gateway,
    ):
        gateway.await_ready()
        tokens = [gateway.token(f"u{number}") for number in range(3)]
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connected(gateway.ws_url, token=each))[0] for each in tokens]
            processes = gateway.children()
            bus.turn(is_hostile=True)
            use_hostile_bus(gateway, bus, clients, gateway.token("newcomer"))
            assert bus.accepted >= 5, "the gateway did not reconnect"
            assert bus.commands.keys() >= ASKED | ASKED_BY_KIND[kind], "a command was not sent"
            assert bus.accepted <= ACCEPTED_MOST, "the gateway reconnected without a pause"
            bus.turn(is_hostile=False)
            gateway.await_ready(WITHIN_S)
            with redis.Redis(port=valkey.port) as backend:
                for place, client in enumerate(clients):
                    assert_ping_answered(client, 1_000_000 + place)
                    client.send("sub", ch="after", id=9)
                    wait_until("subscribed", lambda client=client: _is_subbed(client), WITHIN_S)  # type: ignore[misc]
                backend.execute_command(
                    "SPUBLISH" if kind == "cluster" else "PUBLISH", "wsgate:ch:after", "7"
                )
                assert [_next(client, "msg")["data"] for client in clients] == [7, 7, 7]
            assert gateway.children() == processes, "a process died"
        assert not [line for line in gateway.lines if any(fault in line for fault in FAULTS)]


@pytest.mark.parametrize("kind", ["single", "sentinel", "cluster"])
def test_gateway_started_on_a_hostile_bus_is_ready_when_the_bus_is_sane(valkey: Valkey, kind: str) -> None:
    with hostile_bus((valkey.host, valkey.port), 3) as bus:
        bus.turn(is_hostile=True)
        with running_gateway(
            "--redis", bus.url(kind), "--shards", "1", environ=ENVIRON, wait=False
        ) as gateway:
            wait_until("the bus has answered ten commands", lambda: bus.commands.total() >= 10, WITHIN_S)
            processes = gateway.children()
            bus.turn(is_hostile=False)
            gateway.await_ready(WITHIN_S)
            assert gateway.children() == processes
        assert not [line for line in gateway.lines if any(fault in line for fault in FAULTS)]


def _is_subbed(client: Client) -> bool:
    said = client.receive(WITHIN_S)
    if said["op"] == "err" and said.get("id") == 9:
        time.sleep(0.1)
        client.send("sub", ch="after", id=9)
    return bool(said["op"] == "subbed" and said["ch"] == "after")


def _next(client: Client, op: str) -> dict[str, object]:
    while (said := client.receive(WITHIN_S))["op"] != op:
        pass
    return said
