"""Check notices of loss: the connections that receive one, how many, and how much one step does."""

from collections.abc import Iterator

import pytest

from tests.support.reactor_rig import Peer, Rig
from wsgate.reactor import Settings

SLOTS = 1_024
"""The least number of slots of a table."""
FORMS = [[b"notice %d" % number] for number in range(16)]


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(Settings(max_subscriptions=1_000))
    try:
        yield made
    finally:
        made.close()


def subscriber(rig: Rig, *channels: bytes, **options: int) -> Peer:
    peer = rig.connect(**options)  # type: ignore[arg-type]
    for channel in channels:
        assert rig.reactor.subscribe(peer.conn, channel) > 0
    return peer


def texts(rig: Rig, peer: Peer) -> list[bytes]:
    rig.turn()
    return [bytes(frame.payload) for frame in peer.frames() if frame.opcode == 1]


def frames_of(rig: Rig, peer: Peer) -> int:
    """Return the number of messages in the outbox."""
    numbers = rig.reactor.inspect(peer.conn)
    assert numbers is not None
    return int(numbers["outbox_frames"])


def walk(rig: Rig, round: int, most: int = SLOTS) -> int:
    """Walk through all slots; return the number of connections notified."""
    place, total = rig.reactor.send_notices(0, most, FORMS, round=round)
    while place is not None:
        place, notified = rig.reactor.send_notices(place, most, FORMS, round=round)
        assert notified <= most
        total += notified
    return total


def test_round_sends_one_notice_to_each_connection_with_a_lost_channel(rig: Rig) -> None:
    both, one, other = (
        subscriber(rig, b"a", b"b", b"c"),
        subscriber(rig, b"b"),
        subscriber(rig, b"c"),
    )
    nothing = rig.connect()
    assert rig.reactor.mark_lost(b"a", 7) and rig.reactor.mark_lost(b"b", 7)
    assert not rig.reactor.mark_lost(b"d", 7), "the channel has no subscriber"
    assert walk(rig, 7) == 2
    assert [len(texts(rig, peer)) for peer in (both, one, other, nothing)] == [1, 1, 0, 0]
    assert walk(rig, 8) == 0, "no loss was marked for the next round"


def test_connection_that_unsubscribed_after_the_loss_gets_no_notice(rig: Rig) -> None:
    gone = subscriber(rig, b"a", b"b")
    stays = subscriber(rig, b"a")
    rig.reactor.mark_lost(b"a", 1)
    rig.reactor.unsubscribe(gone.conn, b"a")
    assert walk(rig, 1) == 1
    assert [len(texts(rig, peer)) for peer in (gone, stays)] == [0, 1]


def test_one_step_visits_at_most_the_given_number_of_slots(rig: Rig) -> None:
    peers = [subscriber(rig, b"a") for _ in range(50)]
    rig.reactor.mark_lost(b"a", 1)
    place: int | None = 0
    counts: list[int] = []
    while place is not None and len(counts) < 2_000:
        place, notified = rig.reactor.send_notices(place, 8, FORMS, round=1)
        counts.append(notified)
    assert max(counts) == 8 and sum(counts) == 50, "eight slots a step"
    assert all(len(texts(rig, peer)) == 1 for peer in peers)


def test_walk_pauses_while_1024_connections_have_unwritten_notices() -> None:
    rig = Rig(Settings(max_subscriptions=10))
    try:
        peers = [subscriber(rig, b"a") for _ in range(1_100)]
        rig.reactor.mark_lost(b"a", 1)
        assert rig.reactor.send_notices(0, 1_024, FORMS, round=1) == (1_024, 1_024)
        assert rig.reactor.send_notices(1_024, 1_024, FORMS, round=1) == (1_024, 0), "unwritten"
        assert rig.reactor.send_notices(0, 1_024, FORMS, round=1) == (0, 0), "nor from the start"
        rig.turn()
        assert rig.reactor.send_notices(1_024, 1_024, FORMS, round=1)[1] == len(peers) - 1_024
    finally:
        rig.close()


