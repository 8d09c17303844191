"""A whole gateway whose bus is killed, slowed, filled, cut off and moved: sockets stay, and it comes back."""

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

WITHIN_S = 30.0  # nothing is expected to take this long
QUICK = {
    "WSGATE_BUS__CONNECT_TIMEOUT": "1s",
    "WSGATE_BUS__COMMAND_TIMEOUT": "1s",
    "WSGATE_HEALTH__CANARY_INTERVAL": "1s",
    "WSGATE_LIMITS__PUBLISH_RATE": "0",  # a client asks as fast as it is answered
}
SHIM = Path(__file__).resolve().parents[1] / "support" / "resolver_shim.c"
MARK = "wsgate:ch:"


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(valkey: Valkey) -> Iterator[Gateway]:
    """One on a Valkey that tests kill; each leaves both ready."""
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
    """What the shards are subscribed to."""
    return {str(name) for name in backend.pubsub_channels(MARK + "*")}


def subscribed(clients: list[Client], names: list[str]) -> None:
    """Client by client to a channel of its own, and all to the last one."""
    for client, name in zip(clients, names, strict=False):
        client.subscribe(name)
        client.subscribe(names[-1])


def say(backend: redis.Redis, channel: str, data: int) -> None:
    backend.publish(MARK + channel, str(data))


def everything_is_heard(backend: redis.Redis, clients: list[Client], names: list[str], data: int) -> None:
    wait_until("subscribed again", lambda: channels(backend) >= {MARK + name for name in names}, WITHIN_S)
    for name in names:
        say(backend, name, data)
    for client in clients:
        assert client.heard(2) == [data, data]


def next_answer(client: Client, op: str, number: int, **fields: object) -> dict[str, object]:
    """The answer to a command by its id; what else comes may only be publications and gaps."""
    client.send(op, id=number, **fields)
    while (said := client.receive()).get("op") in ("msg", "gap"):
        pass
    assert said.get("id") == number, said
    return said


def publishes_again(client: Client, channel: str) -> None:
    """Within a few attempts: a client that is told 503 tries again."""
    numbers = iter(range(10_000, 11_000))
    wait_until(
        "a publish gets through",
        lambda: next_answer(client, "pub", next(numbers), ch=channel, data=0)["op"] == "ok",
        WITHIN_S,
    )


# --- gone and back ------------------------------------------------------------------------------------


def test_a_bus_killed_and_restarted_empty_under_clients_costs_no_socket(
    gateway: Gateway, valkey: Valkey, backend: redis.Redis
) -> None:
    names = [*(f"own:{number}" for number in range(12)), "room"]
    with connected(gateway.ws_url, 12) as clients:
        subscribed(clients, names)
        everything_is_heard(backend, clients, names, 1)
        before = channels(backend)
        valkey.stop()
        wait_until("not ready", lambda: bus_is_down(gateway), WITHIN_S)
        for client in clients:
            # A publish that was under way may end otherwise; this one was not.
            said = next_answer(client, "pub", 3, ch="room", data=1)
            assert (said["op"], said["code"], said["error"]) == ("err", 503, "unavailable")
            assert isinstance(said["retry_ms"], int) and said["retry_ms"] > 0
            said = next_answer(client, "sub", 4, ch="elsewhere")
            assert (said["code"], said["error"], said["ch"]) == (503, "unavailable", "elsewhere")
            assert next_answer(client, "ping", 5) == {"op": "pong", "id": 5}
        # A newcomer is welcome.
        with connected(gateway.ws_url) as [newcomer]:
            assert newcomer.welcome.get("bus") is False
        valkey.restart()
        gateway.await_ready()
        wait_until("as before", lambda: channels(backend) == before, WITHIN_S)
        everything_is_heard(backend, clients, names, 2)
        for client in clients[:2]:
            publishes_again(client, "nobody:listens")
    wait_until("given up", lambda: not channels(backend), WITHIN_S)
    assert any(" bus_failed bus=" in line for line in gateway.lines)


def test_subscribers_killed_again_and_again_hear_everything_in_the_end_r6(
    gateway: Gateway, backend: redis.Redis
) -> None:
    names = [*(f"own:{number}" for number in range(40)), "room"]
    with connected(gateway.ws_url, 40) as clients:
        subscribed(clients, names)
        everything_is_heard(backend, clients, names, 1)
        backend.config_resetstat()
        kills = 0
        end_s = time.monotonic() + 3
        while time.monotonic() < end_s:
            kills += backend.client_kill_filter(_type="pubsub")
            time.sleep(0.05)
        assert kills >= 4
        gateway.await_ready()
        everything_is_heard(backend, clients, names, 2)
        calls = backend.info("commandstats")["cmdstat_subscribe"]["calls"]
        # For each connection one batch and one probe, and one connection for each that was killed: a storm
        # would be a command for each name, or a connection each 50 ms.
        assert calls <= 4 * (kills + 2)
        assert kills <= 2 * 40
    # Numbers are written once a second.
    wait_until("counted", lambda: gateway.metric("wsgate_bus_failures_total") >= kills, WITHIN_S)


