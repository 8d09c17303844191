"""Give the user of the bus the rights that protocols/bus/v1 documents, on every kind of server.

Each line is taken from the page and executed as it is. The gateway then uses all its features, and the log of
refused commands of the server stays empty.
"""

import asyncio
import contextlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import redis
import uvloop

from tests.support.bus_fleet import Cluster, Sentinels, running_cluster, running_sentinels, running_server
from tests.support.client import Client, connected
from tests.support.fake_bus import until
from tests.support.gateway import Gateway, running_gateway, wait_until
from tests.support.raw_client import RawClient
from tests.support.valkey import running_valkey
from wsgate.bus import Names, make_publisher, parse_address
from wsgate.bus.revocations import Revocation, load_revocations, store_revocation

SPEC: Final = Path(__file__).resolve().parents[2] / "protocols" / "bus" / "v1" / "spec.md"
LINES: Final = re.findall(r"^ACL SETUSER .*$", SPEC.read_text(encoding="utf-8"), re.MULTILINE)
EVERYWHERE, OF_SENTINELS, OF_CLUSTERS = LINES
PASSWORD: Final = "a-password-of-the-bus"
WITHIN_S: Final = 30.0
FEATURES: Final = {
    "WSGATE_EVENTS__ENABLED": "connected disconnected subscribed unsubscribed message",
    "WSGATE_EVENTS__PUBSUB": "true",
    "WSGATE_ADMISSION__PER_USER_CONNECTIONS": "1",
    "WSGATE_ADMISSION__PER_USER_RATE": "20",
}


def allow(client: Any, *lines: str) -> None:
    """Execute lines of the page, and clear the log of refused commands."""
    for line in lines:
        client.execute_command(*line.replace("PASSWORD", PASSWORD).split())
    client.execute_command("ACL", "LOG", "RESET")


def refused(client: Any) -> list[Any]:
    """Return the commands that the server refused to the user.

    The library that claims the node name tries to name itself, and does not need that.
    """
    rows: list[Any] = client.execute_command("ACL", "LOG")
    return [row for row in rows if row[b"object"] != b"client|setinfo"]


def with_user(url: str) -> str:
    """Return a bus URL with the user of the gateway."""
    return url.replace("://", f"://wsgate:{PASSWORD}@", 1)


@contextlib.contextmanager
def running(kind: str) -> Iterator[tuple[str, Any]]:
    if kind == "valkey":
        with running_valkey() as valkey, redis.Redis(port=valkey.port) as client:
            yield valkey.url, client
    else:
        with running_server() as server, server.client() as client:
            yield f"redis://127.0.0.1:{server.port}", client


def is_sent(client: RawClient) -> bool:
    """Send one message to backends; return whether it was accepted."""
    client.say(op="send", data="event", id=99)
    return bool(client.hear_answer(99)["op"] == "ok")


def use_everything(gateway: Gateway, client: Client, publish: Any) -> None:
    """Subscribe, publish, send, exceed a limit, be disconnected: use every feature that needs the bus."""
    gateway.await_ready()
    client.subscribe("news")
    publish("wsgate:ch:news", "1")
    assert client.heard(1, WITHIN_S) == [1]
    client.send("unsub", ch="news", id=2)
    assert client.receive()["op"] == "unsubbed"
    with RawClient.welcomed(gateway, gateway.token("ann")) as first:
        first.say_at_once(
            *({"op": "pub", "ch": "news", "data": number, "id": number} for number in range(1, 41))
        )
        answers = [first.hear()["op"] for _ in range(40)]
        assert "err" in answers and "ok" in answers, "the rate limit was not checked"
        wait_until("a message is accepted when the rate allows it", partial(is_sent, first), WITHIN_S)
        with RawClient.welcomed(gateway, gateway.token("ann")) as second:
            assert first.ending().code == 4509, "connections were not counted"
            publish("wsgate:ctl", '{"op":"disconnect","user":"ann"}')
            assert second.ending().code == 4520, "the control command had no effect"


async def store_and_load_a_revocation(url: str) -> None:
    """Store a revocation and read it, as the user of the gateway."""
    publisher, parts = make_publisher(
        parse_address(url), connect_timeout_s=20, command_timeout_s=20, on_failed=lambda why: None
    )
    tasks = [asyncio.ensure_future(part.run()) for part in parts]
    names, outcomes, found = Names("wsgate"), list[str](), list[Revocation]()
    revocation = Revocation("revoked", 4_000_000_000.0)
    try:
        await until("there", lambda: _is_stored(publisher, names, revocation, outcomes))
        done: list[str] = []
        load_revocations(publisher, names, found.append, done.append)
        await until("read", lambda: done)
        assert done == [""]
        assert revocation in found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await publisher.close()


def _is_stored(publisher: Any, names: Names, revocation: Revocation, outcomes: list[str]) -> bool:
    """Store once at a time; the map of a cluster may not be loaded yet."""
    if "" in outcomes:
        return True
    assert "refused" not in outcomes
    if not outcomes or outcomes[-1] == "down":
        outcomes.append("asked")
        store_revocation(
            publisher, names, revocation, lambda outcome, text: outcomes.__setitem__(-1, outcome)
        )
    return False


