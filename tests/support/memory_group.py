"""Make a control group with a memory limit, and start processes in it. It needs root."""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MemoryGroup", "MemoryGroupError", "memory_group"]

ROOT = Path("/sys/fs/cgroup")
EMPTY_S = 10.0


class MemoryGroupError(Exception):
    """No control group can be made on this machine; the message names the cause."""


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """One control group; a process that is started with `prefix` is in it, with all its children."""

    folder: Path

    @property
    def prefix(self) -> list[str]:
        """Return the words before a command that start it in the group."""
        return ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(self.folder)]

    def killed(self) -> int:
        """Return how many of its processes the kernel has killed for lack of memory."""
        file = "memory.events" if (self.folder / "memory.events").exists() else "memory.oom_control"
        rows = dict(line.split() for line in (self.folder / file).read_text().splitlines())
        return int(rows["oom_kill"])


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """Make a group with this limit for all its processes, with either version of control groups.

    Raises:
        MemoryGroupError: The user is not root, or no memory controller is available.
    """
    if (ROOT / "memory").is_dir():
        folder, limit = ROOT / "memory", "memory.limit_in_bytes"
    else:
        folder, limit = ROOT, "memory.max"
    folder /= f"wsgate-test-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
    except OSError as error:
        raise MemoryGroupError(f"no memory group can be made: {error.strerror}") from error
    try:
        try:
            (folder / limit).write_text(str(limit_bytes))
        except OSError as error:
            raise MemoryGroupError(f"no memory controller here: {error.strerror}") from error
        yield MemoryGroup(folder)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the group, which is possible only after its last process has ended."""
    until_s = time.monotonic() + EMPTY_S
    while True:
        try:
            os.rmdir(folder)
            return
        except OSError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)
