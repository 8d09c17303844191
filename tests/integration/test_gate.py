"""Test the gate with real TCP clients: every limit, and refusals that arrive."""

import os
import socket
from collections.abc import Callable

import pytest

from tests.support.frames import BINARY, TEXT, ServerFrame, client_frame
from tests.support.reactor_rig import Peer
from tests.support.tcp_rig import HEAD, REFUSAL, Hall, hall, is_readable, open_descriptors, settle
from wsgate.errors import WsgateError
from wsgate.reactor import GateLimits, Settings, event_kinds

EXTRA = client_frame(TEXT, b"early frames") * 20


def answer(bench: Hall, peer: Peer) -> bytes:
    """Return all bytes that a client reads to the end of the stream; a reset fails the test."""

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


def fill(bench: Hall, count: int) -> list[Peer]:
    """Open this many connections."""
    crowd = [bench.dial(HEAD) for _ in range(count)]
    settle(bench, lambda: bench.count("now_open") == count)
    return [bench.meet(peer) for peer in crowd]


def at_descriptors(bench: Hall) -> str:
    lowest_free = os.dup(0)
    os.close(lowest_free)
    # The end of the client has that number, and ours the next one.
    bench.reactor.set_gate(GateLimits(descriptors=lowest_free + 1), REFUSAL)
    return "refused_descriptors"


def at_connections(bench: Hall) -> str:
    bench.reactor.set_gate(GateLimits(connections=2), REFUSAL)
    return "refused_connections"


def at_handshakes(bench: Hall) -> str:
    bench.reactor.set_gate(GateLimits(handshakes_in_progress=1), REFUSAL)
    bench.on_event = None
    bench.dial(HEAD)
    settle(bench, lambda: bench.count("now_deciding") == 1)
    return "refused_handshakes"


def at_rate(bench: Hall) -> str:
    bench.reactor.set_gate(GateLimits(handshake_rate_per_s=1), REFUSAL)
    fill_one = bench.dial(HEAD)
    settle(bench, lambda: bench.count("now_open") == 3)
    bench.meet(fill_one)
    return "refused_rate"


def at_partial_bytes(bench: Hall) -> str:
    bench.reactor.set_gate(
        GateLimits(partial_bytes=4096 + 256 + 100), REFUSAL
    )  # one input buffer and its message
    greedy = bench.dial(HEAD)
    settle(bench, lambda: bench.count("now_open") == 3)
    bench.meet(greedy).send(client_frame(BINARY, bytes(3500))[:-1])
    settle(bench, lambda: bench.held()["partial"] >= 4096)
    return "refused_partial_bytes"


LIMITS = [at_descriptors, at_connections, at_handshakes, at_rate, at_partial_bytes]


@pytest.mark.parametrize("said", [b"", HEAD, HEAD + EXTRA, HEAD + HEAD, HEAD[:50]])
@pytest.mark.parametrize("limit", LIMITS)
def test_connection_over_each_limit_receives_the_whole_answer_and_is_counted_by_its_reason(
    limit: Callable[[Hall], str], said: bytes
) -> None:
    """There is no reset, whatever the client sent, and open connections are not affected."""
    with hall() as bench:
        good = fill(bench, 2)
        reason = limit(bench)
        before = bench.reactor.counters()
        late = bench.dial(said)
        assert answer(bench, late) == REFUSAL
        after = bench.reactor.counters()
        assert after["refused"] - before["refused"] == 1
        assert after[f"ended_{reason}"] - before[f"ended_{reason}"] == 1
        ended = [name for name in after if name.startswith("ended_") and after[name] != before[name]]
        assert ended == [f"ended_{reason}"]
        late.close()
        settle(bench, lambda: bench.count("now_draining") == 0)
        assert not is_readable(bench)
        for peer in good:
            peer.send(client_frame(TEXT, b"still here"))
        settle(bench, lambda: all(bench.messages(peer) == [b"still here"] for peer in good))
        assert bench.reactor.send(good[0].conn, b"reply")
        bench.turn()
        assert good[0].frames() == [ServerFrame(TEXT, b"reply")]


def test_exactly_the_limit_of_connections_is_accepted_and_one_more_after_a_close() -> None:
    """Five connections are the limit, and the sixth is refused."""
    with hall(limits=GateLimits(connections=5)) as bench:
        crowd = fill(bench, 5)
        assert answer(bench, bench.dial(HEAD)) == REFUSAL
        crowd[0].close()
        settle(bench, lambda: bench.count("now_connections") == 4)
        bench.meet(bench.dial(HEAD))
        assert bench.count("refused") == 1


