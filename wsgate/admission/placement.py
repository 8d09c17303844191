"""Which shard a new connection goes to: by the room each has published. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from wsgate.admission.ledger import State

__all__ = ["Place", "weights"]


class Place(NamedTuple):
    """What one shard offers.

    Attributes:
        room: How many more connections fit; 0 also where it does not serve.
        state: What it does about newcomers.
    """

    room: int
    state: State


def weights(places: Sequence[Place]) -> list[int]:
    """How often each is chosen, relative to the others; all 0 when nobody has room.

    A shard that refuses gets nobody while another is open, also when one of its own has just left: it would
    fill and refuse again at once. Only when none is open do they get what little each has: so the node
    refuses when all of its shards are full, and not before.
    """
    open_ones = [place.room if place.state is State.OPEN else 0 for place in places]
    if any(open_ones):
        return open_ones
    return [place.room if place.state is not State.SHEDDING else 0 for place in places]
