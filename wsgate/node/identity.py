"""Choose the name of this node, and claim the name on a bus that several nodes share.

The name is stable: it is configured, or else it is the host name. On a shared bus only one running node may
have a name. Its lease (a key on the bus) identifies the holder: the machine's boot, the namespace of process
ids, the process id of the keeper and the start time of the keeper. A node that finds the lease of another
holder takes the name over in one of these cases:

- At once, if the process ids of the holder are visible here and its process has ended. This is the restart on
  the same machine, also after kill -9.
- At once, if this node's predecessor wrote this holder into the lock file of the runtime directory, and the
  machine has not rebooted since. The lock is free, so the predecessor has ended. This is the restart of a
  container that keeps its runtime directory.
- After a reboot, if the predecessor wrote this holder, and no shard has renewed the lease for
  `REBOOT_WATCH_S`. The waiting is needed because a copy of the machine's disk has the same lock file, while
  the original may still run.
- When the lease expires, after at most `NODE_LEASE_MS`.
"""

import contextlib
import json
import math
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Sequence
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
REBOOT_WATCH_S: Final = 6.5
"""Longer than the interval in which each shard renews the lease, 5 s, and the time that a renewal takes."""
_NAME_MOST: Final = 64
_ODD: Final = re.compile(r"[^A-Za-z0-9_.-]+")
_PROC: Final = Path("/proc")
_STARTED: Final = 19  # of /proc/<pid>/stat after the name: starttime. Source: proc(5)


@dataclass(frozen=True, slots=True)
class Holder:
    """The holder of a node's name: the identity of a keeper process that is written into the lease."""

    boot: str  # the boot id of the machine's kernel; each boot has a new one
    namespace: int  # the inode of the namespace of process ids; a container has its own
    pid: int
    started: int  # the start time of the process, in kernel ticks since the boot

    @classmethod
    def here(cls) -> "Holder":
        """Return the holder that identifies this process."""
        return cls(_boot(), _namespace(), os.getpid(), _started(os.getpid()))

    @classmethod
    def from_text(cls, text: str) -> "Holder | None":
        """Parse the text of a lease. Returns None when the text was not written by `to_text`."""
        try:
            row = json.loads(text)
            return cls(str(row["boot"]), int(row["namespace"]), int(row["pid"]), int(row["started"]))
        except (ValueError, TypeError, KeyError):
            return None

    def to_text(self) -> str:
        """Return the text for a lease: compact JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @property
    def is_of_this_machine(self) -> bool:
        """Whether the holder is of this boot and of this namespace of process ids."""
        return bool(self.boot) and (self.boot, self.namespace) == (_boot(), _namespace())

    @property
    def lives(self) -> bool:
        """Whether the process of the holder still runs; meaningful only if `is_of_this_machine`."""
        return self.started != 0 and _started(self.pid) == self.started


def _boot() -> str:
    """Read the boot id of the kernel; "" when it cannot be read."""
    with contextlib.suppress(OSError):
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return ""


def _namespace() -> int:
    """Read the inode of this process's namespace of process ids; 0 when it cannot be read."""
    with contextlib.suppress(OSError):
        return (_PROC / "self/ns/pid").stat().st_ino
    return 0


def _started(pid: int) -> int:
    """Read the start time of a process, in ticks since the boot; 0 when it does not exist or has ended."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
        return 0 if fields[0] in "ZX" else int(fields[_STARTED])
    except (OSError, IndexError, ValueError):
        return 0


def _is_hidden(pid: int) -> bool:
    """Whether a process exists but is invisible to this user, as with the option `hidepid` of /proc."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not (_PROC / str(pid)).exists()
    except (OSError, OverflowError):
        return False
    return False


