"""Check reading: pauses at every moment, frames before the upgrade, rate limits, limits of partial bytes."""

import pytest

from tests.support.frames import BINARY, CONTINUATION, PING, PONG, TEXT, client_close, client_frame
from tests.support.reactor_rig import Peer, Rig, rig
from tests.support.sizes import sizes_up_to
from tests.support.tcp_rig import HEAD, is_readable
from wsgate.reactor import GateLimits, Settings, event_kinds
from wsgate.reasons import Reason

LIMIT_BYTES = (1 << 16) + 100


def backlog(bench: Rig, peer: Peer) -> int:
    state = bench.reactor.inspect(peer.conn)
    assert state is not None
    return state["backlog_bytes"]


def numbered(count: int, start: int = 0) -> bytes:
    return b"".join(client_frame(TEXT, b"%05d" % index) for index in range(start, start + count))


def numbers(bench: Rig, peer: Peer) -> list[int]:
    return [int(message) for message in bench.messages(peer)]


# --- pausing ----------------------------------------------------------------------------------------


def test_messages_sent_during_a_pause_are_delivered_in_order_after_resume() -> None:
    """While reading is paused, no event is delivered and the epoll descriptor is not readable."""
    with rig() as bench:
        peer = bench.connect()
        assert bench.reactor.pause_reading(peer.conn)
        peer.send(numbered(100))
        bench.turn()
        assert not bench.of(peer)
        assert not bench.reactor.more
        assert not is_readable(bench)
        assert bench.reactor.resume_reading(peer.conn)
        bench.turn()
        assert numbers(bench, peer) == list(range(100))


@pytest.mark.parametrize("polls", [1, 2, 3, 5, 10, 23])
def test_pause_with_unparsed_messages_in_the_buffer_delivers_the_rest_after_resume(polls: int) -> None:
    """Each poll delivers at most 64 messages; after the pause no further one is delivered."""
    with rig() as bench:
        peer = bench.connect()
        peer.send(numbered(1400))
        for _ in range(polls):
            bench.step()
        delivered_count = len(bench.messages(peer))
        assert delivered_count == min(64 * polls, 1400)
        bench.reactor.pause_reading(peer.conn)
        bench.turn()
        assert len(bench.messages(peer)) == delivered_count
        assert not bench.reactor.more
        assert not is_readable(bench)
        bench.reactor.resume_reading(peer.conn)
        bench.turn()
        assert numbers(bench, peer) == list(range(1400))


def test_pausing_and_resuming_at_every_batch_delivers_each_message_once_in_order() -> None:
    """Paused in the batch, resumed after it, over and over: every message once, in order."""
    with rig() as bench:
        peer = bench.connect()
        peer.send(numbered(500))
        for _ in range(200):
            batch = bench.reactor.poll(bench.now_ms)
            bench.events += batch
            for _, conn, _ in batch:
                assert bench.reactor.pause_reading(conn)
            bench.reactor.flush(bench.now_ms)
            assert not bench.reactor.poll(bench.now_ms)
            bench.reactor.resume_reading(peer.conn)
        assert numbers(bench, peer) == list(range(500))


def test_pause_followed_directly_by_resume_has_no_effect() -> None:
    with rig() as bench:
        peer = bench.connect()
        bench.reactor.pause_reading(peer.conn)
        bench.reactor.resume_reading(peer.conn)
        bench.reactor.resume_reading(peer.conn)
        peer.send(numbered(3))
        bench.turn()
        assert numbers(bench, peer) == [0, 1, 2]


def test_pause_inside_a_frame_or_utf8_character_keeps_the_parser_state() -> None:
    text = "aä€😀".encode() * 20
    frame = client_frame(TEXT, text)
    for cut in range(1, len(frame), 7):
        with rig() as bench:
            peer = bench.connect()
            peer.send(frame[:cut])
            bench.turn()
            bench.reactor.pause_reading(peer.conn)
            peer.send(frame[cut:])
            bench.turn()
            assert not bench.of(peer)
            bench.reactor.resume_reading(peer.conn)
            bench.turn()
            assert bench.messages(peer) == [text]


