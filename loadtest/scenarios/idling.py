"""Measures the memory of an idle connection, in the server process and in the kernel.

This runs first, and the first contender is measured before all others: the kernel reuses the slabs of closed
sockets, so that only the first growth after a rest is complete. All processes are started before: a process
that starts or ends changes the proportional set size of every other process that shares its pages.
"""

from __future__ import annotations

import time

from loadtest.harness.arithmetic import per_unit_us
from loadtest.harness.machine_info import kernel_memory
from loadtest.scenarios.stage import Contender, Figures

__all__ = ["open_idle"]

# Long enough that every timer and buffer of the handshakes has ended.
_REST_S = 1.0


def open_idle(contender: Contender, count: int) -> Figures:
    """Open `count` idle connections with the contender's engine, and measure their memory.

    Returns:
        Bytes per connection: `bytes_per_conn` (growth of the server's proportional set size),
        `private_bytes_per_conn`; `kernel_bytes_per_conn` (growth of all slab pages: both ends of a loopback
        connection), `kernel_object_bytes_per_conn` (of the objects in them) and
        `kernel_socket_bytes_per_conn` (queued data); `allocatedblocks_per_conn` (a count, of CPython);
        `connect_us` (server CPU per connection). For the gateway the first two are of keeper, shards and
        admin process together, and `bus_bytes_per_conn` is of its private bus.
    """
    server = contender.server
    before, kernel_before = server.call("memory"), kernel_memory()
    before_s = server.cpu_s()
    contender.open(count)
    cpu_s = server.cpu_s() - before_s
    time.sleep(_REST_S)
    after, kernel_after = server.call("memory"), kernel_memory()
    figures = {
        "bytes_per_conn": (after["pss_bytes"] - before["pss_bytes"]) / count,
        "private_bytes_per_conn": (after["private_bytes"] - before["private_bytes"]) / count,
        "allocatedblocks_per_conn": (after["allocated_blocks"] - before["allocated_blocks"]) / count,
        "connect_us": per_unit_us(cpu_s, count),
    }
    if "bus_pss_bytes" in before:
        figures["bus_bytes_per_conn"] = (after["bus_pss_bytes"] - before["bus_pss_bytes"]) / count
    if kernel_before is not None and kernel_after is not None:
        figures["kernel_bytes_per_conn"] = (kernel_after.slab_bytes - kernel_before.slab_bytes) / count
        figures["kernel_object_bytes_per_conn"] = (
            kernel_after.object_bytes - kernel_before.object_bytes
        ) / count
        figures["kernel_socket_bytes_per_conn"] = (
            kernel_after.socket_bytes - kernel_before.socket_bytes
        ) / count
    return figures
