"""Hostile frames: lengths, fragments, missing masks (S1, S2, S4, S5, S6, S32)."""

import struct
import sys

import pytest

from tests.support.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    MASK,
    PING,
    PONG,
    TEXT,
    client_frame,
    client_header,
    close_code,
)
from tests.support.reactor_rig import Peer, Rig, rig
from tests.support.tcp_rig import proportional_set_bytes, raise_descriptors
from wsgate.reactor import Settings, event_kinds
from wsgate.reasons import Reason

LIMIT = 64 * 1024


def header_64(opcode: int, length: int, *, final: bool = True) -> bytes:
    """A header with the 64-bit form of a length, also where that form is wrong."""
    return struct.pack("!BBQ", final << 7 | opcode, 0x80 | 127, length) + MASK


def verdict(bench: Rig, peer: Peer) -> int:
    """The one code this connection fails with; it is the code of the Close that is sent, too."""
    bench.turn()
    failing = [value for kind, value in bench.of(peer) if kind == event_kinds.FAILING]
    assert len(failing) == 1
    frames = peer.frames()
    assert frames, "a Close is owed"
    assert close_code(frames[-1]) == failing[0]
    assert peer.ended, "the server half-closes after its Close"
    assert isinstance(failing[0], int)
    return failing[0]


# --- S1 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize(
    ("opcode", "length", "code"),
    [
        (BINARY, 1 << 63, 1002),
        (TEXT, (1 << 64) - 1, 1002),
        (BINARY, (1 << 63) | 5, 1002),
        (BINARY, (1 << 63) - 1, 1009),
        (TEXT, (1 << 32) + 1, 1009),
        (BINARY, 1 << 31, 1009),
        (BINARY, LIMIT + 1, 1009),
        (BINARY, 125, 1002),  # not the shortest form
        (PING, 1 << 62, 1002),
    ],
)
def test_s1_length(opcode: int, length: int, code: int, is_split: bool) -> None:
    """S1: refused by the header alone, before a byte is allocated for the payload."""
    header = header_64(opcode, length)
    with rig(Settings(max_message_bytes=LIMIT)) as bench:
        peer = bench.connect()
        for piece in [header[i : i + 1] for i in range(len(header))] if is_split else [header]:
            if any(kind == event_kinds.FAILING for kind, _, _ in bench.events):
                break
            peer.send(piece)
            bench.step()
            assert bench.held()["partial"] <= 1024
        assert verdict(bench, peer) == code


@pytest.mark.parametrize("back", [1, 2, 9, 10, 11, 100])
@pytest.mark.parametrize("start_bytes", [1, 10, 4096])
def test_s1_sum_of_lengths_that_would_overflow(start_bytes: int, back: int) -> None:
    """S1: an unfinished message plus a continuation whose length wraps a signed or unsigned sum."""
    with rig(Settings(max_message_bytes=LIMIT)) as bench:
        peer = bench.connect()
        peer.send(client_frame(BINARY, bytes(start_bytes), final=False))
        peer.send(header_64(CONTINUATION, (1 << 63) - back, final=False))
        bench.turn()
        assert verdict(bench, peer) == 1009


