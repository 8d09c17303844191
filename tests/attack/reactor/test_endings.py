"""End connections in every state: peers that vanish, half-close or never read (S27, S28)."""

import socket
import struct
from collections.abc import Callable

import pytest

from tests.support.frames import BINARY, TEXT, client_close, client_frame, client_header
from tests.support.reactor_rig import Peer, Rig, rig
from tests.support.tcp_rig import HEAD, Hall, hall, is_readable, open_descriptors, reset, settle
from wsgate.reactor import GateLimits, Settings, event_kinds
from wsgate.reasons import Reason

REFUSED = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


# --- functions that bring a connection into each state ----------------------------------------------


def silent(bench: Hall) -> Peer:
    peer = bench.dial()
    settle(bench, lambda: bench.count("now_head") == 1)
    return peer


def half_a_head(bench: Hall) -> Peer:
    peer = bench.dial(HEAD[:30])
    settle(bench, lambda: bench.held()["partial"] > 0)
    return peer


def undecided(bench: Hall) -> Peer:
    bench.on_event = None
    peer = bench.dial(HEAD)
    settle(bench, lambda: bench.count("now_deciding") == 1)
    peer.conn = bench.events[-1][1]
    return peer


def undecided_and_talking(bench: Hall) -> Peer:
    peer = undecided(bench)
    peer.send(client_frame(TEXT, b"early"))
    bench.turn()
    return peer


def opened(bench: Hall) -> Peer:
    return bench.meet(bench.dial(HEAD, receive_buffer_bytes=4096))


def inside_a_frame(bench: Hall) -> Peer:
    peer = opened(bench)
    peer.send(client_header(BINARY, 1000) + bytes(10))
    settle(bench, lambda: bench.held()["partial"] > 0)
    return peer


def inside_a_header(bench: Hall) -> Peer:
    peer = opened(bench)
    peer.send(client_header(BINARY, 1000)[:5])
    settle(bench, lambda: bench.held()["partial"] > 0)
    return peer


def paused(bench: Hall) -> Peer:
    peer = opened(bench)
    bench.reactor.pause_reading(peer.conn)
    return peer


def paused_with_unread_input(bench: Hall) -> Peer:
    peer = paused(bench)
    peer.send(client_frame(TEXT, b"unread"))
    bench.turn()
    return peer


def blocked(bench: Hall) -> Peer:
    peer = opened(bench)
    bench.reactor.send(peer.conn, bytes(400_000))
    settle(bench, lambda: bench.count("now_blocked") == 1)
    return peer


def blocked_over_half(bench: Hall) -> Peer:
    peer = opened(bench)
    bench.reactor.send(peer.conn, bytes(900_000))
    settle(bench, lambda: bench.count("now_blocked") == 1)
    peer.send(client_frame(TEXT, b"unread"))
    bench.turn()
    return peer


def closing(bench: Hall) -> Peer:
    peer = opened(bench)
    bench.reactor.close(peer.conn, 1000)
    settle(bench, lambda: bool(peer.receive()))
    return peer


def closing_and_blocked(bench: Hall) -> Peer:
    peer = blocked(bench)
    bench.reactor.close(peer.conn, 1000)
    bench.turn()
    return peer


def failed_and_blocked(bench: Hall) -> Peer:
    peer = blocked(bench)
    peer.send(b"\xff\xff")
    settle(bench, lambda: bench.count("now_closing") == 1)
    return peer


def lingering(bench: Hall) -> Peer:
    peer = opened(bench)
    peer.send(b"\xff\xff")
    settle(bench, lambda: bench.count("now_lingering") == 1)
    return peer


def answered_with_no(bench: Hall) -> Peer:
    peer = undecided(bench)
    bench.reactor.refuse(peer.conn, REFUSED)
    settle(bench, lambda: bench.count("now_lingering") == 1)
    return peer


def refused_at_the_gate(bench: Hall) -> Peer:
    bench.reactor.set_gate(GateLimits(connections=1, descriptors=1), REFUSED)
    peer = bench.dial()
    settle(bench, lambda: bench.count("now_draining") == 1)
    return peer


