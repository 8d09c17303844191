"""Check the end of connections: order of events and replies, the close handshake, lingering, goodbyes."""

import contextlib
import socket

import pytest

from tests.support.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    ServerFrame,
    client_close,
    client_frame,
    close_code,
)
from tests.support.reactor_rig import Peer, Rig, rig
from tests.support.tcp_rig import HEAD, is_readable
from wsgate.reactor import Settings, event_kinds
from wsgate.reactor.event_kinds import Event
from wsgate.reasons import Reason


def echo(bench: Rig, event: Event) -> None:
    kind, conn, value = event
    if kind in (event_kinds.TEXT, event_kinds.BINARY) and isinstance(value, bytes):
        bench.reactor.send(conn, value, kind)


def frames_until_end(bench: Rig, peer: Peer) -> list[ServerFrame]:
    bench.turn()
    frames = peer.frames()
    assert peer.ended
    assert peer.reader.pending == b""
    return frames


# --- order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize(
    ("ending", "kind", "value", "reason"),
    [
        (client_close(1000, b"bye"), event_kinds.PEER_CLOSED, 1000, Reason.PEER_CLOSED),
        (client_close(None), event_kinds.PEER_CLOSED, 1005, Reason.PEER_CLOSED),
        (client_close(4999), event_kinds.PEER_CLOSED, 4999, Reason.PEER_CLOSED),
        (client_close(1006), event_kinds.FAILING, 1002, Reason.PROTOCOL_ERROR),
        (client_frame(CLOSE, b"\x03"), event_kinds.FAILING, 1002, Reason.PROTOCOL_ERROR),
        (client_close(1000, b"\xff"), event_kinds.FAILING, 1007, Reason.INVALID_UTF8),
        (client_frame(TEXT, b"\xff"), event_kinds.FAILING, 1007, Reason.INVALID_UTF8),
        (client_frame(3), event_kinds.FAILING, 1002, Reason.PROTOCOL_ERROR),
        (client_frame(BINARY, b"", rsv=4), event_kinds.FAILING, 1002, Reason.PROTOCOL_ERROR),
        (client_frame(CONTINUATION), event_kinds.FAILING, 1002, Reason.PROTOCOL_ERROR),
    ],
)
def test_replies_are_written_before_the_close_and_closed_is_the_last_event(
    ending: bytes, kind: int, value: int, reason: Reason, is_split: bool
) -> None:
    """A fault is reported once; what follows the fault is ignored."""
    with rig(on_event=echo) as bench:
        peer = bench.connect()
        stream = client_frame(TEXT, b"one") + client_frame(BINARY, b"two") + ending
        stream += client_frame(TEXT, b"ignored") + b"\xff" * 20
        for piece in [stream[i : i + 1] for i in range(len(stream))] if is_split else [stream]:
            peer.send(piece)
            bench.step()
        frames = frames_until_end(bench, peer)
        assert frames[:2] == [ServerFrame(TEXT, b"one"), ServerFrame(BINARY, b"two")]
        assert [close_code(frame) for frame in frames[2:]] == [value]
        peer.close()
        bench.turn()
        assert bench.of(peer) == [
            (event_kinds.TEXT, b"one"),
            (event_kinds.BINARY, b"two"),
            (kind, value),
            (event_kinds.CLOSED, reason),
        ]
        assert bench.count(f"ended_{reason.name.lower()}") == 1
        assert bench.reactor.inspect(peer.conn) is None
        assert not bench.reactor.send(peer.conn, b"stale")


def test_300_replies_are_written_before_the_close_that_answers_the_peer() -> None:
    """One write does not take all of the replies."""
    with rig(Settings(outbox_frames=1000), on_event=echo) as bench:
        peer = bench.connect()
        peer.send(b"".join(client_frame(TEXT, b"%03d" % index) for index in range(300)) + client_close())
        frames = frames_until_end(bench, peer)
        assert [frame.payload for frame in frames[:-1]] == [b"%03d" % index for index in range(300)]
        assert close_code(frames[-1]) == 1000


