"""Recomputes every account of a reactor from its structures, for tests."""

from wsgate.reactor import Reactor

__all__ = ["audit"]

def audit(reactor: Reactor) -> list[str]:
    """Every account that differs from what the structures hold, a line each; empty: all are right.

    Calls none of the functions that keep the accounts. O(slots + channels + queued entries). After
    `shutdown` there is nothing to compare and the list is empty: audit before it.
    """
