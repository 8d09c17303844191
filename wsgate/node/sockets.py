"""What the kernel says of all sockets of this machine: memory, and accept queues that ran over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["SocketNumbers", "TcpMemory", "read_sockets"]

_PROC: Final = Path("/proc")
HIGH_SHARE: Final = 0.6
"""Of tcp_mem's last number: from here on newcomers are refused."""
LOW_SHARE: Final = 0.5


class SocketNumbers(NamedTuple):
    """Since the machine (or its network namespace) began.

    Attributes:
        pages: Of memory that TCP uses now.
        pages_limit: tcp_mem's last number: beyond it the kernel drops what arrives. 0: unknown.
        overflows: Connections that found an accept queue full.
        drops: Connections dropped on the way to one, for that or another reason.
    """

    pages: int
    pages_limit: int
    overflows: int
    drops: int


class TcpMemory:
    """Whether the machine has memory for more sockets, without flapping."""

    def __init__(self) -> None:
        self.is_short = False

    def judge(self, numbers: SocketNumbers) -> bool:
        """Short from three fifths of what the kernel allows on, until half of it."""
        share = HIGH_SHARE if not self.is_short else LOW_SHARE
        self.is_short = numbers.pages_limit > 0 and numbers.pages > share * numbers.pages_limit
        return self.is_short


def read_sockets(proc: Path = _PROC) -> SocketNumbers:
    """As of now; zeros where the kernel does not say.

    Source: tcp(7), tcp_mem; the kernel's Documentation/networking/snmp_counter.rst, TcpExtListenOverflows.
    """
    tcp = _pairs(_text(proc / "net/sockstat"), "TCP:")
    extended = _table(_text(proc / "net/netstat"), "TcpExt:")
    limits = _text(proc / "sys/net/ipv4/tcp_mem").split()
    return SocketNumbers(
        tcp.get("mem", 0),
        int(limits[2]) if len(limits) == 3 else 0,
        extended.get("ListenOverflows", 0),
        extended.get("ListenDrops", 0),
    )


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _pairs(text: str, name: str) -> Mapping[str, int]:
    """`name: key value key value`."""
    for line in text.splitlines():
        if line.startswith(name):
            words = line.split()[1:]
            return {key: int(value) for key, value in zip(words[::2], words[1::2], strict=False)}
    return {}


def _table(text: str, name: str) -> Mapping[str, int]:
    """Two lines: the names, then the values."""
    rows = [line.split()[1:] for line in text.splitlines() if line.startswith(name)]
    if len(rows) != 2:
        return {}
    return {key: int(value) for key, value in zip(*rows, strict=False)}
