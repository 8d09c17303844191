"""How the memory of a node is divided: its processes, what its own bus may hold, and the rest for shards."""

from typing import Final

from wsgate.errors import SettingsError
from wsgate.node.machine import address_space_left, usable_memory

__all__ = ["bus_share", "memory_share"]

FIRST_BYTES: Final = 80 * 1024 * 1024
"""What a gateway of one shard uses before its first client, the private bus included: measured 68 MB."""
ONE_MORE_BYTES: Final = 8 * 1024 * 1024
"""What each further shard uses before its first client: measured 6.9 MB."""
LEAST_BYTES: Final = 16 * 1024 * 1024
"""A shard with less for its clients would refuse them for what it keeps for reuse alone."""
BUS_LEAST_BYTES: Final = 8 * 1024 * 1024
"""The least for what the node's own bus holds beside output: names of channels, events, who is where."""
BUS_OUTPUT_BYTES: Final = 8 * 1024 * 1024
"""The least that may wait there for one shard; see `wsgate.admission.BusShares`."""
BUS_PART: Final = 8
"""One in so many bytes of the budget is for the node's own bus."""


def bus_share(budget_bytes: int, shards: int) -> int:
    """Bytes that the node's own bus may hold; whoever would make it hold more is refused.

    Args:
        budget_bytes: As `memory_share`'s.
        shards: As `memory_share`'s.
    """
    return max(BUS_LEAST_BYTES + shards * BUS_OUTPUT_BYTES, _budget(budget_bytes) // BUS_PART)


def _budget(budget_bytes: int) -> int:
    return budget_bytes or usable_memory() * 9 // 10


def memory_share(budget_bytes: int, shards: int, bus_bytes: int = 0) -> int:
    """Bytes that one of so many shards may use for its clients.

    Args:
        budget_bytes: What all processes of the node may use; 0: what the machine lets them.
        shards: How many share it, >= 1.
        bus_bytes: What the node's own bus may hold; 0: it has none.

    Raises:
        SettingsError: What is left beside the processes themselves is too little to serve anybody, or the
            budget is more than there is: the kernel would kill what is inside it.
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
        share = min(share, left * 3 // 4)  # the rest is the heap's holes and what is not on the books
    if share < LEAST_BYTES:
        raise SettingsError(
            f"RLIMIT_AS leaves {left >> 20} MiB of address space, and a shard needs {LEAST_BYTES >> 19} MiB"
        )
    return share
