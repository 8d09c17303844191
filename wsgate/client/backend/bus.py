"""The few commands a backend gives to Redis, each with a time limit and one kind of error.

The only file that looks at what redis-py answers: shapes differ between RESP2, RESP3 and a cluster.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    DataError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from wsgate.client.backend.address import Client, open_client
from wsgate.errors import BackendError, SettingsError

__all__ = ["Bus", "BusError", "Entry", "NoGroup", "Reader"]

_PERMANENT: Final = (AuthenticationError, AuthorizationError, NoPermissionError, DataError)
_PENDING_LIMIT: Final = 1_000
"""Rows of one XPENDING. Other entries of the consumer may stand between the requested ones, so that one
command may not be enough."""


class BusError(BackendError):
    """Redis did not do what it was asked to, or it is not known whether it did."""


class NoGroup(BusError):
    """The stream or its consumer group is gone: the data was lost, or is that of another server."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a stream. Without fields it was trimmed away before it was acknowledged."""

    stream: str
    id: str
    fields: Mapping[bytes, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads what: a consumer of a group of one stream."""

    stream: str
    group: str
    consumer: str


class Bus:
    """Redis, Sentinel's primary or a cluster, as far as a backend needs it."""

    def __init__(self, where: str | Client, *, timeout_s: float) -> None:
        """Over a URL (see `address`), or over a redis-py asyncio client, which stays its owner's.

        Args:
            where: URL or client.
            timeout_s: How long an answer may take.

        Raises:
            SettingsError: The URL is none, or the client decodes what it reads.
        """
        self._opened = open_client(where) if isinstance(where, str) else None
        self._client = self._opened.client if self._opened else cast(Any, where)
        self._is_cluster = isinstance(self._client, RedisCluster)
        self._timeout_s = timeout_s
        if self._client.get_encoder().decode_responses:
            raise SettingsError("the redis client must not have decode_responses: data may be binary")

    async def close(self) -> None:
        """Close what was opened here."""
        if self._opened is not None:
            await self._opened.close()

    async def publish(self, name: str, payload: bytes) -> int:
        """Publish; how many shards heard it. On a cluster the channel is a sharded one.

        Source: protocols/bus/v1/spec.md; architecture, section 7.
        """
        async with self._asking():
            command = "SPUBLISH" if self._is_cluster else "PUBLISH"
            return int(await self._client.execute_command(command, name, payload))

    # --- streams --------------------------------------------------------------------------------------

    async def create_group(self, reader: Reader, start: str) -> None:
        """Create the group, and the stream, unless they are there."""
        async with self._asking():
            try:
                await self._client.xgroup_create(reader.stream, reader.group, id=start, mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    async def read(self, reader: Reader, cursor: str, *, count: int, block_s: float) -> list[Entry]:
        """Entries for this consumer.

        Args:
            reader: Who.
            cursor: `>` for new ones; an id for those behind it that it has and did not acknowledge.
            count: At most so many.
            block_s: How long to wait for new ones, > 0.
        """
        async with self._asking(block_s):
            reply = await self._client.xreadgroup(
                reader.group, reader.consumer, {reader.stream: cursor}, count=count, block=int(block_s * 1000)
            )
        return [_entry(reader, row) for row in _rows(reply)]

    async def take_over(
        self, reader: Reader, cursor: str, *, count: int, idle_s: float
    ) -> tuple[str, list[Entry]]:
        """Make entries this consumer's that nobody dealt with for so long; cursor `0-0`: that was all."""
        async with self._asking():
            reply = await self._client.xautoclaim(
                reader.stream, reader.group, reader.consumer, int(idle_s * 1000), start_id=cursor, count=count
            )
        return _text(reply[0]), [_entry(reader, row) for row in reply[1] if row[0] is not None]

    async def deliveries(self, reader: Reader, entries: Sequence[Entry]) -> dict[str, int]:
        """Count how often each of these entries was delivered to any consumer, by entry id.

        An entry that was acknowledged, or that another consumer has claimed, is not in the result. `entries`
        must not be empty and must be in the order of the stream.
        """
        found: dict[str, int] = {}
        start = entries[0].id
        while True:
            async with self._asking():
                rows = await self._client.xpending_range(
                    reader.stream,
                    reader.group,
                    start,
                    entries[-1].id,
                    _PENDING_LIMIT,
                    consumername=reader.consumer,
                )
            found.update((_text(row["message_id"]), int(row["times_delivered"])) for row in rows)
            if len(rows) < _PENDING_LIMIT:
                return found
            start = "(" + _text(rows[-1]["message_id"])

    async def acknowledge(self, reader: Reader, entry: Entry) -> None:
        """The entry is dealt with."""
        async with self._asking():
            await self._client.xack(reader.stream, reader.group, entry.id)

    async def move_to_dead_letters(
        self, reader: Reader, entry: Entry, dead: str, *, why: Mapping[str, str], limit: int
    ) -> None:
        """Move an entry to the stream `dead`, trimmed to about `limit`, with `why` beside its fields.

        Both or neither; on a cluster, where the streams are in two places, first the one and then the
        other, so that it may be there twice but is never lost.
        """
        fields = {**entry.fields, **{name.encode(): value.encode() for name, value in why.items()}}
        async with self._asking():
            if self._is_cluster:
                await self._client.xadd(dead, fields, maxlen=limit)
                await self._client.xack(reader.stream, reader.group, entry.id)
                return
            async with self._client.pipeline(transaction=True) as pipeline:
                pipeline.xadd(dead, fields, maxlen=limit)
                pipeline.xack(reader.stream, reader.group, entry.id)
                await pipeline.execute()

    @asynccontextmanager
    async def _asking(self, more_s: float = 0.0) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s + more_s):
                yield
        except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
            kind = NoGroup if str(error).startswith("NOGROUP") else BusError
            temporary = not isinstance(error, _PERMANENT)
            raise kind(f"the bus: {type(error).__name__}: {error}", temporary=temporary) from error


def _rows(reply: Any) -> list[Any]:
    """The entries of the one stream that was read.

    RESP2 gives `[[name, rows]]`, RESP3 `{name: [rows]}`, redis-py's unified form `{name: rows}`.
    """
    if not reply:
        return []
    rows: list[Any] = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    # RESP3 has one list more around them; an entry itself begins with its id.
    is_nested = bool(rows) and not (rows[0] and isinstance(rows[0][0], bytes | str))
    return rows[0] if is_nested else rows


def _entry(reader: Reader, row: Any) -> Entry:
    return Entry(reader.stream, _text(row[0]), row[1] or {})


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
