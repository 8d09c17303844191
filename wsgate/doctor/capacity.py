"""Compute how many connections each resource of the machine allows; the smallest number is the limit."""

from typing import Final

from wsgate.doctor.kernel import Kernel
from wsgate.doctor.model import Capacity, Demand, Resources

__all__ = ["FILES_OF_OTHERS", "USER_BYTES", "capacities", "queued_bytes"]

USER_BYTES: Final = 600
"""Memory of the gateway for an authenticated connection with its inbox and a shared channel: 534 bytes
measured with 500,000 connections (`make machine`)."""
KERNEL_BYTES: Final = 3_900
"""Memory of the kernel for an idle socket: the number that the gateway accounts for one, measured in a memory
group (`python -m loadtest memory_accounting`)."""
SEGMENT_OVERHEAD_BYTES: Final = 768
"""Memory of the kernel for a queued segment in addition to its data: descriptor and headers, rounded up to a
size class."""
FILES_OF_OTHERS: Final = 4_096
"""Open files that are left for other processes of the machine."""


def capacities(kernel: Kernel, resources: Resources, demand: Demand) -> tuple[Capacity, ...]:
    """Compute the connections that each limited resource allows, the smallest number first."""
    found = [
        Capacity("descriptors", resources.shards * (resources.descriptors - resources.reserve_descriptors)),
        Capacity("memory", _memory(resources, demand)),
    ]
    if kernel.file_max is not None:
        found.append(Capacity("fs.file-max", kernel.file_max - (kernel.files_open or 0) - FILES_OF_OTHERS))
    if kernel.nf_conntrack_max is not None and kernel.nf_conntrack_count:
        found.append(Capacity("nf_conntrack_max", kernel.nf_conntrack_max - kernel.nf_conntrack_count))
    ordered = sorted(found, key=lambda each: each.connections)
    return tuple(Capacity(each.resource, max(0, each.connections)) for each in ordered)


def _memory(resources: Resources, demand: Demand) -> int:
    """Compute the connections that memory allows while one publication is queued for all its receivers."""
    each = USER_BYTES + KERNEL_BYTES
    queued = queued_bytes(resources, demand)
    if not demand.fanout:
        return resources.memory_bytes // (each + queued)
    few = resources.memory_bytes // (each + queued)  # if every connection receives it
    return few if few <= demand.fanout else (resources.memory_bytes - demand.fanout * queued) // each


def queued_bytes(resources: Resources, demand: Demand) -> int:
    """Compute the kernel memory of one publication queued in one socket, in bytes."""
    return min(2 * resources.send_buffer_bytes, demand.message_bytes + SEGMENT_OVERHEAD_BYTES)
