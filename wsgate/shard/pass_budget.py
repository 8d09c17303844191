"""Compute how many messages the next pass may take, from the time that the last passes took. Pure.

The reactor's own budget limits the cost of reading, not the cost of handling messages: a `ping` takes 5 us, a
`refresh` with a token that is not cached 80 us, and 256 of those blocked the loop for 22 ms. So passes begin
small, grow while they are full and fast, and shrink when one was slow.

Measured: `python -m loadtest refresh_storm`, 10,000 refreshes at once: 5 of 25 ticks later than 16 ms before.
"""

from typing import Final

__all__ = ["PassBudget"]

LEAST: Final = 16
START: Final = 64
MOST: Final = 256  # above it the reactor's own budget limits a pass
SLOW_S: Final = 0.004
FAST_S: Final = 0.002


class PassBudget:
    """Adapts the number of messages in a pass of one shard, between `LEAST` and `MOST`."""

    __slots__ = ("messages",)

    def __init__(self) -> None:
        """Begin with a small budget of `START` messages."""
        self.messages = START

    def note(self, taken: int, took_s: float) -> None:
        """Set the budget of the next pass: half after a slow one, twice as many after a full and fast one.

        Args:
            taken: Events of the pass that has ended.
            took_s: Time to handle them, in seconds.
        """
        if took_s > SLOW_S:
            self.messages = max(LEAST, self.messages // 2)
        elif taken < self.messages:  # no message is left over, and the next burst may have another cost
            self.messages = START
        elif took_s < FAST_S:
            self.messages = min(MOST, self.messages * 2)
