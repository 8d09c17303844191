"""Heartbeat, deadlines, the wheel and forgiven stalls, on the rig's clock."""

import pytest

from tests.support.frames import PING, PONG, TEXT, ServerFrame, client_frame, client_header, close_code
from tests.support.reactor_rig import Peer, Rig, rig
from tests.support.tcp_rig import HEAD
from wsgate.errors import WsgateError
from wsgate.reactor import Reactor, Settings, event_kinds
from wsgate.reasons import Reason

TICK_MS = 250


def pong_all(peer: Peer) -> int:
    """Answer the pings that came; how many."""
    pings = [frame for frame in peer.frames() if frame.opcode == PING]
    for ping in pings:
        peer.send(client_frame(PONG, ping.payload))
    return len(pings)


def until_ping(bench: Rig, peer: Peer) -> int:
    """Let time pass until a ping comes; how long that took."""
    start_ms = bench.now_ms
    while not any(frame.opcode == PING for frame in peer.frames()):
        bench.pass_ms(TICK_MS)
        assert bench.now_ms - start_ms < 60_000
    return bench.now_ms - start_ms


# --- heartbeat --------------------------------------------------------------------------------------


def test_a_silent_peer_is_pinged_and_given_up() -> None:
    """Ping after the interval, 4008 after the pong deadline, with the Close that says so."""
    with rig() as bench:
        peer = bench.connect()
        assert 12_500 <= until_ping(bench, peer) <= 25_250
        start_ms = bench.now_ms
        while not bench.of(peer):
            bench.pass_ms(TICK_MS)
        assert 10_000 - TICK_MS <= bench.now_ms - start_ms <= 10_250
        assert bench.of(peer) == [(event_kinds.FAILING, 4008)]
        assert close_code(peer.frames()[-1]) == 4008


def test_pongs_keep_a_connection_for_ever() -> None:
    """Ten minutes of nothing but pongs: about one ping an interval, and no end."""
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
def test_any_byte_is_life(life: bytes) -> None:
    """Whatever arrives after a ping answers it, a byte of an unfinished header too."""
    with rig(Settings(message_timeout_ms=0)) as bench:
        peer = bench.connect()
        until_ping(bench, peer)
        bench.pass_ms(9_500)
        peer.send(life)
        bench.pass_ms(9_750)
        assert not [event for event in bench.of(peer) if event[0] == event_kinds.FAILING]


def test_bytes_of_one_frame_hold_back_the_ping() -> None:
    """A peer that sends a frame slowly is alive: it is not pinged at all."""
    with rig(Settings(message_timeout_ms=0)) as bench:
        peer = bench.connect()
        peer.send(client_header(TEXT, 10_000, mask=bytes(4)))
        for _ in range(60):
            peer.send(b"a")
            bench.pass_ms(5_000)
        assert bench.count("pings_out") == 0
        assert not bench.of(peer)


def test_an_unread_byte_is_life() -> None:
    """The pong lies in the socket when the deadline is looked at: it counts, although nobody polled."""
    with rig() as bench:
        peer = bench.connect()
        until_ping(bench, peer)
        bench.pass_ms(9_750)
        peer.send(client_frame(PONG))
        bench.pass_ms(500, turns=False)
        bench.turn()
        assert not bench.of(peer)


def test_no_heartbeat() -> None:
    """Interval 0: no ping ever."""
    with rig(Settings(ping_interval_ms=0)) as bench:
        peer = bench.connect()
        bench.pass_ms(200_000)
        assert peer.frames() == []
        assert bench.count("timers") <= 200 // 25, "what the kernel holds is asked for all the same"


def test_a_crowd_is_not_pinged_in_one_tick() -> None:
    """800 connected in one instant: pings are spread over half the interval, at most 4 % a tick."""
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
        # A second round: they stay spread.
        per_tick = []
        for _ in range(100):
            bench.pass_ms(TICK_MS)
            for peer in crowd:
                pong_all(peer)
            per_tick.append(bench.count("pings_out") - before)
            before += per_tick[-1]
        assert max(per_tick) <= 64
        assert not bench.events