def test_no_message_publication_pong_or_ping_is_written_after_our_close() -> None:
    with rig() as bench:
        peer = bench.connect()
        bench.reactor.subscribe(peer.conn, b"c")
        assert bench.reactor.close(peer.conn, 4000, b"done")
        assert not bench.reactor.send(peer.conn, b"late")
        assert bench.reactor.publish(b"c", [b"late"]) == 0
        assert not bench.reactor.close(peer.conn, 4001)
        peer.send(client_frame(PING, b"late"))
        bench.pass_ms(9_000)
        assert peer.frames() == [ServerFrame(CLOSE, b"\x0f\xa0done")]


def test_messages_received_after_our_close_are_discarded_until_the_close_of_the_peer() -> None:
    """Source: RFC 6455 section 7.1.2."""
    with rig() as bench:
        peer = bench.connect()
        bench.reactor.close(peer.conn, 1001)
        bench.turn()
        peer.send(client_frame(TEXT, b"x" * 5000) + client_frame(PING) + client_frame(BINARY, b"y")[:4])
        bench.turn()
        peer.send(client_frame(BINARY, b"y")[4:] + client_frame(TEXT, b"\xff") + client_close(1001))
        bench.turn()
        assert not bench.of(peer)
        assert bench.count("now_lingering") == 1
        peer.close()
        bench.turn()
        assert bench.of(peer) == [(event_kinds.CLOSED, Reason.APPLICATION)]
        assert bench.held()["partial"] == 0


def test_our_close_between_two_fragments_discards_the_message_and_frees_its_bytes() -> None:
    with rig() as bench:
        peer = bench.connect()
        peer.send(client_frame(TEXT, b"a" * 5000, final=False))
        bench.turn()
        bench.reactor.close(peer.conn, 1000)
        bench.turn()
        peer.send(client_frame(CONTINUATION, b"b") + client_close())
        bench.turn()
        assert bench.count("now_lingering") == 1
        assert bench.held()["partial"] == 0


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", client_close(1006), client_frame(CONTINUATION)])
def test_invalid_frame_after_our_close_leads_to_linger_and_keeps_the_first_reason(garbage: bytes) -> None:
    with rig() as bench:
        peer = bench.connect()
        bench.reactor.close(peer.conn, 1000)
        bench.turn()
        peer.send(garbage)
        bench.turn()
        assert bench.count("now_lingering") + bench.count("now_closing") == 1
        bench.pass_ms(1_500)
        assert bench.count("now_lingering") == 0
        bench.pass_ms(10_000)
        assert bench.of(peer) == [(event_kinds.CLOSED, Reason.APPLICATION)]


@pytest.mark.parametrize("unread", [b"", client_frame(TEXT, b"unread"), client_frame(TEXT, b"m") * 200])
def test_closing_a_paused_connection_still_reads_the_close_of_the_peer(unread: bytes) -> None:
    """No reset follows."""
    with rig() as bench:
        peer = bench.connect(tcp=True)
        if len(unread) > 100:
            # The connection is paused while messages are buffered.
            peer.send(unread)
            bench.events += bench.reactor.poll(bench.now_ms)
            unread = b""
        bench.reactor.pause_reading(peer.conn)
        peer.send(unread)
        bench.turn()
        bench.reactor.close(peer.conn, 1000)
        bench.turn()
        assert peer.frames() == [ServerFrame(CLOSE, b"\x03\xe8")]
        peer.send(client_close())
        for _ in range(4):
            bench.pass_ms(250)
        assert bench.count("now_closing") == 0, "the peer's Close was not read"
        peer.receive()
        assert peer.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        bench.pass_ms(1_000)
        assert bench.of(peer)[-1] == (event_kinds.CLOSED, Reason.APPLICATION)


