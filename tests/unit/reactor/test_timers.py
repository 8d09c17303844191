"""Check heartbeat, deadlines, the timer wheel and forgiven stalls with a clock that the test moves."""

import pytest

from tests.support.frames import PING, PONG, TEXT, ServerFrame, client_frame, client_header, close_code
from tests.support.reactor_rig import Peer, Rig, rig
from tests.support.tcp_rig import HEAD
from wsgate.errors import WsgateError
from wsgate.reactor import Reactor, Settings, event_kinds
from wsgate.reasons import Reason

TICK_MS = 250


def pong_all(peer: Peer) -> int:
    """Answer the pings that arrived; return their number."""
    pings = [frame for frame in peer.frames() if frame.opcode == PING]
    for ping in pings:
        peer.send(client_frame(PONG, ping.payload))
    return len(pings)


def until_ping(bench: Rig, peer: Peer) -> int:
    """Let time pass until a ping arrives; return the time that passed in ms."""
    start_ms = bench.now_ms
    while not any(frame.opcode == PING for frame in peer.frames()):
        bench.pass_ms(TICK_MS)
        assert bench.now_ms - start_ms < 60_000
    return bench.now_ms - start_ms


# --- heartbeat --------------------------------------------------------------------------------------


def test_silent_peer_is_pinged_and_closed_with_4008_after_the_pong_timeout() -> None:
    with rig() as bench:
        peer = bench.connect()
        assert 12_500 <= until_ping(bench, peer) <= 25_250
        start_ms = bench.now_ms
        while not bench.of(peer):
            bench.pass_ms(TICK_MS)
        assert 10_000 - TICK_MS <= bench.now_ms - start_ms <= 10_250
        assert bench.of(peer) == [(event_kinds.FAILING, 4008)]
        assert close_code(peer.frames()[-1]) == 4008


def test_connection_that_only_answers_pings_stays_open_for_ten_minutes() -> None:
    """The reactor sends about one ping in each interval."""
    with rig() as bench:
        peer = bench.connect()
        pings = 0
        for _ in range(2400):
            bench.pass_ms(TICK_MS)
            pings += pong_all(peer)
        assert not bench.of(peer)
        assert 23 <= pings <= 28


@pytest.mark.parametrize(
    "life",
    [
        client_frame(TEXT, b"m"),
        client_frame(PONG, b"unsolicited"),
        client_frame(PING),
        client_header(TEXT, 10_000),
        b"\x81",
    ],
)
def test_any_byte_after_a_ping_meets_the_pong_timeout(life: bytes) -> None:
    """Even one byte of an unfinished frame header counts."""
    with rig(Settings(message_timeout_ms=0)) as bench:
        peer = bench.connect()
        until_ping(bench, peer)
        bench.pass_ms(9_500)
        peer.send(life)
        bench.pass_ms(9_750)
        assert not [event for event in bench.of(peer) if event[0] == event_kinds.FAILING]


def test_peer_that_sends_one_frame_slowly_is_never_pinged() -> None:
    with rig(Settings(message_timeout_ms=0)) as bench:
        peer = bench.connect()
        peer.send(client_header(TEXT, 10_000, mask=bytes(4)))
        for _ in range(60):
            peer.send(b"a")
            bench.pass_ms(5_000)
        assert bench.count("pings_out") == 0
        assert not bench.of(peer)


def test_pong_still_unread_in_the_socket_meets_the_pong_timeout() -> None:
    """The reactor checks the socket at the deadline, although no poll has read the pong."""
    with rig() as bench:
        peer = bench.connect()
        until_ping(bench, peer)
        bench.pass_ms(9_750)
        peer.send(client_frame(PONG))
        bench.pass_ms(500, turns=False)
        bench.turn()
        assert not bench.of(peer)


def test_ping_interval_zero_sends_no_ping() -> None:
    with rig(Settings(ping_interval_ms=0)) as bench:
        peer = bench.connect()
        bench.pass_ms(200_000)
        assert peer.frames() == []
        assert bench.count("timers") <= 200 // 25, "a timer still reads the queue size of the socket"


def test_pings_of_800_connections_made_at_once_are_spread_over_many_ticks() -> None:
    """The pings are spread over half the interval, at most 4 % of them in one tick."""
    with rig() as bench:
        crowd = [bench.connect() for _ in range(800)]
        per_tick = []
        before = 0
        for _ in range(101):
            bench.pass_ms(TICK_MS)
            for peer in crowd:
                pong_all(peer)
            per_tick.append(bench.count("pings_out") - before)
            before += per_tick[-1]
        assert before == 800
        assert sum(1 for count in per_tick if count) >= 45
        assert max(per_tick) <= 32
        # In a second round the pings stay spread.
        per_tick = []
        for _ in range(100):
            bench.pass_ms(TICK_MS)
            for peer in crowd:
                pong_all(peer)
            per_tick.append(bench.count("pings_out") - before)
            before += per_tick[-1]
        assert max(per_tick) <= 64
        assert not bench.events


