"""Give request heads to a real reactor and then to the handshake, and compare with a slow reader.

The reactor must find the end of a head, keep its limit, and deliver the head once, however it was cut. The
handshake then accepts or refuses it. A connection may first have to send a PROXY header, like one that a
trusted proxy opened.
"""

import fcntl
import random
import re
import socket
import termios
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from tests.fuzz.mutation import mutate, pieces
from tests.fuzz.proxies import proxy_seeds, read_proxy_slowly
from tests.support.frames import TEXT, client_frame
from tests.support.reactor_rig import Peer, Rig
from tests.support.sizes import draw_size
from tests.unit.test_handshake import BROWSER_HEAD, GOOD, REFUSED, head_of
from wsgate.handshake import HEAD_LIMIT_BYTES, Refusal, accept, parse_head
from wsgate.reactor import GateLimits, ListenerOptions, Settings, event_kinds, open_listener

__all__ = ["HeadsTarget", "check_head", "find_head_end_slowly", "head_seeds", "sized_head"]

SETTINGS: Final = Settings(
    head_limit_bytes=HEAD_LIMIT_BYTES,
    head_timeout_ms=1 << 30,
    upgrade_timeout_ms=1 << 30,
    ping_interval_ms=0,
)
LOOPBACK: Final = (b"\0" * 10 + b"\xff\xff" + socket.inet_aton("127.0.0.0"), 104)
GATE: Final = GateLimits(handshakes_in_progress=0, trusted_networks=(LOOPBACK,), reads_proxy_header=True)
HEAD_END: Final = re.compile(rb"(?<!\r)\n|\r\n\r\n")
CONNECTIONS_MAX: Final = 500
"""Connections of one reactor; then a new one takes its place."""
WAIT_ROUNDS: Final = 2_000
"""Rounds of 1 ms in which the kernel delivers data that was sent on this machine."""


def check_head(head: bytes) -> None:
    """Check that a head is a request or a refusal, and that an accepted one has one meaning."""
    request = parse_head(head)
    if isinstance(request, Refusal):
        assert request.response.startswith(b"HTTP/1.1 4")
        assert b"\r\n\r\n" in request.response
        return
    assert len(head) <= HEAD_LIMIT_BYTES
    assert head.endswith(b"\r\n\r\n")
    assert head.count(b"\r\n\r\n") == 1
    assert request.path.startswith("/")
    response = accept(request).response
    assert response.startswith(b"HTTP/1.1 101 ")
    assert response.count(b"\r\n\r\n") == 1


def find_head_end_slowly(data: bytes) -> int:
    """Return the size of the head with its empty line; 0: not whole. A line feed alone ends it too."""
    found = HEAD_END.search(data)
    return found.end() if found else 0


def sized_head(size: int) -> bytes:
    """Return a valid head of exactly this many bytes, or of its least size if that is more."""
    least = len(head_of((*GOOD, b"X: ")))
    return head_of((*GOOD, b"X: " + b"x" * max(0, size - least)))


def head_seeds() -> list[bytes]:
    """Return the first examples: valid heads, refused heads, and a head with frames behind it."""
    early = BROWSER_HEAD + client_frame(TEXT, b"early")
    return [BROWSER_HEAD, early, *(row.head for row in REFUSED if len(row.head) < 2_000)]


