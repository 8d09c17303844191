"""The name of this node, and the claim to it on the bus.

The name is stable: the configured one, else the host name. On a bus that several nodes share, a name belongs
to one live node at a time. Its lease (a key on the bus) holds who has it: the machine's boot, the namespace
of process ids, the keeper's id and when the keeper was started. So a node that is started again on the same
machine sees that the former holder is dead and takes its name back at once, also after kill -9.
"""

import contextlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from wsgate.bus import NODE_LEASE_MS, BusAddress, Names
from wsgate.bus.once import claim_once
from wsgate.errors import BackendError, SettingsError
from wsgate.log import Log
from wsgate.node.children import fork_child
from wsgate.node.privacy import end_with_parent

__all__ = ["Claim", "Holder", "claim_name", "names_for"]

LIVE_LOOK_S: Final = 0.5
_NAME_MOST: Final = 64
_ODD: Final = re.compile(r"[^A-Za-z0-9_.-]+")
_PROC: Final = Path("/proc")
_STARTED: Final = 19  # of /proc/<pid>/stat after the name: starttime. Source: proc(5)


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a node's name, as the lease on the bus says it."""

    boot: str  # of the machine's kernel; every boot has another
    namespace: int  # of process ids: a container has its own
    pid: int
    started: int  # ticks of the kernel between its boot and the start of the process

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
        return cls(_boot(), _namespace(), os.getpid(), _started(os.getpid()))

    @classmethod
    def from_text(cls, text: str) -> "Holder | None":
        """What a lease holds; None when it is nothing of ours."""
        try:
            row = json.loads(text)
            return cls(str(row["boot"]), int(row["namespace"]), int(row["pid"]), int(row["started"]))
        except (ValueError, TypeError, KeyError):
            return None

    def to_text(self) -> str:
        """For a lease."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @property
    def is_of_this_machine(self) -> bool:
        """Whether its process ids are those that we see, so that we can tell whether it lives."""
        return bool(self.boot) and (self.boot, self.namespace) == (_boot(), _namespace())

    @property
    def lives(self) -> bool:
        """Whether its process runs; only where `is_of_this_machine`."""
        return self.started != 0 and _started(self.pid) == self.started


def _boot() -> str:
    with contextlib.suppress(OSError):
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return ""


def _namespace() -> int:
    with contextlib.suppress(OSError):
        return (_PROC / "self/ns/pid").stat().st_ino
    return 0


def _started(pid: int) -> int:
    """When a process was started, in ticks since the boot; 0: there is none, or it has ended."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
        return 0 if fields[0] in "ZX" else int(fields[_STARTED])
    except (OSError, IndexError, ValueError):
        return 0


def names_for(configured: str, port: int) -> tuple[str, ...]:
    """The names to try, in this order: the configured one alone, else the host name and one with the port.

    The second is for another node on the same machine that has no name of its own either.
    """
    if configured:
        return (configured,)
    host = _ODD.sub("-", socket.gethostname())[: _NAME_MOST - 6].strip("-.") or "node"
    return host, f"{host}-{port}"


@dataclass(frozen=True, slots=True)
class Claim:
    """What became of a claim.

    Attributes:
        name: The last name that was tried.
        is_ours: Whether this node has it now.
        why: Who else has it, or why the bus could not be asked.
    """

    name: str
    is_ours: bool = True
    why: str = ""


def claim_name(
    names: Sequence[str], address: BusAddress, prefix: str, holder: Holder, timeout_s: float
) -> str:
    """Claim the first of these names that no other live node has.

    A bus that does not answer, or does not allow it, stops no start: the shards claim the name later.

    Args:
        names: From `names_for`.
        address: A bus that other nodes may share.
        prefix: Of names on it.
        holder: This node's keeper.
        timeout_s: For connecting, and for each answer.

    Raises:
        SettingsError: Another live node has the name.
    """
    claim = _in_a_child(names, address, prefix, holder, timeout_s)
    if claim.is_ours:
        if claim.why:
            Log("keeper").info("node_name_unchecked", node=claim.name, why=claim.why)
        elif claim.name != names[0]:
            Log("keeper").info("node_named", node=claim.name, why=f"another node here is {names[0]}")
        return claim.name
    raise SettingsError(
        f'server.node: another live node on {address} is named "{claim.name}" ({claim.why}):'
        " give this node a name of its own"
    )


def _in_a_child(
    names: Sequence[str], address: BusAddress, prefix: str, holder: Holder, timeout_s: float
) -> Claim:
    """Claim in a process of its own, so that the keeper does not carry a Redis client for ever."""
    read, write = os.pipe()
    keeper_pid = os.getpid()

    def work() -> None:
        os.close(read)
        if end_with_parent(keeper_pid, signal.SIGKILL):
            found = _claim(names, address, Names(prefix), holder, timeout_s)
            os.write(write, json.dumps(asdict(found)).encode())

    pid = fork_child("wsgate-claim", work)
    os.close(write)
    with open(read, "rb") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    try:
        return Claim(**json.loads(text))
    except (ValueError, TypeError):
        return Claim(names[0], why="the process that asks the bus failed")


def _claim(
    names: Sequence[str], address: BusAddress, bus_names: Names, holder: Holder, timeout_s: float
) -> Claim:
    claim = Claim("", is_ours=False)
    for name in names:
        try:
            by = _claim_one(address, bus_names.node(name), holder, timeout_s)
        except BackendError as error:
            return Claim(name, why=str(error))
        if by is None:
            return Claim(name)
        if not by:  # the name with the port is unique on this machine alone
            return Claim(name, is_ours=False, why="on another machine or in another container")
        claim = Claim(name, is_ours=False, why=f"process {by} of this machine")
    return claim


def _claim_one(address: BusAddress, key: bytes, holder: Holder, timeout_s: float) -> int | None:
    """Claim one name.

    Returns:
        None: it is ours. Else the id of the live process on this machine that has it; 0: on another one.
    """
    end_s = time.monotonic() + NODE_LEASE_MS / 1000 + 1
    dead, before_ms = "", NODE_LEASE_MS  # no lease runs longer
    while True:
        held, left_ms = claim_once(address, key, holder.to_text(), dead, timeout_s)
        if not held:
            return None
        other = Holder.from_text(held)
        if other is not None and other.is_of_this_machine:
            if other.lives:
                return other.pid
            if dead != held:
                dead = held
                continue  # at once: it cannot renew its lease any more
        # Nobody here can tell whether it lives: it does if it renews its lease, which then runs longer.
        if left_ms > before_ms or time.monotonic() > end_s:
            return 0
        before_ms = left_ms
        time.sleep(LIVE_LOOK_S)
