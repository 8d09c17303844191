"""What a running node shows of its secrets to other processes, and which user it runs as."""

import os
import pwd
import resource
import signal
import socket
from pathlib import Path

import pytest

from tests.support.client import connected
from tests.support.gateway import ROOT, Gateway, run_command, running_gateway, wait_until

pytestmark = pytest.mark.slow

SECRET = "a secret for these tests, and long enough"
API_KEY = "an api key for these tests, and long enough"
SECRETS = {"WSGATE_AUTH__HMAC_SECRET": SECRET, "WSGATE_ADMIN__API_KEY": API_KEY}
NOBODY = "nobody"
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


def everybody(gateway: Gateway) -> dict[str, int]:
    """Every process of a node by its name."""
    found = {name: pid for name, (pid,) in gateway.children().items()}
    return found | {"wsgate": gateway.process.pid}


def test_no_process_that_crashes_leaves_a_core_with_a_secret(tmp_path: Path) -> None:
    prefix = ["sh", "-c", f'ulimit -c unlimited; cd {tmp_path}; exec "$@"', "sh"]
    environ = SECRETS | {"PYTHONPATH": str(ROOT)}
    with running_gateway(prefix=prefix, environ=environ) as gateway:
        names = ("wsgate-shard-0", "wsgate-admin", "wsgate-bus")
        for name in names:
            before = gateway.pid_of(name)
            os.kill(before, signal.SIGSEGV)
            wait_until(
                f"another {name}",
                lambda name=name, before=before: gateway.children().get(name) not in (None, [], [before]),  # type: ignore[misc]
                30,
            )
        gateway.await_ready()
        assert any("status=-11" in line for line in gateway.lines), "they did crash"
        os.kill(gateway.process.pid, signal.SIGSEGV)
        assert gateway.process.wait(10) == -signal.SIGSEGV
        wait_until("all have ended", lambda: not gateway.processes())
    cores = [file for file in (*tmp_path.rglob("*core*"), *gateway.directory.rglob("*core*"))]
    assert cores == []


def test_no_limit_and_no_environment_of_a_process_gives_a_secret_away() -> None:
    with running_gateway("--shards", "2", environ=SECRETS) as gateway:
        found = everybody(gateway)
        assert len(found) == 5
        for name, pid in found.items():
            assert resource.prlimit(pid, resource.RLIMIT_CORE)[0] <= 1, name
            for file in ("environ", "cmdline"):
                shown = Path(f"/proc/{pid}/{file}").read_bytes()
                assert SECRET.encode() not in shown and API_KEY.encode() not in shown, (name, file)
                assert b"WSGATE_" not in shown
        with connected(gateway.ws_url) as (client,):
            assert client.ask("ping") == {"op": "pong"}
        gateway.process.send_signal(signal.SIGHUP)
        wait_until(
            "settings are read again", lambda: any("keeper config_reloaded" in line for line in gateway.lines)
        )
        assert not any("config_reload_failed" in line for line in gateway.lines), (
            "the variables are known still"
        )


@needs_root
def test_root_without_a_user_is_one_warning_and_runs() -> None:
    with running_gateway() as gateway:
        assert sum("runs_as_root" in line for line in gateway.lines) == 1
        assert any("server.user" in line for line in gateway.lines)


def privileged_port() -> int:
    for port in range(1_023, 600, -1):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port below 1024 is free")


@needs_root
def test_root_with_a_user_binds_its_ports_and_becomes_the_user_with_everything_it_starts() -> None:
    account = pwd.getpwnam(NOBODY)
    environ = SECRETS | {"WSGATE_SERVER__USER": NOBODY}
    port = str(privileged_port())
    with running_gateway("--shards", "2", "--port", port, environ=environ) as gateway:
        assert gateway.port < 1_024
        assert not any("runs_as_root" in line for line in gateway.lines)
        for pid in everybody(gateway).values():
            rows = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            assert rows["Uid"].split() == [str(account.pw_uid)] * 4
            assert rows["Gid"].split() == [str(account.pw_gid)] * 4
            assert set(rows["Groups"].split()) <= {
                str(each) for each in os.getgrouplist(NOBODY, account.pw_gid)
            }
            assert int(rows["CapEff"], 16) == int(rows["CapPrm"], 16) == 0
        for name, pid in everybody(gateway).items():  # a file of the user's where it is dumpable, else root's
            owner = os.stat(f"/proc/{pid}/maps").st_uid
            assert owner == (account.pw_uid if name == "wsgate-bus" else 0), name
        for file in (gateway.directory, *gateway.directory.rglob("*")):
            assert file.lstat().st_uid == account.pw_uid, file
        wait_until(
            "every shard has weighed itself",
            lambda: all(
                gateway.metric("wsgate_proportional_set_bytes", shard=str(n)) > 1 << 20 for n in range(2)
            ),
        )
        assert gateway.metric("wsgate_bus_memory_bytes") > 1 << 20
        for name in ("wsgate-admin", "wsgate-bus", "wsgate-shard-0"):
            os.kill(gateway.pid_of(name), signal.SIGKILL)
        wait_until("all are back", lambda: len(gateway.children()) == 4, 30)
        gateway.await_ready()
        assert "received by" in gateway.run("publish", "news", "1").stdout
        with connected(gateway.ws_url) as (client,):
            assert client.ask("ping") == {"op": "pong"}
        gateway.process.kill()
        gateway.process.wait(10)
        wait_until("nothing outlives the keeper", lambda: not gateway.processes())


def test_a_user_that_cannot_be_become_stops_the_start(tmp_path: Path) -> None:
    flags = ("--dev", "--port", "0", "--admin-port", "0")
    environ = {"WSGATE_SERVER__USER": "no-such-user-here"}
    done = run_command("serve", *flags, directory=tmp_path, environ=environ, check=False)
    assert done.returncode == 2 and "server.user" in done.stderr and "Traceback" not in done.stderr


def test_the_address_of_the_admin_port_is_a_flag(tmp_path: Path) -> None:
    with running_gateway("--admin-host", "127.0.0.2") as gateway, socket.socket() as probe:
        probe.connect(("127.0.0.2", gateway.admin_port))
        assert any(f"http://127.0.0.2:{gateway.admin_port}" in line for line in gateway.lines)
    done = run_command(
        "serve", "--dev", "--port", "0", "--admin-port", "0", "--admin-host", "0.0.0.0",
        directory=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "admin.api_key" in done.stderr
