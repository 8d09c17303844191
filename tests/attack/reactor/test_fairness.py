"""A control group beside peers that talk without pause. Passes are counted, never time."""

import pytest

from tests.support.frames import BINARY, TEXT, client_frame
from tests.support.reactor_rig import Peer, Rig, rig
from tests.support.tcp_rig import raise_descriptors
from wsgate.reactor import Settings, event_kinds

BURST = client_frame(BINARY, b"a") * 2340  # one receive full of one-byte messages
PASS_MESSAGES = 256
TURN_MESSAGES = 64


def passes_until_heard(bench: Rig, speaker: Peer, floods: list[Peer], most: int) -> int:
    """Polls from the moment a control message is sent until it is delivered; floods go on meanwhile."""
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
    raise AssertionError(f"not heard within {most} passes")


def test_ten_floods_and_a_control_group() -> None:
    """Control group: with ten peers at one-byte messages, every control message is heard in 5 passes."""
    with rig() as bench:
        floods = [bench.connect() for _ in range(10)]
        control = [bench.connect() for _ in range(10)]
        for flood in floods:
            flood.send(BURST)
        bench.step()
        # Ten floods take 64 messages each before the round is over: 640 messages, 2.5 passes.
        worst = max(passes_until_heard(bench, speaker, floods, 50) for speaker in control * 5)
        assert worst <= 5
        assert bench.count("now_open") == 20


@pytest.mark.parametrize("crowd", [200, 400])
def test_many_floods_do_not_shut_the_others_out(crowd: int) -> None:
    """Control group: behind N floods a message waits for one round of N turns, not for all their backlogs.

    One round is N * 64 messages, which is N / 4 passes. Twice that is allowed, and the first looks.
    """
    assert raise_descriptors(2 * crowd + 20) >= 2 * crowd
    with rig() as bench:
        floods = [bench.connect() for _ in range(crowd)]
        speaker = bench.connect()
        for flood in floods:
            flood.send(BURST)
        bench.step()
        passes_until_heard(bench, speaker, floods, crowd // 2 + 20)


def test_a_newcomer_is_let_in_beside_floods() -> None:
    """Control group: a head among 400 floods becomes `OPEN` within one round and is not starved."""
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


def test_a_blocked_socket_is_reported_beside_floods() -> None:
    """Control group: a reader that drained its socket gets the rest of its message among 400 floods."""
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


def test_order_of_each_connection_is_kept() -> None:
    """Control group: whatever the interleaving, each connection's messages come in its order, all."""
    with rig() as bench:
        floods = [bench.connect() for _ in range(10)]
        for flood in floods:
            flood.send(b"".join(client_frame(BINARY, b"%04d" % index) for index in range(1500)))
        bench.turn()
        for flood in floods:
            assert bench.messages(flood) == [b"%04d" % index for index in range(1500)]


def test_no_pass_takes_more_than_its_budget() -> None:
    """A pass: 256 messages, 64 of one connection, 32 opens, and `more` as long as something waits."""
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


def test_a_pass_ends_after_a_mebibyte() -> None:
    """A pass: large messages end it by their bytes."""
    with rig(Settings(max_message_bytes=1 << 20)) as bench:
        peers = [bench.connect() for _ in range(40)]
        for peer in peers:
            peer.send(client_frame(BINARY, bytes(65536)))
        while (left := bench.count("messages_in")) < 40:
            batch = bench.reactor.poll(bench.now_ms)
            taken = sum(len(value) for _, _, value in batch if isinstance(value, bytes))
            assert taken <= (1 << 20) + 65536
            assert batch or bench.reactor.more or left == 40


def test_pings_without_end_are_shared_fairly() -> None:
    """Control group: control frames are no messages, but a turn has an end for them too."""
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
            raise AssertionError("not heard within 12 passes")


def test_a_publication_to_many_leaves_replies_in_front() -> None:
    """Control group: while a publication walks 2,000 sockets, a reply leaves with the next slice."""
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
def test_a_pass_takes_no_more_than_its_caller_can_handle(limit: int) -> None:
    """What is left over comes with the next passes, every message once and in order."""
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
