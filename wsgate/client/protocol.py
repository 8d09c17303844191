"""Encodes the commands and decodes the messages of the protocol `wsgate.v1.msgpack`. Pure.

Each binary frame holds one msgpack map. Unknown fields, and messages with an unknown `op`, are ignored, as
the protocol requires of a client. The types of known fields are checked.

Source: protocols/client/v1/spec.md, "Messages"; protocols/client/v1/schema.json.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from wsgate.client.errors import BadMessage
from wsgate.client.quantities import LIFE_MOST_S, WAIT_MOST_S, bounded

__all__ = [
    "INBOX",
    "SUBPROTOCOL",
    "Answer",
    "Bye",
    "Dropped",
    "Failed",
    "Message",
    "Publication",
    "RefreshAsked",
    "Subscribed",
    "Unsubscribed",
    "Welcome",
    "decode",
    "encode",
]

SUBPROTOCOL: Final = "wsgate.v1.msgpack"
INBOX: Final = "@me"


@dataclass(frozen=True, slots=True)
class Publication:
    """One item that was published to a channel, as the application receives it.

    Attributes:
        channel: The channel; `@me` is the user's own inbox.
        data: The published value: a JSON value, or bytes.
        user: The user who published it; None for a publication of a backend.
        timestamp_ms: The time of publishing, in milliseconds of Unix time, as the publisher set it.
        position: The position in the channel's stream, None on a channel without history.
    """

    channel: str
    data: Any
    user: str | None = None
    timestamp_ms: int | None = None
    position: str | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    """The gateway's first message after it has accepted the connection.

    `user` is None for an anonymous client. `ping_s` is 0 if the gateway sends no pings.
    """

    conn: str
    user: str | None
    ping_s: int
    expires_s: int | None


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The gateway has subscribed the connection to a channel; without `id` it did so without a command."""

    channel: str
    id: int | None = None
    position: str | None = None
    recovered: bool | None = None


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """A subscription has ended; without `id` the gateway ended it without a command."""

    channel: str
    id: int | None = None
    code: int = 0
    reason: str = "unsubscribed"
    resubscribe: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The gateway has carried out a command that is neither `sub` nor `unsub`."""

    id: int | None
    position: str | None = None
    expires_s: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The gateway has refused a command; without `id` it is unknown which command."""

    id: int | None
    code: int
    error: str
    message: str
    retry_ms: int | None


@dataclass(frozen=True, slots=True)
class Dropped:
    """A gap: the gateway reports that publications of a channel are missing.

    Attributes:
        channel: The channel; None if publications may be missing on every channel of the connection.
        from_: The last position before the gap, if known.
        to: The last position within the gap, if known.
        reason: The gateway's reason; None if the gateway is too old to send one.
        retry_ms: How many milliseconds to wait before the state is loaded again.
    """

    channel: str | None
    from_: str | None = None
    to: str | None = None
    reason: str | None = None
    retry_ms: int = 0


@dataclass(frozen=True, slots=True)
class Bye:
    """The gateway announces that it will close the connection with this code."""

    code: int
    reason: str
    retry_ms: int


@dataclass(frozen=True, slots=True)
class RefreshAsked:
    """The gateway requests a fresh token within this number of seconds."""

    within_s: float


Message = (
    Welcome | Publication | Subscribed | Unsubscribed | Answer | Failed | Dropped | Bye | RefreshAsked | None
)


def encode(command: dict[str, Any]) -> bytes:
    """Encode one command as msgpack.

    Raises:
        TypeError, ValueError, OverflowError: The command holds a value that msgpack cannot encode.
    """
    packed: bytes = msgpack.packb(command)
    return packed


def decode(data: object) -> Message:
    """Decode one frame to a message; return None for an `op` that this version does not know.

    Raises:
        BadMessage: The frame is not a msgpack map with an `op`, or a field has a type that the protocol
            forbids.
    """
    if not isinstance(data, bytes):
        raise BadMessage("a text frame in a binary protocol")
    try:
        fields: Any = msgpack.unpackb(data)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise BadMessage("the frame is not msgpack") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("op"), str):
        raise BadMessage("the message is not a map with an op")
    read = _READERS.get(fields["op"])
    return read(_Fields(fields)) if read is not None else None


