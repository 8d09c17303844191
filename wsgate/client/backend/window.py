"""Remembers the ids of the last events, to recognize a repeated one. Pure."""

from collections import OrderedDict

__all__ = ["Window"]


class Window:
    """A set of bounded size that forgets the ids that were not met for the longest time."""

    def __init__(self, limit: int) -> None:
        """Create an empty set for at most `limit` ids, >= 0."""
        self._limit = limit
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, id: str) -> bool:
        if id not in self._ids:
            return False
        self._ids.move_to_end(id)
        return True

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id: str) -> None:
        """Remember an id, and forget the oldest one if there are too many. O(1)."""
        self._ids[id] = None
        self._ids.move_to_end(id)
        if len(self._ids) > self._limit:
            self._ids.popitem(last=False)
