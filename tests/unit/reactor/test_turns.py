"""Check turns under load: no connection waits too long, and a failed turn ends one connection."""

import contextlib
import itertools
import resource
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.support.frames import CLOSE, client_close, client_frame, client_header
from tests.support.reactor_rig import Peer, Rig, rig
from wsgate.reactor import GateLimits, Settings, event_kinds, loop
from wsgate.reasons import Reason

US_PER_MESSAGE = 50


def busy_poll(bench: Rig, clock_us: int) -> int:
    """Poll once with messages that take the caller 50 us each; return the caller's clock after that in us."""
    clock_us += len(bench.reactor.poll(bench.now_ms, 64)) * US_PER_MESSAGE + 1
    bench.now_ms = 1_000_000 + clock_us // 1_000
    bench.reactor.flush(bench.now_ms)
    return clock_us


def connect_flooding(bench: Rig, count: int, messages: int) -> list[Peer]:
    peers = [bench.connect() for _ in range(count)]
    bench.turn()
    for peer in peers:
        peer.send(client_frame(1, b"x") * messages)
    return peers


def test_slow_reader_is_written_to_while_400_other_connections_flood() -> None:
    """A round of the 400 takes far longer than the write timeout, and the reader takes whatever is sent."""
    with rig(Settings(outbox_age_ms=60_000, write_timeout_ms=150)) as bench:
        victim = bench.connect(send_buffer_bytes=4_096)
        connect_flooding(bench, 400, 2_000)
        bench.reactor.send(victim.conn, b"v" * 100_000)
        bench.reactor.flush(bench.now_ms)
        clock_us = ticked_us = 0
        while len(victim.received) < 100_000:
            victim.receive()
            clock_us = busy_poll(bench, clock_us)
            if clock_us - ticked_us >= 250_000:
                ticked_us = clock_us
                bench.reactor.tick(bench.now_ms)
            assert bench.count("ended_write_stall") == 0
            assert clock_us < 30_000_000
        assert bench.reactor.inspect(victim.conn) is not None


def test_new_connection_is_read_before_a_round_of_400_flooding_connections_ends() -> None:
    with rig(Settings(message_rate_per_s=0)) as bench:
        connect_flooding(bench, 400, 2_000)
        clock_us = busy_poll(bench, 0)
        late = bench.connect()
        late.send(client_frame(1, b"late"))
        for _ in range(40):
            before_us = clock_us
            clock_us = busy_poll(bench, clock_us)
            if bench.reactor.inspect(late.conn) is None:
                break
        assert clock_us > before_us
        # A whole round is at least 8 messages of 400 connections; the newcomer is queued long before its end.
        assert bench.count("receives") < 2_000


HEAD = b"GET /ws HTTP/1.1\r\nHost: h\r\n\r\n"


def test_newcomers_are_read_before_flooding_connections_and_in_order_of_arrival() -> None:
    with rig() as bench, contextlib.ExitStack() as held:
        connect_flooding(bench, 400, 2_000)
        busy_poll(bench, 0)
        for _ in range(5):
            held.enter_context(_offer(bench)).send(HEAD)
        batch = bench.reactor.poll(bench.now_ms, 64)
        assert [event[0] for event in batch[:5]] == [event_kinds.OPEN] * 5
        handles = [event[1] & 0xFFFF_FFFF for event in batch[:5]]
        assert handles == sorted(handles), "slots are given in the order of arrival"


def test_newcomers_of_one_pass_are_limited_to_32_and_flooding_connections_follow() -> None:
    """The newcomers beyond the limit keep their places for the next pass."""
    with rig() as bench, contextlib.ExitStack() as held:
        connect_flooding(bench, 40, 2_000)
        busy_poll(bench, 0)
        for _ in range(40):
            held.enter_context(_offer(bench)).send(HEAD)
        opened = 0
        while opened < 40:
            batch = bench.reactor.poll(bench.now_ms)
            found = sum(event[0] == event_kinds.OPEN for event in batch)
            opened += found
            assert found or not batch, "newcomers are read before flooding connections"
            assert found <= 32
            bench.audit()
        assert any(
            event[0] == event_kinds.TEXT for _ in range(3) for event in bench.reactor.poll(bench.now_ms)
        )


def test_busy_connections_have_turns_in_each_pass_however_many_newcomers_wait() -> None:
    """In a storm of connections, 32 are opened in a pass and as many arrive: the queue never shrinks."""
    with rig() as bench, contextlib.ExitStack() as held:
        busy = connect_flooding(bench, 100, 1_000)
        for _ in range(64):
            held.enter_context(_offer(bench)).send(HEAD)
        served: list[bool] = []
        for _ in range(20):
            for _ in range(32):
                held.enter_context(_offer(bench)).send(HEAD)
            batch = bench.reactor.poll(bench.now_ms)
            assert sum(event[0] == event_kinds.OPEN for event in batch) <= 32
            texts = {event[1] for event in batch if event[0] == event_kinds.TEXT}
            assert texts <= {peer.conn for peer in busy}
            served.append(bool(texts))
            bench.audit()
        # Where the time of a pass is used up by the newcomers, the others are first in the next one.
        assert all(one or other for one, other in itertools.pairwise(served)), served


