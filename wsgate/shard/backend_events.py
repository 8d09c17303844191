"""What backends are told: who came, who went, what clients said. Source: protocols/backend/v1/spec.md.

Owns the form of an event and its name, and which types are told. How it gets to its stream, at least
once, is the appender's business. With no type enabled nothing here costs anything, and a connection's
meta stays what it was; else it also holds since when the connection is welcome.
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

__all__ = ["EVENT_TYPES", "Events", "Tracked", "make_events"]

EVENT_TYPES: Final = ("connected", "disconnected", "subscribed", "unsubscribed", "message")

_ENCODINGS: Final = {JSON: b"json", TEXT: b"text", BINARY: b"binary"}


class Tracked(Member, frozen=True, gc=False):
    """A member with since when it is welcome, for the duration in `disconnected`."""

    since_ms: int


class Events:
    """The events of one shard.

    Args:
        options: What is told.
        node: This node's name.
        streams: The key of each partition.
        appenders: How to append to each.
        public_id: The id of a connection as its peer knows it.
        count: Adds to a counter by name.
        is_sharded: The bus is a cluster: what is published besides goes by SPUBLISH.
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
        self.has_room: Callable[[], bool] = lambda: True  # whether the bus may keep one more message
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
        """Each once, however many streams it serves."""
        return tuple(dict.fromkeys(self._appenders))

    @property
    def refusing_streams(self) -> int:
        """How many of the streams refuse events now."""
        pairs = zip(self._streams, self._appenders, strict=True)
        return sum(appender.refuses(stream) for stream, appender in pairs) if self.is_on else 0

    async def flush(self, within_s: float) -> int:
        """Wait until everything is told; how much was not when the time was over."""
        end_s = time.monotonic() + within_s
        return sum([await each.flush(max(0.0, end_s - time.monotonic())) for each in self.appenders])

    # --- what happens -----------------------------------------------------------------------------------

    def member(self, identity: Identity, since_ms: int) -> Member:
        """What is kept of somebody: with the time where events are told, the plain form where not."""
        if not self.is_on:
            return identity.member()
        return Tracked(identity.user.encode(), identity.permissions, since_ms)

    def connected(self, conn: int, member: Member) -> None:
        """A connection was welcomed."""
        if "connected" in self._enabled:
            self._tell(b"connected", conn, member.user_utf8)

    def disconnected(self, conn: int, reason: int, member: Member | None, now_ms: int) -> None:
        """It is gone; nothing is told of who was never welcome."""
        if isinstance(member, Tracked) and "disconnected" in self._enabled:
            name = Reason(reason).name.lower().encode()
            more = {b"reason": name, b"duration_ms": b"%d" % max(0, now_ms - member.since_ms)}
            self._tell(b"disconnected", conn, member.user_utf8, more)

    def subscribed(self, conn: int, member: Member | None, name: bytes) -> None:
        """Its subscription was confirmed."""
        if member is not None and "subscribed" in self._enabled:
            self._tell(b"subscribed", conn, member.user_utf8, {b"ch": name})

    def unsubscribed(self, conn: int, member: Member | None, name: bytes) -> None:
        """It left a channel."""
        if member is not None and "unsubscribed" in self._enabled:
            self._tell(b"unsubscribed", conn, member.user_utf8, {b"ch": name})

    def message(
        self, conn: int, member: Member, payload: Payload, sender: Sender, done: Callable[[str], None]
    ) -> str:
        """It said something to the backend; `done` is told what `AppendOutcome` tells.

        Returns:
            "" when it was accepted; else why not, as `Appender.offer` says, and `done` is not called. `full`
            also when the bus has no memory for it.
        """
        if not self.has_room():
            return FULL
        more = {b"data": payload.data, b"encoding": _ENCODINGS[payload.encoding]}
        place, data, commands = self._form(b"message", conn, member.user_utf8, more)
        return self._appenders[place].offer(
            data, sender, done, commands=commands, stream=self._streams[place]
        )

    # --- its form ---------------------------------------------------------------------------------------

    def _tell(self, kind: bytes, conn: int, user: bytes, more: Mapping[bytes, bytes] | None = None) -> None:
        place, data, commands = self._form(kind, conn, user, more)
        if not self._appenders[place].append(data, commands=commands, stream=self._streams[place]):
            self._count("events_dropped", 1)

    def _form(
        self, kind: bytes, conn: int, user: bytes, more: Mapping[bytes, bytes] | None = None
    ) -> tuple[int, bytes, int]:
        """Which stream an event belongs to, its commands packed, and how many they are."""
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


def _as_json(fields: Mapping[bytes, bytes]) -> bytes:
    """An event as one JSON object, for those who listen without a stream."""
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
        # The private bus has a fixed amount of memory, and only the gateway knows what it is for.
        trimmed_streams=tuple(streams) if options.has_private_bus else (),
        stream_bytes=(shares.maxmemory_bytes - shares.names_bytes) * 3 // 4 // enabled.partitions,
    )
    appenders = bus.appenders(streams, timing, on_failed)
    is_sharded = options.bus.is_cluster
    return Events(enabled, options.node, streams, appenders, public_id, count, is_sharded=is_sharded)
