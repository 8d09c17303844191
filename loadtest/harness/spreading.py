"""Shows how attempts to connect are spread over time, and compares the fullest 100 ms with the mean."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

__all__ = ["TIMES_THE_MEAN", "draw", "worst_share"]

TIMES_THE_MEAN: Final = 3.0
"""How many times the mean the fullest 100 ms may have."""

_BUCKET_S: Final = 0.1
_BAR_WIDTH: Final = 60


def draw(attempts_s: Sequence[float], began_s: float) -> list[str]:
    """Return one line with a bar for every second: the number of attempts in it."""
    seconds = Counter(int(moment - began_s) for moment in attempts_s)
    most = max(seconds.values())
    return [
        f"{second:>4} s {seconds[second]:>6} {'#' * (seconds[second] * _BAR_WIDTH // most)}"
        for second in range(min(seconds), max(seconds) + 1)
    ]


def worst_share(attempts_s: Sequence[float]) -> tuple[int, float]:
    """Return the attempts in the fullest 100 ms, and the mean over all from the first to the last attempt."""
    buckets = Counter(int((moment - attempts_s[0]) / _BUCKET_S) for moment in attempts_s)
    span = math.floor((attempts_s[-1] - attempts_s[0]) / _BUCKET_S) + 1
    return max(buckets.values()), len(attempts_s) / span