def test_a_crowd_heard_at_once_is_spread_too() -> None:
    """After all spoke in one instant, their next pings come over several ticks."""
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
            bench.pass_ms(TICK_MS)  # with turns: a tick leaves timers to the next poll when its time is over
            worst = max(worst, bench.count("pings_out") - before)
            before = bench.count("pings_out")
        assert worst <= 800 // 4


def test_a_paused_connection_rests() -> None:
    """We do not listen, so silence proves nothing: no ping, no end; both come back with reading."""
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


def test_paused_between_ping_and_pong() -> None:
    """Paused for a minute while its pong lies unread: alive after it."""
    with rig() as bench:
        peer = bench.connect()
        until_ping(bench, peer)
        bench.reactor.pause_reading(peer.conn)
        peer.send(client_frame(PONG))
        bench.pass_ms(60_000)
        bench.reactor.resume_reading(peer.conn)
        bench.pass_ms(5_000)
        assert not bench.of(peer)


def test_a_ping_that_could_not_leave_is_not_held_against_the_peer() -> None:
    """The ping waits 9.5 s behind a message for a full socket; who gets it then has time to answer."""
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


def test_idle_means_no_message() -> None:
    """4003 after the idle limit; pongs do not count, messages do, fragments do not."""
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


def test_idle_is_exact_to_a_tick() -> None:
    """Not before its time, and at the next tick."""
    with rig(Settings(idle_timeout_ms=20_000)) as bench:
        peer = bench.connect()
        bench.pass_ms(19_750)
        assert not bench.of(peer)
        bench.pass_ms(250)
        assert bench.of(peer) == [(event_kinds.FAILING, 4003)]


def test_a_paused_connection_is_not_idle() -> None:
    """Its message lies unread because we paused it: that is our silence, not the peer's."""
    with rig(Settings(idle_timeout_ms=20_000, ping_interval_ms=0)) as bench:
        peer = bench.connect()
        bench.reactor.pause_reading(peer.conn)
        peer.send(client_frame(TEXT, b"said in time"))
        bench.pass_ms(30_000)
        assert not bench.of(peer)
        bench.reactor.resume_reading(peer.conn)
        bench.pass_ms(1_000)
        assert bench.of(peer) == [(event_kinds.TEXT, b"said in time")]


def test_a_paused_connection_is_not_late_with_its_message() -> None:
    """The rest of its message lies unread because we paused it: no 1008 for that."""
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


def test_application_deadline() -> None:
    """Set, moved later, moved earlier, cleared."""
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


def test_application_deadline_in_the_past() -> None:
    """Due at the next tick."""
    with rig() as bench:
        peer = bench.connect()
        bench.reactor.set_deadline(peer.conn, 1, 4001)
        bench.pass_ms(250)
        assert bench.of(peer) == [(event_kinds.FAILING, 4001)]


def test_application_deadline_set_before_the_upgrade() -> None:
    """Set while deciding, it holds afterwards."""
    with rig() as bench:
        peer = bench.connect(upgraded=False)
        peer.send(HEAD)
        bench.turn()
        assert bench.reactor.set_deadline(peer.conn, bench.now_ms + 5_000, 4001)
        bench.reactor.upgrade(peer.conn, b"101")
        bench.pass_ms(5_000)
        assert bench.of(peer)[1:] == [(event_kinds.FAILING, 4001)]


@pytest.mark.parametrize("code", [999, 1006, 5000, 70_000, -1])
def test_application_deadline_with_a_code_no_server_may_send(code: int) -> None:
    """As `close`: RFC 6455 section 7.4 holds for a Close after a deadline too."""
    with rig() as bench:
        peer = bench.connect()
        with pytest.raises((ValueError, OverflowError)):
            bench.reactor.set_deadline(peer.conn, bench.now_ms + 100, code)


@pytest.mark.parametrize("code", [999, 1006, 70_000, -1])
def test_a_bye_for_a_code_no_server_may_send(code: int) -> None:
    """As above: it could never be used, or for another code than was meant."""
    with rig() as bench, pytest.raises((ValueError, OverflowError)):
        bench.reactor.set_bye(code, [b"bye"])