def test_pings_are_spread_after_800_connections_send_at_the_same_time() -> None:
    with rig() as bench:
        crowd = [bench.connect() for _ in range(800)]
        for _ in range(6):
            bench.pass_ms(5_000)
            for peer in crowd:
                pong_all(peer)
        for peer in crowd:
            peer.send(client_frame(TEXT, b"all at once"))
        bench.turn()
        before = bench.count("pings_out")
        assert before >= 800
        worst = 0
        for _ in range(101):
            bench.pass_ms(TICK_MS)  # with turns: a tick that has used its time leaves timers to the next poll
            worst = max(worst, bench.count("pings_out") - before)
            before = bench.count("pings_out")
        assert worst <= 800 // 4


def test_paused_connection_gets_no_ping_and_no_pong_timeout_until_resume() -> None:
    """The reactor does not read, so silence proves nothing."""
    with rig() as bench:
        peer = bench.connect()
        bench.reactor.pause_reading(peer.conn)
        bench.pass_ms(200_000)
        assert bench.count("pings_out") == 0
        assert not bench.of(peer)
        bench.reactor.resume_reading(peer.conn)
        assert until_ping(bench, peer) <= 25_250
        bench.pass_ms(10_500)
        assert bench.of(peer) == [(event_kinds.FAILING, 4008)]


def test_pong_left_unread_during_a_pause_of_a_minute_counts_after_resume() -> None:
    with rig() as bench:
        peer = bench.connect()
        until_ping(bench, peer)
        bench.reactor.pause_reading(peer.conn)
        peer.send(client_frame(PONG))
        bench.pass_ms(60_000)
        bench.reactor.resume_reading(peer.conn)
        bench.pass_ms(5_000)
        assert not bench.of(peer)


def test_pong_timeout_starts_when_a_delayed_ping_is_written() -> None:
    """The ping waits 9.5 s behind a message for a full socket. The peer then has the whole time to answer."""
    settings = Settings(outbox_age_ms=60_000, write_timeout_ms=60_000)
    with rig(settings) as bench:
        due_ms = until_ping(bench, bench.connect())
    with rig(settings) as bench:
        peer = bench.connect(send_buffer_bytes=4096)
        bench.pass_ms(due_ms - TICK_MS)
        bench.reactor.send(peer.conn, bytes(60_000))
        bench.pass_ms(TICK_MS)
        assert bench.count("pings_out") == 1
        assert bench.count("now_blocked") == 1
        bench.pass_ms(9_500)
        pings = 0
        while not pings:
            pings = sum(frame.opcode == PING for frame in peer.frames())
            bench.turn()
        bench.pass_ms(1_000)
        assert not bench.of(peer)
        peer.send(client_frame(PONG))
        bench.pass_ms(10_000)
        assert not bench.of(peer)


# --- idle, application, upgrade ---------------------------------------------------------------------


def test_idle_timeout_counts_whole_messages_but_no_pongs_or_fragments() -> None:
    with rig(Settings(idle_timeout_ms=20_000, message_timeout_ms=0)) as bench:
        talker, ponger, starter = bench.connect(), bench.connect(), bench.connect()
        for _ in range(5):
            talker.send(client_frame(TEXT, b"m"))
            ponger.send(client_frame(PONG))
            starter.send(client_frame(TEXT if not _ else 0, b"f", final=False))
            bench.pass_ms(5_000)
        assert bench.of(talker) == [(event_kinds.TEXT, b"m")] * 5
        for peer in (ponger, starter):
            assert bench.of(peer)[0] == (event_kinds.FAILING, 4003)
        assert bench.count("ended_idle_timeout") == 2


def test_idle_timeout_closes_at_the_first_tick_at_its_limit() -> None:
    with rig(Settings(idle_timeout_ms=20_000)) as bench:
        peer = bench.connect()
        bench.pass_ms(19_750)
        assert not bench.of(peer)
        bench.pass_ms(250)
        assert bench.of(peer) == [(event_kinds.FAILING, 4003)]


