"""Check shedding (R19): all accounts together against one memory budget.

Near the budget new connections are refused, and above it connections are closed in a fixed order.
"""

import socket
from contextlib import closing
from typing import Final

import pytest

from tests.support.frames import BINARY, CLOSE, TEXT, client_frame, client_header
from tests.support.reactor_rig import Peer, Rig, rig
from wsgate.reactor import GateLimits, Settings, event_kinds
from wsgate.reasons import Reason

COST: Final = 12_000  # bytes of a connection in these tests: over a sixteenth of an idle reactor's memory
TABLE: Final = 144 * 1024
ENOUGH: Final = 1 << 30
SETTINGS: Final = Settings(ping_interval_ms=0, outbox_age_ms=60_000, write_timeout_ms=60_000)


def limit(bench: Rig, memory_bytes: int) -> None:
    bench.reactor.set_gate(GateLimits(memory_bytes=memory_bytes, connection_bytes=COST), b"no")


def accounted(bench: Rig) -> int:
    return sum(bench.reactor.bytes_held().values())


def authenticated(bench: Rig, *, send_buffer_bytes: int = 0) -> Peer:
    """Return a client that has authenticated."""
    peer = bench.connect(send_buffer_bytes=send_buffer_bytes)
    bench.reactor.set_meta(peer.conn, "somebody")
    return peer


def block(bench: Rig, peer: Peer, size: int = 200_000) -> None:
    """Send more than the socket of the peer takes."""
    bench.reactor.send(peer.conn, bytes(size), BINARY)
    bench.turn()
    numbers = bench.reactor.inspect(peer.conn)
    assert numbers is not None and numbers["blocked"]


def begin_message(bench: Rig, peer: Peer, size: int = 30_000) -> None:
    """Send a message without its last byte."""
    for piece in (client_header(BINARY, size + 1), bytes(size)):
        peer.send(piece)
        bench.turn()


def ended(bench: Rig, peer: Peer) -> list[tuple[int, bytes | int]]:
    return [
        (kind, value) for kind, value in bench.of(peer) if kind in (event_kinds.FAILING, event_kinds.CLOSED)
    ]


def test_memory_account_includes_each_connection_and_the_bytes_in_full_sockets() -> None:
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        before = accounted(bench)
        peer = bench.connect(send_buffer_bytes=1)
        assert accounted(bench) == before + COST + TABLE
        block(bench, peer)
        held = bench.reactor.bytes_held()["kernel_queued"]
        assert held >= 4_096, "the bytes in the socket and one page"
        assert accounted(bench) >= before + COST + TABLE + held + 150_000


def test_new_connections_are_refused_near_the_budget_and_accepted_again_well_below() -> None:
    with rig(SETTINGS) as bench, closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.setblocking(False)
        bench.reactor.listen(listener.fileno())
        limit(bench, ENOUGH)
        peers = [bench.connect() for _ in range(20)]
        budget = 16 * accounted(bench) // 15

        def refused() -> bool:
            before = bench.count("ended_refused_memory")
            with socket.create_connection(listener.getsockname()):
                bench.turn()
            bench.turn()  # the connection has ended
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


def test_unfinished_message_that_would_exceed_the_budget_closes_1013() -> None:
    with rig(SETTINGS) as bench:
        peer = bench.connect()
        limit(bench, accounted(bench) + 20_000)
        begin_message(bench, peer)
        assert [frame.opcode for frame in peer.frames()] == [CLOSE]
        assert ended(bench, peer)[0] == (event_kinds.FAILING, 1013)
        assert bench.count("ended_partial_bytes") + bench.count("now_lingering") == 1


def test_peer_with_unread_bytes_in_the_kernel_is_shed_before_an_idle_one() -> None:
    """The socket is not full, so the outbox is empty."""
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        resting, unread = authenticated(bench), authenticated(bench)
        bench.reactor.send(unread.conn, bytes(12_000), BINARY)
        bench.pass_ms(26_000)
        assert bench.count("now_blocked") == 0
        held = bench.reactor.bytes_held()
        assert held["kernel_queued"] > 8_192
        limit(bench, accounted(bench) - held["pool"] - 1)
        bench.pass_ms(250)
        assert ended(bench, unread)[0] == (event_kinds.FAILING, 4013)
        assert not ended(bench, resting)


