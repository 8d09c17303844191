"""A fair queue: items of many parties are taken out so that each party gets the same share. Pure.

A party is a user, or the address of a client without a user; a party can have many connections. `Turns`
decides which item is next: it is fair by party, then by connection of the party, each by the cost of the
items. `Room` limits how much each party and connection can have in the queue.

`Turns` is start-time fair queueing at two levels. Each flow (a party, or a connection of a party) has a start
tag: the virtual time at which its next item can begin. The flow with the smallest tag is served, the virtual
time is set to that tag, and the cost of the item is added to the tag. A flow that was idle starts at the
present virtual time, so it waits for at most one item of each other flow, however much the others have
queued. A flow that becomes empty keeps its tag until the virtual time has passed the tag, so a client gains
nothing by sending one item at a time.
Source: Goyal, Vin and Cheng, "Start-time fair queueing", 1996.

`Room` reserves half of the queue for parties that have little or nothing in the queue. The other half has a
dynamic threshold: a party can have as much as is still free there, and a connection as much as is left of the
threshold of its party. So in the long run each of N greedy parties gets at most 1/(N + 1) of that half,
however early it came.
Source: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998.
"""

from collections import deque
from collections.abc import Hashable
from heapq import heappop, heappush
from typing import Final, Generic, NamedTuple, TypeVar

__all__ = ["CROWDED", "FULL", "Room", "Sender", "Turns"]

CROWDED: Final = "crowded"
"""The result when the party or the connection has too much in the queue already."""
FULL: Final = "full"
"""The result when there is no room, not even for a party that has nothing in the queue."""

SURE_ENTRIES: Final = 8
SURE_BYTES: Final = 32 * 1024
"""Up to these amounts, and for its first item of any size, a party gets room unless the queue is full."""

Item = TypeVar("Item")


class Sender(NamedTuple):
    """The party and the connection that an item in the queue belongs to."""

    party: Hashable  # a user, or the address of a client without a user
    conn: Hashable


class _Flow(Generic[Item]):
    """The items of one party or connection, with the virtual time at which the next item can begin."""

    __slots__ = ("queue", "start")

    def __init__(self, start: int, queue: "deque[tuple[Item, int]] | _Level[Item]") -> None:
        self.start = start
        self.queue = queue


class _Level(Generic[Item]):
    """The flows of one level, with a heap by start tag. An empty flow stays until the time passes its tag."""

    __slots__ = ("_count", "_flows", "_heap", "_now", "_number")

    def __init__(self) -> None:
        self._flows: dict[Hashable, _Flow[Item]] = {}
        self._heap: list[tuple[int, int, Hashable]] = []  # start, a number that breaks ties, key
        self._number = 0
        self._now = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, path: Sender, level: int, item: Item, cost: int) -> None:
        """Queue an item in the flow of its key on this level, and so on below."""
        key = path[level]
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow(self._now, deque() if level else _Level())
            self._enqueue(flow, key)
        queue = flow.queue
        if isinstance(queue, deque):
            queue.append((item, cost))
        else:
            queue.push(path, level + 1, item, cost)
        self._count += 1

    def popleft(self) -> tuple[Item, int]:
        """Remove and return the item of the flow with the smallest start tag, with its cost."""
        while True:
            start, _, key = heappop(self._heap)
            flow = self._flows[key]
            self._now = start
            if flow.queue:
                break
            del self._flows[key]
        item, cost = flow.queue.popleft()
        self._count -= 1
        if self._count:
            flow.start = start + cost
            self._enqueue(flow, key)
        else:  # no item waits, so no tag has to be stored
            self._flows, self._heap = {}, []
        return item, cost

    def _enqueue(self, flow: _Flow[Item], key: Hashable) -> None:
        """Insert a flow into the heap by its start tag; of equal tags the earlier insertion is first."""
        self._number += 1
        heappush(self._heap, (flow.start, self._number, key))


class Turns(Generic[Item]):
    """A queue that is fair by party, then by connection. Push and pop cost O(log of the number of flows)."""

    def __init__(self) -> None:
        """Create an empty queue without flows."""
        self._level: _Level[Item] = _Level()

    def __len__(self) -> int:
        return len(self._level)

    def push(self, sender: Sender, item: Item, cost: int) -> None:
        """Queue an item behind the other items of the same connection.

        Args:
            sender: The party and the connection of the item.
            item: Any object.
            cost: The cost of serving the item, above 0, in any unit.
        """
        self._level.push(sender, 0, item, cost)

    def popleft(self) -> Item:
        """Remove and return the item that is next; IndexError if the queue is empty."""
        return self._level.popleft()[0]


class _Use:
    """The number and the bytes of the items of one party or connection in the queue."""

    __slots__ = ("entries", "size")

    def __init__(self) -> None:
        self.entries = 0
        self.size = 0


_NOTHING: Final = _Use()


class Room:
    """Accounts for a bounded queue: how much is used, and how much each party may use. All methods are O(1).

    Args:
        entries: The most items in the queue.
        size_bytes: The most bytes in the queue.
    """

    def __init__(self, entries: int, size_bytes: int) -> None:
        self._most: Final = entries, size_bytes
        self._total = _Use()
        self._uses: dict[Hashable, _Use] = {}  # by party, and by sender

    @property
    def entries(self) -> int:
        """Return the number of items in the queue."""
        return self._total.entries

    @property
    def size(self) -> int:
        """Return the bytes of all items in the queue."""
        return self._total.size

    def take(self, sender: Sender, size: int) -> str:
        """Reserve room for an item of `size` bytes; return "" if there is room, else `CROWDED` or `FULL`."""
        most_entries, most_bytes = self._most
        if self._total.entries >= most_entries or self._total.size + size > most_bytes:
            return self.why_not(sender)
        use = self._uses.get(sender.party)
        if use is not None and (use.entries >= SURE_ENTRIES or use.size + size > SURE_BYTES):
            mine = self._uses.get(sender, _NOTHING)
            entries = most_entries // 2 - self._total.entries - use.entries - mine.entries
            free = most_bytes // 2 - self._total.size - use.size - mine.size
            if entries <= 0 or free < size:
                return CROWDED
        self._add(self._total, size)
        for key in (sender.party, sender):
            self._add(self._uses.setdefault(key, _Use()), size)
        return ""

    def why_not(self, sender: Sender) -> str:
        """Return `CROWDED` if the party has an item in the queue, else `FULL`."""
        return CROWDED if sender.party in self._uses else FULL

    def give(self, sender: Sender, size: int) -> None:
        """Release the room of an item of `size` bytes that has left the queue."""
        self._total.entries -= 1
        self._total.size -= size
        for key in (sender.party, sender):
            use = self._uses[key]
            use.entries -= 1
            use.size -= size
            if not use.entries:
                del self._uses[key]

    @staticmethod
    def _add(use: _Use, size: int) -> None:
        """Count one more item of `size` bytes."""
        use.entries += 1
        use.size += size