def test_time_of_a_pause_does_not_count_for_the_idle_timeout() -> None:
    """The message lies unread because the application paused reading."""
    with rig(Settings(idle_timeout_ms=20_000, ping_interval_ms=0)) as bench:
        peer = bench.connect()
        bench.reactor.pause_reading(peer.conn)
        peer.send(client_frame(TEXT, b"said in time"))
        bench.pass_ms(30_000)
        assert not bench.of(peer)
        bench.reactor.resume_reading(peer.conn)
        bench.pass_ms(1_000)
        assert bench.of(peer) == [(event_kinds.TEXT, b"said in time")]


def test_time_of_a_pause_does_not_count_for_the_message_timeout() -> None:
    """The rest of the message lies unread because the application paused reading."""
    frame = client_frame(TEXT, b"said in time")
    with rig(Settings(ping_interval_ms=0)) as bench:
        peer = bench.connect()
        peer.send(frame[:9])
        bench.turn()
        bench.reactor.pause_reading(peer.conn)
        peer.send(frame[9:])
        bench.pass_ms(31_000)
        assert not bench.of(peer)
        bench.reactor.resume_reading(peer.conn)
        bench.pass_ms(1_000)
        assert bench.of(peer) == [(event_kinds.TEXT, b"said in time")]


def test_application_deadline_can_be_set_moved_both_ways_and_cleared() -> None:
    with rig(Settings(ping_interval_ms=0)) as bench:
        first, later, earlier, cleared = (bench.connect() for _ in range(4))
        start_ms = bench.now_ms
        for peer in (first, later, earlier, cleared):
            assert bench.reactor.set_deadline(peer.conn, start_ms + 10_000, 4001)
        bench.reactor.set_deadline(later.conn, start_ms + 20_000, 4123)
        bench.reactor.set_deadline(earlier.conn, start_ms + 5_000, 4002)
        bench.reactor.set_deadline(cleared.conn, 0, 4001)
        ended: dict[int, tuple[int, bytes | int]] = {}
        while bench.now_ms < start_ms + 200_000:
            for kind, conn, value in bench.pass_ms(TICK_MS):
                if kind == event_kinds.FAILING:
                    ended[conn] = bench.now_ms - start_ms, value
        assert ended == {first.conn: (10_000, 4001), later.conn: (20_000, 4123), earlier.conn: (5_000, 4002)}
        assert bench.of(first)[-1] == (event_kinds.CLOSED, Reason.TOKEN_EXPIRED)


def test_application_deadline_in_the_past_ends_the_connection_at_the_next_tick() -> None:
    with rig() as bench:
        peer = bench.connect()
        bench.reactor.set_deadline(peer.conn, 1, 4001)
        bench.pass_ms(250)
        assert bench.of(peer) == [(event_kinds.FAILING, 4001)]


def test_application_deadline_set_before_the_upgrade_applies_after_the_upgrade() -> None:
    with rig() as bench:
        peer = bench.connect(upgraded=False)
        peer.send(HEAD)
        bench.turn()
        assert bench.reactor.set_deadline(peer.conn, bench.now_ms + 5_000, 4001)
        bench.reactor.upgrade(peer.conn, b"101")
        bench.pass_ms(5_000)
        assert bench.of(peer)[1:] == [(event_kinds.FAILING, 4001)]


@pytest.mark.parametrize("code", [999, 1006, 5000, 70_000, -1])
def test_application_deadline_with_an_unsendable_close_code_raises_an_error(code: int) -> None:
    """Source: RFC 6455 section 7.4, as for `close`."""
    with rig() as bench:
        peer = bench.connect()
        with pytest.raises((ValueError, OverflowError)):
            bench.reactor.set_deadline(peer.conn, bench.now_ms + 100, code)


@pytest.mark.parametrize("code", [999, 1006, 70_000, -1])
def test_goodbye_for_an_unsendable_close_code_raises_an_error(code: int) -> None:
    """Such a goodbye could never be used."""
    with rig() as bench, pytest.raises((ValueError, OverflowError)):
        bench.reactor.set_bye(code, [b"bye"])


def test_undecided_handshake_is_answered_503_after_ten_seconds() -> None:
    """The late decision is then refused."""
    with rig() as bench:
        peer = bench.connect(upgraded=False)
        peer.send(HEAD)
        bench.turn()
        bench.pass_ms(9_750)
        assert peer.receive() == b""
        bench.pass_ms(500)
        assert peer.receive().startswith(b"HTTP/1.1 503 ")
        assert not bench.reactor.upgrade(peer.conn, b"101")
        bench.pass_ms(1_500)
        assert bench.of(peer) == [(event_kinds.OPEN, HEAD), (event_kinds.CLOSED, Reason.UPGRADE_TIMEOUT)]