def test_s1_the_limit_itself_passes() -> None:
    """S1: the limit is the largest message, in one frame and in several."""
    with rig(Settings(max_message_bytes=LIMIT)) as bench:
        peer = bench.connect()
        peer.send(client_frame(BINARY, bytes(LIMIT)))
        bench.turn()
        half = bytes(LIMIT // 2)
        peer.send(client_frame(BINARY, half, final=False) + client_frame(CONTINUATION, half))
        bench.turn()
        assert [len(message) for message in bench.messages(peer)] == [LIMIT, LIMIT]
        peer.send(client_frame(BINARY, bytes(LIMIT + 1)))
        bench.turn()
        assert verdict(bench, peer) == 1009


# --- S2 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_s2_declared_and_not_sent(opcode: int) -> None:
    """S2: 2,000 peers declare the largest frame and send one byte: under 4 KiB each, by both measures."""
    limit = 1 << 20
    peers = raise_descriptors(4000) // 2
    assert peers >= 400, "too few descriptors for a measurement"
    with rig(Settings(max_message_bytes=limit)) as bench:
        crowd = [bench.connect() for _ in range(peers)]
        bench.turn()
        resident, held = proportional_set_bytes(), sum(bench.held().values())
        attack = client_header(opcode, limit) + bytes([MASK[0] ^ 0x61])
        for peer in crowd:
            peer.send(attack)
        bench.turn()
        assert sum(bench.held().values()) - held < 4096 * peers
        assert proportional_set_bytes() - resident < 4096 * peers
        assert bench.count("now_open") == peers
        for peer in crowd:
            peer.close()
        bench.turn()
        assert bench.held()["partial"] == 0


# --- S4 ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("opcode", [BINARY, TEXT])
def test_s4_one_byte_per_segment(opcode: int) -> None:
    """S4: 1 MiB (text: a quarter of it) byte by byte: at most twice the payload, no object per read."""
    size = 1 << 20 if opcode == BINARY else 1 << 18
    with rig(Settings(max_message_bytes=1 << 20, pool_idle_limit_bytes=0)) as bench:
        peer = bench.connect()
        poll, send, now_ms = bench.reactor.poll, peer.sock.send, bench.now_ms
        send(client_header(opcode, size, mask=bytes(4)))
        assert not poll(now_ms)
        peak = blocks = grown = 0
        for index in range(size - 1):
            send(b"a")
            poll(now_ms)
            if index % 4096 == 4095:
                peak = max(peak, sum(bench.held().values()))
                now_blocks = sys.getallocatedblocks()
                grown = max(grown, now_blocks - blocks) if blocks else 0
                blocks = blocks or now_blocks
        assert peak <= 2 * size
        assert grown < 64, "reads leave objects behind"
        send(b"a")
        bench.turn()
        assert bench.messages(peer) == [b"a" * size]
        assert bench.held()["partial"] == 0


def test_s4_growth_stays_within_twice() -> None:
    """S4: at every size on the way, what is held is at most twice what has come, plus one small block."""
    size = 1 << 20
    with rig(Settings(max_message_bytes=1 << 20, pool_idle_limit_bytes=0)) as bench:
        peer = bench.connect()
        peer.send(client_header(BINARY, size))
        come = 0
        while come < size - 1024:
            come += peer.send(bytes(1000))
            bench.step()
            assert bench.held()["partial"] <= 2 * come + 1024


# --- S5 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"x"])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_s5_endless_fragments(opcode: int, payload: bytes) -> None:
    """S5: exactly the limit of fragments may come (1,024); one more is 1008, although FIN never came."""
    with rig() as bench:
        peer = bench.connect()
        peer.send(client_frame(opcode, payload, final=False))
        for _ in range(1023):
            peer.send(client_frame(CONTINUATION, payload, final=False))
            bench.step()
        bench.turn()
        assert not bench.of(peer)
        assert bench.held()["partial"] <= 4096
        peer.send(client_frame(CONTINUATION, payload, final=False))
        bench.turn()
        assert verdict(bench, peer) == 1008
        bench.pass_ms(1500)
        assert bench.of(peer)[-1] == (event_kinds.CLOSED, Reason.TOO_MANY_FRAGMENTS)


def test_s5_the_last_allowed_fragment_may_be_final() -> None:
    """S5: a message of exactly the limit of fragments is delivered, and the count starts anew."""
    with rig(Settings(max_fragments=3)) as bench:
        peer = bench.connect()
        message = (
            client_frame(TEXT, b"a", final=False)
            + client_frame(CONTINUATION, b"b", final=False)
            + client_frame(CONTINUATION, b"c")
        )
        peer.send(message * 5)
        bench.turn()
        assert bench.messages(peer) == [b"abc"] * 5


@pytest.mark.parametrize("limit", [0, 1024])
def test_s5_message_deadline_is_absolute(limit: int) -> None:
    """S5: fragments that keep coming do not move the deadline of their message (30 s, 1008)."""
    with rig(Settings(max_fragments=limit)) as bench:
        peer = bench.connect()
        start_ms = bench.now_ms
        peer.send(client_frame(BINARY, b"", final=False))
        bench.turn()
        while not bench.of(peer):
            peer.send(client_frame(CONTINUATION, b"x", final=False))
            bench.pass_ms(250)
            assert bench.now_ms - start_ms < 40_000
        assert 30_000 <= bench.now_ms - start_ms <= 30_500
        assert verdict(bench, peer) == 1008
        bench.pass_ms(1500)
        assert bench.of(peer)[-1] == (event_kinds.CLOSED, Reason.MESSAGE_TIMEOUT)


@pytest.mark.parametrize("start", [b"\x82", b"\x82\xfe", client_header(BINARY, 4000), client_header(TEXT, 5)])
def test_s5_message_deadline_counts_from_the_first_byte(start: bytes) -> None:
    """S5: a header that never gets whole, or a payload that never comes, is a message begun."""
    with rig(Settings(ping_interval_ms=0)) as bench:
        peer = bench.connect()
        peer.send(start)
        bench.turn()
        bench.pass_ms(29_750)
        assert not bench.of(peer)
        bench.pass_ms(750)
        assert bench.of(peer) == [(event_kinds.FAILING, 1008)]


def test_s5_the_deadline_ends_with_the_message() -> None:
    """S5: a message that came in pieces, and control frames in pieces, leave no deadline behind."""
    with rig() as bench:
        peer = bench.connect()
        for frame in (client_frame(TEXT, b"hello"), client_frame(PING, b"abc"), client_frame(PONG, b"abc")):
            for index in range(len(frame)):
                peer.send(frame[index : index + 1])
                bench.turn()
        for _ in range(8):
            bench.pass_ms(10_000)
            peer.send(client_frame(PONG))
        assert bench.of(peer) == [(event_kinds.TEXT, b"hello")]
        assert bench.held()["partial"] == 0


# --- S6 ---------------------------------------------------------------------------------------------


def test_s6_sum_of_small_fragments() -> None:
    """S6: 1009 at the header by which the sum passes the limit; before FIN, before its payload."""
    with rig(Settings(max_message_bytes=10_000)) as bench:
        peer = bench.connect()
        peer.send(client_frame(BINARY, bytes(1000), final=False))
        for _ in range(9):
            peer.send(client_frame(CONTINUATION, bytes(1000), final=False))
        bench.turn()
        assert not bench.of(peer)
        peer.send(client_frame(CONTINUATION, b"", final=False))
        bench.turn()
        assert not bench.of(peer)
        peer.send(client_header(CONTINUATION, 1, final=False))
        bench.turn()
        assert verdict(bench, peer) == 1009
        assert bench.held()["partial"] == 0


# --- S32 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG, CLOSE])
def test_s32_unmasked_frame(opcode: int, is_split: bool) -> None:
    """S32: 1002 for whatever is not masked; what was whole before it is delivered, nothing after."""
    unmasked = bytes([0x80 | opcode, 4]) + struct.pack("!H", 1000) + b"ab"
    with rig() as bench:
        peer = bench.connect()
        stream = client_frame(TEXT, b"before") + unmasked + client_frame(TEXT, b"after")
        for piece in [stream[i : i + 1] for i in range(len(stream))] if is_split else [stream]:
            peer.send(piece)
            bench.step()
        bench.turn()
        assert bench.of(peer)[:2] == [(event_kinds.TEXT, b"before"), (event_kinds.FAILING, 1002)]
        assert verdict(bench, peer) == 1002
        bench.pass_ms(1500)
        assert bench.of(peer)[2:] == [(event_kinds.CLOSED, Reason.PROTOCOL_ERROR)]


def test_s32_unmasked_continuation() -> None:
    """S32: inside a message too."""
    with rig() as bench:
        peer = bench.connect()
        peer.send(client_frame(TEXT, b"a", final=False) + b"\x80\x01b")
        bench.turn()
        assert not bench.messages(peer)
        assert verdict(bench, peer) == 1002
