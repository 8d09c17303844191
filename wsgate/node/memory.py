"""How the memory of a node is divided: what its processes need themselves, and the rest among the shards."""

from typing import Final

from wsgate.errors import SettingsError
from wsgate.node.machine import address_space_left, usable_memory

__all__ = ["memory_share"]

FIRST_BYTES: Final = 80 * 1024 * 1024
"""What a gateway of one shard uses before its first client, the private bus included: measured 62 MB."""
ONE_MORE_BYTES: Final = 6 * 1024 * 1024
"""What each further shard uses before its first client: measured 5.6 MB."""
LEAST_BYTES: Final = 16 * 1024 * 1024
"""A shard with less for its clients would refuse them for what it keeps for reuse alone."""


def memory_share(budget_bytes: int, shards: int) -> int:
    """Bytes that one of so many shards may use for its clients.

    Args:
        budget_bytes: What all processes of the node may use; 0: what the machine lets them.
        shards: How many share it, >= 1.

    Raises:
        SettingsError: What is left beside the processes themselves is too little to serve anybody.
    """
    name = "admission.memory_budget"
    budget = budget_bytes
    if budget == 0:
        budget = usable_memory() * 9 // 10
        name += " is not set and nine tenths of what this machine or its control group allows"
    share = (budget - FIRST_BYTES - (shards - 1) * ONE_MORE_BYTES) // shards
    if share < LEAST_BYTES:
        least = FIRST_BYTES + (shards - 1) * ONE_MORE_BYTES + shards * LEAST_BYTES
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
