"""Kill, slow, fill, cut off and move the bus of a whole gateway: client sockets stay, and it recovers."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.client import Client, connected
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.gateway import Gateway, running_gateway, wait_until
from tests.support.packages import find_or_install
from tests.support.valkey import Valkey, running_valkey

pytestmark = pytest.mark.slow

WITHIN_S = 30.0  # a limit that no healthy run reaches
QUICK = {
    "WSGATE_BUS__CONNECT_TIMEOUT": "1s",
    "WSGATE_BUS__COMMAND_TIMEOUT": "1s",
    "WSGATE_HEALTH__CANARY_INTERVAL": "1s",
    "WSGATE_LIMITS__PUBLISH_RATE": "0",  # clients publish as fast as they are answered
}
SHIM = Path(__file__).resolve().parents[1] / "support" / "resolver_shim.c"
MARK = "wsgate:ch:"


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(valkey: Valkey) -> Iterator[Gateway]:
    """Start a gateway on a Valkey that tests kill; each test leaves both ready."""
    with running_gateway("--redis", valkey.url, "--shards", "2", environ=QUICK) as running:
        yield running


@pytest.fixture
def backend(valkey: Valkey, gateway: Gateway) -> Iterator[redis.Redis]:
    gateway.await_ready()
    with redis.Redis(port=valkey.port, decode_responses=True) as client:
        yield client


def bus_is_down(gateway: Gateway) -> bool:
    return any("bus_down" in why or "probe_late" in why for why in gateway.why_not_ready())


def channels(backend: redis.Redis) -> set[str]:
    """Return the channels that the shards are subscribed to."""
    return {str(name) for name in backend.pubsub_channels(MARK + "*")}


def subscribe_all(clients: list[Client], names: list[str]) -> None:
    """Subscribe each client to a channel of its own, and all clients to the last channel."""
    for client, name in zip(clients, names, strict=False):
        client.subscribe(name)
        client.subscribe(names[-1])


def say(backend: redis.Redis, channel: str, data: int) -> None:
    backend.publish(MARK + channel, str(data))


def assert_all_channels_deliver(
    backend: redis.Redis, clients: list[Client], names: list[str], data: int
) -> None:
    wait_until("subscribed again", lambda: channels(backend) >= {MARK + name for name in names}, WITHIN_S)
    for name in names:
        say(backend, name, data)
    for client in clients:
        assert client.heard(2) == [data, data]


def answer_to(client: Client, op: str, number: int, **fields: object) -> dict[str, object]:
    """Send a command and return its answer; before it only publications and gaps may arrive."""
    client.send(op, id=number, **fields)
    while (said := client.receive()).get("op") in ("msg", "gap"):
        pass
    assert said.get("id") == number, said
    return said


def wait_for_publish(client: Client, channel: str) -> None:
    """Publish until it succeeds; a client that receives 503 tries again."""
    numbers = iter(range(10_000, 11_000))
    wait_until(
        "a publish succeeds",
        lambda: answer_to(client, "pub", next(numbers), ch=channel, data=0)["op"] == "ok",
        WITHIN_S,
    )


# --- the bus is gone and returns ----------------------------------------------------------------------


def test_bus_that_is_killed_and_restarted_empty_closes_no_client_and_is_resubscribed(
    gateway: Gateway, valkey: Valkey, backend: redis.Redis
) -> None:
    names = [*(f"own:{number}" for number in range(12)), "room"]
    with connected(gateway.ws_url, 12) as clients:
        subscribe_all(clients, names)
        assert_all_channels_deliver(backend, clients, names, 1)
        before = channels(backend)
        valkey.stop()
        wait_until("not ready", lambda: bus_is_down(gateway), WITHIN_S)
        for client in clients:
            # A publish that was sent before the bus died may have another outcome; this one is sent after.
            said = answer_to(client, "pub", 3, ch="room", data=1)
            assert (said["op"], said["code"], said["error"]) == ("err", 503, "unavailable")
            assert isinstance(said["retry_ms"], int) and said["retry_ms"] > 0
            said = answer_to(client, "sub", 4, ch="elsewhere")
            assert (said["code"], said["error"], said["ch"]) == (503, "unavailable", "elsewhere")
            assert answer_to(client, "ping", 5) == {"op": "pong", "id": 5}
        # A new connection is accepted.
        with connected(gateway.ws_url) as [newcomer]:
            assert newcomer.welcome.get("bus") is False
        valkey.restart()
        gateway.await_ready()
        wait_until("as before", lambda: channels(backend) == before, WITHIN_S)
        assert_all_channels_deliver(backend, clients, names, 2)
        for client in clients[:2]:
            wait_for_publish(client, "nobody:listens")
    wait_until("given up", lambda: not channels(backend), WITHIN_S)
    assert any(" bus_failed bus=" in line for line in gateway.lines)


def test_subscriber_connections_killed_again_and_again_recover_without_a_storm_r6(
    gateway: Gateway, backend: redis.Redis
) -> None:
    names = [*(f"own:{number}" for number in range(40)), "room"]
    with connected(gateway.ws_url, 40) as clients:
        subscribe_all(clients, names)
        assert_all_channels_deliver(backend, clients, names, 1)
        backend.config_resetstat()
        kills = 0
        end_s = time.monotonic() + 3
        while time.monotonic() < end_s:
            kills += backend.client_kill_filter(_type="pubsub")
            time.sleep(0.05)
        assert kills >= 4
        gateway.await_ready()
        assert_all_channels_deliver(backend, clients, names, 2)
        calls = backend.info("commandstats")["cmdstat_subscribe"]["calls"]
        # Each connection sends one batch and one probe, and each killed connection has one successor. A storm
        # would be one command per name, or one connection every 50 ms.
        assert calls <= 4 * (kills + 2)
        assert kills <= 2 * 40
    # Metrics are published once a second.
    wait_until("counted", lambda: gateway.metric("wsgate_bus_failures_total") >= kills, WITHIN_S)


def test_publish_to_a_stopped_bus_is_unavailable_and_delays_no_other_client_r7(
    gateway: Gateway, valkey: Valkey, backend: redis.Redis
) -> None:
    with connected(gateway.ws_url, 2) as [speaker, other]:
        with valkey.paused():
            said = answer_to(speaker, "pub", 3, ch="room", data=1)
            assert (said["code"], said["error"]) == (503, "unavailable")
            assert answer_to(other, "ping", 5) == {"op": "pong", "id": 5}
            wait_until("not ready", lambda: bus_is_down(gateway), WITHIN_S)
        gateway.await_ready()
        wait_for_publish(speaker, "room")


def test_100_recoveries_while_the_bus_is_silent_are_all_answered_and_84_rate_limited(
    gateway: Gateway, valkey: Valkey, backend: redis.Redis
) -> None:
    with connected(gateway.ws_url) as [client]:
        with valkey.paused():
            for number in range(100):
                client.send("sub", ch="room", id=number, **({"from": "Qz-1"} if number else {}))
            answers = [client.receive() for _ in range(100)]
        gateway.await_ready()
        assert sorted(answer["id"] for answer in answers) == list(range(100))
        found = [answer["error"] for answer in answers]
        assert (found.count("rate_limited"), found.count("unavailable")) == (84, 16)


# --- a slow bus, and replies in pieces ----------------------------------------------------------------


@pytest.fixture(scope="module")
def behind_proxy(valkey: Valkey) -> Iterator[tuple[FaultProxy, Gateway]]:
    with fault_proxy(valkey.host, valkey.port, seed=8) as proxy:
        environ = QUICK | {"WSGATE_BUS__PREFIX": "slow"}
        with running_gateway("--redis", proxy.url, environ=environ) as running:
            yield proxy, running


def outcomes_of_publishing(client: Client, first: int, count: int) -> set[str]:
    """Publish at once to a channel without subscribers; each id is answered once and in order."""
    for number in range(first, first + count):
        client.send("pub", id=number, ch="nobody", data=number)
    answers = [client.receive() for _ in range(count)]
    assert [answer["id"] for answer in answers] == list(range(first, first + count))
    return {answer["op"] for answer in answers}


def test_slow_bus_with_replies_in_single_bytes_mixes_up_no_reply_and_keeps_connections_r8(
    behind_proxy: tuple[FaultProxy, Gateway], valkey: Valkey
) -> None:
    proxy, gateway = behind_proxy
    before = proxy.accepted
    with connected(gateway.ws_url, 2) as [speaker, other], redis.Redis(port=valkey.port) as backend:
        proxy.faults.slice_bytes = 1
        other.subscribe("room")
        assert outcomes_of_publishing(speaker, 0, 200) == {"ok"}
        backend.publish("slow:ch:room", b'{"text":"' + b"x" * 2_000 + b'"}')
        assert other.heard(1) == [{"text": "x" * 2_000}]
        proxy.faults.delay_s = 0.2
        assert outcomes_of_publishing(speaker, 1_000, 200) == {"ok"}
        speaker.subscribe("lobby")
        speaker.send("pub", id=7, ch="room", data=7)
        assert other.heard(1) == [7]
        assert speaker.receive() == {"op": "ok", "id": 7}
        gateway.await_ready()
        assert proxy.accepted == before  # slow connections are not replaced
        proxy.faults.delay_s, proxy.faults.slice_bytes = 0.0, 0


def test_every_publish_is_answered_once_while_the_bus_stalls_and_resets_r8(
    behind_proxy: tuple[FaultProxy, Gateway], valkey: Valkey
) -> None:
    proxy, gateway = behind_proxy
    with connected(gateway.ws_url) as [client], redis.Redis(port=valkey.port) as backend:
        client.subscribe("room")
        proxy.faults.is_stalled = True
        assert outcomes_of_publishing(client, 0, 50) == {"err"}
        wait_until("not ready", lambda: bus_is_down(gateway), WITHIN_S)
        proxy.faults.is_stalled = False
        gateway.await_ready()
        proxy.faults.reset_chance = 0.3
        for first in range(100, 1_100, 50):
            assert outcomes_of_publishing(client, first, 50) <= {"ok", "err"}
        proxy.faults.reset_chance = 0.0
        gateway.await_ready()
        wait_for_publish(client, "nobody")
        wait_until("subscribed", lambda: backend.pubsub_numsub("slow:ch:room")[0][1] == 1, WITHIN_S)
        backend.publish("slow:ch:room", "8")
        assert client.heard(1) == [8]


# --- a bus that is full, locked or read-only ----------------------------------------------------------


def test_bus_that_accepts_no_client_is_tried_seldom_and_used_again_r10(
    gateway: Gateway, valkey: Valkey, backend: redis.Redis
) -> None:
    with connected(gateway.ws_url) as [client]:
        client.subscribe("room")
        most = backend.config_get("maxclients")["maxclients"]
        backend.config_set("maxclients", 1)
        backend.config_resetstat()
        backend.client_kill_filter(skipme=True)
        wait_until("not ready", lambda: bus_is_down(gateway), WITHIN_S)
        started_s, elapsed_s = time.monotonic(), 0.0
        while elapsed_s < 1.5:
            said = answer_to(client, "pub", 3, ch="room", data=1)
            assert (said["op"], said["error"]) == ("err", "unavailable")
            elapsed_s = time.monotonic() - started_s
        # Two shards with two connections each; hundreds of publishes must not cause more attempts.
        rejected = backend.info("stats")["rejected_connections"]
        assert 2 <= rejected <= 40 * (elapsed_s + 1)
        wait_until("it is logged", lambda: any("max number of clients" in line for line in gateway.lines))
        backend.config_set("maxclients", most or 10_000)
        gateway.await_ready()
        assert_all_channels_deliver(backend, [client], ["room", "room"], 2)
        wait_for_publish(client, "nobody")


def test_password_set_on_a_running_bus_is_logged_as_noauth_and_publishes_are_unavailable_r10(
    gateway: Gateway, valkey: Valkey, backend: redis.Redis
) -> None:
    with connected(gateway.ws_url) as [client]:
        backend.config_set("requirepass", "s3cret")
        backend.client_kill_filter(skipme=True)
        wait_until("not ready", lambda: bus_is_down(gateway), WITHIN_S)
        assert answer_to(client, "pub", 3, ch="room", data=1)["error"] == "unavailable"
        wait_until("it is logged", lambda: any("NOAUTH" in line for line in gateway.lines), WITHIN_S)
        backend.config_set("requirepass", "")
        gateway.await_ready()
        wait_for_publish(client, "room")


def test_publish_works_on_a_bus_without_memory_and_on_a_read_only_replica_r10(
    gateway: Gateway, backend: redis.Redis
) -> None:
    with connected(gateway.ws_url, 2) as [speaker, hearer]:
        hearer.subscribe("room")
        backend.config_set("maxmemory", 1)
        try:
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                backend.set("a", "x")
            assert answer_to(speaker, "pub", 3, ch="room", data=3)["op"] == "ok"
            assert hearer.heard(1) == [3]
        finally:
            backend.config_set("maxmemory", 0)
        backend.replicaof("127.0.0.1", "1")
        try:
            with pytest.raises(redis.exceptions.ReadOnlyError):
                backend.set("a", "x")
            assert answer_to(speaker, "pub", 4, ch="room", data=4)["op"] == "ok"
            assert hearer.heard(1) == [4]
        finally:
            backend.replicaof("NO", "ONE")
        assert gateway.why_not_ready() == []


# --- malformed publications ---------------------------------------------------------------------------


def test_malformed_publications_close_no_client_and_the_next_one_is_delivered_s24(
    gateway: Gateway, backend: redis.Redis
) -> None:
    poison = [
        b"\xff\xfe",
        b'{"half":',
        b"x" * 2_000_000,
        b"\xc1\x02",
        b"\xc1\x01\xdf\xff\xff\xff\xff",
        b"\xc1\x01" + b"\x91" * 10_000,
        b"\xc1\x01\xdf\x00\x0f\x42\x40" + b"\xc0\xc0" * 10_000,
    ]
    with (
        connected(gateway.ws_url) as [json_client],
        connected(gateway.ws_url, dialect="msgpack") as [msgpack_client],
        redis.Redis(port=backend.connection_pool.connection_kwargs["port"]) as raw,
    ):
        for client in (json_client, msgpack_client):
            client.subscribe("room")
        for data in poison:
            raw.publish("wsgate:ch:room", data)
        raw.publish("wsgate:ch:room", b'"good"')
        assert json_client.receive() == {"op": "msg", "ch": "room", "b64": "//4="}
        assert json_client.heard(2) == ['{"half":', "good"]
        assert msgpack_client.heard(3) == [b"\xff\xfe", '{"half":', "good"]
        for client in (json_client, msgpack_client):
            assert [(gap["ch"], gap["reason"]) for gap in client.gaps] == [("room", "too_large")]
        # Metrics are published once a second; each shard counts the publications that it dropped.
        wait_until(
            "counted",
            lambda: (
                gateway.metric("wsgate_publications_total", outcome="malformed") >= 4
                and gateway.metric("wsgate_publications_total", outcome="too_large") >= 1
            ),
            WITHIN_S,
        )


# --- a bus name whose resolution hangs or changes -----------------------------------------------------


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the stub resolver with")
    built = tmp_path_factory.mktemp("shim") / "resolver.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", built, SHIM, "-ldl"], check=True)
    return built


def test_hanging_bus_name_blocks_no_client_and_its_new_address_is_used_r22(
    shim: Path, tmp_path: Path
) -> None:
    book = tmp_path / "address"

    def resolve(address: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(address)
        fresh.rename(book)

    with running_valkey("127.0.0.1") as first, running_valkey("127.0.0.2", first.port) as second:
        resolve("127.0.0.1")
        environ = QUICK | {"LD_PRELOAD": str(shim), "RESOLVER_FILE": str(book)}
        with (
            running_gateway("--redis", f"redis://bus.test:{first.port}", environ=environ) as gateway,
            connected(gateway.ws_url) as [client],
        ):
            client.subscribe("room")
            resolve("hang")
            first.stop()
            wait_until("not ready", lambda: bus_is_down(gateway), WITHIN_S)
            wait_until(
                "the resolution hangs",
                lambda: any("no reply within" in line for line in gateway.lines),
                WITHIN_S,
            )
            for number in range(20):  # the shard still answers and welcomes
                assert answer_to(client, "ping", number) == {"op": "pong", "id": number}
                with connected(gateway.ws_url) as [newcomer]:
                    assert newcomer.welcome["bus"] is False
            assert answer_to(client, "pub", 3, ch="room", data=1)["error"] == "unavailable"
            resolve("127.0.0.2")
            gateway.await_ready()
            with redis.Redis(host=second.host, port=second.port) as backend:
                wait_until("there", lambda: backend.pubsub_numsub("wsgate:ch:room")[0][1] == 1, WITHIN_S)
                backend.publish("wsgate:ch:room", "5")
            assert client.heard(1) == [5]
            wait_for_publish(client, "nobody")


def test_both_bus_connections_follow_a_new_address_when_only_the_publisher_was_cut_r22(
    shim: Path, tmp_path: Path
) -> None:
    book = tmp_path / "address"
    book.write_text("127.0.0.1")
    with running_valkey("127.0.0.1") as first, running_valkey("127.0.0.2", first.port) as second:
        environ = QUICK | {"LD_PRELOAD": str(shim), "RESOLVER_FILE": str(book)}
        with (
            running_gateway("--redis", f"redis://bus.test:{first.port}", environ=environ) as gateway,
            connected(gateway.ws_url) as [client],
        ):
            client.subscribe("room")
            book.write_text("127.0.0.2")
            with redis.Redis(host=first.host, port=first.port) as old:
                old.client_kill_filter(_type="normal", skipme=True)  # only those of publishers
            with redis.Redis(host=second.host, port=second.port) as backend:
                wait_until("there", lambda: backend.pubsub_numsub("wsgate:ch:room")[0][1] == 1, WITHIN_S)
                gateway.await_ready()
                backend.publish("wsgate:ch:room", "6")
            assert client.heard(1) == [6]


# --- a wall clock that jumps --------------------------------------------------------------------------


def faketime_library() -> str:
    """Return the path of the library that shifts the wall clock of one process."""

    def find() -> str | None:
        return next((str(path) for path in Path("/usr/lib").glob("**/libfaketimeMT.so.1")), None)

    found = find_or_install(find, ["libfaketime"])
    return found or pytest.skip("no libfaketime here, and none could be installed")


def pings(gateway: Gateway) -> float:
    return gateway.metric("wsgate_pings_total", direction="out")


def test_wall_clock_jump_moves_no_timer_and_expires_only_tokens_r21(tmp_path: Path, valkey: Valkey) -> None:
    offset = tmp_path / "offset"
    offset.write_text("+0")
    environ = QUICK | {
        "LD_PRELOAD": faketime_library(),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "WSGATE_BUS__PREFIX": "clock",
        "WSGATE_HEARTBEAT__PING_INTERVAL": "1s",
        "WSGATE_HEARTBEAT__PONG_TIMEOUT": "1s",
    }
    with (
        running_gateway("--redis", valkey.url, environ=environ) as gateway,
        redis.Redis(port=valkey.port) as backend,
    ):
        token = gateway.token("42", "--ttl", "30m")
        with (
            connected(gateway.ws_url, 2) as [anonymous, speaker],
            connected(gateway.ws_url, token=token) as [known],
        ):
            assert known.receive()["ch"] == "@me"
            anonymous.subscribe("room")
            stamps = []
            for hours in ("+0", "+1h", "-1h"):
                offset.write_text(hours)
                gateway.await_ready()
                backend.publish("clock:ch:room", "1")
                assert anonymous.heard(1) == [1]
                speaker.send("pub", ch="room", data=2)
                said = anonymous.receive()
                assert said["data"] == 2
                stamps.append(said["ts"] / 1000 - time.time())
                # Pings and deadlines use the monotonic clock, so no ping is missed.
                beats = pings(gateway) + 4
                wait_until("two pings each", lambda: pings(gateway) >= beats, WITHIN_S)  # noqa: B023
                assert answer_to(anonymous, "ping", 7) == {"op": "pong", "id": 7}
                if hours == "+0":
                    assert answer_to(known, "refresh", 8, token=token)["op"] == "ok"
                elif hours == "+1h":
                    # Expiry uses the wall clock: the token had half an hour, and an hour has passed.
                    assert known.end()[1] == 4001
            assert [round(stamp / 3600) for stamp in stamps] == [0, 1, -1]


def test_clock_library_is_not_loaded_into_the_tests_themselves() -> None:
    assert "LD_PRELOAD" not in os.environ
