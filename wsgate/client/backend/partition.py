"""The accepted entries of one stream: how many more may be read, and in which order they are handled.

Entries of one user (or of one anonymous connection) are handled one after the other, in the order in which
they were read. Entries of different users are handled at the same time. If an entry is left for another
consumer, those after it in the queue are left too, because they would overtake it.
"""

import asyncio

from wsgate.client.backend.bus import Entry, Reader

__all__ = ["Partition", "Turn"]


class Turn:
    """The place of one entry in the queue of its user.

    Attributes:
        entry: The entry.
        key: The name of the queue.
        owned_at_s: When the server last confirmed that this consumer owns the entry, in the loop's time.
    """

    __slots__ = ("_before", "_is_left", "_is_over", "entry", "key", "owned_at_s")

    def __init__(self, entry: Entry, key: str, *, before: "Turn | None", owned_at_s: float) -> None:
        self.entry = entry
        self.key = key
        self.owned_at_s = owned_at_s
        self._before = before
        self._is_left = False
        self._is_over = asyncio.Event()

    async def begin(self) -> bool:
        """Wait until the entry before this one has ended; return False if that one was left unfinished."""
        if self._before is None:
            return True
        await self._before._is_over.wait()
        may_begin = not self._before._is_left
        self._before = None  # otherwise a long queue would keep all its turns in memory
        return may_begin

    def end(self, *, is_left: bool) -> None:
        """Let the entry after this one in the queue begin, or leave it too."""
        self._is_left = is_left
        self._is_over.set()


class Partition:
    """The reading state of one event stream, and its accepted entries.

    Attributes:
        reader: The consumer and the stream.
        cursor: Where to read next: `>` for new entries, or an id: the entries after it that this consumer
            received and did not acknowledge.
        has_group: Whether the consumer group is known to exist.
        start_at: Where the group starts to read if it must be created.
    """

    def __init__(self, reader: Reader, limit: int, start_at: str) -> None:
        """Create the state of a stream without accepted entries.

        `limit` is the largest number of accepted ones.
        """
        self.reader = reader
        self.start_at = start_at
        self.cursor = "0"
        self.has_group = False
        self._limit = limit
        self._in_hand: dict[str, Turn] = {}
        self._rows: dict[str, Turn] = {}
        self._put_down = asyncio.Event()

    @property
    def turns(self) -> list[Turn]:
        """The accepted entries that are not finished."""
        return list(self._in_hand.values())

    @property
    def room(self) -> int:
        """How many more entries may be accepted at present."""
        return self._limit - len(self._in_hand)

    async def wait_for_room(self) -> None:
        """Wait until at least one more entry may be accepted."""
        while self.room <= 0:
            await self._wait()

    async def wait_until_empty(self) -> None:
        """Wait until every accepted entry is finished or given up."""
        while self._in_hand:
            await self._wait()

    async def _wait(self) -> None:
        self._put_down.clear()
        await self._put_down.wait()

    def lost_group(self) -> None:
        """The group must be created again: any entry in the stream may be new to the backend."""
        self.has_group = False
        self.start_at = "0"

    def look_back(self) -> None:
        """Read the unacknowledged entries of this consumer again: a reply may have been lost."""
        self.cursor = "0"

    def take(self, entry: Entry, key: str, *, owned_at_s: float) -> Turn | None:
        """Accept an entry and return its place in the queue of `key`; None if it is accepted already.

        `owned_at_s` is the time before the command that delivered the entry.
        """
        if entry.id in self._in_hand:
            return None
        turn = Turn(entry, key, before=self._rows.get(key), owned_at_s=owned_at_s)
        self._in_hand[entry.id] = self._rows[key] = turn
        return turn

    def put_down(self, turn: Turn, *, is_left: bool, closes_queue: bool) -> None:
        """Remove an entry that is finished or left, and let the next one of its queue begin.

        Args:
            turn: The place of the entry.
            is_left: Whether another consumer has to handle the entry. Those that follow in the queue are then
                left too.
            closes_queue: Whether entries of this queue that are read later are left too, if this one is.
        """
        turn.end(is_left=is_left)
        if self._rows.get(turn.key) is turn and not (is_left and closes_queue):
            del self._rows[turn.key]
        del self._in_hand[turn.entry.id]
        self._put_down.set()
