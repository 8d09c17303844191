"""Chooses the shares of new connections for the shards, by the room that each shard has published. Pure."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from wsgate.admission.ledger import State

__all__ = ["ShardOffer", "rate_share", "weights"]

LEVEL: Final = 20
"""The fullest shard keeps 1/20 of its room as weight, so that two equal shards get half of the newcomers."""


class ShardOffer(NamedTuple):
    """The room of one shard for new connections, and its admission state.

    Attributes:
        room: How many more connections fit; 0 also while the shard does not serve.
        state: Whether the shard accepts newcomers.
    """

    room: int
    state: State


def weights(places: Sequence[ShardOffer]) -> list[int]:
    """Return how often each shard is chosen for a new connection, relative to the others.

    The shard with the least room has a weight of about 1/20 of it. Each other shard has that weight plus the
    room that it has more. So newcomers level the shards, and after the crash of a shard they go to its
    successor.

    A shard that refuses newcomers has the weight 0 while another shard is open, also when one of its
    connections has just ended, because it would be full again at once. If no shard is open, the room of each
    shard that is not shedding is its weight, so a node refuses only when all its shards are full. Then all
    weights are 0.
    """
    open_ones = [place.room if place.state is State.OPEN else 0 for place in places]
    if any(open_ones):
        kept_back = min(filter(None, open_ones)) * (LEVEL - 1) // LEVEL
        return [room - kept_back if room else 0 for room in open_ones]
    return [place.room if place.state is not State.SHEDDING else 0 for place in places]


def rate_share(places: Sequence[ShardOffer], number: int, rate_per_s: int) -> int:
    """Return the part of the node's handshake rate for one shard, in proportion to its weight.

    Args:
        places: The offers of all shards.
        number: The number of the shard.
        rate_per_s: The handshake rate of the node; 0: no limit.

    Returns:
        The rate per second, rounded up. A shard with the weight 0 is full or has just started, and gets an
        equal part.
    """
    dealt = weights(places)
    if not dealt[number]:
        return -(-rate_per_s // len(places))
    return -(-rate_per_s * dealt[number] // sum(dealt))
