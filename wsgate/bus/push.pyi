"""The bus reader: what Redis pushes to a subscriber, byte stream in, tuples out."""

from typing import Final, final

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
CONTROL: Final = 2  # whole name, payload: a name without the prefix; None: its subscription is confirmed
SUBSCRIBED: Final = 3  # name, None
UNSUBSCRIBED: Final = 4  # name (b"" when there was none), None
PONG: Final = 5  # b"" or what was pinged, None
REPLY: Final = 6  # the text of a simple reply, None
ERROR: Final = 7  # the text of an error, None
TOO_LARGE: Final = 8  # name, None: a payload over the limit, skipped
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

    def limit_payload(self, limit_bytes: int) -> None:
        """Another largest payload, for what is read from now on."""

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Append what was received."""

    def take(self, most: int) -> list[tuple[int, bytes, bytes | None]]:
        """At most `most` complete replies, `(kind, name, payload)`, in order; fewer: there are no more.

        Raises:
            PushError: The stream is broken; what was taken before is lost with the connection.
        """
