"""A backend: publishes stamped messages through Redis, by PUBLISH on one connection.

Settings: ``path`` of the bus's Unix socket; ``prefix`` of its names. It serves no client. Beside `publish`,
which has the pace of the other peers, it knows two commands that publish in turn to several channels, each a
stream of its own that begins at ``stream``:

``prepare`` (Flood) makes the messages that ``flood`` then sends as fast as Redis takes them; ``pace`` (Pace)
publishes by the clock, many in a second.

Every answer of Redis is read: it says how many shards heard a publication.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

import hiredis

from loadtest.engine.stamps import STAMP_BYTES, stamp
from loadtest.peers import control

__all__ = ["Flood", "Pace", "RedisPublisher", "Sent"]

# What a JSON client gets around the text of a publication; protocols/client/v1/spec.md.
_AROUND_BYTES: Final = len('{"op":"msg","ch":"","data":""}')
_READ_BYTES: Final = 1 << 16
_WRITE_BYTES: Final = 1 << 16
_STEP_NS: Final = 1_000_000  # a batch of `pace`: its first message is late by so much
_MAKING_NS: Final = 20_000  # a message; half of it was needed
_DEADLINE_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """What to publish as fast as possible.

    Attributes:
        channels: In turn.
        stream: The first channel's; the next ones follow.
        first_sequence: Sequence number of the first message of each.
        count: Of every channel.
        payload_bytes: Size of a message as a client gets it.
    """

    channels: Sequence[str]
    stream: int
    first_sequence: int
    count: int
    payload_bytes: int = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace(Flood):
    """As Flood, `rate_per_s` over all channels."""

    rate_per_s: float


class Sent(TypedDict):
    """What became of it: `published` messages, heard by `reached` shards in sum.

    `late_s` is the worst lateness of a message against the clock, of `pace` only.
    """

    published: int
    reached: int
    late_s: float


class RedisPublisher:
    """One connection to the bus.

    Args:
        loop: Not used: every command blocks until Redis has answered.
        settings: See the top of the file.
    """

    def __init__(self, _loop: asyncio.AbstractEventLoop, settings: dict[str, Any]) -> None:
        """Connect (OSError)."""
        self._prefix = f"{settings['prefix']}:ch:"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(settings["path"])
        self._socket.setblocking(False)
        self._reader = hiredis.Reader()
        self._poll = select.poll()
        self._prepared = b"", 0
        self.port = 0

    def publish(self, channel: str, payloads: Sequence[bytes]) -> int:
        """Publish the messages in one pipeline; returns how many shards heard the first of them."""
        head = self._head(channel)
        commands = b"".join(head + _argument(_as_document(channel, payload)) for payload in payloads)
        return self._run(commands, len(payloads)) // len(payloads)

    async def drained(self) -> None:
        """Redis has everything when `publish` returns."""

    def prepare(self, plan: Flood) -> None:
        """Make the commands of the next flood: making them costs about what sending them does."""
        heads = [(channel, self._head(channel)) for channel in plan.channels]
        now_ns = time.monotonic_ns()
        commands = [
            head + _argument(_as_document(channel, stamp(stream, sequence, now_ns, plan.payload_bytes)))
            for sequence in range(plan.first_sequence, plan.first_sequence + plan.count)
            for stream, (channel, head) in enumerate(heads, plan.stream)
        ]
        self._prepared = b"".join(commands), len(commands)

    def flood(self) -> Sent:
        """Publish what was prepared, as fast as Redis takes it."""
        commands, count = self._prepared
        self._prepared = b"", 0
        return Sent(published=count, reached=self._run(commands, count), late_s=0.0)

    def pace(self, plan: Pace) -> Sent:
        """Publish by the clock, what is due of every millisecond at its end; what is late keeps its due time.

        The messages are made before the first is due, as those of a flood are: making them on the way took
        time of the processor that Redis and the clients share, and this backend was late by up to 15 ms.
        """
        total = plan.count * len(plan.channels)
        start_ns = time.monotonic_ns() + total * _MAKING_NS
        batches = self._batches(plan, start_ns)
        if time.monotonic_ns() > start_ns:
            raise RuntimeError(f"{total} messages were not made within {total * _MAKING_NS / 1e9:.1f} s")
        reached = late_ns = 0
        for number, (commands, count) in enumerate(batches, 1):
            due_ns = start_ns + number * _STEP_NS
            if (wait_ns := due_ns - time.monotonic_ns()) > 0:
                time.sleep(wait_ns / 1e9)
            late_ns = max(late_ns, time.monotonic_ns() - due_ns)
            reached += self._run(commands, count)
        return Sent(published=total, reached=reached, late_s=late_ns / 1e9)

    def _batches(self, plan: Pace, start_ns: int) -> list[tuple[bytes, int]]:
        """The commands that fall due in each millisecond after `start_ns`, and how many they are."""
        heads = [(stream, self._head(channel)) for stream, channel in enumerate(plan.channels, plan.stream)]
        total, interval_ns = plan.count * len(heads), 1e9 / plan.rate_per_s
        batches: list[tuple[bytes, int]] = []
        made = 0
        while made < total:
            due = min(total, int((len(batches) + 1) * _STEP_NS / interval_ns))
            commands = []
            for number in range(made, due):
                stream, head = heads[number % len(heads)]
                sequence = plan.first_sequence + number // len(heads)
                intended_ns = start_ns + int(number * interval_ns)
                payload = stamp(stream, sequence, intended_ns, plan.payload_bytes)
                channel = plan.channels[number % len(heads)]
                commands.append(head + _argument(_as_document(channel, payload)))
            batches.append((b"".join(commands), due - made))
            made = due
        return batches

    def _head(self, channel: str) -> bytes:
        """A PUBLISH command up to its last argument."""
        return b"*3\r\n$7\r\nPUBLISH\r\n" + _argument((self._prefix + channel).encode())

    def _run(self, commands: bytes, count: int) -> int:
        """Write commands, read as many answers meanwhile; returns their sum (RuntimeError on any other)."""
        unsent = memoryview(commands)
        until_s = time.monotonic() + _DEADLINE_S
        answered = reached = 0
        while answered < count:
            if time.monotonic() > until_s:
                raise RuntimeError(f"Redis answered {answered} of {count} publications")
            self._poll.register(self._socket, select.POLLIN | (select.POLLOUT if unsent else 0))
            ((_, events),) = self._poll.poll(1_000) or ((0, 0),)
            if events & select.POLLOUT:
                unsent = unsent[self._socket.send(unsent[:_WRITE_BYTES]) :]
            if events & ~select.POLLOUT:
                heard = self._answers()
                answered += len(heard)
                reached += sum(heard)
        return reached

    def _answers(self) -> list[int]:
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise RuntimeError("Redis closed the connection")
        self._reader.feed(data)
        found: list[int] = []
        while (answer := self._reader.gets()) is not False:
            if not isinstance(answer, int):
                raise RuntimeError(f"Redis refused: {answer}")
            found.append(answer)
        return found

    # It is no server: the rest of what one can do is nothing here.

    def subscribers(self, _channel: str) -> int:
        """None."""
        return 0

    def limit_connections(self, _limit: int) -> None:
        """There are none."""

    def counters(self) -> dict[str, int]:
        """Nothing."""
        return {}

    def bytes_held(self) -> dict[str, int]:
        """Nothing."""
        return {}


def _argument(text: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text)


def _as_document(channel: str, payload: bytes) -> bytes:
    """The stamp as a JSON string, its padding cut: the whole message a client gets has the payload's size."""
    size = max(STAMP_BYTES, len(payload) - _AROUND_BYTES - len(channel))
    return b'"' + payload[:size] + b'"'


def _commands(server: RedisPublisher) -> control.Commands:
    return {
        "prepare": lambda **fields: server.prepare(Flood(**fields)),
        "flood": server.flood,
        "pace": lambda **fields: server.pace(Pace(**fields)),
    }


if __name__ == "__main__":
    control.serve(RedisPublisher, _commands)
