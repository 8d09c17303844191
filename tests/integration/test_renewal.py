"""Send SIGHUP: keys, namespaces and limits change, no client is closed, and faults are logged."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support.client import Client, connected
from tests.support.gateway import Gateway, run_command, running_gateway, wait_until
from wsgate.auth import OriginPolicy, TokenPolicy
from wsgate.bus import parse_address
from wsgate.reactor import GateLimits, Settings
from wsgate.shard.options import ShardOptions
from wsgate.shard.reload import Renewal

pytestmark = pytest.mark.slow

WITHIN_S: Final = 20.0
FIRST: Final = "the first secret, which is long enough for HS256"
SECOND: Final = "another secret, which is long enough as well"
BASE: Final = f"""
[auth.keys.first]
algorithm = "HS256"
secret = "{FIRST}"
[channels.news]
subscribe = "authenticated"
publish = "nobody"
"""
BOTH: Final = BASE + f'[auth.keys.second]\nalgorithm = "HS256"\nsecret = "{SECOND}"\n'


def token(kid: str, secret: str, user: str = "42") -> str:
    return jwt.encode({"sub": user, "exp": int(time.time()) + 600}, secret, "HS256", headers={"kid": kid})


class Node:
    """A gateway and its configuration file."""

    def __init__(self, gateway: Gateway, file: Path) -> None:
        self.gateway = gateway
        self.file = file

    def apply_file(self, text: str, said: str = "config_reloaded needs_restart=nothing") -> None:
        """Write the file, send the signal, and wait until every shard has reloaded."""
        before = self.gateway.metric("wsgate_config_reloads_total")
        self.file.write_text(text)
        self.gateway.process.send_signal(signal.SIGHUP)
        wait_until(said, lambda: any(said in line for line in self.gateway.lines), WITHIN_S)
        if "config_reload_failed" not in said:
            wait_until("all shards have reloaded", lambda: self._renewals() == before + 2, WITHIN_S)

    def _renewals(self) -> float:
        with contextlib.suppress(OSError):  # the admin process may be starting again
            return self.gateway.metric("wsgate_config_reloads_total")
        return -1.0

    def is_accepted(self, shown: str) -> bool:
        try:
            with connect(self.gateway.ws_url, additional_headers={"Authorization": f"Bearer {shown}"}):
                return True
        except InvalidStatus as refused:
            assert refused.response.status_code == 401
            return False


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    file = tmp_path / "wsgate.toml"
    file.write_text(BASE)
    with running_gateway("--shards", "2", "--config", str(file), is_dev=False) as gateway:
        yield Node(gateway, file)


@contextlib.contextmanager
def clients(node: Node, count: int = 6) -> Iterator[list[Client]]:
    """Connect clients to both shards; they must still be connected at the end."""
    with connected(node.gateway.ws_url, count, token=token("first", FIRST)) as made:
        for client in made:
            assert client.receive()["ch"] == "@me"
            client.subscribe("news:1")
        yield made
        for client in made:
            client.send("ping")
            while (said := client.receive())["op"] == "msg":
                pass
            assert said == {"op": "pong"}


def test_reload_adds_and_removes_token_keys_and_closes_no_client(node: Node) -> None:
    with clients(node):
        assert not node.is_accepted(token("second", SECOND))
        node.apply_file(BOTH)
        assert node.is_accepted(token("second", SECOND)) and node.is_accepted(token("first", FIRST))
        node.apply_file(BOTH.replace("keys.first", "keys.third"))
        assert node.is_accepted(token("second", SECOND))
        assert not node.is_accepted(token("first", FIRST)), "a cached token was accepted"


def test_token_command_signs_with_a_shared_secret_of_the_keys_and_names_it(node: Node) -> None:
    shown = node.gateway.run("token", "--user", "7", "--config", str(node.file)).stdout.strip()
    assert jwt.get_unverified_header(shown)["kid"] == "first"
    assert node.is_accepted(shown)


def test_token_command_refuses_a_configuration_with_only_public_keys(tmp_path: Path) -> None:
    file = tmp_path / "wsgate.toml"
    file.write_text('[auth]\njwks_url = "https://issuer.example/keys"\nissuer = "https://issuer.example"\n')
    done = run_command("token", "--user", "7", "--config", str(file), directory=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the configuration has only public keys" in done.stderr


def test_publish_command_uses_reloaded_namespaces_and_their_size_limits(node: Node) -> None:
    publish = ("publish", "chat:1", '"1234567890"')
    refused = node.gateway.run(*publish, check=False)
    assert refused.returncode == 2 and "no such namespace" in refused.stderr
    node.apply_file(BASE + "[channels.chat]\n")
    assert node.gateway.run(*publish).stdout.startswith("received by 0 shards")
    node.apply_file(BASE + '[channels.chat]\nmax_publish = "11B"\n')
    refused = node.gateway.run(*publish, check=False)
    assert refused.returncode == 2 and "too large: the data has 12 bytes" in refused.stderr
    # A program that cleans the temporary directory removes the description; the gateway writes it again.
    description = node.gateway.directory / f"gateway-{node.gateway.port}.json"
    description.unlink()
    wait_until("the description is restored", description.exists, WITHIN_S)
    refused = node.gateway.run(*publish, check=False)
    assert refused.returncode == 2 and "too large: the data has 12 bytes" in refused.stderr


def test_reload_message_keeps_the_origins_of_development_mode() -> None:
    origins = OriginPolicy(("https://a.example", "file://"), same_host=False, is_dev=True)
    options = ShardOptions(
        node="n",
        number=0,
        reactor=Settings(),
        gate=GateLimits(),
        bus=parse_address("unix:///nowhere"),
        origins=origins,
        tokens=TokenPolicy(),
    )
    renewal = Renewal.from_bytes(Renewal.of(options).to_bytes())
    assert renewal.applied(options).origins == origins


def test_reloaded_namespaces_and_limits_apply_to_open_connections(node: Node) -> None:
    with clients(node) as (client, *_):
        assert client.ask("sub", ch="chat:1", id=1)["error"] == "unknown_channel"
        assert client.ask("pub", ch="news:1", data=1, id=2)["error"] == "permission_denied"
        more = '[channels.chat]\nsubscribe = "authenticated"\n'
        limits = '[limits]\nmax_subscriptions = 4\nmax_message = "1KiB"\n'
        node.apply_file(BASE.replace('"nobody"', '"authenticated"') + more + limits)
        client.subscribe("chat:1")
        assert client.ask("sub", ch="chat:2", id=3)["op"] == "subbed"
        assert client.ask("sub", ch="chat:4", id=6)["op"] == "subbed"
        assert client.ask("sub", ch="chat:3", id=4)["error"] == "rate_limited"
        client.send("pub", ch="news:1", data=1, id=5)
        assert sorted(client.receive()["op"] for _ in range(2)) == ["msg", "ok"]
    with connected(node.gateway.ws_url, 1, token=token("first", FIRST)) as (loud,):
        loud.receive()
        loud.send("ping", padding="x" * 2_000)
        assert loud.end()[1] == 1009


def test_reloaded_publication_size_is_accepted_from_the_bus_too(node: Node) -> None:
    large = "x" * 100_000
    limits = '[limits]\nmax_message = "1MiB"\n'
    with clients(node) as (client, other, *_):
        node.apply_file(BASE.replace('"nobody"', '"authenticated"\nmax_publish = "512KiB"') + limits)
        client.send("pub", ch="news:1", data=large, id=1)
        assert sorted(client.receive()["op"] for _ in range(2)) == ["msg", "ok"]
        assert other.receive()["data"] == large


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "config:"),
        (BASE + "[limits]\nmax_message = 0\n", "limits.max_message"),
        (BASE.replace(FIRST, "short"), "auth.keys.first.secret"),
        (BASE + '[admission]\nmemory_budget = "1MiB"\n', "admission.memory_budget"),
        ("", "auth: no client can connect"),
    ],
)
def test_reload_of_a_wrong_file_changes_nothing_and_logs_the_setting(
    node: Node, text: str, said: str
) -> None:
    with clients(node):
        node.apply_file(text, "config_reload_failed")
        assert any(said in line and "config_reload_failed" in line for line in node.gateway.lines)
        assert not any(FIRST in line for line in node.gateway.lines)
        assert node.is_accepted(token("first", FIRST))
        node.apply_file(BOTH)
        assert node.is_accepted(token("second", SECOND))


def test_reload_of_a_configuration_from_a_pipe_is_refused_and_keeps_every_setting(tmp_path: Path) -> None:
    """A pipe is empty when it is read again; an empty configuration would restore all defaults."""
    file = tmp_path / "wsgate.toml"
    file.write_text(BASE)
    shell = ("bash", "-c", f'exec "$@" --config <(cat {file})', "bash")
    with running_gateway(prefix=shell, is_dev=False) as gateway:
        node = Node(gateway, file)
        assert node.is_accepted(token("first", FIRST))
        gateway.process.send_signal(signal.SIGHUP)
        event = "config_reload"
        wait_until("the reload has ended", lambda: any(event in line for line in gateway.lines), WITHIN_S)
        [line] = [line for line in gateway.lines if event in line]
        assert "config_reload_failed" in line and "is not a regular file" in line
        assert node.is_accepted(token("first", FIRST))


def test_reload_logs_the_settings_that_need_a_restart_and_keeps_their_values(node: Node) -> None:
    with clients(node):
        fixed = '[server]\npath = "/other"\nshards = 7\n[bus]\nprefix = "other"\n[log]\nlevel = "error"\n'
        node.apply_file(BOTH + fixed, "server.path bus.prefix log.level")
        assert node.is_accepted(token("second", SECOND))
        assert len([name for name in node.gateway.children() if "shard" in name]) == 2


def test_shards_and_admin_process_that_restart_use_the_reloaded_file(node: Node) -> None:
    with clients(node):
        node.apply_file(BOTH + '[admin]\napi_key = "a key"\n')
        wait_until("the admin process is ready", lambda: not node.gateway.why_not_ready(), WITHIN_S)
    for name in ("wsgate-shard-0", "wsgate-shard-1"):
        os.kill(node.gateway.pid_of(name), signal.SIGKILL)
    wait_until("the successors serve", lambda: not node.gateway.why_not_ready(), WITHIN_S)
    for _ in range(6):
        assert node.is_accepted(token("second", SECOND))
    assert not [line for line in node.gateway.warnings() if "admin" in line and "died" in line]


def test_fifty_reload_signals_at_once_reload_the_file_and_the_node_stops_normally(node: Node) -> None:
    with clients(node):
        node.file.write_text(BOTH)
        for _ in range(50):
            node.gateway.process.send_signal(signal.SIGHUP)
        wait_until("it is reloaded", lambda: node.is_accepted(token("second", SECOND)), WITHIN_S)
    assert node.gateway.stop() == 0


def test_every_reloadable_field_survives_the_message_to_a_shard(tmp_path: Path) -> None:
    """Each field that may change must arrive at the shard with its value."""
    from wsgate.config import load
    from wsgate.node.options import Machine, shard_options
    from wsgate.node.runtime import RunningGateway
    from wsgate.shard.reload import Renewal

    running = RunningGateway(1, "n", 1, "ws://h", 2, "unix:///s", "wsgate", "")
    rows: dict[str, Any] = {"auth": {"hmac_secret": FIRST}}
    before = shard_options(load(None, {}, rows), running, 0, Machine(2, 20_000))
    rows |= {
        "server": {"allowed_origins": ["https://a.example"], "drain_timeout": "1s"},
        "limits": {"auth_timeout": "1s", "max_channel_name": "20B", "head_timeout": "1s"},
        "channels": {"a": {"subscribe": "anyone"}},
        "admission": {"handshakes_in_progress": 7},
    }
    after = shard_options(load(None, {}, rows), running, 0, Machine(2, 20_000))
    assert before != after
    assert Renewal.from_bytes(Renewal.of(after).to_bytes()).applied(before) == after


def test_reloaded_connection_limit_of_the_node_is_divided_among_its_shards(tmp_path: Path) -> None:
    file = tmp_path / "wsgate.toml"
    file.write_text(BASE + "[admission]\nmax_connections = 4\nhandshake_rate = 30\n")
    file.chmod(0o600)
    with running_gateway("--shards", "3", "--config", str(file), is_dev=False) as gateway:

        def limits() -> list[float]:
            rows = gateway.metrics()
            return [rows["wsgate_connections_limit", (("shard", str(number)),)] for number in range(3)]

        wait_until("each shard has its part", lambda: limits() == [2, 1, 1])
        for most, shares in ((4, [2, 1, 1]), (8, [3, 3, 2]), (4, [2, 1, 1])):
            before = gateway.metric("wsgate_config_reloads_total")
            file.write_text(BASE + f"[admission]\nmax_connections = {most}\n")
            gateway.process.send_signal(signal.SIGHUP)
            wait_until(
                "all shards have reloaded",
                lambda before=before: gateway.metric("wsgate_config_reloads_total") == before + 3,  # type: ignore[misc]
            )
            wait_until("each shard has its new part", lambda shares=shares: limits() == shares)  # type: ignore[misc]