def test_heads_that_were_completed_after_their_first_turn_are_opened_in_a_storm_of_newcomers() -> None:
    """The newcomers would use up all opens of every pass."""
    with rig() as bench, contextlib.ExitStack() as held:
        older = [held.enter_context(_offer(bench)) for _ in range(40)]
        for peer in older:
            peer.send(b"GET /older HT")
        bench.turn()
        for peer in older:
            peer.send(b"TP/1.1\r\nHost: h\r\n\r\n")
        opened = 0
        for _ in range(8):
            for _ in range(40):
                held.enter_context(_offer(bench)).send(HEAD)
            batch = bench.reactor.poll(bench.now_ms)
            opened += sum(kind == event_kinds.OPEN and b"/older" in bytes(value) for kind, _, value in batch)
            bench.audit()
        assert opened == 40


def test_listener_is_polled_although_2500_other_connections_are_ready() -> None:
    with rig() as bench, contextlib.ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        listener.setblocking(False)
        connect_flooding(bench, 2_500, 100)
        bench.reactor.listen(listener.fileno())
        bench.reactor.poll(bench.now_ms, 64)
        late = held.enter_context(socket.create_connection(listener.getsockname()))
        late.send(HEAD)
        # One call of epoll_wait reports 512, and the listener stands behind 2,500 that stay ready.
        bench.now_ms += 5
        bench.reactor.poll(bench.now_ms, 64)
        assert bench.reactor.counters()["accepted"] == 1


def test_full_socket_is_written_to_again_although_1200_other_connections_are_ready() -> None:
    with rig(Settings(outbox_age_ms=60_000, write_timeout_ms=60_000)) as bench:
        victim = bench.connect(send_buffer_bytes=4_096)
        connect_flooding(bench, 1_200, 500)
        bench.reactor.send(victim.conn, b"v" * 100_000)
        bench.reactor.flush(bench.now_ms)
        bench.reactor.poll(bench.now_ms, 64)
        victim.receive()
        # One call of epoll_wait reports 512, and the victim stands behind 1,200 that stay ready.
        bench.now_ms += 5
        bench.reactor.poll(bench.now_ms, 64)
        bench.reactor.flush(bench.now_ms)
        assert victim.receive()


def test_stalled_peer_whose_socket_takes_bytes_again_is_not_reset() -> None:
    """The socket became writable after the last poll: the reactor checks the socket once before it resets."""
    with rig(Settings(write_timeout_ms=1_000, outbox_age_ms=60_000, ping_interval_ms=0)) as bench:
        peer = bench.connect(send_buffer_bytes=4_096)
        bench.reactor.send(peer.conn, b"v" * 60_000)
        bench.reactor.flush(bench.now_ms)
        peer.receive()
        for _ in range(8):
            bench.now_ms += 250
            bench.reactor.tick(bench.now_ms)
        assert bench.count("ended_write_stall") == 0
        for _ in range(200):
            peer.receive()
            bench.step()
        assert len(peer.received) > 60_000


@pytest.mark.parametrize("setting", ["write_timeout_ms", "outbox_age_ms"])
def test_stalled_peer_that_takes_no_byte_is_closed_after_its_timeout(setting: str) -> None:
    limits = Settings(ping_interval_ms=0, write_timeout_ms=20_000, outbox_age_ms=20_000)
    limits = replace(limits, write_timeout_ms=1_000) if setting == "write_timeout_ms" else limits
    limits = replace(limits, outbox_age_ms=1_000) if setting == "outbox_age_ms" else limits
    with rig(limits) as bench:
        peer = bench.connect(send_buffer_bytes=4_096)
        bench.reactor.send(peer.conn, b"v" * 60_000)
        bench.pass_ms(2_000)
        assert (
            bench.count("ended_write_stall")
            + bench.reactor.counters()["now_failing"]
            + bench.reactor.counters()["now_closing"]
            == 1
        )


@pytest.mark.skipif(
    bool(loop.ENUMERATIONS["has_exact_blocks"]), reason="AddressSanitizer reserves more than the limit leaves"
)
def test_failed_allocation_closes_only_the_connection_whose_message_needed_the_memory() -> None:
    """The test runs in its own process.

    In a shared process, memory that other tests have freed would serve the allocation that must fail.
    """
    done = subprocess.run(
        [sys.executable, "-c", "from tests.unit.reactor.test_turns import fail_an_allocation as run; run()"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def fail_an_allocation() -> None:
    """Run the body of the test above."""
    with rig(Settings(max_message_bytes=40 << 20)) as bench:
        big, other = bench.connect(), bench.connect()
        bench.turn()
        frame = client_frame(2, bytes(32 << 20))
        sent = 0
        while sent < len(frame) - 1:
            sent += big.send(frame[sent:-1])
            bench.step()
        bench.turn()
        bench.events.clear()
        other.send(client_frame(1, b"from the other"))
        big.send(frame[-1:] + client_frame(1, b"behind it"))
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20), before[1]))
        try:
            batches = [bench.reactor.poll(bench.now_ms) for _ in range(3)]
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        bench.events += [event for batch in batches for event in batch]
        bench.turn()
        assert bench.messages(other) == [b"from the other"]
        assert bench.messages(big) == []
        assert bench.of(big)[0] == (event_kinds.FAILING, 1011)
        assert [frame.payload[:2] for frame in big.frames() if frame.opcode == CLOSE] == [
            (1011).to_bytes(2, "big")
        ]
        bench.peers[0].send(client_close(1011))
        assert bench.reactor.inspect(other.conn) is not None