def names_for(configured: str, port: int) -> tuple[str, ...]:
    """List the names to claim, in order: the configured one alone, or the host name and one with the port.

    The name with the port is for a second node on the same machine that has no configured name either.
    """
    if configured:
        return (configured,)
    host = _ODD.sub("-", socket.gethostname())[: _NAME_MOST - 6].strip("-.") or "node"
    return host, f"{host}-{port}"


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of a claim to a node's name.

    Attributes:
        name: The last name that was tried.
        is_ours: Whether this node may use the name.
        why: Where the other holder runs, or why the name could not be claimed on the bus.
    """

    name: str
    is_ours: bool = True
    why: str = ""


def claim_name(
    names: Sequence[str],
    address: BusAddress,
    prefix: str,
    holder: Holder,
    timeout_s: float,
    *,
    former: str = "",
) -> str:
    """Claim the first of several names that no other running node has, and return it.

    If the bus does not reply, or refuses the command, the node starts all the same: the shards claim the name
    later.

    Args:
        names: The names from `names_for`.
        address: The address of a bus that other nodes may share.
        prefix: The prefix of keys on the bus.
        holder: The holder that identifies this node's keeper.
        timeout_s: Time for connecting, and again for each reply, in seconds.
        former: The holder that this node's predecessor left in the runtime directory; it has ended.

    Raises:
        SettingsError: Other running nodes have all these names.
    """
    bus_names = Names(prefix)

    def claim_one(name: str) -> int | None:
        return _claim_one(address, bus_names.node(name), holder, timeout_s, former=former)

    claim = _in_a_child(names, claim_one)
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


def _in_a_child(names: Sequence[str], claim_one: Callable[[str], int | None]) -> Claim:
    """Run the claim in a child process, so that the keeper never loads a Redis client."""
    read, write = os.pipe()
    keeper_pid = os.getpid()

    def work() -> None:
        os.close(read)
        if end_with_parent(keeper_pid, signal.SIGKILL):
            found = _claim(names, claim_one)
            os.write(write, json.dumps(asdict(found)).encode())

    pid = fork_child("wsgate-claim", work)
    os.close(write)
    with open(read, "rb") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    try:
        return Claim(**json.loads(text))
    except (ValueError, TypeError):
        return Claim(names[0], why="the process that claims the name has failed")


def _claim(names: Sequence[str], claim_one: Callable[[str], int | None]) -> Claim:
    """Try the names in order until one is free; stop when the bus fails or another machine has the name."""
    claim = Claim("", is_ours=False)
    for name in names:
        try:
            by = claim_one(name)
        except BackendError as error:
            return Claim(name, why=str(error))
        if by is None:
            return Claim(name)
        if not by:  # the name with the port is unique only on this machine, so it does not help
            return Claim(name, is_ours=False, why="on another machine or in another container")
        claim = Claim(name, is_ours=False, why=f"process {by} of this machine")
    return claim


def _claim_one(
    address: BusAddress, key: bytes, holder: Holder, timeout_s: float, *, former: str = ""
) -> int | None:
    """Claim one name, and block for up to the duration of a lease while another holder may be running.

    Args:
        address: The address of a bus that other nodes may share.
        key: The key of the lease.
        holder: The holder that identifies this node's keeper.
        timeout_s: Time for connecting, and again for each reply, in seconds.
        former: The holder that this node's predecessor left in the runtime directory; it has ended.

    Returns:
        None when this node has the name now. Else the id of the process on this machine that has it, or 0
        when the holder is on another machine or in another container.
    """
    start_s = time.monotonic()
    dead, before_ms = "", math.inf
    while True:
        held, left_ms = claim_once(address, key, holder.to_text(), dead, timeout_s)
        if not held:
            return None
        other, watched_s = Holder.from_text(held), time.monotonic() - start_s
        if other is not None and other.is_of_this_machine and other.lives:
            return other.pid
        # A running holder elsewhere renews its lease, which then runs longer than at the last reading.
        if left_ms > before_ms or watched_s > NODE_LEASE_MS / 1000 + 1:
            return 0
        if dead != held and other is not None and _has_ended(other, held == former, watched_s):
            dead = held  # the holder has ended and cannot renew its lease, so claim the name at once
            continue
        before_ms = left_ms
        time.sleep(LIVE_LOOK_S)


def _has_ended(other: Holder, is_predecessor: bool, watched_s: float) -> bool:
    """Whether it is certain on this machine that a holder has ended; False if it is not known.

    Args:
        other: The holder, whose process is not visible here.
        is_predecessor: Whether the holder is in the lock file that this node has locked.
        watched_s: For how many seconds this node has seen no renewal of the lease.
    """
    if other.is_of_this_machine:
        return not _is_hidden(other.pid)
    # Within one boot the free lock is a proof. After a reboot, a copy of the disk may have the same file.
    is_of_this_boot = bool(other.boot) and other.boot == _boot()
    return is_predecessor and (is_of_this_boot or watched_s > REBOOT_WATCH_S)
