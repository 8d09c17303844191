"""Connections of one user on all nodes: who gives way when there is one too many.

Pure. The bus holds them by when they came; a connection is named `<public id>@<owner>`, its owner being a
shard from its start to its end. Those of an owner that is gone count for nothing: nobody closed them.
"""

import re
from collections.abc import Set
from typing import Final, NamedTuple

__all__ = ["LimitDecision", "UserConnections", "is_member", "owner_of"]

_MEMBER: Final = re.compile(r"[0-9a-f]{16}@[!-?A-~]{1,47}")


class LimitDecision(NamedTuple):
    """What is to be done about a crowd.

    Attributes:
        gone: To be forgotten: their owners are gone.
        replaced: To be closed by their owners, and forgotten.
        is_refused: Whether the new one is to be closed instead.
    """

    gone: list[str]
    replaced: list[str]
    is_refused: bool


class UserConnections(NamedTuple):
    """Too many connections of one user, as the bus counts them.

    Attributes:
        total: All of them.
        oldest: The first of them by when they came.
    """

    total: int
    oldest: list[str]

    @classmethod
    def from_bytes(cls, text: bytes) -> "UserConnections":
        """What the script `user_enter` returned; ValueError when it is not."""
        total, *oldest = text.decode().split()
        return cls(int(total), oldest)

    def owners(self) -> set[str]:
        """Who would have to live."""
        return {owner_of(member) for member in self.oldest}

    def judge(self, member: str, limit: int, dead: Set[str], *, replaces: bool) -> LimitDecision:
        """Who gives way.

        Args:
            member: The new one.
            limit: How many there may be, >= 1.
            dead: Owners that are gone.
            replaces: Whether the oldest give way, not the new one.
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
    """Whether this can be a connection: what else is in the set was written by somebody else."""
    return _MEMBER.fullmatch(text) is not None


def owner_of(member: str) -> str:
    """The owner of a connection."""
    return member.partition("@")[2]
