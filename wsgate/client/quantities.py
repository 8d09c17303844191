"""Limits the numbers that a gateway sends, so that no value makes a client wait without end."""

from typing import Final

__all__ = ["LIFE_MOST_S", "WAIT_MOST_S", "bounded"]

WAIT_MOST_S: Final = 3_600
"""The longest time that a gateway can make a client wait, and the longest ping interval."""
LIFE_MOST_S: Final = 100 * 365 * 24 * 3_600
"""The longest life of a token; longer ones are treated as this one. `wsgate token` makes none that is
longer."""


def bounded(value: float, most: float = WAIT_MOST_S) -> float:
    """Limit a number of the gateway to the range from 0 to `most`. An integer stays an integer."""
    return min(max(value, 0), most)
