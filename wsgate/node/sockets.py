"""What the kernel says of all sockets of this machine: memory, and accept queues that ran over."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["SocketNumbers", "TcpMemory", "read_sockets"]

_PROC: Final = Path("/proc")
HIGH_SHARE: Final = 0.6
"""Of tcp_mem's last number: from here on newcomers are refused."""
LOW_SHARE: Final = 0.5


class SocketNumbers(NamedTuple):
    """Since the machine (or its network namespace) began. None: the kernel did not say.

    Attributes:
        pages: Of memory that TCP uses now.
        pages_limit: tcp_mem's last number: beyond it the kernel drops what arrives.
        overflows: Connections that found an accept queue full.
        drops: Connections dropped on the way to one, for that or another reason.
    """

    pages: int | None
    pages_limit: int | None
    overflows: int | None
    drops: int | None


class TcpMemory:
    """Whether the machine has memory for more sockets, without flapping."""

    def __init__(self) -> None:
        self.is_short = False

    def judge(self, numbers: SocketNumbers) -> bool:
        """Short from three fifths of what the kernel allows on, until half of it.

        Numbers that could not be read change nothing.
        """
        share = HIGH_SHARE if not self.is_short else LOW_SHARE
        if numbers.pages is not None and numbers.pages_limit is not None:
            self.is_short = 0 < share * numbers.pages_limit < numbers.pages
        return self.is_short


def read_sockets(proc: Path = _PROC) -> SocketNumbers:
    """As of now; None for each number that cannot be read, for instance because no descriptor is free.

    Source: tcp(7), tcp_mem; the kernel's Documentation/networking/snmp_counter.rst, TcpExtListenOverflows.
    """
    tcp = _pairs(_text(proc / "net/sockstat"), "TCP:")
    extended = _table(_text(proc / "net/netstat"), "TcpExt:")
    limits = _text(proc / "sys/net/ipv4/tcp_mem").split()
    return SocketNumbers(
        tcp.get("mem"),
        _number(limits[2]) if len(limits) == 3 else None,
        extended.get("ListenOverflows"),
        extended.get("ListenDrops"),
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _numbers(names: Iterable[str], values: Iterable[str]) -> Mapping[str, int]:
    """Names and their values; a name whose value is no number is left out."""
    pairs = zip(names, map(_number, values), strict=False)
    return {name: value for name, value in pairs if value is not None}


def _pairs(text: str, name: str) -> Mapping[str, int]:
    """`name: key value key value`."""
    for line in text.splitlines():
        if line.startswith(name):
            words = line.split()[1:]
            return _numbers(words[::2], words[1::2])
    return {}


def _table(text: str, name: str) -> Mapping[str, int]:
    """Two lines: the names, then the values."""
    rows = [line.split()[1:] for line in text.splitlines() if line.startswith(name)]
    return _numbers(rows[0], rows[1]) if len(rows) == 2 else {}
