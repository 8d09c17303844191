"""The backend of the chat room: it turns the gateway's events into publications.

Users send their lines to the backend (`send`). The backend checks them, keeps the last ones, and publishes
them. It can therefore shorten or reject lines, and users who join later receive the earlier lines.
"""

import json
from typing import Any, Final

from redis.asyncio import Redis

from wsgate.client.backend import Event, Publisher

__all__ = ["Room"]

CHANNEL: Final = "room:lobby"
_HISTORY_KEY: Final = "chat:history"
_PEOPLE_KEY: Final = "chat:people"
_HISTORY_LENGTH: Final = 50
_TEXT_LENGTH: Final = 500


class Room:
    """The state of the room, which is kept in Redis so that backend processes may restart."""

    def __init__(self, redis: Redis, publisher: Publisher) -> None:
        self._redis: Any = redis
        self._publisher = publisher

    async def handle(self, event: Event) -> None:
        """Handle one event. Handling an event twice does no harm."""
        if event.user is None:
            return
        if event.type == "connected":
            await self._redis.hset(_PEOPLE_KEY, event.conn, event.user)
            await self._tell_people()
        elif event.type == "disconnected":
            await self._redis.hdel(_PEOPLE_KEY, event.conn)
            await self._tell_people()
        elif event.type == "message" and isinstance(event.data, dict):
            await self._answer(event, event.user, event.data)

    async def _answer(self, event: Event, user: str, wish: dict[str, Any]) -> None:
        if wish.get("op") == "history":
            lines = [json.loads(line) for line in await self._redis.lrange(_HISTORY_KEY, 0, -1)]
            await self._publisher.publish_to_user(user, {"type": "history", "lines": lines[::-1]})
            await self._tell_people()
        text = wish.get("text")
        if wish.get("op") == "say" and isinstance(text, str) and text.strip():
            line = {
                "id": event.id,
                "user": user,
                "text": text.strip()[:_TEXT_LENGTH],
                "at": event.timestamp_ms,
            }
            async with self._redis.pipeline(transaction=True) as steps:
                steps.lpush(_HISTORY_KEY, json.dumps(line))
                steps.ltrim(_HISTORY_KEY, 0, _HISTORY_LENGTH - 1)
                await steps.execute()
            await self._publisher.publish(CHANNEL, {"type": "said", **line})

    async def _tell_people(self) -> None:
        """Publish the names of all connected users, each once."""
        names = {name.decode() for name in await self._redis.hvals(_PEOPLE_KEY)}
        await self._publisher.publish(CHANNEL, {"type": "people", "names": sorted(names)})
