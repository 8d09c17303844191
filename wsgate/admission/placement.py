"""Which shard a new connection goes to: by the room each has published. Pure."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from wsgate.admission.ledger import State

__all__ = ["ShardOffer", "rate_share", "weights"]

LEVEL: Final = 20
"""Not all of it is kept back: of two shards that differ by one connection each gets half of what comes."""


class ShardOffer(NamedTuple):
    """What one shard offers.

    Attributes:
        room: How many more connections fit; 0 also where it does not serve.
        state: What it does about newcomers.
    """

    room: int
    state: State


def weights(places: Sequence[ShardOffer]) -> list[int]:
    """How often each is chosen, relative to the others; all 0 when nobody has room.

    Who has least counts with a twentieth of its room, and the others with what they have more: newcomers
    level the shards, so that those who return after a crash go to the empty successor.

    A shard that refuses gets nobody while another is open, also when one of its own has just left: it would
    fill and refuse again at once. Only when none is open do they get what little each has: so the node
    refuses when all of its shards are full, and not before.
    """
    open_ones = [place.room if place.state is State.OPEN else 0 for place in places]
    if any(open_ones):
        kept_back = min(filter(None, open_ones)) * (LEVEL - 1) // LEVEL
        return [room - kept_back if room else 0 for room in open_ones]
    return [place.room if place.state is not State.SHEDDING else 0 for place in places]


def rate_share(places: Sequence[ShardOffer], number: int, rate_per_s: int) -> int:
    """What of the node's rate of handshakes is one shard's: as it is dealt newcomers, so it may let them in.

    Args:
        places: Of all shards.
        number: Whose share.
        rate_per_s: Of the node; 0: no limit.

    Returns:
        Rounded up. Who is dealt nobody has an equal share: it is full, or has just begun.
    """
    dealt = weights(places)
    if not dealt[number]:
        return -(-rate_per_s // len(places))
    return -(-rate_per_s * dealt[number] // sum(dealt))