def test_reading_stops_while_the_outbox_is_over_half_full_and_then_continues() -> None:
    """All messages are delivered in order after the peer has read its replies."""
    with rig(Settings(outbox_bytes=100_000)) as bench:
        peer = bench.connect(send_buffer_bytes=4096)
        bench.reactor.send(peer.conn, bytes(90_000))
        bench.turn()
        peer.send(numbered(10))
        bench.turn()
        assert not bench.of(peer)
        assert not is_readable(bench)
        for _ in range(100):
            peer.receive()
            bench.turn()
        assert numbers(bench, peer) == list(range(10))


def test_reading_resumes_only_after_both_application_and_outbox_pauses_end() -> None:
    """The order in which the two pauses end makes no difference."""
    for application_first in (True, False):
        with rig(Settings(outbox_bytes=100_000)) as bench:
            peer = bench.connect(send_buffer_bytes=4096)
            bench.reactor.send(peer.conn, bytes(90_000))
            bench.reactor.pause_reading(peer.conn)
            bench.turn()
            peer.send(numbered(3))
            bench.turn()
            if application_first:
                bench.reactor.resume_reading(peer.conn)
                bench.turn()
                assert not bench.of(peer)
            for _ in range(100):
                peer.receive()
                bench.turn()
            if not application_first:
                assert not bench.of(peer)
                bench.reactor.resume_reading(peer.conn)
                bench.turn()
            assert numbers(bench, peer) == [0, 1, 2]


def test_pause_before_the_upgrade_holds_back_frames_until_upgrade_and_resume() -> None:
    with rig() as bench:
        peer = bench.connect(upgraded=False)
        peer.send(HEAD + numbered(3))
        bench.turn()
        assert bench.reactor.pause_reading(peer.conn)
        assert bench.reactor.upgrade(peer.conn, b"101")
        bench.turn()
        assert not bench.messages(peer)
        bench.reactor.resume_reading(peer.conn)
        bench.turn()
        assert numbers(bench, peer) == [0, 1, 2]


def test_messages_before_a_close_frame_are_delivered_first_after_a_pause() -> None:
    with rig() as bench:
        peer = bench.connect()
        bench.reactor.pause_reading(peer.conn)
        peer.send(numbered(100) + client_close())
        bench.turn()
        bench.reactor.resume_reading(peer.conn)
        bench.turn()
        assert numbers(bench, peer) == list(range(100))
        assert bench.of(peer)[-1] == (event_kinds.PEER_CLOSED, 1000)


def test_calls_with_a_stale_handle_return_false_and_are_counted() -> None:
    with rig() as bench:
        peer = bench.connect()
        peer.close()
        bench.turn()
        before = bench.count("stale")
        assert not bench.reactor.pause_reading(peer.conn)
        assert not bench.reactor.resume_reading(peer.conn)
        assert not bench.reactor.send(peer.conn, b"")
        assert not bench.reactor.close(peer.conn, 1000)
        assert not bench.reactor.abort(peer.conn)
        assert bench.count("stale") - before == 5


# --- sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["whole", "behind its first byte", "before its last byte"])
def test_messages_around_every_size_class_up_to_the_limit_are_read(cut: str) -> None:
    """The memory account returns to its start after each message, and one byte more closes 1009."""
    with rig(Settings(max_message_bytes=LIMIT_BYTES, control_rate_per_s=0)) as bench:
        peer = bench.connect()
        at_rest = bench.held()
        for size in sizes_up_to(LIMIT_BYTES):
            payload = (b"%d" % size).ljust(size, b"p")[:size]
            frame = client_frame(BINARY, payload)
            place = {"whole": 0, "behind its first byte": len(frame) - max(size - 1, 0)}.get(
                cut, len(frame) - 1
            )
            for part in filter(None, (frame[:place], frame[place:])):
                assert peer.send(part) == len(part)
                bench.turn()
            assert bench.messages(peer)[-1] == payload, size
            assert bench.held() == at_rest, size
        peer.send(client_frame(BINARY, bytes(LIMIT_BYTES + 1))[:100])
        bench.turn()
        assert bench.of(peer)[-1] == (event_kinds.FAILING, 1009)


