"""A backend that publishes stamped messages through Redis, by PUBLISH on one connection.

Settings: ``path`` of the bus's Unix socket; ``prefix`` of its names. It has no clients. In addition to
`publish`, which works as in the other peers, it has commands that publish in turn to several channels, each
with its own stream from ``stream`` on:

``prepare`` (Flood) makes the messages that ``flood`` then sends as fast as Redis accepts them; ``pace``
(Pace) publishes at a fixed rate.

Every reply of Redis is read: it is the number of shards that received a publication.
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

# The text that a JSON client receives around the data; protocols/client/v1/spec.md.
_AROUND_BYTES: Final = len('{"op":"msg","ch":"","data":""}')
_READ_BYTES: Final = 1 << 16
_WRITE_BYTES: Final = 1 << 16
_STEP_NS: Final = 1_000_000  # length of a batch of `pace`: its first message is late by this time
_MAKING_NS: Final = 20_000  # time to make a message; half of it was needed
_DEADLINE_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """A request to publish as fast as possible.

    Attributes:
        channels: The channels, which take turns.
        stream: The stream of the first channel; the next streams follow.
        first_sequence: The sequence number of the first message of each channel.
        count: The number of messages for each channel.
        payload_bytes: The size of a message as a client receives it.
    """

    channels: Sequence[str]
    stream: int
    first_sequence: int
    count: int
    payload_bytes: int = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace(Flood):
    """A request to publish at `rate_per_s` over all channels."""

    rate_per_s: float


class Sent(TypedDict):
    """The result of a flood or pace: `published` messages, received by `reached` shards in total.

    `late_s` is the worst lateness of a message, for `pace` only.
    """

    published: int
    reached: int
    late_s: float


class RedisPublisher:
    """A publisher with one connection to the bus.

    Args:
        loop: Not used: every command blocks until Redis has replied.
        settings: See the module.
    """

    def __init__(self, _loop: asyncio.AbstractEventLoop, settings: dict[str, Any]) -> None:
        """Connect to the bus (OSError)."""
        self._prefix = f"{settings['prefix']}:ch:"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(settings["path"])
        self._socket.setblocking(False)
        self._reader = hiredis.Reader()
        self._poll = select.poll()
        self._prepared = b"", 0
        self.port = 0

    def publish(self, channel: str, payloads: Sequence[bytes]) -> int:
        """Publish the messages in one pipeline; return how many shards received each."""
        head = self._head(channel)
        commands = b"".join(head + _argument(_as_document(channel, payload)) for payload in payloads)
        return self._run(commands, len(payloads)) // len(payloads)

    async def drained(self) -> None:
        """Return at once: Redis has received everything when `publish` returns."""

    def prepare(self, plan: Flood) -> None:
        """Make the commands of the next flood, because making them costs about as much as sending them."""
        heads = [(channel, self._head(channel)) for channel in plan.channels]
        now_ns = time.monotonic_ns()
        commands = [
            head + _argument(_as_document(channel, stamp(stream, sequence, now_ns, plan.payload_bytes)))
            for sequence in range(plan.first_sequence, plan.first_sequence + plan.count)
            for stream, (channel, head) in enumerate(heads, plan.stream)
        ]
        self._prepared = b"".join(commands), len(commands)

    def flood(self) -> Sent:
        """Publish the prepared messages as fast as Redis accepts them."""
        commands, count = self._prepared
        self._prepared = b"", 0
        return Sent(published=count, reached=self._run(commands, count), late_s=0.0)

    def pace(self, plan: Pace) -> Sent:
        """Publish at a fixed rate: at the end of each millisecond, the messages that became due in it.

        A message that is late keeps its due time. The messages are made before the first is due, as those of
        a flood are: when they were made on the way, that took time of the CPU that Redis and the
        clients share, and this backend was late by up to 15 ms.
        """
        total = plan.count * len(plan.channels)
        start_ns = time.monotonic_ns() + total * _MAKING_NS
        batches = self._batches(plan, start_ns)
        if time.monotonic_ns() > start_ns:
            raise RuntimeError(
                f"{total} messages could not be prepared within {total * _MAKING_NS / 1e9:.1f} s"
            )
        reached = late_ns = 0
        for number, (commands, count) in enumerate(batches, 1):
            due_ns = start_ns + number * _STEP_NS
            if (wait_ns := due_ns - time.monotonic_ns()) > 0:
                time.sleep(wait_ns / 1e9)
            late_ns = max(late_ns, time.monotonic_ns() - due_ns)
            reached += self._run(commands, count)
        return Sent(published=total, reached=reached, late_s=late_ns / 1e9)

    def _batches(self, plan: Pace, start_ns: int) -> list[tuple[bytes, int]]:
        """Return the commands that become due in each millisecond after `start_ns`, and their number."""
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
        """Return a PUBLISH command up to its last argument."""
        return b"*3\r\n$7\r\nPUBLISH\r\n" + _argument((self._prefix + channel).encode())

    def _run(self, commands: bytes, count: int) -> int:
        """Write the commands and read as many replies; return the sum (RuntimeError for any other reply)."""
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

    # This is not a server: the remaining methods of one have no effect here.

    def subscribers(self, _channel: str) -> int:
        """Return 0, because there are no clients."""
        return 0

    def limit_connections(self, _limit: int) -> None:
        """Do nothing, because there are no clients."""

    def counters(self) -> dict[str, int]:
        """Return nothing: this publisher has no counters."""
        return {}

    def bytes_held(self) -> dict[str, int]:
        """Return nothing: this publisher does not account for memory."""
        return {}


def _argument(text: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text)


def _as_document(channel: str, payload: bytes) -> bytes:
    """Return the stamp as a JSON string, shortened so that a client's message has the payload's size."""
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
