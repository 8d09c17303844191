"""Bound consumers that read slowly or not at all, without harm to the others (R16, S28)."""

import select
import socket
import struct

import pytest

from tests.support.frames import BINARY, CLOSE, PING, PONG, TEXT, ServerFrame, client_frame
from tests.support.reactor_rig import Peer, Rig, rig
from tests.support.tcp_rig import HEAD, hall, settle
from wsgate.reactor import Settings, event_kinds
from wsgate.reactor.event_kinds import POLICY_CLOSE, POLICY_DROP_OLDEST
from wsgate.reasons import Reason

SO_MEMINFO = 55
WMEM_QUEUED = 5


# --- R16 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [POLICY_CLOSE, POLICY_DROP_OLDEST])
def test_r16_one_percent_of_slow_readers_are_cut_or_lose_and_the_others_receive_all(policy: int) -> None:
    """R16: slow readers take 1 KB a second; the policy `close` cuts them with 4010.

    With `drop_oldest` the outbox closes no connection; the slow readers lose what they cannot take.
    """
    with rig(Settings(outbox_frames=64, outbox_age_ms=60_000, write_timeout_ms=60_000)) as bench:
        slow = [bench.connect(send_buffer_bytes=4096) for _ in range(2)]
        quick = [bench.connect() for _ in range(198)]
        got: dict[int, list[bytes]] = {peer.conn: [] for peer in quick}
        for peer in slow + quick:
            bench.reactor.subscribe(peer.conn, b"news", policy=policy)
        for number in range(400):
            bench.reactor.publish(b"news", [b"%04d" % number + bytes(1000)], position=number + 1)
            bench.turn()
            for peer in quick:
                got[peer.conn] += [frame.payload[:4] for frame in peer.frames()]
            if number % 10 == 0:
                bench.pass_ms(250, turns=False)
                for peer in slow:
                    peer.reader.receive_data(peer.sock.recv(256))
        for peer in quick:
            assert got[peer.conn] == [b"%04d" % number for number in range(400)]
            assert not bench.of(peer)
        if policy == POLICY_CLOSE:
            for peer in slow:
                assert bench.of(peer)[0] == (event_kinds.FAILING, 4010)
            assert bench.count("now_closing") + bench.count("now_connections") - 198 <= 4
            assert bench.count("dropped_policy") == 0
        else:
            assert not bench.events
            assert bench.count("dropped_policy") > 0
        assert bench.held()["outbox"] <= 2 * 8192


def test_r16_cut_slow_reader_that_reads_on_finds_whole_frames_and_then_close_4010() -> None:
    """R16: nothing of a frame is missing before the Close."""
    with rig(Settings(outbox_frames=16)) as bench:
        peer = bench.connect(send_buffer_bytes=4096)
        bench.reactor.subscribe(peer.conn, b"news")
        for _ in range(40):
            bench.reactor.publish(b"news", [bytes(3000)])
            bench.turn()
        frames: list[ServerFrame] = []
        for _ in range(100):
            frames += peer.frames()
            bench.turn()
        assert frames[-1] == ServerFrame(CLOSE, b"\x0f\xaa")
        assert {len(frame.payload) for frame in frames[:-1]} == {3000}
        peer.close()
        bench.turn()
        assert bench.of(peer) == [(event_kinds.FAILING, 4010), (event_kinds.CLOSED, Reason.SLOW_CONSUMER)]


# --- frames stay whole while they wait --------------------------------------------------------------


