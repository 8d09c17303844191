"""Connections that siblings hand to a shard that is just ending: answered, not dropped with their channel."""

import asyncio
import os
import socket
from dataclasses import replace

from tests.unit.test_shard_faults import OPTIONS
from wsgate.shard.numbers import LAYOUT
from wsgate.shard.options import Shared
from wsgate.shard.process import Shard
from wsgate.statistics import StatisticsBlock

HEAD = b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
HEAD += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"


def _read(client: socket.socket) -> bytes:
    said = bytearray()
    while data := client.recv(4096):
        said += data
    client.close()
    return bytes(said)


async def _end_with(connection: socket.socket, client: socket.socket) -> bytes:
    """What is said to who is in the channel of a shard that has nobody else any more."""
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
    said = await reading
    for each in (listener, *pairs[0], *pairs[1]):
        each.close()
    shard._reactor.shutdown()
    return said


def test_who_is_handed_over_at_the_very_end_is_answered() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname(), timeout=5) as client:
        client.sendall(HEAD)
        accepted, _ = server.accept()
        said = asyncio.run(_end_with(accepted, client))
    assert said.startswith(b"HTTP/1.1 503 ")