STATES: dict[str, Callable[[Hall], Peer]] = {
    state.__name__: state
    for state in (
        silent,
        half_a_head,
        undecided,
        undecided_and_talking,
        opened,
        inside_a_frame,
        inside_a_header,
        paused,
        paused_with_unread_input,
        blocked,
        blocked_over_half,
        closing,
        closing_and_blocked,
        failed_and_blocked,
        lingering,
        answered_with_no,
        refused_at_the_gate,
    )
}

# The reactor does not read in these states, so it does not see a half-close until it reads or the state ends.
NOT_READING = {
    "undecided",
    "undecided_and_talking",
    "paused",
    "paused_with_unread_input",
    "blocked_over_half",
    "closing_and_blocked",
    "failed_and_blocked",
}
# A FIN also stays unseen behind unread bytes: the kernel reports no HUP before our own side is shut.
FIN_UNSEEN = NOT_READING


ORPHANS_MS = 2_250
"""Time after which the kernel has discarded the data that a closed peer did not take."""


def is_clean(bench: Rig) -> bool:
    return bench.count("now_connections") == 0 and bench.count("now_draining") == 0


def assert_quiet(bench: Rig) -> None:
    """Assert that nothing is left to do and that no event loop would be woken; a spin would show in both."""
    bench.turn()
    assert not bench.reactor.more
    assert not is_readable(bench)


def assert_given_back(bench: Rig, descriptors: int) -> None:
    assert_quiet(bench)
    assert open_descriptors() <= descriptors
    if bench.held()["kernel_orphans"]:  # the kernel still tries to send what the peer has not taken
        bench.pass_ms(ORPHANS_MS)
    held = bench.held()
    assert sum(held.values()) == held["frame"]
    for _, conn, _ in bench.events:
        assert sum(event[:2] == (event_kinds.CLOSED, conn) for event in bench.events) == 1
    if bench.events:
        assert bench.events[-1][0] == event_kinds.CLOSED


@pytest.mark.parametrize("state", STATES)
def test_s27_reset_in_any_state_returns_everything_without_a_timer(state: str) -> None:
    """S27: nothing spins, and memory and descriptors return at once.

    The exception is a handshake that is not decided in its own batch: the reactor watches it from the next
    tick on.
    """
    with hall() as bench:
        descriptors = open_descriptors()
        peer = STATES[state](bench)
        reset(peer.sock)
        if state in ("undecided", "undecided_and_talking"):
            bench.pass_ms(250)
        settle(bench, lambda: is_clean(bench))
        assert_given_back(bench, descriptors)


@pytest.mark.parametrize("state", STATES)
def test_s27_fin_in_any_state_returns_everything_at_once_or_at_its_deadline(state: str) -> None:
    """S27: at once where the reactor reads, otherwise at the deadline of the state; nothing spins."""
    with hall() as bench:
        descriptors = open_descriptors()
        peer = STATES[state](bench)
        peer.close()
        if state in FIN_UNSEEN:
            assert_quiet(bench)
            if state.startswith("paused"):
                bench.reactor.resume_reading(peer.conn)
            bench.pass_ms(12_000)
        settle(bench, lambda: is_clean(bench))
        assert_given_back(bench, descriptors)


@pytest.mark.parametrize("state", STATES)
def test_s27_half_close_in_any_state_ends_like_a_fin_although_the_peer_still_reads(state: str) -> None:
    """S27: the peer ends only its sending side, and nothing that the reactor sends makes it spin."""
    with hall() as bench:
        descriptors = open_descriptors()
        peer = STATES[state](bench)
        peer.sock.shutdown(socket.SHUT_WR)
        if state in NOT_READING:
            assert_quiet(bench)
            if state.startswith("paused"):
                bench.reactor.resume_reading(peer.conn)
            bench.pass_ms(22_000)
        settle(bench, lambda: is_clean(bench))
        peer.close()
        assert_given_back(bench, descriptors)


@pytest.mark.parametrize("state", STATES)
def test_s27_silent_peer_in_any_state_is_gone_within_52_s_without_a_spin(state: str) -> None:
    """S27: the peer neither sends nor closes; the deadlines of the states end the connection."""
    with hall() as bench:
        peer = STATES[state](bench)
        assert_quiet(bench)
        if state.startswith("paused"):
            bench.reactor.resume_reading(peer.conn)
        for _ in range(8):
            bench.pass_ms(6_500)
            assert_quiet(bench)
        assert is_clean(bench)


