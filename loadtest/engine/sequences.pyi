"""Detects lost, duplicated and reordered messages for each connection and stream."""

from typing import Self

from typing_extensions import disjoint_base

__all__ = ["SequenceLedger"]

__pyx_capi__: dict[str, object]  # what the other modules link to

@disjoint_base
class SequenceLedger:
    """The tracking of one connection, for tests: the same C functions, called for one arrival at a time."""

    def __new__(cls, first_sequence: int | None = None) -> Self: ...
    def receive(self, stream: int, sequence: int) -> None:
        """Record the arrival of one sequence number."""

    def reset(self) -> None:
        """Set the counters to zero; positions and holes stay."""

    def missing_between(self, stream: int, first: int, last: int) -> int:
        """Return how many of first..last (inclusive) have not arrived."""

    def counts(self) -> dict[str, int]:
        """Return gaps, missing, duplicates, reordered, gaps_forgotten, and the number of holes in memory."""
