"""Watch whether a channel stays confirmed while this shard publishes to it.

As long as a watch is unbroken, the bus has to deliver the publication to this shard at least. A publish that
the bus reports without a receiver then shows a fault of the bus, and not that the channel is empty.
"""

from collections.abc import Iterable

from wsgate.bus import Covers

__all__ = ["PublishWatch", "PublishWatches"]


class PublishWatch:
    """Whether a channel has stayed confirmed since this watch began, and how many publishes share it."""

    __slots__ = ("is_unbroken", "publishes")

    def __init__(self) -> None:
        self.is_unbroken = True
        self.publishes = 0


class PublishWatches:
    """The unbroken watches of one shard, at most one for each channel."""

    def __init__(self) -> None:
        self._watches: dict[bytes, PublishWatch] = {}

    def __len__(self) -> int:
        return len(self._watches)

    def begin(self, name: bytes) -> PublishWatch:
        """Count one more publish to a confirmed channel; return its watch, which `end` takes back."""
        watch = self._watches.get(name)
        if watch is None:
            watch = self._watches[name] = PublishWatch()
        watch.publishes += 1
        return watch

    def end(self, name: bytes, watch: PublishWatch) -> bool:
        """End one publish; return whether the channel was confirmed all the time."""
        watch.publishes -= 1
        if watch.is_unbroken and not watch.publishes:
            del self._watches[name]
        return watch.is_unbroken

    def break_off(self, names: Iterable[bytes]) -> None:
        """Break the watches of channels that this shard no longer receives for certain."""
        if self._watches:
            for name in names:
                watch = self._watches.pop(name, None)
                if watch is not None:
                    watch.is_unbroken = False

    def break_covered(self, covers: Covers | None) -> None:
        """Break the watches of all channels that a lost connection covered; None: of every channel."""
        self.break_off([name for name in self._watches if covers is None or covers(name)])
