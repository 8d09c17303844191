"""Draw sizes that find faults: around every class bound and every limit, never from a hand-made list.

Blocks of memory come in classes (powers of two from 32 bytes to 64 KiB), a short name is stored inside its
channel, and every wire format changes its form at some lengths. Faults are at such a bound or one beside it,
so generators draw sizes from here.
"""

import random
from collections.abc import Iterable
from typing import Final

__all__ = ["BOUNDS", "around", "draw_size", "sizes_up_to"]

BOUNDS: Final = (
    *(24, 32, 64, 125, 126, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_535, 65_536),
    *(1 << 31, 1 << 32, 1 << 63),
)
"""Bounds of size classes, of a name inside its channel, of frame lengths, and of 16, 32 and 64 bits."""


def around(bounds: Iterable[int]) -> list[int]:
    """Return 0, 1, and each bound with both its neighbours, in order."""
    return sorted({0, 1, *(bound + step for bound in bounds for step in (-1, 0, 1))})


def sizes_up_to(limit: int, *, least: int = 0) -> list[int]:
    """Return every size around a bound from `least` to `limit`, and the limit itself."""
    return [size for size in around((*BOUNDS, limit)) if least <= size <= limit]


def draw_size(dice: random.Random, limit: int, *, least: int = 0) -> int:
    """Draw a size, mostly around a bound, and sometimes any size."""
    if dice.random() < 0.8:
        return dice.choice(sizes_up_to(limit, least=least))
    return dice.randint(least, limit)
