"""Probe that the bus delivers: a shard publishes a number to itself and waits for it.

An open connection proves little: the bus may accept publications and not deliver them, or a firewall may have
cut the subscriber off. So every few seconds a number is published, and must come back through the subscriber.
Readiness and the histogram `probe_us` depend on that.

If the bus took a number that does not come back, the publisher and the subscriber are connected to different
servers, for example because a slot has moved. Then both reconnect. The bus may also report this itself, when
it answers that the number had no receiver.
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
"""How long a probe may take before the bus counts as not delivering."""
AGAIN_S = 1.0
"""Time to the next probe after one that the bus did not take, because the bus may be back soon."""


class Probe:
    """Publishes the probes of one shard, and takes them when they come back.

    Args:
        name: The name on the bus that this shard publishes to; in a cluster the prefix of one name for each
            server. No other shard uses it.
        publisher: Publishes the probes.
        subscriber: Receives the probes.
        interval_ms: Time between two probes.
        echoed: Called as `(took_us, due_ms)` when a probe has come back: how long it took, and the monotonic
            time by which the next one is due.
        unheard: Called with the name of a probe that had no receiver on the bus.
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
        self._names = [name]  # one name for each server of the bus; probed in turn
        self._publisher = publisher
        self._subscriber = subscriber
        self._interval_ms = interval_ms
        self._echoed = echoed
        self._unheard = unheard
        self._sent: tuple[bytes, bytes, int] | None = None  # name, payload and time in ns of the last probe
        self._is_accepted = False  # the bus has confirmed the publish of the last probe
        self._is_refused = asyncio.Event()  # the last probe could not be published
        self._number = 0
        # Part of each payload: another process may have used this name before, and its probes prove nothing.
        self._incarnation = secrets.token_hex(4).encode()

    def on_up(self) -> None:
        """Subscribe to the names of the probes, because the subscriber has connected.

        The first probe is sent when its subscription is confirmed. The publisher is another connection, so
        that an earlier probe could reach the bus before the subscription.
        """
        self._names = self._subscriber.reaching(self._base)
        self._sent = None
        for name in self._names:
            self._subscriber.subscribe_control(name)

    def on_control(self, name: bytes, payload: bytes | None) -> None:
        """Take a probe that returned, or begin to probe a name whose subscription is confirmed.

        Args:
            name: The name on the bus.
            payload: What was published to the name; None: the subscription is confirmed.
        """
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
        """Return the name of the next probe; empty if there is none."""
        return self._names[(self._number + 1) % len(self._names)] if self._names else b""

    def _send(self) -> None:
        """Publish the next probe on the bus."""
        name = self._next()
        self._number += 1
        if not name:
            return
        text = b"%b-%d" % (self._incarnation, self._number)
        self._sent, self._is_accepted = (name, text, time.monotonic_ns()), False
        done = partial(self._on_outcome, self._number, name)
        self._publisher.publish(name, text, done, must_reach=True)  # the subscription is confirmed

    def _on_outcome(self, number: int, name: bytes, outcome: str) -> None:
        """Note whether the bus took the last probe; one that failed is repeated after `AGAIN_S`."""
        if number == self._number:
            self._is_accepted = not outcome
            if outcome == "unheard":
                self._unheard(name)
            if outcome:
                self._sent = None  # this probe will not come back, so the next one may be sent
                self._is_refused.set()

    def check(self, now_ns: int) -> None:
        """Send the next probe unless one is under way; reconnect if that one was taken and did not come back.

        Args:
            now_ns: Monotonic nanoseconds.
        """
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
        """Send a probe after each interval, or soon after one that failed, until the task is cancelled."""
        interval_s = self._interval_ms / 1000
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._is_refused.wait()
                    self._is_refused.clear()
                    await asyncio.sleep(AGAIN_S)
            self.check(time.monotonic_ns())