def test_connection_is_reset_after_the_write_timeout_if_the_peer_never_answers_our_close() -> None:
    """Until then the epoll descriptor is not readable, so the loop does not spin."""
    with rig() as bench:
        peer = bench.connect(tcp=True)
        bench.reactor.close(peer.conn, 1000)
        bench.turn()
        assert not is_readable(bench)
        bench.pass_ms(9_750)
        assert not bench.of(peer)
        bench.pass_ms(500)
        assert bench.of(peer) == [(event_kinds.CLOSED, Reason.APPLICATION)]


def test_crossing_closes_send_one_close_frame_and_report_one_event() -> None:
    with rig() as bench:
        peer = bench.connect()
        peer.send(client_close(1001))
        bench.reactor.close(peer.conn, 1000)
        frames = frames_until_end(bench, peer)
        assert [close_code(frame) for frame in frames] == [1000]
        peer.close()
        bench.turn()
        assert bench.of(peer) == [(event_kinds.CLOSED, Reason.APPLICATION)]


def test_close_at_the_first_message_of_a_batch_sends_one_close_frame() -> None:
    """Later messages of the batch were received before the close.

    No fault of the batch is reported twice.
    """

    def close_at_once(bench: Rig, event: Event) -> None:
        if event[0] == event_kinds.TEXT:
            bench.reactor.close(event[1], 4000)

    for ending in (b"", client_close(), b"\xff\xff"):
        with rig(on_event=close_at_once) as bench:
            peer = bench.connect()
            peer.send(client_frame(TEXT, b"a") + client_frame(TEXT, b"b") + ending)
            bench.turn()
            codes = [close_code(frame) for frame in peer.frames() if frame.opcode == CLOSE]
            assert len(codes) == 1
            peer.close()
            bench.turn()
            kinds = [kind for kind, _ in bench.of(peer)]
            assert kinds.count(event_kinds.CLOSED) == 1
            assert kinds[-1] == event_kinds.CLOSED
            assert kinds.count(event_kinds.FAILING) + kinds.count(event_kinds.PEER_CLOSED) <= 1


def test_abort_at_the_first_event_of_a_batch_reports_closed_once_and_last() -> None:
    def abort_at_once(bench: Rig, event: Event) -> None:
        if event[0] != event_kinds.CLOSED:
            bench.reactor.abort(event[1])

    for ending in (b"", client_close(), b"\xff\xff", client_frame(TEXT, b"\xff")):
        with rig(on_event=abort_at_once) as bench:
            peer = bench.connect()
            peer.send(client_frame(TEXT, b"a") + client_frame(TEXT, b"b") + ending)
            bench.turn()
            kinds = [kind for kind, _ in bench.of(peer)]
            assert kinds.count(event_kinds.CLOSED) == 1
            assert kinds[-1] == event_kinds.CLOSED
            assert bench.count("now_connections") == 0


@pytest.mark.parametrize("upgraded", [True, False])
def test_peer_that_leaves_before_its_head_causes_no_event(upgraded: bool) -> None:
    """A connection that was adopted as upgraded gets `CLOSED`."""
    with rig() as bench:
        peer = bench.connect(upgraded=upgraded)
        peer.close()
        bench.turn()
        assert bench.of(peer) == ([(event_kinds.CLOSED, Reason.PEER_GONE)] if upgraded else [])


@pytest.mark.parametrize("size", [1, 4000, 300_000])
def test_refused_handshake_gets_the_whole_response_and_then_the_end_of_stream(size: int) -> None:
    """The peer has sent more bytes than its head."""
    with rig() as bench:
        peer = bench.connect(upgraded=False, tcp=True)
        peer.send(HEAD + b"x" * 5000)
        bench.turn()
        assert bench.reactor.refuse(peer.conn, b"a" * size)
        got = b""
        for _ in range(500):
            bench.turn()
            got += peer.receive()
            if peer.ended:
                break
        assert got == b"a" * size
        assert not bench.reactor.refuse(peer.conn, b"again")
        peer.close()
        bench.pass_ms(250)
        assert bench.of(peer)[1:] == [(event_kinds.CLOSED, Reason.HEAD_REFUSED)]


