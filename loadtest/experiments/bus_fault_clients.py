"""The subscribers and publishers of bus_faults.py: they record what is published, received and reported lost.

One loop reads for all clients. There are two channels: `crowd` has most of the subscribers and few
publications; `quick` has few subscribers, and each of its publishers publishes again as soon as it has a
reply. Clients publish with `id`, one publication after the other; a backend publishes to the bus itself, from
a thread. Every publication carries its source and a number that increases by one.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import threading
import time
from collections.abc import Callable
from typing import Final, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from loadtest.experiments.soak.record import Published, Session
from loadtest.harness.wire_client import WireClient

__all__ = ["BusCrowd", "bus_client"]

CROWD: Final = "crowd"
QUICK: Final = "quick"
QUICK_SUBSCRIBERS: Final = 4
QUICK_PUBLISHERS: Final = 3
CROWD_PAUSE_S: Final = 0.05
QUICK_PAUSE_S: Final = 0.004
BUS_TIMEOUT_S: Final = 2.0
_STEP_S: Final = 0.002
_JOIN_S: Final = 30.0
_PROGRESS_S: Final = 2.0
_MESSAGE: Final = re.compile(rb'\{"op":"msg","ch":"[a-z]+","data":"([a-z0-9-]+) (\d+)"')
_GAP: Final = b'{"op":"gap"'


def bus_client(path: str) -> redis.Redis:
    """Return a client of the bus that never retries: a second try would be a second publication."""
    return redis.Redis(
        unix_socket_path=path, socket_timeout=BUS_TIMEOUT_S, retry=Retry(NoBackoff(), 0), protocol=2
    )


class Subscriber:
    """A client that is subscribed to one channel and records everything that it receives.

    Attributes:
        arrivals: For each received publication to `quick`: when it was sent, and when it arrived.
    """

    def __init__(self, port: int, channel: str, begun: dict[tuple[str, int], float]) -> None:
        self.client = WireClient(port)
        self.client.subscribe(channel)
        self.client.begin()
        self.session = Session(subscribed_s={channel: time.monotonic()})
        self.arrivals: list[tuple[float, float]] = []
        self.gaps = 0
        self._channel = channel
        self._begun = begun

    def read(self) -> bool:
        """Read and record what has arrived; return False when the connection has ended."""
        payloads = self.client.receive()
        now_s = time.monotonic()
        for payload in payloads:
            if match := _MESSAGE.match(payload):
                source, number = match[1].decode(), int(match[2])
                self.session.receive(self._channel, source, number)
                if self._channel == QUICK:
                    self.arrivals.append((self._begun[source, number], now_s))
            elif payload.startswith(_GAP):
                self.gaps += 1
                self.session.gap(json.loads(payload).get("ch", ""), now_s)
        return not self.client.is_ended


class Publisher:
    """A client that publishes one publication after the other, each after the reply to the one before.

    Attributes:
        answered: For each publication with the reply `ok`: when it was sent, and when the reply arrived.
        refused: The number of replies 503.
        others: All other replies.
    """

    def __init__(
        self,
        port: int,
        source: str,
        channel: str,
        pause_s: float,
        published: Published,
        begun: dict[tuple[str, int], float],
    ) -> None:
        self.client = WireClient(port)
        self.client.begin()
        self.answered: list[tuple[float, float]] = []
        self.refused = 0
        self.others: list[bytes] = []
        self._source, self._channel, self._pause_s = source, channel, pause_s
        self._published = published
        self._begun = begun
        self._number = 0
        self._began_s = 0.0
        self._is_waiting = False
        self._next_s = 0.0

    def step(self, now_s: float) -> None:
        """Publish if it is time and the publication before has its reply."""
        if self._is_waiting or now_s < self._next_s or self.client.is_ended:
            return
        self._number += 1
        self._is_waiting, self._began_s = True, time.monotonic()
        self._begun[self._source, self._number] = self._began_s
        data = f"{self._source} {self._number}"
        self.client.send(op="pub", ch=self._channel, data=data, id=self._number)

    def read(self) -> bool:
        """Read and record a reply; return False when the connection has ended."""
        payloads = self.client.receive()
        now_s = time.monotonic()
        for payload in payloads:
            message = json.loads(payload)
            if message.get("id") != self._number:
                self.others.append(payload)
            elif message["op"] == "ok":
                self._published.add(self._channel, self._source, self._number, self._began_s, now_s)
                self.answered.append((self._began_s, now_s))
            elif message.get("code") == 503:
                self.refused += 1
            else:
                self.others.append(payload)
            self._is_waiting, self._next_s = False, now_s + self._pause_s
        return not self.client.is_ended


class BusCrowd:
    """All subscribers and publishers of one gateway, and the backend's thread.

    Args:
        port: The port of the gateway.
        bus_path: The socket of its bus, for the backend.
        clients: The number of subscribers to `crowd`.

    Attributes:
        published: The publications whose publisher has a positive reply.
        ended: The number of connections that ended.
    """

    def __init__(self, port: int, bus_path: str, clients: int) -> None:
        """Connect and subscribe all clients."""
        self.published = Published()
        self.ended = 0
        self._begun: dict[tuple[str, int], float] = {}
        self._bus_path = bus_path
        self._silence = threading.Event()
        self._backend = threading.Thread(target=self._publish, daemon=True)
        self.subscribers = [Subscriber(port, QUICK, self._begun) for _ in range(QUICK_SUBSCRIBERS)]
        self.publishers = [
            Publisher(port, f"client-{number}", QUICK, QUICK_PAUSE_S, self.published, self._begun)
            for number in range(QUICK_PUBLISHERS)
        ]
        self.publishers.append(
            Publisher(port, "client-slow", CROWD, CROWD_PAUSE_S, self.published, self._begun)
        )
        self._poll = select.epoll()
        self._members: dict[int, Subscriber | Publisher] = {}
        for known in (self.subscribers, self.publishers):
            for member in known:
                self._watch(member)
        for _ in range(clients):
            subscriber = Subscriber(port, CROWD, self._begun)
            self.subscribers.append(subscriber)
            self._watch(subscriber)
            self.turn(0.0)  # answers pings in the meantime

    def _watch(self, member: Subscriber | Publisher) -> None:
        self._members[member.client.fileno()] = member
        self._poll.register(member.client.fileno(), select.EPOLLIN)

    def start(self) -> None:
        """Start the thread that publishes as a backend does."""
        self._backend.start()

    def turn(self, limit_s: float) -> None:
        """Read what has arrived, after waiting at most `limit_s` for it."""
        for descriptor, _ in self._poll.poll(limit_s):
            if not self._members[descriptor].read():
                self._poll.unregister(descriptor)
                self.ended += 1

    def run(self, is_over: Callable[[], bool], *, is_publishing: bool, limit_s: float) -> bool:
        """Read, and publish if wanted, until `is_over` or the limit; return whether `is_over` was true."""
        began_s = shown_s = time.monotonic()
        while not (found := is_over()) and time.monotonic() < began_s + limit_s:
            self.turn(_STEP_S)
            now_s = time.monotonic()
            if is_publishing:
                for publisher in self.publishers:
                    publisher.step(now_s)
            if now_s > shown_s + _PROGRESS_S:
                shown_s = now_s
                self._show()
        return found

    def _show(self) -> None:
        print(
            f"    published {self.published.count}, refused {sum(each.refused for each in self.publishers)},"
            f" received {sum(each.session.count for each in self.subscribers)},"
            f" notices {sum(each.gaps for each in self.subscribers)}",
            flush=True,
        )

    def silence(self) -> None:
        """Stop the thread that publishes, and wait for its end."""
        self._silence.set()
        if self._backend.is_alive():
            self._backend.join(_JOIN_S)

    def _publish(self) -> None:
        """Publish as a backend does, and record the publications that the bus accepted."""
        with bus_client(self._bus_path) as bus:
            every = int(CROWD_PAUSE_S / (2 * QUICK_PAUSE_S))
            numbers = {CROWD: 0, QUICK: 0}
            turn = 0
            while not self._silence.wait(2 * QUICK_PAUSE_S):
                turn += 1
                for channel in (QUICK, CROWD) if turn % every == 0 else (QUICK,):
                    numbers[channel] += 1
                    self._publish_one(bus, channel, f"backend-{channel}", numbers[channel])

    def _publish_one(self, bus: redis.Redis, channel: str, source: str, number: int) -> None:
        began_s = self._begun[source, number] = time.monotonic()
        with contextlib.suppress(redis.RedisError, OSError):
            bus.publish(f"wsgate:ch:{channel}", json.dumps(f"{source} {number}"))
            self.published.add(channel, source, number, began_s, time.monotonic())

    def close(self) -> None:
        """Stop publishing, and close the connections of all members."""
        self.silence()
        for member in self._members.values():
            member.client.close()
        self._poll.close()

    def __enter__(self) -> Self:
        """Return the BusCrowd itself on entry."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop publishing and close all connections."""
        self.close()
