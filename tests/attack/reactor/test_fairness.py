"""Serve a control group beside peers that send without pause. Passes are counted, never time."""

import pytest

from tests.support.frames import BINARY, TEXT, client_frame
from tests.support.reactor_rig import Peer, Rig, rig
from tests.support.tcp_rig import raise_descriptors
from wsgate.reactor import Settings, event_kinds

BURST = client_frame(BINARY, b"a") * 2340  # one-byte messages that fill one receive
PASS_MESSAGES = 256
TURN_MESSAGES = 64


def passes_until_delivered(bench: Rig, speaker: Peer, floods: list[Peer], most: int) -> int:
    """Return the polls until a control message is delivered while the floods continue."""
    speaker.send(client_frame(TEXT, b"control"))
    for count in range(1, most + 1):
        batch = bench.reactor.poll(bench.now_ms)
        assert len(batch) <= PASS_MESSAGES + 1
        bench.events += batch
        if any(conn == speaker.conn for _, conn, _ in batch):
            return count
        bench.reactor.flush(bench.now_ms)
        for flood in floods:
            flood.send(BURST)
    raise AssertionError(f"not delivered within {most} passes")


def test_control_message_beside_ten_floods_is_delivered_within_five_passes() -> None:
    """Ten peers send one-byte messages without pause beside ten peers of a control group."""
    with rig() as bench:
        floods = [bench.connect() for _ in range(10)]
        control = [bench.connect() for _ in range(10)]
        for flood in floods:
            flood.send(BURST)
        bench.step()
        # Ten floods have 64 messages each in one round: 640 messages, 2.5 passes.
        worst = max(passes_until_delivered(bench, speaker, floods, 50) for speaker in control * 5)
        assert worst <= 5
        assert bench.count("now_open") == 20


