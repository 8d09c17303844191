"""A process of peers that send 1-byte text messages as fast as they can.

``python -m loadtest.peers.message_flood PORT PEERS LIMIT_S`` opens the connections, writes ``ready``, waits
for a line on standard input, floods until that input ends or LIMIT_S has passed, and writes one JSON object
(FloodResult). `FloodProcess` is the parent's side. Answers are read and counted, so that the flood loads the
server's reading and not its outbox. Nothing is checked or timed here.

Plain Python is fast enough: one send carries thousands of prepared frames, and the sockets are full most of
the time.
"""

from __future__ import annotations

import base64
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Self, TypedDict, cast

__all__ = ["FRAME_BYTES", "FloodProcess", "FloodResult", "Peer", "flood", "frames", "serve_parent"]

_ROOT: Final = Path(__file__).resolve().parents[2]
FRAME_BYTES: Final = 7  # header 2, mask 4, payload 1
_ANSWER_BYTES: Final = 3  # header 2, payload 1
_BUFFER_FRAMES: Final = 8_192  # 56 KiB: more than a send buffer accepts at once
_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.1


class FloodResult(TypedDict):
    """The result of a flood: complete messages `sent`, answers, peers that the server `ended`, the time.

    Messages and answers are counted by their bytes, as if each message were of one letter. A Close counts as
    one or two answers.
    """

    sent: int
    sent_bytes: int
    answered: int
    ended: int
    elapsed_s: float


def frames(count: int, seed: int) -> bytes:
    """Return `count` masked text frames of one letter each. RFC 6455 sections 5.2 and 5.3."""
    source = random.Random(seed)
    masks = (source.randbytes(4) for _ in range(count))
    return b"".join(b"\x81\x81" + mask + bytes((mask[0] ^ ord("x"),)) for mask in masks)


class Peer:
    """One flooding connection: it sends a ring of frames without end, and counts the bytes that it reads.

    Args:
        port: The port of a server on 127.0.0.1.
        ring: Complete frames, which are sent again and again.
        headers: Further lines of the request head, each with its line end.
    """

    def __init__(self, port: int, ring: bytes, headers: str = "") -> None:
        """Open the connection; raise OSError or RuntimeError if that fails."""
        self.sent_bytes = 0
        self.received_bytes = 0
        self._ring = memoryview(ring)
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Ends with a reset: no TIME_WAIT, and no answers left for the server to send.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._upgrade(port, headers)
        self.socket.setblocking(False)

    def _upgrade(self, port: int, headers: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:  # a first message may arrive together with the head
            data = self.socket.recv(4096)
            if not data:
                raise RuntimeError(f"the server ended the handshake: {head!r}")
            head += data
        if not head.startswith(b"HTTP/1.1 101 "):
            raise RuntimeError(f"the server refused: {head!r}")

    def write(self) -> None:
        """Send once, from where the last send stopped (OSError)."""
        at = self.sent_bytes % len(self._ring)
        self.sent_bytes += self.socket.send(self._ring[at:])

    def read(self, buffer: bytearray) -> bool:
        """Read once and discard the data; return False at the end of the stream (OSError)."""
        size = self.socket.recv_into(buffer)
        self.received_bytes += size
        return size > 0


def _serve(peer: Peer, events: int, buffer: bytearray) -> bool:
    """Serve one flooding peer as its events allow; return False when its connection has ended."""
    try:
        if events & ~select.EPOLLOUT and not peer.read(buffer):
            return False
        if events & select.EPOLLOUT:
            peer.write()
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def flood(peers: list[Peer], limit_s: float, stdin: int) -> FloodResult:
    """Send and read until standard input ends, the time limit has passed, or no peer is left."""
    buffer = bytearray(1 << 16)
    open_peers = {peer.socket.fileno(): peer for peer in peers}
    began_s = time.monotonic()
    with select.epoll() as poll:
        poll.register(stdin, select.EPOLLIN)
        for descriptor in open_peers:
            poll.register(descriptor, select.EPOLLIN | select.EPOLLOUT)
        while open_peers and time.monotonic() - began_s < limit_s:
            ready = dict(poll.poll(_POLL_S))
            if ready.pop(stdin, 0):
                break
            for descriptor, events in ready.items():
                if not _serve(open_peers[descriptor], events, buffer):
                    poll.unregister(descriptor)
                    del open_peers[descriptor]
    return FloodResult(
        sent=sum(peer.sent_bytes // FRAME_BYTES for peer in peers),
        sent_bytes=sum(peer.sent_bytes for peer in peers),
        answered=sum(peer.received_bytes // _ANSWER_BYTES for peer in peers),
        ended=len(peers) - len(open_peers),
        elapsed_s=time.monotonic() - began_s,
    )


class FloodProcess:
    """A flood of messages in a child process, which is ended by its process id on exit of the block."""

    def __init__(
        self,
        port: int,
        peers: int,
        *,
        limit_s: float,
        module: str = "loadtest.peers.message_flood",
        arguments: Sequence[str] = (),
    ) -> None:
        """Start the child and wait until its flooding peers are open; raise RuntimeError if they are not."""
        self._child = subprocess.Popen(
            [sys.executable, "-m", module, str(port), str(peers), str(limit_s), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._stdin, self._stdout = self._child.stdin, self._child.stdout
        try:
            # The child has its own timeouts: it writes a line or ends.
            if self._stdout.readline() != b"ready\n":
                raise RuntimeError("the flood could not open its connections")
        except BaseException:
            self._end()
            raise

    def begin(self) -> None:
        """Send the line that starts the flood of messages."""
        self._stdin.write(b"\n")
        self._stdin.flush()

    def finish(self) -> FloodResult:
        """Stop the flood of messages and return its result; raise RuntimeError if it failed."""
        self._stdin.close()
        return self.wait()

    def wait(self) -> FloodResult:
        """Wait until the flood ends by itself, at the latest at its limit, and return its result."""
        line = self._stdout.readline()
        if not line:
            raise RuntimeError("the flood ended without a result")
        return cast(FloodResult, json.loads(line))

    def _end(self) -> None:
        self._child.kill()
        self._child.wait()
        self._stdin.close()
        self._stdout.close()

    def __enter__(self) -> Self:
        """Return the FloodProcess itself on entry."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Kill the child that floods messages, and wait for its end; it may have ended already."""
        self._end()


def serve_parent(run: Callable[[int], FloodResult]) -> None:
    """Report "ready", wait for the parent's line, run until standard input ends, and print the result."""
    print("ready", flush=True)
    stdin = sys.stdin.fileno()
    if os.read(stdin, 1):
        print(json.dumps(run(stdin)), flush=True)


def main(port: int, peers: int, limit_s: float) -> None:
    """Open the peers with their rings of 1-byte messages, and run the flood for the parent."""
    connections = [Peer(port, frames(_BUFFER_FRAMES, number)) for number in range(peers)]
    serve_parent(lambda stdin: flood(connections, limit_s, stdin))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
