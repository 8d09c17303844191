"""Run a real Redis as every kind of bus: sentinels with replicas, a cluster, TLS.

This is the Redis of Debian. Its one binary is in `redis-tools`, under the name of one of its uses.
"""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from tests.support.gateway import wait_until
from tests.support.packages import find_or_install, find_program
from tests.support.ports import CLUSTER_BUS_OFFSET, reserved_port, reserved_ports

__all__ = [
    "Cluster",
    "Sentinels",
    "Server",
    "TlsFiles",
    "running_cluster",
    "running_sentinels",
    "running_server",
    "tls_files",
]

HOST = "127.0.0.1"
START_S = 20.0
FAILOVER_S = 30.0
STOP_S = 10.0
SLOTS = 16384


@dataclass
class Server:
    """One process; a test may kill it and start it again at the same address, empty."""

    program: Path
    directory: Path
    port: int
    settings: dict[str, str] = field(default_factory=dict)
    config: str = ""  # lines of a configuration file that the server changes
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start the process and wait until `client().ping()` answers."""
        self.directory.mkdir(exist_ok=True)
        file = self.directory / "server.conf"
        file.write_text(self.config)
        settings = {
            "port": str(self.port),
            "bind": HOST,
            "dir": str(self.directory),
            "save": "",
        } | self.settings
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, str(file), *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        wait_until(f"the server on {self.port} answers", self._is_up, START_S)

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.directory / "log").read_text()
        with contextlib.suppress(OSError), socket.create_connection((HOST, self._any_port)):
            return True
        return False

    @property
    def _any_port(self) -> int:
        return self.port or int(self.settings["tls-port"])

    def client(self, **options: Any) -> Any:
        """Return a redis-py client of this one server."""
        return redis.Redis(host=HOST, port=self.port, socket_timeout=5, **options)

    def role(self) -> str:
        """Return `master` or `slave`, as the server answers."""
        found: bytes = self.client().execute_command("ROLE")[0]
        return found.decode()

    def kill(self) -> None:
        """Kill the process, as in a crash."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_S)

    def pause(self) -> None:
        """Stop the process; it keeps its connections and does nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue the stopped process."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


def _program(directory: Path) -> Path:
    """Return the path of Redis under the name that selects its use."""
    found = find_or_install(lambda: find_program("redis-check-rdb"), ["redis-tools"])
    assert found is not None, "no redis-tools here, and they could not be installed"
    link = directory / "redis-server"
    link.symlink_to(found)
    return link


@contextlib.contextmanager
def _fleet(make: Callable[[Path, Path], list[Server]]) -> Iterator[list[Server]]:
    with tempfile.TemporaryDirectory(prefix="wsgate-fleet-") as name, ExitStack() as stack:
        servers = make(_program(Path(name)), Path(name))
        for server in servers:
            stack.callback(server.kill)
            server.start()
        yield servers


@contextlib.contextmanager
def running_server(
    settings: dict[str, str] | None = None, *, tls: "TlsFiles | None" = None
) -> Iterator[Server]:
    """Run one server; with TLS on its only port, clients must have a certificate."""

    def make(program: Path, root: Path) -> list[Server]:
        more = dict(settings or {})
        if tls is None:
            return [Server(program, root / "one", port, more)]
        more |= {
            "tls-port": str(port),
            "tls-cert-file": str(tls.certificate),
            "tls-key-file": str(tls.key),
            "tls-ca-cert-file": str(tls.authority),
            "tls-auth-clients": "yes",
        }
        return [Server(program, root / "one", 0, more)]

    with reserved_port() as port, _fleet(make) as (server,):
        yield server


# --- sentinels ----------------------------------------------------------------------------------------


@dataclass
class Sentinels:
    """A primary, its replicas, and three sentinels."""

    servers: list[Server]
    watchers: list[Server]
    name: str = "main"

    @property
    def url(self) -> str:
        hosts = ",".join(f"{HOST}:{watcher.port}" for watcher in self.watchers)
        return f"redis+sentinel://{hosts}/{self.name}"

    def primary(self) -> Server:
        """Return the primary, as the first sentinel names it."""
        row = self.watchers[0].client().execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self.name)
        return next(server for server in self.servers if server.port == int(row[1]))

    def await_primary_other_than(self, former: Server) -> Server:
        """Wait until another server is the primary, as it answers itself; return it."""

        def has_changed() -> bool:
            now = self.primary()
            return now is not former and now.role() == "master"

        wait_until("another primary", has_changed, FAILOVER_S)
        return self.primary()


@contextlib.contextmanager
def running_sentinels(replicas: int = 2) -> Iterator[Sentinels]:
    """Run sentinels that notice a failure after half a second."""
    with reserved_ports(1 + replicas + 3) as ports:
        yield from _sentinels(replicas, ports)


def _sentinels(replicas: int, ports: list[int]) -> Iterator[Sentinels]:
    first, watching = ports[0], ports[1 + replicas :]
    config = (
        f"sentinel monitor main {HOST} {first} 2\nsentinel down-after-milliseconds main 500\n"
        "sentinel failover-timeout main 3000\n"
    )

    def make(program: Path, root: Path) -> list[Server]:
        servers = [
            Server(program, root / str(port), port, {} if port == first else {"replicaof": f"{HOST} {first}"})
            for port in ports[: 1 + replicas]
        ]
        sentinel = root / "redis-sentinel"
        sentinel.symlink_to(program.resolve())
        return servers + [Server(sentinel, root / str(port), port, {}, config) for port in watching]

    with _fleet(make) as servers:
        fleet = Sentinels(servers[: 1 + replicas], servers[1 + replicas :])

        def is_known() -> bool:
            rows = [watcher.client().execute_command("SENTINEL MASTER", "main") for watcher in fleet.watchers]
            return all(
                int(row["num-slaves"]) == replicas and int(row["num-other-sentinels"]) == 2 for row in rows
            )

        wait_until("the sentinels have found all servers", is_known, START_S)
        yield fleet


# --- a cluster ----------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """Primaries with slots, and a replica for each."""

    servers: list[Server]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"{HOST}:{server.port}" for server in self.servers[:2])

    def client(self) -> Any:
        """Return a cluster client of redis-py."""
        return redis.RedisCluster(host=HOST, port=next(self.living()).port, socket_timeout=5)

    def living(self) -> Iterator[Server]:
        """Return the servers that run."""
        return (server for server in self.servers if server.process and server.process.poll() is None)

    def owner(self, slot: int) -> Server | None:
        """Return the owner of a slot, as the first living server has it; None while there is none."""
        for first, last, *nodes in _slots(next(self.living())):
            if first <= slot <= last:
                return next(server for server in self.servers if server.port == nodes[0][1])
        return None

    def owner_of(self, name: str) -> Server:
        """Return the server that has a sharded channel."""
        found = self.owner(key_slot(name.encode()))
        assert found is not None
        return found

    def move(self, slot: int, target: Server) -> None:
        """Move an empty slot, as `redis-cli --cluster reshard` does."""
        source = self.owner(slot)
        assert source is not None and source is not target
        source_id, target_id = (each.client().execute_command("CLUSTER MYID") for each in (source, target))
        target.client().execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source_id)
        source.client().execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target_id)
        for server in (target, source):
            server.client().execute_command("CLUSTER SETSLOT", slot, "NODE", target_id)
        wait_until("all know the owner", lambda: self.owner(slot) is target, START_S)


def _slots(server: Server) -> Any:
    client = server.client()
    client.response_callbacks.pop("CLUSTER SLOTS", None)
    return client.execute_command("CLUSTER SLOTS")


@contextlib.contextmanager
def running_cluster(primaries: int = 3) -> Iterator[Cluster]:
    """Run a cluster with one replica per primary; a failure is noticed after a second."""
    with reserved_ports(2 * primaries, also_at=CLUSTER_BUS_OFFSET) as ports:
        yield from _cluster(primaries, ports)


def _cluster(primaries: int, ports: list[int]) -> Iterator[Cluster]:
    settings = {"cluster-enabled": "yes", "cluster-node-timeout": "1000", "cluster-config-file": "nodes.conf"}

    def make(program: Path, root: Path) -> list[Server]:
        return [Server(program, root / str(port), port, dict(settings)) for port in ports]

    with _fleet(make) as servers:
        fleet = Cluster(servers)
        for place, server in enumerate(servers[:primaries]):
            first, last = SLOTS * place // primaries, SLOTS * (place + 1) // primaries - 1
            server.client().execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            server.client().execute_command("CLUSTER SET-CONFIG-EPOCH", place + 1)
        for server in servers[1:]:
            server.client().execute_command("CLUSTER MEET", HOST, servers[0].port)
        for pair in itertools.permutations(servers, 2):
            wait_until("they know each other", partial(_knows, *pair), START_S)
        for place, server in enumerate(servers[primaries:]):
            other = servers[place].client().execute_command("CLUSTER MYID")
            server.client().execute_command("CLUSTER REPLICATE", other)

        def is_whole() -> bool:
            states = [server.client().execute_command("CLUSTER INFO")["cluster_state"] for server in servers]
            return set(states) == {"ok"} and all(len(row) == 4 for row in _slots(servers[0]))

        wait_until("the cluster is whole", is_whole, START_S)
        yield fleet


def _knows(one: Server, other: Server) -> bool:
    """Whether a server has another one in its table, by id: during the handshake the id is different."""
    rows = one.client().execute_command("CLUSTER NODES")
    return any(
        node.partition("@")[0].endswith(f":{other.port}") and "handshake" not in row["flags"]
        for node, row in rows.items()
    )


# --- TLS ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TlsFiles:
    """A private authority, and one certificate of it for both ends."""

    authority: Path
    certificate: Path
    key: Path

    @property
    def options(self) -> str:
        """Return the options behind the `?` of a bus URL."""
        return f"ssl_ca_certs={self.authority}&ssl_certfile={self.certificate}&ssl_keyfile={self.key}"


def tls_files(directory: Path, name: str = "authority") -> TlsFiles:
    """Make an authority and a certificate for 127.0.0.1 with openssl, valid for a day."""
    authority, authority_key = directory / f"{name}.pem", directory / f"{name}.key"
    certificate, key, request = (
        directory / f"{name}-{each}" for each in ("server.pem", "server.key", "request")
    )
    elliptic = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    _openssl(
        "req",
        "-x509",
        *elliptic,
        "-keyout",
        authority_key,
        "-out",
        authority,
        "-days",
        "1",
        "-subj",
        f"/CN={name}",
    )
    _openssl("req", *elliptic, "-keyout", key, "-out", request, "-subj", "/CN=bus")
    extensions = directory / f"{name}.extensions"
    extensions.write_text(f"subjectAltName=IP:{HOST},DNS:localhost\n")
    _openssl(
        *("x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority_key, "-CAcreateserial"),
        *("-out", certificate, "-days", "1", "-extfile", extensions),
    )
    os.chmod(key, 0o600)
    return TlsFiles(authority, certificate, key)


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
