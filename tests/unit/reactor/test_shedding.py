"""Everything on the books against one budget: no newcomers near it, and above it the slow go (R19)."""

import socket
from contextlib import closing
from typing import Final

import pytest

from tests.support.frames import BINARY, CLOSE, TEXT, client_frame, client_header
from tests.support.reactor_rig import Peer, Rig, rig
from wsgate.reactor import GateLimits, Settings, event_kinds
from wsgate.reasons import Reason

COST: Final = 12_000  # of a connection, in these tests: more than a sixteenth of what a reactor holds at rest
TABLE: Final = 144 * 1024
ENOUGH: Final = 1 << 30
SETTINGS: Final = Settings(ping_interval_ms=0, outbox_age_ms=60_000, write_timeout_ms=60_000)


def limit(bench: Rig, memory_bytes: int) -> None:
    bench.reactor.set_gate(GateLimits(memory_bytes=memory_bytes, connection_bytes=COST), b"no")


def booked(bench: Rig) -> int:
    return sum(bench.reactor.bytes_held().values())


def known(bench: Rig, *, send_buffer_bytes: int = 0) -> Peer:
    """A client that has shown who it is."""
    peer = bench.connect(send_buffer_bytes=send_buffer_bytes)
    bench.reactor.set_meta(peer.conn, "somebody")
    return peer


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
    return [
        (kind, value) for kind, value in bench.of(peer) if kind in (event_kinds.FAILING, event_kinds.CLOSED)
    ]


def test_books_hold_every_connection_and_every_full_socket() -> None:
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        before = booked(bench)
        peer = bench.connect(send_buffer_bytes=1)
        assert booked(bench) == before + COST + TABLE
        block(bench, peer)
        held = bench.reactor.bytes_held()["kernel_queued"]
        assert held >= 4_096, "what its socket holds, and the page it keeps"
        assert booked(bench) >= before + COST + TABLE + held + 150_000


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
        assert ended(bench, peer)[0] == (event_kinds.FAILING, 1013)
        assert bench.count("ended_partial_bytes") + bench.count("now_lingering") == 1


def test_who_leaves_its_bytes_in_the_kernel_goes_before_who_only_rests() -> None:
    """Its socket is not full, so nothing waits for it here."""
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        resting, deaf = known(bench), known(bench)
        bench.reactor.send(deaf.conn, bytes(12_000), BINARY)
        bench.pass_ms(26_000)
        assert bench.count("now_blocked") == 0
        held = bench.reactor.bytes_held()
        assert held["kernel_queued"] > 8_192
        limit(bench, booked(bench) - held["pool"] - 1)
        bench.pass_ms(250)
        assert ended(bench, deaf)[0] == (event_kinds.FAILING, 4013)
        assert not ended(bench, resting)


def test_those_who_are_leaving_are_as_good_as_gone() -> None:
    """They linger for a second, still on the books: nobody more is cut for that meanwhile."""
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        for _ in range(40):
            known(bench)
        before = booked(bench)
        over = before - (before - 1) * 15 // 16
        limit(bench, before - 1)
        for _ in range(3):
            bench.pass_ms(250)
            assert bench.count("now_lingering") == -(-over // COST)
            assert booked(bench) >= before - over, "what they cost is on the books until they are gone"


def test_those_go_first_whom_it_harms_least() -> None:
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        stalled = known(bench, send_buffer_bytes=1)
        unknown = bench.connect()
        unfinished, idle, speaker = known(bench), known(bench), known(bench)
        slow = known(bench, send_buffer_bytes=1)
        block(bench, stalled)
        begin(bench, unfinished)
        bench.pass_ms(1_000)
        block(bench, slow)
        order: list[str] = []
        for _ in range(20):
            speaker.send(client_frame(TEXT, b"I am here"))
            bench.turn()
            limit(bench, booked(bench) - 1)
            bench.pass_ms(250)
            for name, peer in (
                ("stalled", stalled),
                ("unknown", unknown),
                ("unfinished", unfinished),
                ("slow", slow),
                ("idle", idle),
                ("speaker", speaker),
            ):
                if name not in order and ended(bench, peer):
                    order.append(name)
            if "slow" not in order:
                slow.receive()  # makes progress, but never enough
            bench.turn()
            for peer in (unknown, unfinished, slow, idle):
                if ended(bench, peer):
                    peer.close()  # as it was told to
            bench.turn()
            if order[-1:] == ["idle"]:
                break
        assert order == ["stalled", "unknown", "unfinished", "slow", "idle"]
        assert ended(bench, stalled) == [(event_kinds.CLOSED, Reason.SHED)], "reset: it reads no Close either"
        assert ended(bench, unfinished)[0] == (event_kinds.FAILING, 4013)
        assert bench.reactor.send(speaker.conn, b"still here")
        bench.turn()
        assert [frame.payload for frame in speaker.frames()] == [b"still here"]


def test_the_idle_go_by_how_long_they_have_said_nothing() -> None:
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        peers = [known(bench) for _ in range(6)]
        # The last one has rested longest. Ages are told apart by powers of two: each has one of its own.
        for peer, then_ms in zip(reversed(peers), (24_000, 12_000, 6_000, 3_000, 1_500, 250), strict=True):
            peer.send(client_frame(TEXT, b"."))
            bench.turn()
            bench.pass_ms(then_ms)
        order: list[int] = []
        while len(order) < 4:
            limit(bench, booked(bench) - 1)
            bench.pass_ms(250)
            gone = [number for number, peer in enumerate(peers) if ended(bench, peer)]
            assert gone, "somebody has to go"
            order += sorted(set(gone) - set(order), reverse=True)
            for number in gone:
                peers[number].close()
            bench.turn()
        assert order[:4] == [5, 4, 3, 2]


def test_what_the_caller_holds_counts_and_what_it_knows_shuts_the_gate() -> None:
    with rig(SETTINGS) as bench, closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.setblocking(False)
        bench.reactor.listen(listener.fileno())
        limit(bench, ENOUGH)
        before = booked(bench)
        bench.reactor.book(5_000_000)
        assert booked(bench) == before + 5_000_000
        bench.reactor.book(0, refuses_newcomers=True)
        with socket.create_connection(listener.getsockname()):
            bench.turn()
        assert bench.count("ended_refused_memory") == 1
        assert bench.count("now_short") == 1
        bench.reactor.book(0)
        assert bench.count("now_short") == 0
        bench.reactor.stop_listening()


def test_a_frame_that_is_being_written_is_no_reason() -> None:
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        peer, *idle = known(bench), known(bench), known(bench), known(bench)
        bench.pass_ms(10_000)
        peer.send(client_frame(TEXT, b"hello"))
        peer.send(client_frame(TEXT, bytes(200))[:-1])
        bench.turn()
        limit(bench, booked(bench) - 1)
        bench.pass_ms(250)
        assert any(ended(bench, each) for each in idle), "one that rests goes before one that writes"
        assert ended(bench, peer) == []


def test_no_more_are_cut_than_needed_nor_than_a_tick_may() -> None:
    each = 4096 + 256 + COST  # the message's block, the input's own, and its connection when it has gone
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        for peer in [known(bench) for _ in range(300)]:
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
        peer, other = known(bench, send_buffer_bytes=1), known(bench)
        limit(bench, memory_bytes)
        block(bench, peer)
        begin(bench, other)
        bench.pass_ms(5_000)
        assert ended(bench, peer) == ended(bench, other) == []
