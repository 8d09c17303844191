"""Check that an internal fault closes one connection with its reason and affects no other."""

import asyncio
import json
import logging
import os
import socket
from typing import Any

import pytest

from tests.support.frames import CLOSE, TEXT, FrameReader, ServerFrame, client_frame, close_code
from wsgate.auth import OriginPolicy, TokenPolicy
from wsgate.bus import parse_address
from wsgate.reactor import GateLimits, Settings
from wsgate.shard.members import now_ms
from wsgate.shard.options import ShardOptions, Shared
from wsgate.shard.process import Shard
from wsgate.shard.statistics_layout import LAYOUT
from wsgate.statistics import StatisticsBlock

OPTIONS = ShardOptions(
    node="node-1",
    number=0,
    reactor=Settings(report_vacated=True, variant_opcodes=(1, 2)),
    gate=GateLimits(),
    bus=parse_address("unix:///nowhere/bus.sock"),
    origins=OriginPolicy(()),
    tokens=TokenPolicy(),
    allow_anonymous=True,
)


class Broken(Exception):
    """An exception whose text contains the message of the client."""


async def _converse(monkeypatch: pytest.MonkeyPatch) -> tuple[list[ServerFrame], list[ServerFrame], float]:
    """Serve one client whose command raises, and another client that sends a ping."""
    shard = Shard(OPTIONS, -1, Shared(StatisticsBlock.create(LAYOUT, 1)), -1)
    shard._build(asyncio.get_running_loop())
    run = shard._parts.commands.run

    def fail_on_words(conn: int, dialect: Any, message: bytes, opcode: int) -> None:
        if b"canary" in message:
            raise Broken(message)
        run(conn, dialect, message, opcode)

    monkeypatch.setattr(shard._parts.commands, "run", fail_on_words)
    pairs = [socket.socketpair() for _ in range(2)]
    for ours, theirs in pairs:
        ours.setblocking(False)
        theirs.setblocking(False)
        shard._reactor.adopt(os.dup(ours.fileno()), now_ms=now_ms(), upgraded=True)
        ours.close()
    broken, beside = (theirs for _, theirs in pairs)
    broken.sendall(client_frame(TEXT, b'{"op":"canary"}') + client_frame(TEXT, b'{"op":"ping"}'))
    beside.sendall(client_frame(TEXT, b'{"op":"ping"}'))
    for _ in range(3):
        shard._pump()
    received = [FrameReader().receive_data(each.recv(1 << 16)) for each in (broken, beside)]
    broken.close()
    beside.close()
    for _ in range(3):
        shard._pump()
    ended = shard._reactor.counters()["ended_internal"]
    shard._is_over = True  # scheduled callbacks find nothing to do
    shard._reactor.shutdown()
    return received[0], received[1], ended


def test_p9_internal_fault_sends_bye_and_close_4050_and_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("wsgate"), "propagate", True)
    broken, beside, ended = asyncio.run(_converse(monkeypatch))
    assert json.loads(broken[0].payload) == {
        "op": "bye",
        "code": 4050,
        "reason": "internal",
        "reconnect": True,
        "retry_ms": 2000,
    }
    assert [frame.opcode for frame in broken] == [TEXT, CLOSE]  # the message behind it is not run
    assert close_code(broken[1]) == 4050
    assert ended == 1
    assert [json.loads(frame.payload) for frame in beside] == [{"op": "pong"}]
    assert [record.getMessage() for record in caplog.records] == ["command_failed"]
