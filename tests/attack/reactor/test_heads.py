"""Send hostile request heads through listener, reactor and `wsgate.handshake` (S11, S12, S13, S15, S16)."""

import pytest

from tests.support.frames import PING, TEXT, ServerFrame, client_frame
from tests.support.reactor_rig import Peer, Rig, rig
from tests.support.tcp_rig import HEAD, Hall, hall, is_readable, settle
from wsgate.reactor import ListenerOptions, Settings, event_kinds
from wsgate.reactor.event_kinds import Event
from wsgate.reasons import Reason

CAP = 16 * 1024


def answer_of(bench: Rig, peer: Peer) -> bytes:
    """Return the whole HTTP answer; the stream must end after it without a reset."""

    def is_over() -> bool:
        while not peer.ended:
            try:
                piece = peer.sock.recv(65536)
            except BlockingIOError:
                return False
            peer.received += piece
            peer.ended = not piece
        return True

    settle(bench, is_over)
    return bytes(peer.received)


def status_of(bench: Rig, peer: Peer) -> int:
    """Return the status of the answer, and check that the answer is complete."""
    answer = answer_of(bench, peer)
    head, separator, body = answer.partition(b"\r\n\r\n")
    assert separator, answer
    lines = head.split(b"\r\n")
    assert b"Connection: close" in lines or any(line.startswith(b"Connection: close") for line in lines)
    length = next(int(line[16:]) for line in lines if line.startswith(b"Content-Length: "))
    assert len(body) == length
    return int(lines[0].split(b" ")[1])


def status_at_once(data: bytes, settings: Settings | None = None) -> int:
    """Return the status of the answer to these bytes; the clock does not move."""
    with hall(settings) as bench:
        peer = bench.dial(data)
        status = status_of(bench, peer)
        assert sum(kind == event_kinds.OPEN for kind, _, _ in bench.events) <= 1
        peer.close()
        settle(bench, lambda: bench.count("now_connections") == 0)
        assert sum(bench.held().values()) == bench.held()["frame"]
        return status


# --- S11 --------------------------------------------------------------------------------------------


def deadline_of(bench: Hall, peer: Peer, drip: bytes) -> int:
    """Return the milliseconds from accept to 408 for a peer that sends `drip` a byte per tick."""
    settle(bench, lambda: bench.count("now_head") == 1)
    start_ms = bench.now_ms
    place = 0
    while bench.count("now_head"):
        bench.pass_ms(250)
        assert bench.now_ms - start_ms < 60_000
        if place < len(drip) and bench.count("now_head"):
            peer.sock.sendall(drip[place : place + 1])
            place += 1
            bench.turn()
    taken_ms = bench.now_ms - start_ms
    assert status_of(bench, peer) == 408
    return taken_ms


@pytest.mark.parametrize("drip", [b"", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100], ids=["silent", "trickle"])
def test_s11_silent_or_trickling_head_is_408_ten_seconds_after_accept(drip: bytes) -> None:
    """S11: a byte every 250 ms does not move the deadline."""
    with hall() as bench:
        assert 10_000 <= deadline_of(bench, bench.dial(), drip) <= 10_250
        assert bench.events == []
        assert bench.count("ended_head_timeout") == 0
        bench.peers[0].close()
        settle(bench, lambda: bench.count("ended_head_timeout") == 1)
        assert bench.count("now_connections") == 0


def test_s11_byte_just_before_the_head_deadline_does_not_extend_it() -> None:
    """S11: the last byte of the head follows the deadline and is too late."""
    with hall() as bench:
        peer = bench.dial(HEAD[:-2])
        settle(bench, lambda: bench.count("now_head") == 1)
        bench.pass_ms(9_750)
        peer.send(HEAD[-2:-1])
        bench.pass_ms(250)
        peer.send(HEAD[-1:])
        assert status_of(bench, peer) == 408
        assert bench.events == []


def test_s11_head_completed_just_before_the_deadline_is_upgraded_and_stays_open() -> None:
    """S11: the deadline of the head ends with the 101."""
    with hall() as bench:
        peer = bench.dial(HEAD[:-1])
        bench.pass_ms(9_750)
        peer.send(HEAD[-1:])
        bench.meet(peer)
        bench.pass_ms(5_000)
        assert bench.count("now_open") == 1


def test_s11_deferred_accept_with_a_silent_peer_does_not_spin() -> None:
    """S11: the kernel keeps a silent peer back for about a second, before the reactor may accept it."""
    with hall(options=ListenerOptions(defer_accept_s=1)) as bench:
        bench.dial()
        bench.dial(HEAD)
        settle(bench, lambda: bench.count("now_open") == 1)
        # The kernel decides if and when the silent peer is accepted; the reactor must not spin until then.
        bench.turn()
        assert bench.count("now_head") <= 1


