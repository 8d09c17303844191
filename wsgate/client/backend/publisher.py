"""Publishes from a backend to channels and to users' inboxes, over the bus."""

from types import TracebackType
from typing import Any, Final, Self

from wsgate.client.backend.address import Client
from wsgate.client.backend.bus import Bus
from wsgate.client.backend.payload import encode_publication
from wsgate.errors import SettingsError

__all__ = ["Publisher"]

_TIMEOUT_S: Final = 10.0


class Publisher:
    """Publishes to channels and inboxes. One publisher is enough for a program; many tasks may share it.

    The bus delivers at most once: a client that is not connected does not receive the publication.
    """

    def __init__(self, where: str | Client, prefix: str = "wsgate", *, timeout_s: float = _TIMEOUT_S) -> None:
        """Create a publisher; it connects at its first publication.

        Args:
            where: A bus URL (`redis://`, `rediss://`, `unix://`, `redis+sentinel://h1,h2/master`,
                `redis+cluster://h1,h2`), or a client of `redis.asyncio`, which the caller must close. The
                client must have no retries, as one of `Redis.from_url` or with `retry=Retry(NoBackoff(), 0)`.
            prefix: The gateway's `bus.prefix`.
            timeout_s: How long one reply may take.

        Raises:
            SettingsError: The URL is not valid, the client has `decode_responses` or retries, or
                `timeout_s` is not above 0.
        """
        if not timeout_s > 0:
            raise SettingsError(f"timeout_s: {timeout_s!r} is not a number of seconds above 0")
        self._bus = Bus(where, timeout_s=timeout_s)
        self._prefix = prefix

    async def publish(
        self, channel: str, data: Any, *, user: str | None = None, exclude: str | int | None = None
    ) -> int:
        """Publish data to a channel, for all its subscribers on all nodes.

        Args:
            channel: The name of the channel.
            data: Bytes are published as they are; any other value, also a str, as JSON.
            user: Shown to clients as the publisher.
            exclude: The public id of a connection that does not receive it, as in its `welcome` or in
                `Event.conn`.

        Returns:
            How many shards received it. This is not the number of clients.

        Raises:
            BusError: Redis did not reply, or refused; `temporary` if a retry may help. After a time-out it is
                unknown whether the data was published.
            TypeError, ValueError: JSON cannot represent `data`; nothing was published.
        """
        payload = encode_publication(data, user=user, exclude=exclude)
        return await self._bus.publish(f"{self._prefix}:ch:{channel}", payload)

    async def publish_to_user(self, user: str, data: Any) -> int:
        """Publish data to a user's inbox: every connection of this user receives it on the channel `@me`."""
        return await self.publish(f"@{user}", data)

    async def close(self) -> None:
        """Close the Redis client, unless the caller passed it in."""
        await self._bus.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
