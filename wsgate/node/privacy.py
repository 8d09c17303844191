"""Keep secrets inside the processes of a node: no core dumps, and no settings in the environment of children.

A process that is not dumpable writes no core, even if the kernel pipes cores to a program, and other
processes of its user cannot read its memory. Forked children inherit this. A program started with exec, such
as the private bus, does not; it receives no secret.
"""

import contextlib
import ctypes
import os
import resource
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from wsgate.errors import InternalError

__all__ = ["end_with_parent", "forbid_cores", "forbid_dumps", "hide_variables"]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PIPED_LIMIT_BYTES: Final = 1
"""The core limit that also prevents piping to a program; 0 prevents only a file. Source: core(5)."""
_PREFIX: Final = "WSGATE_"
_ENVIRONMENT: Final = 47  # of /proc/self/stat after the name: env_start, then env_end. Source: proc(5)


def _prctl(option: int, value: int) -> None:
    """Call prctl(2); raise InternalError when it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise InternalError(f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def forbid_dumps() -> None:
    """Forbid core dumps of this process and of those it forks, and let only root read its memory.

    A change of the user undoes this, so call the function again afterwards.
    """
    _prctl(_PR_SET_DUMPABLE, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == resource.RLIM_INFINITY or hard > _PIPED_LIMIT_BYTES:
        hard = _PIPED_LIMIT_BYTES
    # With fs.suid_dumpable = 2 the kernel also pipes the core of a process that is not dumpable.
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def forbid_cores() -> None:
    """Keep the core size limit low for the program that this process is about to execute."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def end_with_parent(parent_pid: int, number: int) -> bool:
    """Let the kernel send this process a signal when its parent ends; return whether the parent still runs.

    The signal is set before the parent is checked, so that no end of the parent is missed. A change of the
    user undoes the setting.
    """
    _prctl(_PR_SET_PDEATHSIG, number)
    return os.getppid() == parent_pid


def hide_variables(environ: MutableMapping[str, str]) -> None:
    """Remove every `WSGATE_` variable from the environment of this process and of its later children.

    Any of them may contain a secret, also one that was put into the wrong variable. The kernel shows the
    initial environment of a process from its original place in memory, so that memory is overwritten too.

    Args:
        environ: `os.environ`; the caller keeps a copy if it has to read the settings again.
    """
    names = [name for name in environ if name.startswith(_PREFIX)]
    for name in names:
        del environ[name]
    if not names:
        return
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        start, end = int(fields[_ENVIRONMENT]), int(fields[_ENVIRONMENT + 1])
        if 0 < start < end:  # both are 0 when the kernel hides them
            _overwrite(start, ctypes.string_at(start, end - start))


def _overwrite(start: int, block: bytes) -> None:
    """Overwrite every `WSGATE_...=...` in a block of variables at an address with zeros."""
    place = 0
    for entry in block.split(b"\0"):
        if entry.startswith(_PREFIX.encode()):
            ctypes.memset(start + place, 0, len(entry))
        place += len(entry) + 1
