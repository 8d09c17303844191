"""What keeps the secrets of a node's processes inside of them: no core dumps, and no variables for children.

A process that is not dumpable writes no core, also where the kernel pipes cores to a program, and no other
process of its user can read its memory. Children that are forked inherit that; a program that is started
anew, such as the private bus, does not, and is given nothing that is secret.
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
"""The limit that also stops a core from being piped to a program; 0 stops only a file. Source: core(5)."""
_PREFIX: Final = "WSGATE_"
_ENVIRONMENT: Final = 47  # of /proc/self/stat after the name: env_start, then env_end. Source: proc(5)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise InternalError(f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def forbid_dumps() -> None:
    """Write no core of this process nor of those it forks, and let only root read its memory.

    A change of the user undoes it, so call it again after one.
    """
    _prctl(_PR_SET_DUMPABLE, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == resource.RLIM_INFINITY or hard > _PIPED_LIMIT_BYTES:
        hard = _PIPED_LIMIT_BYTES
    # Where fs.suid_dumpable is 2 the kernel pipes the core of a process that is not dumpable all the same.
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def forbid_cores() -> None:
    """Let the program that this process becomes write no core, as far as a limit can forbid it."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def end_with_parent(parent_pid: int, number: int) -> bool:
    """Have the kernel send this process a signal when its parent ends; whether the parent still lives.

    The signal is set before the look at the parent, so that no moment is left uncovered. A change of the user
    would undo it.
    """
    _prctl(_PR_SET_PDEATHSIG, number)
    return os.getppid() == parent_pid


def hide_variables(environ: MutableMapping[str, str]) -> None:
    """Remove every variable that is a setting from this process's environment, and from its children's.

    Any of them may hold a secret, the right one or one that was put into the wrong variable. The kernel shows
    the environment that a process was started with from where it lay then, so that place is overwritten.

    Args:
        environ: `os.environ`; a copy of it is needed to read the settings again.
    """
    names = [name for name in environ if name.startswith(_PREFIX)]
    for name in names:
        del environ[name]
    if not names:
        return
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        start, end = int(fields[_ENVIRONMENT]), int(fields[_ENVIRONMENT + 1])
        if 0 < start < end:  # both 0 where the kernel does not tell
            _overwrite(start, ctypes.string_at(start, end - start))


def _overwrite(start: int, block: bytes) -> None:
    """Put zeros over every `WSGATE_...=...` of a block of variables at this address."""
    place = 0
    for entry in block.split(b"\0"):
        if entry.startswith(_PREFIX.encode()):
            ctypes.memset(start + place, 0, len(entry))
        place += len(entry) + 1
