"""Run a real Valkey (or Redis) for one test, on a TCP port and a Unix socket, with nothing on disk."""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.ports import CLUSTER_BUS_OFFSET, reserved_ports
from wsgate.node.embedded_bus import find_server

__all__ = ["Valkey", "running_valkey"]

STOP_S = 10


@dataclass
class Valkey:
    """One server, which a test may kill, stop and start again."""

    process: subprocess.Popen[str]
    port: int
    socket_path: Path
    host: str = "127.0.0.1"
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.socket_path}"

    def stop(self) -> None:
        """Kill the server, as in a crash; do nothing when it is gone."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_S)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def restart(self) -> None:
        """Start the server again at the same address, empty; return when it accepts connections."""
        self.stop()
        self.process = _launch(self.socket_path.parent, self.host, self.port, self.settings)
        said: list[str] = []
        assert _is_ready(self.process, said), "".join(said)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the process while the context is open; it keeps its connections and does nothing."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running_valkey(host: str = "127.0.0.1", port: int = 0, **settings: str) -> Iterator[Valkey]:
    """Run a server that accepts connections when it is yielded; end it afterwards.

    Args:
        host: The address of its port.
        port: 0 for a free one.
        settings: More settings of the server, `_` for `-`.
    """
    # A server of a cluster listens on a second port.
    also_at = CLUSTER_BUS_OFFSET if "cluster_enabled" in settings else 0
    reservation = reserved_ports(1, also_at=also_at)
    with tempfile.TemporaryDirectory(prefix="wsgate-valkey-") as name, reservation as (free,):
        more = {key.replace("_", "-"): value for key, value in settings.items()}
        valkey = _start(Path(name), host, port or free, more)
        try:
            yield valkey
        finally:
            valkey.stop()


def _start(directory: Path, host: str, port: int, settings: dict[str, str]) -> Valkey:
    process = _launch(directory, host, port, settings)
    valkey = Valkey(process, port, directory / "valkey.sock", host, settings)
    said: list[str] = []
    if not _is_ready(process, said):
        valkey.stop()
        raise AssertionError(f"the server does not start on port {port}:\n{''.join(said)}")
    return valkey


def _launch(directory: Path, host: str, port: int, more: dict[str, str]) -> subprocess.Popen[str]:
    settings = {
        "bind": host,
        "port": str(port),
        "unixsocket": str(directory / "valkey.sock"),
        "dir": str(directory),
        "save": "",
        "appendonly": "no",
        **more,
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
    return subprocess.Popen(
        [find_server(os.environ), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _is_ready(process: subprocess.Popen[str], said: list[str]) -> bool:
    """Read what the server prints until it accepts connections; False when it ends before.

    Args:
        process: The server, with a pipe for its standard output.
        said: Every line that was read is appended to this list.
    """
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if "Ready to accept connections" in line:
            return True
    return False