def test_new_handshake_displaces_the_oldest_incomplete_head_until_all_are_undecided() -> None:
    """Both incomplete and undecided handshakes count for the limit."""
    with hall(limits=GateLimits(handshakes_in_progress=3), on_event=None) as bench:
        bench.dial(HEAD)
        oldest = bench.dial(HEAD[:20])
        settle(bench, lambda: bench.count("now_head") == 1 and bench.count("now_deciding") == 1)
        newer = bench.dial()
        settle(bench, lambda: bench.count("now_head") == 2)
        bench.dial(HEAD)
        settle(bench, lambda: bench.count("now_deciding") == 2)
        answer(bench, oldest)
        assert not newer.ended
        bench.dial(HEAD)
        settle(bench, lambda: bench.count("now_deciding") == 3)
        answer(bench, newer)
        for peer in (oldest, newer):
            peer.close()
        settle(bench, lambda: bench.count("ended_head_displaced") == 2)
        assert answer(bench, bench.dial(HEAD)) == REFUSAL
        assert bench.reactor.upgrade(bench.events[0][1], b"101")
        bench.turn()
        bench.dial()
        settle(bench, lambda: bench.count("now_head") == 1)
        assert bench.count("ended_refused_handshakes") == 1


def test_handshake_rate_accepts_one_second_at_once_and_then_exactly_the_rate() -> None:
    """The rate uses the clock of the caller."""
    with hall(limits=GateLimits(handshake_rate_per_s=10, refusal_drains=0)) as bench:
        for _ in range(15):
            bench.dial()
        settle(bench, lambda: bench.count("accepted") == 15)
        assert bench.count("now_head") == 10
        assert bench.count("ended_refused_rate") == 5
        for step in range(1, 8):
            bench.now_ms += 100
            bench.turn()
            for _ in range(3):
                bench.dial()
            settle(bench, lambda step=step: bench.count("accepted") == 15 + 3 * step)  # type: ignore[misc]
            assert bench.count("now_head") == 10 + step
        bench.pass_ms(5_000)
        for _ in range(12):
            bench.dial()
        settle(bench, lambda: bench.count("accepted") == 48)
        assert bench.count("now_head") == 27


def test_refusal_without_configured_bytes_ends_the_stream_without_a_reset() -> None:
    """The peer reads nothing but the end of the stream."""
    with hall(limits=GateLimits(connections=1), refusal=b"") as bench:
        fill(bench, 1)
        assert answer(bench, bench.dial(HEAD)) == b""


def test_gate_limit_of_zero_accepts_100_handshakes() -> None:
    """A limit of 0 is no limit."""
    with hall(limits=GateLimits(handshakes_in_progress=0)) as bench:
        for _ in range(100):
            bench.dial()
        settle(bench, lambda: bench.count("now_head") == 100)


def test_connection_beyond_the_table_of_slots_is_refused_as_refused_connections() -> None:
    """There is no gate, so that the table is the only limit."""
    with hall(Settings(max_connections=2)) as bench:
        fill(bench, 2)
        assert answer(bench, bench.dial(HEAD)) == REFUSAL
        assert bench.count("ended_refused_connections") == 1


# --- drains -----------------------------------------------------------------------------------------


def test_refusals_beyond_32_drains_are_answered_only_if_the_head_has_arrived() -> None:
    """A silent peer is closed without an answer."""
    with hall(limits=GateLimits(connections=1)) as bench:
        fill(bench, 1)
        for _ in range(32):
            bench.dial()
        settle(bench, lambda: bench.count("now_draining") == 32)
        spoken = bench.dial(HEAD)
        assert answer(bench, spoken) == REFUSAL
        assert bench.count("refused_undrained") == 1
        assert bench.count("refused_silent") == 0
        silent = bench.dial()
        settle(bench, lambda: bench.count("refused_silent") == 1)
        talking = bench.dial(HEAD + EXTRA)
        settle(bench, lambda: bench.count("refused_silent") == 2)
        for peer in (silent, talking):
            settle(bench, lambda peer=peer: not peer.receive() and peer.ended)  # type: ignore[misc]
        assert bench.count("now_draining") == 32
        assert bench.count("refused") == 33
        assert bench.count("ended_refused_connections") == 35


def test_drain_of_a_refused_peer_ends_after_one_second() -> None:
    """The peer neither reads nor closes."""
    with hall(limits=GateLimits(connections=1)) as bench:
        fill(bench, 1)
        descriptors = open_descriptors()
        peer = bench.dial(HEAD)
        settle(bench, lambda: bench.count("now_draining") == 1)
        bench.pass_ms(750)
        assert bench.count("now_draining") == 1
        bench.pass_ms(500)
        assert bench.count("now_draining") == 0
        assert open_descriptors() == descriptors + 1
        assert answer(bench, peer) == REFUSAL


def test_drain_of_a_refused_peer_that_keeps_sending_ends_after_16_kib() -> None:
    """The reactor reads 16 KiB, and at most one receive more."""
    with hall(limits=GateLimits(connections=1)) as bench:
        fill(bench, 1)
        peer = bench.dial(HEAD)
        settle(bench, lambda: bench.count("now_draining") == 1)
        sent = 0
        for _ in range(1000):
            try:
                sent += peer.sock.send(bytes(4096))
            except BlockingIOError:
                pass
            except ConnectionError:
                break
            bench.turn()
            if bench.count("now_draining") == 0:
                break
        assert bench.count("now_draining") == 0
        assert sent >= 16 * 1024 - len(HEAD)


