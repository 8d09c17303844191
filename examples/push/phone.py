"""The phone: it shows every notification once and in order, although its network is interrupted."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Final

from wsgate.client import Client, CommandError, CommandTimeout, Disconnected, NotConnected
from wsgate.client.tokens import TokenSource

__all__ = ["Phone"]

_RETRY_S: Final = 1.0
"""Seconds after which a request is sent again if the gateway names no time."""


class Phone:
    """A client that shows notifications; `shown` holds the numbers of those that were shown: 1, 2, 3 ..."""

    def __init__(self, url: str, token: TokenSource, say: Callable[[str], None]) -> None:
        self._url = url
        self._token = token
        self._say = say
        self.shown: list[int] = []
        self._early: dict[int, str] = {}  # notifications that arrived before an earlier one
        self.ready = asyncio.Event()
        self._news = asyncio.Event()
        self._is_asking = False

    async def run(self) -> None:
        """Connect and show notifications until cancelled."""
        async with (
            Client(self._url, token=self._token, on_error=lambda error: None) as client,
            client.inbox(on_gap=lambda gap: self._ask(client, gap.retry_ms / 1000)) as inbox,
        ):
            await inbox.ready()
            self.ready.set()
            async for publication in inbox:
                self._show(publication.data["number"], publication.data["text"])

    async def wait_for(self, count: int, patience_s: float) -> None:
        """Wait until this number of notifications was shown, or until this time has passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while len(self.shown) < count:
                    self._news.clear()
                    await self._news.wait()

    async def _ask(self, client: Client, wait_s: float) -> None:
        """Send the number of the last notification to the backend, which then sends the later ones again.

        Called for a gap. Waits first, so that not all phones send at the same time. A second gap during the
        wait needs no second request. A temporary error is followed by another request, because no further
        gap follows while the connection stays. After a lost connection a gap follows.
        """
        while not self._is_asking:
            self._is_asking = True
            await asyncio.sleep(wait_s)
            self._is_asking = False
            self._say(f"back; has all up to {len(self.shown)}, requests the rest")
            try:
                await client.send({"have": len(self.shown)})
                return
            except (Disconnected, NotConnected):
                return
            except (CommandError, CommandTimeout) as error:
                if not error.temporary:
                    raise
                asked_s = error.retry_s if isinstance(error, CommandError) else None
                wait_s = asked_s or _RETRY_S * random.uniform(1, 2)  # noqa: S311 - spreading, not secrecy

    def _show(self, number: int, text: str) -> None:
        if number <= len(self.shown):
            return  # it was shown before, and the backend sent it again
        self._early[number] = text
        while text := self._early.pop(len(self.shown) + 1, ""):
            self.shown.append(len(self.shown) + 1)
            self._say(f"({self.shown[-1]}) {text}")
            self._news.set()
