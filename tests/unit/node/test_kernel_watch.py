"""Check what the keeper reads of the kernel for the node, and what a shard reads of its own memory."""

import errno
import os
from pathlib import Path

import pytest

from wsgate.node.kernel_watch import LOOK_MS, PAGE_BYTES, Watch, resident_bytes
from wsgate.node.sockets import SocketNumbers, TcpMemory, read_sockets
from wsgate.shard.statistics_layout import LAYOUT
from wsgate.shard.weight import EVERY_LOOKS, FIRST_LOOK, Weight, proportional_set_bytes
from wsgate.statistics import StatisticsBlock

MIB = 1 << 20
NOTHING = SocketNumbers(None, None, None, None)
NAMES = ("tcp_memory_bytes", "tcp_memory_limit_bytes", "listen_overflows", "listen_drops", "bus_bytes")


def test_resident_memory_is_none_for_a_process_that_does_not_exist() -> None:
    own = resident_bytes(os.getpid())
    assert own is not None and MIB < own < 4096 * MIB
    assert resident_bytes(2**22 + 1) is None


def test_kernel_numbers_are_read_once_a_second() -> None:
    block = StatisticsBlock.create(LAYOUT, 3)
    readings = iter([SocketNumbers(1, 100, 7, 8), SocketNumbers(2, 100, 9, 8), SocketNumbers(3, 100, 9, 9)])
    watch = Watch(block, 16 * MIB, lambda: next(readings))
    assert block.keeper["bus_limit_bytes"] == 16 * MIB
    watch.look(LOOK_MS, os.getpid())
    watch.look(LOOK_MS + 1, 0)  # too early: nothing is read
    assert block.keeper["bus_bytes"] > MIB
    assert [block.keeper[name] for name in NAMES[:4]] == [2 * PAGE_BYTES, 100 * PAGE_BYTES, 2, 0]
    watch.look(2 * LOOK_MS, 0)
    assert [block.keeper[name] for name in NAMES] == [3 * PAGE_BYTES, 100 * PAGE_BYTES, 2, 1, 0]


def test_numbers_that_cannot_be_read_leave_their_gauges_as_they_were() -> None:
    block = StatisticsBlock.create(LAYOUT, 1)
    first, later = SocketNumbers(70, 100, 50, 60), SocketNumbers(70, 100, 55, 66)
    readings = iter([first, later, NOTHING, SocketNumbers(None, 100, None, 66), later])
    watch = Watch(block, 0, lambda: next(readings))
    seen = []
    for look, bus in enumerate((os.getpid(), 2**22 + 1, 2**22 + 1, os.getpid()), 1):
        watch.look(look * LOOK_MS, bus)
        seen.append([block.keeper[name] for name in NAMES[:4]] + [block.keeper["sockets_short"]])
        assert block.keeper["bus_bytes"] > MIB
    assert seen == [[70 * PAGE_BYTES, 100 * PAGE_BYTES, 5, 6, 1]] * 4


def test_counters_unreadable_at_the_start_count_from_their_first_reading() -> None:
    block = StatisticsBlock.create(LAYOUT, 1)
    readings = iter([NOTHING, SocketNumbers(1, 1, 1_000, 2_000), SocketNumbers(1, 1, 1_003, 2_004)])
    watch = Watch(block, 0, lambda: next(readings))
    watch.look(LOOK_MS, 0)
    watch.look(2 * LOOK_MS, 0)
    assert [block.keeper[name] for name in ("listen_overflows", "listen_drops")] == [3, 4]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ENOENT, errno.ENOMEM])
def test_kernel_file_that_cannot_be_opened_is_read_as_none(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert read_sockets() == NOTHING
    assert resident_bytes(os.getpid()) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "TCP: mem",
        "TCP: mem x",
        "TCP: mem -5",
        "TcpExt:\nTcpExt:\n",
        "TcpExt: ListenOverflows\nTcpExt: many\n",
        "TcpExt: ListenOverflows ListenDrops\nTcpExt: 1 2\nTcpExt: 3\n",
        "\xff\x00",
    ],
)
def test_malformed_kernel_file_is_read_as_none(text: str, tmp_path: Path) -> None:
    for name in ("net/sockstat", "net/netstat", "sys/net/ipv4/tcp_mem"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="latin-1")
    assert read_sockets(tmp_path) == NOTHING


def test_missing_reading_of_socket_memory_keeps_the_last_state() -> None:
    memory = TcpMemory()
    assert memory.judge(SocketNumbers(700, 1_000, 0, 0))
    assert memory.judge(NOTHING) and memory.judge(SocketNumbers(None, 1_000, 0, 0))
    assert not memory.judge(SocketNumbers(400, 1_000, 0, 0))
    assert not memory.judge(NOTHING)


# --- memory of a shard --------------------------------------------------------------------------------


def test_proportional_set_size_is_read_soon_and_then_once_a_minute() -> None:
    region = StatisticsBlock.create(LAYOUT, 1).shard(0)
    weight, seen = Weight(region), []
    for _ in range(EVERY_LOOKS + FIRST_LOOK + 1):
        region["proportional_set_bytes"] = 0
        weight.look()
        if weight._thread is not None:
            weight._thread.join()
        seen.append(region["proportional_set_bytes"] > MIB)
    assert [look for look, has_weighed in enumerate(seen) if has_weighed] == [
        FIRST_LOOK,
        FIRST_LOOK + EVERY_LOOKS,
    ]


def test_proportional_set_size_is_at_most_the_resident_size() -> None:
    rollup = bytearray(Path("/proc/self/smaps_rollup").read_bytes())
    own = resident_bytes(os.getpid())
    assert own is not None and MIB < proportional_set_bytes(rollup, len(rollup)) <= own + MIB


@pytest.mark.parametrize("text", [b"", b"\nPss:", b"\nPss: \n", b"\nPss: x kB\n", b"Rss: 7 kB\n"])
def test_rollup_without_the_pss_number_is_read_as_zero(text: bytes) -> None:
    assert proportional_set_bytes(bytearray(text), len(text)) == 0
