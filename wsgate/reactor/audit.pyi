"""Checks the accounts of a reactor against its structures, for tests."""

from wsgate.reactor import Reactor

__all__ = ["audit", "tamper"]

def audit(reactor: Reactor) -> list[str]:
    """Recompute every account of a reactor and return one line of text for each that is wrong.

    Calls none of the functions that keep the accounts. O(slots + channels + queued entries). After `shutdown`
    there is nothing to compare and the list is empty, so call it before.
    """

def tamper(reactor: Reactor, account: str, by: int, conn: int = 0) -> None:
    """Change one account, and nothing that it counts, to prove that `audit` notices the difference.

    Args:
        reactor: The reactor to change.
        account: A kind of memory, a state of connections, or another name that `tamper` in audit.pyx lists.
        by: The number that is added; its sign and size may be anything.
        conn: The handle of the connection, for an account of one connection.

    Raises:
        ValueError: There is no such account.
    """
