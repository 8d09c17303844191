"""Where a reader stands in a channel's stream, so that nothing is read twice. Pure.

Source: protocols/client/v1/spec.md; a position is `<epoch>-<offset>`, and a new epoch is another stream.
"""

import re
from typing import Final, NamedTuple

__all__ = ["Position", "Track", "parse_position"]

_POSITION: Final = re.compile(r"([A-Za-z0-9]+)-([0-9]{1,20})")


class Position(NamedTuple):
    """A place in one incarnation of a stream."""

    epoch: str
    offset: int


def parse_position(text: str | None) -> Position | None:
    """The place a text names; None when it names none."""
    found = _POSITION.fullmatch(text) if text is not None else None
    return Position(found[1], int(found[2])) if found else None


class Track:
    """The last place seen of one channel.

    Attributes:
        last: Its text, to be sent as `from`; None while the channel has shown none.
    """

    __slots__ = ("_place", "last")

    def __init__(self, last: str | None = None) -> None:
        self.last = last
        self._place = parse_position(last)

    def advance(self, position: str | None) -> bool:
        """Whether a publication with this position is news; if so, the reader stands there now.

        One without a position, or with one that cannot be read, is always news and moves nothing. Within
        an epoch an offset that is not beyond the last was read before. Another epoch is another stream.
        """
        place = parse_position(position)
        if place is None:
            return True
        seen = self._place
        if seen is not None and seen.epoch == place.epoch and place.offset <= seen.offset:
            return False
        self.last, self._place = position, place
        return True

    def restart(self, position: str | None) -> None:
        """Stand where the gateway says, whatever was seen before."""
        self.last, self._place = position, parse_position(position)
