"""Find the programs that tests need and Python's registry does not have, or install them where allowed."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

__all__ = ["find_or_install", "find_program", "installation_lock"]

_INSTALLER = Path(__file__).with_name("install_packages.sh")


@contextlib.contextmanager
def installation_lock() -> Iterator[None]:
    """Let one process of this machine install at a time; the others wait.

    The tests run in several processes, and two of them may miss the same package at the same moment.
    """
    path = Path(tempfile.gettempdir()) / f"wsgate-install-{os.getuid()}.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def find_or_install(find: Callable[[], str | None], packages: Sequence[str]) -> str | None:
    """Return what `find` finds; if that is nothing, install one of the packages and look again.

    Args:
        find: Looks for the program; called again after every installation.
        packages: Debian packages of which each contains the program; the package changed its name over time.

    Returns:
        The path of the program, or None if it could not be installed.
    """
    if found := find():
        return found
    with installation_lock():
        found = find()  # another process may have installed the package in the meantime
        for package in packages:
            if found:
                break
            subprocess.run(["sh", str(_INSTALLER), package], check=False)
            found = find()
    return found


def find_program(*names: str) -> str | None:
    """The path of the first of these programs that is there; daemons lie where a user's PATH may not lead."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    return next((found for name in names if (found := shutil.which(name, path=path))), None)
