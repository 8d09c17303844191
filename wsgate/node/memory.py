"""Divide the memory budget of a node between its processes, its private bus and the clients of its shards."""

from typing import Final

from wsgate.errors import SettingsError
from wsgate.node.machine import address_space_left, usable_memory

__all__ = ["bus_share", "memory_share"]

FIRST_BYTES: Final = 80 * 1024 * 1024
"""Memory of a gateway with one shard before its first client, the private bus included: measured 68 MB."""
ONE_MORE_BYTES: Final = 8 * 1024 * 1024
"""Memory of each further shard before its first client: measured 6.9 MB."""
LEAST_BYTES: Final = 16 * 1024 * 1024
"""The least memory for the clients of a shard. With less, the memory kept for reuse alone would fill it."""
BUS_LEAST_BYTES: Final = 8 * 1024 * 1024
"""The least memory of the private bus for its data: channel names, events, and the connections of users."""
BUS_OUTPUT_BYTES: Final = 8 * 1024 * 1024
"""The least output that the private bus may buffer for one shard; see `wsgate.admission.BusShares`."""
BUS_PART: Final = 8
"""The private bus gets one part in so many of the budget, if that is more than its minimum."""


def bus_share(budget_bytes: int, shards: int) -> int:
    """Compute the memory limit of the private bus, in bytes; clients that would exceed it are refused.

    Args:
        budget_bytes: The memory of the node, see `memory_share`.
        shards: The number of shards, >= 1.
    """
    return max(BUS_LEAST_BYTES + shards * BUS_OUTPUT_BYTES, _budget(budget_bytes) // BUS_PART)


def _budget(budget_bytes: int) -> int:
    """Return the memory budget of the node in bytes; if it is not set, nine tenths of the memory."""
    return budget_bytes or usable_memory() * 9 // 10


def memory_share(budget_bytes: int, shards: int, bus_bytes: int = 0) -> int:
    """Compute the memory that one shard may use for its clients, in bytes.

    Args:
        budget_bytes: The memory of all processes of the node; 0: nine tenths of what the machine allows.
        shards: The number of shards, >= 1.
        bus_bytes: The memory limit of the private bus; 0: the node has none.

    Raises:
        SettingsError: The memory left for clients is too small, or the budget is larger than the memory of
            the machine or its control group, so that the kernel would kill processes within the budget.
    """
    name = "admission.memory_budget"
    budget = _budget(budget_bytes)
    if budget_bytes == 0:
        name += " is not set and nine tenths of what this machine or its control group allows"
    elif budget > (usable := usable_memory()):
        raise SettingsError(
            f"{name}: {budget >> 20} MiB are more than this machine or its control group has,"
            f" {usable >> 20} MiB"
        )
    fixed = FIRST_BYTES + (shards - 1) * ONE_MORE_BYTES + bus_bytes
    share = (budget - fixed) // shards
    if share < LEAST_BYTES:
        least = fixed + shards * LEAST_BYTES
        raise SettingsError(
            f"{name}: {budget >> 20} MiB leave too little for clients, {least >> 20} MiB are the least"
            f" with {shards} shards"
        )
    left = address_space_left()
    if left:
        share = min(share, left * 3 // 4)  # the rest is for heap fragmentation and uncounted memory
    if share < LEAST_BYTES:
        raise SettingsError(
            f"RLIMIT_AS leaves {left >> 20} MiB of address space, and a shard needs {LEAST_BYTES >> 19} MiB"
        )
    return share
