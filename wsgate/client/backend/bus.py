"""The Redis commands that a backend needs, each with a time limit and with one type of error.

This is the only file that reads redis-py's replies: their shape differs between RESP2, RESP3 and a cluster.
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
_PERMANENT_TEXTS: Final = ("WRONGTYPE", "unknown command")
"""How the texts of refusals begin for which redis-py has no type, and which a retry cannot change."""
_READ_TIMEOUT_S: Final = 5.0
"""Redis-py's default of `socket_timeout`; a pool that was created without it does not name it."""
_PENDING_LIMIT: Final = 1_000
"""Rows of one XPENDING. Other entries of the consumer may stand between the requested ones, so that one
command may not be enough."""


class BusError(BackendError):
    """A Redis command failed, or its result is unknown."""


class NoGroup(BusError):
    """The stream or its consumer group does not exist: data was lost, or this is another server."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a stream. It has no fields if it was trimmed from the stream while it was pending."""

    stream: str
    id: str
    fields: Mapping[bytes, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reader:
    """One consumer in a consumer group of one stream."""

    stream: str
    group: str
    consumer: str


class Bus:
    """A connection to Redis, to the primary of a Sentinel, or to a cluster."""

    def __init__(self, where: str | Client, *, timeout_s: float) -> None:
        """Create a bus from a URL (see `address`) or from a redis-py asyncio client.

        Args:
            where: The URL, or a client. The caller must close its own client.
            timeout_s: How long one reply may take.

        Raises:
            SettingsError: The URL is not valid, or the client has `decode_responses` or retries.
        """
        self._opened = open_client(where) if isinstance(where, str) else None
        self._client = self._opened.client if self._opened else cast(Any, where)
        self._is_cluster = isinstance(self._client, RedisCluster)
        self._timeout_s = timeout_s
        if self._client.get_encoder().decode_responses:
            raise SettingsError("the redis client must not have decode_responses: data may be binary")
        if retries := _retries(self._client):
            raise SettingsError(
                f"the redis client must not repeat commands by itself (its retries: {retries}), because it "
                "would publish twice if a reply is lost: create it with retry=Retry(NoBackoff(), 0) of "
                "redis.asyncio.retry and redis.backoff, or pass the URL of the bus"
            )

    def check_block(self, block_s: float) -> None:
        """Raise SettingsError if a client that was passed in gives up a read before `block_s` has passed."""
        if self._opened is not None:
            return
        of_connections = self._client if self._is_cluster else self._client.connection_pool
        limit_s = of_connections.connection_kwargs.get("socket_timeout", _READ_TIMEOUT_S)
        if limit_s is not None and block_s >= limit_s:
            raise SettingsError(
                f"block_s: {block_s!r} must be less than the socket_timeout of the client, {limit_s!r} s"
            )

    async def close(self) -> None:
        """Close the Redis client if it was created from a URL."""
        if self._opened is not None:
            await self._opened.close()

    async def publish(self, name: str, payload: bytes) -> int:
        """Publish a payload, and return the number of shards that received it.

        On a cluster the channel is a sharded one.

        Source: protocols/bus/v1/spec.md, "Channels".
        """
        async with self._asking():
            command = "SPUBLISH" if self._is_cluster else "PUBLISH"
            return int(await self._client.execute_command(command, name, payload))

    # --- streams --------------------------------------------------------------------------------------

    async def create_group(self, reader: Reader, start: str) -> None:
        """Create the consumer group, and its stream, unless they exist.

        The group reads entries after the id `start`.
        """
        async with self._asking():
            try:
                await self._client.xgroup_create(reader.stream, reader.group, id=start, mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    async def read(self, reader: Reader, cursor: str, *, count: int, block_s: float) -> list[Entry]:
        """Read entries of the stream for this consumer.

        Args:
            reader: The consumer.
            cursor: `>` for new entries; an id for the entries after it that this consumer received and did
                not acknowledge.
            count: The largest number of entries.
            block_s: How many seconds to wait for new entries, > 0.
        """
        async with self._asking(block_s):
            reply = await self._client.xreadgroup(
                reader.group, reader.consumer, {reader.stream: cursor}, count=count, block=int(block_s * 1000)
            )
        return [_entry(reader, row) for row in _rows(reply)]

    async def take_over(
        self, reader: Reader, cursor: str, *, count: int, idle_s: float
    ) -> tuple[str, list[Entry]]:
        """Claim pending entries that no consumer has acknowledged for `idle_s` seconds.

        Returns:
            The cursor for the next call, `0-0` if there are no more entries; and the claimed entries.
        """
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

    async def renew(self, reader: Reader, entry_ids: Sequence[str], *, fresh_s: float) -> None:
        """Reset the idle time of entries that this consumer owns, so that no other consumer claims them.

        Entries that were delivered or claimed less than `fresh_s` ago are left as they are. The number of
        deliveries does not rise. `entry_ids` must not be empty.
        """
        async with self._asking():
            await self._client.xclaim(
                reader.stream,
                reader.group,
                reader.consumer,
                int(fresh_s * 1000),
                list(entry_ids),
                justid=True,
            )

    async def is_pending(self, reader: Reader, entry: Entry) -> bool:
        """Return whether any consumer of the group received the entry and did not acknowledge it."""
        async with self._asking():
            return bool(await self._client.xpending_range(reader.stream, reader.group, entry.id, entry.id, 1))

    async def is_stored(self, entry: Entry) -> bool:
        """Return whether the entry is in its stream, and was not trimmed."""
        async with self._asking():
            return bool(await self._client.xrange(entry.stream, entry.id, entry.id))

    async def acknowledge(self, reader: Reader, entry: Entry) -> None:
        """Acknowledge an entry, so that no consumer of the group receives it again."""
        async with self._asking():
            await self._client.xack(reader.stream, reader.group, entry.id)

    async def add_dead_letter(self, entry: Entry, dead: str, *, why: Mapping[str, str], limit: int) -> None:
        """Add an entry to the stream `dead`, trimmed to about `limit` entries, with the fields of `why`.

        The caller acknowledges the entry afterwards. One transaction for both would acknowledge an entry also
        if its dead letter was refused with WRONGTYPE. So a dead letter may be added twice, but is not lost.
        """
        fields = {**entry.fields, **{name.encode(): value.encode() for name, value in why.items()}}
        async with self._asking():
            await self._client.xadd(dead, fields, maxlen=limit)

    @asynccontextmanager
    async def _asking(self, more_s: float = 0.0) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s + more_s):
                yield
        except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
            kind = NoGroup if str(error).startswith("NOGROUP") else BusError
            temporary = not isinstance(error, _PERMANENT) and not str(error).startswith(_PERMANENT_TEXTS)
            raise kind(f"the bus: {type(error).__name__}: {error}", temporary=temporary) from error


def _retries(client: Any) -> int:
    """Return how often a redis-py client repeats a command whose reply is lost; -1 for without end.

    Redis-py sets 10 for `Redis(...)` and `RedisCluster(...)`, and none for `Redis.from_url(...)`.
    """
    if isinstance(client, RedisCluster):
        return int(client.retry.get_retries())
    kwargs = client.connection_pool.connection_kwargs
    if (retry := kwargs.get("retry")) is not None:
        return int(retry.get_retries())
    # Redis-py makes one retry of its own if it has errors to repeat after and no number.
    return 1 if kwargs.get("retry_on_error") or kwargs.get("retry_on_timeout") else 0


def _rows(reply: Any) -> list[Any]:
    """Return the rows of the one stream in a reply to XREADGROUP.

    RESP2 sends `[[name, rows]]`, RESP3 `{name: [rows]}`, redis-py's unified form is `{name: rows}`.
    """
    if not reply:
        return []
    rows: list[Any] = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    # RESP3 has one more list around the rows. An entry itself starts with its id.
    is_nested = bool(rows) and not (rows[0] and isinstance(rows[0][0], bytes | str))
    return rows[0] if is_nested else rows


def _entry(reader: Reader, row: Any) -> Entry:
    return Entry(reader.stream, _text(row[0]), row[1] or {})


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
