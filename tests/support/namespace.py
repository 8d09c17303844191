"""Make a network namespace with one cable to the present one: a host of its own that can vanish.

This needs root, `ip` and `nft`. Where that is not possible, `far_host` raises with the cause, so that a test
is skipped with it. Everything that it makes has a name of its own and is removed at the end; nothing else
changes.
"""

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.support.packages import find_or_install, find_program

__all__ = ["FarHost", "NamespaceError", "far_host"]

PREFIX_BITS = 30


class NamespaceError(Exception):
    """No namespace can be made on this machine; the message names the cause."""


@dataclass(frozen=True, slots=True)
class FarHost:
    """The host at the other end of the cable."""

    namespace: str
    ours: str
    """The address of this host on the cable."""
    theirs: str
    """The address of the far host on the cable."""
    nft: str

    def start(self, command: Sequence[str]) -> "subprocess.Popen[str]":
        """Start a process on the far host, with a pipe for its standard output."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def vanish(self) -> None:
        """Drop all packets from and to the far host from now on; there is no FIN, reset or ICMP."""
        self.impair("drop")

    def impair(self, *rules: str, hooks: Sequence[str] = ("input", "output")) -> None:
        """Apply these nft rules to every packet that reaches (`input`) or leaves (`output`) the far host."""
        table = "add table inet impaired"
        for hook in hooks:
            table += f"; add chain inet impaired {hook} {{ type filter hook {hook} priority 0; }}"
            table += "".join(f"; add rule inet impaired {hook} {rule}" for rule in rules)
        self._nft(table)

    def heal(self) -> None:
        """Remove every impairment."""
        self._nft("delete table inet impaired")

    def _nft(self, commands: str) -> None:
        _run("ip", "netns", "exec", self.namespace, self.nft, commands)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NamespaceError(f"{' '.join(command[:4])}: {done.stderr.strip()}")


@contextlib.contextmanager
def far_host() -> Iterator[FarHost]:
    """Make a namespace, a pair of interfaces, and an address at each end.

    Raises:
        NamespaceError: The user is not root, `ip` or `nft` is missing, or the kernel does not allow it.
    """
    if os.geteuid() != 0:
        raise NamespaceError("only root may make a network namespace")
    nft = find_or_install(lambda: find_program("nft"), ["nftables"])
    if find_or_install(lambda: find_program("ip"), ["iproute2"]) is None or nft is None:
        raise NamespaceError("no ip or no nft here, and they could not be installed")
    mark = secrets.token_hex(3)
    name, near, far = f"wsgate-{mark}", f"wsg{mark}a", f"wsg{mark}b"
    # A network of two addresses from the range for tests of equipment (RFC 2544).
    third, fourth = secrets.randbelow(256), 4 * secrets.randbelow(64)
    ours, theirs = f"198.18.{third}.{fourth + 1}", f"198.18.{third}.{fourth + 2}"
    with contextlib.ExitStack() as undo:
        _run("ip", "netns", "add", name)
        undo.callback(_run, "ip", "netns", "delete", name)  # this removes the cable too
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        _run("ip", "address", "add", f"{ours}/{PREFIX_BITS}", "dev", near)
        _run("ip", "link", "set", near, "up")
        _run("ip", "-n", name, "address", "add", f"{theirs}/{PREFIX_BITS}", "dev", far)
        _run("ip", "-n", name, "link", "set", far, "up")
        yield FarHost(name, ours, theirs, nft)
