"""What the kernel really holds to be sent by this process, asked of its sockets one by one.

The judge of what a server books for peers that do not read. A walk over all descriptors, some us each: only
when asked for, never inside a timed section.
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
_WMEM_QUEUED: Final = 5  # sk_wmem_queued: data not yet acknowledged, with the kernel's own overhead


class SendMemory(TypedDict):
    """Bytes in the send queues of all IPv4 TCP sockets, of how many of them, and the most of any one."""

    queued_bytes: int
    queued_sockets: int
    queued_most_bytes: int


def send_memory() -> SendMemory:
    """Return what the send queues hold now. O(descriptors)."""
    sizes = [size for name in os.listdir("/proc/self/fd") if (size := _queued_bytes(int(name))) > 0]
    return SendMemory(
        queued_bytes=sum(sizes), queued_sockets=len(sizes), queued_most_bytes=max(sizes, default=0)
    )


def _queued_bytes(descriptor: int) -> int:
    """Return what one socket's send queue holds; 0 for anything but an IPv4 TCP socket."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return 0
        # A duplicate, so that closing the object leaves the server's descriptor alone.
        with socket.socket(fileno=os.dup(descriptor)) as duplicate:
            if duplicate.family != socket.AF_INET or duplicate.type != socket.SOCK_STREAM:
                return 0
            info = duplicate.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    except OSError:
        return 0  # gone since it was listed, as the listing's own descriptor is
    return int(_MEMINFO.unpack(info)[_WMEM_QUEUED])
