"""Tracks the position of a client in a channel's stream, so that no publication is received twice. Pure.

Source: protocols/client/v1/spec.md. A position is `<epoch>-<offset>`; a new epoch is another stream.
"""

import re
from typing import Final, NamedTuple

__all__ = ["Position", "Track", "parse_position"]

_POSITION: Final = re.compile(r"([A-Za-z0-9]+)-([0-9]{1,20})")


class Position(NamedTuple):
    """A parsed position: an epoch, and an offset within that epoch."""

    epoch: str
    offset: int


def parse_position(text: str | None) -> Position | None:
    """Parse `<epoch>-<offset>`; return None for None and for a text of another form."""
    found = _POSITION.fullmatch(text) if text is not None else None
    return Position(found[1], int(found[2])) if found else None


class Track:
    """The last position that was received on one channel.

    Attributes:
        last: The position as a text, to be sent as `from`; None while neither the application nor the
            channel has given one.
    """

    __slots__ = ("_place", "last")

    def __init__(self, last: str | None = None) -> None:
        self.last = last
        self._place = parse_position(last)

    def advance(self, position: str | None) -> bool:
        """Move to the position of a publication, and return whether the publication is new.

        A publication without a readable position is always new and does not move the track. Within one epoch,
        an offset that is not greater than the last one was received before. Another epoch is another stream.
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
        """Set the position to the gateway's position, whatever was received before."""
        self.last, self._place = position, parse_position(position)
