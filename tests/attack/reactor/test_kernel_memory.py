"""Account for the memory that the kernel keeps for a peer that does not read, also after its close."""

import socket
from collections.abc import Iterator

import pytest

from tests.support.frames import client_frame
from tests.support.reactor_rig import Peer, Rig
from wsgate.reactor import Settings

SENT = bytes(60_000)
LEAST = 30_000
"""The part of those bytes that does not fit into the window of the peer."""
BROKEN = b"\xff\x80\x00\x00\x00\x00"
UNREAD = client_frame(2, bytes(1_000))


def connect(bench: Rig) -> Peer:
    """Connect a peer with a tiny window, and with a send buffer that takes all of SENT at once."""
    with socket.socket() as listener, socket.socket() as theirs:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        theirs.connect(listener.getsockname())
        ours, _ = listener.accept()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1_024)
        conn = bench.reactor.adopt(ours.detach(), now_ms=bench.now_ms, upgraded=True)
        peer = Peer(socket.socket(fileno=theirs.detach()), conn)
    bench.peers.append(peer)
    return peer


def kernel(bench: Rig) -> tuple[int, int]:
    """Return the bytes on the accounts of open and of closed sockets, after an audit of every account."""
    bench.audit()
    held = bench.reactor.bytes_held()
    return held["kernel_queued"], held["kernel_orphans"]


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(getattr(request, "param", Settings(ping_interval_ms=0)))
    yield made
    made.close()


def test_unread_bytes_are_on_the_account_1500_ms_after_the_write(bench: Rig) -> None:
    peer = connect(bench)
    bench.reactor.send(peer.conn, SENT)
    bench.turn()
    assert bench.count("sends_blocked") == 0
    bench.pass_ms(1_500)
    assert kernel(bench)[0] > LEAST


def test_unread_large_write_is_on_the_account_although_the_peer_was_sent_little_before(
    bench: Rig,
) -> None:
    """The first write is as small as the welcome of a client. The peer does not take the second one."""
    peer = connect(bench)
    bench.reactor.send(peer.conn, b"welcome")
    bench.turn()
    bench.reactor.send(peer.conn, SENT)
    bench.turn()
    bench.pass_ms(1_500)
    assert kernel(bench)[0] > LEAST


def test_lingering_peer_stays_on_the_account_until_it_ends_with_a_reset(bench: Rig) -> None:
    peer = connect(bench)
    bench.reactor.send(peer.conn, SENT)
    bench.turn()
    peer.sock.send(BROKEN)
    bench.turn()
    assert bench.count("now_lingering") == 1
    assert kernel(bench)[0] > LEAST
    peer.sock.send(UNREAD)
    bench.turn()
    assert kernel(bench)[0] > LEAST, "bytes that the peer sends meanwhile must not change the account"
    bench.pass_ms(1_500)
    assert bench.count("now_connections") == 0
    assert kernel(bench) == (0, 0)
    with pytest.raises(ConnectionResetError):
        for _ in range(100):
            peer.sock.setblocking(True)
            if not peer.sock.recv(1 << 16):
                break


@pytest.mark.parametrize(
    "bench", [Settings(ping_interval_ms=0, linger_limit_sockets=0)], indirect=True, ids=["none may linger"]
)
def test_peer_that_may_not_linger_is_on_the_orphan_account_until_the_kernel_gives_up(bench: Rig) -> None:
    peer = connect(bench)
    bench.reactor.send(peer.conn, SENT)
    bench.turn()
    peer.sock.send(BROKEN)
    bench.turn()
    assert bench.count("now_connections") == 0 and bench.count("lingers_skipped") == 1
    queued, orphans = kernel(bench)
    assert queued == 0 and orphans > LEAST
    bench.pass_ms(1_000)
    assert kernel(bench) == (0, orphans)
    bench.pass_ms(1_250)
    assert kernel(bench) == (0, 0)


def test_peer_that_read_everything_before_its_close_leaves_both_accounts_empty(bench: Rig) -> None:
    peer = bench.connect(tcp=True)
    bench.reactor.send(peer.conn, SENT)
    bench.turn()
    peer.frames()
    peer.sock.send(BROKEN)
    bench.turn()
    peer.frames()
    peer.close()
    bench.turn()
    assert bench.count("now_connections") == 0
    assert kernel(bench) == (0, 0)