def test_s27_reset_between_the_failing_event_and_its_flush_still_ends_in_closed() -> None:
    """S27: the failure was announced, then the peer resets, and the Close is queued only after that."""
    with hall() as bench:
        peer = opened(bench)
        peer.send(b"\xff\xff")
        settle_announced(bench)
        reset(peer.sock)
        settle(bench, lambda: is_clean(bench))
        assert [event[0] for event in bench.events[1:]] == [event_kinds.FAILING, event_kinds.CLOSED]


def settle_announced(bench: Hall) -> None:
    """Poll without a flush until the failure is announced."""
    for _ in range(1000):
        bench.events += bench.reactor.poll(bench.now_ms)
        if bench.events[-1][0] == event_kinds.FAILING:
            return
    raise AssertionError("no failure was announced")


def test_s27_200_simultaneous_resets_close_every_connection_in_under_200_polls() -> None:
    """S27: 200 peers reset in one pass."""
    with hall() as bench:
        crowd = [bench.dial(HEAD) for _ in range(200)]
        settle(bench, lambda: bench.count("now_open") == 200)
        for peer in crowd:
            reset(peer.sock)
        polls = bench.count("polls")
        for _ in range(20):
            bench.step()
        settle(bench, lambda: is_clean(bench))
        assert bench.count("polls") - polls < 200
        assert sum(event[0] == event_kinds.CLOSED for event in bench.events) == 200


# --- S28 --------------------------------------------------------------------------------------------

WRITE_MS = 10_000
GRACE_MS = 2_000


def until_gone(bench: Rig, peer: Peer, most_ms: int) -> int:
    """Return the milliseconds until the descriptor of the connection is closed."""
    start_ms = bench.now_ms
    while bench.reactor.inspect(peer.conn) is not None:
        assert bench.now_ms - start_ms <= most_ms, bench.of(peer)
        bench.pass_ms(250)
    return bench.now_ms - start_ms


def stuck(bench: Rig, size: int = 300_000) -> Peer:
    """Connect a peer that never reads, with bytes queued behind its full socket."""
    peer = bench.connect(tcp=True, send_buffer_bytes=4096)
    bench.reactor.send(peer.conn, bytes(size))
    bench.turn()
    assert bench.count("now_blocked") == 1
    return peer


def test_s28_close_by_the_application_of_a_peer_that_does_not_read_ends_in_time() -> None:
    """S28: the peer takes nothing, so the hard close comes within the write deadline plus 2 s."""
    with rig(Settings(outbox_age_ms=60_000)) as bench:
        peer = stuck(bench)
        assert bench.reactor.close(peer.conn, 1000)
        until_gone(bench, peer, WRITE_MS + GRACE_MS)
        bench.turn()
        assert bench.of(peer) == [(event_kinds.CLOSED, Reason.APPLICATION)]
        assert bench.held() == {**bench.held(), "outbox": 0, "kernel_queued": 0}


