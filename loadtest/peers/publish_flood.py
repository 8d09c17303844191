"""A process of clients that publish as fast as they can.

``python -m loadtest.peers.publish_flood`` reads one JSON object (the fields of FloodPlan) from standard
input, opens the connections, writes ``ready``, waits for a line, publishes until standard input ends or
`limit_s` has passed, and writes one JSON object (PublishFloodResult). `PublishFlood` is the parent's side.

Every connection sends the same prepared frames again and again, as far as its socket accepts them. The
gateway determines the rate, because it stops reading from a connection that has too much under way.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypedDict, cast

from loadtest.harness.wire_client import WireClient, wire_frame

__all__ = ["FloodPlan", "PublishFlood", "PublishFloodResult"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_RING_BYTES: Final = 128 * 1024
_POLL_S: Final = 0.1
_READ_BYTES: Final = 1 << 16
_PER_SOURCE: Final = 10_000


@dataclass(frozen=True, slots=True)
class FloodPlan:
    """The parameters of one flood of publishes.

    Attributes:
        port: The port of the gateway on 127.0.0.1.
        tokens: One token for each connection.
        size: The bytes of each publication's data, at least 2.
        limit_s: The flood ends by itself after this time, also if its parent has ended.
    """

    port: int
    tokens: Sequence[str]
    size: int
    limit_s: float


class PublishFloodResult(TypedDict):
    """The result of a flood: accepted and refused publishes, connections that `ended`, and the time."""

    accepted: int
    refused: int
    ended: int
    elapsed_s: float


def ring(number: int, size: int) -> bytes:
    """Return frames that publish to the channel of connection `number`: more than a socket accepts."""
    command = {"op": "pub", "ch": f"flood:{number}", "data": "x" * (size - 2), "id": 1}
    one = wire_frame(json.dumps(command, separators=(",", ":")).encode())
    return one * max(1, _RING_BYTES // len(one))


class _Publisher:
    """One flooding connection: it sends a ring of frames without end, and counts the replies."""

    def __init__(self, plan: FloodPlan, number: int) -> None:
        self.client = WireClient(
            plan.port, token=plan.tokens[number], source=f"127.0.1.{1 + number // _PER_SOURCE}"
        )
        self.client.begin()
        self._ring = memoryview(ring(number, plan.size))
        self._sent_bytes = 0
        self.accepted = self.refused = 0

    def serve(self, events: int) -> bool:
        """Read replies and send publishes as the events allow; return False when the connection has ended."""
        if events & ~select.EPOLLOUT:
            for payload in self.client.receive():
                if payload.startswith(b'{"op":"ok"'):
                    self.accepted += 1
                elif payload.startswith(b'{"op":"err"'):
                    self.refused += 1
        if events & select.EPOLLOUT and not self.client.is_ended:
            try:
                self._sent_bytes += self.client.socket.send(self._ring[self._sent_bytes % len(self._ring) :])
            except BlockingIOError:
                pass
            except OSError:
                self.client.is_ended = True
        return not self.client.is_ended


class _Crowd:
    """All connections of a flood, and the poll object that serves them."""

    def __init__(self, plan: FloodPlan, stdin: int) -> None:
        """Open the connections; those that are open answer pings meanwhile."""
        self._stdin = stdin
        self._poll = select.epoll()
        self._publishers: list[_Publisher] = []
        self._living: dict[int, _Publisher] = {}
        for number in range(len(plan.tokens)):
            publisher = _Publisher(plan, number)
            self._publishers.append(publisher)
            self._living[publisher.client.fileno()] = publisher
            self._poll.register(publisher.client.fileno(), select.EPOLLIN)
            self._turn(0.0)
        self._poll.register(stdin, select.EPOLLIN)

    def _turn(self, limit_s: float) -> bool:
        """Serve the ready connections, waiting at most `limit_s`; return whether the parent has written."""
        ready = dict(self._poll.poll(limit_s))
        is_told = bool(ready.pop(self._stdin, 0))
        for descriptor, events in ready.items():
            if not self._living[descriptor].serve(events):
                self._poll.unregister(descriptor)
                del self._living[descriptor]
        return is_told

    def wait(self) -> bool:
        """Answer pings until the parent's line arrives; return False if standard input has ended."""
        while not self._turn(_POLL_S):
            pass
        return bool(os.read(self._stdin, 1))

    def flood(self, limit_s: float) -> PublishFloodResult:
        """Publish until standard input ends, the time limit has passed, or no connection is left."""
        began_s = time.monotonic()
        for descriptor in self._living:
            self._poll.modify(descriptor, select.EPOLLIN | select.EPOLLOUT)
        while self._living and time.monotonic() - began_s < limit_s:
            if self._turn(_POLL_S):
                break
        return PublishFloodResult(
            accepted=sum(publisher.accepted for publisher in self._publishers),
            refused=sum(publisher.refused for publisher in self._publishers),
            ended=len(self._publishers) - len(self._living),
            elapsed_s=time.monotonic() - began_s,
        )


class PublishFlood:
    """A flood of publishes in a child process, which is ended by its process id on exit of the block."""

    def __init__(self, plan: FloodPlan) -> None:
        """Start the child and wait until its publishers are open; raise RuntimeError if they are not."""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "loadtest.peers.publish_flood"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._stdin, self._stdout = self._child.stdin, self._child.stdout
        try:
            self._stdin.write(json.dumps(dataclasses.asdict(plan)).encode() + b"\n")
            self._stdin.flush()
            # The child has its own timeouts: it writes a line or ends.
            if self._stdout.readline() != b"ready\n":
                raise RuntimeError("the flood could not open its connections")
        except BaseException:
            self._end()
            raise

    def begin(self) -> None:
        """Send the line that starts the flood of publishes."""
        self._stdin.write(b"\n")
        self._stdin.flush()

    def finish(self) -> PublishFloodResult:
        """Stop the flood of publishes and return its result; raise RuntimeError if it failed."""
        self._stdin.close()
        line = self._stdout.readline()
        if not line:
            raise RuntimeError("the flood ended without a result")
        return cast(PublishFloodResult, json.loads(line))

    def _end(self) -> None:
        self._child.kill()
        self._child.wait()
        self._stdin.close()
        self._stdout.close()

    def __enter__(self) -> Self:
        """Return the PublishFlood itself on entry."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the child that publishes, and wait for its end; it may have ended already."""
        self._end()


def main() -> None:
    """Read the plan, open the connections, wait for the parent's line, publish, and report."""
    stdin = sys.stdin.fileno()
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(stdin, _READ_BYTES)
        if not data:
            return
        line += data
    plan = FloodPlan(**json.loads(line))
    crowd = _Crowd(plan, stdin)
    print("ready", flush=True)
    if crowd.wait():
        print(json.dumps(crowd.flood(plan.limit_s)), flush=True)


if __name__ == "__main__":
    main()
