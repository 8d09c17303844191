"""Says something to clients, through the bus."""

from types import TracebackType
from typing import Any, Final, Self

from wsgate.client.backend.address import Client
from wsgate.client.backend.bus import Bus
from wsgate.client.backend.payload import encode_publication

__all__ = ["Publisher"]

_TIMEOUT_S: Final = 10.0


class Publisher:
    """Publishes to channels and inboxes. One is enough for a program; it may be used by many tasks at once.

    What it promises is the bus's: a channel is live, and who is away misses what is said.
    """

    def __init__(self, where: str | Client, prefix: str = "wsgate", *, timeout_s: float = _TIMEOUT_S) -> None:
        """Connects when it is first used.

        Args:
            where: A bus URL (`redis://`, `rediss://`, `unix://`, `redis+sentinel://h1,h2/master`,
                `redis+cluster://h1,h2`), or a client of `redis.asyncio`, which stays its owner's.
            prefix: The gateway's `bus.prefix`.
            timeout_s: How long an answer may take.

        Raises:
            SettingsError: The URL is none.
        """
        self._bus = Bus(where, timeout_s=timeout_s)
        self._prefix = prefix

    async def publish(
        self, channel: str, data: Any, *, user: str | None = None, exclude: str | int | None = None
    ) -> int:
        """Publish to a channel.

        Args:
            channel: Its name.
            data: Bytes as they are; anything else as JSON, a str too.
            user: Shown to clients as who published it.
            exclude: A connection's public id, as in its `welcome` or in `Event.conn`, that does not get it.

        Returns:
            How many shards heard it, which is not how many clients.

        Raises:
            BusError: Redis did not answer, or refused; `temporary` where a retry may help. After a time-out
                it is unknown whether it was published.
            TypeError, ValueError: JSON cannot hold `data`; nothing was published.
        """
        payload = encode_publication(data, user=user, exclude=exclude)
        return await self._bus.publish(f"{self._prefix}:ch:{channel}", payload)

    async def publish_to_user(self, user: str, data: Any) -> int:
        """Publish to a user's inbox: every connection of this user gets it, as channel `@me`."""
        return await self.publish(f"@{user}", data)

    async def close(self) -> None:
        """Close what was opened here."""
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
