"""Define the commands of clients: one frozen type for each command, the same in every dialect.

Fields have the names of the protocol, so that a decoder needs no table. Types and ranges are checked while
decoding. Unknown fields are ignored, so that a newer client can use an older gateway. A field that is null
counts as absent, because typed languages write null. `data` keeps its bytes here, undecoded: the dialect
checks them, relays those of JSON clients as they are, and converts those of msgpack clients to JSON.

Source: protocols/client/v1/spec.md, "Commands".
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw, field

__all__ = [
    "ID_MAX",
    "OPS",
    "Auth",
    "BadCommand",
    "Command",
    "History",
    "Ping",
    "Presence",
    "PresenceStats",
    "Publish",
    "Refresh",
    "Send",
    "Subscribe",
    "Unsubscribe",
]

ID_MAX: Final = 2**53 - 1
"""The largest integer that every JSON parser represents exactly. Source: RFC 8259, section 6."""

Id = Annotated[int, Meta(ge=0, le=ID_MAX)]
Token = Annotated[str, Meta(min_length=1)]


class _Base(msgspec.Struct, frozen=True, tag_field="op", gc=False):
    """The base of all commands: the field `op` selects the type of the command."""


class Auth(_Base, frozen=True, tag="auth"):
    """Authenticate with a token after the 101 response; `positions` are the client's positions by channel."""

    token: Token
    id: Id | None = None
    positions: dict[str, str] | None = field(default=None, name="from")


class Subscribe(_Base, frozen=True, tag="sub"):
    """Subscribe to a channel, with a channel token where the namespace requires one."""

    ch: str
    id: Id | None = None
    position: str | None = field(default=None, name="from")
    token: Token | None = None


class Unsubscribe(_Base, frozen=True, tag="unsub"):
    """Unsubscribe the connection from a channel."""

    ch: str
    id: Id | None = None


class Publish(_Base, frozen=True, tag="pub"):
    """Publish to a channel; with `echo` false the publishing connection does not receive the publication."""

    ch: str
    data: Raw
    id: Id | None = None
    key: str | None = None
    echo: bool | None = None


class Send(_Base, frozen=True, tag="send"):
    """Send a message to the backend, as an event."""

    data: Raw
    id: Id | None = None


class History(_Base, frozen=True, tag="history"):
    """Request earlier publications of a channel; not implemented, so the reply is `not_available`."""

    ch: str
    limit: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    position: str | None = field(default=None, name="from")
    id: Id | None = None


class Presence(_Base, frozen=True, tag="presence"):
    """Request the users of a channel; not implemented, so the reply is `not_available`."""

    ch: str
    id: Id | None = None


class PresenceStats(_Base, frozen=True, tag="presence_stats"):
    """Request how many users a channel has; not implemented, so the reply is `not_available`."""

    ch: str
    id: Id | None = None


class Refresh(_Base, frozen=True, tag="refresh"):
    """Replace the connection's token with a new one before it expires."""

    token: Token
    id: Id | None = None


class Ping(_Base, frozen=True, tag="ping"):
    """Request a `pong`, for clients that cannot see WebSocket pongs, such as browsers."""

    id: Id | None = None


Command = (
    Auth | Subscribe | Unsubscribe | Publish | Send | History | Presence | PresenceStats | Refresh | Ping
)

OPS: Final = frozenset(
    {"auth", "sub", "unsub", "pub", "send", "history", "presence", "presence_stats", "refresh", "ping"}
)


class BadCommand(msgspec.Struct, frozen=True, gc=False):
    """The result of decoding a message that is no valid command.

    Attributes:
        error: The error to send, a name in `wsgate.reasons.ERRORS`: `bad_request` or `unknown_op`.
        is_malformed: Whether the message violates the protocol; three such messages in a row end a
            connection. An unknown op is no violation, because a later version of the protocol may define it.
        id: The id of the message, if it has a valid one, so that the client can match the error to its
            command.
        ch: The channel of the message, if it has one that is a string.
    """

    error: str
    is_malformed: bool
    id: int | None = None
    ch: str | None = None