def test_head_timeout_stops_when_the_head_is_complete() -> None:
    """The head arrives after 9 s and the decision 9 s later, and neither deadline ends the connection."""
    with rig(Settings(ping_interval_ms=0)) as bench:
        peer = bench.connect(upgraded=False)
        bench.pass_ms(9_000)
        peer.send(HEAD)
        bench.pass_ms(9_000)
        assert bench.reactor.upgrade(peer.conn, b"101")
        bench.pass_ms(60_000)
        assert bench.of(peer) == [(event_kinds.OPEN, HEAD)]
        assert peer.receive() == b"101"


# --- wheel ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start_ms", [0, 1_000_000, 1_000_001, 1_000_125, 1_000_249, 2**32 - 30_000])
def test_r27_no_deadline_fires_early_or_more_than_one_tick_late(start_ms: int) -> None:
    """R27: this holds for deadlines of all lengths in a long run.

    The ticks of the caller fall anywhere between the steps of the wheel.
    """
    with rig(Settings(ping_interval_ms=0), now_ms=start_ms) as bench:
        due: dict[int, int] = {}
        for index in range(400):
            peer = bench.connect()
            due[peer.conn] = start_ms + 1 + index * 977
            bench.reactor.set_deadline(peer.conn, due[peer.conn], 4001)
        worst = 0
        while due:
            bench.now_ms += TICK_MS
            bench.reactor.tick(bench.now_ms)
            for kind, conn, _ in bench.step():
                if kind == event_kinds.FAILING:
                    late_ms = bench.now_ms - due.pop(conn)
                    assert late_ms >= 0
                    worst = max(worst, late_ms)
            assert bench.now_ms < start_ms + 500_000
        assert worst <= TICK_MS


def test_r27_delays_of_late_ticks_do_not_accumulate() -> None:
    """R27: with ticks every 300 ms instead of 250 for an hour, no deadline fires later than the next tick."""
    with rig(Settings(ping_interval_ms=0)) as bench:
        for round_ in range(120):
            peer = bench.connect()
            due_ms = bench.now_ms + 30_000 + round_
            bench.reactor.set_deadline(peer.conn, due_ms, 4001)
            while not bench.of(peer):
                bench.now_ms += 300
                bench.reactor.tick(bench.now_ms)
                bench.turn()
            assert 0 <= bench.now_ms - due_ms <= 550
            peer.close()


def test_deadlines_longer_than_a_turn_of_the_wheel_fire_at_their_tick() -> None:
    """A turn of the wheel is 128 s."""
    with rig(Settings(ping_interval_ms=0)) as bench:
        for duration_ms in (127_750, 128_000, 128_250, 300_000, 1_000_000):
            peer = bench.connect()
            bench.reactor.set_deadline(peer.conn, bench.now_ms + duration_ms, 4001)
            bench.pass_ms(duration_ms - 250)
            assert not bench.of(peer)
            bench.pass_ms(250)
            assert bench.of(peer) == [(event_kinds.FAILING, 4001)]