# --- S12 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + b"X-Header: endless\r\n" * 4000, 431),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 65536, 431),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 65536 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 10_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"a:b\r\n" * 3000 + b"\r\n", 431),
        (b"GET /" + b"a" * 40_000, 431),
        (b"GET /" + b"a" * 12_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
        (b"\x00" * 20_000, 431),
        (b"\r\n" * 10_000, 400),
    ],
    ids=["endless", "64k", "64k-whole", "10000", "3000", "uri-endless", "uri", "nul", "empty-lines"],
)
def test_s12_too_large_head_is_refused_at_once_within_the_memory_limit(data: bytes, status: int) -> None:
    """S12: the answer arrives whole, although the peer sent more than the reactor reads."""
    with hall() as bench:
        peer = bench.dial()
        settle(bench, lambda: bench.count("now_head") == 1)
        view = memoryview(data)
        peak = 0
        while view and not peer.ended:
            try:
                view = view[peer.sock.send(view[:4000]) :]
            except BlockingIOError:
                pass
            except ConnectionError:
                break
            bench.step()
            peak = max(peak, bench.held()["partial"])
            peer.receive()
        assert peak <= 3 * CAP
        assert status_of(bench, peer) == status
        assert sum(kind == event_kinds.OPEN for kind, _, _ in bench.events) <= 1


def sized_head(size: int) -> bytes:
    """Return a valid head of exactly this many bytes."""
    return HEAD[:-2] + b"X: " + b"a" * (size - len(HEAD) - 5) + b"\r\n\r\n"


@pytest.mark.parametrize("cut", [1000, 16_383, 20_000])
@pytest.mark.parametrize(("size", "is_taken"), [(CAP - 1, True), (CAP, True), (CAP + 1, False)])
def test_s12_head_of_16_kib_is_taken_and_one_byte_more_is_431(size: int, is_taken: bool, cut: int) -> None:
    """S12: the cuts of the stream do not matter."""
    head = sized_head(size)
    assert len(head) == size
    with rig(on_event=None) as bench:
        peer = bench.connect(upgraded=False)
        for start in range(0, size, cut):
            peer.send(head[start : start + cut])
            bench.turn()
        if is_taken:
            assert bench.of(peer) == [(event_kinds.OPEN, head)]
        else:
            assert bench.of(peer) == []
            assert peer.receive().startswith(b"HTTP/1.1 431 ")


def test_s12_head_sent_byte_by_byte_yields_one_open_with_the_whole_head() -> None:
    """S12: the number of receives stays in proportion to the bytes."""
    with rig() as bench:
        peer = bench.connect(upgraded=False)
        for index in range(len(HEAD)):
            peer.send(HEAD[index : index + 1])
            bench.turn()
        assert bench.of(peer) == [(event_kinds.OPEN, HEAD)]
        assert bench.count("opens") == 1
        assert bench.count("receives") <= 3 * len(HEAD) + 3
        assert bench.held()["partial"] == 0


def test_s12_peer_is_closed_without_an_answer_where_the_configured_one_is_empty() -> None:
    """S12, S11: a head that is too large, a head that is too slow, and a decision that does not come."""
    settings = Settings(head_too_large_response=b"", head_timeout_response=b"", upgrade_timeout_response=b"")
    with rig(settings) as bench:
        large, slow, undecided = (bench.connect(upgraded=False) for _ in range(3))
        large.send(b"a" * 20_000)
        undecided.send(HEAD)
        bench.turn()
        bench.pass_ms(10_250)
        for peer in (large, slow, undecided):
            assert peer.receive() == b""
            assert peer.ended
        assert bench.of(undecided) == [(event_kinds.OPEN, HEAD), (event_kinds.CLOSED, Reason.UPGRADE_TIMEOUT)]
        assert bench.of(large) == bench.of(slow) == []
        assert bench.count("now_connections") == 0


# --- S13, S15, S16 ----------------------------------------------------------------------------------


