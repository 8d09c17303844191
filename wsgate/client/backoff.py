"""Calculates how long a client waits before its next attempt. Pure: randomness is passed in.

The delay has full jitter: it is a random time between 0 and a window that doubles with each failure, so that
many clients that were disconnected at one moment return evenly spread. A delay that the gateway requested is
added to the random time, so that many clients with the same requested delay do not return at the same moment.

Source: protocols/client/v1/spec.md, "Closing".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wsgate.client.ranges import check_seconds

__all__ = ["Backoff", "Random"]

Random = Callable[[], float]
"""A function that returns random numbers from 0 to below 1, as `random.random` does."""

_DOUBLINGS_LIMIT: Final = 64
"""More doublings reach every cap, and a float would overflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """The random delay between attempts: a window that doubles from `base_s` up to `cap_s` seconds."""

    base_s: float = 0.5
    cap_s: float = 30.0

    def __post_init__(self) -> None:
        """Check the ranges. Raises SettingsError for a value that is not a wait, from 0 s on."""
        check_seconds(self, base_s=0, cap_s=0)

    def window_s(self, attempt: int) -> float:
        """Return the longest random delay in seconds; `attempt` counts the failures before, from 0."""
        return min(self.cap_s, self.base_s * 2.0 ** min(attempt, _DOUBLINGS_LIMIT))

    def delay_s(self, attempt: int, random: Random, *, least_s: float = 0.0) -> float:
        """Return the delay in seconds before the next attempt.

        Args:
            attempt: How many attempts failed in a row before this one, from 0.
            random: See `Random`.
            least_s: The delay that the gateway requested; the random time is added to it.
        """
        return max(least_s, 0.0) + random() * self.window_s(attempt)
