"""Records publications and what a subscriber received, and finds those that are missing without a notice.

Every publication carries its source and a number that increases by one. It counts as published if its
publisher had a positive reply: Redis answered PUBLISH, or the gateway answered `ok`. A subscriber may miss
such a publication only if a `gap` for its channel, or for all channels, arrived after it was published and
before the session ended, or if the session ended: then the client knows that it must reload.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Lost", "Published", "Session"]

SETTLE_S = 3.0
"""A publication and the notice of a loss have this many seconds to arrive before the end of a session."""


class Lost(NamedTuple):
    """A publication that was missed without a notice, or received out of order or twice."""

    channel: str
    source: str
    number: int
    why: str


@dataclass(slots=True)
class Published:
    """Every publication with a positive reply, by channel and source, in monotonic seconds."""

    _times: dict[tuple[str, str], list[tuple[int, float, float]]] = field(default_factory=dict)

    def add(self, channel: str, source: str, number: int, began_s: float, ended_s: float) -> None:
        """Record a publication with a positive reply; the numbers of a source must increase."""
        self._times.setdefault((channel, source), []).append((number, began_s, ended_s))

    def between(self, channel: str, first_s: float, last_s: float) -> Iterator[tuple[str, int, float]]:
        """Yield source, number and begin of publications that began and were confirmed between two times."""
        for (name, source), rows in self._times.items():
            if name == channel:
                for number, began_s, ended_s in rows[bisect_left(rows, first_s, key=lambda row: row[1]) :]:
                    if ended_s > last_s:
                        break
                    yield source, number, began_s

    @property
    def count(self) -> int:
        """The number of publications with a positive reply."""
        return sum(map(len, self._times.values()))


@dataclass(slots=True)
class Session:
    """One connection of a subscriber, from its subscription to its end.

    Attributes:
        subscribed_s: When `subbed` arrived, by channel.
        gaps: When a `gap` arrived, by channel; "" means all channels.
        ended_s: When the connection ended; 0: it has not ended.
    """

    subscribed_s: dict[str, float] = field(default_factory=dict)
    gaps: dict[str, list[float]] = field(default_factory=dict)
    ended_s: float = 0.0
    _received: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    _last: dict[tuple[str, str], int] = field(default_factory=dict)
    faults: list[Lost] = field(default_factory=list)

    def receive(self, channel: str, source: str, number: int) -> None:
        """Record a publication; one that is repeated or behind a later one is a fault."""
        key = channel, source
        if number <= self._last.get(key, 0):
            self.faults.append(Lost(channel, source, number, "repeated or out of order"))
        self._last[key] = number
        self._received.setdefault(key, set()).add(number)

    def gap(self, channel: str, now_s: float) -> None:
        """Record that a gap arrived; an empty channel means all channels."""
        self.gaps.setdefault(channel, []).append(now_s)

    def lost(self, published: Published) -> list[Lost]:
        """Return every fault of the session, after its end."""
        found = list(self.faults)
        for lost, is_covered in self.missing(published):
            if not is_covered:
                found.append(lost)
        return found

    def missing(self, published: Published) -> Iterator[tuple[Lost, bool]]:
        """Yield every missed publication, and whether a later notice covers it; call after the end."""
        for channel, since_s in self.subscribed_s.items():
            notices = sorted(self.gaps.get(channel, []) + self.gaps.get("", []))
            for source, number, began_s in published.between(channel, since_s, self.ended_s - SETTLE_S):
                if number not in self._received.get((channel, source), ()):
                    is_covered = bisect_left(notices, began_s) < len(notices)
                    yield Lost(channel, source, number, "missing without a notice"), is_covered

    @property
    def count(self) -> int:
        """The number of publications that this session received."""
        return sum(map(len, self._received.values()))