def test_a_stopped_bus_may_have_a_publish_and_holds_nobody_r7(
    gateway: Gateway, valkey: Valkey, backend: redis.Redis
) -> None:
    with connected(gateway.ws_url, 2) as [speaker, other]:
        with valkey.paused():
            said = next_answer(speaker, "pub", 3, ch="room", data=1)
            assert (said["code"], said["error"]) == (503, "unavailable")
            assert next_answer(other, "ping", 5) == {"op": "pong", "id": 5}
            wait_until("not ready", lambda: bus_is_down(gateway), WITHIN_S)
        gateway.await_ready()
        publishes_again(speaker, "room")


def test_recoveries_repeated_while_the_bus_is_silent_are_bounded_and_each_answered(
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


# --- slow, and in pieces ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def behind_proxy(valkey: Valkey) -> Iterator[tuple[FaultProxy, Gateway]]:
    with fault_proxy(valkey.host, valkey.port, seed=8) as proxy:
        environ = QUICK | {"WSGATE_BUS__PREFIX": "slow"}
        with running_gateway("--redis", proxy.url, environ=environ) as running:
            yield proxy, running


def all_answered(client: Client, first: int, count: int) -> set[str]:
    """Publishes at once, to nobody; every id is answered once and in order. How they were."""
    for number in range(first, first + count):
        client.send("pub", id=number, ch="nobody", data=number)
    answers = [client.receive() for _ in range(count)]
    assert [answer["id"] for answer in answers] == list(range(first, first + count))
    return {answer["op"] for answer in answers}


def test_a_slow_bus_and_one_byte_at_a_time_poison_nothing_r8(
    behind_proxy: tuple[FaultProxy, Gateway], valkey: Valkey
) -> None:
    proxy, gateway = behind_proxy
    before = proxy.accepted
    with connected(gateway.ws_url, 2) as [speaker, other], redis.Redis(port=valkey.port) as backend:
        proxy.faults.slice_bytes = 1
        other.subscribe("room")
        assert all_answered(speaker, 0, 200) == {"ok"}
        backend.publish("slow:ch:room", b'{"text":"' + b"x" * 2_000 + b'"}')
        assert other.heard(1) == [{"text": "x" * 2_000}]
        proxy.faults.delay_s = 0.2
        assert all_answered(speaker, 1_000, 200) == {"ok"}
        speaker.subscribe("lobby")
        speaker.send("pub", id=7, ch="room", data=7)
        assert other.heard(1) == [7]
        assert speaker.receive() == {"op": "ok", "id": 7}
        gateway.await_ready()
        assert proxy.accepted == before  # slow is not dead
        proxy.faults.delay_s, proxy.faults.slice_bytes = 0.0, 0


def test_a_bus_that_stalls_and_resets_answers_every_id_once_r8(
    behind_proxy: tuple[FaultProxy, Gateway], valkey: Valkey
) -> None:
    proxy, gateway = behind_proxy
    with connected(gateway.ws_url) as [client], redis.Redis(port=valkey.port) as backend:
        client.subscribe("room")
        proxy.faults.is_stalled = True
        assert all_answered(client, 0, 50) == {"err"}
        wait_until("not ready", lambda: bus_is_down(gateway), WITHIN_S)
        proxy.faults.is_stalled = False
        gateway.await_ready()
        proxy.faults.reset_chance = 0.3
        for first in range(100, 1_100, 50):
            assert all_answered(client, first, 50) <= {"ok", "err"}
        proxy.faults.reset_chance = 0.0
        gateway.await_ready()
        publishes_again(client, "nobody")
        wait_until("subscribed", lambda: backend.pubsub_numsub("slow:ch:room")[0][1] == 1, WITHIN_S)
        backend.publish("slow:ch:room", "8")
        assert client.heard(1) == [8]


# --- full, locked, read-only --------------------------------------------------------------------------


def test_a_server_that_lets_nobody_in_is_asked_seldom_and_come_back_to_r10(
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
            said = next_answer(client, "pub", 3, ch="room", data=1)
            assert (said["op"], said["error"]) == ("err", "unavailable")
            elapsed_s = time.monotonic() - started_s
        # Two shards with two connections each; hundreds of publishes meanwhile are no reason to hurry.
        rejected = backend.info("stats")["rejected_connections"]
        assert 2 <= rejected <= 40 * (elapsed_s + 1)
        wait_until("it is said", lambda: any("max number of clients" in line for line in gateway.lines))
        backend.config_set("maxclients", most or 10_000)
        gateway.await_ready()
        everything_is_heard(backend, [client], ["room", "room"], 2)
        publishes_again(client, "nobody")


def test_a_password_that_was_set_meanwhile_is_named_in_the_log_r10(
    gateway: Gateway, valkey: Valkey, backend: redis.Redis
) -> None:
    with connected(gateway.ws_url) as [client]:
        backend.config_set("requirepass", "s3cret")
        backend.client_kill_filter(skipme=True)
        wait_until("not ready", lambda: bus_is_down(gateway), WITHIN_S)
        assert next_answer(client, "pub", 3, ch="room", data=1)["error"] == "unavailable"
        wait_until("it is said", lambda: any("NOAUTH" in line for line in gateway.lines), WITHIN_S)
        backend.config_set("requirepass", "")
        gateway.await_ready()
        publishes_again(client, "room")


def test_full_memory_and_read_only_stop_no_live_publication_r10(
    gateway: Gateway, backend: redis.Redis
) -> None:
    with connected(gateway.ws_url, 2) as [speaker, hearer]:
        hearer.subscribe("room")
        backend.config_set("maxmemory", 1)
        try:
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                backend.set("a", "x")
            assert next_answer(speaker, "pub", 3, ch="room", data=3)["op"] == "ok"
            assert hearer.heard(1) == [3]
        finally:
            backend.config_set("maxmemory", 0)
        backend.replicaof("127.0.0.1", "1")
        try:
            with pytest.raises(redis.exceptions.ReadOnlyError):
                backend.set("a", "x")
            assert next_answer(speaker, "pub", 4, ch="room", data=4)["op"] == "ok"
            assert hearer.heard(1) == [4]
        finally:
            backend.replicaof("NO", "ONE")
        assert gateway.why_not_ready() == []


# --- poison -------------------------------------------------------------------------------------------


def test_poisoned_publications_close_nobody_and_a_good_one_follows_s24(
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
        # Numbers are written once a second; each shard counts what it dropped.
        wait_until(
            "counted",
            lambda: (
                gateway.metric("wsgate_publications_total", outcome="malformed") >= 4
                and gateway.metric("wsgate_publications_total", outcome="too_large") >= 1
            ),
            WITHIN_S,
        )


# --- names that hang and move -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the stub resolver with")
    built = tmp_path_factory.mktemp("shim") / "resolver.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", built, SHIM, "-ldl"], check=True)
    return built


def test_a_name_that_hangs_holds_nobody_and_one_that_moved_is_followed_r22(
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
            wait_until("it hangs", lambda: any("no reply within" in line for line in gateway.lines), WITHIN_S)
            for number in range(20):  # the loop turns: it answers, and welcomes
                assert next_answer(client, "ping", number) == {"op": "pong", "id": number}
                with connected(gateway.ws_url) as [newcomer]:
                    assert newcomer.welcome["bus"] is False
            assert next_answer(client, "pub", 3, ch="room", data=1)["error"] == "unavailable"
            resolve("127.0.0.2")
            gateway.await_ready()
            with redis.Redis(host=second.host, port=second.port) as backend:
                wait_until("there", lambda: backend.pubsub_numsub("wsgate:ch:room")[0][1] == 1, WITHIN_S)
                backend.publish("wsgate:ch:room", "5")
            assert client.heard(1) == [5]
            publishes_again(client, "nobody")


def test_a_name_that_moved_while_one_connection_lived_on_is_followed_by_both_r22(
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
                old.client_kill_filter(_type="normal", skipme=True)  # the publisher's alone
            with redis.Redis(host=second.host, port=second.port) as backend:
                wait_until("there", lambda: backend.pubsub_numsub("wsgate:ch:room")[0][1] == 1, WITHIN_S)
                gateway.await_ready()
                backend.publish("wsgate:ch:room", "6")
            assert client.heard(1) == [6]


# --- another time of day ------------------------------------------------------------------------------


def faketime_library() -> str:
    """The path of the library that shifts the wall clock for one process alone."""

    def find() -> str | None:
        return next((str(path) for path in Path("/usr/lib").glob("**/libfaketimeMT.so.1")), None)

    found = find_or_install(find, ["libfaketime"])
    return found or pytest.skip("no libfaketime here, and none could be installed")


def pings(gateway: Gateway) -> float:
    return gateway.metric("wsgate_pings_total", direction="out")


def test_a_wall_clock_that_jumps_moves_no_timer_and_only_tokens_r21(tmp_path: Path, valkey: Valkey) -> None:
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
                # Pings and deadlines go on by the clock that does not jump: no beat is missed.
                beats = pings(gateway) + 4
                wait_until("two pings each", lambda: pings(gateway) >= beats, WITHIN_S)  # noqa: B023
                assert next_answer(anonymous, "ping", 7) == {"op": "pong", "id": 7}
                if hours == "+0":
                    assert next_answer(known, "refresh", 8, token=token)["op"] == "ok"
                elif hours == "+1h":
                    # Expiry is wall-clock time: the token has half an hour, and the clock says it is over.
                    assert known.end()[1] == 4001
            assert [round(stamp / 3600) for stamp in stamps] == [0, 1, -1]


def test_the_real_clock_of_this_machine_was_left_alone() -> None:
    assert "LD_PRELOAD" not in os.environ
