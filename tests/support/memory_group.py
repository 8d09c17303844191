"""A control group with a memory limit, for what is started in it. Needs root."""

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
    """None can be made here; the message says why."""


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """One group; a process started behind `prefix` is in it, and so is all that it starts."""

    folder: Path

    @property
    def prefix(self) -> list[str]:
        """What goes before a command."""
        return ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(self.folder)]

    def killed(self) -> int:
        """How many of its processes the kernel has killed for want of memory."""
        file = "memory.events" if (self.folder / "memory.events").exists() else "memory.oom_control"
        rows = dict(line.split() for line in (self.folder / file).read_text().splitlines())
        return int(rows["oom_kill"])


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """A group whose processes may use so many bytes together, of either version of control groups.

    Raises:
        MemoryGroupError: Not root, or there is no memory controller to be had.
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
    """It can go only when its last process has."""
    until_s = time.monotonic() + EMPTY_S
    while True:
        try:
            os.rmdir(folder)
            return
        except OSError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)
