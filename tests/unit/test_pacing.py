"""Who is judged by the limits of an outbox, and for whom publications wait.

A connection is behind from a write that its socket took in part until everything is taken that waited then.
Time is the bench's own: nothing here is timed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.rig import Peer, Rig, rig
from wsgate.reactor import Settings, events

NEWS = b"news"
GRACE_MS = 2_000
LONG_MS = 1_000_000_000
PAYLOAD = bytes(50)


@contextmanager
def crowd(count: int, **changes: Any) -> Iterator[tuple[Rig, list[Peer]]]:
    """So many subscribers of one channel, with outboxes of 8 frames, and no deadline but the grace."""
    chosen: dict[str, Any] = {
        "outbox_limit_frames": 8,
        "outbox_limit_bytes": 64 * 1024,
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


def test_a_connection_that_is_not_behind_is_never_judged() -> None:
    """A burst of 2,000 publications before the next write: far over the limits, and every one arrives."""
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


def test_a_reader_over_half_makes_publications_wait_until_it_is_written_to() -> None:
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
def test_a_connection_that_ends_makes_nothing_wait(end: str) -> None:
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


def test_a_peer_that_takes_little_stays_behind_between_its_reads() -> None:
    """R16: its socket takes bytes again and again, and never all that waited: it is judged all the time."""
    with crowd(1, outbox_limit_frames=64) as (bench, [peer]):
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
        assert bench.of(peer) == [(events.FAILING, 4010)]


def test_whoever_takes_everything_that_waited_is_not_judged_any_more() -> None:
    with crowd(1) as (bench, [peer]):
        fill(bench, peer)
        while look(bench, peer)["owed_bytes"]:
            peer.receive()
            bench.turn()
        for _ in range(100):
            assert bench.reactor.send(peer.conn, PAYLOAD)
        assert not bench.reactor.send(peer.conn, PAYLOAD) or not bench.events


# --- the grace --------------------------------------------------------------------------------------

GRACE = {"blocked_grace_ms": GRACE_MS}


def test_nobody_waits_for_one_that_is_behind() -> None:
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
        assert not bench.of(slow), "nothing came that was too much since"
        bench.reactor.publish(NEWS, [PAYLOAD])
        bench.turn()
        assert bench.of(slow) == [(events.FAILING, 4010)]
        assert not bench.of(quick[0])


@pytest.mark.parametrize("frames", [8, 1_000])
@pytest.mark.parametrize("behind", [1, 4, 35, 36])
def test_the_limit_of_bytes_knows_no_grace(behind: int, frames: int) -> None:
    """Whether one is behind or a crowd is: nobody in its grace holds more bytes than the limit."""
    limit_bytes = 16 * 1024
    limits = {"outbox_limit_bytes": limit_bytes, "outbox_limit_frames": frames}
    with crowd(70, **GRACE | limits) as (bench, peers):
        slow = peers[:behind]
        for peer in slow:
            fill(bench, peer)
        most = 0
        for _ in range(100):
            if bench.events or bench.reactor.is_full:
                break
            bench.reactor.publish(NEWS, [bytes(1_000)])
            if not bench.events:
                most = max(most, *(look(bench, peer)["outbox_bytes"] for peer in slow))
            bench.turn()
            for peer in peers[behind:]:
                peer.receive()
        assert 0 < most <= limit_bytes
        assert bench.reactor.is_full == (behind == 36), "a crowd is waited for"
        if behind < 36:
            assert most > limit_bytes // 2
            assert sorted(bench.events) == sorted((events.FAILING, peer.conn, 4010) for peer in slow)


def test_one_more_frame_within_a_grace_counts_with_its_entry() -> None:
    with crowd(3, **GRACE | {"outbox_limit_bytes": 10_000}) as (bench, peers):
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
        assert bench.of(slow) == [(events.FAILING, 4010)]


def test_publications_wait_for_a_crowd_that_is_behind_and_not_for_ever() -> None:
    """10 s at once, and afterwards a fifth of the time."""
    with crowd(3, **GRACE) as (bench, peers):
        for peer in peers[:2]:
            fill(bench, peer)
        published = 0
        while not bench.reactor.is_full and published < 100:
            bench.reactor.publish(NEWS, [PAYLOAD])
            bench.turn()
            published += 1
        assert published <= 8
        bench.audit()
        bench.pass_ms(9_500)
        assert bench.reactor.is_full
        bench.pass_ms(GRACE_MS + 500)
        assert not bench.reactor.is_full
        bench.pass_ms(GRACE_MS + 500)
        assert not bench.reactor.is_full, "their graces are over"
        assert len(peers[2].frames()) == published
        bench.audit()
        bench.reactor.publish(NEWS, [PAYLOAD])
        bench.turn()
        assert {event[1] for event in bench.events} <= {peer.conn for peer in peers[:2]}


def test_half_of_all_connections_are_no_crowd() -> None:
    with crowd(33, **GRACE) as (bench, peers):
        for peer in peers[:17]:
            fill(bench, peer)
        for number in range(20):
            bench.reactor.publish(NEWS, [PAYLOAD])
            bench.turn()
            for peer in peers[17:]:
                peer.receive()
            behind = bench.count("now_pacing")
            assert bench.reactor.is_full == (behind > 16)
            if number == 10:
                bench.reactor.abort(peers[0].conn)
        assert behind == 16


def test_a_crowd_that_reads_is_never_judged() -> None:
    """All sockets are full most of the time, because the peers' process takes its turns slowly."""
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


def test_whoever_takes_64_kib_within_its_grace_earns_another() -> None:
    with crowd(2, **GRACE | {"outbox_limit_bytes": 1 << 20}) as (bench, [peer, _]):
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
        assert not look(bench, peer)["in_grace"], "it took nothing in this one"
