"""Publish bursts in one pipeline, and read them with many readers in one thread.

Every publication is a JSON string that starts with its number. A reader keeps no bytes: it checks that the
numbers increase by one, and records missing numbers, gaps and the bye.
"""

import itertools
import re
import select
import socket
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redis import Redis

from tests.support.attack_rig import make_token
from tests.support.gateway import Gateway, wait_until
from tests.support.raw_client import RawClient

__all__ = ["Reader", "Readers", "join", "memory_bytes", "publication", "publish"]

_MESSAGE: Final = re.compile(rb'"data":"(\d{6})')
_GAP: Final = b'"op":"gap"'
_BYE: Final = re.compile(rb'"op":"bye","code":(\d+)|"code":(\d+),"op":"bye"')
_TAIL: Final = 64
"""Bytes kept for the next read; a marker with the head of its message is shorter."""
RECEIVE_BYTES: Final = 1 << 18
_USERS: Final = itertools.count()


def publication(number: int, size: int = 50) -> bytes:
    """Return publication `number` of a burst, with this many bytes."""
    return b'"%06d %b"' % (number, b"x" * (size - 9))


def publish(bus: Redis, channel: str, payloads: Iterable[bytes]) -> None:
    """Publish all payloads in one pipeline."""
    pipeline = bus.pipeline(transaction=False)
    for payload in payloads:
        pipeline.publish("wsgate:ch:" + channel, payload)
    pipeline.execute()


def memory_bytes(pid: int, name: str) -> int:
    """Return `VmRSS` or `VmHWM` of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024


def join(gateway: Gateway, channel: str, *, receive_buffer_bytes: int = 0) -> RawClient:
    """Connect a client with a user of its own, and subscribe it to a channel."""
    client = RawClient.welcomed(
        gateway,
        make_token(f"reader-{next(_USERS)}"),
        limit_s=60.0,
        receive_buffer_bytes=receive_buffer_bytes,
    )
    client.say(op="sub", ch=channel, id=1)
    assert client.hear_answer(1)["op"] == "subbed"
    return client


@dataclass(slots=True)
class Reader:
    """The record of one reader."""

    sock: socket.socket
    got: int = 0
    next: int = 0
    holes: int = 0  # how often numbers were missing without an earlier gap
    untold: int = 0  # the number of these that no gap has followed yet
    gaps: int = 0
    is_told: bool = False  # whether a gap came since the last message
    code: int = 0  # code of the bye
    is_ended: bool = False
    tail: bytes = b""

    def take(self, data: bytes) -> None:
        """Check the bytes that arrived."""
        data = self.tail + data
        # A gap stands where publications are missing, so the text between two gaps has none.
        parts = data.split(_GAP)
        for place, part in enumerate(parts):
            if place:
                self.gaps += 1
                self.is_told = True
                self.untold = 0
            self._count([int(number) for number in _MESSAGE.findall(part)])
        if found := _BYE.search(parts[-1]):
            self.code = int(found[1] or found[2])
        # Remove the bytes that were checked, and keep those that may be the beginning of a marker.
        rest = parts[-1][-_TAIL:]
        ends = [match.end() for match in _MESSAGE.finditer(rest)]
        self.tail = rest[ends[-1] :] if ends else rest

    def _count(self, numbers: Sequence[int]) -> None:
        if not numbers:
            return
        self.got += len(numbers)
        found = int(numbers[0] != self.next and not self.is_told)
        found += list(numbers) != list(range(numbers[0], numbers[0] + len(numbers)))
        self.holes += found
        self.untold += found
        self.is_told = False
        self.next = numbers[-1] + 1


class Readers(threading.Thread):
    """Read from all clients as fast as one thread can, while the context is open."""

    def __init__(self, clients: Sequence[RawClient]) -> None:
        super().__init__(daemon=True)
        self.readers = [Reader(client.sock) for client in clients]
        self._by_fd = {reader.sock.fileno(): reader for reader in self.readers}
        self._is_over = threading.Event()

    def __enter__(self) -> "Readers":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join()

    def run(self) -> None:
        """Read until `__exit__` is called."""
        with select.epoll() as poll:
            for fd, reader in self._by_fd.items():
                reader.sock.setblocking(False)
                poll.register(fd, select.EPOLLIN)
            while not self._is_over.is_set():
                for fd, _ in poll.poll(0.1):
                    if not self._read(self._by_fd[fd]):
                        poll.unregister(fd)

    def _read(self, reader: Reader) -> bool:
        try:
            data = reader.sock.recv(RECEIVE_BYTES)
        except OSError:
            data = b""
        if data:
            reader.take(data)
        else:
            reader.is_ended = True
        return bool(data)

    def wait(self, last: int, within_s: float = 600.0) -> None:
        """Wait until every reader has publication number `last`, or has ended."""
        wait_until(
            f"all have read {last}",
            lambda: all(reader.next > last or reader.is_ended for reader in self.readers),
            within_s,
        )
