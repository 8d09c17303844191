"""Flood a reactor with control frames (S10)."""

import pytest

from tests.support.frames import BINARY, CONTINUATION, PING, PONG, TEXT, ServerFrame, client_frame
from tests.support.reactor_rig import Peer, Rig, rig
from wsgate.reactor import Settings, event_kinds
from wsgate.reasons import Reason

PONGS_MAX = 16
PONG_BYTES = 968
UNLIMITED = Settings(control_rate_per_s=0)


def numbered(start: int, count: int, size: int = 8) -> bytes:
    """Return pings whose payloads are consecutive numbers, so that their order can be checked."""
    return b"".join(client_frame(PING, b"%0*d" % (size, number)) for number in range(start, start + count))


def send_all_unread(bench: Rig, peer: Peer, data: bytes) -> None:
    """Send all of the data and read nothing; the reactor makes a pass whenever the kernel takes no more."""
    view = memoryview(data)
    while view:
        view = view[peer.send(bytes(view[:65536])) :]
        bench.step()
    bench.turn()


def test_s10_ping_flood_is_1008_after_the_burst_and_returns_all_memory() -> None:
    """S10: the peer sends up to 100,000 pings of 125 bytes and reads nothing."""
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


def test_s10_blocked_socket_keeps_only_the_newest_16_pongs_or_968_bytes() -> None:
    """S10: the rate limit is off, 100,000 pings are sent, and the waiting pongs stay in order."""
    with rig(UNLIMITED) as bench:
        peer = bench.connect(send_buffer_bytes=4096)
        before = bench.held()
        for start in range(0, 100_000, 2000):
            send_all_unread(bench, peer, numbered(start, 2000, 125))
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
        assert numbers == sorted(set(numbers)), "pongs are out of order or repeated"
        assert numbers[-7:] == list(range(99_993, 100_000)), "the newest pongs were dropped"
        assert bench.count("pongs_out") == len(pongs)
        assert bench.count("pongs_dropped") == 100_000 - len(pongs)
        assert bench.held() == before
        assert not bench.of(peer)


def test_s10_blocked_socket_keeps_at_most_16_small_pongs() -> None:
    """S10: 968 bytes would have room for more of them."""
    with rig(UNLIMITED) as bench:
        peer = bench.connect(send_buffer_bytes=4096)
        bench.reactor.send(peer.conn, bytes(200_000))
        bench.turn()
        send_all_unread(bench, peer, numbered(0, 1000, 3))
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
def test_s10_3000_pings_to_a_socket_that_is_not_blocked_have_3000_pongs_in_order(size: int) -> None:
    """S10: no pong is dropped while the socket takes them."""
    with rig(UNLIMITED) as bench:
        peer = bench.connect()
        pongs = []
        for start in range(0, 3000, 100):
            peer.send(numbered(start, 100, size))
            bench.turn()
            pongs += peer.frames()
        assert [frame.payload for frame in pongs] == [b"%0*d" % (size, index) for index in range(3000)]
        assert bench.count("pongs_dropped") == 0


def test_s10_unsolicited_pongs_are_counted_and_have_no_answer() -> None:
    """S10: RFC 6455 section 5.5.3 expects no response to them."""
    with rig(UNLIMITED) as bench:
        peer = bench.connect()
        peer.send(client_frame(PONG, b"x" * 125) * 500)
        bench.turn()
        assert not bench.of(peer)
        assert not peer.frames()
        assert bench.count("pongs_in") == 500


def test_s10_ping_between_fragments_is_answered_before_the_message_is_complete() -> None:
    """S10: the ping does not break the message."""
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
def test_new_connection_has_its_exact_control_burst_at_any_clock_value(now_ms: int) -> None:
    """S10: 200 control frames are allowed, and one more is 1008.

    The bucket is in 32 bits of a clock in sixteenths of milliseconds, and its overflow must not be a fault.
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
def test_control_rate_refills_exactly_and_one_early_frame_is_1008(rate: int, burst: int) -> None:
    """S10: after the burst, exactly `rate` more control frames per second are allowed."""
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


def test_control_bucket_is_full_after_days_without_frames() -> None:
    """S10: the 32 bits of the bucket cover three days, and must not overflow."""
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


def test_pings_before_a_close_are_answered_before_the_close() -> None:
    """S10: the peer sends two pings, a message between them, and then its Close."""
    with rig() as bench:
        peer = bench.connect()
        peer.send(client_frame(PING, b"1") + client_frame(BINARY, b"m") + client_frame(PING, b"2"))
        peer.send(client_frame(8, b"\x03\xe8"))
        bench.turn()
        assert [frame.payload for frame in peer.frames()] == [b"1", b"2", b"\x03\xe8"]
