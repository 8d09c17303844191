"""Drain a shard: answer its accept queue, then close its connections in batches before the process ends.

With no clients there is no delay. Otherwise each client receives a `bye` with a random `retry_ms`, so that
the clients do not reconnect together. The connections that are left at the deadline are not closed here.

A shard that shares its bus with other nodes spreads the closes over half of the timeout, because each client
connects to another node at once. A shard with a private bus closes fast, and its clients wait until it can be
back: before, with 2,000 clients, each tried four times in vain.
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
"""Retry-After of the refusals that are sent one by one, without the reactor."""
STEP_S: Final = 0.1
"""Time between two batches of closes."""
BATCH_LEAST: Final = 20
RETRY_LEAST_MS: Final = 500
RETRY_PER_CLIENT_MS: Final = 1
RETRY_SPREAD_MOST_MS: Final = 30_000
ALONE_CLOSES_PER_MS: Final = 5
"""Closes of a shard with a private bus; each is an event for backends, which can take four times as many."""
RESTART_MS: Final = 2_000
"""Time from the last Close to the first return: lingering, the last events, and the start of a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a shard closes its connections, and when their clients may return.

    Attributes:
        closing_ms: Time over which the closes are spread.
        batch: Connections that are closed every `STEP_S`.
        retry_least_ms: Least `retry_ms` of the clients that are closed last.
        retry_spread_ms: Range of the random part of `retry_ms`.
        has_private_bus: Whether no other node can take over the clients.
    """

    closing_ms: int
    batch: int
    retry_least_ms: int
    retry_spread_ms: int
    has_private_bus: bool

    @classmethod
    def of(cls, clients: int, timeout_ms: int, *, has_private_bus: bool) -> Self:
        """Compute how fast to close a number of clients, and when they may return.

        Args:
            clients: Connections of this shard.
            timeout_ms: Time for the whole drain.
            has_private_bus: Whether no other node can take over the clients.
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
        """Return the `retry_ms` for a client that is closed now.

        Args:
            passed_ms: Time since the drain began.
            random_share: Part of the random range to use, from 0 up to 1.
        """
        still_ms = max(0.0, self.closing_ms - passed_ms) if self.has_private_bus else 0.0
        return self.retry_least_ms + int(still_ms + random_share * self.retry_spread_ms)


async def empty_queue(
    reactor: Reactor, listener_fd: int, run_pass: Callable[[], None], spare_fd: int
) -> None:
    """Accept and answer every queued connection, so that closing the listener resets none.

    A pass accepts 32, and none while the reactor has paused accepting. So passes are run until the queue is
    empty, for at most `QUEUE_S`.

    Args:
        reactor: Refuses newcomers already, and accepts without a rate limit.
        listener_fd: The listener of the reactor.
        run_pass: Runs a pass of the shard.
        spare_fd: A descriptor that is closed here. If no other is free, the connections are accepted with it,
            one after the other.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + QUEUE_S
    is_exhausted = False
    while loop.time() < end_s:
        before = reactor.counters()["accept_exhausted"]
        # The reactor may have paused accepting. To listen again ends the pause.
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
    """Accept queued connections one after the other with the one free descriptor, and answer each with 503.

    Args:
        listener_fd: The listener; it stays open.
        end_s: When to stop, by `now_s`.
        now_s: Returns monotonic seconds.
    """
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
                    peer.recv(16 * 1024)  # a close with unread bytes sends a reset, and the answer is lost
                peer.send(response)
                peer.shutdown(socket.SHUT_WR)
    finally:
        listener.detach()  # the caller owns the descriptor


async def drain(
    reactor: Reactor, replies: Replies, timeout_ms: int, wake: Callable[[], None], *, has_private_bus: bool
) -> int:
    """Close every connection in batches; return how many connections were left at the deadline.

    Args:
        reactor: Holds the connections, and does not accept any more.
        replies: Sends bye and Close.
        timeout_ms: Time for the whole drain.
        wake: Requests a pass, which sends what is queued.
        has_private_bus: Whether no other node can take over the clients.
    """
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    pace = Pace.of(_clients(reactor), timeout_ms, has_private_bus=has_private_bus)
    while clients := _clients(reactor):
        passed_ms = (loop.time() - began_s) * 1000
        if passed_ms >= timeout_ms:
            return clients
        # Begin at the first slot each time: a connection whose Close is queued is not listed again.
        for conn in reactor.connections(0, pace.batch)[0]:
            retry_ms = pace.retry_ms(passed_ms, random.random())  # noqa: S311 - spreading, not secrecy
            replies.end(conn, DIALECT_OF[reactor.variant(conn)], Reason.DRAIN, retry_ms=retry_ms)
        wake()
        await asyncio.sleep(STEP_S)
    return 0


def _clients(reactor: Reactor) -> int:
    """Count the connections that were upgraded and have not ended; unfinished handshakes do not count."""
    counted = reactor.counters()
    return sum(counted[f"now_{state}"] for state in ("open", "failing", "closing", "lingering"))
