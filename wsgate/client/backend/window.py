"""The ids of the last events dealt with. Pure."""

from collections import OrderedDict

__all__ = ["Window"]


class Window:
    """A bounded set that forgets who was not met for longest."""

    def __init__(self, limit: int) -> None:
        """Empty; `limit` is how many it remembers, >= 0."""
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
        """Remember it; O(1)."""
        self._ids[id] = None
        self._ids.move_to_end(id)
        if len(self._ids) > self._limit:
            self._ids.popitem(last=False)
