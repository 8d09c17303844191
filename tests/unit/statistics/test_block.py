"""Check the shared statistics block: values reach other processes, and no counter goes backwards."""

import mmap
import os

import pytest

from wsgate.errors import InternalError
from wsgate.shard.statistics_layout import LAYOUT
from wsgate.statistics import (
    PHASE_DRAINING,
    PHASE_READY,
    PHASE_STARTING,
    Layout,
    StatisticsBlock,
    why_not_ready,
)
from wsgate.statistics.layout import HISTOGRAM_BUCKETS
from wsgate.statistics.readiness import SILENT_MS, why_not_alive

GAUGES = ("phase", "beat_ms", "bus_up", "probe_due_ms", "room", "key_set_missing")
SMALL = Layout(("came", "went"), GAUGES, ("lag_us",))
NOW_MS = 1_000_000


def test_layout_with_one_name_as_counter_and_gauge_is_refused() -> None:
    with pytest.raises(InternalError):
        Layout(("a",), ("a",))


@pytest.mark.parametrize("layout", [SMALL, LAYOUT])
def test_no_two_names_share_a_slot(layout: Layout) -> None:
    taken: set[int] = set()
    for name, first in layout.index.items():
        width = HISTOGRAM_BUCKETS + 1 if name in layout.histograms else 1
        own = set(range(first, first + width))
        assert not own & taken and max(own) < layout.slots
        taken |= own
    assert len(taken) == layout.slots


def test_layout_is_parsed_back_from_its_bytes() -> None:
    assert Layout.from_bytes(LAYOUT.to_bytes()) == LAYOUT


def test_regions_of_the_block_do_not_overlap_and_unknown_shards_raise() -> None:
    block = StatisticsBlock.create(SMALL, 3)
    regions = [block.keeper, *(block.shard(number) for number in range(3)), block.retired]
    for number, region in enumerate(regions):
        for place in range(SMALL.slots):
            region.slots[place] = number * 1_000 + place
    for number, region in enumerate(regions):
        assert region.slots.tolist() == [number * 1_000 + place for place in range(SMALL.slots)]
    with pytest.raises(InternalError):
        block.shard(3)
    with pytest.raises(InternalError):
        block.shard(-1)


def test_value_written_by_a_child_process_is_read_by_the_parent() -> None:
    block = StatisticsBlock.create(SMALL, 1)
    pid = os.fork()
    if pid == 0:
        block.shard(0).add("came", 2**40)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert block.shard(0)["came"] == 2**40


@pytest.mark.parametrize("header", [b"", b"WSGSTATS" + bytes(32), b"something else" * 3])
def test_memory_of_another_kind_or_version_is_refused(header: bytes) -> None:
    memory = mmap.mmap(-1, 4096)
    memory[: len(header)] = header
    with pytest.raises(InternalError):
        StatisticsBlock(memory)


@pytest.mark.parametrize(
    ("value", "bucket"), [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (2**24, 25), (2**60, HISTOGRAM_BUCKETS - 1)]
)
def test_histogram_counts_a_value_in_the_bucket_of_its_power_of_two(value: int, bucket: int) -> None:
    region = StatisticsBlock.create(SMALL, 1).shard(0)
    region.observe("lag_us", value)
    buckets, total = region.histogram("lag_us")
    assert buckets == [int(place == bucket) for place in range(HISTOGRAM_BUCKETS)]
    assert total == value


def test_retiring_a_shard_keeps_its_counters_and_clears_its_gauges() -> None:
    block = StatisticsBlock.create(SMALL, 2)
    for came in (5, 7):
        region = block.shard(1)
        region.add("came", came)
        region.observe("lag_us", 100)
        region["room"] = 9
        block.retire(1)
        assert region["came"] == region["room"] == 0
    assert block.retired["came"] == 12
    assert block.retired["room"] == 0
    assert block.retired.histogram("lag_us")[1] == 200


def test_sum_over_a_snapshot_is_equal_before_and_after_a_fold() -> None:
    block = StatisticsBlock.create(SMALL, 1)
    block.shard(0).add("came", 3)
    before = sum(region[SMALL.index["came"]] for region in block.snapshot())
    block.retire(0)
    assert sum(region[SMALL.index["came"]] for region in block.snapshot()) == before == 3


def test_snapshot_is_readable_after_a_keeper_crash_during_a_fold() -> None:
    block = StatisticsBlock.create(SMALL, 1)
    block._header[2] += 1
    assert len(block.snapshot()) == 3


def well(block: StatisticsBlock) -> StatisticsBlock:
    block.keeper["beat_ms"] = NOW_MS
    block.keeper["phase"] = PHASE_READY
    for number in range(block.shards):
        region = block.shard(number)
        region["beat_ms"], region["phase"] = NOW_MS, PHASE_READY
        region["bus_up"], region["probe_due_ms"] = 1, NOW_MS + 1
    return block


def test_node_is_ready_and_alive_when_all_its_shards_are() -> None:
    block = well(StatisticsBlock.create(SMALL, 2))
    assert why_not_ready(block, NOW_MS) == why_not_alive(block, NOW_MS) == []
    assert why_not_ready(StatisticsBlock.create(SMALL, 1), NOW_MS) != []


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("phase", PHASE_STARTING, "shard_1_starting"),
        ("bus_up", 0, "shard_1_bus_down"),
        ("probe_due_ms", NOW_MS - 1, "shard_1_probe_late"),
        ("key_set_missing", 1, "shard_1_keys_awaited"),
        ("beat_ms", NOW_MS - SILENT_MS - 1, "shard_1_silent"),
    ],
)
def test_readiness_names_each_fault_of_a_shard(name: str, value: int, why: str) -> None:
    block = well(StatisticsBlock.create(SMALL, 2))
    block.shard(1)[name] = value
    assert why_not_ready(block, NOW_MS) == [why]
    assert why_not_alive(block, NOW_MS) == ([why] if why.endswith("silent") else [])


def test_readiness_names_draining_and_a_silent_keeper() -> None:
    block = well(StatisticsBlock.create(SMALL, 1))
    block.keeper["phase"] = PHASE_DRAINING
    assert why_not_ready(block, NOW_MS) == ["draining"]
    block.keeper["beat_ms"] = 0
    assert why_not_ready(block, NOW_MS) == ["keeper_silent", "draining"]