@pytest.mark.parametrize("pause_ms", [127_000, 127_500, 128_000, 128_500, 600_000])
def test_first_tick_after_a_long_gap_fires_exactly_the_deadlines_that_are_due(pause_ms: int) -> None:
    """Polls continue in the gap, which is about one turn of the wheel or longer."""
    with rig(Settings(ping_interval_ms=0)) as bench:
        durations_ms = [1_000, 60_000, pause_ms - 250, pause_ms + 1_000, pause_ms + 130_000]
        peers = [bench.connect() for _ in durations_ms]
        for peer, duration_ms in zip(peers, durations_ms, strict=True):
            bench.reactor.set_deadline(peer.conn, bench.now_ms + duration_ms, 4001)
        for _ in range(pause_ms // 500):
            bench.now_ms += 500
            bench.turn()
        assert not any(bench.of(peer) for peer in peers)
        bench.reactor.tick(bench.now_ms)
        bench.turn()
        for wait_ms, ended in ((0, 3), (750, 3), (500, 4), (128_500, 4), (500, 5)):
            bench.pass_ms(wait_ms)
            assert [(event_kinds.FAILING, 4001) in bench.of(peer) for peer in peers] == [True] * ended + [
                False
            ] * (5 - ended)
        assert bench.count("stalls_forgiven") == 0


def test_timer_of_an_active_connection_runs_once_in_each_interval() -> None:
    """The timer does not run once for each message."""
    with rig() as bench:
        peer = bench.connect()
        for _ in range(1000):
            peer.send(client_frame(TEXT, b"m"))
            bench.pass_ms(TICK_MS)
        assert bench.count("timers") <= 20


# --- stalls -----------------------------------------------------------------------------------------


def test_late_tick_between_polls_shortens_no_deadline() -> None:
    """Polls continue while the tick is more than 2 s late."""
    settings = Settings(idle_timeout_ms=60_000)
    with rig(settings) as bench:
        peer = bench.connect()
        bench.pass_ms(1_000)
        for step_ms in (2_200, 100, 1_000, 3_000, 500):
            bench.now_ms += step_ms
            peer.send(client_frame(TEXT, b"m") + client_frame(PING))
            bench.turn()
        bench.reactor.tick(bench.now_ms)
        bench.pass_ms(1_000)
        assert {kind for kind, _ in bench.of(peer)} == {event_kinds.TEXT}
        assert ServerFrame(PONG, b"") in peer.frames()


def test_stall_of_twelve_seconds_moves_every_deadline_of_the_peers() -> None:
    """The deadlines of head, upgrade, idle time, message and a forgiven application deadline move."""
    settings = Settings(
        head_timeout_ms=5_000,
        upgrade_timeout_ms=5_000,
        idle_timeout_ms=15_000,
        message_timeout_ms=5_000,
    )
    with rig(settings) as bench:
        head, deciding = bench.connect(upgraded=False), bench.connect(upgraded=False)
        deciding.send(HEAD)
        idle, midway, dated = bench.connect(), bench.connect(), bench.connect()
        midway.send(client_header(TEXT, 5))
        bench.reactor.set_deadline(dated.conn, bench.now_ms + 5_000, 4002, is_forgiven=True)
        bench.turn()
        bench.pass_ms(1_000)
        bench.now_ms += 12_000
        bench.reactor.tick(bench.now_ms)
        bench.turn()
        assert [event[0] for event in bench.events] == [event_kinds.OPEN]
        assert bench.count("stalls_forgiven") == 1
        bench.pass_ms(3_500)
        assert [event[0] for event in bench.events] == [event_kinds.OPEN]
        bench.pass_ms(750)
        assert head.receive().startswith(b"HTTP/1.1 408 ")
        assert deciding.receive().startswith(b"HTTP/1.1 503 ")
        assert bench.of(midway)[0] == (event_kinds.FAILING, 1008)
        assert bench.of(dated)[0] == (event_kinds.FAILING, 4002)
        assert not bench.of(idle)


def test_second_stall_within_a_minute_is_not_forgiven() -> None:
    """A stall after the minute is forgiven again."""
    with rig(Settings(idle_timeout_ms=100_000, ping_interval_ms=0)) as bench:
        peer = bench.connect()
        for pause_ms, forgiven in ((10_000, 1), (10_000, 1), (10_000, 1), (61_000, 2)):
            bench.now_ms += pause_ms
            bench.reactor.tick(bench.now_ms)
            bench.turn()
            assert bench.count("stalls_forgiven") == forgiven
        assert not bench.of(peer)
        # Of each forgiven stall 250 ms were due anyway, so 20.5 s count until now.
        bench.pass_ms(79_250)
        assert not bench.of(peer)
        bench.pass_ms(500)
        assert bench.of(peer) == [(event_kinds.FAILING, 4003)]


def test_tick_late_by_two_seconds_is_no_stall_and_one_ms_more_is() -> None:
    with rig() as bench:
        bench.now_ms += 2_250
        bench.reactor.tick(bench.now_ms)
        assert bench.count("stalls_forgiven") == 0
        bench.now_ms += 2_251
        bench.reactor.tick(bench.now_ms)
        assert bench.count("stalls_forgiven") == 1


@pytest.mark.parametrize("call", ["poll", "flush", "adopt", "tick"])
def test_first_call_after_a_stall_moves_the_deadlines_whichever_call_comes_first(call: str) -> None:
    with rig(Settings(idle_timeout_ms=5_000)) as bench:
        peer = bench.connect()
        bench.now_ms += 30_000
        if call == "adopt":
            bench.connect()
        else:
            getattr(bench.reactor, call)(bench.now_ms)
        bench.reactor.tick(bench.now_ms)
        bench.turn()
        assert bench.count("stalls_forgiven") == 1
        assert not bench.of(peer)


@pytest.mark.parametrize("now_ms", [-1, -1_000_000, -(2**63)])
def test_negative_clock_raises_an_error(now_ms: int) -> None:
    """A monotonic clock is never negative; the wheel counts from 0."""
    with pytest.raises((WsgateError, ValueError, OverflowError)):
        Reactor(now_ms=now_ms)