# --- early frames -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(0, 60, 4))
def test_frames_sent_before_the_upgrade_survive_any_split_around_the_head(cut: int) -> None:
    stream = HEAD + client_frame(TEXT, b"early") + client_frame(BINARY, b"bird")
    place = len(HEAD) - 30 + cut
    with rig() as bench:
        peer = bench.connect(upgraded=False)
        peer.send(stream[:place])
        bench.turn()
        peer.send(stream[place:])
        bench.turn()
        assert bench.of(peer) == [(event_kinds.OPEN, HEAD)]
        bench.reactor.upgrade(peer.conn, b"101")
        bench.turn()
        assert bench.messages(peer) == [b"early", b"bird"]
        assert bench.held()["partial"] == 0


def test_5000_frames_sent_before_the_upgrade_are_all_delivered_within_bounded_memory() -> None:
    """The reactor keeps the bytes of at most one receive before the upgrade; the socket holds the others."""
    with rig() as bench:
        peer = bench.connect(upgraded=False)
        peer.send(HEAD + numbered(5000))
        bench.turn()
        assert bench.held()["partial"] <= 16_384 + 1024
        bench.reactor.upgrade(peer.conn, b"101")
        bench.turn()
        assert numbers(bench, peer) == list(range(5000))


# --- the rates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 3, 7, 10, 64, 1000])
def test_one_message_above_the_rate_of_a_second_closes_4029(rate: int) -> None:
    """The message above the rate is not delivered."""
    with rig(Settings(message_rate_per_s=rate)) as bench:
        good, bad = bench.connect(), bench.connect()
        good.send(client_frame(TEXT, b"m") * rate)
        bad.send(client_frame(TEXT, b"m") * (rate + 1))
        bench.turn()
        assert bench.of(good) == [(event_kinds.TEXT, b"m")] * rate
        assert bench.of(bad) == [(event_kinds.TEXT, b"m")] * rate + [(event_kinds.FAILING, 4029)]
        bench.pass_ms(1_500)
        assert bench.of(bad)[-1] == (event_kinds.CLOSED, Reason.MESSAGE_RATE)


@pytest.mark.parametrize("rate", [1, 4, 10, 100])
def test_message_rate_credit_is_refilled_exactly_one_interval_later(rate: int) -> None:
    """A message 1 ms before the interval has passed closes 4029; a message at that time is delivered."""
    step_ms = 1000 // rate
    for early_ms in (0, 1):
        with rig(Settings(message_rate_per_s=rate)) as bench:
            peer = bench.connect()
            peer.send(client_frame(TEXT, b"m") * rate)
            bench.turn()
            for _ in range(20):
                bench.now_ms += step_ms
                peer.send(client_frame(TEXT, b"n"))
                bench.turn()
            assert not [kind for kind, _ in bench.of(peer) if kind != event_kinds.TEXT]
            bench.now_ms += step_ms - early_ms
            peer.send(client_frame(TEXT, b"o"))
            bench.turn()
            assert bench.of(peer)[-1] == (
                (event_kinds.FAILING, 4029) if early_ms else (event_kinds.TEXT, b"o")
            )


def test_message_rate_counts_a_fragmented_message_once_and_control_frames_never() -> None:
    with rig(Settings(message_rate_per_s=1)) as bench:
        peer = bench.connect()
        peer.send(client_frame(TEXT, b"a", final=False) + client_frame(CONTINUATION, b"b") * 1)
        peer.send(client_frame(PING) * 50 + client_frame(PONG) * 50)
        bench.turn()
        assert bench.of(peer) == [(event_kinds.TEXT, b"ab")]


