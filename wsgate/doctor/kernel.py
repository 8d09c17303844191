"""Read the kernel's limits and counters from /proc and /sys, without judging them.

A file that does not exist (an older kernel, a module that is not loaded, a container that does not see the
file) gives None, and its check is left out.

Source: proc(5), proc_sys(5); the kernel's networking/ip-sysctl.rst and admin-guide/sysctl/net.rst.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

__all__ = ["Kernel", "read_kernel"]

_T = TypeVar("_T")
_LOOPBACK: Final = "lo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """The kernel's numbers, under its own names; a triple is least, default, most or low, pressure, high."""

    nr_open: int | None = None
    file_max: int | None = None
    files_open: int | None = None
    somaxconn: int | None = None
    tcp_max_syn_backlog: int | None = None
    tcp_syncookies: int | None = None
    listen_overflows: int | None = None
    listen_drops: int | None = None
    netdev_max_backlog: int | None = None
    softnet_dropped: int | None = None
    ip_local_port_range: tuple[int, int] | None = None
    tcp_tw_reuse: int | None = None
    time_wait: int | None = None
    page_bytes: int = 4_096
    tcp_mem_pages: tuple[int, int, int] | None = None
    tcp_pages_used: int | None = None
    wmem_max: int | None = None
    tcp_rmem: tuple[int, int, int] | None = None
    tcp_wmem: tuple[int, int, int] | None = None
    tcp_ehash_entries: int | None = None
    nf_conntrack_max: int | None = None
    nf_conntrack_count: int | None = None
    transparent_hugepage: str | None = None
    link_mbit_per_s: int | None = None


def read_kernel(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Kernel:
    """Read all numbers once, in a few milliseconds.

    Args:
        proc: The directory where proc is mounted.
        sys: The directory where sysfs is mounted.
    """
    net, ipv4 = proc / "sys/net", proc / "sys/net/ipv4"
    sockets = _try(lambda: _sockstat((proc / "net/sockstat").read_text())) or {}
    extended = _try(lambda: _netstat((proc / "net/netstat").read_text())) or {}
    return Kernel(
        nr_open=_number(proc / "sys/fs/nr_open"),
        file_max=_number(proc / "sys/fs/file-max"),
        files_open=_try(lambda: int((proc / "sys/fs/file-nr").read_text().split()[0])),
        somaxconn=_number(net / "core/somaxconn"),
        tcp_max_syn_backlog=_number(ipv4 / "tcp_max_syn_backlog"),
        tcp_syncookies=_number(ipv4 / "tcp_syncookies"),
        listen_overflows=extended.get("ListenOverflows"),
        listen_drops=extended.get("ListenDrops"),
        netdev_max_backlog=_number(net / "core/netdev_max_backlog"),
        softnet_dropped=_try(lambda: _softnet_dropped((proc / "net/softnet_stat").read_text())),
        ip_local_port_range=_try(lambda: _pair((ipv4 / "ip_local_port_range").read_text())),
        tcp_tw_reuse=_number(ipv4 / "tcp_tw_reuse"),
        time_wait=sockets.get("tw"),
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        tcp_mem_pages=_try(lambda: _triple((ipv4 / "tcp_mem").read_text())),
        tcp_pages_used=sockets.get("mem"),
        wmem_max=_number(net / "core/wmem_max"),
        tcp_rmem=_try(lambda: _triple((ipv4 / "tcp_rmem").read_text())),
        tcp_wmem=_try(lambda: _triple((ipv4 / "tcp_wmem").read_text())),
        tcp_ehash_entries=_positive(_number(ipv4 / "tcp_ehash_entries")),  # negative in another namespace
        nf_conntrack_max=_number(net / "netfilter/nf_conntrack_max"),
        nf_conntrack_count=_number(net / "netfilter/nf_conntrack_count"),
        transparent_hugepage=_try(
            lambda: _chosen((sys / "kernel/mm/transparent_hugepage/enabled").read_text())
        ),
        link_mbit_per_s=_fastest(sys / "class/net"),
    )


def _try(read: Callable[[], _T]) -> _T | None:
    """Call a reading function; None when its file is missing or has another form."""
    try:
        return read()
    except (OSError, ValueError, IndexError):
        return None


def _number(file: Path) -> int | None:
    return _try(lambda: int(file.read_text()))


def _positive(number: int | None) -> int | None:
    return number if number is not None and number > 0 else None


def _pair(text: str) -> tuple[int, int]:
    first, second = map(int, text.split())
    return first, second


def _triple(text: str) -> tuple[int, int, int]:
    first, second, third = map(int, text.split())
    return first, second, third


def _sockstat(text: str) -> dict[str, int]:
    """Parse the row of TCP in sockstat: `TCP: inuse 5 orphan 0 tw 2 alloc 8 mem 1`."""
    row = next((line for line in text.splitlines() if line.startswith("TCP:")), "").split()[1:]
    return dict(zip(row[::2], map(int, row[1::2]), strict=True))


def _netstat(text: str) -> dict[str, int]:
    """Parse the two rows of TcpExt in netstat: first the names, then the values."""
    names, values = (line.split()[1:] for line in text.splitlines() if line.startswith("TcpExt:"))
    return dict(zip(names, map(int, values), strict=True))


def _softnet_dropped(text: str) -> int:
    """Add up the drops in softnet_stat: the second column of each CPU's row, in hexadecimal."""
    return sum(int(line.split()[1], 16) for line in text.splitlines())


def _chosen(text: str) -> str:
    """Return the chosen word of a list: of `always [madvise] never` it is `madvise`."""
    return text[text.index("[") + 1 : text.index("]")]


def _fastest(interfaces: Path) -> int | None:
    """Return the Mbit/s of the fastest interface that is up; virtual interfaces have no speed."""
    speeds = [
        speed
        for interface in _try(lambda: sorted(interfaces.iterdir())) or []
        if interface.name != _LOOPBACK and (speed := _number(interface / "speed")) and speed > 0
    ]
    return max(speeds, default=None)
