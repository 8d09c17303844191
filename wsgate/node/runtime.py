"""The runtime directory: where a running gateway leaves what its own commands need to find it.

One directory per user, mode 0700; in it one file per gateway, named by its port, and the private bus's
socket. Nothing here outlives the gateway except by kill -9, and a file whose process is gone is ignored.
"""

import contextlib
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from wsgate.errors import InternalError, SettingsError

__all__ = [
    "RunningGateway",
    "RuntimeFiles",
    "lock_file",
    "lock_port",
    "read_lock_holder",
    "running_gateways",
    "runtime_directory",
    "url_host",
    "write_lock_holder",
]

_LOCK_LIMIT_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """What a gateway says of itself."""

    pid: int
    node: str
    port: int
    url: str  # where its own commands connect as clients
    admin_port: int
    bus_url: str = field(repr=False)  # it may hold a password
    prefix: str
    # With which `wsgate token` signs; empty when the configuration has its own.
    secret: str = field(repr=False)
    # The largest publication by namespace, as `wsgate.bus.receivers` reads it; empty: not known.
    publish_limits: dict[str, int] = field(default_factory=dict)

    def write(self, directory: Path) -> Path:
        """Leave it in the runtime directory, readable by its owner only."""
        target = _file_of(directory, self.port)
        draft = target.with_suffix(f".{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(target)
        return target


def url_host(host: str) -> str:
    """How to name, in a URL on this machine, what listens on `host`."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - no bind
    return f"[{host}]" if ":" in host else host


def _file_of(directory: Path, port: int) -> Path:
    return directory / f"gateway-{port}.json"


def runtime_directory(
    environ: Mapping[str, str], *, owner: tuple[int, int] | None = None, is_only_read: bool = False
) -> Path:
    """The directory, made when it is not there.

    `$RUNTIME_DIRECTORY` (systemd makes it), else `wsgate` below `$XDG_RUNTIME_DIR`, else `wsgate-<uid>`
    in the system's temporary folder.

    Args:
        environ: The environment of this process.
        owner: User and group that it is to belong to, as root gives it; None: this process's own.
        is_only_read: Nothing is written there: then root may look into the directory of anybody.

    Raises:
        SettingsError: It belongs to somebody else or others may write to it: secrets would leak.
    """
    uid = os.getuid() if owner is None else owner[0]
    if given := environ.get("RUNTIME_DIRECTORY", "").split(":")[0]:
        directory = Path(given)
    elif base := environ.get("XDG_RUNTIME_DIR"):
        directory = Path(base) / "wsgate"
    else:
        directory = Path(tempfile.gettempdir()) / f"wsgate-{uid}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
        if owner is not None and stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            os.chown(directory, *owner, follow_symlinks=False)
            found = directory.lstat()
    except OSError as error:
        raise SettingsError(f"runtime directory {directory}: {error.strerror}") from error
    is_ours = found.st_uid == uid or (is_only_read and os.getuid() == 0)
    if not stat.S_ISDIR(found.st_mode) or not is_ours or found.st_mode & 0o022:
        raise SettingsError(
            f"runtime directory {directory}: must be a directory of yours that nobody else may write to"
        )
    return directory


def lock_file(directory: Path, port: int) -> Path:
    """What `lock_port` locks."""
    return directory / f"port-{port}.lock"


def lock_port(directory: Path, port: int) -> int | None:
    """Lock a port against a second gateway of this user; the descriptor holds it, None: it is taken."""
    descriptor = os.open(lock_file(directory, port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def write_lock_holder(lock_fd: int, holder: str) -> None:
    """Write the holder of the node's name into the locked file of its port.

    Args:
        lock_fd: From `lock_port`.
        holder: The text of the lease on the bus; empty when the node has no lease.
    """
    os.ftruncate(lock_fd, 0)
    if holder:
        # The inode marks a copy of the file: no gateway locks a copy, which therefore proves nothing.
        os.pwrite(lock_fd, f"{os.fstat(lock_fd).st_ino} {holder}".encode(), 0)


def read_lock_holder(lock_fd: int) -> str:
    """Return what `write_lock_holder` wrote into this file; empty when there is nothing of this kind.

    The caller has locked the file. A holder that another process wrote has therefore ended: the kernel
    keeps the lock of a process until it ends, in whatever namespace of process ids it runs.
    """
    text = os.pread(lock_fd, _LOCK_LIMIT_BYTES, 0).decode("utf-8", "replace")
    inode, _, holder = text.partition(" ")
    return holder if inode == str(os.fstat(lock_fd).st_ino) else ""


class RuntimeFiles:
    """What a running gateway keeps in the runtime directory, and makes again when somebody removes it.

    The default directory lies in the temporary folder, where cleaners remove what is old.

    Args:
        locate: Returns the directory and makes it when it is missing.
        running: The description of the running gateway.
        lock_fd: Holds the lock of the gateway's port.
    """

    def __init__(self, locate: Callable[[], Path], running: RunningGateway, lock_fd: int) -> None:
        self.lock_fd = lock_fd
        self._locate = locate
        self._running = running
        self._directory = locate()
        running.write(self._directory)

    def restore(self) -> list[str]:
        """Make again whatever is missing.

        Returns:
            The names of the files that were missing.

        Raises:
            SettingsError: The directory cannot be made, or it is somebody else's.
            InternalError: Another gateway has locked the port meanwhile.
            OSError: A file cannot be made.
        """
        self._directory = self._locate()
        missing = []
        if not self._is_ours(self._lock):
            self._lock_again(self._lock)
            missing.append(self._lock.name)
        file = _file_of(self._directory, self._running.port)
        if not file.exists():
            self._running.write(self._directory)
            missing.append(file.name)
        return missing

    def clean(self) -> None:
        """Remove the files; what cannot be removed is left."""
        for file in (_file_of(self._directory, self._running.port), self._lock):
            with contextlib.suppress(OSError):
                file.unlink()

    @property
    def _lock(self) -> Path:
        return lock_file(self._directory, self._running.port)

    def _is_ours(self, lock: Path) -> bool:
        """Whether the lock file is the very one that we hold."""
        try:
            return os.path.samestat(lock.stat(), os.fstat(self.lock_fd))
        except FileNotFoundError:
            return False

    def _lock_again(self, lock: Path) -> None:
        fresh = lock_port(self._directory, self._running.port)
        if fresh is None:
            raise InternalError(f"{lock} was removed, and another gateway holds the one in its place")
        write_lock_holder(fresh, read_lock_holder(self.lock_fd))
        os.close(self.lock_fd)
        self.lock_fd = fresh


def running_gateways(directory: Path) -> list[RunningGateway]:
    """The gateways of this user whose keeper lives."""
    found = []
    for file in sorted(directory.glob("gateway-*.json")):
        try:
            gateway = RunningGateway(**json.loads(file.read_text()))
            os.kill(gateway.pid, 0)
        except (OSError, ValueError, TypeError, InternalError):
            continue
        found.append(gateway)
    return found
