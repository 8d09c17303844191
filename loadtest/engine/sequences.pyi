"""Loss, doubles and order per connection and stream."""

from typing import Self

from typing_extensions import disjoint_base

__all__ = ["SequenceLedger"]

__pyx_capi__: dict[str, object]  # what the other modules link to

@disjoint_base
class SequenceLedger:
    """The ledger of one connection, for tests: the same C functions, called one arrival at a time."""

    def __new__(cls, first_sequence: int | None = None) -> Self: ...
    def receive(self, stream: int, sequence: int) -> None:
        """Count one arrival."""

    def reset(self) -> None:
        """Zero the counters; positions and holes stay."""

    def missing_between(self, stream: int, first: int, last: int) -> int:
        """Return how many of first..last (inclusive) have not come."""

    def counts(self) -> dict[str, int]:
        """Return gaps, missing, duplicates, reordered, gaps_forgotten, and how many holes are held."""
