"""Give frames of a client, mostly wrong ones, to the reactor and to the parser of `websockets` (P6).

Both must deliver the same messages and end with the same code. Function `explained` lists the allowed
differences, each with its reason; any other difference is a fault.
"""

import random
from dataclasses import dataclass, field
from typing import Final

from websockets.extensions.permessage_deflate import PerMessageDeflate

from tests.conformance.test_vectors_websockets import Judge
from tests.fuzz.mutation import pieces
from tests.support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, client_frame, close_code
from tests.support.reactor_rig import Rig
from tests.support.sizes import around, draw_size
from wsgate.deflate import WIDE_BITS, deflate
from wsgate.reactor import Settings, event_kinds
from wsgate.reasons import Reason

__all__ = ["FramesTarget", "make_stream"]

LIMIT_BYTES: Final = 2_000
PLAIN, DEFLATING = 0, 1
RSV1: Final = 4
SETTINGS: Final = Settings(
    max_message_bytes=LIMIT_BYTES,
    max_fragments=0,
    control_rate_per_s=0,
    ping_interval_ms=0,
    variant_opcodes=(TEXT, TEXT | event_kinds.DEFLATED),
)
TEXTS: Final = (
    b"",
    b"a",
    "Grüße, 世界 🎈".encode(),
    b"\xed\xa0\x80",
    b"caf\xc3",
    b"\xf4\x90\x80\x80",
    *(b"x" * size for size in around((125, 126, LIMIT_BYTES)) if size),
)
CODES: Final = (0, 999, 1000, 1004, 1005, 1006, 1011, 1014, 1015, 1016, 2999, 3000, 4999, 5000, 65_535)
CONNECTIONS_MAX: Final = 500  # connections of one reactor, then a new one replaces it


def make_stream(dice: random.Random, *, is_deflating: bool) -> bytes:
    """Make a few frames: most are allowed at their place, some are not, and some bytes are changed."""
    stream = bytearray()
    in_message = False
    for _ in range(dice.randint(1, 8)):
        opcode, final, rsv = _shape(dice, in_message=in_message, is_deflating=is_deflating)
        stream += client_frame(
            opcode, _payload(dice, opcode, rsv), final=final, rsv=rsv, mask=dice.randbytes(4)
        )
        if opcode < CLOSE:
            in_message = not final
    for _ in range(dice.choice((0, 0, 0, 1, 2))):
        stream[dice.randrange(len(stream))] ^= 1 << dice.randrange(8)
    return bytes(stream)


def _shape(dice: random.Random, *, in_message: bool, is_deflating: bool) -> tuple[int, bool, int]:
    opcode = dice.choice((TEXT, TEXT, BINARY, PING, PONG, CONTINUATION, CLOSE))
    if in_message and opcode in (TEXT, BINARY) and dice.random() < 0.9:
        opcode = CONTINUATION
    elif not in_message and opcode == CONTINUATION and dice.random() < 0.9:
        opcode = TEXT
    if dice.random() < 0.02:
        opcode = dice.randrange(16)
    final = opcode >= CLOSE or dice.random() < 0.7
    rsv = RSV1 if is_deflating and opcode in (TEXT, BINARY) and dice.random() < 0.6 else 0
    if dice.random() < 0.02:
        rsv = dice.randrange(8)
    return opcode, final, rsv


