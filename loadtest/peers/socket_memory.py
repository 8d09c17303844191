"""Reads from each socket of this process how much memory the kernel uses for unsent data.

This checks the memory that a server charges for peers that do not read. It visits all descriptors, some us
each: only on request, never inside a timed section.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from typing import Final, TypedDict

__all__ = ["SendMemory", "send_memory"]

# Not in the socket module. Source: include/uapi/asm-generic/socket.h and linux/sock_diag.h of the kernel.
_SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("@9I")
_WMEM_QUEUED: Final = 5  # sk_wmem_queued: data without acknowledgement, with the kernel's own overhead


class SendMemory(TypedDict):
    """Bytes in the send queues of all IPv4 TCP sockets, the number of such queues, and the largest one."""

    queued_bytes: int
    queued_sockets: int
    queued_most_bytes: int


def send_memory() -> SendMemory:
    """Return the present contents of the send queues. O(descriptors)."""
    sizes = [size for name in os.listdir("/proc/self/fd") if (size := _queued_bytes(int(name))) > 0]
    return SendMemory(
        queued_bytes=sum(sizes), queued_sockets=len(sizes), queued_most_bytes=max(sizes, default=0)
    )


def _queued_bytes(descriptor: int) -> int:
    """Return the bytes in one socket's send queue; 0 for all but an IPv4 TCP socket."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return 0
        # A duplicate, so that closing the object does not close the server's descriptor.
        with socket.socket(fileno=os.dup(descriptor)) as duplicate:
            if duplicate.family != socket.AF_INET or duplicate.type != socket.SOCK_STREAM:
                return 0
            info = duplicate.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    except OSError:
        return 0  # closed since it was listed, as the descriptor of the listing is
    return int(_MEMINFO.unpack(info)[_WMEM_QUEUED])
