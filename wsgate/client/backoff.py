"""How long to wait before the next attempt. Pure: randomness is passed in.

Full jitter: a random time between 0 and a window that doubles, so that a crowd cut off in one moment comes
back as a flat stream and not in waves. What the gateway asked for comes on top of nothing and below the
jitter: a crowd told the same number must not come in step.

Source: protocols/client/v1/spec.md, "Closing".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["Backoff", "Random"]

Random = Callable[[], float]
"""Numbers from 0 up to 1, as `random.random` makes them."""

_DOUBLINGS_LIMIT: Final = 64
"""More of them reach every cap, and a float has an end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """The window of the first attempt, doubled by each that fails, up to a cap."""

    base_s: float = 0.5
    cap_s: float = 30.0

    def window_s(self, attempt: int) -> float:
        """Within what the next attempt comes; `attempt` counts the failed ones before, from 0."""
        return min(self.cap_s, self.base_s * 2.0 ** min(attempt, _DOUBLINGS_LIMIT))

    def delay_s(self, attempt: int, random: Random, *, least_s: float = 0.0) -> float:
        """How long to wait.

        Args:
            attempt: How many failed in a row before this one, from 0.
            random: See `Random`.
            least_s: What the gateway asked for; the jitter comes on top.
        """
        return max(least_s, 0.0) + random() * self.window_s(attempt)
