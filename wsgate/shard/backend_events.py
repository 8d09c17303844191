"""Record events for backends: connects, disconnects, subscriptions and messages of clients.

This module encodes an event, names it and chooses its stream. The appender sends it to the stream, at least
once. If no type is enabled, nothing is encoded and a connection keeps a plain `Member`; otherwise its member
also has the time of its admission.

Source: protocols/backend/v1/spec.md.
"""

import secrets
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any, Final
from zlib import crc32

import msgspec

from wsgate.auth import Identity, Member
from wsgate.bus import Appender, AppenderOptions, Bus, Names, pack
from wsgate.payload import BINARY, JSON, TEXT, Payload
from wsgate.reasons import Reason
from wsgate.shard.options import EventOptions, ShardOptions
from wsgate.turns import FULL, Sender

__all__ = ["EVENT_TYPES", "Events", "Identified", "Tracked", "make_events"]

EVENT_TYPES: Final = ("connected", "disconnected", "subscribed", "unsubscribed", "message")

_ENCODINGS: Final = {JSON: b"json", TEXT: b"text", BINARY: b"binary"}


class Tracked(Member, frozen=True, gc=False):
    """A member with the time of its admission, for the duration in `disconnected`."""

    since_ms: int


class Identified(Tracked, frozen=True, gc=False):
    """A member that was admitted as anonymous and has shown the token of a user who is not admitted yet.

    Control commands find it by this user. Its events still belong to the anonymous connection.
    """


