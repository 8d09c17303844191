"""Check compressed messages of clients: RFC 7692 in the reactor, and the cost of a bomb (S7)."""

import tracemalloc
import zlib
from typing import Any, Final

import pytest

from tests.support.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    client_frame,
    close_code,
)
from tests.support.reactor_rig import Peer, Rig, rig
from wsgate.deflate import WIDE_BITS, deflate
from wsgate.reactor import Settings, event_kinds
from wsgate.reasons import Reason

RSV1: Final = 4
PLAIN, DEFLATING = 0, 1
OPCODES: Final = (TEXT, TEXT | event_kinds.DEFLATED)


def deflating(**changes: Any) -> Settings:
    return Settings(variant_opcodes=OPCODES, **changes)


def whole(content: bytes, opcode: int = TEXT) -> bytes:
    return client_frame(opcode, deflate(content, WIDE_BITS), rsv=RSV1)


def ended(bench: Rig, peer: Peer) -> tuple[int, int]:
    """Return the close code that the peer read, and the counted reason."""
    frames = peer.frames()
    assert frames[-1].opcode == CLOSE
    peer.close()
    bench.turn()
    return close_code(frames[-1]), int(bench.of(peer)[-1][1])


def test_compressed_messages_are_inflated_and_counted_by_their_content() -> None:
    with rig(deflating()) as bench:
        peer = bench.connect(variant=DEFLATING)
        peer.send(whole(b"Hello") + whole("Grüße".encode()) + whole(b"\xff\x00", BINARY) + whole(b""))
        bench.turn()
        assert bench.of(peer) == [
            (TEXT, b"Hello"),
            (TEXT, "Grüße".encode()),
            (BINARY, b"\xff\x00"),
            (TEXT, b""),
        ]
        assert bench.count("messages_inflated") == 4
        assert bench.count("message_bytes_in") == 5 + 7 + 2


def test_plain_message_between_compressed_ones_is_delivered_in_order() -> None:
    with rig(deflating()) as bench:
        peer = bench.connect(variant=DEFLATING)
        peer.send(whole(b"a" * 500) + client_frame(TEXT, b"plain") + whole(b"b" * 500))
        bench.turn()
        assert bench.messages(peer) == [b"a" * 500, b"plain", b"b" * 500]


@pytest.mark.parametrize("size", [0, 1, 60, 5_000, 65_536])
def test_compressed_message_in_fragments_and_small_pieces_is_inflated_whole(size: int) -> None:
    """A ping lies between two fragments; the stream is sent byte by byte or in pieces of 611 bytes."""
    content = bytes(97 + index * index % 26 for index in range(size))
    data = deflate(content, WIDE_BITS)
    third = len(data) // 3
    parts = [data[:third], b"", data[third : 2 * third], data[2 * third :]]
    frames = [client_frame(TEXT, parts[0], rsv=RSV1, final=False)]
    frames += [client_frame(CONTINUATION, part, final=False) for part in parts[1:-1]]
    frames += [client_frame(PING, b"between"), client_frame(CONTINUATION, parts[-1])]
    stream = b"".join(frames)
    with rig(deflating()) as bench:
        peer = bench.connect(variant=DEFLATING)
        step = 1 if size < 1_000 else 611
        for place in range(0, len(stream), step):
            peer.send(stream[place : place + step])
            bench.turn()
        assert bench.messages(peer) == [content]
        assert [frame.opcode for frame in peer.frames()] == [PONG]
        assert bench.held()["partial"] == 0


# RFC 7692 section 7.2.3, byte for byte.
EXAMPLES: Final = {
    "one block": b"\xf2\x48\xcd\xc9\xc9\x07\x00",
    "no compression": b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00",
    "a last block": b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00",
    "two blocks": b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00",
}


@pytest.mark.parametrize("payload", EXAMPLES.values(), ids=EXAMPLES)
def test_examples_of_rfc_7692_section_7_2_3_are_inflated(payload: bytes) -> None:
    with rig(deflating()) as bench:
        peer = bench.connect(variant=DEFLATING)
        peer.send(client_frame(TEXT, payload, rsv=RSV1))
        bench.turn()
        assert bench.messages(peer) == [b"Hello"]