def test_memory_of_closing_connections_counts_as_freed_when_shedding() -> None:
    """The closed connections linger for a second, and no further connection is closed for their memory."""
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        for _ in range(40):
            authenticated(bench)
        before = accounted(bench)
        over = before - (before - 1) * 15 // 16
        limit(bench, before - 1)
        for _ in range(3):
            bench.pass_ms(250)
            assert bench.count("now_lingering") == -(-over // COST)
            assert accounted(bench) >= before - over, "the account includes them until they have ended"


def test_connections_are_shed_in_order_stalled_unauthenticated_unfinished_slow_idle() -> None:
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        stalled = authenticated(bench, send_buffer_bytes=1)
        unknown = bench.connect()
        unfinished, idle, speaker = authenticated(bench), authenticated(bench), authenticated(bench)
        slow = authenticated(bench, send_buffer_bytes=1)
        block(bench, stalled)
        begin_message(bench, unfinished)
        bench.pass_ms(1_000)
        block(bench, slow)
        order: list[str] = []
        for _ in range(20):
            speaker.send(client_frame(TEXT, b"I am here"))
            bench.turn()
            limit(bench, accounted(bench) - 1)
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
                    peer.close()  # as the Close requested
            bench.turn()
            if order[-1:] == ["idle"]:
                break
        assert order == ["stalled", "unknown", "unfinished", "slow", "idle"]
        assert ended(bench, stalled) == [(event_kinds.CLOSED, Reason.SHED)], (
            "reset, because the peer would not read a Close"
        )
        assert ended(bench, unfinished)[0] == (event_kinds.FAILING, 4013)
        assert bench.reactor.send(speaker.conn, b"still here")
        bench.turn()
        assert [frame.payload for frame in speaker.frames()] == [b"still here"]


def test_longest_idle_connections_are_shed_first() -> None:
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        peers = [authenticated(bench) for _ in range(6)]
        # The last peer is idle longest. The reactor rounds idle times to powers of two; these all differ.
        for peer, then_ms in zip(reversed(peers), (24_000, 12_000, 6_000, 3_000, 1_500, 250), strict=True):
            peer.send(client_frame(TEXT, b"."))
            bench.turn()
            bench.pass_ms(then_ms)
        order: list[int] = []
        while len(order) < 4:
            limit(bench, accounted(bench) - 1)
            bench.pass_ms(250)
            gone = [number for number, peer in enumerate(peers) if ended(bench, peer)]
            assert gone, "at least one connection must be shed"
            order += sorted(set(gone) - set(order), reverse=True)
            for number in gone:
                peers[number].close()
            bench.turn()
        assert order[:4] == [5, 4, 3, 2]


def test_bytes_reported_by_the_caller_count_and_its_flag_refuses_new_connections() -> None:
    with rig(SETTINGS) as bench, closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.setblocking(False)
        bench.reactor.listen(listener.fileno())
        limit(bench, ENOUGH)
        before = accounted(bench)
        bench.reactor.book(5_000_000)
        assert accounted(bench) == before + 5_000_000
        bench.reactor.book(0, refuses_newcomers=True)
        with socket.create_connection(listener.getsockname()):
            bench.turn()
        assert bench.count("ended_refused_memory") == 1
        assert bench.count("now_short") == 1
        bench.reactor.book(0)
        assert bench.count("now_short") == 0
        bench.reactor.stop_listening()


def test_active_peer_with_an_unfinished_frame_is_not_shed_before_idle_ones() -> None:
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        peer, *idle = authenticated(bench), authenticated(bench), authenticated(bench), authenticated(bench)
        bench.pass_ms(10_000)
        peer.send(client_frame(TEXT, b"hello"))
        peer.send(client_frame(TEXT, bytes(200))[:-1])
        bench.turn()
        limit(bench, accounted(bench) - 1)
        bench.pass_ms(250)
        assert any(ended(bench, each) for each in idle), "an idle connection is shed before an active one"
        assert ended(bench, peer) == []


def test_one_tick_sheds_only_as_many_as_needed_and_at_most_256() -> None:
    each = 4096 + 256 + COST  # the block of the message, that of the input, and the connection
    with rig(SETTINGS) as bench:
        limit(bench, ENOUGH)
        for peer in [authenticated(bench) for _ in range(300)]:
            begin_message(bench, peer, 3_000)
        limit(bench, accounted(bench))
        bench.pass_ms(250, turns=False)
        assert bench.count("now_open") == 300, "memory is at the budget and not above"
        limit(bench, accounted(bench) - 1)
        over = accounted(bench) - (accounted(bench) - 1) * 15 // 16
        bench.pass_ms(250, turns=False)
        assert bench.count("now_failing") == over // each + 1
        bench.turn()
        left = bench.count("now_open")
        limit(bench, 1)
        bench.pass_ms(250)
        assert bench.count("now_open") == max(0, left - 256)


@pytest.mark.parametrize("memory_bytes", [0, ENOUGH])
def test_no_connection_is_shed_within_the_budget_or_without_a_budget(memory_bytes: int) -> None:
    with rig(SETTINGS) as bench:
        peer, other = authenticated(bench, send_buffer_bytes=1), authenticated(bench)
        limit(bench, memory_bytes)
        block(bench, peer)
        begin_message(bench, other)
        bench.pass_ms(5_000)
        assert ended(bench, peer) == ended(bench, other) == []
