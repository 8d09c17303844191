"""Run a gateway on every real kind of bus: sentinels, a cluster, TLS, and a user with few rights."""

import contextlib
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from redis.crc import key_slot
from redis.sentinel import Sentinel

from tests.support.bus_fleet import (
    HOST,
    Cluster,
    Sentinels,
    running_cluster,
    running_sentinels,
    running_server,
    tls_files,
)
from tests.support.client import Client, connected
from tests.support.gateway import Gateway, run_command, running_gateway, wait_until
from tests.support.raw_client import RawClient

pytestmark = pytest.mark.slow

WITHIN_S: Final = 30.0
CHANNELS: Final = [f"fleet:{number}" for number in range(60)]  # in the slots of every server
EVERYBODY: Final = {"WSGATE_LIMITS__MAX_SUBSCRIPTIONS": "1000"}


def subscribe(client: Client, *channels: str) -> None:
    for channel in channels:
        client.send(op="sub", ch=channel, id=1)
    for _ in channels:
        assert client.receive(WITHIN_S)["op"] == "subbed"


def published(gateway: Gateway, channel: str = "news") -> int:
    """Publish on the command line; return how many shards received it, or 0 when it failed."""
    done = gateway.run("publish", "--port", str(gateway.port), channel, "1", check=False)
    return int(done.stdout.removeprefix("received by ").split()[0]) if done.returncode == 0 else 0


def is_logged(gateway: Gateway, words: str) -> bool:
    return any(words in line for line in gateway.lines)


def assert_delivers(client: Client, publish: Any, channel: str) -> None:
    """Publish until a publication arrives: earlier ones may be lost, none arrives twice."""
    sent: list[str] = []
    seen: list[str] = []
    end_s = time.monotonic() + WITHIN_S
    while time.monotonic() < end_s:
        sent.append(f"{channel}-{time.monotonic_ns()}")
        with contextlib.suppress(redis.RedisError):
            publish(f"wsgate:ch:{channel}", json.dumps(sent[-1]))
        with contextlib.suppress(TimeoutError):
            while True:
                seen += client.heard(1, 0.1)
        if seen and seen[-1] == sent[-1]:
            assert len(set(seen)) == len(seen)
            return
    raise AssertionError(f"nothing published to {channel} arrives any more")


# --- sentinels ----------------------------------------------------------------------------------------


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    with running_sentinels() as fleet:
        yield fleet


def test_sentinel_failover_moves_the_bus_and_closes_no_client(sentinels: Sentinels) -> None:
    with (
        running_gateway(environ={"WSGATE_BUS__URL": sentinels.url}) as gateway,
        connected(gateway.ws_url, 2) as clients,
    ):
        listener, speaker = clients
        hosts = [(HOST, watcher.port) for watcher in sentinels.watchers]
        make: Any = Sentinel
        backend = make(hosts, socket_timeout=1).master_for(sentinels.name, socket_timeout=1)
        subscribe(listener, "news")
        assert_delivers(listener, backend.publish, "news")
        former = sentinels.primary()
        former.kill()
        sentinels.await_primary_other_than(former)
        new_s = time.monotonic()
        assert_delivers(listener, backend.publish, "news")
        assert time.monotonic() - new_s < 5.0, "promised within 2 s"
        gateway.await_ready()
        speaker.send(op="pub", ch="news", data="through the new one", id=7)
        assert speaker.receive(WITHIN_S) == {"op": "ok", "id": 7}
        assert listener.receive(WITHIN_S)["data"] == "through the new one"
        # Not every sentinel has the new primary at once, and the command line tries once.
        wait_until("the command line finds the new primary", lambda: published(gateway) == 1, WITHIN_S)


def test_primary_that_hangs_is_replaced_and_not_used_again_as_a_replica(sentinels: Sentinels) -> None:
    environ = {"WSGATE_BUS__URL": sentinels.url, "WSGATE_BUS__COMMAND_TIMEOUT": "1s"}
    with running_gateway(environ=environ) as gateway, connected(gateway.ws_url, 1) as (listener,):
        subscribe(listener, "news")
        former = sentinels.primary()
        former.pause()
        try:
            fresh = sentinels.await_primary_other_than(former)
            assert_delivers(listener, fresh.client().publish, "news")
        finally:
            former.resume()
        # It continues as a primary, becomes a replica, and no client returns to it.
        wait_until("the former primary is a replica", lambda: former.role() == "slave", WITHIN_S)
        assert_delivers(listener, fresh.client().publish, "news")


