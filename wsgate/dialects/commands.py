"""What a client can ask for: one frozen type per command, the same in every wire form.

Field names are those of the wire, so that a decoder needs no table between. Types and ranges are
checked while decoding; fields that are not here are ignored, so that a newer client can talk to an older
gateway, and null counts as not given, because typed languages write it. `data` stays as it came: it is
relayed, not looked into.

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
"""The largest integer that every JSON parser holds exactly. Source: RFC 8259, section 6."""

Id = Annotated[int, Meta(ge=0, le=ID_MAX)]
Token = Annotated[str, Meta(min_length=1)]


class _Base(msgspec.Struct, frozen=True, tag_field="op", gc=False):
    """What all commands share: the field that names them."""


class Auth(_Base, frozen=True, tag="auth"):
    """Show a token after 101; `positions` are where the client stood, by channel."""

    token: Token
    id: Id | None = None
    positions: dict[str, str] | None = field(default=None, name="from")


class Subscribe(_Base, frozen=True, tag="sub"):
    """Subscribe to a channel, with a channel token where the namespace asks for one."""

    ch: str
    id: Id | None = None
    position: str | None = field(default=None, name="from")
    token: Token | None = None


class Unsubscribe(_Base, frozen=True, tag="unsub"):
    """Unsubscribe from a channel."""

    ch: str
    id: Id | None = None


class Publish(_Base, frozen=True, tag="pub"):
    """Publish to a channel; when `echo` is false the publisher's own connection does not get it back."""

    ch: str
    data: Raw
    id: Id | None = None
    key: str | None = None
    echo: bool | None = None


class Send(_Base, frozen=True, tag="send"):
    """Say something to the backend."""

    data: Raw
    id: Id | None = None


class History(_Base, frozen=True, tag="history"):
    """Ask for what was published to a channel."""

    ch: str
    limit: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    position: str | None = field(default=None, name="from")
    id: Id | None = None


class Presence(_Base, frozen=True, tag="presence"):
    """Ask who is in a channel."""

    ch: str
    id: Id | None = None


class PresenceStats(_Base, frozen=True, tag="presence_stats"):
    """Ask how many are in a channel."""

    ch: str
    id: Id | None = None


class Refresh(_Base, frozen=True, tag="refresh"):
    """Show a fresh token before the old one expires."""

    token: Token
    id: Id | None = None


class Ping(_Base, frozen=True, tag="ping"):
    """Ask for a pong where the native one cannot be seen: in a browser."""

    id: Id | None = None


Command = (
    Auth | Subscribe | Unsubscribe | Publish | Send | History | Presence | PresenceStats | Refresh | Ping
)

OPS: Final = frozenset(
    {"auth", "sub", "unsub", "pub", "send", "history", "presence", "presence_stats", "refresh", "ping"}
)


class BadCommand(msgspec.Struct, frozen=True, gc=False):
    """A message that is no command.

    Attributes:
        error: Its name in `wsgate.reasons.ERRORS`: `bad_request` or `unknown_op`.
        is_malformed: Whether nobody who knows the protocol would send it; three in a row end a
            connection. An op of a later version is unknown but well-formed.
        id: The message's id, where there was a valid one, so that the answer finds its question.
        ch: Its channel, likewise.
    """

    error: str
    is_malformed: bool
    id: int | None = None
    ch: str | None = None