@pytest.mark.parametrize("drains", [-1, 257, 1 << 31])
def test_number_of_drains_out_of_range_raises_and_leaves_the_gate_unchanged(drains: int) -> None:
    """The former limits and the former answer stay."""
    with hall(limits=GateLimits(connections=1)) as bench:
        with pytest.raises((WsgateError, ValueError, OverflowError)):
            bench.reactor.set_gate(GateLimits(refusal_drains=drains), b"other")
        fill(bench, 1)
        assert answer(bench, bench.dial(HEAD)) == REFUSAL


@pytest.mark.parametrize(
    "limits",
    [
        GateLimits(descriptors=-1),
        GateLimits(connections=-1),
        GateLimits(handshake_rate_per_s=1 << 40),
        GateLimits(refusal_drain_bytes=-5),
        GateLimits(refusal_drain_ms=1 << 40),
    ],
)
def test_gate_limits_out_of_range_raise_and_leave_the_gate_unchanged(limits: GateLimits) -> None:
    """One bad limit refuses all of them."""
    with hall(limits=GateLimits(connections=1)) as bench:
        with pytest.raises((WsgateError, ValueError, OverflowError)):
            bench.reactor.set_gate(limits, b"other")
        fill(bench, 1)
        assert answer(bench, bench.dial(HEAD)) == REFUSAL


def test_largest_handshake_rate_accepts_connections() -> None:
    """The largest rate that can be set must not overflow."""
    with hall(limits=GateLimits(handshake_rate_per_s=(1 << 32) - 1)) as bench:
        fill(bench, 3)


def test_peer_that_closed_in_the_queue_is_refused_without_an_answer_and_a_drain() -> None:
    """Five peers close before the reactor accepts them."""
    with hall(limits=GateLimits(connections=1)) as bench:
        fill(bench, 1)
        for _ in range(5):
            bench.dial().close()
        settle(bench, lambda: bench.count("accepted") == 6)
        assert bench.count("now_draining") == 0
        assert bench.count("refused_silent") == 5


def test_open_connection_is_answered_in_order_while_500_others_are_refused() -> None:
    """Its messages are answered within the same turns."""

    def on_event(bench: object, event: tuple[int, int, bytes | int]) -> None:
        del bench
        if event[0] == event_kinds.TEXT and isinstance(event[2], bytes):
            front.reactor.send(event[1], event[2])

    with hall(limits=GateLimits(connections=1)) as front:
        good = fill(front, 1)[0]
        front.on_event = on_event
        heard = []
        for index in range(50):
            for _ in range(10):
                front.dial(HEAD)
            good.send(client_frame(TEXT, b"%d" % index))
            for _ in range(5):
                front.step()
            heard += [frame.payload for frame in good.frames()]
        settle(front, lambda: front.count("ended_refused_connections") == 500)
        heard += [frame.payload for frame in good.frames()]
        assert heard == [b"%d" % index for index in range(50)]
        assert front.count("refused") + front.count("refused_silent") == 500


def test_stop_listening_leaves_the_queue_alone_until_the_next_listen() -> None:
    """A second `stop_listening` does nothing."""
    with hall() as bench:
        bench.reactor.stop_listening()
        bench.reactor.stop_listening()
        waiting = bench.dial(HEAD)
        bench.turn()
        assert bench.count("accepted") == 0
        assert not is_readable(bench)
        bench.reactor.listen(bench.listener.fileno())
        bench.meet(waiting)


def test_listener_that_was_shut_down_does_not_wake_the_reactor_forever() -> None:
    """The listening socket is shut down outside of the reactor."""
    with hall() as bench:
        bench.listener.shutdown(socket.SHUT_RDWR)
        for _ in range(20):
            bench.step()
        assert not is_readable(bench)
        assert bench.count("accept_failed") <= 64


def test_accepting_pauses_until_the_next_tick_at_four_times_the_handshake_rate() -> None:
    """Later connections stay in the queue of the kernel and are accepted afterwards."""
    with hall(limits=GateLimits(handshake_rate_per_s=300, refusal_drains=0)) as bench:
        offered = 0
        while offered < 1_300:
            for peer in [bench.dial(HEAD) for _ in range(100)]:
                peer.close()
            offered += 100
            bench.turn()
        settle(bench, lambda: bench.count("accepts_paused") == 1)
        assert bench.count("accepted") == 1_200
        for _ in range(10):
            bench.turn()
        assert bench.count("accepted") == 1_200
        bench.pass_ms(250)
        settle(bench, lambda: bench.count("accepted") == 1_300)
        assert bench.count("accepts_paused") == 1
