"""Check which secrets a running node shows to other processes, and which user it runs as."""

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


def all_processes(gateway: Gateway) -> dict[str, int]:
    """Return every process of a node by its name."""
    found = {name: pid for name, (pid,) in gateway.children().items()}
    return found | {"wsgate": gateway.process.pid}


def test_crashed_processes_leave_no_core_file(tmp_path: Path) -> None:
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
        assert any("status=-11" in line for line in gateway.lines), "no process crashed"
        os.kill(gateway.process.pid, signal.SIGSEGV)
        assert gateway.process.wait(10) == -signal.SIGSEGV
        wait_until("all have ended", lambda: not gateway.processes())
    cores = [file for file in (*tmp_path.rglob("*core*"), *gateway.directory.rglob("*core*"))]
    assert cores == []


def test_environment_and_arguments_of_every_process_contain_no_secret_and_cores_are_off() -> None:
    with running_gateway("--shards", "2", environ=SECRETS) as gateway:
        found = all_processes(gateway)
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
            "the reload did not find the environment variables"
        )


@needs_root
def test_root_without_server_user_logs_one_warning_and_runs() -> None:
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
def test_root_binds_a_low_port_and_then_every_process_runs_as_server_user() -> None:
    account = pwd.getpwnam(NOBODY)
    environ = SECRETS | {"WSGATE_SERVER__USER": NOBODY}
    port = str(privileged_port())
    with running_gateway("--shards", "2", "--port", port, environ=environ) as gateway:
        assert gateway.port < 1_024
        assert not any("runs_as_root" in line for line in gateway.lines)
        for pid in all_processes(gateway).values():
            rows = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            assert rows["Uid"].split() == [str(account.pw_uid)] * 4
            assert rows["Gid"].split() == [str(account.pw_gid)] * 4
            assert set(rows["Groups"].split()) <= {
                str(each) for each in os.getgrouplist(NOBODY, account.pw_gid)
            }
            assert int(rows["CapEff"], 16) == int(rows["CapPrm"], 16) == 0
        for name, pid in all_processes(
            gateway
        ).items():  # owned by the user if the process is dumpable, otherwise by root
            owner = os.stat(f"/proc/{pid}/maps").st_uid
            assert owner == (account.pw_uid if name == "wsgate-bus" else 0), name
        for file in (gateway.directory, *gateway.directory.rglob("*")):
            assert file.lstat().st_uid == account.pw_uid, file
        wait_until(
            "every shard has measured its memory",
            lambda: all(
                gateway.metric("wsgate_proportional_set_bytes", shard=str(n)) > 1 << 20 for n in range(2)
            ),
        )
        assert gateway.metric("wsgate_bus_memory_bytes") > 1 << 20
        for name in ("wsgate-admin", "wsgate-bus", "wsgate-shard-0"):
            os.kill(gateway.pid_of(name), signal.SIGKILL)
        wait_until("all children are replaced", lambda: len(gateway.children()) == 4, 30)
        gateway.await_ready()
        assert "received by" in gateway.run("publish", "news", "1").stdout
        with connected(gateway.ws_url) as (client,):
            assert client.ask("ping") == {"op": "pong"}
        gateway.process.kill()
        gateway.process.wait(10)
        wait_until("no process is left", lambda: not gateway.processes())


def test_unknown_server_user_stops_the_start_with_exit_code_2(tmp_path: Path) -> None:
    flags = ("--dev", "--port", "0", "--admin-port", "0")
    environ = {"WSGATE_SERVER__USER": "no-such-user-here"}
    done = run_command("serve", *flags, directory=tmp_path, environ=environ, check=False)
    assert done.returncode == 2 and "server.user" in done.stderr and "Traceback" not in done.stderr


def test_admin_host_flag_sets_the_address_and_requires_a_key_beyond_loopback(tmp_path: Path) -> None:
    with running_gateway("--admin-host", "127.0.0.2") as gateway, socket.socket() as probe:
        probe.connect(("127.0.0.2", gateway.admin_port))
        assert any(f"http://127.0.0.2:{gateway.admin_port}" in line for line in gateway.lines)
    done = run_command(
        "serve", "--dev", "--port", "0", "--admin-port", "0", "--admin-host", "0.0.0.0",
        directory=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "admin.api_key" in done.stderr
