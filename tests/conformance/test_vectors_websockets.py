"""Check the vectors of protocols/websocket with the parser of `websockets`.

A vector that an independent and widely used implementation contradicts is either wrong or a choice. The
choices are listed below, each with the behaviour of that implementation. The list is exact, so a difference
that disappears has to be removed from the list.
"""

import logging
import runpy
from collections.abc import Iterable, Iterator

import pytest
from websockets.frames import Frame
from websockets.protocol import State
from websockets.server import ServerProtocol

from tests.support.frames import BINARY, CONTINUATION, PONG, TEXT, FrameReader, close_code
from tests.support.vectors import DIRECTORY, Message, Outcome, Vector, load_vectors

VECTORS = list(load_vectors())
BY_NAME = {vector.name: vector for vector in VECTORS}

# The limit of the reactor where a vector has none (README, "settings").
MESSAGE_LIMIT_BYTES = 64 * 1024

LOGGER = logging.getLogger("tests.judge")
LOGGER.disabled = True


class Judge:
    """An open server connection of `websockets`, which decodes text like its front ends."""

    def __init__(self, max_message_bytes: int) -> None:
        self.protocol = ServerProtocol(state=State.OPEN, max_size=max_message_bytes, logger=LOGGER)
        self.reader = FrameReader()
        self.messages: list[Message] = []
        self.pongs: list[bytes] = []
        self.code: int | None = None
        self.partial = Message(CONTINUATION, b"")
        self.is_text_broken = False

    def receive_data(self, data: bytes) -> None:
        """Give bytes of the client to the parser, and record its answers."""
        self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            assert isinstance(event, Frame)
            if event.opcode in (TEXT, BINARY, CONTINUATION) and not self.is_text_broken:
                self.on_data_frame(event)
        for frame in self.reader.receive_data(b"".join(self.protocol.data_to_send())):
            if frame.opcode == PONG:
                self.pongs.append(frame.payload)
            else:
                assert self.code is None, "a second Close"
                self.code = close_code(frame)

    def on_data_frame(self, frame: Frame) -> None:
        """Join fragments; decode text when it is complete, as `recv()` of its connections does."""
        if frame.opcode == CONTINUATION:
            self.partial = Message(self.partial.opcode, self.partial.payload + frame.data)
        else:
            self.partial = Message(int(frame.opcode), bytes(frame.data))
        if not frame.fin:
            return
        try:
            if self.partial.opcode == TEXT:
                self.partial.payload.decode("utf-8")
        except UnicodeDecodeError:
            self.is_text_broken = True
            self.protocol.fail(1007)
        else:
            self.messages.append(self.partial)

    def outcome(self) -> Outcome:
        """Return the present outcome."""
        if self.code is None:
            state = "open"
        elif self.protocol.close_rcvd is not None and self.protocol.parser_exc is None:
            state = "peer_closed"
        else:
            state = "failed"
        return Outcome(tuple(self.messages), tuple(self.pongs), state, self.code)


def judged(vector: Vector, pieces: Iterable[bytes]) -> Outcome:
    """Return the outcome of `websockets` for a stream that arrives in these pieces."""
    judge = Judge(vector.settings.get("max_message_bytes", MESSAGE_LIMIT_BYTES))
    for piece in pieces:
        judge.receive_data(piece)
    return judge.outcome()


LATE_TEXT = "decodes text when the message is complete; RFC 6455 section 8.1 allows both"
LATE_HEADER = "judges control frames and their length when the payload has come"
NOT_MINIMAL = "accepts length encodings that are not minimal; section 5.2 forbids them to the sender"
TOP_BIT = "takes 64-bit lengths as unsigned: too big, where section 5.2 says the bit must be 0"
CLOSE_INSIDE = "refuses a Close inside a fragmented message; section 5.4 allows control frames there"
NO_FRAGMENTS_LIMIT = "does not count fragments"

