"""Limits the connections of one user on all nodes, and decides which connection to close above the limit.

Pure. The bus stores the connections of a user ordered by their start. A connection is named `<public
id>@<owner>`, and its owner is one run of a shard. Connections of an owner that is known to have ended do not
count: the shard ended without removing them.
"""

import re
from collections.abc import Set
from typing import Final, NamedTuple

__all__ = ["LimitDecision", "UserConnections", "is_member", "owner_of"]

_MEMBER: Final = re.compile(r"[0-9a-f]{16}@[!-?A-~]{1,47}")


class LimitDecision(NamedTuple):
    """The decision about the connections of a user above the limit.

    Attributes:
        gone: Connections to remove from the bus, because their owners have ended.
        replaced: Connections that their owners must close, to remove from the bus.
        is_refused: Whether the new connection must be closed instead.
    """

    gone: list[str]
    replaced: list[str]
    is_refused: bool


class UserConnections(NamedTuple):
    """The connections of one user above the limit, as the bus counts them.

    Attributes:
        total: The number of all connections of the user.
        oldest: The names of the oldest connections that the script returned, the oldest first.
    """

    total: int
    oldest: list[str]

    @classmethod
    def from_bytes(cls, text: bytes) -> "UserConnections":
        """Parse the reply of the script `user_enter`; ValueError if it is not valid."""
        total, *oldest = text.decode().split()
        return cls(int(total), oldest)

    def owners(self) -> set[str]:
        """Return the owners of the oldest connections, whose liveness keys must be checked."""
        return {owner_of(member) for member in self.oldest}

    def judge(self, member: str, limit: int, dead: Set[str], *, replaces: bool) -> LimitDecision:
        """Decide which connections of a user to forget or to close, and whether to refuse the new one.

        Forgotten are connections whose owner has ended: they no longer exist.

        Args:
            member: The name of the new connection.
            limit: The most connections of the user, >= 1.
            dead: The owners that have ended.
            replaces: Whether the oldest connections are closed above the limit, and not the new one.
        """
        gone = [each for each in self.oldest if owner_of(each) in dead]
        over = self.total - len(gone) - limit
        if over <= 0:
            return LimitDecision(gone, [], is_refused=False)
        if not replaces:
            return LimitDecision(gone, [], is_refused=True)
        alive = [each for each in self.oldest if each != member and owner_of(each) not in dead]
        return LimitDecision(gone, alive[:over], is_refused=False)


def is_member(text: str) -> bool:
    """Return whether a text is a valid connection name, because other programs can write to the bus."""
    return _MEMBER.fullmatch(text) is not None


def owner_of(member: str) -> str:
    """Return the owner in a connection name `<public id>@<owner>`."""
    return member.partition("@")[2]
