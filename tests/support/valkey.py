"""A real Valkey (or Redis) for one test: on a TCP port and a Unix socket, with nothing on disk."""

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wsgate.node.embedded_bus import find_server

__all__ = ["Valkey", "running_valkey"]

STOP_S = 10
START_TRIES = 5


@dataclass(frozen=True)
class Valkey:
    """One running server."""

    process: subprocess.Popen[str]
    port: int
    socket_path: Path

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.socket_path}"

    def stop(self) -> None:
        """Kill it, as a crash would; nothing when it is gone."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_S)


@contextlib.contextmanager
def running_valkey() -> Iterator[Valkey]:
    """A server that accepts connections when it is yielded and is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="wsgate-valkey-") as name:
        valkey = _start(Path(name))
        try:
            yield valkey
        finally:
            valkey.stop()
            assert valkey.process.stdout is not None
            valkey.process.stdout.close()


def _start(directory: Path) -> Valkey:
    for _ in range(START_TRIES):
        port = _free_port()
        valkey = Valkey(_launch(directory, port), port, directory / "valkey.sock")
        if _is_ready(valkey.process):
            return valkey
        valkey.stop()  # somebody else took the port meanwhile
    raise AssertionError("the server does not start")


def _launch(directory: Path, port: int) -> subprocess.Popen[str]:
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "unixsocket": str(directory / "valkey.sock"),
        "dir": str(directory),
        "save": "",
        "appendonly": "no",
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
    return subprocess.Popen(
        [find_server(os.environ), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _is_ready(process: subprocess.Popen[str]) -> bool:
    """Read what it says until it accepts connections; False when it ends instead."""
    assert process.stdout is not None
    return any("Ready to accept connections" in line for line in process.stdout)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
