"""Control frames as a weapon (S10)."""

import pytest

from tests.support.frames import BINARY, CONTINUATION, PING, PONG, TEXT, ServerFrame, client_frame
from tests.support.reactor_rig import Peer, Rig, rig
from wsgate.reactor import Settings, event_kinds
from wsgate.reasons import Reason

PONGS_MAX = 16
PONG_BYTES = 968
UNLIMITED = Settings(control_rate_per_s=0)


def numbered(start: int, count: int, size: int = 8) -> bytes:
    """Pings whose payloads are numbers, for order."""
    return b"".join(client_frame(PING, b"%0*d" % (size, number)) for number in range(start, start + count))


def push(bench: Rig, peer: Peer, data: bytes) -> None:
    """Send all of it, one pass of the reactor whenever the kernel takes no more; nothing is read."""
    view = memoryview(data)
    while view:
        view = view[peer.send(bytes(view[:65536])) :]
        bench.step()
    bench.turn()


def test_s10_flood_is_1008_at_the_rate_limit() -> None:
    """S10: 100k pings of 125 bytes, nothing read: 1008 after the burst; everything is given back."""
    with rig() as bench:
        peer = bench.connect()
        before = bench.held()
        sent = 0
        flood = client_frame(PING, bytes(125)) * 500
        while sent < 100_000 and not bench.of(peer):
            peer.send(flood)
            bench.turn()
            sent += 500
        assert bench.of(peer) == [(event_kinds.FAILING, 1008)]
        assert bench.count("pings_in") == 200
        bench.pass_ms(12_000)
        assert bench.of(peer)[1:] == [(event_kinds.CLOSED, Reason.CONTROL_RATE)]
        assert bench.held() == before


def test_s10_blocked_keeps_16_pongs_and_968_bytes() -> None:
    """S10: without the rate limit, 100k pings unread: the newest few wait, in order, and no more."""
    with rig(UNLIMITED) as bench:
        peer = bench.connect(send_buffer_bytes=4096)
        before = bench.held()
        for start in range(0, 100_000, 2000):
            push(bench, peer, numbered(start, 2000, 125))
            state = bench.reactor.inspect(peer.conn)
            assert state is not None
            assert state["pongs"] <= PONGS_MAX
            assert state["pongs"] * 127 <= PONG_BYTES + 127
            assert bench.held()["outbox"] + bench.held()["frame"] - before["frame"] <= 4096
        assert bench.count("pings_in") == 100_000
        assert bench.count("now_blocked") == 1
        pongs = []
        for _ in range(100):
            pongs += peer.frames()
            bench.turn()
        numbers = [int(frame.payload) for frame in pongs]
        assert {frame.opcode for frame in pongs} == {PONG}
        assert numbers == sorted(set(numbers)), "pongs are in order, none twice"
        assert numbers[-7:] == list(range(99_993, 100_000)), "the newest survive"
        assert bench.count("pongs_out") == len(pongs)
        assert bench.count("pongs_dropped") == 100_000 - len(pongs)
        assert bench.held() == before
        assert not bench.of(peer)


def test_s10_small_pongs_are_bounded_by_number() -> None:
    """S10: sixteen empty ones, although 968 bytes would hold hundreds."""
    with rig(UNLIMITED) as bench:
        peer = bench.connect(send_buffer_bytes=4096)
        bench.reactor.send(peer.conn, bytes(200_000))
        bench.turn()
        push(bench, peer, numbered(0, 1000, 3))
        state = bench.reactor.inspect(peer.conn)
        assert state is not None
        assert state["pongs"] == PONGS_MAX
        frames: list[ServerFrame] = []
        for _ in range(100):
            frames += peer.frames()
            bench.turn()
        assert frames[0] == ServerFrame(TEXT, bytes(200_000))
        assert [int(frame.payload) for frame in frames[1:]] == list(range(984, 1000))


@pytest.mark.parametrize("size", [3, 60, 125])
def test_s10_every_ping_is_answered_while_the_socket_takes_it(size: int) -> None:
    """S10: 3,000 pings sent in one go to a socket that is not blocked: 3,000 pongs, in order."""
    with rig(UNLIMITED) as bench:
        peer = bench.connect()
        pongs = []
        for start in range(0, 3000, 100):
            peer.send(numbered(start, 100, size))
            bench.turn()
            pongs += peer.frames()
        assert [frame.payload for frame in pongs] == [b"%0*d" % (size, index) for index in range(3000)]
        assert bench.count("pongs_dropped") == 0