class Events:
    """Encodes the events of one shard and appends them to the streams of backends.

    Args:
        options: Which types are recorded, and how.
        node: The name of this node.
        streams: The stream of each partition, by its name on the bus.
        appenders: The appender of each stream.
        public_id: Returns the id of a connection as its client knows it.
        count: Adds to a counter of the shard, by its name.
        is_sharded: Whether the bus is a cluster, where events are published with SPUBLISH.
    """

    def __init__(
        self,
        options: EventOptions,
        node: str,
        streams: list[bytes],
        appenders: list[Appender],
        public_id: Callable[[int], int],
        count: Callable[[str, int], None],
        *,
        is_sharded: bool = False,
    ) -> None:
        self.is_on = bool(options.enabled)
        self.tells_subscriptions = bool(options.enabled & {"subscribed", "unsubscribed"})
        self.takes_messages = "message" in options.enabled
        self.has_room: Callable[[], bool] = lambda: True
        """Returns whether the bus has memory for one more message of a client."""
        self._enabled = options.enabled
        self._node = node.encode()
        self._streams = streams
        self._appenders = appenders
        self._public_id = public_id
        self._count = count
        self._trim = (b"MAXLEN", b"~", b"%d" % options.maxlen) if options.maxlen else ()
        self._publish = (b"SPUBLISH" if is_sharded else b"PUBLISH") if options.pubsub else b""
        self._incarnation = secrets.token_hex(8).encode()
        self._number = 0

    @property
    def appenders(self) -> tuple[Appender, ...]:
        """Every appender once, however many streams it serves."""
        return tuple(dict.fromkeys(self._appenders))

    @property
    def refusing_streams(self) -> int:
        """How many streams refuse events now."""
        pairs = zip(self._streams, self._appenders, strict=True)
        return sum(appender.refuses(stream) for stream, appender in pairs) if self.is_on else 0

    async def flush(self, within_s: float) -> int:
        """Wait until all events are in their streams; return how many were not when the time was over.

        Args:
            within_s: How long to wait, in seconds.
        """
        end_s = time.monotonic() + within_s
        return sum([await each.flush(max(0.0, end_s - time.monotonic())) for each in self.appenders])

    # --- recording --------------------------------------------------------------------------------------

    def member(self, identity: Identity, since_ms: int) -> Member:
        """Make the member of a connection; with the time of its admission if events are on.

        Args:
            identity: From the token of the connection.
            since_ms: When the connection was admitted, in monotonic milliseconds.
        """
        if not self.is_on:
            return identity.member()
        return Tracked(identity.user.encode(), identity.permissions, since_ms)

    def connected(self, conn: int, member: Member) -> None:
        """Record that a connection was admitted."""
        if "connected" in self._enabled:
            self._tell(b"connected", conn, _user_of(member))

    def disconnected(self, conn: int, reason: int, member: Member | None, now_ms: int) -> None:
        """Record that an admitted connection has closed, with the reason and the duration.

        Args:
            conn: The connection.
            reason: Why it closed, a number of `Reason`.
            member: Of the connection; one that was never admitted has none, and is not recorded.
            now_ms: Monotonic milliseconds.
        """
        if isinstance(member, Tracked) and "disconnected" in self._enabled:
            name = Reason(reason).name.lower().encode()
            more = {b"reason": name, b"duration_ms": b"%d" % max(0, now_ms - member.since_ms)}
            self._tell(b"disconnected", conn, _user_of(member), more)

    def changed(self, conn: int, before: Member | None, member: Member, now_ms: int) -> None:
        """Record that a connection was admitted, and before that the end of its anonymous admission, if any.

        Args:
            conn: The connection, which is still open.
            before: What was stored for the connection until now; None: nothing.
            member: What is stored from now on.
            now_ms: Monotonic milliseconds.
        """
        self.disconnected(conn, Reason.NONE, before, now_ms)
        self.connected(conn, member)

    def subscribed(self, conn: int, member: Member | None, name: bytes) -> None:
        """Record that a connection's subscription to a channel was confirmed."""
        if member is not None and "subscribed" in self._enabled:
            self._tell(b"subscribed", conn, _user_of(member), {b"ch": name})

    def unsubscribed(self, conn: int, member: Member | None, name: bytes) -> None:
        """Record that a connection is no longer subscribed to a channel."""
        if member is not None and "unsubscribed" in self._enabled:
            self._tell(b"unsubscribed", conn, _user_of(member), {b"ch": name})

    def message(
        self, conn: int, member: Member, payload: Payload, sender: Sender, done: Callable[[str], None]
    ) -> str:
        """Append the message of a client to its stream, if there is room for it.

        Args:
            conn: The connection that sent the message.
            member: Of the connection.
            payload: The message.
            sender: The party whose turn the message takes.
            done: Called later with the outcome, an `AppendOutcome`.

        Returns:
            "" if the message waits for its stream. Otherwise the reason why not, as `Appender.offer` returns,
            and `done` is not called; `full` also if the bus has no memory for the message.
        """
        if not self.has_room():
            return FULL
        more = {b"data": payload.data, b"encoding": _ENCODINGS[payload.encoding]}
        place, data, commands = self._form(b"message", conn, member.user_utf8, more)
        return self._appenders[place].offer(
            data, sender, done, commands=commands, stream=self._streams[place]
        )

    # --- encoding ---------------------------------------------------------------------------------------

    def _tell(self, kind: bytes, conn: int, user: bytes, more: Mapping[bytes, bytes] | None = None) -> None:
        """Append an event to its stream; if too many wait, drop and count it."""
        place, data, commands = self._form(kind, conn, user, more)
        if not self._appenders[place].append(data, commands=commands, stream=self._streams[place]):
            self._count("events_dropped", 1)

    def _form(
        self, kind: bytes, conn: int, user: bytes, more: Mapping[bytes, bytes] | None = None
    ) -> tuple[int, bytes, int]:
        """Encode an event as commands to the bus.

        The stream is chosen by the user, or by the connection where there is no user, so that all events of
        one user are in order.

        Args:
            kind: The type of the event.
            conn: The connection.
            user: Its user; empty: none.
            more: Fields of this type.

        Returns:
            The index of the stream, the packed commands, and the number of commands.
        """
        self._number += 1
        public = b"%016x" % self._public_id(conn)
        fields = {
            b"type": kind,
            b"id": b"%b-%d" % (self._incarnation, self._number),
            b"conn": public,
            b"node": self._node,
            b"ts": b"%d" % (time.time_ns() // 1_000_000),
        }
        if user:
            fields[b"user"] = user
        if more:
            fields |= more
        place = crc32(fields.get(b"user", public)) % len(self._streams)
        stream = self._streams[place]
        flat = [part for pair in fields.items() for part in pair]
        data, commands = pack(b"XADD", stream, *self._trim, b"*", *flat), 1
        if self._publish:
            data += pack(self._publish, stream, _as_json(fields))
            commands = 2
        return place, data, commands


def _user_of(member: Member) -> bytes:
    """Return the user as which a connection is admitted; empty: it is admitted as anonymous."""
    return b"" if isinstance(member, Identified) else member.user_utf8


def _as_json(fields: Mapping[bytes, bytes]) -> bytes:
    """Encode an event as one JSON object, for backends that subscribe and do not read the stream."""
    shown: dict[str, Any] = {
        name.decode(): value.decode() for name, value in fields.items() if name != b"data"
    }
    for name in ("ts", "duration_ms"):
        if name in shown:
            shown[name] = int(shown[name])
    if (data := fields.get(b"data")) is not None:
        encoding = fields[b"encoding"]
        if encoding == b"json":
            shown["data"] = msgspec.Raw(data)
        elif encoding == b"text":
            shown["data"] = data.decode()
        else:
            shown["b64"] = b64encode(data).decode()
    return msgspec.json.encode(shown)


def make_events(
    options: ShardOptions,
    names: Names,
    bus: Bus,
    on_failed: Callable[[str], None],
    public_id: Callable[[int], int],
    count: Callable[[str, int], None],
) -> Events:
    """Make the events of a shard, with connections of their own to the bus.

    Args:
        options: Of the shard.
        names: The names of streams on the bus.
        bus: Makes the appenders.
        on_failed: Called with the reason when a connection of an appender fails.
        public_id: Returns the id of a connection as its client knows it.
        count: Adds to a counter of the shard, by its name.
    """
    enabled, shares = options.events, options.bus_shares
    streams = [names.events(partition) for partition in range(enabled.partitions)]
    timing = AppenderOptions(
        connect_timeout_s=options.bus_connect_timeout_s,
        command_timeout_s=options.bus_command_timeout_s,
        # The private bus has a fixed amount of memory, so the gateway trims the streams when it is short.
        trimmed_streams=tuple(streams) if options.has_private_bus else (),
        stream_bytes=(shares.maxmemory_bytes - shares.names_bytes) * 3 // 4 // enabled.partitions,
    )
    appenders = bus.appenders(streams, timing, on_failed)
    is_sharded = options.bus.is_cluster
    return Events(enabled, options.node, streams, appenders, public_id, count, is_sharded=is_sharded)