def test_upgrade_timeout() -> None:
    """Nobody decided: 503 after ten seconds, `CLOSED` with its reason, and the late decision is refused."""
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


def test_the_head_deadline_ends_with_the_head() -> None:
    """Head after 9 s, decision after 9 more: neither deadline ends it."""
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
def test_r27_no_timer_is_late_by_more_than_a_tick(start_ms: int) -> None:
    """R27: over a long run with deadlines of all lengths: never early, never over one tick (250 ms) late.

    A caller's ticks fall anywhere between the steps of the wheel.
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


def test_r27_ticks_that_come_late_do_not_add_up() -> None:
    """R27: ticks every 300 ms instead of 250 for an hour: still no deadline later than the tick after it."""
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


def test_beyond_the_wheel() -> None:
    """Deadlines longer than a turn of the wheel (128 s), to the tick."""
    with rig(Settings(ping_interval_ms=0)) as bench:
        for duration_ms in (127_750, 128_000, 128_250, 300_000, 1_000_000):
            peer = bench.connect()
            bench.reactor.set_deadline(peer.conn, bench.now_ms + duration_ms, 4001)
            bench.pass_ms(duration_ms - 250)
            assert not bench.of(peer)
            bench.pass_ms(250)
            assert bench.of(peer) == [(event_kinds.FAILING, 4001)]


@pytest.mark.parametrize("pause_ms", [127_000, 127_500, 128_000, 128_500, 600_000])
def test_no_tick_for_a_whole_turn_of_the_wheel(pause_ms: int) -> None:
    """Polls, but no ticks, for that long: then what is due ends at once, and the rest in its time."""
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


def test_lazy_timers_are_not_looked_at_for_nothing() -> None:
    """A connection that talks costs one look per interval, not one per message."""
    with rig() as bench:
        peer = bench.connect()
        for _ in range(1000):
            peer.send(client_frame(TEXT, b"m"))
            bench.pass_ms(TICK_MS)
        assert bench.count("timers") <= 20


# --- stalls -----------------------------------------------------------------------------------------


def test_a_late_tick_beside_polls_is_no_time_machine() -> None:
    """Polls went on while the tick was late by over 2 s: no deadline may come closer by that."""
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


def test_a_stall_is_forgiven_for_every_deadline_that_judges_a_peer() -> None:
    """Ten seconds nobody called: head, decision, idle, message, forgiven deadline, pong: all move by it."""
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


def test_a_second_stall_within_a_minute_counts() -> None:
    """Once a minute: the second one is not forgiven, the one after the minute is."""
    with rig(Settings(idle_timeout_ms=100_000, ping_interval_ms=0)) as bench:
        peer = bench.connect()
        for pause_ms, forgiven in ((10_000, 1), (10_000, 1), (10_000, 1), (61_000, 2)):
            bench.now_ms += pause_ms
            bench.reactor.tick(bench.now_ms)
            bench.turn()
            assert bench.count("stalls_forgiven") == forgiven
        assert not bench.of(peer)
        # 250 ms of each forgiven one were due anyway: 20.5 s count so far.
        bench.pass_ms(79_250)
        assert not bench.of(peer)
        bench.pass_ms(500)
        assert bench.of(peer) == [(event_kinds.FAILING, 4003)]


def test_two_seconds_are_no_stall() -> None:
    """A tick late by exactly 2 s is late, not a stall; a millisecond more is."""
    with rig() as bench:
        bench.now_ms += 2_250
        bench.reactor.tick(bench.now_ms)
        assert bench.count("stalls_forgiven") == 0
        bench.now_ms += 2_251
        bench.reactor.tick(bench.now_ms)
        assert bench.count("stalls_forgiven") == 1


@pytest.mark.parametrize("call", ["poll", "flush", "adopt", "tick"])
def test_a_stall_is_seen_by_whatever_is_called_first(call: str) -> None:
    """The loop wakes in any order; whoever is first finds the deadlines moved already."""
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
def test_a_clock_below_zero_is_refused(now_ms: int) -> None:
    """No monotonic clock is negative; the wheel counts from 0."""
    with pytest.raises((WsgateError, ValueError, OverflowError)):
        Reactor(now_ms=now_ms)
