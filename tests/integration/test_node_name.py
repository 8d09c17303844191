"""The name of a node: stable over restarts, one live holder on a bus, back at once after a kill."""

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.client import connected
from tests.support.gateway import Gateway, run_command, running_gateway, wait_until
from tests.support.valkey import Valkey, running_valkey
from wsgate.node.runtime import lock_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture
def bus(valkey: Valkey) -> Iterator[str]:
    """A bus on which no name is taken."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    yield valkey.url


def name_of(gateway: Gateway) -> str:
    (labels,) = (dict(labels) for name, labels in gateway.metrics() if name == "wsgate_info")
    return labels["node"]


def named(name: str, **more: str) -> dict[str, str]:
    return {"WSGATE_SERVER__NODE": name} | more


def refused(bus: str, directory: Path, name: str) -> str:
    """What a start says that another node's name stops."""
    flags = ("--port", "0", "--admin-port", "0", "--host", "127.0.0.1", "--redis", bus)
    done = run_command(
        "serve", "--dev", "--shards", "1", *flags, directory=directory, environ=named(name), check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def test_a_node_is_named_like_its_host_and_says_so_in_metrics_events_and_welcome(bus: str) -> None:
    environ = {"WSGATE_EVENTS__ENABLED": "connected"}
    with running_gateway("--redis", bus, environ=environ) as gateway, connected(gateway.ws_url) as (client,):
        assert name_of(gateway) == client.welcome["node"] == socket.gethostname()
        with redis.Redis.from_url(bus) as reader:
            wait_until("the event is there", lambda: reader.xlen("wsgate:events:0") == 1)
            ((_, fields),) = reader.xrange("wsgate:events:0")
        assert fields[b"node"].decode() == socket.gethostname()
    with running_gateway() as alone:
        assert name_of(alone) == socket.gethostname(), "also on a bus of its own"


def test_a_second_live_node_of_the_same_name_does_not_start_and_says_what_to_change(
    bus: str, tmp_path: Path
) -> None:
    with running_gateway("--redis", bus, "--shards", "2", environ=named("gate-1")) as gateway:
        said = refused(bus, tmp_path, "gate-1")
        assert "server.node" in said and '"gate-1"' in said and "Traceback" not in said
        assert [file.name for file in tmp_path.iterdir()] == []
        with running_gateway("--redis", bus, environ=named("gate-2")) as other:
            assert (name_of(gateway), name_of(other)) == ("gate-1", "gate-2")
        assert gateway.process.poll() is None and gateway.warnings() == []
        with redis.Redis.from_url(bus) as client:
            wait_until("its name is free", lambda: not client.exists("wsgate:node:gate-2"))
            assert client.exists("wsgate:node:gate-1")


def test_two_nodes_of_one_machine_without_names_differ_by_their_ports(bus: str) -> None:
    with running_gateway("--redis", bus) as one, running_gateway("--redis", bus) as two:
        assert name_of(one) == socket.gethostname()
        assert name_of(two) == f"{socket.gethostname()}-{two.port}"
        with connected(one.ws_url) as (here,), connected(two.ws_url) as (there,):
            here.subscribe("news")
            assert there.ask("pub", ch="news", data=1, id=1) == {"op": "ok", "id": 1}
            assert here.heard(1) == [1]


def test_after_a_kill_of_everything_a_node_takes_its_name_back_at_once(bus: str) -> None:
    with running_gateway("--redis", bus, "--shards", "2", environ=named("gate-1")) as gateway:
        for pid in [*(pid for pids in gateway.children().values() for pid in pids), gateway.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        gateway.process.wait(10)
        with redis.Redis.from_url(bus) as client:
            assert client.pttl("wsgate:node:gate-1") > 5_000, "its lease still runs"
            with running_gateway("--redis", bus, environ=named("gate-1")) as successor:
                assert name_of(successor) == "gate-1"
                held = client.get("wsgate:node:gate-1")
                assert json.loads(held or b"")["pid"] == successor.process.pid


@pytest.mark.parametrize("changed", [{"namespace": 1}, {"boot": "another", "namespace": 1}])
def test_a_restart_in_a_new_container_takes_its_name_back_by_the_lock_file_before_the_lease_ends(
    bus: str, tmp_path: Path, changed: dict[str, object]
) -> None:
    name = "wsgate:node:gate-1"
    with running_gateway("--redis", bus, directory=tmp_path, environ=named("gate-1")) as gateway:
        for pid in [*(pid for pids in gateway.children().values() for pid in pids), gateway.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        gateway.process.wait(10)
        with redis.Redis.from_url(bus) as client:
            # The lease and the lock file as they are when the killed node ran in another namespace of
            # process ids, or before the machine was started again.
            held = str(client.get(name).decode())
            elsewhere = json.dumps(json.loads(held) | changed, separators=(",", ":"))
            lock = lock_file(tmp_path, gateway.port)
            text = lock.read_text()
            assert held in text
            with open(lock, "r+") as file:
                file.write(text.replace(held, elsewhere))
                file.truncate()
            client.set(name, elsewhere, px=60_000)
            flags = ("--redis", bus, "--port", str(gateway.port))
            with running_gateway(*flags, directory=tmp_path, environ=named("gate-1")) as successor:
                assert name_of(successor) == "gate-1"
                assert json.loads(client.get(name) or b"")["pid"] == successor.process.pid


def test_a_name_that_is_held_elsewhere_stays_with_the_one_that_lives(bus: str, tmp_path: Path) -> None:
    elsewhere = json.dumps({"boot": "another", "namespace": 1, "pid": os.getpid(), "started": 1})
    with redis.Redis.from_url(bus) as client:
        client.set("wsgate:node:gate-1", elsewhere, px=2_000)
        with running_gateway("--redis", bus, environ=named("gate-1")) as gateway:
            assert name_of(gateway) == "gate-1", "nobody renewed the lease"
        client.set("wsgate:node:gate-1", elsewhere, px=5_000)
        is_over = threading.Event()

        def renew() -> None:
            while not is_over.wait(0.2):
                client.set("wsgate:node:gate-1", elsewhere, px=15_000)

        thread = threading.Thread(target=renew)
        thread.start()
        try:
            assert "on another machine" in refused(bus, tmp_path, "gate-1")
        finally:
            is_over.set()
            thread.join()


def test_a_name_that_another_node_took_meanwhile_is_an_error_and_no_client_is_cut(bus: str) -> None:
    with running_gateway("--redis", bus, environ=named("gate-1")) as gateway:
        with connected(gateway.ws_url) as (client,), redis.Redis.from_url(bus) as server:
            server.set("wsgate:node:gate-1", "somebody else")
            wait_until("it is said", lambda: any("node_name_taken" in line for line in gateway.lines), 20)
            assert client.ask("ping") == {"op": "pong"}
        assert gateway.stop() == 0
        with redis.Redis.from_url(bus) as server:
            assert server.get("wsgate:node:gate-1") == b"somebody else", "the lease of another is left alone"


def test_a_bus_that_is_away_at_the_start_stops_no_node(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{closed.getsockname()[1]}"
        with running_gateway("--redis", url, environ=named("gate-1"), wait=False) as gateway:
            wait_until("it is not ready", lambda: "shard_0_bus_down" in gateway.why_not_ready())
