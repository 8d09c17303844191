"""Leaving in order: every client told, at a rate its successors can bear, and none kept waiting.

With no clients there is no delay. Otherwise connections are closed in batches spread over half of the
drain's time, each with its own jittered `retry_ms`, so that those who come back do not come together.
What is still there at the deadline is cut.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Final

from wsgate.reactor import Reactor
from wsgate.reasons import Reason
from wsgate.shard.sessions import Sessions
from wsgate.shard.variants import DIALECT_OF

__all__ = ["drain"]

STEP_S: Final = 0.1
BATCH_LEAST: Final = 20
RETRY_LEAST_MS: Final = 500
RETRY_PER_CLIENT_MS: Final = 1
RETRY_SPREAD_MOST_MS: Final = 30_000


async def drain(reactor: Reactor, sessions: Sessions, timeout_ms: int, wake: Callable[[], None]) -> int:
    """Close every connection; returns how many were still there at the deadline.

    Args:
        reactor: Accepting nothing any more.
        sessions: For bye and Close.
        timeout_ms: For all of it.
        wake: Makes the loop flush.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_ms / 1000
    clients = _clients(reactor)
    batch = max(BATCH_LEAST, int(clients * STEP_S * 1000 / max(1, timeout_ms // 2)) + 1)
    spread_ms = min(RETRY_SPREAD_MOST_MS, RETRY_LEAST_MS + clients * RETRY_PER_CLIENT_MS)
    while clients := _clients(reactor):
        if loop.time() >= deadline_s:
            return clients
        # From the first slot on each time: a connection told to go is not listed again.
        for conn in reactor.connections(0, batch)[0]:
            retry_ms = RETRY_LEAST_MS + int(random.random() * spread_ms)  # noqa: S311 - spreading, not secrecy
            sessions.end(conn, DIALECT_OF[reactor.variant(conn)], Reason.DRAIN, retry_ms=retry_ms)
        wake()
        await asyncio.sleep(STEP_S)
    return 0


def _clients(reactor: Reactor) -> int:
    """Who was let in and is not gone. Half a request head is nobody yet."""
    counted = reactor.counters()
    return sum(counted[f"now_{state}"] for state in ("open", "failing", "closing", "lingering"))