def test_one_payload_byte_above_the_byte_rate_closes_4029() -> None:
    with rig(Settings(byte_rate_per_s=1000)) as bench:
        good, bad = bench.connect(), bench.connect()
        good.send(client_frame(BINARY, bytes(600)) + client_frame(BINARY, bytes(400)))
        bad.send(client_frame(BINARY, bytes(600)) + client_frame(BINARY, bytes(401)))
        bench.turn()
        assert len(bench.messages(good)) == 2
        assert [kind for kind, _ in bench.of(bad)] == [event_kinds.BINARY, event_kinds.FAILING]
        assert bench.of(bad)[-1] == (event_kinds.FAILING, 4029)
        bench.now_ms += 400
        good.send(client_frame(BINARY, bytes(400)))
        bench.turn()
        assert len(bench.messages(good)) == 3
        good.send(client_frame(BINARY, b"1"))
        bench.turn()
        assert bench.of(good)[-1] == (event_kinds.FAILING, 4029)


def test_message_larger_than_the_byte_rate_passes_and_delays_the_next_one() -> None:
    """The message passes while the bucket is full. The next one has to wait until the debt is refilled."""
    with rig(Settings(byte_rate_per_s=1000)) as bench:
        patient, hasty = bench.connect(), bench.connect()
        for peer in (patient, hasty):
            peer.send(client_frame(BINARY, bytes(5000)))
        bench.turn()
        assert len(bench.messages(patient)) == 1
        bench.pass_ms(3_999)
        hasty.send(client_frame(BINARY, b"1"))
        bench.turn()
        assert bench.of(hasty)[-1] == (event_kinds.FAILING, 4029)
        bench.now_ms += 2
        patient.send(client_frame(BINARY, b"1"))
        bench.turn()
        assert len(bench.messages(patient)) == 2


def test_byte_rate_counts_no_empty_messages() -> None:
    with rig(Settings(byte_rate_per_s=1)) as bench:
        peer = bench.connect()
        peer.send(client_frame(BINARY) * 500 + client_frame(BINARY, b"1"))
        bench.turn()
        assert len(bench.messages(peer)) == 501


def test_message_rate_of_one_connection_does_not_affect_other_connections() -> None:
    with rig(Settings(message_rate_per_s=5)) as bench:
        crowd = [bench.connect() for _ in range(50)]
        for peer in crowd:
            peer.send(client_frame(TEXT, b"m") * 5)
        bench.turn()
        assert all(len(bench.messages(peer)) == 5 for peer in crowd)


# --- partial bytes ----------------------------------------------------------------------------------


def test_s3_unfinished_messages_of_all_connections_are_bounded_by_partial_bytes() -> None:
    """S3: beyond `partial_bytes` connections are closed with 1013, and the others continue."""
    limit = 256 * 1024
    with rig() as bench:
        bench.reactor.set_gate(GateLimits(partial_bytes=limit), b"")
        crowd = [bench.connect() for _ in range(20)]
        good = bench.connect()
        for peer in crowd:
            peer.send(client_frame(BINARY, bytes(60_000))[:-1])
            bench.turn()
            assert bench.held()["partial"] <= limit + 65_536
        ended = [peer for peer in crowd if bench.of(peer)]
        assert 0 < len(ended) < 20
        assert {bench.of(peer)[0] for peer in ended} == {(event_kinds.FAILING, 1013)}
        good.send(client_frame(TEXT, b"small"))
        bench.turn()
        assert bench.messages(good) == [b"small"]


def test_message_timeout_starts_anew_with_each_message() -> None:
    """Each of four slow messages, one after the other, has the whole 30 s."""
    with rig() as bench:
        peer = bench.connect()
        for _ in range(4):
            peer.send(client_frame(TEXT, b"a", final=False))
            bench.pass_ms(20_000)
            peer.send(client_frame(CONTINUATION, b"b"))
            bench.turn()
        assert bench.messages(peer) == [b"ab"] * 4
        assert [kind for kind, _ in bench.of(peer)] == [event_kinds.TEXT] * 4
