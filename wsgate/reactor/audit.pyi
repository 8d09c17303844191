"""Recomputes every account of a reactor from its structures, for tests."""

from wsgate.reactor import Reactor

__all__ = ["audit", "tamper"]

def audit(reactor: Reactor) -> list[str]:
    """Every account that differs from what the structures hold, a line each; empty: all are right.

    Calls none of the functions that keep the accounts. O(slots + channels + queued entries). After
    `shutdown` there is nothing to compare and the list is empty: audit before it.
    """

def tamper(reactor: Reactor, account: str, by: int, conn: int = 0) -> None:
    """Change one account and nothing that it counts, to prove that `audit` notices.

    Args:
        reactor: Whose account.
        account: A kind of memory, a state, or one of the other accounts by its name in audit.pyx.
        by: Added to it.
        conn: The connection, for an account of one connection.

    Raises:
        ValueError: There is no such account.
    """