def test_absent_sentinels_are_logged_without_the_password() -> None:
    url = f"redis+sentinel://:hunter2@{HOST}:1,{HOST}:2/main"
    with running_gateway(environ={"WSGATE_BUS__URL": url}, wait=False) as gateway:
        wait_until("it is logged", partial(is_logged, gateway, "no primary 'main'"), WITHIN_S)
        assert gateway.why_not_ready()
        assert not is_logged(gateway, "hunter2")


# --- a cluster ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as fleet:
        yield fleet


@pytest.fixture(scope="module")
def gateway(cluster: Cluster) -> Iterator[Gateway]:
    with running_gateway(environ=EVERYBODY | {"WSGATE_BUS__URL": cluster.url}) as running:
        yield running


@pytest.fixture
def listener(gateway: Gateway) -> Iterator[Client]:
    with connected(gateway.ws_url, 1) as (client,):
        subscribe(client, *CHANNELS)
        yield client


def test_cluster_delivers_channels_in_the_slots_of_every_server(
    cluster: Cluster, gateway: Gateway, listener: Client
) -> None:
    assert {cluster.owner_of(f"wsgate:ch:{channel}").port for channel in CHANNELS} == {
        server.port for server in cluster.servers[:3]
    }
    bus = cluster.client()
    for number, channel in enumerate(CHANNELS):
        assert bus.spublish(f"wsgate:ch:{channel}", number) == 1
    heard = [listener.receive(WITHIN_S) for _ in CHANNELS]
    assert {row["ch"]: row["data"] for row in heard} == {channel: n for n, channel in enumerate(CHANNELS)}
    for channel in CHANNELS:
        listener.send(op="pub", ch=channel, data=channel, id=3)
    rows = [listener.receive(WITHIN_S) for _ in range(2 * len(CHANNELS))]
    assert sorted(row["data"] for row in rows if row["op"] == "msg") == sorted(CHANNELS)
    assert published(gateway, CHANNELS[0]) == 1
    assert listener.receive(WITHIN_S)["data"] == 1


def test_cluster_channels_without_subscribers_are_unsubscribed_on_every_server(
    cluster: Cluster, gateway: Gateway, listener: Client
) -> None:
    def subscribed() -> set[bytes]:
        found: set[bytes] = set()
        for server in cluster.living():
            found |= set(server.client().execute_command("PUBSUB SHARDCHANNELS", "wsgate:ch:*"))
        return found

    assert subscribed() == {f"wsgate:ch:{channel}".encode() for channel in CHANNELS}
    for channel in CHANNELS[1:]:
        listener.send(op="unsub", ch=channel)
    wait_until(
        "they are unsubscribed", lambda: subscribed() == {f"wsgate:ch:{CHANNELS[0]}".encode()}, WITHIN_S
    )


def test_channels_of_a_moved_cluster_slot_are_delivered_from_the_new_server(
    cluster: Cluster, listener: Client
) -> None:
    bus = cluster.client()
    for channel in CHANNELS[:3]:
        name = f"wsgate:ch:{channel}"
        source = cluster.owner_of(name)
        target = next(server for server in cluster.servers[:3] if server is not source)
        cluster.move(key_slot(name.encode()), target)
        assert_delivers(listener, bus.spublish, channel)
        listener.send(op="pub", ch=channel, data="after the move", id=4)
        rows = [listener.receive(WITHIN_S), listener.receive(WITHIN_S)]
        assert sorted(row["op"] for row in rows) == ["msg", "ok"]
        cluster.move(key_slot(name.encode()), source)
        assert_delivers(listener, bus.spublish, channel)


