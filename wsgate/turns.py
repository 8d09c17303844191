"""Fair turns: what many parties put into one queue is taken out so that each party gets the same share. Pure.

A party is a user, or the address of somebody without one; it may have many connections. `Turns` decides whose
item is next: fair by party first, then by connection of that party, each by the cost of its items. `Room`
decides how much each may have in the queue.

`Turns` is start-time fair queuing at two levels. Each flow (a party, or a connection of one) has a start tag:
the virtual time at which its next item may begin. The flow with the least tag is served, the virtual time
becomes that tag, and the cost of the item is added to the tag. A flow that was idle begins at the present
virtual time, so it waits for at most one item of each other flow, however much the others have queued. An
emptied flow keeps its tag until the virtual time has passed it, so sending one item at a time gains nothing.
Source: Goyal, Vin and Cheng, "Start-time fair queueing", 1996.

`Room` keeps half of the queue for parties that have nothing or little in it. The other half has a dynamic
threshold: a party may have as much as is still free there, and a connection as much as is left of what its
party may have. So with N greedy parties each has a part of N + 1, however early it came.
Source: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998.
"""

from collections import deque
from collections.abc import Hashable
from heapq import heappop, heappush
from typing import Final, Generic, NamedTuple, TypeVar

__all__ = ["CROWDED", "FULL", "Room", "Sender", "Turns"]

CROWDED: Final = "crowded"
"""This party, or this connection, has too much in the queue already."""
FULL: Final = "full"
"""There is no room left, not even for a party that has nothing in the queue."""

SURE_ENTRIES: Final = 8
SURE_BYTES: Final = 32 * 1024
"""So much is little. The first item of a party is, whatever its size."""

Item = TypeVar("Item")


class Sender(NamedTuple):
    """Whose an item is."""

    party: Hashable  # a user, or the address of somebody without one
    conn: Hashable


class _Flow(Generic[Item]):
    """The items of one party, or of one connection, and when the next of them may begin."""

    __slots__ = ("queue", "start")

    def __init__(self, start: int, queue: "deque[tuple[Item, int]] | _Level[Item]") -> None:
        self.start = start
        self.queue = queue


class _Level(Generic[Item]):
    """Flows side by side. A flow with nothing queued stays until the virtual time has passed its tag."""

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
        else:  # nobody waits: nothing has to be remembered
            self._flows, self._heap = {}, []
        return item, cost

    def _enqueue(self, flow: _Flow[Item], key: Hashable) -> None:
        self._number += 1
        heappush(self._heap, (flow.start, self._number, key))


class Turns(Generic[Item]):
    """A queue that is fair by party, then by connection. Adding and taking cost O(log of the flows)."""

    def __init__(self) -> None:
        """Empty."""
        self._level: _Level[Item] = _Level()

    def __len__(self) -> int:
        return len(self._level)

    def push(self, sender: Sender, item: Item, cost: int) -> None:
        """Queue an item behind those of the same connection.

        Args:
            sender: Whose it is.
            item: Anything.
            cost: What serving it takes, more than 0, in any unit.
        """
        self._level.push(sender, 0, item, cost)

    def popleft(self) -> Item:
        """Take the item whose turn it is; IndexError when there is none."""
        return self._level.popleft()[0]


class _Use:
    """What somebody has in the queue."""

    __slots__ = ("entries", "size")

    def __init__(self) -> None:
        self.entries = 0
        self.size = 0


_NOTHING: Final = _Use()


class Room:
    """How much of a bounded queue is taken, and how much more each party may take. All operations are O(1).

    Args:
        entries: How many items fit.
        size_bytes: How many bytes.
    """

    def __init__(self, entries: int, size_bytes: int) -> None:
        self._most: Final = entries, size_bytes
        self._total = _Use()
        self._uses: dict[Hashable, _Use] = {}  # by party, and by sender

    @property
    def entries(self) -> int:
        """Items in the queue."""
        return self._total.entries

    @property
    def size(self) -> int:
        """Their bytes."""
        return self._total.size

    def take(self, sender: Sender, size: int) -> str:
        """Make room for an item of this size; "" when that was possible, else `CROWDED` or `FULL`."""
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
        """`CROWDED` for a party that has something in the queue, else `FULL`."""
        return CROWDED if sender.party in self._uses else FULL

    def give(self, sender: Sender, size: int) -> None:
        """An item that had room has left the queue."""
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
        use.entries += 1
        use.size += size
