"""Stop, kill and drain the processes of a real gateway, and check what is left of them."""

import contextlib
import itertools
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
from websockets.exceptions import ConnectionClosed

from tests.support.client import Client, connected
from tests.support.gateway import Gateway, run_command, running_gateway, wait_until
from wsgate.shard.statistics_layout import LAYOUT

pytestmark = pytest.mark.slow

WITHIN_S = 30.0  # a limit that no healthy run reaches
LONG_DRAIN = {"WSGATE_SERVER__DRAIN_TIMEOUT": "10m"}  # a test that waits for its end fails


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process while the context is open."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def kill(gateway: Gateway, name: str) -> None:
    """Kill a child and return when another process has its name."""
    before = gateway.pid_of(name)
    os.kill(before, signal.SIGKILL)
    wait_until(
        f"another {name}", lambda: gateway.children().get(name, [before]) not in ([], [before]), WITHIN_S
    )


def publish(gateway: Gateway, channel: str, *payloads: str) -> None:
    with redis.Redis.from_url(gateway.bus_url) as bus:
        for payload in payloads:
            bus.publish(f"wsgate:ch:{channel}", payload)


def held_by(gateway: Gateway, shard: int) -> float:
    return gateway.metric("wsgate_connections_held", shard=str(shard))


def died(gateway: Gateway, child: str) -> list[str]:
    return [line for line in gateway.lines if f" died child={child} " in line]


# --- a shard that hangs -------------------------------------------------------------------------------


def test_r2_stopped_shard_receives_no_new_connections_and_keeps_its_own() -> None:
    with running_gateway("--shards", "2") as gateway, connected(gateway.ws_url, 16) as before:
        for client in before:
            client.subscribe("news")
        with stopped(gateway.pid_of("wsgate-shard-0")):
            wait_until("silence", lambda: "shard_0_silent" in gateway.why_not_ready(), WITHIN_S)
            with connected(gateway.ws_url, 50) as clients:
                assert all(client.ask("ping") == {"op": "pong"} for client in clients)
            publish(gateway, "news", "1")
        gateway.await_ready()
        publish(gateway, "news", "2")
        assert [client.heard(2) for client in before] == [[1, 2]] * 16
        alone = held_by(gateway, 0)
        with contextlib.ExitStack() as stack:

            def has_new_connection() -> bool:
                stack.enter_context(connected(gateway.ws_url, 4))
                return held_by(gateway, 0) > alone

            wait_until("the continued shard accepts connections again", has_new_connection, WITHIN_S)
        assert not died(gateway, "shard-0")


