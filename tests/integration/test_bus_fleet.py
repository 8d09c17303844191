"""A gateway on every kind of bus: sentinels, a cluster, TLS, a user that may do little. All of it real."""

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
CHANNELS: Final = [f"fleet:{number}" for number in range(60)]  # in slots of every server
EVERYBODY: Final = {"WSGATE_LIMITS__MAX_SUBSCRIPTIONS": "1000"}


def subscribe(client: Client, *channels: str) -> None:
    for channel in channels:
        client.send(op="sub", ch=channel, id=1)
    for _ in channels:
        assert client.receive(WITHIN_S)["op"] == "subbed"


def published(gateway: Gateway, channel: str = "news") -> int:
    """How many shards heard one publication of the command line; 0: it failed, and says so."""
    done = gateway.run("publish", "--port", str(gateway.port), channel, "1", check=False)
    return int(done.stdout.removeprefix("received by ").split()[0]) if done.returncode == 0 else 0


def is_said(gateway: Gateway, words: str) -> bool:
    return any(words in line for line in gateway.lines)


def hears(client: Client, publish: Any, channel: str) -> None:
    """What is published to a channel arrives, from now on: earlier ones may be lost, none comes twice."""
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


def test_a_failover_moves_the_bus_and_no_client_notices(sentinels: Sentinels) -> None:
    with (
        running_gateway(environ={"WSGATE_BUS__URL": sentinels.url}) as gateway,
        connected(gateway.ws_url, 2) as clients,
    ):
        listener, speaker = clients
        hosts = [(HOST, watcher.port) for watcher in sentinels.watchers]
        make: Any = Sentinel
        backend = make(hosts, socket_timeout=1).master_for(sentinels.name, socket_timeout=1)
        subscribe(listener, "news")
        hears(listener, backend.publish, "news")
        former = sentinels.primary()
        former.kill()
        sentinels.await_primary_other_than(former)
        new_s = time.monotonic()
        hears(listener, backend.publish, "news")
        assert time.monotonic() - new_s < 5.0, "promised within 2 s"
        gateway.await_ready()
        speaker.send(op="pub", ch="news", data="through the new one", id=7)
        assert speaker.receive(WITHIN_S) == {"op": "ok", "id": 7}
        assert listener.receive(WITHIN_S)["data"] == "through the new one"
        # Not every sentinel knows the new one at once, and a command tries once.
        wait_until("the command finds it", lambda: published(gateway) == 1, WITHIN_S)


def test_a_primary_that_hangs_is_left_for_the_next_one(sentinels: Sentinels) -> None:
    environ = {"WSGATE_BUS__URL": sentinels.url, "WSGATE_BUS__COMMAND_TIMEOUT": "1s"}
    with running_gateway(environ=environ) as gateway, connected(gateway.ws_url, 1) as (listener,):
        subscribe(listener, "news")
        former = sentinels.primary()
        former.pause()
        try:
            fresh = sentinels.await_primary_other_than(former)
            hears(listener, fresh.client().publish, "news")
        finally:
            former.resume()
        # It wakes up as what it was, is told that it is a replica now, and nobody goes back to it.
        wait_until("it is a replica", lambda: former.role() == "slave", WITHIN_S)
        hears(listener, fresh.client().publish, "news")


def test_sentinels_that_are_away_or_wrong_are_said_in_the_log() -> None:
    url = f"redis+sentinel://:hunter2@{HOST}:1,{HOST}:2/main"
    with running_gateway(environ={"WSGATE_BUS__URL": url}, wait=False) as gateway:
        wait_until("it is said", partial(is_said, gateway, "no primary 'main'"), WITHIN_S)
        assert gateway.why_not_ready()
        assert not is_said(gateway, "hunter2")


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


def test_every_channel_is_heard_wherever_it_lives(
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


def test_what_nobody_listens_to_any_more_is_left(
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
    wait_until("they are left", lambda: subscribed() == {f"wsgate:ch:{CHANNELS[0]}".encode()}, WITHIN_S)


def test_a_slot_that_moves_takes_its_channels_along(cluster: Cluster, listener: Client) -> None:
    bus = cluster.client()
    for channel in CHANNELS[:3]:
        name = f"wsgate:ch:{channel}"
        source = cluster.owner_of(name)
        target = next(server for server in cluster.servers[:3] if server is not source)
        cluster.move(key_slot(name.encode()), target)
        hears(listener, bus.spublish, channel)
        listener.send(op="pub", ch=channel, data="after the move", id=4)
        rows = [listener.receive(WITHIN_S), listener.receive(WITHIN_S)]
        assert sorted(row["op"] for row in rows) == ["msg", "ok"]
        cluster.move(key_slot(name.encode()), source)
        hears(listener, bus.spublish, channel)


def test_a_server_that_dies_takes_nobody_elses_channels_along(
    cluster: Cluster, gateway: Gateway, listener: Client
) -> None:
    dead = cluster.owner_of(f"wsgate:ch:{CHANNELS[0]}")
    others = [name for name in CHANNELS if cluster.owner_of(f"wsgate:ch:{name}") is not dead]
    direct = cluster.owner_of(f"wsgate:ch:{others[0]}").client()
    dead.kill()
    hears(listener, direct.spublish, others[0])
    slot = key_slot(f"wsgate:ch:{CHANNELS[0]}".encode())
    wait_until("its replica takes over", lambda: cluster.owner(slot) not in (None, dead), WITHIN_S)
    new_s = time.monotonic()
    hears(listener, cluster.client().spublish, CHANNELS[0])
    assert time.monotonic() - new_s < 5.0, "promised within 2 s"
    for channel in CHANNELS:
        hears(listener, cluster.client().spublish, channel)
    gateway.await_ready()


# --- TLS and users ------------------------------------------------------------------------------------


def test_a_bus_behind_tls_with_a_private_authority(tmp_path: Path) -> None:
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
        # Nobody's authority, a stranger's, the right one without a certificate of ours, none at all.
        for authority in ("", others.authority, files.authority, "/none"):
            url = address + (f"?ssl_ca_certs={authority}" if authority else "")
            with running_gateway(environ={"WSGATE_BUS__URL": url}, wait=False) as refused:
                wait_until("it is said", partial(is_said, refused, "bus_failed"), WITHIN_S)
                assert refused.why_not_ready()


def test_a_user_of_the_bus_needs_no_more_than_its_prefix(tmp_path: Path) -> None:
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
            hears(client, server.client().publish, "news")
            gateway.await_ready()
            assert not is_said(gateway, "a password")
            assert published(gateway) == 1
            with RawClient.welcomed(gateway, gateway.token("ann")) as first:
                first.say_at_once(
                    *({"op": "pub", "ch": "news", "data": number, "id": number} for number in range(1, 10))
                )
                answers = [first.hear()["op"] for _ in range(1, 10)]
                assert "err" in answers, "a second's worth is five"
                with RawClient.welcomed(gateway, gateway.token("ann")):
                    assert first.ending().code == 4509
            assert gateway.stop() == 0
            refused = server.client().execute_command("ACL", "LOG")
            assert refused == [], "it asked for more than it may"
    environ["WSGATE_SERVER__DEV"] = "true"
    assert "a password" not in run_command("check-config", directory=tmp_path, environ=environ).stdout
