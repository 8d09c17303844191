"""Check the runtime directory, its files and locks, the private bus, and the service manager socket."""

import contextlib
import fcntl
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from wsgate.errors import SettingsError
from wsgate.node.embedded_bus import EmbeddedBus, find_server
from wsgate.node.notify import notify
from wsgate.node.runtime import (
    RunningGateway,
    RuntimeFiles,
    lock_file,
    lock_port,
    read_lock_holder,
    running_gateways,
    runtime_directory,
    url_host,
    write_lock_holder,
)


def gateway(port: int = 8000, pid: int | None = None) -> RunningGateway:
    return RunningGateway(
        pid=os.getpid() if pid is None else pid,
        node="node-1",
        port=port,
        url=f"ws://127.0.0.1:{port}/ws",
        admin_port=9000,
        bus_url="unix:///x",
        prefix="wsgate",
        secret="s3cret",
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- the directory ------------------------------------------------------------------------------------


def test_runtime_directory_is_made_with_mode_0700(tmp_path: Path) -> None:
    made = runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path)})
    assert made == tmp_path / "wsgate" and mode(made) == 0o700
    assert runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path)}) == made


def test_first_runtime_directory_of_the_service_manager_is_used(tmp_path: Path) -> None:
    environ = {"RUNTIME_DIRECTORY": f"{tmp_path}/a:{tmp_path}/b", "XDG_RUNTIME_DIR": str(tmp_path)}
    assert runtime_directory(environ) == tmp_path / "a"


def test_runtime_directory_is_below_the_temporary_folder_without_environment_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert runtime_directory({}) == tmp_path / f"wsgate-{os.getuid()}"


@pytest.mark.parametrize("permissions", [0o770, 0o707, 0o777])
def test_runtime_directory_that_others_may_write_to_is_refused(tmp_path: Path, permissions: int) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(permissions)
    with pytest.raises(SettingsError, match="no other user may write"):
        runtime_directory({"RUNTIME_DIRECTORY": str(directory)})


def test_symbolic_link_as_runtime_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "wsgate").symlink_to(tmp_path / "real")
    with pytest.raises(SettingsError, match="a directory of yours"):
        runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path)})


def test_runtime_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(SettingsError, match="a directory of yours"):
        runtime_directory({"RUNTIME_DIRECTORY": str(tmp_path)})


def test_error_names_a_runtime_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=f"runtime directory {tmp_path}/file/wsgate: "):
        runtime_directory({"XDG_RUNTIME_DIR": f"{tmp_path}/file"})


# --- files of gateways --------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(directory: Path, port: int = 8000) -> Iterator[int]:
    descriptor = lock_port(directory, port)
    assert descriptor is not None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_file_of_a_running_gateway_has_mode_0600_and_is_found(tmp_path: Path) -> None:
    file = gateway().write(tmp_path)
    assert mode(file) == 0o600
    assert list(tmp_path.iterdir()) == [file]  # no draft
    with locked(tmp_path):
        assert running_gateways(tmp_path) == [gateway()]


def test_killed_gateway_is_ignored_although_another_process_has_its_process_id(tmp_path: Path) -> None:
    gateway(pid=os.getpid()).write(tmp_path)
    assert running_gateways(tmp_path) == [], "there is no lock file"
    with locked(tmp_path):
        pass
    assert running_gateways(tmp_path) == [], "the lock has ended with its process"


