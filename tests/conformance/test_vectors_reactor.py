"""Run the vectors of protocols/websocket against the reactor, over real sockets, in every cut (P5).

Beyond the outcome of a vector these tests assert for every cut: messages come first, then at most one
`FAILING` or `PEER_CLOSED`, then `CLOSED` once; answers of the application to messages of a batch arrive
before the Close that ends it; the server sends nothing after its Close and ends the stream; a handle is
refused after `CLOSED`.
"""

import select
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    FrameReader,
    ServerFrame,
    client_close,
    client_frame,
    client_header,
    close_code,
)
from tests.support.vectors import Message, Outcome, Vector, load_vectors
from wsgate.reactor import Reactor, Settings, event_kinds

VECTORS = list(load_vectors())
SHORT_BYTES = 64  # streams up to this size are also cut in two at every place
ROUNDS_LIMIT = 10_000  # a reactor that sets `more` without end fails the test instead of hanging
LINGER_ROUNDS = 100  # ticks of 250 ms: more than any linger or write deadline

Ending = tuple[int, int]


class EchoServer:
    """A reactor with an echo as its application, and with a clock that the test moves."""

    def __init__(self, vector_settings: dict[str, int]) -> None:
        self.now_ms = 1_000
        options: dict[str, Any] = {"max_message_bytes": 64 * 1024, **vector_settings}
        self.reactor = Reactor(Settings(**options), now_ms=self.now_ms)
        self.waiter = select.poll()
        self.waiter.register(self.reactor.fileno(), select.POLLIN)

    def outcome(self, pieces: Iterable[bytes]) -> Outcome:
        """Return the outcome of a connection whose peer sends these pieces, each read before the next."""
        return Connection(self).run(pieces)


class Connection:
    """An adopted socket, its peer, and all events on both ends."""

    def __init__(self, server: EchoServer) -> None:
        self.server = server
        ours, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        self.conn = server.reactor.adopt(ours.detach(), now_ms=server.now_ms, upgraded=True)
        assert self.conn
        self.messages: list[Message] = []
        self.endings: list[Ending] = []
        self.closed: list[int] = []
        self.reader = FrameReader()
        self.frames: list[ServerFrame] = []
        self.is_ended = False

    def run(self, pieces: Iterable[bytes]) -> Outcome:
        """Send the pieces, let the reactor settle, check the outcome, and close."""
        try:
            for piece in pieces:
                self.send(piece)
            self.turn()
            outcome = self.outcome()
            self.leave()
        finally:
            self.peer.close()
        return outcome

    def send(self, data: bytes) -> None:
        """Send all of the data, unless the server has ended the connection."""
        while data:
            try:
                data = data[self.peer.send(data) :]
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                data = b""
            self.turn()

    def turn(self) -> None:
        """Poll and flush as an event loop does, until the reactor is idle."""
        reactor, now_ms = self.server.reactor, self.server.now_ms
        for _ in range(ROUNDS_LIMIT):
            for event in reactor.poll(now_ms):
                self.on_event(*event)
            is_unfinished = reactor.flush(now_ms)
            self.receive()
            if not is_unfinished and not reactor.more and not self.server.waiter.poll(0):
                return
        raise AssertionError("the reactor never became idle")

    def on_event(self, kind: int, conn: int, value: bytes | int) -> None:
        """Record the event, check the order, and echo a message."""
        assert conn == self.conn
        assert not self.closed, "an event after CLOSED"
        if kind in (event_kinds.TEXT, event_kinds.BINARY):
            assert isinstance(value, bytes)
            assert not self.endings, "a message after the end"
            self.messages.append(Message(kind, value))
            assert self.server.reactor.send(conn, value, kind)
        elif kind == event_kinds.CLOSED:
            assert isinstance(value, int)
            self.closed.append(value)
        else:
            assert kind in (event_kinds.FAILING, event_kinds.PEER_CLOSED)
            assert isinstance(value, int)
            assert not self.endings, "a second end"
            self.endings.append((kind, value))

    def receive(self) -> None:
        """Read all that the server has sent."""
        while not self.is_ended:
            try:
                data = self.peer.recv(256 * 1024)
            except BlockingIOError:
                return
            except ConnectionResetError:
                raise AssertionError("the server reset the connection") from None
            self.is_ended = not data
            self.frames += self.reader.receive_data(data)

    def outcome(self) -> Outcome:
        """Compare the records of application and peer, and return the outcome."""
        pongs = tuple(frame.payload for frame in self.frames if frame.opcode == PONG)
        echoes = [Message(*frame) for frame in self.frames if frame.opcode in (TEXT, BINARY)]
        closes = [frame for frame in self.frames if frame.opcode == CLOSE]
        assert echoes == self.messages, "an answer is missing, late or repeated"
        assert len(self.frames) == len(pongs) + len(echoes) + len(closes), "an unexpected frame"
        assert not self.reader.pending
        if not self.endings:
            assert not closes
            assert not self.closed
            return Outcome(tuple(self.messages), pongs, "open", None)
        kind, code = self.endings[0]
        assert closes == self.frames[-1:], "the Close is not the last frame, or there are two"
        assert close_code(closes[0]) == code
        state = "failed" if kind == event_kinds.FAILING else "peer_closed"
        return Outcome(tuple(self.messages), pongs, state, code)

    def leave(self) -> None:
        """Close the peer's side too, and check for one CLOSED and a refused handle."""
        frames_before = len(self.frames)
        for _ in range(LINGER_ROUNDS):
            if not self.endings or self.is_ended:
                break
            self.wait()
        assert self.is_ended == bool(self.endings), (
            "a stream without a failure or Close has ended, or one with them has not"
        )
        assert len(self.frames) == frames_before
        self.peer.close()
        self.is_ended = True
        for _ in range(LINGER_ROUNDS):
            if self.closed:
                break
            self.wait()
        assert len(self.closed) == 1
        self.wait()
        reactor = self.server.reactor
        assert not reactor.send(self.conn, b"late", TEXT)
        assert reactor.inspect(self.conn) is None

    def wait(self) -> None:
        """Move the clock by one tick."""
        self.server.now_ms += 250
        self.server.reactor.tick(self.server.now_ms)
        self.turn()


