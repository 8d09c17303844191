"""Bounds of the numbers that a gateway sends: no client waits for ever because of one of them."""

from typing import Final

__all__ = ["LIFE_MOST_S", "WAIT_MOST_S", "bounded"]

WAIT_MOST_S: Final = 3_600
"""No client waits longer because a gateway asks for it, and no gateway pings less often."""
LIFE_MOST_S: Final = 100 * 365 * 24 * 3_600
"""A token that lives longer lives so long: `wsgate token` makes none that lives longer."""


def bounded(value: float, most: float = WAIT_MOST_S) -> float:
    """A number of the gateway as a quantity from 0 to `most`; an integer stays one if `most` is one."""
    return min(max(value, 0), most)
