"""Manage the runtime directory, with the files by which the `wsgate` commands find a running gateway.

Each user has one directory, with mode 0700. It contains a description and a lock file for each gateway, named
by its port, and the files of the private bus. A gateway removes its files when it ends. After kill -9 they
stay; a description whose lock file is not locked is ignored.
"""

import contextlib
import fcntl
import json
import os
import stat
import tempfile
import time
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
_LOCK_TRIES: Final = 10
_LOCK_PAUSE_S: Final = 0.01
"""Pause between tries to lock a port. Commands lock the file for less than 1 ms to find gateways."""


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """The description of a running gateway, for the `wsgate` commands on the same machine."""

    pid: int
    node: str
    port: int
    url: str  # the WebSocket URL for the client commands
    admin_port: int
    bus_url: str = field(repr=False)  # it may contain a password
    prefix: str
    # The secret with which `wsgate token` signs; empty when the configuration has a key.
    secret: str = field(repr=False)
    # The largest publication by namespace, see `wsgate.bus.receivers`; empty: not known.
    publish_limits: dict[str, int] = field(default_factory=dict)

    def write(self, directory: Path) -> Path:
        """Write the description into the runtime directory atomically, readable only by its owner."""
        target = _file_of(directory, self.port)
        draft = target.with_suffix(f".{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(target)
        return target


def url_host(host: str) -> str:
    """Return the host for a URL that reaches, from this machine, a listener on `host`."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - no bind
    return f"[{host}]" if ":" in host else host


def _file_of(directory: Path, port: int) -> Path:
    return directory / f"gateway-{port}.json"


def runtime_directory(
    environ: Mapping[str, str], *, owner: tuple[int, int] | None = None, is_only_read: bool = False
) -> Path:
    """Find the runtime directory, and make it if it is missing.

    It is `$RUNTIME_DIRECTORY` (made by systemd), else `wsgate` below `$XDG_RUNTIME_DIR`, else `wsgate-<uid>`
    in the system's temporary directory.

    Args:
        environ: The environment of this process.
        owner: The user and group that own the directory, set by root; None: those of this process.
        is_only_read: Nothing will be written, so root may use the directory of any user.

    Raises:
        SettingsError: The directory belongs to another user, or others may write to it, so that secrets could
            leak; or it cannot be made.
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
            f"runtime directory {directory}: must be a directory of yours to which no other user may write"
        )
    return directory


def lock_file(directory: Path, port: int) -> Path:
    """Return the path of the file that `lock_port` locks."""
    return directory / f"port-{port}.lock"


def lock_port(directory: Path, port: int) -> int | None:
    """Lock a port against a second gateway of this user.

    Returns:
        The descriptor that keeps the lock while it is open; None: another process has the lock.
    """
    descriptor = os.open(lock_file(directory, port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    for number in range(_LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            if number < _LOCK_TRIES - 1:
                time.sleep(_LOCK_PAUSE_S)
    os.close(descriptor)
    return None


def _is_locked(directory: Path, port: int) -> bool:
    """Return whether a gateway has locked this port. The kernel ends the lock with the process.

    Raises:
        OSError: The lock file does not exist, or cannot be opened.
    """
    descriptor = os.open(lock_file(directory, port), os.O_RDONLY | os.O_CLOEXEC)
    try:
        # A shared lock, so that two commands at a time do not take each other for a gateway.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def write_lock_holder(lock_fd: int, holder: str) -> None:
    """Write which lease on the bus this gateway holds into the locked file of its port; empty: none.

    Args:
        lock_fd: The descriptor from `lock_port`.
        holder: The text of the lease on the bus; empty when the node has no lease.
    """
    os.ftruncate(lock_fd, 0)
    if holder:
        # The inode marks a copy of the file: no gateway locks a copy, which therefore proves nothing.
        os.pwrite(lock_fd, f"{os.fstat(lock_fd).st_ino} {holder}".encode(), 0)


def read_lock_holder(lock_fd: int) -> str:
    """Return the holder that `write_lock_holder` wrote into this file; empty if there is none.

    The caller has locked the file. A holder that another process wrote has therefore ended: the kernel
    keeps the lock of a process until it ends, in whatever namespace of process ids it runs.
    """
    text = os.pread(lock_fd, _LOCK_LIMIT_BYTES, 0).decode("utf-8", "replace")
    inode, _, holder = text.partition(" ")
    return holder if inode == str(os.fstat(lock_fd).st_ino) else ""


class RuntimeFiles:
    """The files of a running gateway in the runtime directory, which are made again when they are removed.

    Without $RUNTIME_DIRECTORY and $XDG_RUNTIME_DIR the directory is in the temporary directory, where
    cleaning programs remove old files.

    Args:
        locate: Returns the directory, and makes it if it is missing.
        running: The description of the running gateway.
        lock_fd: The descriptor that has the lock of the gateway's port.
    """

    def __init__(self, locate: Callable[[], Path], running: RunningGateway, lock_fd: int) -> None:
        self.lock_fd = lock_fd
        self._locate = locate
        self._running = running
        self._is_stale = False  # whether the file may have a former description
        self._directory = locate()
        running.write(self._directory)

    def describe(self, running: RunningGateway) -> None:
        """Replace the description, now and whenever the file is made again.

        Only the commands read the file, so that a failure to write raises nothing: `restore` writes it later.
        """
        self._running = running
        self._is_stale = True
        with contextlib.suppress(OSError):
            running.write(self._directory)
            self._is_stale = False

    def restore(self) -> list[str]:
        """Make the directory and the files that are missing, and a description that could not be written.

        Returns:
            The names of these files.

        Raises:
            SettingsError: The directory cannot be made, or belongs to another user.
            InternalError: Another gateway has locked the port in the meantime.
            OSError: A file cannot be made.
        """
        self._directory = self._locate()
        missing = []
        if not self._is_ours(self._lock):
            self._lock_again(self._lock)
            missing.append(self._lock.name)
        file = _file_of(self._directory, self._running.port)
        if self._is_stale or not file.exists():
            self._running.write(self._directory)
            self._is_stale = False
            missing.append(file.name)
        return missing

    def clean(self) -> None:
        """Remove the description and the lock file; ignore a file that cannot be removed."""
        for file in (_file_of(self._directory, self._running.port), self._lock):
            with contextlib.suppress(OSError):
                file.unlink()

    @property
    def _lock(self) -> Path:
        return lock_file(self._directory, self._running.port)

    def _is_ours(self, lock: Path) -> bool:
        """Whether the lock file at this path is the same file as the locked descriptor."""
        try:
            return os.path.samestat(lock.stat(), os.fstat(self.lock_fd))
        except FileNotFoundError:
            return False

    def _lock_again(self, lock: Path) -> None:
        """Make and lock a new lock file, with the holder of the old one."""
        fresh = lock_port(self._directory, self._running.port)
        if fresh is None:
            raise InternalError(f"{lock} was removed, and another gateway has locked its replacement")
        write_lock_holder(fresh, read_lock_holder(self.lock_fd))
        os.close(self.lock_fd)
        self.lock_fd = fresh


def running_gateways(directory: Path) -> list[RunningGateway]:
    """List the gateways in a runtime directory that run.

    The lock of the port proves that a gateway runs. Its process id proves nothing: after kill -9 another
    process may have the id, and a gateway in another container has an id of its own.
    """
    found = []
    for file in sorted(directory.glob("gateway-*.json")):
        try:
            gateway = RunningGateway(**json.loads(file.read_text()))
            if _is_locked(directory, gateway.port):
                found.append(gateway)
        except (OSError, ValueError, TypeError):
            continue
    return found
