"""Check the memory accounts of a private bus: its parts, their sizes, and the refusals near the limit."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.reactor_rig import Rig
from wsgate.admission import BusLedger, BusReading, BusShares, names_bytes
from wsgate.bus import Publisher
from wsgate.log import Log
from wsgate.shard.bus_memory import BusMemory
from wsgate.shard.statistics_layout import LAYOUT
from wsgate.statistics import StatisticsBlock

MIB = 1 << 20
SHARES = BusShares.of(16 * MIB, 1)
INFO = (
    b"# Memory\r\nused_memory:%d\r\nused_memory_human:1M\r\nused_memory_startup:%d\r\n"
    b"mem_clients_normal:%d\r\n"
)


@pytest.mark.parametrize(
    ("total", "shards", "output", "names", "maxmemory"),
    [(16, 1, 8, 4, 8), (32, 1, 8, 12, 24), (40, 4, 8, 4, 8), (2_700, 4, 64, 1_222, 2_444), (0, 4, 0, 0, 0)],
)
def test_parts_of_the_bus_fit_its_memory(
    total: int, shards: int, output: int, names: int, maxmemory: int
) -> None:
    shares = BusShares.of(total * MIB, shards)
    assert shares == BusShares(total * MIB, output * MIB, names * MIB, maxmemory * MIB)


def test_memory_reading_of_the_bus_is_parsed_and_malformed_text_is_refused() -> None:
    reading = BusReading.from_bytes(INFO % (5_000, 1_000, 500))
    assert reading == (5_000, 1_000, 500) and reading.data == 3_500
    for text in (b"", b"used_memory:x\r\n", b"used_memory:5", INFO.replace(b"startup", b"start") % (1, 2, 3)):
        with pytest.raises(ValueError, match="INFO"):
            BusReading.from_bytes(text)


def test_channel_names_are_refused_before_new_connections_and_both_recover() -> None:
    ledger = BusLedger(SHARES)
    assert ledger.takes_name(3 * MIB - 1) and not ledger.takes_name(3 * MIB)
    assert not ledger.judge(4 * MIB - 1) and ledger.judge(4 * MIB)
    assert ledger.judge(4 * MIB - 1), "new connections are accepted only when an eighth is free again"
    assert not ledger.judge(3 * MIB) and ledger.takes_name(2 * MIB)


def test_bytes_of_names_are_limited_by_the_last_reading_of_the_bus() -> None:
    """A name that four shards are subscribed to is counted four times, and the bus has the name once."""
    ledger = BusLedger(SHARES)
    ledger.read(BusReading(3 * MIB, MIB, 0), 8 * MIB)
    assert ledger.names(8 * MIB) == 2 * MIB
    assert ledger.names(9 * MIB) == 3 * MIB, "names since the reading are added"
    assert ledger.names(1 * MIB) == 1 * MIB


def test_bus_at_its_memory_limit_refuses_new_connections_and_names() -> None:
    ledger = BusLedger(SHARES)
    ledger.read(BusReading(16 * MIB, MIB, 8 * MIB), 0)
    assert ledger.judge(0) and not ledger.takes_name(0)
    ledger.read(BusReading(13 * MIB, MIB, 0), 0)
    assert not ledger.judge(0) and ledger.takes_name(0)


def test_shared_bus_refuses_no_connection_for_memory() -> None:
    ledger = BusLedger(BusShares.of(0, 1))
    ledger.read(BusReading(1 << 40, 0, 0), 0)
    assert ledger.takes_name(1 << 40) and not ledger.judge(1 << 40) and not ledger.is_nearly_full


class BusMemoryRig:
    """One of two shards, and a bus that answers when the test lets it."""

    def __init__(self) -> None:
        self.rig = Rig()
        self.block = StatisticsBlock.create(LAYOUT, 2)
        self.asked: list[Callable[[str, bytes], None]] = []
        self.memory = BusMemory(
            BusLedger(SHARES),
            self.rig.reactor,
            cast(Publisher, SimpleNamespace(call=lambda key, command, done: self.asked.append(done))),
            self.block,
            0,
            b"wsgate:ch:",
            Log("test"),
        )

    def answer(self, used: int, *, buffers: int = 0) -> None:
        self.asked.pop()("", INFO % (used, MIB, buffers))


def test_own_names_count_at_once_and_names_of_other_shards_at_the_next_tick() -> None:
    shard = BusMemoryRig()
    peer = shard.rig.connect()
    number = 0
    while shard.memory.takes_name():
        shard.rig.reactor.subscribe(peer.conn, b"%d" % number + b"x" * 180)
        number += 1
    assert number == pytest.approx(3 * MIB / names_bytes(1, 195), rel=0.02)
    shard.memory.tick(1.0)
    assert shard.block.shard(0)["bus_names_bytes"] >= 3 * MIB and not shard.memory.is_full
    shard.block.shard(1)["bus_names_bytes"] = MIB
    shard.memory.tick(1.25)
    assert shard.memory.is_full
    shard.block.shard(1)["bus_names_bytes"] = 0
    shard.rig.reactor.abort(peer.conn)
    shard.rig.turn()
    shard.memory.tick(1.5)
    assert not shard.memory.is_full and shard.memory.takes_name()
    shard.rig.close()


def test_bus_memory_is_read_once_a_second_by_one_request_at_a_time() -> None:
    shard = BusMemoryRig()
    for tick in range(8):
        shard.memory.tick(10 + tick / 4)
    assert len(shard.asked) == 1
    shard.answer(2 * MIB, buffers=500)
    assert shard.block.shard(0)["bus_used_bytes"] == 2 * MIB
    assert shard.block.shard(0)["bus_buffers_bytes"] == 500
    shard.memory.tick(20)
    shard.asked.pop()("down", b"")
    shard.memory.tick(21)
    shard.asked.pop()("", b"nonsense")
    assert shard.block.shard(0)["bus_used_bytes"] == 2 * MIB, "the last valid reading stays"
    shard.rig.close()


def test_nearly_full_bus_trims_streams_and_refuses_messages_unless_trimming_helps() -> None:
    shard = BusMemoryRig()

    class Appender:
        last_trimmed = 0
        rooms = 0

        def make_room(self) -> None:
            self.rooms += 1

    appender = Appender()
    shard.memory.appenders = cast(Any, [appender, appender])
    shard.memory.tick(1)
    shard.answer(5 * MIB)
    assert shard.memory.takes_message() and appender.rooms == 0
    shard.memory.tick(2)
    shard.answer(8 * MIB)
    assert appender.rooms == 1 and not shard.memory.takes_message()
    appender.last_trimmed = 5
    assert shard.memory.takes_message()
    shard.rig.close()