def _unfinished() -> bytes:
    """Return a deflated stream that is cut inside a block."""
    return deflate(bytes(range(256)) * 8, WIDE_BITS)[:-40]


UNSOUND: Final = {
    "not deflate": b"\xff\xff\xff",
    "a block that is no kind": b"\x07",
    "cut inside a block": _unfinished(),
    "cut inside a stored block": b"\x00\x64\x00\x9b\xffHe",  # of 100 bytes
    "a distance before the beginning": zlib.compressobj(wbits=-15, zdict=b"Hello" * 9).compress(b"")
    + b"\x82\x83\x00\x11\x00",
    "more behind the last block": b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00" + b"\xf2\x48\xcd\xc9\xc9\x07\x00",
    "zlib's own header": zlib.compress(b"Hello"),
}


@pytest.mark.parametrize("payload", UNSOUND.values(), ids=UNSOUND)
def test_s8_invalid_deflate_data_closes_1002_and_only_that_connection(payload: bytes) -> None:
    with rig(deflating()) as bench:
        peer, neighbour = bench.connect(variant=DEFLATING), bench.connect(variant=DEFLATING)
        peer.send(whole(b"before") + client_frame(TEXT, payload, rsv=RSV1) + whole(b"after"))
        neighbour.send(whole(b"well"))
        bench.turn()
        assert bench.messages(peer) == [b"before"]
        assert bench.messages(neighbour) == [b"well"]
        assert ended(bench, peer) == (1002, Reason.INVALID_DEFLATE)


BAD_BITS: Final = {
    "not agreed on": (PLAIN, client_frame(TEXT, b"", rsv=RSV1)),
    "on a continuation": (
        DEFLATING,
        client_frame(TEXT, b"", rsv=RSV1, final=False) + client_frame(CONTINUATION, b"", rsv=RSV1),
    ),
    "on a control frame": (DEFLATING, client_frame(PING, b"", rsv=RSV1)),
    "another bit": (DEFLATING, client_frame(TEXT, b"", rsv=2)),
    "another bit beside it": (DEFLATING, client_frame(TEXT, b"", rsv=RSV1 | 1)),
}


@pytest.mark.parametrize(("variant", "stream"), BAD_BITS.values(), ids=BAD_BITS)
def test_s8_reserved_bit_without_agreement_or_on_a_wrong_frame_closes_1002(
    variant: int, stream: bytes
) -> None:
    with rig(deflating()) as bench:
        peer = bench.connect(variant=variant)
        peer.send(stream)
        bench.turn()
        assert not bench.messages(peer)
        assert ended(bench, peer) == (1002, Reason.PROTOCOL_ERROR)


def test_inflated_text_that_is_invalid_utf8_closes_1007() -> None:
    with rig(deflating()) as bench:
        peer = bench.connect(variant=DEFLATING)
        peer.send(whole(b"caf\xc3"))
        bench.turn()
        assert ended(bench, peer) == (1007, Reason.INVALID_UTF8)


def test_byte_rate_counts_the_inflated_size_of_messages() -> None:
    with rig(deflating(byte_rate_per_s=1_000)) as bench:
        peer = bench.connect(variant=DEFLATING)
        peer.send(whole(b"a" * 900) * 2)
        bench.turn()
        assert len(bench.messages(peer)) == 1
        assert ended(bench, peer) == (4029, Reason.BYTE_RATE)


# --- bombs ------------------------------------------------------------------------------------------

LIMIT: Final = 256 * 1024


@pytest.mark.parametrize("over", [0, 1])
def test_s7_message_size_limit_applies_to_the_inflated_content(over: int) -> None:
    with rig(deflating(max_message_bytes=LIMIT)) as bench:
        peer = bench.connect(variant=DEFLATING)
        peer.send(whole(b"x" * (LIMIT + over)))
        bench.turn()
        if over:
            assert ended(bench, peer) == (1009, Reason.MESSAGE_TOO_BIG)
        else:
            assert bench.messages(peer) == [b"x" * LIMIT]