def with_line(line: bytes) -> bytes:
    return HEAD[:-2] + line + b"\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        with_line(b"X: a\r\n folded"),
        with_line(b"X: a\r\n\tfolded"),
        with_line(b" X: leading"),
        with_line(b"X : space before the colon"),
        with_line(b"X\t: tab before the colon"),
        with_line(b"X: nul\x00"),
        with_line(b"X: vt\x0b"),
        with_line(b"X: ff\x0c"),
        with_line(b"X: fs\x1c"),
        with_line(b"X: gs\x1d"),
        with_line(b"X: rs\x1e"),
        with_line(b"X: del\x7f"),
        with_line(b"X: bare\rreturn"),
        with_line(b"X: bare\nAuthorization: smuggled"),
        with_line(b"X\xc3\xa9: utf-8 in the name"),
        with_line(b"X\x85: next line in the name"),
        with_line(b"no colon"),
        with_line(b": no name"),
        HEAD.replace(b"\r\n", b"\n"),
        HEAD.replace(b"GET /chat", b"GET /ch at"),
        HEAD.replace(b"GET /chat", b"GET /ch\x0bat"),
        HEAD.replace(b"GET /chat", b"GET /ch\x00at"),
        b"\r\n" + HEAD,
        b"\n" + HEAD,
        b"\n",
        b"\n\n\n\n",
        HEAD.replace(b"HTTP/1.1", b"HTTP/1.1\x0b"),
        with_line(b"Content-Length: 10"),
        with_line(b"Content-Length: 0\r\nContent-Length: 1"),
        with_line(b"Transfer-Encoding: chunked"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_s15_folded_lines_control_characters_and_bodies_are_400_at_once(data: bytes) -> None:
    """S13, S15, S16: no clock is needed for the answer; bare line feeds are refused too."""
    assert status_at_once(data) == 400


def test_s15_byte_85_in_a_header_value_is_not_a_line_end() -> None:
    r"""S15: \x85 in a value is allowed (RFC 9110 obs-text) and splits nothing."""
    seen: list[bytes] = []

    def look(bench: Rig, event: Event) -> None:
        if event[0] == event_kinds.OPEN and isinstance(event[2], bytes):
            seen.append(event[2])
            bench.reactor.refuse(
                event[1], b"HTTP/1.1 403 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )

    with hall(on_event=look) as bench:
        assert status_of(bench, bench.dial(with_line(b"X: a\x85Authorization: b"))) == 403
    assert seen == [with_line(b"X: a\x85Authorization: b")]


@pytest.mark.parametrize("data", [b"a: b\r\n" * 5000, b"Cookie: a=b\r\n" * 5000])
def test_s13_header_repeated_five_thousand_times_is_431(data: bytes) -> None:
    """S13: the head is larger than the limit."""
    assert status_at_once(b"GET / HTTP/1.1\r\n" + data + b"\r\n") == 431


def test_s16_frames_behind_the_head_are_delivered_only_after_the_101() -> None:
    """S16: the reactor parses no frame before the upgrade."""
    with rig() as bench:
        peer = bench.connect(upgraded=False)
        peer.send(HEAD + client_frame(TEXT, b"early") + client_frame(PING, b"p"))
        bench.turn()
        peer.send(client_frame(TEXT, b"later"))
        bench.turn()
        assert bench.of(peer) == [(event_kinds.OPEN, HEAD)]
        assert bench.reactor.upgrade(peer.conn, b"101!")
        bench.turn()
        assert bench.messages(peer) == [b"early", b"later"]
        received = peer.receive()
        assert received[:4] == b"101!"
        assert peer.reader.receive_data(received[4:]) == [ServerFrame(10, b"p")]


def test_s16_second_request_behind_the_head_is_read_as_a_frame_and_is_1002() -> None:
    """S16: a pipelined request causes no second `OPEN`."""
    with hall() as bench:
        peer = bench.dial(HEAD + HEAD)
        settle(bench, lambda: peer.ended or (bool(peer.receive()) and peer.ended))
        assert [event[0] for event in bench.events] == [event_kinds.OPEN, event_kinds.FAILING]
        head, _, rest = bytes(peer.received).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert rest == b"\x88\x02\x03\xea"


def test_s16_frames_behind_a_refused_head_are_discarded_and_the_answer_arrives() -> None:
    """S16: the head has a wrong version, so the answer is 426."""
    assert status_at_once(HEAD.replace(b"13", b"12") + client_frame(TEXT, b"x") * 500) == 426


@pytest.mark.parametrize("size", [1, 16_000, 200_000])
def test_s16_bytes_sent_while_the_handshake_is_undecided_stay_in_the_kernel(size: int) -> None:
    """S16: they use no memory of the reactor and do not make it spin."""
    with rig() as bench:
        peer = bench.connect(upgraded=False)
        peer.send(HEAD)
        bench.turn()
        peer.send(bytes(size))
        bench.turn()
        assert bench.held()["partial"] == 0
        assert not bench.reactor.more
        assert not is_readable(bench)