def until_blocked(bench: Rig, peer: Peer, size: int) -> list[bytes]:
    """Send messages of this size, all different, until the last one is only partly written."""
    sent: list[bytes] = []
    while bench.count("now_blocked") == 0:
        sent.append((b"%08d" % len(sent)) * (size // 8))
        assert bench.reactor.send(peer.conn, sent[-1], 2)
        bench.turn()
    return sent


@pytest.mark.parametrize("drain_bytes", [1 << 20, 100_000, 8_192])
@pytest.mark.parametrize("size", [8_000, 72_000, 320_000, 800_000])
@pytest.mark.parametrize("is_tcp", [False, True], ids=["unix", "tcp"])
def test_pong_to_a_ping_during_a_half_sent_message_goes_behind_the_message(
    size: int, drain_bytes: int, is_tcp: bool
) -> None:
    """The pong is never written into the frame of the message.

    The socket is drained in different steps, so that writes begin anywhere and have any length.
    """
    with rig() as bench:
        peer = bench.connect(tcp=is_tcp)
        sent = until_blocked(bench, peer, size)
        frames: list[ServerFrame] = []
        idle = 0
        for number in range(2000):
            if number < 50:
                peer.send(client_frame(PING, b"%d" % number))
            bench.turn()
            try:
                frames += peer.reader.receive_data(peer.sock.recv(drain_bytes))
                idle = 0
            except BlockingIOError:
                # Written bytes may wait in the kernel until the window opens again.
                if number >= 50 and not select.select([peer.sock], [], [], 0.02)[0]:
                    idle += 1
                if idle == 10:
                    break
        assert not bench.events
        assert [frame.payload for frame in frames if frame.opcode == BINARY] == sent
        pongs = [int(frame.payload) for frame in frames if frame.opcode == PONG]
        assert pongs == sorted(set(pongs))
        assert pongs[-1] == 49


def test_pong_to_a_ping_behind_the_request_head_follows_the_101() -> None:
    """The peer sends the ping before it has an answer to its head."""
    with rig() as bench:
        peer = bench.connect(upgraded=False)
        peer.send(HEAD + client_frame(PING, b"early"))
        bench.turn()
        bench.reactor.upgrade(peer.conn, b"HTTP/1.1 101 x\r\n\r\n")
        bench.reactor.poll(bench.now_ms)
        bench.turn()
        assert peer.receive() == b"HTTP/1.1 101 x\r\n\r\n\x8a\x05early"


# --- kernel memory ----------------------------------------------------------------------------------


def kernel_bytes(descriptor: int) -> int:
    """Return the size of the kernel's send queue of a socket, with the overhead of the kernel."""
    duplicate = socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM)
    with duplicate:
        values: tuple[int, ...] = struct.unpack("9I", duplicate.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
    return values[WMEM_QUEUED]


@pytest.mark.parametrize("size", [20, 125, 512, 4_096, 24_000, 31_000, 100_000])
def test_kernel_memory_of_blocked_peers_is_at_most_kernel_queued(size: int) -> None:
    """S28: 50 peers never read; the account covers the send memory that they use in the kernel."""
    count = 50
    with hall(Settings(outbox_bytes=1 << 26, outbox_frames=1 << 16)) as bench:
        for _ in range(count):
            bench.dial(HEAD)
        settle(bench, lambda: bench.count("now_open") == count)
        handles = [conn for kind, conn, _ in bench.events if kind == event_kinds.OPEN]
        for conn in handles:
            bench.reactor.subscribe(conn, b"news")

        def is_blocked() -> bool:
            for _ in range(50):
                bench.reactor.publish(b"news", [bytes(size)])
                bench.step()
            return bench.count("now_blocked") == count

        settle(bench, is_blocked)
        taken = 0
        for conn in handles:
            state = bench.reactor.inspect(conn)
            assert state is not None
            taken += kernel_bytes(state["fd"])
        booked = bench.reactor.bytes_held()["kernel_queued"]
        assert taken <= booked, f"{taken / count:.0f} bytes each, {booked / count:.0f} on the account"


def test_unread_bytes_in_sockets_that_are_not_full_are_on_kernel_queued() -> None:
    """S28: the peers do not read, but send pongs, so that no deadline ends them.

    Their sockets refuse nothing. The account covers the bytes of each, and is at most 8 KiB per peer too
    high.
    """
    with hall(Settings(ping_interval_ms=5_000, outbox_age_ms=600_000)) as bench:
        peers = [bench.meet(bench.dial(HEAD, receive_buffer_bytes=2_048)) for _ in range(50)]
        for peer in peers:
            bench.reactor.send(peer.conn, bytes(12_000))
        bench.turn()
        assert bench.count("now_blocked") == 0
        for _ in range(30):
            for peer in peers:
                peer.send(client_frame(PONG))
            bench.pass_ms(250)
        assert bench.count("now_blocked") == 0
        booked = bench.reactor.bytes_held()["kernel_queued"]
        states = [bench.reactor.inspect(peer.conn) for peer in peers]
        real = sum(kernel_bytes(state["fd"]) for state in states if state is not None)
        assert real > 50 * 6_000
        assert real <= booked <= real + 50 * 8_192
        # After the peers have read everything, the account is empty at the next measurement.
        for peer in peers:
            settle(bench, lambda peer=peer: len(peer.received + peer.receive()) >= 12_000)  # type: ignore[misc]
        for _ in range(30):
            for peer in peers:
                peer.send(client_frame(PONG))
            bench.pass_ms(250)
        assert bench.reactor.bytes_held()["kernel_queued"] == 0


def test_bytes_that_a_paused_peer_sends_are_on_kernel_queued_until_its_abort() -> None:
    """While commands wait for the bus, reading is paused, and the kernel keeps what the peer sends."""
    with hall(Settings(ping_interval_ms=5_000)) as bench:
        peer = bench.meet(bench.dial(HEAD))
        bench.reactor.pause_reading(peer.conn)
        sent = 1
        total = 0
        while sent:
            sent = peer.send(bytes(4_096))
            total += sent
        bench.pass_ms(6_000)
        assert 8_192 < bench.reactor.bytes_held()["kernel_queued"] < 65_536
        bench.reactor.abort(peer.conn)
        bench.turn()
        assert bench.reactor.bytes_held()["kernel_queued"] == 0


def test_kernel_queued_returns_to_zero_when_blocked_peers_read_close_or_are_aborted() -> None:
    """One of three blocked peers drains its socket, one closes, and one is aborted."""
    with rig() as bench:
        crowd: list[Peer] = []
        for _ in range(3):
            peer = bench.connect(send_buffer_bytes=4096)
            bench.reactor.send(peer.conn, bytes(30_000))
            crowd.append(peer)
        bench.turn()
        booked = bench.reactor.bytes_held()["kernel_queued"]
        assert booked >= 3 * 4_096
        drain(bench, crowd[0])
        crowd[1].close()
        bench.turn()
        bench.reactor.abort(crowd[2].conn)
        bench.turn()
        assert bench.reactor.bytes_held()["kernel_queued"] == 0
        assert bench.held()["outbox"] == 0


def drain(bench: Rig, peer: Peer) -> None:
    """Read until nothing more arrives."""
    for _ in range(100):
        peer.receive()
        bench.turn()


def test_reader_beside_500_blocked_sockets_receives_each_reply_with_the_next_flush() -> None:
    """The reactor does not try to write to the blocked sockets again."""
    with rig(Settings(write_timeout_ms=60_000, outbox_age_ms=60_000)) as bench:
        for _ in range(500):
            stuck = bench.connect(send_buffer_bytes=4096)
            bench.reactor.send(stuck.conn, bytes(30_000))
        good = bench.connect()
        bench.turn()
        assert bench.count("now_blocked") == 500
        sends = bench.count("sends")
        for index in range(100):
            good.send(client_frame(TEXT, b"%d" % index))
            batch = bench.step()
            assert batch == [(event_kinds.TEXT, good.conn, b"%d" % index)]
            bench.reactor.send(good.conn, b"%d" % index)
            assert not bench.reactor.flush(bench.now_ms)
            assert [frame.payload for frame in good.frames()] == [b"%d" % index]
        assert bench.count("sends") - sends == 100, "the reactor tried a blocked socket again"