def test_connection_in_the_queue_of_a_stopped_shard_is_answered_503() -> None:
    with running_gateway() as gateway, stopped(gateway.pid_of("wsgate-shard-0")):
        with socket.create_connection(("127.0.0.1", gateway.port), WITHIN_S) as peer:
            peer.sendall(b"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = peer.recv(1_000)
        assert answer.startswith(b"HTTP/1.1 503 ") and b"Retry-After: " in answer


# --- a process that dies ------------------------------------------------------------------------------


class Publishing:
    """A backend that publishes numbers, one after the other, while the context is open."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.published = 0

    def _run(self) -> None:
        with redis.Redis.from_url(self._gateway.bus_url) as bus:
            while not self._is_over.wait(0.01):
                bus.publish("wsgate:ch:news", str(self.published))
                self.published += 1

    def __enter__(self) -> "Publishing":
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._is_over.set()
        self._thread.join(WITHIN_S)


def numbers_until(client: Client, number: int) -> list[int] | None:
    """Return the numbers received up to this one; None when the connection was closed before."""
    found: list[int] = []
    try:
        while not found or found[-1] < number:
            found += client.heard(1)
    except ConnectionClosed:
        return None
    return found


def is_unbroken(numbers: list[int]) -> bool:
    return numbers == list(range(numbers[0], numbers[-1] + 1))


def test_r1_killed_shard_closes_only_its_own_connections_and_has_a_successor() -> None:
    with (
        running_gateway("--shards", "2") as gateway,
        connected(gateway.ws_url, 30, max_queue=None) as clients,
        Publishing(gateway) as backend,
    ):
        for client in clients:
            client.subscribe("news")
        had = held_by_both(gateway, 30)
        kill(gateway, "wsgate-shard-0")
        gateway.await_ready()
        goal = backend.published + 50
        heard = [numbers_until(client, goal) for client in clients]
        survivors = [numbers for numbers in heard if numbers is not None]
        assert len(survivors) == had[1] > 0
        assert all(is_unbroken(numbers) for numbers in survivors)
        with connected(gateway.ws_url, heard.count(None), max_queue=None) as returned:
            for client in returned:
                client.subscribe("news")
            goal = backend.published + 20
            assert all(is_unbroken(numbers_until(client, goal) or [0, 2]) for client in returned)
            everybody = {client.welcome["conn"] for client in (*clients, *returned)}
            assert len(everybody) == 30 + had[0]  # no connection id is repeated
        assert len(died(gateway, "shard-0")) == 1 and "status=-9" in died(gateway, "shard-0")[0]
        assert not died(gateway, "shard-1")


def held_by_both(gateway: Gateway, count: int) -> list[float]:
    """Return the connections of each shard, once all of them are counted."""
    wait_until("all are counted", lambda: held_by(gateway, 0) + held_by(gateway, 1) == count, WITHIN_S)
    return [held_by(gateway, 0), held_by(gateway, 1)]


def test_counters_never_decrease_when_a_shard_crashes_and_is_replaced() -> None:
    with running_gateway("--shards", "2") as gateway, connected(gateway.ws_url, 20) as clients:
        for client in clients:
            client.subscribe("news")
            client.ask("ping")
        wait_until("the pings are counted", lambda: gateway.metric("wsgate_commands_total", op="ping") == 20)
        samples = [gateway.metrics()]

        def all_pings_are_counted() -> bool:
            samples.append(gateway.metrics())
            return samples[-1]["wsgate_commands_total", (("op", "ping"),)] == 40

        os.kill(gateway.pid_of("wsgate-shard-0"), signal.SIGKILL)
        wait_until("its death is noticed", lambda: died(gateway, "shard-0"), WITHIN_S)
        gateway.await_ready()
        with connected(gateway.ws_url, 20) as newcomers:  # so that the successor counts something
            for client in newcomers:
                client.ask("ping")
            wait_until("the new pings are counted as well", all_pings_are_counted)
        for earlier, later in itertools.pairwise(samples):
            for key, value in earlier.items():
                if key[0].endswith("_total"):
                    assert later[key] >= value, key
        assert gateway.metric("wsgate_restarts_total") == 1


def test_dead_admin_process_interrupts_no_client_and_is_replaced() -> None:
    with running_gateway() as gateway, connected(gateway.ws_url) as (client,):
        client.subscribe("news")
        kill(gateway, "wsgate-admin")
        publish(gateway, "news", "1")
        assert client.heard(1) == [1]
        gateway.await_ready()
        wait_until("the client is counted", lambda: gateway.metric("wsgate_connections_held") == 1)
        assert len(died(gateway, "admin")) == 1


def test_subscriptions_and_publishes_work_again_after_the_private_bus_was_killed() -> None:
    # A probe that fails while the bus restarts must not leave the node unready until the next one.
    rarely = {"WSGATE_HEALTH__CANARY_INTERVAL": "10m"}
    with (
        running_gateway("--shards", "2", environ=rarely) as gateway,
        connected(gateway.ws_url, 8) as clients,
    ):
        for client in clients:
            client.subscribe("news")
        os.kill(gateway.pid_of("wsgate-bus"), signal.SIGKILL)
        wait_until("its death is noticed", lambda: died(gateway, "bus"), WITHIN_S)
        gateway.await_ready()
        publish(gateway, "news", "1")
        assert [client.heard(1) for client in clients] == [[1]] * 8
        assert clients[0].ask("pub", ch="other", data=1, id=7) == {"op": "ok", "id": 7}
        assert len(died(gateway, "bus")) == 1


def test_output_of_a_private_bus_that_cannot_start_is_in_the_log(tmp_path: Path) -> None:
    server = tmp_path / "valkey-server"
    server.write_text('#!/bin/sh\nwhile [ "$1" != --logfile ]; do shift; done\necho "no room for it" >"$2"\n')
    server.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with running_gateway(environ=path, wait=False) as gateway:
        wait_until("the start is tried again", lambda: len(died(gateway, "bus")) > 1, WITHIN_S)
        assert all("no room for it" in line for line in died(gateway, "bus"))
        assert "shard_0_bus_down" in gateway.why_not_ready()


def test_r3_killed_keeper_leaves_no_process_and_its_ports_are_free_at_once() -> None:
    with running_gateway("--shards", "2") as gateway, connected(gateway.ws_url, 4) as clients:
        ports = "--port", str(gateway.port), "--admin-port", str(gateway.admin_port)
        assert len(gateway.processes()) == 5
        gateway.process.kill()
        gateway.process.wait(WITHIN_S)
        # Start at once, while the children of the killed keeper may still be ending.
        with running_gateway(*ports) as successor, connected(successor.ws_url) as (newcomer,):
            assert newcomer.ask("ping") == {"op": "pong"}
            assert successor.port == gateway.port
            wait_until("nothing is orphaned", lambda: not gateway.processes(), WITHIN_S)
        assert all(client.end()[1] == 1006 for client in clients)


def test_r3_new_gateway_takes_over_the_runtime_directory_of_a_killed_one() -> None:
    with running_gateway() as gateway:
        gateway.process.kill()
        gateway.process.wait(WITHIN_S)
        same = {"RUNTIME_DIRECTORY": str(gateway.directory)}
        port = str(gateway.port)
        with running_gateway("--port", port, environ=same, directory=gateway.directory) as successor:
            assert successor.run("publish", "news", "1").stdout.startswith("received by 0 shards: no client")
            successor.stop()
        assert [file.name for file in gateway.directory.iterdir()] == []


# --- duties of the keeper that fail -------------------------------------------------------------------


def beats(gateway: Gateway) -> bool:
    """Whether the keeper is alive and has updated its beat in time."""
    return gateway.process.poll() is None and "keeper_silent" not in gateway.why_not_ready()


def test_keeper_without_a_free_descriptor_continues_and_recovers() -> None:
    with running_gateway("--shards", "2") as gateway, connected(gateway.ws_url, 8) as clients:
        pid = gateway.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        gateway.process.send_signal(signal.SIGHUP)
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
            gateway.process.send_signal(number)
        os.kill(gateway.pid_of("wsgate-bus"), signal.SIGKILL)
        wait_until("no bus can start", lambda: len(died(gateway, "bus")) > 2, WITHIN_S)
        os.kill(gateway.pid_of("wsgate-shard-1"), signal.SIGKILL)
        wait_until("its death is noticed", lambda: died(gateway, "shard-1"), WITHIN_S)
        assert beats(gateway)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        gateway.await_ready()
        survivors = [client for client in clients if client_answers(client)]
        assert survivors, "the clients of the other shard were closed"
        with connected(gateway.ws_url, 4) as newcomers:
            assert all(client.ask("ping") == {"op": "pong"} for client in newcomers)
        assert gateway.process.poll() is None


def client_answers(client: Client) -> bool:
    try:
        return client.ask("ping") == {"op": "pong"}
    except ConnectionClosed:
        return False


def has_successor(gateway: Gateway, name: str, pid: int) -> bool:
    return gateway.children().get(name, [pid]) not in ([], [pid])


def test_garbage_in_the_statistics_of_a_shard_does_not_end_the_node() -> None:
    with running_gateway("--shards", "2") as gateway:
        victim = gateway.pid_of("wsgate-shard-1")
        for _ in range(3):
            with stopped_until_it_dies(victim):
                overwrite_statistics(victim, 2)
                gateway.get("/metrics")
                gateway.get("/status")
                assert beats(gateway)
                os.kill(victim, signal.SIGKILL)
            wait_until(
                "a successor runs", partial(has_successor, gateway, "wsgate-shard-1", victim), WITHIN_S
            )
            gateway.await_ready()
            victim = gateway.pid_of("wsgate-shard-1")
        with connected(gateway.ws_url, 8) as clients:
            assert all(client.ask("ping") == {"op": "pong"} for client in clients)
        assert not any("duty_failed" in line for line in gateway.lines)


def overwrite_statistics(pid: int, region: int) -> None:
    """Set every byte of one region of the statistics block, as a wild pointer of that process may do."""
    size = -(-LAYOUT.slots * 8 // 4096) * 4096
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start = int(line.partition("-")[0], 16)
            if "/dev/zero" not in line or " rw-s " not in line:
                continue
            memory.seek(start)
            if memory.read(8) == b"WSGSTATS":
                header = -(-(40 + len(LAYOUT.to_bytes())) // 4096) * 4096
                memory.seek(start + header + region * size)
                memory.write(b"\xff" * (LAYOUT.slots * 8))
                return
    raise AssertionError("the statistics block was not found")


def test_deleted_runtime_directory_is_created_again_with_all_its_files() -> None:
    with running_gateway() as gateway, connected(gateway.ws_url) as (client,):
        client.subscribe("news")
        before = {file.name for file in gateway.directory.iterdir()}
        token = gateway.token("42")
        shutil.rmtree(gateway.directory)
        wait_until(
            "the directory is complete again",
            lambda: (
                gateway.directory.exists() and {file.name for file in gateway.directory.iterdir()} == before
            ),
            WITHIN_S,
        )
        assert gateway.directory.stat().st_mode & 0o777 == 0o700
        gateway.await_ready()
        wait_until(
            "the command line reaches the gateway",
            lambda: "received by 1" in gateway.run("publish", "news", "1", check=False).stdout,
            WITHIN_S,
        )
        assert 1 in client.heard(1)
        assert gateway.token("42").split(".")[0] == token.split(".")[0]
        second = serve_on(gateway.port, 0, gateway.directory)
        assert second.returncode == 2 and "server.port" in second.stderr
        kill(gateway, "wsgate-bus")
        gateway.await_ready()
        assert gateway.stop() == 0
        assert [file.name for file in gateway.directory.iterdir()] == []


# --- signals and drains -------------------------------------------------------------------------------


ON_A_TERMINAL = """
import fcntl
import os
import sys
import termios
os.setsid()
fcntl.ioctl(os.open(sys.argv[1], os.O_RDWR), termios.TIOCSCTTY, 0)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def test_gateway_drains_when_its_terminal_hangs_up_but_only_reloads_on_sighup() -> None:
    terminal, far_end = os.openpty()
    prefix = [sys.executable, "-c", ON_A_TERMINAL, os.ttyname(far_end)]
    with running_gateway(prefix=prefix) as gateway, connected(gateway.ws_url, 3) as clients:
        gateway.process.send_signal(signal.SIGHUP)
        wait_until("it is reloaded", lambda: any("keeper config_reloaded" in line for line in gateway.lines))
        for client in clients:
            assert client.ask("ping") == {"op": "pong"}
        os.close(far_end)
        os.close(terminal)
        for client in clients:
            assert client.end()[1] == 4012
        assert gateway.process.wait(30) == 0


def test_gateway_under_nohup_reloads_on_sighup_and_when_its_terminal_hangs_up() -> None:
    terminal, far_end = os.openpty()
    prefix = [sys.executable, "-c", ON_A_TERMINAL, os.ttyname(far_end), "nohup"]
    with running_gateway(prefix=prefix) as gateway, connected(gateway.ws_url, 3) as clients:
        gateway.process.send_signal(signal.SIGHUP)
        config_reloads = partial(gateway.metric, "wsgate_config_reloads_total")
        wait_until("the first reload is counted", lambda: config_reloads() == 1, WITHIN_S)
        os.close(far_end)
        os.close(terminal)
        wait_until("the SIGHUP of the terminal causes a reload", lambda: config_reloads() == 2, WITHIN_S)
        for client in clients:
            assert client.ask("ping") == {"op": "pong"}
        assert gateway.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drain_sends_every_client_a_bye_with_a_spread_time_to_retry(number: signal.Signals) -> None:
    with (
        running_gateway("--shards", "2") as gateway,
        connected(gateway.ws_url, 25) as clients,
        connected(gateway.ws_url, 15, dialect="msgpack") as others,
    ):
        gateway.process.send_signal(number)
        retries = Counter[int]()
        for client in (*clients, *others):
            said, code = client.end()
            (bye,) = said
            assert (bye["op"], bye["code"], bye["reason"], bye["reconnect"]) == ("bye", 4012, "drain", True)
            assert code == 4012
            retries[bye["retry_ms"]] += 1
        assert len(retries) >= 20 and min(retries) >= 500
        assert gateway.stop() == 0
        assert gateway.processes() == []
        assert gateway.warnings() == []
        assert [file.name for file in gateway.directory.iterdir()] == []


def queued(gateway: Gateway, count: int) -> list[socket.socket]:
    """Put this many complete handshakes into the accept queue of a stopped shard."""
    peers = []
    for _ in range(count):
        peer = socket.create_connection(("127.0.0.1", gateway.port), WITHIN_S)
        peer.sendall(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        peers.append(peer)
    return peers


def answers_of(peers: list[socket.socket]) -> Counter[str]:
    """Count the statuses of the answers, and the errors of connections that were closed."""
    found = Counter[str]()
    for peer in peers:
        with peer:
            peer.settimeout(WITHIN_S)
            try:
                said = peer.recv(1_000)
                found[said[9:12].decode() if said else "closed without an answer"] += 1
            except OSError as error:
                found[type(error).__name__] += 1
    return found


LIMITS_OF_HANDSHAKES = {
    "plain": {},
    "with a rate": {"WSGATE_ADMISSION__HANDSHAKE_RATE": "5"},
    "with few places": {"WSGATE_ADMISSION__HANDSHAKES_IN_PROGRESS": "20"},
}


@pytest.mark.parametrize("door", LIMITS_OF_HANDSHAKES)
def test_every_connection_in_the_accept_queue_is_answered_before_a_drain_closes_the_listener(
    door: str,
) -> None:
    with running_gateway(environ=LIMITS_OF_HANDSHAKES[door]) as gateway:
        shard = gateway.pid_of("wsgate-shard-0")
        with stopped(shard):
            peers = queued(gateway, 300)
            gateway.process.terminate()
            wait_until("it drains", lambda: any(" draining " in line for line in gateway.lines), WITHIN_S)
        found = answers_of(peers)
        assert set(found) <= {"101", "503"} and found["503"] > 0, found
        assert sum(found.values()) == 300
        assert gateway.stop() == 0


def test_drain_without_a_free_descriptor_answers_the_accept_queue_with_503() -> None:
    with running_gateway() as gateway:
        shard = gateway.pid_of("wsgate-shard-0")
        with stopped(shard):
            peers = queued(gateway, 100)
            used = len(os.listdir(f"/proc/{shard}/fd"))
            most = resource.prlimit(shard, resource.RLIMIT_NOFILE)[1]
            lowest = next(
                number for number in range(most) if not os.path.lexists(f"/proc/{shard}/fd/{number}")
            )
            assert lowest <= used
            resource.prlimit(shard, resource.RLIMIT_NOFILE, (lowest, most))
            gateway.process.terminate()
            wait_until("it drains", lambda: any(" draining " in line for line in gateway.lines), WITHIN_S)
        found = answers_of(peers)
        assert found == {"503": 100}
        gateway.process.wait(WITHIN_S)


def test_drain_without_clients_ends_at_once_in_spite_of_an_incomplete_handshake() -> None:
    patient = LONG_DRAIN | {"WSGATE_LIMITS__HEAD_TIMEOUT": "10m"}
    with running_gateway("--shards", "2", environ=patient) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port)) as peer:
            peer.sendall(b"GET /ws HTTP/1.1\r\nHost: a\r\n")
            wait_until("the connection is accepted", lambda: gateway.metric("wsgate_connections_held") == 1)
            assert gateway.stop() == 0
        assert gateway.processes() == []
        assert gateway.warnings() == []