# From a vector to the state and code of `websockets`, and the reason. Messages and pongs may differ too.
DIFFERENCES: dict[str, tuple[str, int | None, str]] = {
    **{name: ("open", None, LATE_TEXT) for name in BY_NAME if name.endswith("-fail-fast")},
    **{name: ("open", None, LATE_TEXT) for name in BY_NAME if "/broken-by-next-fragment-" in name},
    "utf8/wrong-in-second-fragment": ("open", None, LATE_TEXT),
    **{name: ("open", None, LATE_HEADER) for name in BY_NAME if name.endswith("-header-only")},
    "control/ping-5-in-two-bytes": ("open", None, NOT_MINIMAL),
    "control/pong-5-in-two-bytes": ("open", None, NOT_MINIMAL),
    "control/close-5-in-two-bytes": ("peer_closed", 1000, NOT_MINIMAL),
    "framing/length-0-in-two-bytes": ("open", None, NOT_MINIMAL),
    "framing/length-1-in-two-bytes": ("open", None, NOT_MINIMAL),
    "framing/length-125-in-two-bytes": ("open", None, NOT_MINIMAL),
    "framing/length-0-in-eight-bytes": ("open", None, NOT_MINIMAL),
    "framing/length-125-in-eight-bytes": ("open", None, NOT_MINIMAL),
    "framing/length-126-in-eight-bytes": ("open", None, NOT_MINIMAL),
    "framing/length-65535-in-eight-bytes": ("open", None, NOT_MINIMAL),
    "framing/length-top-bit": ("failed", 1009, TOP_BIT),
    "framing/length-top-bit-and-5": ("failed", 1009, TOP_BIT),
    "framing/length-all-bits": ("failed", 1009, TOP_BIT),
    "fragmentation/close-inside": ("failed", 1002, CLOSE_INSIDE),
    "close/inside-empty-fragment": ("failed", 1002, CLOSE_INSIDE),
    "limits/fragments-over-the-limit": ("open", None, NO_FRAGMENTS_LIMIT),
    "limits/final-fragment-over-the-limit": ("open", None, NO_FRAGMENTS_LIMIT),
    "limits/empty-fragments-over-the-limit": ("open", None, NO_FRAGMENTS_LIMIT),
}


def one_by_one(stream: bytes) -> Iterator[bytes]:
    """Return every byte alone."""
    return (stream[place : place + 1] for place in range(len(stream)))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_websockets_has_the_outcome_of_each_vector_or_a_listed_difference(vector: Vector) -> None:
    """The stream is sent whole and byte by byte."""
    outcome = judged(vector, [vector.stream])

    assert judged(vector, one_by_one(vector.stream)) == outcome
    if vector.name in DIFFERENCES:
        state, code, _ = DIFFERENCES[vector.name]
        assert (outcome.state, outcome.code) == (state, code)
        assert outcome != vector.outcome, "this is no longer a difference: remove it from the list"
    else:
        assert outcome == vector.outcome


def test_every_listed_difference_belongs_to_an_existing_vector() -> None:
    """Otherwise the list would keep differences of deleted vectors."""
    assert DIFFERENCES.keys() <= BY_NAME.keys()


def test_more_than_300_vectors_with_unique_names_cover_every_state_and_code() -> None:
    """An empty directory must not pass."""
    assert len(BY_NAME) == len(VECTORS) > 300
    assert {vector.outcome.state for vector in VECTORS} == {"open", "failed", "peer_closed"}
    assert {vector.outcome.code for vector in VECTORS} >= {None, 1000, 1002, 1005, 1007, 1008, 1009}


def test_vector_files_equal_the_output_of_their_generator() -> None:
    """`make_vectors.py` and the committed files must agree."""
    generator = DIRECTORY.parents[1] / "tools" / "make_vectors.py"
    rendered: dict[str, str] = runpy.run_path(str(generator))["rendered"]()
    committed = {path.name: path.read_text(encoding="ascii") for path in (DIRECTORY / "vectors").iterdir()}
    assert committed == rendered
