"""One stream's entries in hand: how many more may be read, and who comes behind whom.

Entries of one user (or of one anonymous connection) are dealt with one after the other, in the order in which
they came; those of different users side by side.
"""

import asyncio

from wsgate.client.backend.bus import Reader

__all__ = ["Partition", "Turn"]


class Turn:
    """A place in the row of one user."""

    __slots__ = ("_before", "_is_over", "key")

    def __init__(self, key: str, before: "Turn | None") -> None:
        self.key = key
        self._before = before
        self._is_over = asyncio.Event()

    async def begin(self) -> None:
        """Wait until the one before is over."""
        if self._before is not None:
            await self._before._is_over.wait()
            self._before = None  # else a long row would be one long chain

    def end(self) -> None:
        """Let the next one begin."""
        self._is_over.set()


class Partition:
    """See the module.

    Attributes:
        reader: Who reads which stream.
        cursor: Where reading goes on: an id within what this consumer has and did not acknowledge, or `>`.
        has_group: Whether the group is known to exist.
        start_at: Where it begins if it has to be created.
    """

    def __init__(self, reader: Reader, limit: int, start_at: str) -> None:
        """Nothing in hand; `limit` is how many may be."""
        self.reader = reader
        self.start_at = start_at
        self.cursor = "0"
        self.has_group = False
        self._limit = limit
        self._in_hand: set[str] = set()
        self._rows: dict[str, Turn] = {}
        self._put_down = asyncio.Event()

    @property
    def room(self) -> int:
        """How many more entries may be taken in hand."""
        return self._limit - len(self._in_hand)

    async def wait_for_room(self) -> None:
        """Until at least one more may be taken."""
        while self.room <= 0:
            await self._wait()

    async def wait_until_empty(self) -> None:
        """Until nothing is in hand."""
        while self._in_hand:
            await self._wait()

    async def _wait(self) -> None:
        self._put_down.clear()
        await self._put_down.wait()

    def lost_group(self) -> None:
        """The group is gone: whatever is in the stream now may be news."""
        self.has_group = False
        self.start_at = "0"

    def look_back(self) -> None:
        """An answer may have been lost: what this consumer has and does not know of is read again."""
        self.cursor = "0"

    def take(self, entry_id: str, key: str) -> Turn | None:
        """Take an entry in hand; None when it is there already."""
        if entry_id in self._in_hand:
            return None
        self._in_hand.add(entry_id)
        turn = self._rows[key] = Turn(key, self._rows.get(key))
        return turn

    def put_down(self, entry_id: str, turn: Turn) -> None:
        """It is dealt with, or left to others."""
        turn.end()
        if self._rows.get(turn.key) is turn:
            del self._rows[turn.key]
        self._in_hand.discard(entry_id)
        self._put_down.set()
