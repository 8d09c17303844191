"""Notices of loss: who receives one, how many, and how much is done in a step."""

from collections.abc import Iterator

import pytest

from tests.support.reactor_rig import Peer, Rig
from wsgate.reactor import Settings

SLOTS = 1_024
"""A table has at least so many slots."""
FORMS = [[b"notice %d" % number] for number in range(16)]


@pytest.fixture
def bench() -> Iterator[Rig]:
    made = Rig(Settings(max_subscriptions=1_000))
    try:
        yield made
    finally:
        made.close()


def subscriber(bench: Rig, *channels: bytes, **options: int) -> Peer:
    peer = bench.connect(**options)  # type: ignore[arg-type]
    for channel in channels:
        assert bench.reactor.subscribe(peer.conn, channel) > 0
    return peer


def texts(bench: Rig, peer: Peer) -> list[bytes]:
    bench.turn()
    return [bytes(frame.payload) for frame in peer.frames() if frame.opcode == 1]


def frames_of(bench: Rig, peer: Peer) -> int:
    """How many messages wait in the outbox."""
    numbers = bench.reactor.inspect(peer.conn)
    assert numbers is not None
    return int(numbers["outbox_frames"])


def walk(bench: Rig, round: int, most: int = SLOTS) -> int:
    """A whole round; how many were notified."""
    place, total = bench.reactor.send_notices(0, most, FORMS, round=round)
    while place is not None:
        place, notified = bench.reactor.send_notices(place, most, FORMS, round=round)
        assert notified <= most
        total += notified
    return total


def test_a_round_notifies_each_concerned_connection_once(bench: Rig) -> None:
    both, one, other = (
        subscriber(bench, b"a", b"b", b"c"),
        subscriber(bench, b"b"),
        subscriber(bench, b"c"),
    )
    nothing = bench.connect()
    assert bench.reactor.mark_lost(b"a", 7) and bench.reactor.mark_lost(b"b", 7)
    assert not bench.reactor.mark_lost(b"d", 7), "nobody is subscribed there"
    assert walk(bench, 7) == 2
    assert [len(texts(bench, peer)) for peer in (both, one, other, nothing)] == [1, 1, 0, 0]
    assert walk(bench, 8) == 0, "the next round is about nothing"


def test_a_connection_that_has_left_the_channel_is_not_notified(bench: Rig) -> None:
    gone = subscriber(bench, b"a", b"b")
    stays = subscriber(bench, b"a")
    bench.reactor.mark_lost(b"a", 1)
    bench.reactor.unsubscribe(gone.conn, b"a")
    assert walk(bench, 1) == 1
    assert [len(texts(bench, peer)) for peer in (gone, stays)] == [0, 1]


def test_a_step_looks_at_so_many_slots_and_no_more(bench: Rig) -> None:
    peers = [subscriber(bench, b"a") for _ in range(50)]
    bench.reactor.mark_lost(b"a", 1)
    place: int | None = 0
    counts: list[int] = []
    while place is not None and len(counts) < 2_000:
        place, notified = bench.reactor.send_notices(place, 8, FORMS, round=1)
        counts.append(notified)
    assert max(counts) == 8 and sum(counts) == 50, "eight slots a step"
    assert all(len(texts(bench, peer)) == 1 for peer in peers)


def test_the_walk_waits_while_many_connections_wait_to_be_written() -> None:
    bench = Rig(Settings(max_subscriptions=10))
    try:
        peers = [subscriber(bench, b"a") for _ in range(1_100)]
        bench.reactor.mark_lost(b"a", 1)
        assert bench.reactor.send_notices(0, 1_024, FORMS, round=1) == (1_024, 1_024)
        assert bench.reactor.send_notices(1_024, 1_024, FORMS, round=1) == (1_024, 0), "unwritten"
        assert bench.reactor.send_notices(0, 1_024, FORMS, round=1) == (0, 0), "not at the end, either"
        bench.turn()
        assert bench.reactor.send_notices(1_024, 1_024, FORMS, round=1)[1] == len(peers) - 1_024
    finally:
        bench.close()


def test_a_loss_during_a_walk_is_notified_in_the_next_round(bench: Rig) -> None:
    first, second = subscriber(bench, b"a"), subscriber(bench, b"a")
    bench.reactor.mark_lost(b"a", 1)
    place, notified = bench.reactor.send_notices(0, 1, FORMS, round=1)
    assert (place, notified) == (1, 1)
    bench.turn()
    bench.reactor.mark_lost(b"a", 2)  # the walk has passed the first connection and not the second
    assert bench.reactor.send_notices(1, SLOTS * 64, FORMS, round=1)[0] is None
    assert walk(bench, 2) == 2
    assert [len(texts(bench, peer)) for peer in (first, second)] == [2, 1]


def test_neighbours_receive_different_forms(bench: Rig) -> None:
    peers = [subscriber(bench, b"a") for _ in range(16)]
    bench.reactor.mark_lost(b"a", 1)
    walk(bench, 1)
    assert {texts(bench, peer)[0] for peer in peers} == {form[0] for form in FORMS}


def test_a_full_socket_holds_one_notice_however_many_rounds_there_are(bench: Rig) -> None:
    peer = subscriber(bench, b"a", send_buffer_bytes=4_096)
    for _ in range(20):
        bench.reactor.send(peer.conn, b"x" * 1_000, 1)
        bench.reactor.flush(bench.now_ms)
    before = frames_of(bench, peer)
    for round in range(1, 101):
        bench.reactor.mark_lost(b"a", round)
        assert walk(bench, round) == 1
        bench.reactor.flush(bench.now_ms)
    assert frames_of(bench, peer) == before + 1
    got: list[bytes] = []
    for _ in range(50):
        got += texts(bench, peer)
    assert [text for text in got if text.startswith(b"notice")] == [got[-1]]


def test_a_notice_that_was_read_is_followed_by_another(bench: Rig) -> None:
    peer = subscriber(bench, b"a")
    for round in (1, 2, 3):
        bench.reactor.mark_lost(b"a", round)
        assert walk(bench, round) == 1
        assert len(texts(bench, peer)) == 1


def test_a_notice_of_one_channel_goes_to_its_subscribers_alone(bench: Rig) -> None:
    of_it, also, other = subscriber(bench, b"a"), subscriber(bench, b"b", b"a"), subscriber(bench, b"b")
    assert bench.reactor.send_notices(0, SLOTS, FORMS, channel=b"a") == (None, 2)
    assert [len(texts(bench, peer)) for peer in (of_it, also, other)] == [1, 1, 0]
    assert bench.reactor.send_notices(0, SLOTS, FORMS, channel=b"nobody") == (None, 0)


def test_forms_are_bounded_and_of_the_configured_variants(bench: Rig) -> None:
    for forms in ([], [[b"x"]] * 33, [[b"x"] * 9], [["text"]], [[0]]):
        with pytest.raises((ValueError, TypeError)):
            bench.reactor.send_notices(0, 1, forms, round=1)  # type: ignore[arg-type]