SERVERS: dict[tuple[tuple[str, int], ...], EchoServer] = {}


def server_for(vector_settings: dict[str, int]) -> EchoServer:
    """Return one server per set of settings, so that connections that leave a trace are noticed."""
    key = tuple(sorted(vector_settings.items()))
    if key not in SERVERS:
        SERVERS[key] = EchoServer(vector_settings)
    return SERVERS[key]


def cut(stream: bytes, places: Iterable[int]) -> Iterator[bytes]:
    """Yield the stream in pieces, cut at these places in order."""
    start = 0
    for place in [*places, len(stream)]:
        yield stream[start:place]
        start = place


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_reactor_has_the_outcome_of_each_vector_for_the_whole_stream(vector: Vector) -> None:
    """The stream is sent in one piece, as far as the socket takes it."""
    assert server_for(vector.settings).outcome([vector.stream]) == vector.outcome


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_p5_reactor_has_the_outcome_of_each_vector_byte_by_byte(vector: Vector) -> None:
    """P5: each byte is sent alone, with a poll and a flush after it."""
    pieces = cut(vector.stream, range(1, len(vector.stream)))
    assert server_for(vector.settings).outcome(pieces) == vector.outcome


@pytest.mark.parametrize(
    "vector", [each for each in VECTORS if len(each.stream) <= SHORT_BYTES], ids=lambda vector: vector.name
)
def test_p5_reactor_has_the_outcome_of_short_vectors_cut_in_two_at_every_place(vector: Vector) -> None:
    """P5: two pieces, for each place between them."""
    server = server_for(vector.settings)
    for place in range(1, len(vector.stream)):
        assert server.outcome(cut(vector.stream, [place])) == vector.outcome, place


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_p5_reactor_has_the_outcome_of_vectors_in_random_pieces(data: st.DataObject) -> None:
    """P5: no cut changes the outcome of a vector."""
    vector = data.draw(st.sampled_from(VECTORS))
    places = data.draw(st.lists(st.integers(0, len(vector.stream)), max_size=12).map(sorted))
    assert server_for(vector.settings).outcome(cut(vector.stream, places)) == vector.outcome


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Draw frames that are mostly in a valid order, with a fault here and there."""
    opcodes = st.sampled_from([TEXT, TEXT, BINARY, CONTINUATION, CONTINUATION, PING, PONG, CLOSE, 3, 11])
    payloads = st.text(max_size=40).map(str.encode) | st.binary(max_size=300)
    masks = st.binary(min_size=4, max_size=4)
    stream = b""
    for _ in range(draw(st.integers(1, 8))):
        what = draw(st.integers(0, 19))
        if what == 0:
            stream += client_close(draw(st.sampled_from([None, 1000, 1005, 4000])), draw(payloads)[:120])
        elif what == 1:
            stream += client_header(BINARY, draw(st.integers(0, 2**64 - 1)))
        else:
            stream += client_frame(
                draw(opcodes), draw(payloads), final=draw(st.integers(0, 2)) > 0, mask=draw(masks)
            )
    for _ in range(draw(st.integers(0, 2)) if draw(st.booleans()) else 0):
        place = draw(st.integers(0, len(stream)))
        stream = stream[:place] + draw(st.binary(max_size=3)) + stream[place + draw(st.integers(0, 3)) :]
    return stream


@settings(max_examples=300, deadline=None)
@given(streams(), st.lists(st.integers(0, 3_000), max_size=12))
def test_p5_random_stream_has_one_outcome_however_it_is_cut(stream: bytes, places: list[int]) -> None:
    """P5: whole, in random pieces and byte by byte."""
    server = server_for({})
    whole = server.outcome([stream])

    assert server.outcome(cut(stream, sorted(place % (len(stream) + 1) for place in places))) == whole
    assert server.outcome(cut(stream, range(1, len(stream)))) == whole
