"""Measure the time to receive one publication: PushReader and Subscriber, compared with hiredis and redis-py.

``python -m loadtest bus_subscriber`` prints microseconds per message of 150 bytes: parsed from memory, and
received from its own server, to which another process publishes as fast as it can. For the latter, use the
CPU time: the wall time is that of the slowest of publisher, server and subscriber.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import hiredis
import uvloop
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from loadtest.micro.bus_publisher import NAME, PAYLOAD, own_server, report
from wsgate.bus import Backlog, BusAddress, Subscriber
from wsgate.bus.push import PushReader

_PREFIX: Final = b"wsgate:ch:"
_MESSAGES: Final = 100_000
_PARTS: Final = 200
_LIMIT_S: Final = 120.0


def _parse() -> None:
    """Parse a million messages from memory, in reads of about 60 KiB."""
    one = b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(NAME), NAME, len(PAYLOAD), PAYLOAD)
    wire, count = one * 300, 0
    ours = PushReader(_PREFIX, 1 << 20)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    while count < 1_000_000:
        ours.feed(wire)
        while taken := ours.take(256):
            count += len(taken)
    report("PushReader, from memory", count, time.perf_counter() - wall_s, time.process_time() - cpu_s)
    theirs, count = hiredis.Reader(), 0
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    while count < 1_000_000:
        theirs.feed(wire)
        while theirs.gets() is not False:
            count += 1
    report("hiredis.Reader, from memory", count, time.perf_counter() - wall_s, time.process_time() - cpu_s)


class _Counting:
    """A bus listener that only counts publications."""

    def __init__(self) -> None:
        self.count = 0
        self.backlog = Backlog(1 << 30)
        self.subscribed = asyncio.Event()
        self.done = asyncio.Event()
        self.subscriber: Subscriber | None = None

    def on_up(self) -> None:
        assert self.subscriber is not None
        self.subscriber.subscribe([NAME.removeprefix(_PREFIX)])

    def on_down(self) -> None: ...

    def on_failed(self, why: str) -> None: ...

    def on_control(self, name: bytes, payload: bytes | None) -> None: ...

    def on_subscribed(self, name: bytes) -> bool:
        self.subscribed.set()
        return True

    def on_refused(self, name: bytes) -> bool:
        return False

    def on_lost(self, name: bytes, *, was_asked: bool) -> None: ...

    def on_pass(self) -> None:
        while self.backlog.take():
            self.count += 1
        if self.count == _MESSAGES:
            self.done.set()


def _start_publishing(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "loadtest.micro.bus_subscriber", "publish", str(path)])


def _publish(path: str) -> None:
    with Redis(unix_socket_path=path) as client:
        for _ in range(_PARTS):
            pipeline = client.pipeline(transaction=False)
            for _ in range(_MESSAGES // _PARTS):
                pipeline.publish(NAME, PAYLOAD)
            pipeline.execute()


async def _ours(path: Path) -> None:
    listener = _Counting()
    listener.subscriber = Subscriber(BusAddress(path=str(path)), _PREFIX, listener, listener.backlog)
    running = asyncio.ensure_future(listener.subscriber.run())
    await listener.subscribed.wait()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    publishing = _start_publishing(path)
    await listener.done.wait()
    report("wsgate.bus.Subscriber", _MESSAGES, time.perf_counter() - wall_s, time.process_time() - cpu_s)
    publishing.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def _theirs(path: Path) -> None:
    async with AsyncRedis(unix_socket_path=str(path)) as client, client.pubsub() as pubsub:
        await pubsub.subscribe(NAME)
        assert (await pubsub.get_message(timeout=_LIMIT_S) or {})["type"] == "subscribe"
        wall_s, cpu_s, count = time.perf_counter(), time.process_time(), 0
        publishing = _start_publishing(path)
        async for _ in pubsub.listen():
            count += 1
            if count == _MESSAGES:
                break
        report("redis-py, PubSub.listen", count, time.perf_counter() - wall_s, time.process_time() - cpu_s)
        publishing.wait()


def main() -> None:
    """Measure and print; with the arguments `publish PATH`, run as the publishing process."""
    if sys.argv[1:2] == ["publish"]:
        _publish(sys.argv[2])
        return
    _parse()
    with own_server() as path:
        uvloop.run(asyncio.wait_for(_ours(path), _LIMIT_S))
        uvloop.run(asyncio.wait_for(_theirs(path), _LIMIT_S))


if __name__ == "__main__":
    main()
