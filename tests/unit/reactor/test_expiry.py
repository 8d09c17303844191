"""Check expiry of tokens: in wall-clock time, never extended by a stall, moved when the wall clock is set."""

import pytest

from tests.support.reactor_rig import Peer, Rig, rig
from wsgate.reactor import Settings, event_kinds
from wsgate.reasons import Reason

WALL_MS = 1_764_000_000_000
QUIET = Settings(ping_interval_ms=0, idle_timeout_ms=0)


def tick(bench: Rig, wall_ms: int) -> None:
    bench.reactor.tick(bench.now_ms, wall_ms)
    bench.turn()


def ended(bench: Rig, peer: Peer) -> bool:
    return (event_kinds.FAILING, 4001) in bench.of(peer)


@pytest.mark.parametrize("stall_ms", [2_500, 20_000, 3_600_000])
@pytest.mark.parametrize("is_wall_time", [False, True])
def test_stall_of_the_process_does_not_extend_the_life_of_a_token(stall_ms: int, is_wall_time: bool) -> None:
    with rig(QUIET) as bench:
        expired, later, other = bench.connect(), bench.connect(), bench.connect()
        tick(bench, WALL_MS)
        for peer, left_ms in ((expired, stall_ms - 500), (later, stall_ms + 2_000)):
            if is_wall_time:
                bench.reactor.set_expiry(peer.conn, WALL_MS + left_ms, 4001)
            else:
                bench.reactor.set_deadline(peer.conn, bench.now_ms + left_ms, 4001)
        bench.now_ms += stall_ms
        tick(bench, WALL_MS + stall_ms)
        bench.now_ms += 250
        tick(bench, WALL_MS + stall_ms + 250)
        assert ended(bench, expired)
        assert not ended(bench, later)
        for passed_ms in range(500, 2_751, 250):
            bench.now_ms += 250
            tick(bench, WALL_MS + stall_ms + passed_ms)
        assert ended(bench, later)
        assert not bench.of(other)


@pytest.mark.parametrize("step_ms", [1_000, 3_600_000, 40 * 86_400_000])
def test_wall_clock_step_forward_expires_the_token_within_one_tick(step_ms: int) -> None:
    """The monotonic clock does not step, so no other connection is affected."""
    with rig(QUIET) as bench:
        forward, bystander = bench.connect(), bench.connect()
        tick(bench, WALL_MS)
        bench.reactor.set_expiry(forward.conn, WALL_MS + step_ms, 4001)
        for passed_ms in range(250, 751, 250):
            bench.now_ms += 250
            tick(bench, WALL_MS + passed_ms)
        assert not ended(bench, forward)
        bench.now_ms += 250
        tick(bench, WALL_MS + 750 + step_ms)
        assert ended(bench, forward)
        assert not bench.of(bystander)


def test_wall_clock_step_backward_delays_the_expiry_by_the_same_time() -> None:
    with rig(QUIET) as bench:
        peer = bench.connect()
        tick(bench, WALL_MS)
        bench.reactor.set_expiry(peer.conn, WALL_MS + 2_000, 4001)
        for passed_ms in range(250, 4_001, 250):
            bench.now_ms += 250
            tick(bench, WALL_MS - 10_000 + passed_ms)
        assert not ended(bench, peer)
        for passed_ms in range(4_250, 12_501, 250):
            bench.now_ms += 250
            tick(bench, WALL_MS - 10_000 + passed_ms)
        assert ended(bench, peer)


def test_expiry_set_before_the_first_tick_with_wall_time_takes_effect() -> None:
    with rig(QUIET) as bench:
        past, future = bench.connect(), bench.connect()
        bench.reactor.set_expiry(past.conn, WALL_MS - 1, 4001)
        bench.reactor.set_expiry(future.conn, WALL_MS + 60_000, 4001)
        bench.now_ms += 250
        tick(bench, WALL_MS)
        assert ended(bench, past)
        assert not bench.of(future)


def test_deadline_zero_clears_an_expiry_and_only_sooner_keeps_the_earlier_one() -> None:
    with rig(QUIET) as bench:
        peer, sooner = bench.connect(), bench.connect()
        tick(bench, WALL_MS)
        bench.reactor.set_expiry(peer.conn, WALL_MS + 500, 4001)
        bench.reactor.set_deadline(peer.conn, 0, 4001)
        bench.reactor.set_expiry(sooner.conn, WALL_MS + 500, 4001)
        bench.reactor.set_expiry(sooner.conn, WALL_MS + 900_000, 4001, only_sooner=True)
        for passed_ms in range(250, 1_251, 250):
            bench.now_ms += 250
            tick(bench, WALL_MS + passed_ms)
        assert not bench.of(peer)
        assert ended(bench, sooner)


@pytest.mark.parametrize("wall_ms", [0, -1])
def test_expiry_of_zero_or_less_raises_value_error(wall_ms: int) -> None:
    with rig(QUIET) as bench:
        peer = bench.connect()
        with pytest.raises(ValueError, match="wall clock"):
            bench.reactor.set_expiry(peer.conn, wall_ms, 4001)


def test_each_thousand_expiries_of_one_second_gets_a_later_retry_message() -> None:
    """The next second starts with the first message again."""
    with rig(Settings(ping_interval_ms=0)) as bench:
        for rank in range(4):
            bench.reactor.set_bye(4001, [b"come back in %d" % rank], reason=Reason.TOKEN_EXPIRED, rank=rank)
        bench.reactor.set_bye(4001, [b"any other 4001"])
        tick(bench, WALL_MS)

        def expire(count: int) -> list[bytes]:
            peers = [bench.connect() for _ in range(count)]
            for peer in peers:
                bench.reactor.set_expiry(peer.conn, WALL_MS, 4001)
            bench.now_ms = bench.now_ms // 1_000 * 1_000 + 1_000
            tick(bench, WALL_MS + 1_000)
            goodbyes = [peer.frames()[0].payload for peer in peers]
            for peer in peers:
                peer.close()
                bench.peers.remove(peer)
            bench.turn()
            return goodbyes

        assert set(expire(900)) == {b"come back in 0"}
        goodbyes = expire(4_500)
        counts = [goodbyes.count(b"come back in %d" % rank) for rank in range(4)]
        assert counts == [1_000, 1_000, 1_000, 1_500]
        assert set(expire(10)) == {b"come back in 0"}
