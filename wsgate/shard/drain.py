"""Leaving in order: every client told, at a rate its successors can bear, and none kept waiting.

With no clients there is no delay. Otherwise connections are closed in batches, each with its own jittered
`retry_ms`, so that those who come back do not come together. What is still there at the deadline is cut.

Who has peers behind the same bus takes half of the time to close, because each that goes is somebody else's
newcomer at once. Who is alone (its bus is its own) closes fast and tells everybody to stay away until it can
be back: before, with 2,000 clients, each tried four times in vain.
"""

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from wsgate.handshake import refusal
from wsgate.reactor import Reactor
from wsgate.reasons import Reason
from wsgate.shard.capacity import queue_length
from wsgate.shard.publication_encoder import DIALECT_OF
from wsgate.shard.replies import Replies

__all__ = ["Pace", "drain", "empty_queue"]

QUEUE_S: Final = 1.0
"""Maximum time to answer the accept queue, so that a flood of newcomers cannot delay the drain."""
ANSWERS_S: Final = 0.5
"""Maximum time for these answers to be written, and read by clients that are still sending."""
ANSWER_STEP_S: Final = 0.01
RETRY_AFTER_S: Final = 5
STEP_S: Final = 0.1
BATCH_LEAST: Final = 20
RETRY_LEAST_MS: Final = 500
RETRY_PER_CLIENT_MS: Final = 1
RETRY_SPREAD_MOST_MS: Final = 30_000
ALONE_CLOSES_PER_MS: Final = 5  # an event for each goes to the backend: a quarter of what that bears
RESTART_MS: Final = 2_000  # from the last Close: lingering, the last events, and a process that starts


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast to close, and when those who were told may come back."""

    closing_ms: int
    batch: int  # in one STEP_S
    retry_least_ms: int  # for the last ones
    retry_spread_ms: int
    has_private_bus: bool

    @classmethod
    def of(cls, clients: int, timeout_ms: int, *, has_private_bus: bool) -> Self:
        """The pace for so many clients.

        Args:
            clients: Of this shard.
            timeout_ms: For all of it.
            has_private_bus: No other node can take them.
        """
        closing_ms = timeout_ms // 2
        if has_private_bus:
            closing_ms = min(closing_ms, clients // ALONE_CLOSES_PER_MS)
        return cls(
            closing_ms=closing_ms,
            batch=max(BATCH_LEAST, int(clients * STEP_S * 1000 / max(1, closing_ms)) + 1),
            retry_least_ms=RESTART_MS if has_private_bus else RETRY_LEAST_MS,
            retry_spread_ms=min(RETRY_SPREAD_MOST_MS, RETRY_LEAST_MS + clients * RETRY_PER_CLIENT_MS),
            has_private_bus=has_private_bus,
        )

    def retry_ms(self, passed_ms: float, random_share: float) -> int:
        """When one may come back that is told now; `random_share` is from 0 up to 1."""
        still_ms = max(0.0, self.closing_ms - passed_ms) if self.has_private_bus else 0.0
        return self.retry_least_ms + int(still_ms + random_share * self.retry_spread_ms)


async def empty_queue(
    reactor: Reactor, listener_fd: int, run_pass: Callable[[], None], spare_fd: int
) -> None:
    """Accept and answer every queued connection, so that closing the listener resets none.

    A pass accepts 32, and none while the reactor has paused accepting. So passes are run until the queue is
    empty, for at most `QUEUE_S`.

    Args:
        reactor: Refuses newcomers by itself already, and accepts without a rate.
        listener_fd: Its listener.
        run_pass: Runs a pass of the loop.
        spare_fd: Closed here: where no descriptor is free, this one takes a connection after the other.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + QUEUE_S
    is_exhausted = False
    while loop.time() < end_s:
        before = reactor.counters()["accept_exhausted"]
        # Whatever the reactor has paused accepting for: it begins anew.
        reactor.stop_listening()
        reactor.listen(listener_fd)
        run_pass()
        is_exhausted = reactor.counters()["accept_exhausted"] != before
        if is_exhausted or (queue_length(listener_fd)[0] == 0 and not reactor.more):
            break
        await asyncio.sleep(0)
    os.close(spare_fd)
    if is_exhausted:
        _refuse_one_by_one(listener_fd, end_s, loop.time)
    end_s = loop.time() + ANSWERS_S
    while loop.time() < end_s and _unanswered(reactor):
        run_pass()
        await asyncio.sleep(ANSWER_STEP_S)


def _unanswered(reactor: Reactor) -> int:
    """Count newcomers whose complete request may be unread, or whose refusal is not finished."""
    counted = reactor.counters()
    return counted["now_deciding"] + counted["now_draining"] + reactor.more


def _refuse_one_by_one(listener_fd: int, end_s: float, now_s: Callable[[], float]) -> None:
    """Accept, answer 503 and close, with the one descriptor that is free."""
    listener = socket.socket(fileno=listener_fd)
    response = refusal(503, "draining", retry_after_s=RETRY_AFTER_S).response
    try:
        while now_s() < end_s:
            try:
                peer, _ = listener.accept()
            except OSError:
                break
            with peer, contextlib.suppress(OSError):
                peer.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    peer.recv(16 * 1024)  # a close with unread bytes would reset the answer away
                peer.send(response)
                peer.shutdown(socket.SHUT_WR)
    finally:
        listener.detach()  # the caller's


async def drain(
    reactor: Reactor, replies: Replies, timeout_ms: int, wake: Callable[[], None], *, has_private_bus: bool
) -> int:
    """Close every connection; returns how many were still there at the deadline.

    Args:
        reactor: Accepting nothing any more.
        replies: Sends bye and Close.
        timeout_ms: For all of it.
        wake: Makes the loop flush.
        has_private_bus: No other node can take them.
    """
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    pace = Pace.of(_clients(reactor), timeout_ms, has_private_bus=has_private_bus)
    while clients := _clients(reactor):
        passed_ms = (loop.time() - began_s) * 1000
        if passed_ms >= timeout_ms:
            return clients
        # From the first slot on each time: a connection told to go is not listed again.
        for conn in reactor.connections(0, pace.batch)[0]:
            retry_ms = pace.retry_ms(passed_ms, random.random())  # noqa: S311 - spreading, not secrecy
            replies.end(conn, DIALECT_OF[reactor.variant(conn)], Reason.DRAIN, retry_ms=retry_ms)
        wake()
        await asyncio.sleep(STEP_S)
    return 0


def _clients(reactor: Reactor) -> int:
    """Who was let in and is not gone. Half a request head is nobody yet."""
    counted = reactor.counters()
    return sum(counted[f"now_{state}"] for state in ("open", "failing", "closing", "lingering"))