def test_s28_peer_that_reads_a_little_does_not_move_the_deadline_of_its_close() -> None:
    """S28: the peer takes a few bytes per tick after the Close was queued."""
    with rig(Settings(outbox_age_ms=60_000)) as bench:
        peer = stuck(bench, 3_000_000 // 4)
        assert bench.reactor.close(peer.conn, 1000)
        start_ms = bench.now_ms
        while bench.reactor.inspect(peer.conn) is not None:
            bench.pass_ms(250)
            try:
                peer.sock.recv(3000)
            except OSError:
                break
            assert bench.now_ms - start_ms <= WRITE_MS + GRACE_MS


@pytest.mark.parametrize(
    ("settings", "due_ms", "reason"),
    [
        (Settings(idle_timeout_ms=5_000), 5_000, Reason.IDLE_TIMEOUT),
        (Settings(idle_timeout_ms=30_000), 10_000, Reason.WRITE_STALL),
        (Settings(outbox_age_ms=3_000), 3_000, Reason.OUTBOX_AGE),
        (Settings(write_timeout_ms=4_000), 4_000, Reason.WRITE_STALL),
        (Settings(write_timeout_ms=10_000, outbox_age_ms=20_000), 10_000, Reason.WRITE_STALL),
    ],
)
def test_s28_idle_age_and_stall_timeouts_close_a_peer_that_does_not_read(
    settings: Settings, due_ms: int, reason: Reason
) -> None:
    """S28: the connection is gone within the write deadline plus 2 s after the timeout was due."""
    with rig(settings) as bench:
        peer = stuck(bench)
        until_gone(bench, peer, due_ms + settings.write_timeout_ms + GRACE_MS)
        bench.turn()
        assert bench.of(peer)[-1] == (event_kinds.CLOSED, reason)
        assert bench.count("now_blocked") == 0


def test_s28_application_deadline_closes_a_peer_that_does_not_read() -> None:
    """S28: `set_deadline` with code 4001 has the same bound as the other timeouts."""
    with rig(Settings(outbox_age_ms=60_000)) as bench:
        peer = stuck(bench)
        bench.reactor.set_deadline(peer.conn, bench.now_ms + 5_000, 4001)
        until_gone(bench, peer, 5_000 + WRITE_MS + GRACE_MS)
        bench.turn()
        assert bench.of(peer) == [(event_kinds.FAILING, 4001), (event_kinds.CLOSED, Reason.TOKEN_EXPIRED)]


def test_s28_missing_pong_closes_a_peer_that_stopped_reading_after_the_ping() -> None:
    """S28: the socket was not full when the ping left; the peer neither reads nor sends after it."""
    with rig() as bench:
        peer = bench.connect(tcp=True, send_buffer_bytes=4096)
        start_ms = bench.now_ms
        while bench.count("pings_out") == 0:
            bench.pass_ms(250)
        bench.pass_ms(9_500)
        bench.reactor.send(peer.conn, bytes(300_000))
        until_gone(bench, peer, 2 * WRITE_MS + GRACE_MS)
        assert bench.now_ms - start_ms <= 25_000 + 10_000 + 2 * WRITE_MS + GRACE_MS


def test_s28_protocol_error_of_a_peer_that_does_not_read_ends_within_the_write_deadline() -> None:
    """S28: the Close with 1002 cannot leave either."""
    with rig(Settings(outbox_age_ms=60_000)) as bench:
        peer = stuck(bench)
        peer.send(b"\xff\xff")
        bench.turn()
        until_gone(bench, peer, WRITE_MS + GRACE_MS)
        bench.turn()
        assert bench.of(peer) == [(event_kinds.FAILING, 1002), (event_kinds.CLOSED, Reason.PROTOCOL_ERROR)]


def test_s28_unread_http_refusal_ends_within_the_write_deadline_with_its_reason() -> None:
    """S28: the HTTP answer is larger than the socket takes."""
    with rig() as bench:
        peer = bench.connect(tcp=True, upgraded=False, send_buffer_bytes=4096)
        peer.send(HEAD)
        bench.turn()
        assert bench.reactor.refuse(peer.conn, REFUSED + bytes(300_000))
        bench.turn()
        until_gone(bench, peer, WRITE_MS + GRACE_MS)
        bench.turn()
        assert bench.of(peer)[1:] == [(event_kinds.CLOSED, Reason.HEAD_REFUSED)]


def test_s28_hard_close_sends_a_reset_so_that_the_kernel_keeps_nothing() -> None:
    """S28: the socket of the peer is in the state TCP_CLOSE and has an error."""
    with rig() as bench:
        peer = stuck(bench)
        until_gone(bench, peer, WRITE_MS + GRACE_MS)
        info = struct.unpack_from("B", peer.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1))
        assert info[0] == 7  # TCP_CLOSE
        assert peer.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def test_s28_lingering_ends_after_a_second_when_the_peer_neither_reads_nor_closes() -> None:
    """S28: the peer completed the closing handshake and keeps its socket open."""
    with rig() as bench:
        peer = bench.connect(tcp=True)
        peer.send(client_close())
        bench.turn()
        assert bench.count("now_lingering") == 1
        until_gone(bench, peer, 1_250)
