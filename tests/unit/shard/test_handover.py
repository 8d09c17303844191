"""Check handovers between shards: the target, lost descriptors, and handovers to an ending shard."""

import asyncio
import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.unit.shard.test_faults import OPTIONS
from wsgate.admission import ShardOffer, State
from wsgate.shard.capacity import next_with_room, places, roomiest
from wsgate.shard.options import Shared
from wsgate.shard.process import Shard
from wsgate.shard.statistics_layout import LAYOUT
from wsgate.statistics import PHASE_READY, StatisticsBlock

HEAD = b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
HEAD += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"


def _read(client: socket.socket) -> bytes:
    received = bytearray()
    while data := client.recv(4096):
        received += data
    client.close()
    return bytes(received)


async def _end_with(connection: socket.socket, client: socket.socket) -> bytes:
    """Return the bytes that a connection receives from an ending shard that it is handed to."""
    pairs = tuple(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    pairs[0][0].setblocking(False)
    listener = socket.create_server(("127.0.0.1", 0))
    shard = Shard(
        replace(OPTIONS, reactor=replace(OPTIONS.reactor, report_meta=True)),
        os.dup(listener.fileno()),
        Shared(StatisticsBlock.create(LAYOUT, 2), handovers=pairs),
        -1,
    )
    shard._build(asyncio.get_running_loop())
    shard._reactor.listen(shard._listener_fd)
    socket.send_fds(pairs[0][1], [b"\0"], [connection.fileno()])
    connection.close()
    reading = asyncio.create_task(asyncio.to_thread(_read, client))
    assert await shard._leave() == 0
    assert shard._counts["handshake_draining"] == 1
    received = await reading
    for each in (listener, *pairs[0], *pairs[1]):
        each.close()
    shard._reactor.shutdown()
    return received


def test_handover_target_is_the_roomiest_or_the_next_shard_with_room() -> None:
    offers = [
        ShardOffer(5, State.OPEN),
        ShardOffer(0, State.REFUSING),
        ShardOffer(9, State.OPEN),
        ShardOffer(2, State.REFUSING),
    ]
    assert [roomiest(offers, number) for number in range(4)] == [2, 2, 0, 2]
    assert [next_with_room(offers, number) for number in range(4)] == [2, 2, 3, 0]
    assert roomiest(offers[1:2], 0) is next_with_room(offers[1:2], 0) is None


def test_shard_that_is_not_ready_or_has_no_recent_beat_offers_no_room() -> None:
    block = StatisticsBlock.create(LAYOUT, 3)
    for number, (phase, beat_ms) in enumerate([(PHASE_READY, 9_500), (PHASE_READY, 9_000), (0, 9_900)]):
        shard = block.shard(number)
        shard["room"], shard["phase"], shard["beat_ms"] = 7, phase, beat_ms
    assert [place.room for place in places(block, 10_000)] == [7, 0, 0]


def test_handover_message_without_a_descriptor_is_counted_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has closed the descriptor already when the message is read."""
    messages: Iterator[tuple[bytes, list[int], int, None]] = iter([(b"\1", [], socket.MSG_CTRUNC, None)])

    def receive(*_: object) -> object:
        try:
            return next(messages)
        except StopIteration:
            raise BlockingIOError from None

    async def take() -> int:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            shared = Shared(StatisticsBlock.create(LAYOUT, 1), handovers=((ours, theirs),))
            shard = Shard(OPTIONS, -1, shared, -1)
            shard._build(asyncio.get_running_loop())
            shard._take_handed()
            return shard._counts["handovers_lost"]

    monkeypatch.setattr(socket, "recv_fds", receive)
    assert asyncio.run(take()) == 1


def test_connection_handed_over_to_an_ending_shard_is_answered_503() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname(), timeout=5) as client:
        client.sendall(HEAD)
        accepted, _ = server.accept()
        received = asyncio.run(_end_with(accepted, client))
    assert received.startswith(b"HTTP/1.1 503 ")
