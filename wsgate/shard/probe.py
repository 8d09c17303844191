"""Proof that the bus delivers: a shard publishes to itself and listens for it.

A connection that is up says little: a bus that accepts and forgets, a subscriber cut off behind a
firewall, both look well. So every few seconds a number goes out through the publisher and must come
back through the subscriber; readiness and the histogram `probe_us` are made of that.

A number that the bus took and that does not come back says that the two connections do not meet: a name
that was moved to another server while one of them lived on. Then both are made anew. The bus may say so
itself, when it answers that nobody received the number.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from functools import partial

from wsgate.bus import BusPublisher, BusSubscriber

__all__ = ["Probe"]

TIMEOUT_MS = 5_000
"""How long a probe may be under way before the bus counts as not delivering."""
AGAIN_S = 1.0
"""After a probe the bus did not take: it says nothing of a bus that is back a moment later."""


class Probe:
    """One shard's probe.

    Args:
        name: Its pub/sub name, this shard's alone; in a cluster what its names begin with, one a server.
        interval_ms: Between two probes.
        unheard: Called with a name that this shard is subscribed to, when the bus had nobody to hand it to.
        echoed: Called as `(took_us, due_ms)`: how long it took, and until when the next one is due.
    """

    def __init__(
        self,
        name: bytes,
        publisher: BusPublisher,
        subscriber: BusSubscriber,
        interval_ms: int,
        echoed: Callable[[int, int], None],
        unheard: Callable[[bytes], None],
    ) -> None:
        self._base = name
        self._names = [name]  # each reaches another server; probed in turn
        self._publisher = publisher
        self._subscriber = subscriber
        self._interval_ms = interval_ms
        self._echoed = echoed
        self._unheard = unheard
        self._sent: tuple[bytes, bytes, int] | None = None  # name, what, and since when, in ns
        self._is_accepted = False  # the bus has said that it has it
        self._is_refused = asyncio.Event()  # the last one could not be published
        self._number = 0
        # Nobody else's number proves anything: another process may have had this name.
        self._incarnation = secrets.token_hex(4).encode()

    def on_up(self) -> None:
        """The subscriber is up: listen, and probe as soon as that is confirmed.

        Not before: the publisher is another connection, and what it sends may overtake the subscription.
        """
        self._names = self._subscriber.reaching(self._base)
        self._sent = None
        for name in self._names:
            self._subscriber.subscribe_control(name)

    def on_control(self, name: bytes, payload: bytes | None) -> None:
        """Something came for this name, or (None) it is heard now."""
        if payload is None:
            if self._sent is None and name == self._next():
                self._send()
            return
        if self._sent is None or (name, payload) != self._sent[:2]:
            return
        now_ns = time.monotonic_ns()
        took_us, self._sent = (now_ns - self._sent[2]) // 1_000, None
        self._echoed(took_us, now_ns // 1_000_000 + self._interval_ms + TIMEOUT_MS)

    def _next(self) -> bytes:
        return self._names[(self._number + 1) % len(self._names)] if self._names else b""

    def _send(self) -> None:
        name = self._next()
        self._number += 1
        if not name:
            return
        text = b"%b-%d" % (self._incarnation, self._number)
        self._sent, self._is_accepted = (name, text, time.monotonic_ns()), False
        done = partial(self._on_outcome, self._number, name)
        self._publisher.publish(name, text, done, must_reach=True)  # it is subscribed to, and confirmed

    def _on_outcome(self, number: int, name: bytes, outcome: str) -> None:
        if number == self._number:
            self._is_accepted = not outcome
            if outcome == "unheard":
                self._unheard(name)
            if outcome:
                self._sent = None  # it will not come back: the next one may go
                self._is_refused.set()

    def check(self, now_ns: int) -> None:
        """Send the next one; one that is still under way has its time first."""
        if not self._subscriber.is_up:
            return
        if self._sent is not None:
            if now_ns - self._sent[2] < TIMEOUT_MS * 1_000_000:
                return
            if self._is_accepted:
                self._publisher.renew("the bus does not deliver")
                self._subscriber.renew("the bus does not deliver")
                return
        self._send()

    async def run(self) -> None:
        """Probe at intervals; until cancelled."""
        interval_s = self._interval_ms / 1000
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._is_refused.wait()
                    self._is_refused.clear()
                    await asyncio.sleep(AGAIN_S)
            self.check(time.monotonic_ns())