def test_channels_of_living_cluster_servers_are_delivered_while_another_server_is_dead(
    cluster: Cluster, gateway: Gateway, listener: Client
) -> None:
    dead = cluster.owner_of(f"wsgate:ch:{CHANNELS[0]}")
    others = [name for name in CHANNELS if cluster.owner_of(f"wsgate:ch:{name}") is not dead]
    direct = cluster.owner_of(f"wsgate:ch:{others[0]}").client()
    dead.kill()
    assert_delivers(listener, direct.spublish, others[0])
    slot = key_slot(f"wsgate:ch:{CHANNELS[0]}".encode())
    wait_until("the replica takes over", lambda: cluster.owner(slot) not in (None, dead), WITHIN_S)
    new_s = time.monotonic()
    assert_delivers(listener, cluster.client().spublish, CHANNELS[0])
    assert time.monotonic() - new_s < 5.0, "promised within 2 s"
    for channel in CHANNELS:
        assert_delivers(listener, cluster.client().spublish, channel)
    gateway.await_ready()


# --- TLS and users ------------------------------------------------------------------------------------


def test_bus_behind_tls_works_only_with_its_authority_and_a_client_certificate(tmp_path: Path) -> None:
    files, others = tls_files(tmp_path), tls_files(tmp_path, "stranger")
    with running_server(tls=files) as server:
        address = f"rediss://{HOST}:{server.settings['tls-port']}"
        with (
            running_gateway(environ={"WSGATE_BUS__URL": f"{address}?{files.options}"}) as gateway,
            connected(gateway.ws_url, 1) as (client,),
        ):
            subscribe(client, "news")
            client.send(op="pub", ch="news", data="sealed", id=1)
            assert sorted(client.receive(WITHIN_S)["op"] for _ in range(2)) == ["msg", "ok"]
            assert published(gateway) == 1
        # No authority, another authority, the right one without a client certificate, a missing file.
        for authority in ("", others.authority, files.authority, "/none"):
            url = address + (f"?ssl_ca_certs={authority}" if authority else "")
            with running_gateway(environ={"WSGATE_BUS__URL": url}, wait=False) as refused:
                wait_until("it is logged", partial(is_logged, refused, "bus_failed"), WITHIN_S)
                assert refused.why_not_ready()


def test_bus_user_with_rights_on_its_prefix_only_is_enough_and_its_password_stays_hidden(
    tmp_path: Path,
) -> None:
    password = tmp_path / "password"
    password.write_text("a password from a file\n")
    password.chmod(0o600)
    may = ["&wsgate:*", "~wsgate:*", "-@all", "+publish", "+subscribe", "+unsubscribe", "+ping"]
    may += ["+evalsha", "+eval", "+zadd", "+zcard", "+zrange", "+zrem", "+expire", "+exists"]
    may += ["+get", "+set", "+del", "+time", "+pttl", "+pexpire"]
    may += ["+zrangebyscore", "+zremrangebyscore"]
    with running_server() as server:
        secret = f">{password.read_text().strip()}"
        server.client().execute_command("ACL", "SETUSER", "gate", "on", secret, "resetchannels", *may)
        environ = {
            "WSGATE_BUS__URL": f"redis://gate@{HOST}:{server.port}",
            "WSGATE_BUS__PASSWORD_FILE": str(password),
            "WSGATE_ADMISSION__PER_USER_CONNECTIONS": "1",
            "WSGATE_ADMISSION__PER_USER_RATE": "5",
        }
        with running_gateway(environ=environ) as gateway, connected(gateway.ws_url, 1) as (client,):
            subscribe(client, "news")
            assert_delivers(client, server.client().publish, "news")
            gateway.await_ready()
            assert not is_logged(gateway, "a password")
            assert published(gateway) == 1
            with RawClient.welcomed(gateway, gateway.token("ann")) as first:
                first.say_at_once(
                    *({"op": "pub", "ch": "news", "data": number, "id": number} for number in range(1, 10))
                )
                answers = [first.hear()["op"] for _ in range(1, 10)]
                assert "err" in answers, "no command exceeded the rate of five per second"
                with RawClient.welcomed(gateway, gateway.token("ann")):
                    assert first.ending().code == 4509
            assert gateway.stop() == 0
            refused = server.client().execute_command("ACL", "LOG")
            assert refused == [], "the gateway sent a command that it may not use"
    environ["WSGATE_SERVER__DEV"] = "true"
    assert "a password" not in run_command("check-config", directory=tmp_path, environ=environ).stdout
