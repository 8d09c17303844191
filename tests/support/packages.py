"""Programs that tests need and Python's registry does not have: found, or installed when that is allowed."""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["find_or_install", "find_program"]

_INSTALLER = Path(__file__).with_name("install_packages.sh")


def find_or_install(find: Callable[[], str | None], packages: Sequence[str]) -> str | None:
    """What `find` finds, after installing one of the packages if it must be; None when that is not to be.

    Args:
        find: Looks for it; called again after an installation.
        packages: Debian packages of which any brings it: they are called differently over the years.
    """
    if found := find():
        return found
    for package in packages:
        subprocess.run(["sh", str(_INSTALLER), package], check=False)
        if found := find():
            break
    return found


def find_program(*names: str) -> str | None:
    """The path of the first of these programs that is there; daemons lie where a user's PATH may not lead."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    return next((found for name in names if (found := shutil.which(name, path=path))), None)
