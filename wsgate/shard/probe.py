"""Probe that the bus delivers: a shard publishes a number to itself and waits for it.

An open connection proves little: the bus may accept publications and not deliver them, or a firewall may have
cut the subscriber off. So every few seconds a number is published, and must come back through the subscriber.
Readiness and the histogram `probe_us` depend on that.

On a cluster every server has a probe of its own, with its own deadline: the echo of one server proves nothing
about the others. A probe is sent only while its subscription is confirmed, because the bus then has to report
at least one receiver.

If the bus took a number that does not come back, the publisher and the subscriber are connected to different
servers, for example because a slot has moved. Then both reconnect to this server. The bus may also report
this itself, when it answers that the number had no receiver.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from wsgate.bus import BusPublisher, BusSubscriber

__all__ = ["Probe"]

TIMEOUT_MS = 5_000
"""How long a probe may take before the bus counts as not delivering."""
AGAIN_S = 1.0
"""Time to the next probe after one that the bus did not take, because the bus may be back soon."""


@dataclass(slots=True)
class _Target:
    """One server of the bus, by the name that is published to.

    Attributes:
        due_ms: The monotonic time by which the server must echo a probe; 0: it has echoed none since a loss.
        text: The payload of the probe that is under way; empty: none is.
        sent_ns: The monotonic time at which that probe was sent.
        is_accepted: Whether the bus has confirmed the publish of that probe.
    """

    due_ms: int
    text: bytes = b""
    sent_ns: int = 0
    is_accepted: bool = False


class Probe:
    """Publishes the probes of one shard, and takes them when they come back.

    Args:
        name: The name on the bus that this shard publishes to; in a cluster the prefix of one name for each
            server. No other shard uses it.
        publisher: Publishes the probes.
        subscriber: Receives the probes.
        interval_ms: Time between two probes of a server.
        echoed: Called as `(took_us, due_ms)` when a probe has come back: how long it took, and the earliest
            monotonic time by which a server must echo its next one. 0: a server has not echoed any since it
            was lost.
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
        self._targets: dict[bytes, _Target] = {}
        self._publisher = publisher
        self._subscriber = subscriber
        self._interval_ms = interval_ms
        self._echoed = echoed
        self._unheard = unheard
        self._is_refused = asyncio.Event()  # a probe could not be published
        self._number = 0
        # Part of each payload: another process may have used this name before, and its probes prove nothing.
        self._incarnation = secrets.token_hex(4).encode()

    def on_up(self) -> None:
        """Subscribe to the names of the probes, because the subscriber has connected, or the map is new.

        The first probe is sent when its subscription is confirmed. The publisher is another connection, so
        that an earlier probe could reach the bus before the subscription.
        """
        # A server that joins the cluster must echo as soon as the servers that are probed already.
        due_ms = min((target.due_ms for target in self._targets.values()), default=0)
        names = self._subscriber.reaching(self._base)
        self._targets = {name: self._targets.get(name) or _Target(due_ms) for name in names}
        for name, target in self._targets.items():
            if not self._subscriber.hears(name):
                target.text = b""  # a probe that is under way does not come back
                self._subscriber.subscribe_control(name)

    def on_down(self) -> None:
        """Note that a connection of the subscriber is lost; its servers must echo again."""
        for name, target in self._targets.items():
            if not self._subscriber.hears(name):
                target.text, target.due_ms = b"", 0

    def on_control(self, name: bytes, payload: bytes | None) -> None:
        """Take a probe that returned, or begin to probe a name whose subscription is confirmed.

        Args:
            name: The name on the bus.
            payload: What was published to the name; None: the subscription is confirmed.
        """
        target = self._targets.get(name)
        if target is None:
            return
        if payload is None:
            if not target.text:
                self._send(name, target)
            return
        if not target.text or payload != target.text:
            return
        now_ns = time.monotonic_ns()
        took_us, target.text = (now_ns - target.sent_ns) // 1_000, b""
        target.due_ms = now_ns // 1_000_000 + self._interval_ms + TIMEOUT_MS
        self._echoed(took_us, min(each.due_ms for each in self._targets.values()))

    def _send(self, name: bytes, target: _Target) -> None:
        """Publish the next probe of one server."""
        self._number += 1
        target.text = b"%b-%d" % (self._incarnation, self._number)
        target.sent_ns, target.is_accepted = time.monotonic_ns(), False
        done = partial(self._on_outcome, name, target.text)
        self._publisher.publish(name, target.text, done, must_reach=True)  # the subscription is confirmed

    def _on_outcome(self, name: bytes, text: bytes, outcome: str) -> None:
        """Note whether the bus took a probe; one that failed is repeated after `AGAIN_S`."""
        target = self._targets.get(name)
        if target is None or target.text != text:
            return
        target.is_accepted = not outcome
        if outcome == "unheard" and self._subscriber.hears(name):
            self._unheard(name)
        if outcome:
            target.text = b""  # this probe will not come back, so the next one may be sent
            self._is_refused.set()

    def check(self, now_ns: int) -> None:
        """Send the next probe of each server that has none under way and whose subscription is confirmed.

        If a probe was taken and did not come back in time, both connections to its server are replaced.

        Args:
            now_ns: Monotonic nanoseconds.
        """
        for name, target in list(self._targets.items()):
            if not self._subscriber.hears(name):
                continue
            if target.text:
                if now_ns - target.sent_ns < TIMEOUT_MS * 1_000_000:
                    continue
                if target.is_accepted:
                    self._publisher.renew("the bus does not deliver", name)
                    self._subscriber.renew("the bus does not deliver", name)
                    continue
            self._send(name, target)

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