def _payload(dice: random.Random, opcode: int, rsv: int) -> bytes:
    if opcode == CLOSE:
        code = dice.choice(CODES).to_bytes(2, "big")
        return dice.choice((b"", b"\x03", code, code + dice.choice(TEXTS)))[:125]
    content = dice.choice((*TEXTS, dice.randbytes(draw_size(dice, LIMIT_BYTES + 1))))
    if opcode >= CLOSE:
        return content[: draw_size(dice, 126)]
    if rsv & RSV1:
        data = bytearray(deflate(content * dice.choice((1, 1, 3, 60)), WIDE_BITS))
        if data and dice.random() < 0.2:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        return bytes(data[: dice.choice((None, None, None, len(data) // 2))])
    return content


@dataclass
class Seen:
    """The outcome of a stream in one of the two parsers."""

    messages: list[tuple[int, bytes]] = field(default_factory=list)
    code: int | None = None
    """Code of the Close that the server sent; None while the connection is open."""
    reason: Reason | None = None
    is_deflating: bool = False
    has_long_length: bool = False
    """Whether the length of some frame has a shorter form."""
    fault: str = ""
    """The fault that the other parser reports."""


class FramesTarget:
    """One reactor for many connections, and a new parser of the other kind for each connection."""

    def __init__(self) -> None:
        self.rig = Rig(SETTINGS)
        self.at_rest = self.rig.held()
        self.connections = 0

    def close(self) -> None:
        """Shut the reactor down; it must have returned all memory."""
        held = self.rig.held()
        self.rig.close()
        assert held == self.at_rest, "something is still held"

    def run(self, dice: random.Random) -> bytes:
        """Give one stream to both and return it; raise AssertionError for an unexplained difference."""
        is_deflating = dice.random() < 0.5
        stream = make_stream(dice, is_deflating=is_deflating)
        self.check(dice, stream, is_deflating=is_deflating)
        return stream

    def check(self, dice: random.Random, stream: bytes, *, is_deflating: bool) -> None:
        """Give a stream, cut by the dice, to the reactor, and whole to the other parser, and compare.

        Raises:
            AssertionError: They differ without a reason.
        """
        ours = self.through_the_reactor(pieces(dice, stream), is_deflating=is_deflating)
        theirs = through_websockets(stream, is_deflating=is_deflating)
        if (ours.code is None) != (theirs.code is None):
            # The stream ends inside a frame. Here a header is checked byte by byte, and its length
            # with its mask; there the length first and the rest when the whole frame is there.
            stream += bytes(2 * LIMIT_BYTES + 16)
            ours = self.through_the_reactor([stream], is_deflating=is_deflating)
            theirs = through_websockets(stream, is_deflating=is_deflating)
        if (ours.messages, ours.code) != (theirs.messages, theirs.code):
            ours.has_long_length = has_long_length(stream)
            assert explained(ours, theirs), f"{stream.hex()}\nreactor:    {ours}\nwebsockets: {theirs}"

    def through_the_reactor(self, parts: list[bytes], *, is_deflating: bool) -> Seen:
        """Give a stream to one connection of the reactor; return the outcome, with its end."""
        self.connections += 1
        if self.connections > CONNECTIONS_MAX:
            self.close()
            self.__init__()  # type: ignore[misc]
        seen = Seen(is_deflating=is_deflating)
        peer = self.rig.connect(variant=DEFLATING if is_deflating else PLAIN)
        for part in parts:
            peer.send(part)
            self.rig.turn()
        for frame in peer.frames():
            if frame.opcode == CLOSE:
                assert seen.code is None, "a second Close"
                seen.code = close_code(frame)
            else:
                assert frame.opcode == PONG, frame
        seen.messages = [
            (kind, value)
            for kind, value in self.rig.of(peer)
            if kind in (TEXT, BINARY) and isinstance(value, bytes)
        ]
        peer.close()
        self.rig.turn()
        last, reason = self.rig.of(peer)[-1]
        assert last == event_kinds.CLOSED
        seen.reason = Reason(int(reason))
        self.rig.peers.remove(peer)
        self.rig.events.clear()
        return seen


def has_long_length(stream: bytes) -> bool:
    """Whether a length is not minimal, in the frames up to and including the first such frame."""
    place = 0
    while place + 2 <= len(stream):
        size, place = stream[place + 1] & 0x7F, place + 2
        if size >= 126:
            field_bytes = 2 if size == 126 else 8
            size = int.from_bytes(stream[place : place + field_bytes], "big")
            if size < (126 if field_bytes == 2 else 1 << 16):
                return True
            place += field_bytes
        place += 4 + size
    return False


def through_websockets(stream: bytes, *, is_deflating: bool) -> Seen:
    """Give the same stream to the other parser; return the outcome."""
    judge = Judge(LIMIT_BYTES)
    if is_deflating:
        judge.protocol.extensions = [PerMessageDeflate(True, True, 15, 15)]
    judge.receive_data(stream)
    messages = [(int(message.opcode), message.payload) for message in judge.messages]
    return Seen(messages, judge.code, fault=str(judge.protocol.parser_exc or ""))


def explained(ours: Seen, theirs: Seen) -> bool:
    """Whether a difference is one of the allowed ones."""
    is_same = ours.messages == theirs.messages
    is_open_or_closed_by_peer = ours.reason in (Reason.PEER_GONE, Reason.PEER_CLOSED)
    more = ours.messages[len(theirs.messages) :]
    return any(
        (
            # Text is checked byte by byte here and as a whole there, and a message that ends inside a deflate
            # block, or continues behind the last one, is refused here only.
            ours.reason in (Reason.INVALID_UTF8, Reason.INVALID_DEFLATE)
            and theirs.messages[: len(ours.messages)] == ours.messages,
            # A compressed message is inflated when it is whole here, and frame by frame there.
            is_open_or_closed_by_peer
            and ours.is_deflating
            and is_same
            and (theirs.fault == "decompression failed" or theirs.code == 1009),
            # What cannot shrink may be a little longer on the wire here than its content may be.
            theirs.code == 1009
            and ours.messages[: len(theirs.messages)] == theirs.messages
            and bool(more)
            and len(more[0][1]) <= LIMIT_BYTES,
            # Wrong in two ways: a frame against the rules that is too long, a Close with a bad code and text.
            ours.reason == Reason.PROTOCOL_ERROR
            and is_same
            and ("exceeds limit" in theirs.fault or theirs.fault.startswith("'utf-8' codec")),
            # Also wrong in two ways: deflated bytes that are invalid, but only after the size limit.
            ours.reason == Reason.MESSAGE_TOO_BIG and is_same and theirs.fault == "decompression failed",
            # The other parser adds control frames to the message they interrupt.
            is_open_or_closed_by_peer and is_same and "after reading" in theirs.fault,
            # Its limit is one of every frame's content, where deflated ones are joined.
            ours.reason == Reason.MESSAGE_TOO_BIG
            and ours.messages == theirs.messages[: len(ours.messages)]
            and any(len(content) > LIMIT_BYTES for _, content in theirs.messages[len(ours.messages) :][:1]),
            # Lengths must be minimal (section 5.2), which the other parser does not look at.
            ours.reason == Reason.PROTOCOL_ERROR
            and ours.has_long_length
            and theirs.messages[: len(ours.messages)] == ours.messages,
            # A peer may close inside a message of its own (RFC 6455 section 5.5.1 says nothing against it).
            ours.reason == Reason.PEER_CLOSED and is_same and theirs.fault == "incomplete fragmented message",
        )
    )
