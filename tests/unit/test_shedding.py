"""Everything on the books against one budget: no newcomers near it, and above it the slow go (R19)."""

import socket
from contextlib import closing
from typing import Final

import pytest

from tests.support.frames import BINARY, CLOSE, TEXT, client_frame, client_header, close_code
from tests.support.rig import Peer, Rig, rig
from wsgate.reactor import GateLimits, Settings, events
from wsgate.reasons import Reason

COST: Final = 10_000  # of a connection, in these tests
CHARGE: Final = 50_000  # of a socket that is full, likewise
TABLE: Final = 128 * 1024
ENOUGH: Final = 1 << 30
SETTINGS: Final = Settings(
    send_buffer_bytes=CHARGE, ping_interval_ms=0, outbox_age_ms=60_000, write_timeout_ms=60_000
)


def limit(bench: Rig, memory_bytes: int) -> None:
    bench.reactor.set_gate(GateLimits(memory_bytes=memory_bytes, connection_bytes=COST), b"no")


def booked(bench: Rig) -> int:
    return sum(bench.reactor.bytes_held().values())


def block(bench: Rig, peer: Peer, size: int = 200_000) -> None:
    """More than its socket takes."""
    bench.reactor.send(peer.conn, bytes(size), BINARY)
    bench.turn()
    numbers = bench.reactor.inspect(peer.conn)
    assert numbers is not None and numbers["blocked"]


def begin(bench: Rig, peer: Peer, size: int = 30_000) -> None:
    """A message of which the end never comes."""
    for piece in (client_header(BINARY, size + 1), bytes(size)):
        peer.send(piece)
        bench.turn()


def ended(bench: Rig, peer: Peer) -> list[tuple[int, bytes | int]]:
    return [(kind, value) for kind, value in bench.of(peer) if kind in (events.FAILING, events.CLOSED)]


def test_books_hold_every_connection_and_every_full_socket() -> None:
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        before = booked(bench)
        peer = bench.connect(send_buffer_bytes=1)
        assert booked(bench) == before + COST + TABLE
        block(bench, peer)
        assert booked(bench) >= before + COST + TABLE + CHARGE + 150_000


def test_newcomers_are_refused_near_the_budget_and_let_in_again_well_below_it() -> None:
    with rig(SETTINGS) as bench, closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.setblocking(False)
        bench.reactor.listen(listener.fileno())
        limit(bench, ENOUGH)
        peers = [bench.connect() for _ in range(20)]
        budget = 16 * booked(bench) // 15

        def refused() -> bool:
            before = bench.count("ended_refused_memory")
            with socket.create_connection(listener.getsockname()):
                bench.turn()
            bench.turn()  # it is gone again
            return bench.count("ended_refused_memory") > before

        limit(bench, budget + COST)
        assert not refused(), "below the high mark"
        limit(bench, budget)
        assert refused(), "at the high mark"
        assert bench.count("now_short") == 1
        peers.pop().close()
        bench.turn()
        bench.pass_ms(250)
        assert refused(), "below the high mark again, but not below the low one"
        limit(bench, budget * 2)
        bench.pass_ms(250)
        assert bench.count("now_short") == 0
        assert not refused()
        assert bench.count("now_open") == 19
        bench.reactor.stop_listening()


def test_unfinished_input_never_goes_beyond_the_budget() -> None:
    with rig(SETTINGS) as bench:
        peer = bench.connect()
        limit(bench, booked(bench) + 20_000)
        begin(bench, peer)
        assert [frame.opcode for frame in peer.frames()] == [CLOSE]
        assert ended(bench, peer)[0] == (events.FAILING, 1013)
        assert bench.count("ended_partial_bytes") + bench.count("now_lingering") == 1


def test_the_stalled_go_first_then_the_unfinished_then_the_slow_and_never_the_idle() -> None:
    with rig(SETTINGS) as bench:
        stalled = bench.connect(send_buffer_bytes=1)
        unfinished, idle = bench.connect(), bench.connect()
        slow = bench.connect(send_buffer_bytes=1)
        block(bench, stalled)
        begin(bench, unfinished)
        bench.pass_ms(1_000)
        block(bench, slow)
        order = []
        for _ in range(4):
            limit(bench, booked(bench) - 1)
            bench.pass_ms(250)
            for name, peer in (
                ("stalled", stalled),
                ("unfinished", unfinished),
                ("slow", slow),
                ("idle", idle),
            ):
                if name not in order and ended(bench, peer):
                    order.append(name)
            slow.receive()  # makes progress, but never enough
            bench.turn()
        assert order == ["stalled", "unfinished", "slow"]
        assert ended(bench, stalled) == [(events.CLOSED, Reason.SHED)], "reset: it reads no Close either"
        assert ended(bench, unfinished)[0] == (events.FAILING, 4013)
        assert close_code(unfinished.frames()[-1]) == 4013
        assert bench.reactor.send(idle.conn, b"still here")
        bench.turn()
        assert [frame.payload for frame in idle.frames()] == [b"still here"]


def test_a_frame_that_is_being_written_is_no_reason() -> None:
    with rig(SETTINGS) as bench:
        peer = bench.connect()
        peer.send(client_frame(TEXT, bytes(200))[:-1])
        bench.turn()
        limit(bench, booked(bench) - 1)
        bench.pass_ms(1_000)
        assert ended(bench, peer) == []


def test_no_more_are_cut_than_needed_nor_than_a_tick_may() -> None:
    each = 4096 + 256  # the message's block and the input's own
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        for peer in [bench.connect() for _ in range(300)]:
            begin(bench, peer, 3_000)
        limit(bench, booked(bench))
        bench.pass_ms(250, turns=False)
        assert bench.count("now_open") == 300, "at the budget, not above"
        limit(bench, booked(bench) - 1)
        over = booked(bench) - (booked(bench) - 1) * 15 // 16
        bench.pass_ms(250, turns=False)
        assert bench.count("now_failing") == over // each + 1
        bench.turn()
        left = bench.count("now_open")
        limit(bench, 1)
        bench.pass_ms(250)
        assert bench.count("now_open") == max(0, left - 256)


@pytest.mark.parametrize("memory_bytes", [0, ENOUGH])
def test_nobody_is_cut_within_the_budget_or_without_one(memory_bytes: int) -> None:
    with rig(SETTINGS) as bench:
        peer, other = bench.connect(send_buffer_bytes=1), bench.connect()
        limit(bench, memory_bytes)
        block(bench, peer)
        begin(bench, other)
        bench.pass_ms(5_000)
        assert ended(bench, peer) == ended(bench, other) == []
