"""The compiled RESP2 parser of a bus connection: received bytes in, replies as tuples out."""

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

# The kinds of replies. After each one: what the second and third element of its tuple are.
MESSAGE: Final = 1  # channel name without the prefix, payload
# Whole name that does not begin with the prefix. Payload of a publication, b"" when it was over the limit;
# None when the reply confirms SUBSCRIBE.
CONTROL: Final = 2
SUBSCRIBED: Final = 3  # channel name without the prefix, None
UNSUBSCRIBED: Final = 4  # name (without the prefix if it has it; b"" when the server sent none), None
PONG: Final = 5  # the argument of PING or b"", None
REPLY: Final = 6  # the text of a simple string, a number or a bulk string, None
ERROR: Final = 7  # the text of an error, None
TOO_LARGE: Final = 8  # channel name without the prefix, None; the payload was over the limit and skipped
REPLY_LIMIT_BYTES: Final = 16_384
"""The largest bulk string that is a whole reply; a larger one ends the connection."""

class PushError(WsgateError):
    """The received bytes are no valid RESP2 for this connection, which can no longer be used."""

@final
class PushReader:
    """The parser of one bus connection. It keeps the bytes of a reply until the reply is complete.

    Args:
        prefix: The bytes before every channel name on the bus. Replies about a channel return its name
            without the prefix.
        limit_bytes: The largest payload of a publication that is returned, in bytes; larger ones are skipped.
    """

    def __init__(self, prefix: bytes, limit_bytes: int) -> None: ...
    @property
    def buffered(self) -> int:
        """The size of the parser's buffer, in bytes."""

    @property
    def publications(self) -> int:
        """The number of publications to channels parsed until now, those over the payload limit included."""

    def limit_payload(self, limit_bytes: int) -> None:
        """Change the largest payload, in bytes, for publications that are parsed from now on."""

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Append received bytes to the parser's buffer; the bytes of a skipped payload are dropped."""

    def take(self, most: int, backlog: Backlog | None = None) -> list[tuple[int, bytes, bytes | None]]:
        """Parse and return complete replies in their order, each as `(kind, name or text, payload)`.

        Args:
            most: The most replies to return. Publications do not count when they are put into a backlog.
            backlog: Receives all publications (`MESSAGE` and `TOO_LARGE`); None: they are among the replies.

        Returns:
            The replies. Fewer than `most`: no further reply is complete.

        Raises:
            PushError: The bytes are not valid. Replies parsed in this call are lost; close the connection.
        """
