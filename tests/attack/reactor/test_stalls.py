"""A pause of our own must kill nobody (R27), at numbers."""

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
        assert data == b"\x89\x00", "nothing but a ping"
        peer.send(pong)
        answered += 1
    return answered


@pytest.mark.slow
def test_r27_a_stall_of_ten_seconds_kills_nobody() -> None:
    """R27: thousands of connections, some waiting for their pong, ten seconds nobody calls: no one dies.

    The stall is forgiven once, and after it every deadline is where it was, ten seconds later.
    """
    count = min(CROWD, raise_descriptors(2 * CROWD + 20) // 2)
    assert count >= 400
    with rig(Settings(idle_timeout_ms=300_000)) as bench:
        crowd = [bench.connect() for _ in range(count)]
        # Into the first round of pings: half are waiting for their pong.
        bench.pass_ms(18_000)
        waiting = bench.count("pings_out")
        assert count // 4 < waiting < count
        bench.now_ms += 10_000
        # The loop comes back: ticks and polls, and answers come only now.
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
        # A second one within the minute is not forgiven, and still kills nobody whose byte lies unread.
        for peer in crowd:
            peer.send(client_frame(TEXT, b"here"))
        bench.now_ms += 36_000
        bench.reactor.tick(bench.now_ms)
        bench.turn()
        assert bench.count("stalls_forgiven") == 1
        assert {kind for kind, _, _ in bench.events} == {event_kinds.TEXT}
        assert bench.count("now_open") == count


def test_r27_a_second_stall_does_kill_the_dead() -> None:
    """R27: forgiven once a minute: a peer that is really gone is found in spite of stalls."""
    with rig() as bench:
        dead = bench.connect()
        for _ in range(6):
            bench.now_ms += 10_000
            bench.reactor.tick(bench.now_ms)
            bench.turn()
        assert bench.count("stalls_forgiven") == 1
        bench.pass_ms(15_000)
        assert bench.of(dead)[0] == (event_kinds.FAILING, 4008)


def test_r27_who_kept_to_the_rate_is_not_punished_for_our_pause() -> None:
    """R27: half the allowed rate all along; what gathered during our ten seconds is no flood."""
    settings = Settings(message_rate_per_s=10, control_rate_per_s=10, control_burst=20)
    with rig(settings) as bench:
        talker, pinger = bench.connect(), bench.connect()
        for second in range(11):
            if second == 10:
                # Ten seconds in which nobody calls, and they talk on.
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
def test_r27_after_a_stall_pings_are_spread_as_before() -> None:
    """R27: the stall does not gather the crowd's pings in one tick."""
    count = min(2000, raise_descriptors(4100) // 2)
    with rig() as bench:
        crowd = [bench.connect() for _ in range(count)]
        usual = max(heartbeat_load(bench, 101, crowd))
        bench.now_ms += 10_000
        after = max(heartbeat_load(bench, 101, crowd))
        assert after <= max(2 * usual, count // 10)
        assert not bench.events
