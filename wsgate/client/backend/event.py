"""Parses one stream entry of the gateway into an `Event`. Pure.

Source: protocols/backend/v1/spec.md, "Entries".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wsgate.errors import BackendError

__all__ = ["Event", "MalformedEvent", "parse_event"]


class MalformedEvent(BackendError):
    """A stream entry cannot be parsed as an event."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, temporary=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event that a gateway reports to the backend: a client connected, subscribed or sent a message.

    Attributes:
        type: `connected`, `disconnected`, `subscribed`, `unsubscribed` or `message`. Later versions may add
            types.
        id: Identifies the event; the same for every delivery of it.
        conn: The public id of the connection.
        user: The user of the connection; None for an anonymous one.
        node: The node that holds the connection.
        timestamp_ms: When it happened on that node, in milliseconds of Unix time.
        reason: Why the connection ended, as a name of protocols/codes.json (`disconnected`).
        duration_ms: How long the connection lasted after its welcome, in milliseconds (`disconnected`).
        channel: The name of the channel on the bus; an inbox is `@<user>` (`subscribed`, `unsubscribed`).
        data: What the client sent: a JSON value, a str or bytes (`message`).
        encoding: The kind of `data`: `json`, `text` or `binary` (`message`).
        stream: The stream that holds the entry.
        entry_id: The id of the entry in that stream.
    """

    type: str
    id: str
    conn: str
    user: str | None
    node: str
    timestamp_ms: int
    reason: str | None = None
    duration_ms: int | None = None
    channel: str | None = None
    data: Any = None
    encoding: str | None = None
    stream: str
    entry_id: str


def parse_event(stream: str, entry_id: str, fields: Mapping[bytes, bytes]) -> Event:
    """Parse the fields of one entry into an event; unknown fields are ignored.

    Raises:
        MalformedEvent: A field that every event has is missing, or a field has an invalid value.
    """
    read = _Fields(fields)
    encoding = read.text_or_none(b"encoding")
    return Event(
        type=read.text(b"type"),
        id=read.text(b"id"),
        conn=read.text(b"conn"),
        user=read.text_or_none(b"user"),
        node=read.text(b"node"),
        timestamp_ms=read.number(read.text(b"ts")),
        reason=read.text_or_none(b"reason"),
        duration_ms=read.number_or_none(b"duration_ms"),
        channel=read.text_or_none(b"ch"),
        data=_data(fields[b"data"], encoding) if b"data" in fields else None,
        encoding=encoding,
        stream=stream,
        entry_id=entry_id,
    )


class _Fields:
    """Reads the fields of one stream entry, with a check of each type."""

    __slots__ = ("_map",)

    def __init__(self, fields: Mapping[bytes, bytes]) -> None:
        self._map = fields

    def text(self, name: bytes) -> str:
        found = self.text_or_none(name)
        if not found:
            raise MalformedEvent(f"{name.decode()} is missing")
        return found

    def text_or_none(self, name: bytes) -> str | None:
        found = self._map.get(name)
        try:
            return found.decode() if found is not None else None
        except UnicodeDecodeError as error:
            raise MalformedEvent(f"{name.decode()} is not valid UTF-8") from error

    def number_or_none(self, name: bytes) -> int | None:
        found = self.text_or_none(name)
        return self.number(found) if found is not None else None

    @staticmethod
    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 19:
            raise MalformedEvent("a number consists of 1 to 19 digits")
        return int(text)


def _data(data: bytes, encoding: str | None) -> Any:
    try:
        match encoding:
            case "json":
                return json.loads(data.decode())
            case "text":
                return data.decode()
            case "binary":
                return data
    except (ValueError, RecursionError) as error:
        raise MalformedEvent("data does not match its encoding") from error
    raise MalformedEvent("the encoding of data is missing or unknown")
