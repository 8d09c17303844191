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
    """Return a frame header with the 64-bit form of the length, also where that form is not allowed."""
    return struct.pack("!BBQ", final << 7 | opcode, 0x80 | 127, length) + MASK


def close_code_of_failure(bench: Rig, peer: Peer) -> int:
    """Return the code of the connection's only failure; the Close that is sent carries the same code."""
    bench.turn()
    failing = [value for kind, value in bench.of(peer) if kind == event_kinds.FAILING]
    assert len(failing) == 1
    frames = peer.frames()
    assert frames, "no Close was sent"
    assert close_code(frames[-1]) == failing[0]
    assert peer.ended, "the server did not end its side after its Close"
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
def test_s1_wrong_or_too_large_length_is_refused_by_the_header_alone(
    opcode: int, length: int, code: int, is_split: bool
) -> None:
    """S1: the reactor refuses the frame by its header, before it allocates memory for the payload."""
    header = header_64(opcode, length)
    with rig(Settings(max_message_bytes=LIMIT)) as bench:
        peer = bench.connect()
        for piece in [header[i : i + 1] for i in range(len(header))] if is_split else [header]:
            if any(kind == event_kinds.FAILING for kind, _, _ in bench.events):
                break
            peer.send(piece)
            bench.step()
            assert bench.held()["partial"] <= 1024
        assert close_code_of_failure(bench, peer) == code


@pytest.mark.parametrize("back", [1, 2, 9, 10, 11, 100])
@pytest.mark.parametrize("start_bytes", [1, 10, 4096])
def test_s1_fragment_length_that_overflows_the_sum_is_1009(start_bytes: int, back: int) -> None:
    """S1: an unfinished message plus a continuation whose length would wrap a signed or unsigned sum."""
    with rig(Settings(max_message_bytes=LIMIT)) as bench:
        peer = bench.connect()
        peer.send(client_frame(BINARY, bytes(start_bytes), final=False))
        peer.send(header_64(CONTINUATION, (1 << 63) - back, final=False))
        bench.turn()
        assert close_code_of_failure(bench, peer) == 1009


def test_s1_message_of_exactly_the_limit_is_delivered_and_one_byte_more_is_1009() -> None:
    """S1: the limit is the size of the largest message, in one frame or in several."""
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
        assert close_code_of_failure(bench, peer) == 1009


# --- S2 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_s2_declared_payload_that_never_comes_costs_under_4_kib_per_peer(opcode: int) -> None:
    """S2: 2,000 peers declare the largest frame and send one byte of it.

    The accounts and the process memory both grow by less than 4 KiB per peer.
    """
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
def test_s4_message_sent_byte_by_byte_costs_at_most_twice_its_size(opcode: int) -> None:
    """S4: 1 MiB (for text a quarter of it) arrives byte by byte; no read leaves a Python object."""
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


def test_s4_unfinished_message_uses_at_most_twice_the_received_bytes_at_every_size() -> None:
    """S4: the buffer of an unfinished message is at most twice what was received, plus 1 KiB."""
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
def test_s5_fragment_1025_is_1008_although_the_message_is_unfinished(opcode: int, payload: bytes) -> None:
    """S5: 1,024 fragments are allowed; one more is 1008, although no fragment had FIN."""
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
        assert close_code_of_failure(bench, peer) == 1008
        bench.pass_ms(1500)
        assert bench.of(peer)[-1] == (event_kinds.CLOSED, Reason.TOO_MANY_FRAGMENTS)


def test_s5_message_of_exactly_the_fragment_limit_is_delivered_and_the_count_restarts() -> None:
    """S5: five messages in a row have exactly the allowed number of fragments."""
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
def test_s5_fragments_that_keep_arriving_do_not_move_the_message_deadline(limit: int) -> None:
    """S5: the message ends with 1008 after 30 s, however many fragments arrive until then."""
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
        assert close_code_of_failure(bench, peer) == 1008
        bench.pass_ms(1500)
        assert bench.of(peer)[-1] == (event_kinds.CLOSED, Reason.MESSAGE_TIMEOUT)


@pytest.mark.parametrize("start", [b"\x82", b"\x82\xfe", client_header(BINARY, 4000), client_header(TEXT, 5)])
def test_s5_message_deadline_counts_from_the_first_byte_of_the_frame_header(start: bytes) -> None:
    """S5: an incomplete header, or a payload that never comes, counts as a message that has begun."""
    with rig(Settings(ping_interval_ms=0)) as bench:
        peer = bench.connect()
        peer.send(start)
        bench.turn()
        bench.pass_ms(29_750)
        assert not bench.of(peer)
        bench.pass_ms(750)
        assert bench.of(peer) == [(event_kinds.FAILING, 1008)]


def test_s5_complete_messages_and_control_frames_in_pieces_leave_no_deadline() -> None:
    """S5: a message and control frames arrive byte by byte; 80 s later the connection is still open."""
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


def test_s6_header_that_takes_the_sum_of_fragments_over_the_limit_is_1009() -> None:
    """S6: the Close comes at that header, before its payload and before FIN."""
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
        assert close_code_of_failure(bench, peer) == 1009
        assert bench.held()["partial"] == 0


# --- S32 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG, CLOSE])
def test_s32_unmasked_frame_is_1002_and_only_the_messages_before_it_are_delivered(
    opcode: int, is_split: bool
) -> None:
    """S32: this holds for every opcode, whole or byte by byte."""
    unmasked = bytes([0x80 | opcode, 4]) + struct.pack("!H", 1000) + b"ab"
    with rig() as bench:
        peer = bench.connect()
        stream = client_frame(TEXT, b"before") + unmasked + client_frame(TEXT, b"after")
        for piece in [stream[i : i + 1] for i in range(len(stream))] if is_split else [stream]:
            peer.send(piece)
            bench.step()
        bench.turn()
        assert bench.of(peer)[:2] == [(event_kinds.TEXT, b"before"), (event_kinds.FAILING, 1002)]
        assert close_code_of_failure(bench, peer) == 1002
        bench.pass_ms(1500)
        assert bench.of(peer)[2:] == [(event_kinds.CLOSED, Reason.PROTOCOL_ERROR)]


def test_s32_unmasked_continuation_frame_is_1002_and_its_message_is_not_delivered() -> None:
    """S32: the first fragment was masked, the continuation is not."""
    with rig() as bench:
        peer = bench.connect()
        peer.send(client_frame(TEXT, b"a", final=False) + b"\x80\x01b")
        bench.turn()
        assert not bench.messages(peer)
        assert close_code_of_failure(bench, peer) == 1002
