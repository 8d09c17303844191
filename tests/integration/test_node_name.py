"""Check the name of a node: stable over restarts, one live owner per bus, free at once after a kill."""

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
    """Return a bus on which no name is in use."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    yield valkey.url


def name_of(gateway: Gateway) -> str:
    (labels,) = (dict(labels) for name, labels in gateway.metrics() if name == "wsgate_info")
    return labels["node"]


def named(name: str, **more: str) -> dict[str, str]:
    return {"WSGATE_SERVER__NODE": name} | more


def start_error(bus: str, directory: Path, name: str) -> str:
    """Return the error output of a start whose name another node uses."""
    flags = ("--port", "0", "--admin-port", "0", "--host", "127.0.0.1", "--redis", bus)
    done = run_command(
        "serve", "--dev", "--shards", "1", *flags, directory=directory, environ=named(name), check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def test_default_node_name_is_the_host_name_in_metrics_events_and_welcome(bus: str) -> None:
    environ = {"WSGATE_EVENTS__ENABLED": "connected"}
    with running_gateway("--redis", bus, environ=environ) as gateway, connected(gateway.ws_url) as (client,):
        assert name_of(gateway) == client.welcome["node"] == socket.gethostname()
        with redis.Redis.from_url(bus) as reader:
            wait_until("the event is stored", lambda: reader.xlen("wsgate:events:0") == 1)
            ((_, fields),) = reader.xrange("wsgate:events:0")
        assert fields[b"node"].decode() == socket.gethostname()
    with running_gateway() as alone:
        assert name_of(alone) == socket.gethostname(), "the name on a private bus differs"


def test_second_live_node_with_the_same_name_exits_and_names_the_setting(bus: str, tmp_path: Path) -> None:
    with running_gateway("--redis", bus, "--shards", "2", environ=named("gate-1")) as gateway:
        said = start_error(bus, tmp_path, "gate-1")
        assert "server.node" in said and '"gate-1"' in said and "Traceback" not in said
        assert [file.name for file in tmp_path.iterdir()] == []
        with running_gateway("--redis", bus, environ=named("gate-2")) as other:
            assert (name_of(gateway), name_of(other)) == ("gate-1", "gate-2")
        assert gateway.process.poll() is None and gateway.warnings() == []
        with redis.Redis.from_url(bus) as client:
            wait_until("the name is free", lambda: not client.exists("wsgate:node:gate-2"))
            assert client.exists("wsgate:node:gate-1")


def test_two_unnamed_nodes_on_one_host_have_names_that_differ_by_the_port(bus: str) -> None:
    with running_gateway("--redis", bus) as one, running_gateway("--redis", bus) as two:
        assert name_of(one) == socket.gethostname()
        assert name_of(two) == f"{socket.gethostname()}-{two.port}"
        with connected(one.ws_url) as (here,), connected(two.ws_url) as (there,):
            here.subscribe("news")
            assert there.ask("pub", ch="news", data=1, id=1) == {"op": "ok", "id": 1}
            assert here.heard(1) == [1]


def test_node_killed_with_all_processes_can_use_its_name_again_before_the_lease_ends(bus: str) -> None:
    with running_gateway("--redis", bus, "--shards", "2", environ=named("gate-1")) as gateway:
        for pid in [*(pid for pids in gateway.children().values() for pid in pids), gateway.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        gateway.process.wait(10)
        with redis.Redis.from_url(bus) as client:
            assert client.pttl("wsgate:node:gate-1") > 5_000, "the lease has ended"
            with running_gateway("--redis", bus, environ=named("gate-1")) as successor:
                assert name_of(successor) == "gate-1"
                held = client.get("wsgate:node:gate-1")
                assert json.loads(held or b"")["pid"] == successor.process.pid


@pytest.mark.parametrize("changed", [{"namespace": 1}, {"boot": "another", "namespace": 1}])
def test_restart_in_another_container_reclaims_the_name_through_the_lock_file(
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


def test_lease_of_another_machine_blocks_the_name_only_while_it_is_renewed(bus: str, tmp_path: Path) -> None:
    elsewhere = json.dumps({"boot": "another", "namespace": 1, "pid": os.getpid(), "started": 1})
    with redis.Redis.from_url(bus) as client:
        client.set("wsgate:node:gate-1", elsewhere, px=2_000)
        with running_gateway("--redis", bus, environ=named("gate-1")) as gateway:
            assert name_of(gateway) == "gate-1", "the lease was not renewed"
        client.set("wsgate:node:gate-1", elsewhere, px=5_000)
        is_over = threading.Event()

        def renew() -> None:
            while not is_over.wait(0.2):
                client.set("wsgate:node:gate-1", elsewhere, px=15_000)

        thread = threading.Thread(target=renew)
        thread.start()
        try:
            assert "on another machine" in start_error(bus, tmp_path, "gate-1")
        finally:
            is_over.set()
            thread.join()


def test_node_name_taken_by_another_node_is_logged_and_closes_no_client(bus: str) -> None:
    with running_gateway("--redis", bus, environ=named("gate-1")) as gateway:
        with connected(gateway.ws_url) as (client,), redis.Redis.from_url(bus) as server:
            server.set("wsgate:node:gate-1", "somebody else")
            wait_until("it is logged", lambda: any("node_name_taken" in line for line in gateway.lines), 20)
            assert client.ask("ping") == {"op": "pong"}
        assert gateway.stop() == 0
        with redis.Redis.from_url(bus) as server:
            assert server.get("wsgate:node:gate-1") == b"somebody else", (
                "the lease of the other node was changed"
            )


def test_node_with_a_name_starts_although_the_bus_is_away(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{closed.getsockname()[1]}"
        with running_gateway("--redis", url, environ=named("gate-1"), wait=False) as gateway:
            wait_until("the node is not ready", lambda: "shard_0_bus_down" in gateway.why_not_ready())
