"""Check which connections the outbox limits apply to, and for which of them publications wait.

A connection is behind from a write that its socket took in part until all bytes are taken that waited then.
The test moves the clock; nothing here is timed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.reactor_rig import Peer, Rig, rig
from wsgate.reactor import Settings, event_kinds

NEWS = b"news"
GRACE_MS = 2_000
LONG_MS = 1_000_000_000
PAYLOAD = bytes(50)


@contextmanager
def crowd(count: int, **changes: Any) -> Iterator[tuple[Rig, list[Peer]]]:
    """Connect `count` subscribers of one channel, with outboxes of 8 frames and no deadline but the grace."""
    chosen: dict[str, Any] = {
        "outbox_frames": 8,
        "outbox_bytes": 64 * 1024,
        "outbox_age_ms": 600_000,
        "write_timeout_ms": LONG_MS,
        "ping_interval_ms": 0,
    }
    with rig(Settings(**chosen | changes)) as bench:
        peers = [bench.connect(send_buffer_bytes=4_096) for _ in range(count)]
        for peer in peers:
            bench.reactor.subscribe(peer.conn, NEWS)
        yield bench, peers


def look(bench: Rig, peer: Peer) -> dict[str, int]:
    found = bench.reactor.inspect(peer.conn)
    assert found is not None
    return found


def fill(bench: Rig, peer: Peer) -> None:
    """Send until the socket is full."""
    while not look(bench, peer)["blocked"]:
        assert bench.reactor.send(peer.conn, bytes(600))
        bench.reactor.flush(bench.now_ms)


def test_outbox_limits_do_not_apply_to_a_connection_that_is_not_behind() -> None:
    """A burst of 2,000 publications before the next write is far above the limits, and every one arrives."""
    with crowd(3) as (bench, peers):
        for number in range(2_000):
            assert bench.reactor.publish(NEWS, [b"%04d" % number]) == 3
        got: dict[int, list[bytes]] = {peer.conn: [] for peer in peers}
        for _ in range(500):
            bench.step()
            for peer in peers:
                got[peer.conn] += [frame.payload for frame in peer.frames()]
        assert not bench.events
        for peer in peers:
            assert got[peer.conn] == [b"%04d" % number for number in range(2_000)]
        bench.audit()


def test_outbox_over_half_full_makes_publications_wait_until_the_next_write() -> None:
    with crowd(3) as (bench, peers):
        for _ in range(4):
            bench.reactor.publish(NEWS, [PAYLOAD])
            assert not bench.reactor.is_full, "half is not over half"
        bench.reactor.publish(NEWS, [PAYLOAD])
        assert bench.reactor.is_full
        assert bench.count("now_pacing") == 3
        bench.audit()
        bench.turn()
        assert not bench.reactor.is_full
        for _ in range(5):
            bench.reactor.send(peers[0].conn, PAYLOAD)
        assert bench.reactor.is_full
        bench.reactor.abort(peers[0].conn)
        assert not bench.reactor.is_full


@pytest.mark.parametrize("end", ["close", "fail", "reset"])
def test_publications_do_not_wait_for_a_connection_that_has_ended(end: str) -> None:
    with crowd(2) as (bench, peers):
        for _ in range(5):
            bench.reactor.send(peers[0].conn, PAYLOAD)
        assert bench.reactor.is_full
        if end == "close":
            bench.reactor.close(peers[0].conn, 1000)
        elif end == "fail":
            bench.reactor.set_deadline(peers[0].conn, bench.now_ms + 10, 4001)
            bench.now_ms += 250
            bench.reactor.tick(bench.now_ms)
        else:
            peers[0].close()
            bench.turn()
        assert not bench.reactor.is_full
        bench.audit()


def test_r16_peer_that_never_empties_its_outbox_stays_behind_between_its_reads() -> None:
    """R16: the socket takes bytes again and again, but never all that waited, so the limits keep applying."""
    with crowd(1, outbox_frames=64) as (bench, [peer]):
        fill(bench, peer)
        for _ in range(30):
            bench.reactor.send(peer.conn, bytes(600))
        is_blocked = []
        for _ in range(4):
            peer.sock.recv(1_500)
            bench.reactor.poll(bench.now_ms)
            found = look(bench, peer)
            is_blocked.append(bool(found["blocked"]))
            assert found["owed_bytes"] > 0
            bench.reactor.flush(bench.now_ms)
        assert False in is_blocked, "the socket was writable in between"
        while bench.reactor.send(peer.conn, PAYLOAD):
            assert look(bench, peer)["outbox_frames"] <= 64
        bench.turn()
        assert bench.of(peer) == [(event_kinds.FAILING, 4010)]


def test_outbox_limits_stop_applying_after_the_peer_has_read_all_waiting_bytes() -> None:
    with crowd(1) as (bench, [peer]):
        fill(bench, peer)
        while look(bench, peer)["owed_bytes"]:
            peer.receive()
            bench.turn()
        for _ in range(100):
            assert bench.reactor.send(peer.conn, PAYLOAD)
        assert not bench.reactor.send(peer.conn, PAYLOAD) or not bench.events


# --- the grace ----------------------------------------------------------------------------------------

GRACE = {"blocked_grace_ms": GRACE_MS}


def test_publications_do_not_wait_for_one_slow_peer_within_its_grace() -> None:
    with crowd(3, **GRACE) as (bench, peers):
        slow, *quick = peers
        fill(bench, slow)
        got = dict.fromkeys((peer.conn for peer in quick), 0)
        for _ in range(100):
            bench.reactor.publish(NEWS, [PAYLOAD])
            bench.turn()
            assert not bench.reactor.is_full
            for peer in quick:
                got[peer.conn] += len(peer.frames())
        assert look(bench, slow)["outbox_frames"] > 100, "within its grace frames are not counted"
        assert set(got.values()) == {100}
        bench.pass_ms(GRACE_MS + 500)
        assert not bench.of(slow), "no publication came after the grace"
        bench.reactor.publish(NEWS, [PAYLOAD])
        bench.turn()
        assert bench.of(slow) == [(event_kinds.FAILING, 4010)]
        assert not bench.of(quick[0])


@pytest.mark.parametrize("frames", [8, 1_000])
@pytest.mark.parametrize("behind", [1, 4, 35])
def test_byte_limit_of_an_outbox_holds_within_the_grace_too(behind: int, frames: int) -> None:
    """No connection that is behind buffers more than the limit, whatever their number."""
    limit_bytes = 16 * 1024
    limits = {"outbox_bytes": limit_bytes, "outbox_frames": frames}
    with crowd(70, **GRACE | limits) as (bench, peers):
        slow = peers[:behind]
        for peer in slow:
            fill(bench, peer)
        most = 0
        while not bench.events:
            assert not bench.reactor.is_full
            bench.reactor.publish(NEWS, [bytes(1_000)])
            if not bench.events:
                most = max(most, *(look(bench, peer)["outbox_bytes"] for peer in slow))
            bench.turn()
            for peer in peers[behind:]:
                peer.receive()
        assert limit_bytes // 2 < most <= limit_bytes
        assert sorted(bench.events) == sorted((event_kinds.FAILING, peer.conn, 4010) for peer in slow)


@pytest.mark.parametrize("frames", [8, 1_000])
@pytest.mark.parametrize("size", [0, 1_000, 12_000])
def test_outboxes_of_a_slow_majority_exceed_half_the_limit_by_one_message(size: int, frames: int) -> None:
    limit_bytes = 16 * 1024
    limits = {"outbox_bytes": limit_bytes, "outbox_frames": frames}
    with crowd(70, **GRACE | limits) as (bench, peers):
        slow = peers[:36]
        for peer in slow:
            fill(bench, peer)
        while not bench.reactor.is_full and not bench.events:
            bench.reactor.publish(NEWS, [bytes(size)])
            bench.turn()
            for peer in peers[36:]:
                peer.receive()
        assert not bench.events
        for peer in slow:
            assert look(bench, peer)["outbox_bytes"] <= limit_bytes // 2 + size + 10


def test_within_the_grace_each_frame_is_charged_16_bytes_for_its_entry() -> None:
    with crowd(3, **GRACE | {"outbox_bytes": 10_000}) as (bench, peers):
        slow = peers[0]
        fill(bench, slow)
        for _ in range(1_000):
            if bench.of(slow):
                break
            bench.reactor.publish(NEWS, [bytes(20)])
            bench.turn()
            for peer in peers[1:]:
                peer.receive()
            found = look(bench, slow)
            assert found["outbox_bytes"] + 16 * found["outbox_frames"] <= 10_000
        assert bench.of(slow) == [(event_kinds.FAILING, 4010)]


def publish_to_crowd(bench: Rig, slow: list[Peer], others: list[Peer]) -> None:
    """Publish until publications wait, which happens before any outbox is far above its limits."""
    for peer in slow:
        fill(bench, peer)
    for _ in range(10):
        if bench.reactor.is_full:
            return
        bench.reactor.publish(NEWS, [PAYLOAD])
        bench.turn()
        for peer in others:
            peer.receive()
    raise AssertionError("publications never wait")


def test_publications_wait_at_most_1_s_for_a_slow_majority_that_reads_nothing() -> None:
    with crowd(3, **GRACE) as (bench, peers):
        publish_to_crowd(bench, peers[:2], peers[2:])
        bench.audit()
        bench.pass_ms(750)
        assert bench.reactor.is_full
        bench.pass_ms(500)
        assert not bench.reactor.is_full
        bench.pass_ms(3 * GRACE_MS)
        bench.audit()
        for _ in range(10):
            bench.reactor.publish(NEWS, [PAYLOAD])
            bench.turn()
        assert sorted(bench.events) == sorted((event_kinds.FAILING, peer.conn, 4010) for peer in peers[:2])


def test_publications_wait_for_a_slow_majority_whose_peers_read_in_turn() -> None:
    """One process reads for all peers in turn, so each peer reads less often than once in its grace."""
    with crowd(10, **GRACE) as (bench, peers):
        publish_to_crowd(bench, peers, [])
        published = dict.fromkeys((peer.conn for peer in peers), 0)
        for turn in range(36):
            while not bench.reactor.is_full and not bench.events:
                bench.reactor.publish(NEWS, [bytes(2_000)])
                bench.turn()
            peer = peers[turn % 10]
            published[peer.conn] += len(peer.receive())
            bench.pass_ms(250)
        assert bench.events == []
        assert min(published.values()) > 0


def test_publications_wait_at_most_10_s_for_a_slow_majority_that_reads_little() -> None:
    with crowd(3, **GRACE | {"outbox_bytes": 1 << 20}) as (bench, peers):
        for peer in peers[:2]:
            fill(bench, peer)
            for _ in range(100):
                bench.reactor.send(peer.conn, bytes(8_000))
        bench.turn()
        waited_ms = 0
        while bench.reactor.is_full:
            waited_ms += 500
            for peer in peers[:2]:
                peer.sock.recv(1 << 16)
            bench.pass_ms(500)
        assert 10_000 <= waited_ms <= 11_000
        assert bench.events == []


def test_slow_majority_begins_above_half_of_all_connections_and_ends_below_an_eighth() -> None:
    with crowd(33, **GRACE) as (bench, peers):
        for peer in peers[:16]:
            fill(bench, peer)
        for _ in range(20):
            bench.reactor.publish(NEWS, [PAYLOAD])
            bench.turn()
            assert not bench.reactor.is_full, "16 of 33 are no majority"
            for peer in peers[16:]:
                peer.receive()
        fill(bench, peers[16])
        assert bench.reactor.is_full
        for left, peer in enumerate(reversed(peers[1:17]), start=1):
            bench.reactor.abort(peer.conn)
            bench.turn()
            assert bench.reactor.is_full == (17 - left > 2 or (17 - left) * 8 >= 33 - left), left
            bench.audit()


def test_publications_do_not_wait_for_a_slow_majority_that_became_a_minority_by_new_connections() -> None:
    """No connection falls behind or catches up meanwhile; only the number of open ones changes."""
    with crowd(3, **GRACE) as (bench, peers):
        publish_to_crowd(bench, peers[:2], peers[2:])
        assert bench.reactor.is_full
        for _ in range(13):
            bench.connect()
        assert bench.reactor.is_full, "2 of 16 are an eighth"
        bench.connect()
        assert not bench.reactor.is_full
        bench.audit()


def test_slow_majority_that_keeps_reading_loses_no_publication_and_stays_open() -> None:
    """All sockets are full most of the time, because the process of the peers takes its turns slowly."""
    with crowd(4, **GRACE) as (bench, peers):
        got = dict.fromkeys((peer.conn for peer in peers), 0)
        was_full = published = 0
        for _ in range(20_000):
            if published < 1_000 and not bench.reactor.is_full:
                bench.reactor.publish(NEWS, [bytes(400)])
                published += 1
                bench.step()
                continue
            was_full += 1
            bench.step()
            for peer in peers:
                got[peer.conn] += len(peer.frames())
            if set(got.values()) == {1_000}:
                break
        assert set(got.values()) == {1_000}
        assert was_full > 10
        assert not bench.events


# --- progress -----------------------------------------------------------------------------------------

MOVING_MS = 500
MOVING = {"blocked_grace_ms": 60_000, "blocked_moving_ms": MOVING_MS}


def publish_until_full(bench: Rig, others: list[Peer], payload: bytes = PAYLOAD) -> int:
    """Publish until publications have to wait for a slow peer; return the number of publications."""
    for published in range(1, 1_000):
        bench.reactor.publish(NEWS, [payload])
        bench.turn()
        for peer in others:
            peer.receive()
        if bench.reactor.is_full:
            return published
    raise AssertionError("publications never wait")


def test_publications_wait_for_one_slow_peer_of_ten_that_keeps_taking_bytes() -> None:
    """The peer reads a little each time that publications wait, and loses nothing."""
    with crowd(10, **MOVING) as (bench, [slow, *others]):
        fill(bench, slow)
        published = 0
        for _ in range(50):
            published += publish_until_full(bench, others)
            assert not look(bench, slow)["outbox_frames"] > 100
            while bench.reactor.is_full:
                slow.sock.recv(1 << 16)
                bench.turn()
        slow.receive()
        bench.turn()
        assert published > 100
        assert bench.events == []


def test_peer_that_takes_no_byte_delays_publications_only_once() -> None:
    with crowd(10, **MOVING) as (bench, [slow, *others]):
        fill(bench, slow)
        publish_until_full(bench, others)
        bench.pass_ms(MOVING_MS + 500)
        for _ in range(100):
            assert not bench.reactor.is_full
            bench.reactor.publish(NEWS, [PAYLOAD])
            bench.turn()
            for peer in others:
                peer.receive()


def test_deliberately_slow_peer_delays_publications_by_1_s_and_a_twentieth_of_the_time() -> None:
    """The peer takes 600 bytes every 250 ms and never empties its outbox."""
    with crowd(10, **MOVING | {"outbox_bytes": 1 << 20}) as (bench, [slow, *others]):
        fill(bench, slow)
        for _ in range(100):
            bench.reactor.send(slow.conn, bytes(8_000))
        waited_ms = 0
        for _ in range(400):
            if bench.reactor.is_full:
                waited_ms += 250
            else:
                bench.reactor.publish(NEWS, [PAYLOAD])
            slow.sock.recv(600)
            bench.pass_ms(250)
            for peer in others:
                peer.receive()
        assert 1_000 <= waited_ms <= 1_000 + 100_000 // 20 + 2_000


def test_one_message_may_exceed_the_byte_limit_and_the_next_one_closes_the_connection() -> None:
    large = bytes(60_000)
    with crowd(10, **MOVING) as (bench, [slow, *_]):
        fill(bench, slow)
        assert bench.reactor.publish(NEWS, [large]) == 10
        assert bench.reactor.is_full
        assert bench.reactor.publish(NEWS, [large]) == 9, "a publication above the limit is not queued"
        bench.turn()
        assert bench.of(slow) == [(event_kinds.FAILING, 4010)]


# --- more grace ---------------------------------------------------------------------------------------


def test_slow_peer_that_takes_64_kib_within_its_grace_gets_another_grace() -> None:
    with crowd(2, **GRACE | {"outbox_bytes": 1 << 20}) as (bench, [peer, _]):
        fill(bench, peer)
        for _ in range(200):
            bench.reactor.send(peer.conn, bytes(4_000))
        for _ in range(3):
            taken = 0
            while taken < 80_000:
                taken += len(peer.receive())
                bench.turn()
            bench.pass_ms(GRACE_MS)
            assert look(bench, peer)["in_grace"]
            assert look(bench, peer)["owed_bytes"]
        bench.pass_ms(GRACE_MS + 500)
        assert not look(bench, peer)["in_grace"], "the peer took nothing within this grace"
