"""Many readers in one thread, and publications in one pipeline: what a burst does to a gateway.

Every publication is a JSON string that begins with its number. A reader keeps no bytes: it checks that the
numbers of what it reads go up by one, and notes where they do not and what it was told.
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
"""Bytes kept for the next read: a marker is shorter, also with the head of its message."""
RECEIVE_BYTES: Final = 1 << 18
_USERS: Final = itertools.count()


def publication(number: int, size: int = 50) -> bytes:
    """Number `number` of a burst, of so many bytes."""
    return b'"%06d %b"' % (number, b"x" * (size - 9))


def publish(bus: Redis, channel: str, payloads: Iterable[bytes]) -> None:
    """Publish all of them in one pipeline."""
    pipeline = bus.pipeline(transaction=False)
    for payload in payloads:
        pipeline.publish("wsgate:ch:" + channel, payload)
    pipeline.execute()


def memory_bytes(pid: int, name: str) -> int:
    """`VmRSS` or `VmHWM` of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024


def join(gateway: Gateway, channel: str, *, receive_buffer_bytes: int = 0) -> RawClient:
    """A client that is subscribed to a channel, with a user of its own."""
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
    """What one reader got."""

    sock: socket.socket
    got: int = 0
    next: int = 0
    holes: int = 0  # times that numbers were missing without a gap before
    untold: int = 0  # of those, the ones that no gap followed yet
    gaps: int = 0
    is_told: bool = False  # of a gap, since the last message
    code: int = 0  # of the bye
    is_ended: bool = False
    tail: bytes = b""

    def take(self, data: bytes) -> None:
        """Look at what came."""
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
        # What was looked at is cut off, what may be the beginning of a marker is kept.
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
    """Reads from all of them, as fast as one thread can, until it is left."""

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
        """Until `__exit__`."""
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
        """Until everybody has read publication number `last`, or ended."""
        wait_until(
            f"all have read {last}",
            lambda: all(reader.next > last or reader.is_ended for reader in self.readers),
            within_s,
        )
