"""Pause the gateway itself, with many connections: the pause must close none of them (R27)."""

import pytest

from tests.support.frames import PING, PONG, TEXT, client_frame
from tests.support.reactor_rig import Peer, Rig, rig
from tests.support.tcp_rig import raise_descriptors
from wsgate.reactor import Settings, event_kinds

CROWD = 6000


def answer_pings(peers: list[Peer]) -> int:
    answered = 0
    pong = client_frame(PONG)
    for peer in peers:
        try:
            data = peer.sock.recv(4096)
        except BlockingIOError:
            continue
        assert data == b"\x89\x00", "expected only a ping"
        peer.send(pong)
        answered += 1
    return answered


@pytest.mark.slow
def test_r27_stall_of_ten_seconds_closes_none_of_thousands_of_connections() -> None:
    """R27: the reactor is not called for ten seconds while some connections wait for their pong.

    The stall is forgiven once: every deadline is moved by ten seconds.
    """
    count = min(CROWD, raise_descriptors(2 * CROWD + 20) // 2)
    assert count >= 400
    with rig(Settings(idle_timeout_ms=300_000)) as bench:
        crowd = [bench.connect() for _ in range(count)]
        # In the middle of the first round of pings, half of the connections wait for their pong.
        bench.pass_ms(18_000)
        waiting = bench.count("pings_out")
        assert count // 4 < waiting < count
        bench.now_ms += 10_000
        # The loop runs again, and the pongs come only now.
        bench.reactor.tick(bench.now_ms)
        bench.turn()
        assert bench.count("stalls_forgiven") == 1
        assert not bench.events
        answer_pings(crowd)
        for _ in range(40):
            bench.pass_ms(250)
            answer_pings(crowd)
        assert not bench.events
        assert bench.count("now_open") == count
        # A second stall within the minute is not forgiven, and still closes no peer that has sent a byte.
        for peer in crowd:
            peer.send(client_frame(TEXT, b"here"))
        bench.now_ms += 36_000
        bench.reactor.tick(bench.now_ms)
        bench.turn()
        assert bench.count("stalls_forgiven") == 1
        assert {kind for kind, _, _ in bench.events} == {event_kinds.TEXT}
        assert bench.count("now_open") == count


def test_r27_dead_peer_is_closed_although_the_reactor_stalls_again_and_again() -> None:
    """R27: a stall is forgiven once a minute, so a peer that is gone is found in spite of stalls."""
    with rig() as bench:
        dead = bench.connect()
        for _ in range(6):
            bench.now_ms += 10_000
            bench.reactor.tick(bench.now_ms)
            bench.turn()
        assert bench.count("stalls_forgiven") == 1
        bench.pass_ms(15_000)
        assert bench.of(dead)[0] == (event_kinds.FAILING, 4008)


def test_r27_input_collected_during_a_stall_does_not_exceed_the_rate_limits() -> None:
    """R27: both peers send at half the allowed rate all the time, also during the stall of ten seconds."""
    settings = Settings(message_rate_per_s=10, control_rate_per_s=10, control_burst=20)
    with rig(settings) as bench:
        talker, pinger = bench.connect(), bench.connect()
        for second in range(11):
            if second == 10:
                # The reactor is not called for ten seconds, and both peers continue to send.
                for _ in range(10):
                    talker.send(client_frame(TEXT, b"m") * 5)
                    pinger.send(client_frame(PING) * 5)
                bench.now_ms += 10_000
                bench.reactor.tick(bench.now_ms)
                bench.turn()
                break
            talker.send(client_frame(TEXT, b"m") * 5)
            pinger.send(client_frame(PING) * 5)
            bench.pass_ms(1_000)
        assert bench.count("stalls_forgiven") == 1
        assert not [event for event in bench.events if event[0] != event_kinds.TEXT]


def heartbeat_load(bench: Rig, ticks: int, crowd: list[Peer]) -> list[int]:
    loads = []
    for _ in range(ticks):
        before = bench.count("pings_out")
        bench.pass_ms(250)
        answer_pings(crowd)
        loads.append(bench.count("pings_out") - before)
    return loads


@pytest.mark.slow
def test_r27_pings_after_a_stall_are_spread_over_the_ticks_as_before() -> None:
    """R27: the stall does not gather the pings of all connections in one tick."""
    count = min(2000, raise_descriptors(4100) // 2)
    with rig() as bench:
        crowd = [bench.connect() for _ in range(count)]
        usual = max(heartbeat_load(bench, 101, crowd))
        bench.now_ms += 10_000
        after = max(heartbeat_load(bench, 101, crowd))
        assert after <= max(2 * usual, count // 10)
        assert not bench.events