def test_acl_line_of_the_specification_has_the_syntax_of_redis_6_2() -> None:
    """Redis 6.2 refuses a pattern behind "all channels", and has no permissions with `%` and no selectors."""
    parts = EVERYWHERE.split()
    patterns = [place for place, part in enumerate(parts) if part.startswith("&")]
    assert patterns and parts.index("resetchannels") < min(patterns)
    assert not [part for part in parts if part.startswith(("%", "(")) or "|" in part]
    assert parts.index("-@all") < min(place for place, part in enumerate(parts) if part.startswith("+"))
    sharded = {"+spublish", "+ssubscribe", "+sunsubscribe"}
    assert not sharded & set(parts), "Redis 6.2 has no sharded channels"
    assert sharded < set(OF_CLUSTERS.split())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_documented_rights_suffice_for_every_feature_on_one_server(kind: str) -> None:
    with running(kind) as (url, client):
        allow(client, EVERYWHERE, EVERYWHERE)
        environ = FEATURES | {"WSGATE_BUS__URL": with_user(url)}
        with running_gateway(environ=environ) as gateway, connected(gateway.ws_url) as (peer,):
            use_everything(gateway, peer, client.publish)
            uvloop.run(store_and_load_a_revocation(with_user(url)))
            wait_until("events are stored", lambda: client.xlen("wsgate:events:0") >= 4, WITHIN_S)
            assert gateway.stop() == 0
        assert refused(client) == []
        assert not [line for line in gateway.lines if "refuses" in line]


def test_every_documented_right_is_used_in_the_source() -> None:
    """A right that the source does not use must not be documented."""
    of_the_library = {"command"}
    folder = SPEC.parents[3] / "wsgate"
    files = [*folder.glob("bus/*.py"), *folder.glob("bus/scripts/*.lua"), *folder.glob("shard/*.py")]
    source = "\n".join(file.read_text(encoding="utf-8") for file in files).lower()
    for line in LINES:
        for right in (part[1:] for part in line.split() if part.startswith("+")):
            word = right.partition("|")[0]
            if word in of_the_library:
                continue
            # The `s` of sharded channels is put before the word where a command is sent.
            plain = word[1:] if word in ("spublish", "ssubscribe", "sunsubscribe") else word
            assert re.search(rf"""["'\\n]s?{plain}\b""", source), right


@pytest.mark.slow
def test_documented_rights_suffice_for_every_feature_behind_sentinels() -> None:
    with running_sentinels() as fleet:
        _use_fleet(fleet, [server.client() for server in fleet.servers], OF_SENTINELS)


@pytest.mark.slow
def test_documented_rights_suffice_for_every_feature_on_a_cluster() -> None:
    with running_cluster() as fleet:
        _use_fleet(fleet, [server.client() for server in fleet.servers], OF_CLUSTERS)


def _use_fleet(fleet: Sentinels | Cluster, clients: list[Any], line: str) -> None:
    for client in clients:
        allow(client, EVERYWHERE, line)
    url = with_user(fleet.url)
    if isinstance(fleet, Cluster):
        speaker = fleet.client()

        def publish(name: str, data: str) -> None:
            speaker.spublish(name, data)
    else:
        publish = fleet.primary().client().publish
    environ = FEATURES | {"WSGATE_BUS__URL": url}
    with running_gateway(environ=environ) as gateway, connected(gateway.ws_url) as (peer,):
        use_everything(gateway, peer, publish)
        uvloop.run(store_and_load_a_revocation(url))
        assert gateway.stop() == 0
        assert not [line for line in gateway.lines if "node_name_unchecked" in line]
    assert [refused(client) for client in clients] == [[]] * len(clients)


OURS: Final = "&wsgate:ctl* &wsgate:probe:* &wsgate:ch:@*"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_channel_that_the_bus_forbids_is_refused_finally_and_others_stay_subscribed(kind: str) -> None:
    """A client that requests a forbidden channel receives the cause and interrupts no other client."""
    with running(kind) as (url, client):
        allow(client, EVERYWHERE, f"ACL SETUSER wsgate resetchannels {OURS} &wsgate:ch:open*")
        environ = {"WSGATE_BUS__URL": with_user(url)}
        with running_gateway(environ=environ) as gateway, connected(gateway.ws_url) as (good,):
            gateway.await_ready()
            good.subscribe("open1")
            with RawClient.welcomed(gateway, gateway.token("ann")) as other:
                for number, channel in enumerate(("secret", "open2", "secret")):
                    other.say(op="sub", ch=channel, id=number)
                answers = {said["id"]: said for said in (other.hear() for _ in range(3))}
                assert answers[1]["op"] == "subbed"
                assert {answers[number].get("error") for number in (0, 2)} == {"permission_denied"}
                assert (answers[0]["code"], answers[0]["ch"], "retry_ms" in answers[0]) == (
                    403,
                    "secret",
                    False,
                )
            client.publish("wsgate:ch:open1", "1")
            assert good.heard(1, WITHIN_S) == [1]
            assert gateway.metric("wsgate_bus_failures_total") == 0
            name = "wsgate_subscriptions_refused_total"
            wait_until("it is in the metrics", lambda: gateway.metric(name, cause="forbidden") >= 1, WITHIN_S)
            assert [line for line in gateway.lines if "bus_forbids_channel" in line]
            # A channel that becomes forbidden: the server cuts the shard, which subscribes to the rest again.
            allow(client, f"ACL SETUSER wsgate resetchannels {OURS} &wsgate:ch:open2")
            while (said := good.receive(WITHIN_S))["op"] != "unsubbed":
                assert said["op"] == "gap"
            assert (said["ch"], said["code"], said["resubscribe"]) == ("open1", 4503, False)
            assert said["reason"] == "permission_denied"