class HeadsTarget:
    """One reactor for many connections; a listener for those that a proxy opens.

    Args:
        limit_bytes: The limit of the reactor for a head.
    """

    def __init__(self, limit_bytes: int = HEAD_LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._examples, self._proxies = head_seeds(), proxy_seeds()
        self._open()

    def _open(self) -> None:
        self.rig = Rig(replace(SETTINGS, head_limit_bytes=self.limit_bytes))
        self.rig.reactor.set_gate(GATE, b"")
        self.listener = open_listener("127.0.0.1", 0, ListenerOptions(defer_accept_s=0))
        self.rig.reactor.listen(self.listener.fileno())
        self.at_rest = self.rig.held()
        self.connections = 0

    def close(self) -> None:
        """Shut the reactor down; it must have returned all memory."""
        held = self.rig.held()
        self.rig.close()
        self.listener.close()
        assert held == self.at_rest, "something is still held"

    def run(self, dice: random.Random) -> bytes:
        """Send one head, mutated or of a size around the limit, and sometimes frames behind it."""
        if dice.random() < 0.3:
            data = sized_head(draw_size(dice, self.limit_bytes + 1))
            data += client_frame(TEXT, dice.randbytes(draw_size(dice, 300)))
        else:
            data = mutate(dice, self._examples)
        is_proxied = dice.random() < 0.3
        if is_proxied:
            data = mutate(dice, self._proxies) + data
        self.check(dice, data, is_proxied=is_proxied)
        return data

    def check(self, dice: random.Random, data: bytes, *, is_proxied: bool) -> None:
        """Send the bytes as the dice cut them, and compare what the reactor does with the slow readers.

        Raises:
            AssertionError: The head that the reactor delivered, or the reason of its refusal, differs.
        """
        self.connections += 1
        if self.connections > CONNECTIONS_MAX:
            self.close()
            self._open()
        peer = self._dial() if is_proxied else self.rig.connect(upgraded=False)
        for part in pieces(dice, data):
            self._send(peer, part)
        self._compare(peer, data, is_proxied=is_proxied)
        peer.close()
        self._turn_until(lambda: not self.rig.count("now_connections"), "the connection is gone")
        self.rig.peers.remove(peer)
        self.rig.events.clear()

    def _dial(self) -> Peer:
        """Connect to the listener, as a trusted proxy does; the handle is not known before `OPEN`."""
        peer = Peer(socket.create_connection(self.listener.getsockname()), 0)
        self.rig.peers.append(peer)
        self._turn_until(lambda: self.rig.count("now_connections") > 0, "the connection is accepted")
        return peer

    def _send(self, peer: Peer, data: bytes) -> None:
        """Send, and turn until the reactor's end has everything, or has checked what came before."""

        def is_there() -> bool:
            nonlocal data
            try:
                data = data[peer.send(data) :] if data else data
                unsent = fcntl.ioctl(peer.sock.fileno(), termios.TIOCOUTQ, bytes(4))
            except OSError:  # the reactor has refused what came before
                return True
            if peer.sock.family == socket.AF_UNIX:
                unsent = b""  # sent is received; the difference is the number of unread bytes
            peer.receive()
            return peer.ended or bool(self.rig.events) or not (data or any(unsent))

        self._turn_until(is_there, "everything that was sent has arrived")
        self.rig.turn()

    def _turn_until(self, condition: Callable[[], bool], what: str) -> None:
        """Turn until the condition is true.

        Raises:
            AssertionError: The condition is still false after the bounded wait.
        """
        for number in range(WAIT_ROUNDS):
            self.rig.turn()
            if condition():
                return
            if number > 1:
                time.sleep(0.001)
        raise AssertionError(f"not true in {WAIT_ROUNDS} rounds: {what}")

    def _is_refused(self, peer: Peer) -> bool:
        """Whether the reactor ends the stream, which takes the kernel a moment on a TCP connection."""

        def is_ended() -> bool:
            peer.receive()
            return peer.ended

        self._turn_until(is_ended, "the reactor has refused this")
        return peer.ended

    def _compare(self, peer: Peer, data: bytes, *, is_proxied: bool) -> None:
        """Compare the events with the result of the slow readers, and answer a delivered head."""
        seen = list(self.rig.events)
        peer.receive()
        may_be_too_large = False
        if is_proxied:
            size, _ = read_proxy_slowly(data)
            # A header that is longer than the limit for heads is taken only where it comes at once.
            may_be_too_large = max(size, len(data) if size == 0 else 0) >= self.limit_bytes
            if size < 0:
                assert not seen and self._is_refused(peer), "a bad PROXY header was not refused"
                return
            data = data[size:] if size else b""
        end = find_head_end_slowly(data)
        if end > self.limit_bytes or (end == 0 and len(data) >= self.limit_bytes):
            assert not seen and self._is_refused(peer), "a head above the limit was not refused"
            assert is_proxied or peer.received.startswith(b"HTTP/1.1 431 ")
        elif may_be_too_large and peer.ended:
            assert not seen
        elif end == 0:
            assert not seen and not peer.ended, "a head that is not whole was judged"
        else:
            [(kind, conn, head)] = seen
            assert kind == event_kinds.OPEN and head == data[:end], (
                "the head that was given up is another one"
            )
            assert isinstance(head, bytes)
            check_head(head)
            request = parse_head(head)
            if isinstance(request, Refusal):
                assert self.rig.reactor.refuse(conn, request.response)
            else:
                assert self.rig.reactor.upgrade(conn, accept(request).response)
            self.rig.turn()