class _Fields:
    """Reads the fields of one message with a check of each type; a null counts as an absent field."""

    __slots__ = ("_map",)

    def __init__(self, fields: dict[str, Any]) -> None:
        self._map = fields

    @property
    def data(self) -> Any:
        if "data" not in self._map:
            raise BadMessage("data is missing")
        return self._map["data"]

    def text(self, name: str) -> str:
        found = self.text_or_none(name)
        if found is None:
            raise BadMessage(f"{name} is missing")
        return found

    def text_or_none(self, name: str) -> str | None:
        found = self._map.get(name)
        if found is not None and not isinstance(found, str):
            raise BadMessage(f"{name} is not a text")
        return found

    def number(self, name: str) -> int:
        found = self.number_or_none(name)
        if found is None:
            raise BadMessage(f"{name} is missing")
        return found

    def number_or_none(self, name: str) -> int | None:
        found = self._map.get(name)
        if found is not None and (not isinstance(found, int) or isinstance(found, bool)):
            raise BadMessage(f"{name} is not an integer")
        return found

    def quantity(self, name: str, most: int = WAIT_MOST_S) -> int:
        """Read an integer that determines a wait, limited to the range from 0 to `most`."""
        return int(bounded(self.number(name), most))

    def quantity_or_none(self, name: str, most: int = WAIT_MOST_S) -> int | None:
        return None if self.number_or_none(name) is None else self.quantity(name, most)

    def seconds(self, name: str) -> float:
        found = self._map.get(name)
        if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
            raise BadMessage(f"{name} is not a number")
        return float(bounded(found))

    def flag_or_none(self, name: str) -> bool | None:
        found = self._map.get(name)
        if found is not None and not isinstance(found, bool):
            raise BadMessage(f"{name} is not a boolean")
        return found


def _publication(fields: _Fields) -> Publication:
    return Publication(
        fields.text("ch"),
        fields.data,
        fields.text_or_none("user"),
        fields.number_or_none("ts"),
        fields.text_or_none("pos"),
    )


def _welcome(fields: _Fields) -> Welcome:
    return Welcome(
        fields.text("conn"),
        fields.text_or_none("user"),
        fields.quantity("ping_s"),
        fields.quantity_or_none("expires_s", LIFE_MOST_S),
    )


def _subscribed(fields: _Fields) -> Subscribed:
    return Subscribed(
        fields.text("ch"),
        fields.number_or_none("id"),
        fields.text_or_none("pos"),
        fields.flag_or_none("recovered"),
    )


def _unsubscribed(fields: _Fields) -> Unsubscribed:
    return Unsubscribed(
        fields.text("ch"),
        fields.number_or_none("id"),
        fields.number_or_none("code") or 0,
        fields.text_or_none("reason") or "unsubscribed",
        bool(fields.flag_or_none("resubscribe")),
    )


def _answer(fields: _Fields) -> Answer:
    expires_s = fields.quantity_or_none("expires_s", LIFE_MOST_S)
    return Answer(fields.number_or_none("id"), fields.text_or_none("pos"), expires_s)


def _failed(fields: _Fields) -> Failed:
    return Failed(
        fields.number_or_none("id"),
        fields.number("code"),
        fields.text("error"),
        fields.text_or_none("message") or "",
        fields.quantity_or_none("retry_ms", WAIT_MOST_S * 1000),
    )


def _dropped(fields: _Fields) -> Dropped:
    return Dropped(
        fields.text_or_none("ch"),
        fields.text_or_none("from"),
        fields.text_or_none("to"),
        fields.text_or_none("reason"),
        max(0, fields.number_or_none("retry_ms") or 0),
    )


def _bye(fields: _Fields) -> Bye:
    return Bye(
        fields.number("code"),
        fields.text_or_none("reason") or "closed",
        fields.quantity_or_none("retry_ms", WAIT_MOST_S * 1000) or 0,
    )


def _refresh(fields: _Fields) -> RefreshAsked:
    return RefreshAsked(fields.seconds("within_s"))


_READERS: Final[dict[str, Callable[[_Fields], Message]]] = {
    "msg": _publication,
    "welcome": _welcome,
    "subbed": _subscribed,
    "unsubbed": _unsubscribed,
    "ok": _answer,
    "pong": _answer,
    "err": _failed,
    "gap": _dropped,
    "bye": _bye,
    "refresh": _refresh,
}
