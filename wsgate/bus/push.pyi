"""The bus reader: what Redis pushes to a subscriber, byte stream in, tuples out."""

from typing import Final, final

from wsgate.bus.backlog import Backlog
from wsgate.errors import WsgateError

__all__ = [
    "CONTROL",
    "ERROR",
    "MESSAGE",
    "PONG",
    "REPLY",
    "REPLY_LIMIT_BYTES",
    "SUBSCRIBED",
    "TOO_LARGE",
    "UNSUBSCRIBED",
    "PushError",
    "PushReader",
]

MESSAGE: Final = 1  # name without the prefix, payload
CONTROL: Final = 2  # whole name without the prefix; payload, b"": it was over the limit; None: confirmed
SUBSCRIBED: Final = 3  # name, None
UNSUBSCRIBED: Final = 4  # name (b"" when there was none), None
PONG: Final = 5  # b"" or what was pinged, None
REPLY: Final = 6  # the text of a simple reply, None
ERROR: Final = 7  # the text of an error, None
TOO_LARGE: Final = 8  # name, None: the payload of a publication was over the limit, skipped
REPLY_LIMIT_BYTES: Final = 16_384
"""The largest bulk string that is a whole reply; a larger one ends the connection."""

class PushError(WsgateError):
    """What came is not Redis talking to a subscriber; the connection is of no use any more."""

@final
class PushReader:
    """One connection's reader.

    Args:
        prefix: What the names of channels start with; `MESSAGE`, `SUBSCRIBED` and the like come without it.
        limit_bytes: The largest payload that is handed out.
    """

    def __init__(self, prefix: bytes, limit_bytes: int) -> None: ...
    @property
    def buffered(self) -> int:
        """Bytes held for a reply that is not complete, or not taken."""

    @property
    def publications(self) -> int:
        """Publications found so far, those over the limit included."""

    def limit_payload(self, limit_bytes: int) -> None:
        """Another largest payload, for what is read from now on."""

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Append what was received."""

    def take(self, most: int, backlog: Backlog | None = None) -> list[tuple[int, bytes, bytes | None]]:
        """At most `most` complete replies, `(kind, name, payload)`, in order; fewer: there are no more.

        Args:
            most: So many replies at most; publications do not count where there is a backlog.
            backlog: Takes `MESSAGE` and `TOO_LARGE`; None: they are among the replies.

        Raises:
            PushError: The stream is broken; what was taken before is lost with the connection.
        """