# --- lingering --------------------------------------------------------------------------------------


def lingering(bench: Rig, *, tcp: bool = False) -> Peer:
    peer = bench.connect(tcp=tcp)
    peer.send(client_close())
    bench.turn()
    state = bench.reactor.inspect(peer.conn)
    assert state is not None
    assert bench.count("now_lingering") >= 1
    return peer


def test_linger_of_a_silent_peer_ends_after_one_second() -> None:
    with rig() as bench:
        peer = lingering(bench)
        bench.pass_ms(750)
        assert not bench.of(peer)[1:]
        bench.pass_ms(500)
        assert bench.of(peer)[1:] == [(event_kinds.CLOSED, Reason.PEER_CLOSED)]


def test_linger_ends_after_256_kib_although_the_peer_keeps_sending() -> None:
    with rig() as bench:
        peer = lingering(bench)
        before = bench.count("bytes_in")
        for _ in range(1000):
            peer.send(bytes(16_384))
            bench.turn()
            if bench.of(peer)[1:]:
                break
        taken = bench.count("bytes_in") - before
        assert 256 * 1024 <= taken <= 256 * 1024 + 2 * 16_384


@pytest.mark.parametrize("limit", [0, 16, 65_536, 1 << 19])
def test_linger_byte_limit_is_exceeded_by_one_receive_at_most(limit: int) -> None:
    """The limit holds for small pieces as well as for large ones."""
    for piece in (100, 16_384):
        with rig(Settings(linger_limit_bytes=limit, linger_timeout_ms=1_000_000)) as bench:
            peer = lingering(bench)
            before = bench.count("bytes_in")
            for _ in range(limit // piece * 2 + 10):
                peer.send(bytes(piece))
                bench.turn()
                if bench.of(peer)[1:]:
                    break
            assert bench.of(peer)[1:] == [(event_kinds.CLOSED, Reason.PEER_CLOSED)]
            assert bench.count("bytes_in") - before <= limit + 16_384


def test_connections_beyond_the_limit_of_lingering_sockets_are_closed_at_once() -> None:
    with rig(Settings(linger_limit_sockets=3)) as bench:
        crowd = [bench.connect() for _ in range(10)]
        for peer in crowd:
            peer.send(client_close())
        bench.turn()
        assert bench.count("now_lingering") == 3
        assert bench.count("lingers_skipped") == 7
        assert [close_code(frame) for peer in crowd for frame in peer.frames()] == [1000] * 10
        assert Settings().linger_limit_sockets == 1000
        assert Settings().linger_timeout_ms == 1000
        assert Settings().linger_limit_bytes == 256 * 1024


def test_linger_lets_a_peer_that_keeps_sending_read_its_close_without_a_reset() -> None:
    with rig() as bench:
        peer = bench.connect(tcp=True)
        peer.send(b"\xff\xff" + bytes(100_000))
        bench.turn()
        peer.send(bytes(50_000))
        bench.turn()
        frames = peer.frames()
        assert [close_code(frame) for frame in frames] == [1002]
        assert peer.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


SLOW = Settings(outbox_bytes=400_000, write_timeout_ms=10_000, ping_interval_ms=0)
SLOW_AND_FEW = Settings(
    outbox_bytes=400_000, write_timeout_ms=10_000, ping_interval_ms=0, linger_limit_sockets=3
)


def close_for_slowness(bench: Rig) -> Peer:
    """Return a peer that was closed for slowness and has not read its Close, which the kernel holds."""
    peer = bench.connect(tcp=True, send_buffer_bytes=65_536)
    lingering = bench.count("now_lingering")
    while bench.reactor.send(peer.conn, bytes(50_000)):
        bench.turn()
    for _ in range(100):
        bench.turn()
        if bench.count("now_lingering") > lingering:
            break
        peer.sock.recv(10_000)
    assert bench.reactor.bytes_held()["kernel_queued"] > 0
    return peer


def codes(peer: Peer) -> list[int]:
    """Return the code of the Close at the end of all bytes that the peer can read."""
    rest = b""
    with contextlib.suppress(BlockingIOError):
        while piece := peer.sock.recv(1 << 16):
            rest += piece
    return [4010] if rest.endswith(b"\x88\x02" + (4010).to_bytes(2)) else []


def test_peer_closed_for_slowness_may_read_its_close_within_the_write_timeout() -> None:
    """The linger timeout of one second applies to other reasons."""
    with rig(SLOW) as bench:
        peer = close_for_slowness(bench)
        bench.pass_ms(9_000)
        assert bench.count("now_lingering") == 1
        assert codes(peer) == [4010]
        bench.pass_ms(2_000)
        assert bench.of(peer)[1:] == [(event_kinds.CLOSED, Reason.SLOW_CONSUMER)]


def test_peer_closed_for_slowness_is_reset_after_the_write_timeout_without_a_read() -> None:
    with rig(SLOW) as bench:
        peer = close_for_slowness(bench)
        bench.pass_ms(10_500)
        assert bench.of(peer)[1:] == [(event_kinds.CLOSED, Reason.SLOW_CONSUMER)]
        assert bench.reactor.bytes_held()["kernel_queued"] == 0
        assert bench.reactor.bytes_held()["kernel_orphans"] == 0


def test_slow_peers_linger_for_one_second_when_half_the_linger_places_are_taken() -> None:
    with rig(SLOW_AND_FEW) as bench:
        crowd = [close_for_slowness(bench) for _ in range(2)]
        bench.pass_ms(1_500)
        assert bench.count("now_lingering") == 1  # the first to end made room for the other
        assert bench.count("lingers_skipped") == 0
        assert sum(bench.of(peer)[1:] == [(event_kinds.CLOSED, Reason.SLOW_CONSUMER)] for peer in crowd) == 1


def test_pong_is_written_before_the_close_that_answers_the_peer() -> None:
    with rig() as bench:
        peer = bench.connect()
        peer.send(client_frame(PING, b"p") + client_close())
        assert [frame.opcode for frame in frames_until_end(bench, peer)] == [PONG, CLOSE]


# --- goodbyes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(message_rate_per_s=1), b"message_rate"),
        (Settings(byte_rate_per_s=1), b"byte_rate"),
    ],
)
def test_p9_two_reasons_with_one_close_code_send_different_goodbyes(
    settings: Settings, expected: bytes
) -> None:
    with rig(settings) as bench:
        bench.reactor.set_bye(4029, [b"message_rate"], reason=Reason.MESSAGE_RATE)
        bench.reactor.set_bye(4029, [b"byte_rate"], reason=Reason.BYTE_RATE)
        peer = bench.connect()
        peer.send(client_frame(TEXT, b"ab") * 2)
        frames = frames_until_end(bench, peer)
        assert [frame.payload for frame in frames[:-1]] == [expected]
        assert close_code(frames[-1]) == 4029


@pytest.mark.parametrize("is_general_first", [False, True])
def test_goodbye_of_the_reason_is_sent_rather_than_that_of_its_code(is_general_first: bool) -> None:
    with rig(Settings(message_rate_per_s=1)) as bench:
        byes = [(b"any", 0), (b"rate", int(Reason.MESSAGE_RATE)), (b"other", int(Reason.BYTE_RATE))]
        for text, reason in byes if is_general_first else reversed(byes):
            bench.reactor.set_bye(4029, [text], reason=reason)
        peer = bench.connect()
        peer.send(client_frame(TEXT, b"ab") * 2)
        assert [frame.payload for frame in frames_until_end(bench, peer)[:-1]] == [b"rate"]


@pytest.mark.parametrize("reason", [-1, 255])
def test_goodbye_for_an_unknown_reason_raises_an_error(reason: int) -> None:
    with rig() as bench, pytest.raises((ValueError, OverflowError)):
        bench.reactor.set_bye(4029, [b"bye"], reason=reason)
