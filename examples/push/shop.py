"""The backend: it keeps what it has told a user, and pushes it.

A push is live: who is away misses it. So each has a number, and the phone that comes back says which it has.
"""

import json
from typing import Any, Final

from redis.asyncio import Redis

from wsgate.client.backend import Event, Publisher

__all__ = ["Shop"]

_KEPT: Final = 100
_KEPT_S: Final = 24 * 60 * 60


class Shop:
    """Tells users how their orders are."""

    def __init__(self, redis: Redis, publisher: Publisher) -> None:
        self._redis: Any = redis
        self._publisher = publisher

    async def push(self, user: str, text: str) -> int:
        """Keep it, then push it; its number. In this order: what was pushed can always be asked for."""
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
        """A phone says how far it has come: push again what came after."""
        if event.type != "message" or event.user is None or not isinstance(event.data, dict):
            return
        last = event.data.get("have")
        if not isinstance(last, int):
            return
        for kept in await self._redis.lrange(f"shop:notes:{event.user}", 0, -1):
            note = json.loads(kept)
            if note["number"] > last:
                await self._publisher.publish_to_user(event.user, note)