def test_second_signal_during_a_drain_ends_the_gateway_at_once() -> None:
    with running_gateway("--shards", "2", environ=LONG_DRAIN) as gateway:
        with stopped_until_it_dies(gateway.pid_of("wsgate-shard-0")):
            gateway.process.terminate()
            wait_until("it drains", lambda: any(" draining " in line for line in gateway.lines), WITHIN_S)
            wait_until("the other shard is gone", lambda: "wsgate-shard-1" not in gateway.children())
            assert gateway.process.poll() is None
            assert gateway.stop() == 0
        assert gateway.processes() == []


@contextlib.contextmanager
def stopped_until_it_dies(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_shard_that_hangs_in_a_drain_is_ended_at_the_deadline() -> None:
    with running_gateway("--shards", "2", environ={"WSGATE_SERVER__DRAIN_TIMEOUT": "1s"}) as gateway:
        with stopped_until_it_dies(gateway.pid_of("wsgate-shard-0")):
            assert gateway.stop() == 0
        assert gateway.processes() == []


# --- how the processes are set up ---------------------------------------------------------------------


def listening(pid: int) -> list[int]:
    """Return the ports of the listening TCP sockets of a process, one for each socket."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = {row[9]: int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A"}
    links = [link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir()]
    return sorted(ports[name[8:-1]] for name in links if name.startswith("socket:[") and name[8:-1] in ports)


def writable_pipes(pid: int) -> set[str]:
    """Return the pipes whose write end a process has open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = str(link.readlink())
        flags = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split("flags:")[1].split()[0]
        if target.startswith("pipe:") and int(flags, 8) & os.O_ACCMODE == os.O_WRONLY:
            found.add(target)
    return found


def test_child_inherits_no_listener_of_a_sibling_and_no_pipe_of_the_keeper() -> None:
    with running_gateway("--shards", "3") as gateway:
        kill(gateway, "wsgate-shard-1")  # the keeper has all descriptors open when it forks the successor
        gateway.await_ready()
        shards = [gateway.pid_of(f"wsgate-shard-{number}") for number in range(3)]
        assert [listening(pid) for pid in shards] == [[gateway.port]] * 3
        assert listening(gateway.pid_of("wsgate-admin")) == [gateway.admin_port]
        assert listening(gateway.pid_of("wsgate-bus")) == []
        output = str(Path(f"/proc/{gateway.process.pid}/fd/1").readlink())
        alive = writable_pipes(gateway.process.pid) - {output}
        assert len(alive) == 1
        for pid in (*shards, gateway.pid_of("wsgate-admin"), gateway.pid_of("wsgate-bus")):
            assert not writable_pipes(pid) & alive


def test_every_process_has_its_own_name_in_comm_and_cmdline() -> None:
    names = {"wsgate-bus", "wsgate-admin", "wsgate-shard-0"}
    with running_gateway() as gateway:
        assert set(gateway.children()) == names
        assert Path(f"/proc/{gateway.process.pid}/comm").read_text() == "wsgate\n"
        shown = [Path(f"/proc/{pid}/cmdline").read_bytes() for (pid,) in gateway.children().values()]
        assert {line.strip(b"\0 ").decode() for line in shown} == names


def test_node_with_64_shards_starts_serves_and_drains() -> None:
    with running_gateway("--shards", "64") as gateway:
        shards = [name for name in gateway.children() if name.startswith("wsgate-shard-")]
        assert len(shards) == 64
        gateway.await_ready(2 * WITHIN_S)
        with connected(gateway.ws_url, 32) as clients:
            for client in clients:
                client.subscribe("news")
            publish(gateway, "news", "1")
            assert [client.heard(1) for client in clients] == [[1]] * 32
        assert gateway.stop() == 0
        assert gateway.processes() == []
        assert gateway.warnings() == []


# --- a second gateway ---------------------------------------------------------------------------------


def serve_on(port: int, admin_port: int, directory: Path) -> subprocess.CompletedProcess[str]:
    where = ("--host", "127.0.0.1", "--port", str(port), "--admin-port", str(admin_port))
    return run_command("serve", "--dev", "--shards", "1", *where, directory=directory, check=False)


def test_second_gateway_on_a_used_port_exits_with_2_and_names_the_port(tmp_path: Path) -> None:
    with running_gateway() as gateway:
        own = serve_on(gateway.port, 0, gateway.directory)
        assert (own.returncode, own.stdout) == (2, "")
        assert own.stderr == f"wsgate: server.port: {gateway.port} is used by another gateway of this user\n"
        other = serve_on(gateway.port, 0, tmp_path)
        assert (other.returncode, other.stdout) == (2, "")
        assert f"127.0.0.1:{gateway.port}: the port is in use, perhaps by another gateway" in other.stderr
        admin = serve_on(0, gateway.admin_port, tmp_path)
        assert (admin.returncode, admin.stdout) == (2, "")
        assert admin.stderr.startswith("wsgate: admin.port: cannot listen on 127.0.0.1:")
        assert list(tmp_path.iterdir()) == []  # the refused gateway leaves no file
        with connected(gateway.ws_url, 10) as clients:  # and receives no connection
            assert all(client.ask("ping") == {"op": "pong"} for client in clients)
        assert len(gateway.run("publish", "news", "1").stdout) > 0


# --- a client that does not read ----------------------------------------------------------------------

OUTBOX_BYTES = 256 * 1024
ENTRIES_BYTES = 32 * 1024
"""The largest memory of an outbox with 566 entries, without the frames."""
# Only the size of its outbox may end the client, however slow the machine; it reads its Close at last.
PATIENT = {
    "WSGATE_LIMITS__WRITE_TIMEOUT": "5m",
    "WSGATE_LIMITS__OUTBOX_AGE": "5m",
    "WSGATE_HEARTBEAT__PING_INTERVAL": "5m",
}


@pytest.mark.parametrize(
    ("size", "rounds", "each", "limits"),
    [
        (60_000, 80, 2, {"WSGATE_LIMITS__OUTBOX_BYTES": "256KiB"}),
        # In the first seconds only the bytes of its outbox count.
        (500, 80, 40, {"WSGATE_LIMITS__OUTBOX_BYTES": "256KiB", "WSGATE_LIMITS__OUTBOX_FRAMES": "64"}),
    ],
    ids=["large frames", "many frames in one write"],
)
def test_s31_outbox_of_a_client_that_does_not_read_stays_bounded_and_is_closed_4010(
    size: int, rounds: int, each: int, limits: dict[str, str]
) -> None:
    with (
        running_gateway(environ=limits | PATIENT) as gateway,
        connected(gateway.ws_url, 2, max_queue=None) as readers,
        connected(gateway.ws_url, max_queue=2, sock=small_receiver(gateway.port)) as (sleeper,),
        redis.Redis.from_url(gateway.bus_url) as bus,
    ):
        for client in (*readers, sleeper):
            client.subscribe("news")
        most_held = 0.0
        for number in range(rounds):
            pipeline = bus.pipeline(transaction=False)
            for _ in range(each):
                pipeline.publish("wsgate:ch:news", b'"' + b"x" * size + b'"')
            pipeline.execute()
            for reader in readers:
                assert reader.heard(each) == ["x" * size] * each
            if number % 8 == 7:
                most_held = max(most_held, held_for_clients(gateway))
        # The socket may be full, so the close ends, and is counted, only when the client reads at last.
        said, code = sleeper.end()
        wait_until("it is closed", lambda: gateway.metric("wsgate_closes_total", reason="slow_consumer") == 1)
        assert code == 4010
        assert (said[-1]["op"], said[-1]["code"], said[-1]["reason"]) == ("bye", 4010, "slow_consumer")
        assert len(said) < rounds * each
        # The memory is that of a full outbox and of the frames just published to the other clients. The limit
        # counts the lengths of frames; a frame of 500 bytes uses a block of 1,024.
        block_bytes = 1 << (size + 64).bit_length()
        assert most_held <= (OUTBOX_BYTES // size + each + 2) * block_bytes + ENTRIES_BYTES


def small_receiver(port: int) -> socket.socket:
    """Connect a socket whose receive buffer the kernel does not enlarge, so that it stays small."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    sock.connect(("127.0.0.1", port))
    return sock


def held_for_clients(gateway: Gateway) -> float:
    held = gateway.metrics()
    return sum(held["wsgate_memory_bytes", (("kind", kind), ("shard", "0"))] for kind in ("frame", "outbox"))


def test_drain_that_cuts_a_dead_client_logs_it_and_exits_with_0() -> None:
    """Some clients are always dead, so cutting them is no failure for a service manager."""
    with running_gateway(environ={"WSGATE_SERVER__DRAIN_TIMEOUT": "1s"}) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=WITHIN_S) as dead:
            dead.sendall(
                b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            assert dead.recv(12) == b"HTTP/1.1 101"
            assert gateway.stop() == 0
    assert [line for line in gateway.warnings() if " clients_cut clients=1 " in line]