@pytest.mark.parametrize("crowd", [200, 400])
def test_control_message_behind_many_floods_waits_for_one_round_of_turns(crowd: int) -> None:
    """The message does not wait until the backlogs of the floods are empty.

    One round is N * 64 messages, which is N / 4 passes. Twice that is allowed, plus 20 passes.
    """
    assert raise_descriptors(2 * crowd + 20) >= 2 * crowd
    with rig() as bench:
        floods = [bench.connect() for _ in range(crowd)]
        speaker = bench.connect()
        for flood in floods:
            flood.send(BURST)
        bench.step()
        passes_until_delivered(bench, speaker, floods, crowd // 2 + 20)


def test_request_head_among_400_floods_becomes_open_within_two_rounds() -> None:
    """A new connection is not starved by 400 peers that send without pause."""
    crowd = 400
    assert raise_descriptors(2 * crowd + 20) >= 2 * crowd
    with rig() as bench:
        floods = [bench.connect() for _ in range(crowd)]
        for flood in floods:
            flood.send(BURST)
        bench.step()
        newcomer = bench.connect(upgraded=False)
        newcomer.send(b"GET / HTTP/1.1\r\n\r\n")
        for _ in range(crowd // 2 + 20):
            if (event_kinds.OPEN, newcomer.conn) in [event[:2] for event in bench.step()]:
                break
            for flood in floods:
                flood.send(BURST)
        else:
            raise AssertionError("starved")


def test_drained_socket_among_400_floods_receives_the_rest_of_its_message() -> None:
    """A reader empties its full socket, and the reactor notices that beside the floods."""
    crowd = 400
    assert raise_descriptors(2 * crowd + 20) >= 2 * crowd
    with rig() as bench:
        floods = [bench.connect() for _ in range(crowd)]
        reader = bench.connect(send_buffer_bytes=4096)
        bench.reactor.send(reader.conn, b"m" * 12_000)
        bench.turn()
        assert bench.count("now_blocked") == 1
        for flood in floods:
            flood.send(BURST)
        bench.step()
        assert reader.receive()
        for _ in range(crowd // 2 + 20):
            if reader.receive():
                break
            bench.step()
            for flood in floods:
                flood.send(BURST)
        else:
            raise AssertionError("starved")


def test_messages_of_each_of_ten_floods_arrive_complete_and_in_order() -> None:
    """The order of one connection is kept, however the connections are interleaved."""
    with rig() as bench:
        floods = [bench.connect() for _ in range(10)]
        for flood in floods:
            flood.send(b"".join(client_frame(BINARY, b"%04d" % index) for index in range(1500)))
        bench.turn()
        for flood in floods:
            assert bench.messages(flood) == [b"%04d" % index for index in range(1500)]


def test_pass_takes_at_most_256_messages_64_per_connection_and_32_opens() -> None:
    """`more` is true as long as something waits."""
    with rig() as bench:
        for _ in range(10):
            bench.connect().send(BURST)
        newcomers = [bench.connect(upgraded=False) for _ in range(100)]
        for newcomer in newcomers:
            newcomer.send(b"GET / HTTP/1.1\r\n\r\n")
        delivered = opened = 0
        while delivered < 23_400 or opened < 100:
            batch = bench.reactor.poll(bench.now_ms)
            heard: dict[int, int] = {}
            for kind, conn, _ in batch:
                if kind == event_kinds.BINARY:
                    heard[conn] = heard.get(conn, 0) + 1
            opens = sum(kind == event_kinds.OPEN for kind, _, _ in batch)
            assert sum(heard.values()) <= PASS_MESSAGES
            assert max(heard.values(), default=0) <= TURN_MESSAGES
            assert opens <= 32
            delivered += sum(heard.values())
            opened += opens
            if delivered < 23_400:
                assert bench.reactor.more
        assert not bench.step()
        assert not bench.reactor.more


def test_pass_ends_after_one_mebibyte_of_large_messages() -> None:
    """40 peers send 64 KiB each; one pass takes at most 1 MiB and one more message."""
    with rig(Settings(max_message_bytes=1 << 20)) as bench:
        peers = [bench.connect() for _ in range(40)]
        for peer in peers:
            peer.send(client_frame(BINARY, bytes(65536)))
        while (left := bench.count("messages_in")) < 40:
            batch = bench.reactor.poll(bench.now_ms)
            taken = sum(len(value) for _, _, value in batch if isinstance(value, bytes))
            assert taken <= (1 << 20) + 65536
            assert batch or bench.reactor.more or left == 40


def test_control_message_beside_ten_ping_floods_is_delivered_within_12_passes() -> None:
    """Control frames are not messages, but the turn of a connection has a limit for them too."""
    with rig(Settings(control_rate_per_s=0)) as bench:
        floods = [bench.connect(send_buffer_bytes=4096) for _ in range(10)]
        speaker = bench.connect()
        ping = client_frame(9, b"x") * 1000
        for flood in floods:
            flood.send(ping)
        bench.step()
        speaker.send(client_frame(TEXT, b"control"))
        for _ in range(12):
            if any(conn == speaker.conn for _, conn, _ in bench.step()):
                break
            for flood in floods:
                flood.send(ping)
        else:
            raise AssertionError("not delivered within 12 passes")


def test_reply_leaves_with_the_next_flush_while_a_publication_goes_to_2000_sockets() -> None:
    """The delivery of a publication is cut into slices, and a reply goes first."""
    count = raise_descriptors(4200) // 2 - 100
    assert count >= 200
    with rig() as bench:
        crowd = [bench.connect() for _ in range(min(count, 2000))]
        speaker = bench.connect()
        for peer in crowd:
            bench.reactor.subscribe(peer.conn, b"news")
        for _ in range(3):
            assert bench.reactor.publish(b"news", [b"n" * 500]) == len(crowd)
            bench.reactor.send(speaker.conn, b"reply")
            bench.reactor.flush(bench.now_ms)
            assert [frame.payload for frame in speaker.frames()] == [b"reply"]
        bench.turn()
        assert all(len(peer.frames()) == 3 for peer in crowd)


@pytest.mark.parametrize("limit", [0, 1, 16, 100, 256, 4_000_000_000])
def test_poll_returns_at_most_the_limit_of_its_caller_and_loses_no_message(limit: int) -> None:
    """What is left over comes with the next polls, every message once and in order."""
    with rig() as bench:
        peers = [bench.connect() for _ in range(3)]
        for peer in peers:
            peer.send(b"".join(client_frame(BINARY, bytes([number])) for number in range(200)))
        heard: dict[int, list[int]] = {peer.conn: [] for peer in peers}
        for _ in range(700):
            batch = bench.reactor.poll(bench.now_ms, limit)
            assert len(batch) <= max(1, min(limit, PASS_MESSAGES))
            for _, conn, value in batch:
                assert isinstance(value, bytes)
                heard[conn].append(value[0])
        assert list(heard.values()) == [list(range(200))] * 3
