"""How many connections each resource bears. The smallest number names what binds."""

from typing import Final

from wsgate.doctor.demand import Demand, Resources
from wsgate.doctor.findings import Capacity
from wsgate.doctor.kernel import Kernel

__all__ = ["FILES_OF_OTHERS", "USER_BYTES", "capacities", "queued_bytes"]

USER_BYTES: Final = 600
"""Of the gateway, for an authenticated connection with its inbox and a shared channel: 534 measured with
500,000 (`make machine`)."""
KERNEL_BYTES: Final = 3_900
"""Of the kernel, for an idle socket: what the gateway books for one, measured in a memory group
(`python -m loadtest memory_accounting`)."""
SEGMENT_OVERHEAD_BYTES: Final = 768
"""The kernel's own for a queued segment: its descriptor and headers, rounded up to its size class."""
FILES_OF_OTHERS: Final = 4_096


def capacities(kernel: Kernel, resources: Resources, demand: Demand) -> tuple[Capacity, ...]:
    """Every resource that has an end, the tightest first."""
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
    """What is left when one publication waits in the kernel for everybody it goes to."""
    each = USER_BYTES + KERNEL_BYTES
    queued = queued_bytes(resources, demand)
    if not demand.fanout:
        return resources.memory_bytes // (each + queued)
    few = resources.memory_bytes // (each + queued)  # as many as all of them hear it
    return few if few <= demand.fanout else (resources.memory_bytes - demand.fanout * queued) // each


def queued_bytes(resources: Resources, demand: Demand) -> int:
    """Of kernel memory for one publication that waits in one socket; never more than its send buffer."""
    return min(2 * resources.send_buffer_bytes, demand.message_bytes + SEGMENT_OVERHEAD_BYTES)
