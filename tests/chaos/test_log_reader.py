"""Let the reader of the log hang, be slow or go away: the gateway serves on and counts lost lines."""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.client import connected
from tests.support.gateway import Gateway, running_gateway, wait_until

pytestmark = pytest.mark.slow

F_SETPIPE_SZ = 1031
PIPE_BYTES = 4096
WITHIN_S = 60.0
BANNER_TOO = 'exec "$@" >"$0" 2>&1'
ERRORS_ONLY = 'exec "$@" 2>"$0"'


@dataclass
class Reader:
    """The read end of a pipe of one page that is the standard error of a gateway."""

    path: Path
    fd: int

    def fill(self) -> None:
        """Fill the pipe, as when the reader hangs while other processes write."""
        writer = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b".")  # single bytes: a longer piece that does not fit would leave room
        os.close(writer)

    def read_until(self, *words: str) -> str:
        """Read until each of these words was read; return everything read."""
        found: list[str] = []

        def has_come() -> bool:
            with contextlib.suppress(BlockingIOError):
                found.append(os.read(self.fd, 65_536).decode())
            return all(word in "".join(found) for word in words)

        wait_until(" ".join(words), has_come, WITHIN_S)
        return "".join(found)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES)
    yield Reader(path, fd)
    with contextlib.suppress(OSError):
        os.close(fd)


def make_all_log(gateway: Gateway) -> None:
    """Make the keeper, a shard and the admin process write log lines, in this order."""
    for name in ("wsgate-bus", "wsgate-shard-1"):
        before = gateway.pid_of(name)
        os.kill(before, signal.SIGKILL)
        wait_until(name, lambda: gateway.children().get(name, [before]) not in ([], [before]), WITHIN_S)  # noqa: B023
    gateway.process.send_signal(signal.SIGHUP)
    with socket.create_connection(("127.0.0.1", gateway.admin_port), timeout=WITHIN_S) as peer:
        peer.sendall(b"nonsense\r\n\r\n")
        assert peer.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("form", ["text", "json"])
def test_log_reader_that_hangs_blocks_no_process_and_finds_every_line_afterwards(
    reader: Reader, form: str
) -> None:
    environ = {"WSGATE_LOG__FORMAT": form}
    prefix = ("sh", "-c", ERRORS_ONLY, str(reader.path))
    with running_gateway("--shards", "2", environ=environ, prefix=prefix) as gateway:
        reader.fill()
        make_all_log(gateway)
        gateway.await_ready(WITHIN_S)
        assert gateway.get("/healthz")
        with connected(gateway.ws_url, 8) as clients:  # on both shards
            make_all_log(gateway)
            gateway.await_ready(WITHIN_S)
            assert gateway.get("/healthz")
            for client in clients:
                with contextlib.suppress(ConnectionClosed):  # its shard was killed
                    assert client.ask("ping", id=1)["op"] == "pong"
        with connected(gateway.ws_url, 8):
            pass
        log = reader.read_until("bus_failed", "config_reloaded", "http", "died")
        log += reader.read_until("drained") if gateway.stop() == 0 else ""
        assert "died child=shard-1" in log or '"cause": "died", "child": "shard-1"' in log
        # Each line is about another process or start. Of two deaths within a second only one is logged.
        of_processes = [line for line in log.splitlines() if re.search(r'\bpid("?: |=)\d', line)]
        assert len(set(of_processes)) == len(of_processes), "a forked child wrote its parent's line again"
        if form == "json":
            assert all(json.loads(line.lstrip(".")) for line in log.splitlines() if line.strip("."))


def test_node_starts_and_stops_while_its_output_pipe_is_full(reader: Reader) -> None:
    reader.fill()
    prefix = ("sh", "-c", BANNER_TOO, str(reader.path))
    with running_gateway(prefix=prefix, wait=False) as gateway:
        gateway.await_ready()
        with connected(gateway.ws_url, 1):
            assert gateway.stop() == 0


def test_log_lines_after_the_reader_closed_its_pipe_are_counted_as_dropped(reader: Reader) -> None:
    prefix = ("sh", "-c", ERRORS_ONLY, str(reader.path))
    with running_gateway("--shards", "2", prefix=prefix) as gateway:
        os.close(reader.fd)
        make_all_log(gateway)
        gateway.await_ready(WITHIN_S)
        wait_until("counted", lambda: gateway.metric("wsgate_log_lines_dropped_total") > 0, WITHIN_S)


def test_slow_log_reader_receives_every_line_and_none_is_dropped(reader: Reader) -> None:
    """The reader takes a few bytes at a time while three processes write."""
    taken = bytearray()
    is_over = threading.Event()

    def read() -> None:
        while not is_over.wait(0.002):
            with contextlib.suppress(BlockingIOError):
                taken.extend(os.read(reader.fd, 64))

    prefix = ("sh", "-c", ERRORS_ONLY, str(reader.path))
    with running_gateway("--shards", "2", prefix=prefix) as gateway:
        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        make_all_log(gateway)
        gateway.await_ready(WITHIN_S)
        wait_until("two reloads", lambda: taken.count(b" config_reloaded") >= 2, WITHIN_S)
        assert gateway.metric("wsgate_log_lines_dropped_total") == 0
        is_over.set()
        thread.join()