def test_loss_marked_during_a_walk_is_notified_in_the_next_round(rig: Rig) -> None:
    first, second = subscriber(rig, b"a"), subscriber(rig, b"a")
    rig.reactor.mark_lost(b"a", 1)
    place, notified = rig.reactor.send_notices(0, 1, FORMS, round=1)
    assert (place, notified) == (1, 1)
    rig.turn()
    rig.reactor.mark_lost(b"a", 2)  # the walk has passed the first connection and not the second
    assert rig.reactor.send_notices(1, SLOTS * 64, FORMS, round=1)[0] is None
    assert walk(rig, 2) == 2
    assert [len(texts(rig, peer)) for peer in (first, second)] == [2, 1]


def test_channel_that_loses_in_every_round_leaves_no_connection_out(rig: Rig) -> None:
    """Each loss replaces the mark before, so that later slots have the mark of the next round only."""
    peers = [subscriber(rig, b"a") for _ in range(40)]
    for number in (1, 2, 3):
        rig.reactor.mark_lost(b"a", number)
        place: int | None = 0
        while place is not None and place < 40:
            place, _ = rig.reactor.send_notices(place, 10, FORMS, round=number)
            rig.reactor.mark_lost(b"a", number + 1)
            rig.turn()
    assert [len(texts(rig, peer)) for peer in peers] == [3] * 40


def test_last_round_before_the_numbers_wrap_is_followed_by_round_1(rig: Rig) -> None:
    peer, last = subscriber(rig, b"a"), 0xFFFF_FFFF
    rig.reactor.mark_lost(b"a", 1)
    assert walk(rig, last) == 1
    assert walk(rig, last - 1) == 0
    rig.reactor.mark_lost(b"a", last)
    assert len(texts(rig, peer)) == 1
    assert walk(rig, last) == 1


def test_neighbouring_slots_receive_different_forms_of_the_notice(rig: Rig) -> None:
    peers = [subscriber(rig, b"a") for _ in range(16)]
    rig.reactor.mark_lost(b"a", 1)
    walk(rig, 1)
    assert {texts(rig, peer)[0] for peer in peers} == {form[0] for form in FORMS}


def test_full_socket_buffers_one_notice_after_100_rounds_of_loss(rig: Rig) -> None:
    peer = subscriber(rig, b"a", send_buffer_bytes=4_096)
    for _ in range(20):
        rig.reactor.send(peer.conn, b"x" * 1_000, 1)
        rig.reactor.flush(rig.now_ms)
    before = frames_of(rig, peer)
    for round in range(1, 101):
        rig.reactor.mark_lost(b"a", round)
        assert walk(rig, round) == 1
        rig.reactor.flush(rig.now_ms)
    assert frames_of(rig, peer) == before + 1
    got: list[bytes] = []
    for _ in range(50):
        got += texts(rig, peer)
    assert [text for text in got if text.startswith(b"notice")] == [got[-1]]


def test_peer_that_reads_gets_one_notice_in_each_round(rig: Rig) -> None:
    peer = subscriber(rig, b"a")
    for round in (1, 2, 3):
        rig.reactor.mark_lost(b"a", round)
        assert walk(rig, round) == 1
        assert len(texts(rig, peer)) == 1


def test_notice_for_one_channel_reaches_only_the_subscribers_of_that_channel(rig: Rig) -> None:
    of_it, also, other = subscriber(rig, b"a"), subscriber(rig, b"b", b"a"), subscriber(rig, b"b")
    assert rig.reactor.send_notices(0, SLOTS, FORMS, channel=b"a") == (None, 2)
    assert [len(texts(rig, peer)) for peer in (of_it, also, other)] == [1, 1, 0]
    assert rig.reactor.send_notices(0, SLOTS, FORMS, channel=b"nobody") == (None, 0)


def test_invalid_lists_of_notice_forms_raise_an_error(rig: Rig) -> None:
    for forms in ([], [[b"x"]] * 33, [[b"x"] * 9], [["text"]], [[0]]):
        with pytest.raises((ValueError, TypeError)):
            rig.reactor.send_notices(0, 1, forms, round=1)  # type: ignore[arg-type]
