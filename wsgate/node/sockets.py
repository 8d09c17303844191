"""Read the kernel's numbers about all TCP sockets of this machine: memory, and overflowed accept queues."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["SocketNumbers", "TcpMemory", "read_sockets"]

_PROC: Final = Path("/proc")
HIGH_SHARE: Final = 0.6
"""The share of tcp_mem's last number above which TCP memory is short, so that connections are refused."""
LOW_SHARE: Final = 0.5
"""The share at which TCP memory no longer counts as short."""


class SocketNumbers(NamedTuple):
    """The kernel's TCP numbers; counters run since the start of the network namespace. None: not readable.

    Attributes:
        pages: The pages of memory that TCP uses now.
        pages_limit: The last number of tcp_mem; above it the kernel drops arriving data.
        overflows: Connections that found an accept queue full.
        drops: Connections dropped before they reached an accept queue, for this or another reason.
    """

    pages: int | None
    pages_limit: int | None
    overflows: int | None
    drops: int | None


class TcpMemory:
    """Decide whether TCP memory is short, with two thresholds so that the state does not flap."""

    def __init__(self) -> None:
        self.is_short = False

    def judge(self, numbers: SocketNumbers) -> bool:
        """Return whether TCP memory is short: from `HIGH_SHARE` of the kernel's limit until `LOW_SHARE`.

        Numbers that could not be read change nothing.
        """
        share = HIGH_SHARE if not self.is_short else LOW_SHARE
        if numbers.pages is not None and numbers.pages_limit is not None:
            self.is_short = 0 < share * numbers.pages_limit < numbers.pages
        return self.is_short


def read_sockets(proc: Path = _PROC) -> SocketNumbers:
    """Read the present numbers; a number that cannot be read, for lack of descriptors for example, is None.

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
    """Read a file of /proc; "" when it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _numbers(names: Iterable[str], values: Iterable[str]) -> Mapping[str, int]:
    """Map names to their values; a name whose value is no number is left out."""
    pairs = zip(names, map(_number, values), strict=False)
    return {name: value for name, value in pairs if value is not None}


def _pairs(text: str, name: str) -> Mapping[str, int]:
    """Parse the line of a file that has the form `name: key value key value`."""
    for line in text.splitlines():
        if line.startswith(name):
            words = line.split()[1:]
            return _numbers(words[::2], words[1::2])
    return {}


def _table(text: str, name: str) -> Mapping[str, int]:
    """Parse two lines that begin with the same name: first the keys, then the values."""
    rows = [line.split()[1:] for line in text.splitlines() if line.startswith(name)]
    return _numbers(rows[0], rows[1]) if len(rows) == 2 else {}