@pytest.mark.parametrize("fragments", [1, 200])
def test_s7_inflating_a_bomb_takes_at_most_the_message_limit_and_64_kib(fragments: int) -> None:
    """The bomb inflates to 64 times the limit. The inflated bytes are freed when the connection is closed."""
    bomb = deflate(bytes(64 * LIMIT), WIDE_BITS)
    assert len(bomb) < 64 * LIMIT / 200
    size = -(-len(bomb) // fragments)
    parts = [bomb[place : place + size] for place in range(0, len(bomb), size)]
    stream = b"".join(
        client_frame(
            CONTINUATION if number else BINARY,
            part,
            rsv=0 if number else RSV1,
            final=number == len(parts) - 1,
        )
        for number, part in enumerate(parts)
    )
    with rig(deflating(max_message_bytes=LIMIT)) as bench:
        peer = bench.connect(variant=DEFLATING)
        for place in range(0, len(stream) - 1, 16_000):
            peer.send(stream[place : min(place + 16_000, len(stream) - 1)])
            bench.turn()
        peer.send(stream[-1:])
        tracemalloc.start()
        bench.turn()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert ended(bench, peer) == (1009, Reason.MESSAGE_TOO_BIG)
        assert LIMIT / 4 < peak <= LIMIT + 64 * 1024
        assert bench.held()["partial"] == 0


def test_s7_compressed_frame_header_beyond_the_limit_closes_1009_before_its_payload() -> None:
    """Incompressible data may be slightly longer than its content; a much longer message is not collected."""
    with rig(deflating(max_message_bytes=LIMIT)) as bench:
        peer = bench.connect(variant=DEFLATING)
        peer.send(
            client_frame(BINARY, b"", rsv=RSV1, final=False)
            + client_frame(CONTINUATION, bytes(LIMIT + LIMIT // 100))[:20]
        )
        bench.turn()
        assert ended(bench, peer) == (1009, Reason.MESSAGE_TOO_BIG)


def test_s7_incompressible_message_at_the_size_limit_is_delivered() -> None:
    content = b"".join(zlib.crc32(b"%d" % index).to_bytes(4, "big") for index in range(16 * 1024))
    data = deflate(content, WIDE_BITS)
    assert len(data) > len(content)
    with rig(deflating(max_message_bytes=len(content))) as bench:
        peer = bench.connect(variant=DEFLATING)
        stream = client_frame(BINARY, data, rsv=RSV1)
        for place in range(0, len(stream), 16_000):
            peer.send(stream[place : place + 16_000])
            bench.turn()
        assert bench.messages(peer) == [content]


def test_memory_account_includes_the_inflater_only_if_deflate_is_configured() -> None:
    with rig(deflating(max_message_bytes=LIMIT)) as bench:
        assert bench.held()["deflate"] >= LIMIT + 64 * 1024
    with rig(Settings(max_message_bytes=LIMIT)) as bench:
        assert bench.held()["deflate"] == 0


# --- publications -----------------------------------------------------------------------------------


def test_deflated_publication_has_rsv1_and_a_shared_plain_frame_has_not() -> None:
    with rig(deflating()) as bench:
        peers = [bench.connect(variant=variant) for variant in (PLAIN, DEFLATING)]
        for peer in peers:
            bench.reactor.subscribe(peer.conn, b"news")
        data = deflate(b"much " * 200, WIDE_BITS)
        assert bench.reactor.publish(b"news", [b"much " * 200, data]) == 2
        assert bench.reactor.publish(b"news", [b"little", 0]) == 2
        assert bench.reactor.send(peers[DEFLATING].conn, data, TEXT | event_kinds.DEFLATED)
        bench.turn()
        heads = [peer.receive() for peer in peers]
        assert heads[PLAIN][0] == 0x81
        assert (
            heads[DEFLATING]
            == b"\xc1%c" % len(data) + data + b"\x81\x06little" + b"\xc1%c" % len(data) + data
        )
        with pytest.raises(ValueError, match="has not agreed"):
            bench.reactor.send(peers[PLAIN].conn, data, TEXT | event_kinds.DEFLATED)
        frames = bench.held()["frame"]
        unshared: list[list[bytes | int | None]] = [[0], [b"a", 1], [None, 0], [b"a", -1]]
        for wrong in unshared:
            with pytest.raises(ValueError, match="cannot share"):
                bench.reactor.publish(b"news", wrong)
        assert bench.held()["frame"] == frames