def test_large_channel_is_freed_after_a_publication_without_frames() -> None:
    with rig(Settings(walk_at_once=2, ping_interval_ms=0)) as bench:
        peers = [bench.connect() for _ in range(6)]
        for peer in peers:
            bench.reactor.subscribe(peer.conn, b"large")
        bench.reactor.publish(b"large", [None])
        for peer in peers:
            bench.reactor.unsubscribe(peer.conn, b"large")
        bench.audit()
        bench.turn()
        assert bench.reactor.counters()["now_channels"] == 0


def test_resuming_an_unpaused_connection_does_not_extend_its_message_timeout() -> None:
    with rig(Settings(message_timeout_ms=4_000, ping_interval_ms=0)) as bench:
        peer = bench.connect()
        peer.send(client_header(2, 10) + b"12345")
        bench.turn()
        for _ in range(5):
            bench.pass_ms(1_000)
            bench.reactor.resume_reading(peer.conn)
        assert bench.of(peer)[0] == (event_kinds.FAILING, 1008)


def test_byte_rate_credit_is_bounded_after_an_hour_without_messages() -> None:
    """An hour without messages does not permit an hour's worth of bytes at once."""
    with rig(Settings(byte_rate_per_s=1_000_000, max_message_bytes=1 << 20, ping_interval_ms=0)) as bench:
        peer = bench.connect()
        bench.turn()
        bench.now_ms += 3_600_000
        bench.reactor.tick(bench.now_ms)
        frame = client_frame(2, bytes(60_000))
        offered = 0
        while offered < 20_000_000 and bench.reactor.inspect(peer.conn) is not None:
            sent = 0
            while sent < len(frame):
                sent += peer.send(frame[sent:])
                bench.step()
            offered += 60_000
            if (event_kinds.FAILING, 4029) in bench.of(peer):
                break
        assert 8_000_000 <= offered <= 10_500_000


@pytest.mark.parametrize("silent", [b"", b"G", b"GET /ws HTTP/1.1\r\nHost: h\r\n"])
def test_oldest_incomplete_head_gives_its_place_to_a_newcomer(silent: bytes) -> None:
    settings = Settings(head_timeout_response=b"HTTP/1.1 408 late\r\n\r\n")
    with rig(settings) as bench:
        bench.reactor.set_gate(GateLimits(handshakes_in_progress=8), b"HTTP/1.1 503 full\r\n\r\n")
        held = [_offer(bench) for _ in range(8)]
        for sock in held:
            sock.send(silent)
        bench.turn()
        late = [_offer(bench) for _ in range(5)]
        for sock in late:
            sock.send(b"GET /ws HTTP/1.1\r\nHost: h\r\n\r\n")
        bench.turn()
        opened = [event for event in bench.events if event[0] == event_kinds.OPEN]
        assert len(opened) == 5
        assert (
            bench.count("ended_head_displaced")
            + bench.reactor.counters()["now_closing"]
            + bench.reactor.counters()["now_lingering"]
            == 5
        )
        assert bench.count("ended_refused_handshakes") == 0
        for sock in held[:5]:
            assert sock.recv(100).startswith(b"HTTP/1.1 408 ")
        for sock in (*held, *late):
            sock.close()
        bench.turn()


def test_newcomer_is_refused_when_every_handshake_waits_for_a_decision() -> None:
    with rig() as bench:
        bench.reactor.set_gate(GateLimits(handshakes_in_progress=2), b"HTTP/1.1 503 full\r\n\r\n")
        held = [_offer(bench) for _ in range(2)]
        for sock in held:
            sock.send(b"GET /ws HTTP/1.1\r\nHost: h\r\n\r\n")
        bench.turn()
        late = _offer(bench)
        late.send(b"G")
        bench.turn()
        assert bench.count("ended_refused_handshakes") == 1
        assert bench.count(f"ended_{Reason.HEAD_DISPLACED.name.lower()}") == 0
        for sock in (*held, late):
            sock.close()
        bench.turn()


def _offer(bench: Rig) -> socket.socket:
    """Return the peer of a socket that passes through the gate like one that a sibling shard handed over."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    bench.reactor.accept_handover(ours.detach(), now_ms=bench.now_ms)
    theirs.settimeout(5)
    return theirs
