"""Use a whole gateway as its users start it, with independent clients and backends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.client import connected
from tests.support.gateway import ROOT, Gateway, run_command, running_gateway, wait_until
from tests.support.packages import find_or_install, find_program
from tests.support.valkey import Valkey, running_valkey

pytestmark = pytest.mark.slow

WITHIN_S = 30.0  # a limit that no healthy run reaches
SECRET = "a secret for these tests, and long enough"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway("--shards", "2") as running:
        yield running


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture(scope="module")
def nodes(valkey: Valkey) -> Iterator[tuple[Gateway, Gateway]]:
    """Start two gateways on one bus."""
    with (
        running_gateway("--redis", valkey.url) as one,
        running_gateway("--redis", valkey.unix_url, "--shards", "2") as two,
    ):
        yield one, two


@pytest.fixture(scope="module")
def redis_cli() -> str:
    """Return the path of a redis-cli, which is installed where there is none and that is allowed."""
    found = find_or_install(lambda: find_program("redis-cli", "valkey-cli"), ["redis-tools", "valkey-tools"])
    return found or pytest.skip("no redis-cli here, and none could be installed")


def cli_publish(redis_cli: str, gateway: Gateway, channel: str, payload: bytes) -> int:
    """Run `redis-cli PUBLISH` with the payload unchanged on its standard input."""
    path = gateway.bus_url.removeprefix("unix://")
    done = subprocess.run(
        [redis_cli, "-s", path, "-x", "PUBLISH", f"wsgate:ch:{channel}"],
        input=payload,
        capture_output=True,
        check=True,
        timeout=WITHIN_S,
    )
    return int(done.stdout)


# --- clients and backends -----------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["json", "msgpack"])
def test_publication_of_redis_cli_is_delivered_in_both_dialects(
    gateway: Gateway, redis_cli: str, dialect: str
) -> None:
    with connected(gateway.ws_url, dialect=dialect) as (client,):
        client.subscribe("news")
        assert cli_publish(redis_cli, gateway, "news", b'{"hello":1}') == 1
        assert client.receive() == {"op": "msg", "ch": "news", "data": {"hello": 1}}


@pytest.mark.parametrize("dialect", ["json", "msgpack"])
def test_publication_of_redis_py_is_delivered_to_every_subscriber(gateway: Gateway, dialect: str) -> None:
    with (
        connected(gateway.ws_url, 6, dialect=dialect) as clients,
        redis.Redis.from_url(gateway.bus_url) as bus,
    ):
        for client in clients:
            client.subscribe("chat:42")
        assert bus.publish("wsgate:ch:chat:42", "[1, 2]") in (1, 2)  # the number of shards, not of clients
        for client in clients:
            assert client.receive() == {"op": "msg", "ch": "chat:42", "data": [1, 2]}


def test_publications_of_each_dialect_are_delivered_equally_in_the_other(gateway: Gateway) -> None:
    with connected(gateway.ws_url) as (text,), connected(gateway.ws_url, dialect="msgpack") as (packed,):
        for client in (text, packed):
            client.subscribe("room")
        packed.send("pub", ch="room", data={"a": [1, None, "ü"]})
        assert text.heard(1) == packed.heard(1) == [{"a": [1, None, "ü"]}]
        text.send("pub", ch="room", data=[2**53, 0.5])
        assert text.heard(1) == packed.heard(1) == [[2**53, 0.5]]


def test_inbox_publication_reaches_every_connection_of_its_user_and_no_other_user(gateway: Gateway) -> None:
    mine, other = gateway.token("42"), gateway.token("43")
    with (
        connected(gateway.ws_url, 4, token=mine) as devices,
        connected(gateway.ws_url, token=other) as (stranger,),
        redis.Redis.from_url(gateway.bus_url) as bus,
    ):
        for client in (*devices, stranger):
            assert client.receive() == {"op": "subbed", "ch": "@me"}
        assert {client.welcome["user"] for client in devices} == {"42"}
        bus.publish("wsgate:ch:@42", '"for you"')
        bus.publish("wsgate:ch:@43", '"for the other"')
        assert [client.heard(1) for client in devices] == [["for you"]] * 4
        assert stranger.heard(1) == ["for the other"]


# --- commands -----------------------------------------------------------------------------------------


def listening(gateway: Gateway, *arguments: str) -> subprocess.Popen[str]:
    """Start `wsgate listen` and wait until it is subscribed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wsgate", "listen", *arguments],
        env=os.environ | {"RUNTIME_DIRECTORY": str(gateway.directory)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["op"] == "subbed":
            break
    return process


def lines_of(process: subprocess.Popen[str]) -> list[Any]:
    """Return the lines that the process prints until it exits with 0."""
    output, _ = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 0
    return [json.loads(line) for line in output.splitlines()]


def test_listen_command_prints_publications_of_the_publish_command(gateway: Gateway) -> None:
    listener = listening(gateway, "--count", "2", "news")
    assert gateway.run("publish", "news", '{"hello":1}').stdout == "received by 1 shard\n"
    gateway.run("publish", "news", "no JSON at all")
    assert lines_of(listener) == [
        {"op": "msg", "ch": "news", "data": {"hello": 1}},
        {"op": "msg", "ch": "news", "data": "no JSON at all"},
    ]


def test_token_of_the_token_command_gives_access_to_the_inbox(gateway: Gateway) -> None:
    token = gateway.run("token", "--user", "7", "--ttl", "5m").stdout.strip()
    listener = listening(gateway, "--count", "1", "--token", token, "@me")
    gateway.run("publish", "@7", "1")
    assert lines_of(listener) == [{"op": "msg", "ch": "@me", "data": 1}]


def test_addresses_and_publish_command_printed_by_serve_work_unchanged(gateway: Gateway) -> None:
    rows = dict(line.strip().split(None, 1) for line in gateway.lines if line.startswith("  "))
    assert rows["socket"] == gateway.ws_url
    assert rows["page"] == f"{gateway.admin_url}/"
    assert rows["bus"] == f"private, on {gateway.bus_url}"
    with connected(rows["socket"]) as (client,):
        client.subscribe("news")
        environ = os.environ | {"RUNTIME_DIRECTORY": str(gateway.directory)}
        path = (
            f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as in the shell that started the gateway
        )
        subprocess.run(
            rows["publish"], shell=True, check=True, env=environ | {"PATH": path}, cwd=ROOT, timeout=WITHIN_S
        )
        assert client.heard(1) == [{"hello": 1}]
    assert "<html" in gateway.get("/")


def test_commands_without_a_running_gateway_exit_with_1_and_name_the_start_command(tmp_path: Path) -> None:
    for command in (["publish", "news", "1"], ["listen", "news"], ["token", "--user", "1"]):
        done = run_command(*command, directory=tmp_path, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert (
            done.stderr == "wsgate: no gateway of this user runs here; start one with: wsgate serve --dev\n"
        )


def test_commands_with_several_running_gateways_require_the_port_flag(gateway: Gateway) -> None:
    with running_gateway(directory=gateway.directory) as second:
        done = gateway.run("publish", "news", "1", check=False)
        assert done.returncode == 2 and "choose one with --port" in done.stderr
        assert str(gateway.port) in done.stderr and str(second.port) in done.stderr
        assert gateway.run("publish", "--port", str(second.port), "news", "1").returncode == 0


def test_publish_command_with_an_absent_bus_exits_with_1_and_hides_the_password(tmp_path: Path) -> None:
    where = f"unix://{tmp_path}/none.sock"
    url = where.replace("//", "//user:hidden@", 1)
    done = run_command("publish", "--redis", url, "news", "1", directory=tmp_path, check=False)
    assert done.returncode == 1 and done.stderr.startswith(f"wsgate: the bus at {where}: ")
    assert "hidden" not in done.stderr


def test_listen_command_with_an_invalid_token_exits_with_1_and_the_status(gateway: Gateway) -> None:
    done = gateway.run("listen", "--token", "no.real.token", "news", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "wsgate: the gateway answered 401\n"


def test_check_config_prints_the_effective_settings_without_secrets(tmp_path: Path) -> None:
    file = tmp_path / "wsgate.toml"
    file.write_text(f'[auth]\nhmac_secret = "{SECRET}"\n[bus]\nurl = "redis://u:pass%2Fword@host:1/0"\n')
    file.chmod(0o600)
    done = run_command(
        "check-config",
        "--config",
        str(file),
        directory=tmp_path,
        environ={"WSGATE_SERVER__PORT": "8123", "WSGATE_ADMIN__API_KEY": SECRET[::-1]},
    )
    assert "port = 8123" in done.stdout
    assert 'ping_interval = "25s"' in done.stdout
    output = done.stdout + done.stderr
    assert SECRET not in output and SECRET[::-1] not in output and ":pass" not in output
    # The output is a configuration file again, except for the secrets.
    assert "[auth]" in done.stdout and "hmac_secret" in done.stdout


@pytest.mark.parametrize("command", ["check-config", "serve"])
def test_unknown_setting_stops_each_command_with_exit_code_2_and_one_line(
    tmp_path: Path, command: str
) -> None:
    file = tmp_path / "wsgate.toml"
    file.write_text("[server]\nprot = 8000\n")
    done = run_command(command, "--config", str(file), directory=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "server.prot" in done.stderr and len(done.stderr.splitlines()) == 1


def test_serve_with_an_invalid_or_foreign_host_exits_with_2_and_names_it(tmp_path: Path) -> None:
    for host in ("a..b", "203.0.113.77"):  # an invalid name, and an address of another machine
        done = run_command("serve", "--dev", "--host", host, directory=tmp_path, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1 and host in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_port_0_uses_one_free_port_for_all_shards() -> None:
    ports = "--port", "0", "--admin-port", "0"
    with running_gateway(*ports, "--shards", "2") as gateway, connected(gateway.ws_url, 20) as clients:
        assert 0 not in (gateway.port, gateway.admin_port)
        assert f"  socket   {gateway.ws_url}" in gateway.lines
        assert all(client.ask("ping") == {"op": "pong"} for client in clients)
        for number in range(2):
            held = partial(gateway.metric, "wsgate_connections_held", shard=str(number))
            wait_until(f"shard {number} holds some of them", held)


def test_gateway_on_ipv6_prints_its_addresses_in_brackets() -> None:
    with running_gateway("--host", "::1", environ={"WSGATE_ADMIN__HOST": "::1"}) as gateway:
        url = f"ws://[::1]:{gateway.port}/ws"
        assert f"  socket   {url}" in gateway.lines
        assert f"  page     http://[::1]:{gateway.admin_port}/" in gateway.lines
        listener = listening(gateway, "--count", "1", "news")
        gateway.run("publish", "news", "1")
        assert lines_of(listener) == [{"op": "msg", "ch": "news", "data": 1}]


def test_listen_command_prints_a_publication_of_two_megabytes() -> None:
    large = "x" * 2_000_000
    environ = {"WSGATE_CHANNELS__DEFAULT__MAX_PUBLISH": "4MiB", "WSGATE_LIMITS__OUTBOX_BYTES": "8MiB"}
    with running_gateway(environ=environ) as gateway:
        listener = listening(gateway, "--count", "1", "news")
        with redis.Redis.from_url(gateway.bus_url) as bus:
            bus.publish("wsgate:ch:news", json.dumps(large))
        assert lines_of(listener) == [{"op": "msg", "ch": "news", "data": large}]


# --- two nodes ----------------------------------------------------------------------------------------

MANY = 400


def test_publications_of_one_node_arrive_in_order_on_both_nodes(nodes: tuple[Gateway, Gateway]) -> None:
    one, two = nodes
    with (
        connected(one.ws_url, 2, max_queue=None) as here,
        connected(two.ws_url, 4, max_queue=None) as there,
    ):
        for client in (*here, *there):
            client.subscribe("shared")
        publisher, *_ = here
        for number in range(MANY):
            publisher.send("pub", ch="shared", data=number)
        for client in (*here, *there):  # also to the publisher itself
            assert client.heard(MANY) == list(range(MANY))
        assert here[0].welcome["node"] != there[0].welcome["node"]


def test_publications_of_two_nodes_arrive_in_one_order_at_all_clients(nodes: tuple[Gateway, Gateway]) -> None:
    one, two = nodes
    with (
        connected(one.ws_url, 2, max_queue=None, dialect="msgpack") as here,
        connected(two.ws_url, 2, max_queue=None) as there,
    ):
        for client in (*here, *there):
            client.subscribe("shared")
        for number in range(MANY // 2):
            here[0].send("pub", ch="shared", data=["one", number])
            there[0].send("pub", ch="shared", data=["two", number])
        orders = [client.heard(MANY) for client in (*here, *there)]
        for name in ("one", "two"):
            wanted = list(range(MANY // 2))
            assert all([number for who, number in order if who == name] == wanted for order in orders)
        assert all(order == orders[0] for order in orders)  # the bus has one order for all


def test_publication_without_echo_reaches_all_clients_but_its_publisher(
    nodes: tuple[Gateway, Gateway],
) -> None:
    one, two = nodes
    with connected(one.ws_url, 2) as here, connected(two.ws_url) as (far,):
        for client in (*here, far):
            client.subscribe("shared")
        assert here[0].ask("pub", ch="shared", data=1, echo=False, id=5) == {"op": "ok", "id": 5}
        here[0].send("pub", ch="shared", data=2)
        assert here[0].heard(1) == [2]
        assert here[1].heard(2) == far.heard(2) == [1, 2]


def test_node_that_stops_unsubscribes_and_closes_no_client_of_the_other_node(valkey: Valkey) -> None:
    with (
        running_gateway("--redis", valkey.url) as stays,
        connected(stays.ws_url) as (client,),
        redis.Redis.from_url(valkey.url) as bus,
    ):
        client.subscribe("leaving")
        with running_gateway("--redis", valkey.url) as leaves, connected(leaves.ws_url) as (other,):
            other.subscribe("leaving")
            assert bus.publish("wsgate:ch:leaving", "1") == 2
            assert leaves.stop(signal.SIGTERM) == 0
            assert other.end()[1] == 4012
        wait_until("the bus has one subscriber less", lambda: bus.publish("wsgate:ch:leaving", "2") == 1)
        assert client.heard(2) == [1, 2]


# --- malformed publications ---------------------------------------------------------------------------

BROKEN_ENVELOPES = {
    "another version": bytes.fromhex("c10281a464617461c4027b7d"),
    "no map": bytes.fromhex("c101c0"),
    "cut short": bytes.fromhex("c10181a464617461c4ff7b"),
    "nothing behind the mark": b"\xc1",
    "not the JSON it says": bytes.fromhex("c10181a464617461c4017b"),
}
NOT_UTF8 = b"\xff\xfe\x00"
HALF = b'{"a":'
TOO_LARGE = b'"' + b"x" * (2 * 1024 * 1024) + b'"'


def test_s24_malformed_publications_are_delivered_or_dropped_and_close_no_client(
    gateway: Gateway, redis_cli: str
) -> None:
    def counted(outcome: str) -> float:
        return gateway.metric("wsgate_publications_total", outcome=outcome)

    with (
        connected(gateway.ws_url) as (text,),
        connected(gateway.ws_url, dialect="msgpack") as (packed,),
        redis.Redis.from_url(gateway.bus_url) as bus,
    ):
        for client in (text, packed):
            client.subscribe("poison")
        heard = bus.publish("wsgate:ch:poison", NOT_UTF8)
        assert isinstance(heard, int) and heard >= 1
        before = counted("malformed"), counted("too_large")
        cli_publish(redis_cli, gateway, "poison", HALF)
        cli_publish(redis_cli, gateway, "poison", TOO_LARGE)
        for payload in BROKEN_ENVELOPES.values():
            cli_publish(redis_cli, gateway, "poison", payload)
        cli_publish(redis_cli, gateway, "poison", b'{"good":true}')
        first, second, gap, last = (text.receive() for _ in range(4))
        assert [first, second, last] == [
            {"op": "msg", "ch": "poison", "b64": "//4A"},
            {"op": "msg", "ch": "poison", "data": '{"a":'},
            {"op": "msg", "ch": "poison", "data": {"good": True}},
        ]
        assert (gap["op"], gap["ch"], gap["reason"]) == ("gap", "poison", "too_large")
        assert packed.heard(2) == [NOT_UTF8, '{"a":']
        assert packed.receive()["op"] == "gap"
        assert packed.heard(1) == [{"good": True}]
        wait_until(
            "every subscribed shard has counted the drops",
            lambda: (
                (counted("malformed"), counted("too_large"))
                == (before[0] + heard * len(BROKEN_ENVELOPES), before[1] + heard)
            ),
        )
        for client in (text, packed):
            assert client.ask("ping") == {"op": "pong"}
    assert gateway.metric("wsgate_closes_total", reason="internal") == 0
    assert not [line for line in gateway.lines if "Traceback" in line]


def test_largest_publication_is_delivered_and_one_byte_more_is_dropped(gateway: Gateway) -> None:
    largest = b'"' + b"x" * (64 * 1024 - 2) + b'"'
    with connected(gateway.ws_url) as (client,), redis.Redis.from_url(gateway.bus_url) as bus:
        client.subscribe("large")
        bus.publish("wsgate:ch:large", largest + b" ")
        bus.publish("wsgate:ch:large", largest)
        assert client.heard(1) == [json.loads(largest)]


def test_channel_in_the_url_is_subscribed_without_a_command(gateway: Gateway) -> None:
    with connected(f"{gateway.ws_url}?ch=typed") as (client,):
        assert client.receive() == {"op": "subbed", "ch": "typed"}
        gateway.run("publish", "typed", "1")
        assert client.heard(1) == [1]