def test_running_gateway_of_another_container_is_found_by_its_lock(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gateway(pid=ended.pid).write(tmp_path)
    with locked(tmp_path):
        assert running_gateways(tmp_path) == [gateway(pid=ended.pid)]


def test_port_is_locked_although_a_command_looks_at_the_lock_meanwhile(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    command = os.open(lock_file(tmp_path, 8000), os.O_RDONLY)
    fcntl.flock(command, fcntl.LOCK_SH)
    timer = threading.Timer(0.02, os.close, [command])
    timer.start()
    with locked(tmp_path):
        timer.join()


def test_repr_of_a_running_gateway_contains_no_secret() -> None:
    assert "s3cret" not in repr(gateway())


def test_file_of_an_ended_gateway_or_malformed_file_is_ignored(tmp_path: Path) -> None:
    gateway(8001).write(tmp_path)
    (tmp_path / "gateway-8002.json").write_text("half a")
    (tmp_path / "gateway-8003.json").write_text(json.dumps({"pid": os.getpid(), "of": "another version"}))
    with locked(tmp_path, 8002), locked(tmp_path, 8003):
        assert running_gateways(tmp_path) == []


def test_port_can_be_locked_only_once_at_a_time(tmp_path: Path) -> None:
    held = lock_port(tmp_path, 8000)
    assert held is not None
    try:
        assert lock_port(tmp_path, 8000) is None
        other = lock_port(tmp_path, 8001)
        assert other is not None
        os.close(other)
        assert mode(lock_file(tmp_path, 8000)) == 0o600
        assert not os.get_inheritable(held)
    finally:
        os.close(held)
    again = lock_port(tmp_path, 8000)
    assert again is not None
    os.close(again)


def test_holder_in_a_lock_file_is_read_by_the_next_lock_of_the_file(tmp_path: Path) -> None:
    for before, after in (("", "a" * 200), ("a" * 200, "b"), ("b", ""), ("", "")):
        with locked(tmp_path) as descriptor:
            assert read_lock_holder(descriptor) == before
            write_lock_holder(descriptor, after)


def test_a_copy_of_a_lock_file_and_other_text_name_no_holder(tmp_path: Path) -> None:
    with locked(tmp_path) as descriptor:
        write_lock_holder(descriptor, "a")
    file = lock_file(tmp_path, 8000)
    original = file.rename(tmp_path / "original")
    for text in (original.read_bytes(), b"", b"7", b"\xff", b" a", b"x" * 5_000):
        file.write_bytes(text)
        with locked(tmp_path) as descriptor:
            assert not read_lock_holder(descriptor)


def test_removed_lock_file_is_restored_with_its_holder(tmp_path: Path) -> None:
    descriptor = lock_port(tmp_path, 8000)
    assert descriptor is not None
    write_lock_holder(descriptor, "a")
    files = RuntimeFiles(lambda: tmp_path, gateway(), descriptor)
    lock_file(tmp_path, 8000).unlink()
    assert files.restore() == ["port-8000.lock"]
    os.close(files.lock_fd)
    with locked(tmp_path) as descriptor:
        assert read_lock_holder(descriptor) == "a"


def test_removed_description_is_restored_with_what_a_reload_has_changed(tmp_path: Path) -> None:
    lock_fd = lock_port(tmp_path, 8000)
    assert lock_fd is not None
    files = RuntimeFiles(lambda: tmp_path, gateway(), lock_fd)
    reloaded = replace(gateway(), publish_limits={"news": 100})
    files.describe(reloaded)
    assert running_gateways(tmp_path) == [reloaded]
    (tmp_path / "gateway-8000.json").unlink()
    assert files.restore() == ["gateway-8000.json"]
    assert running_gateways(tmp_path) == [reloaded]
    os.close(files.lock_fd)


def test_description_that_cannot_be_written_is_written_when_the_directory_is_back(tmp_path: Path) -> None:
    directory = tmp_path / "wsgate"
    directory.mkdir()
    lock_fd = lock_port(directory, 8000)
    assert lock_fd is not None
    files = RuntimeFiles(lambda: directory, gateway(), lock_fd)
    directory.rename(tmp_path / "away")
    reloaded = replace(gateway(), publish_limits={"news": 100})
    files.describe(reloaded)
    directory.mkdir()
    files.restore()
    assert running_gateways(directory) == [reloaded]
    os.close(files.lock_fd)


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("", "127.0.0.1"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("2001:db8::7", "[2001:db8::7]"),
        ("10.1.2.3", "10.1.2.3"),
        ("gateway.internal", "gateway.internal"),
    ],
)
def test_host_setting_is_shown_as_a_reachable_host_in_the_url(host: str, named: str) -> None:
    assert url_host(host) == named


# --- the private bus ----------------------------------------------------------------------------------


def test_bus_server_is_searched_on_the_path_and_then_in_the_package(tmp_path: Path) -> None:
    carried = find_server({"PATH": str(tmp_path)})
    assert Path(carried).name == "valkey-server" and os.access(carried, os.X_OK)
    for name in ("redis-server", "valkey-server"):  # redis-server is accepted, valkey-server is preferred
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert find_server({"PATH": str(tmp_path)}) == str(tmp_path / name)


def test_too_long_path_of_the_bus_socket_raises_settings_error(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 100)
    directory.mkdir(mode=0o700)
    with pytest.raises(SettingsError, match="the path is too long for a Unix socket"):
        EmbeddedBus(directory, 8000, os.environ, 1 << 24, 1)


def test_private_bus_returns_the_tail_of_its_log_and_removes_its_files(tmp_path: Path) -> None:
    bus = EmbeddedBus(tmp_path, 8000, os.environ, 1 << 24, 1)
    assert bus.log_tail() == ""
    lines = [f"line {number}" for number in range(1_000)]
    (tmp_path / "8000/bus.log").write_text("\n".join(lines) + "\n\xff")
    assert bus.log_tail().startswith("line 997\nline 998\nline 999\n")
    assert not bus.is_up()
    bus.clean()
    assert list(tmp_path.iterdir()) == []


# --- the service manager ------------------------------------------------------------------------------


@contextlib.contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(address)
        channel.settimeout(10)
        yield channel


def test_service_manager_receives_each_notification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with manager(f"{tmp_path}/notify") as channel:
        monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
        notify("READY=1")
        notify("WATCHDOG=1")
        assert [channel.recv(100), channel.recv(100)] == [b"READY=1", b"WATCHDOG=1"]


def test_notification_reaches_an_abstract_socket_of_the_service_manager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"wsgate-test-{os.getpid()}"
    with manager(f"\0{name}") as channel:
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify("STOPPING=1")
        assert channel.recv(100) == b"STOPPING=1"


def test_notification_without_a_service_manager_raises_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/nobody")
    notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")
