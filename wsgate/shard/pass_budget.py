"""How many messages the next pass may take, from how long the last ones took. Pure; no clock of its own.

The reactor's own budget bounds what reading costs, not what the messages cost to handle: a `ping` is 5 us, a
`refresh` with a token never seen before 80 us, and 256 of those held the loop for 22 ms. So passes begin
small, grow while they are full and fast, and shrink when one was slow.

Measured: `python -m loadtest refresh_storm`, 10,000 refreshes at once: 5 of 25 ticks later than 16 ms before.
"""

from typing import Final

__all__ = ["PassBudget"]

LEAST: Final = 16
START: Final = 64
MOST: Final = 256  # above it the reactor's own rule holds
SLOW_S: Final = 0.004
FAST_S: Final = 0.002


class PassBudget:
    """The budget of one shard's passes."""

    __slots__ = ("messages",)

    def __init__(self) -> None:
        """Begin small."""
        self.messages = START

    def note(self, taken: int, took_s: float) -> None:
        """Set the next budget.

        Args:
            taken: Events of the pass that is over.
            took_s: To handle them.
        """
        if took_s > SLOW_S:
            self.messages = max(LEAST, self.messages // 2)
        elif taken < self.messages:  # nobody waits: the next burst may be of another kind
            self.messages = START
        elif took_s < FAST_S:
            self.messages = min(MOST, self.messages * 2)
