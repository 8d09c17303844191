"""The backend: it stores notifications for each user, and publishes them to the user's inbox.

The bus delivers at most once, so a phone without a connection misses a publication. Each notification
therefore has a number, and a phone that reconnects sends the number of the last one that it has.
"""

import json
from typing import Any, Final

from redis.asyncio import Redis

from wsgate.client.backend import Event, Publisher

__all__ = ["Shop"]

_KEPT: Final = 100
_KEPT_S: Final = 24 * 60 * 60


class Shop:
    """Sends notifications about orders to users."""

    def __init__(self, redis: Redis, publisher: Publisher) -> None:
        self._redis: Any = redis
        self._publisher = publisher

    async def push(self, user: str, text: str) -> int:
        """Store a notification, then publish it; return its number.

        It is stored first, so that a phone can request every notification that was published.
        """
        number = int(await self._redis.incr(f"shop:count:{user}"))
        note = {"number": number, "text": text}
        async with self._redis.pipeline(transaction=True) as steps:
            steps.rpush(f"shop:notes:{user}", json.dumps(note))
            steps.ltrim(f"shop:notes:{user}", -_KEPT, -1)
            steps.expire(f"shop:notes:{user}", _KEPT_S)
            await steps.execute()
        await self._publisher.publish_to_user(user, note)
        return number

    async def handle(self, event: Event) -> None:
        """Publish the notifications after the number that a phone has sent, again."""
        if event.type != "message" or event.user is None or not isinstance(event.data, dict):
            return
        last = event.data.get("have")
        if not isinstance(last, int):
            return
        for kept in await self._redis.lrange(f"shop:notes:{event.user}", 0, -1):
            note = json.loads(kept)
            if note["number"] > last:
                await self._publisher.publish_to_user(event.user, note)
