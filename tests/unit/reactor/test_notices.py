"""Check notices of loss: the connections that receive one, how many, and how much one step does."""

from collections.abc import Iterator

import pytest

from tests.support.reactor_rig import Peer, Rig
from wsgate.reactor import Settings

SLOTS = 1_024
"""The least number of slots of a table."""
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
    """Return the number of messages in the outbox."""
    numbers = bench.reactor.inspect(peer.conn)
    assert numbers is not None
    return int(numbers["outbox_frames"])


def walk(bench: Rig, round: int, most: int = SLOTS) -> int:
    """Walk through all slots; return the number of connections notified."""
    place, total = bench.reactor.send_notices(0, most, FORMS, round=round)
    while place is not None:
        place, notified = bench.reactor.send_notices(place, most, FORMS, round=round)
        assert notified <= most
        total += notified
    return total


def test_round_sends_one_notice_to_each_connection_with_a_lost_channel(bench: Rig) -> None:
    both, one, other = (
        subscriber(bench, b"a", b"b", b"c"),
        subscriber(bench, b"b"),
        subscriber(bench, b"c"),
    )
    nothing = bench.connect()
    assert bench.reactor.mark_lost(b"a", 7) and bench.reactor.mark_lost(b"b", 7)
    assert not bench.reactor.mark_lost(b"d", 7), "the channel has no subscriber"
    assert walk(bench, 7) == 2
    assert [len(texts(bench, peer)) for peer in (both, one, other, nothing)] == [1, 1, 0, 0]
    assert walk(bench, 8) == 0, "no loss was marked for the next round"


def test_connection_that_unsubscribed_after_the_loss_gets_no_notice(bench: Rig) -> None:
    gone = subscriber(bench, b"a", b"b")
    stays = subscriber(bench, b"a")
    bench.reactor.mark_lost(b"a", 1)
    bench.reactor.unsubscribe(gone.conn, b"a")
    assert walk(bench, 1) == 1
    assert [len(texts(bench, peer)) for peer in (gone, stays)] == [0, 1]


def test_one_step_visits_at_most_the_given_number_of_slots(bench: Rig) -> None:
    peers = [subscriber(bench, b"a") for _ in range(50)]
    bench.reactor.mark_lost(b"a", 1)
    place: int | None = 0
    counts: list[int] = []
    while place is not None and len(counts) < 2_000:
        place, notified = bench.reactor.send_notices(place, 8, FORMS, round=1)
        counts.append(notified)
    assert max(counts) == 8 and sum(counts) == 50, "eight slots a step"
    assert all(len(texts(bench, peer)) == 1 for peer in peers)


def test_walk_pauses_while_1024_connections_have_unwritten_notices() -> None:
    bench = Rig(Settings(max_subscriptions=10))
    try:
        peers = [subscriber(bench, b"a") for _ in range(1_100)]
        bench.reactor.mark_lost(b"a", 1)
        assert bench.reactor.send_notices(0, 1_024, FORMS, round=1) == (1_024, 1_024)
        assert bench.reactor.send_notices(1_024, 1_024, FORMS, round=1) == (1_024, 0), "unwritten"
        assert bench.reactor.send_notices(0, 1_024, FORMS, round=1) == (0, 0), "nor from the start"
        bench.turn()
        assert bench.reactor.send_notices(1_024, 1_024, FORMS, round=1)[1] == len(peers) - 1_024
    finally:
        bench.close()


def test_loss_marked_during_a_walk_is_notified_in_the_next_round(bench: Rig) -> None:
    first, second = subscriber(bench, b"a"), subscriber(bench, b"a")
    bench.reactor.mark_lost(b"a", 1)
    place, notified = bench.reactor.send_notices(0, 1, FORMS, round=1)
    assert (place, notified) == (1, 1)
    bench.turn()
    bench.reactor.mark_lost(b"a", 2)  # the walk has passed the first connection and not the second
    assert bench.reactor.send_notices(1, SLOTS * 64, FORMS, round=1)[0] is None
    assert walk(bench, 2) == 2
    assert [len(texts(bench, peer)) for peer in (first, second)] == [2, 1]


def test_neighbouring_slots_receive_different_forms_of_the_notice(bench: Rig) -> None:
    peers = [subscriber(bench, b"a") for _ in range(16)]
    bench.reactor.mark_lost(b"a", 1)
    walk(bench, 1)
    assert {texts(bench, peer)[0] for peer in peers} == {form[0] for form in FORMS}


def test_full_socket_buffers_one_notice_after_100_rounds_of_loss(bench: Rig) -> None:
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


def test_peer_that_reads_gets_one_notice_in_each_round(bench: Rig) -> None:
    peer = subscriber(bench, b"a")
    for round in (1, 2, 3):
        bench.reactor.mark_lost(b"a", round)
        assert walk(bench, round) == 1
        assert len(texts(bench, peer)) == 1


def test_notice_for_one_channel_reaches_only_the_subscribers_of_that_channel(bench: Rig) -> None:
    of_it, also, other = subscriber(bench, b"a"), subscriber(bench, b"b", b"a"), subscriber(bench, b"b")
    assert bench.reactor.send_notices(0, SLOTS, FORMS, channel=b"a") == (None, 2)
    assert [len(texts(bench, peer)) for peer in (of_it, also, other)] == [1, 1, 0]
    assert bench.reactor.send_notices(0, SLOTS, FORMS, channel=b"nobody") == (None, 0)


def test_invalid_lists_of_notice_forms_raise_an_error(bench: Rig) -> None:
    for forms in ([], [[b"x"]] * 33, [[b"x"] * 9], [["text"]], [[0]]):
        with pytest.raises((ValueError, TypeError)):
            bench.reactor.send_notices(0, 1, forms, round=1)  # type: ignore[arg-type]