def test_s10_unsolicited_pongs_are_counted_and_ignored() -> None:
    """S10: RFC 6455 section 5.5.3: a pong nobody asked for is not answered."""
    with rig(UNLIMITED) as bench:
        peer = bench.connect()
        peer.send(client_frame(PONG, b"x" * 125) * 500)
        bench.turn()
        assert not bench.of(peer)
        assert not peer.frames()
        assert bench.count("pongs_in") == 500


def test_s10_ping_inside_a_message() -> None:
    """S10: a ping between fragments is answered before the message is whole, and does not break it."""
    with rig() as bench:
        peer = bench.connect()
        peer.send(client_frame(TEXT, b"a", final=False) + client_frame(PING, b"in"))
        bench.turn()
        assert peer.frames() == [ServerFrame(PONG, b"in")]
        peer.send(client_frame(CONTINUATION, b"b", final=False) + client_frame(PING, b"side"))
        peer.send(client_frame(CONTINUATION, b"c"))
        bench.turn()
        assert peer.frames() == [ServerFrame(PONG, b"side")]
        assert bench.messages(peer) == [b"abc"]


# --- the control rate -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "now_ms",
    [0, 1_000_000, 2**28 - 1, 2**28 - 1000, 2**28 + 1, 2**32 - 1000, 2**32, 10**12],
)
def test_control_burst_is_exact_at_any_time(now_ms: int) -> None:
    """S10: a new connection has its whole burst, whatever the clock says; one more is 1008.

    The bucket lives in 32 bits of a clock in sixteenths of milliseconds: it must not wrap into a fault.
    """
    with rig(now_ms=now_ms) as bench:
        peer = bench.connect()
        peer.send(client_frame(PING) * 200)
        bench.turn()
        assert not bench.of(peer)
        peer.send(client_frame(PONG))
        bench.turn()
        assert bench.of(peer) == [(event_kinds.FAILING, 1008)]


@pytest.mark.parametrize(("rate", "burst"), [(100, 200), (1, 1), (10, 5), (1000, 1)])
def test_control_rate_refills_exactly(rate: int, burst: int) -> None:
    """S10: after the burst, exactly `rate` more a second: one early is 1008, all in time pass."""
    with rig(Settings(control_rate_per_s=rate, control_burst=burst, ping_interval_ms=0)) as bench:
        good, early = bench.connect(), bench.connect()
        for peer in (good, early):
            peer.send(client_frame(PING) * burst)
        bench.turn()
        assert not bench.events
        step_ms = 1000 // rate
        bench.now_ms += step_ms - 1 if step_ms > 1 else 0
        early.send(client_frame(PING))
        bench.turn()
        assert bench.of(early) == [(event_kinds.FAILING, 1008)]
        bench.now_ms += 1
        for _ in range(50):
            good.send(client_frame(PING))
            bench.turn()
            bench.now_ms += step_ms
        assert not bench.of(good)


def test_control_rate_after_days_of_silence() -> None:
    """S10: a bucket that was not touched for days is full, not wrapped (32 bits last three days)."""
    with rig(Settings(ping_interval_ms=0)) as bench:
        peer = bench.connect()
        tick = bench.reactor.tick
        for days in (1.5, 1.6, 3.1):
            peer.send(client_frame(PING) * 200)
            bench.turn()
            assert not bench.of(peer)
            end_ms = bench.now_ms + int(days * 86_400_000)
            while bench.now_ms < end_ms:
                bench.now_ms += 2000  # late, but no stall
                tick(bench.now_ms)
        peer.send(client_frame(PING) * 200)
        bench.turn()
        assert not bench.of(peer)
        assert bench.count("stalls_forgiven") == 0


def test_close_after_pings_answers_them_first() -> None:
    """S10: what was pinged before Close is answered before Close."""
    with rig() as bench:
        peer = bench.connect()
        peer.send(client_frame(PING, b"1") + client_frame(BINARY, b"m") + client_frame(PING, b"2"))
        peer.send(client_frame(8, b"\x03\xe8"))
        bench.turn()
        assert [frame.payload for frame in peer.frames()] == [b"1", b"2", b"\x03\xe8"]
