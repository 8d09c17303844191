"""What the keeper reads of the kernel for the whole node."""

import os

from wsgate.node.watch import LOOK_MS, WEIGH_LOOKS, Watch, proportional_bytes, resident_bytes
from wsgate.shard.numbers import LAYOUT
from wsgate.statistics import StatisticsBlock

MIB = 1 << 20


def test_a_process_is_weighed_and_one_that_is_gone_is_nothing() -> None:
    assert MIB < proportional_bytes(os.getpid()) <= resident_bytes(os.getpid()) < 4096 * MIB
    assert proportional_bytes(0) == resident_bytes(0) == 0


def test_every_shard_is_weighed_once_a_minute_and_the_bus_every_second() -> None:
    block = StatisticsBlock.create(LAYOUT, 3)
    watch = Watch(block, 16 * MIB)
    assert block.keeper["bus_limit_bytes"] == 16 * MIB
    pids, seen = [os.getpid(), 0, os.getpid()], []
    for look in range(1, WEIGH_LOOKS + 2):
        for number in range(3):
            block.shard(number)["proportional_bytes"] = 0
        watch.look(look * LOOK_MS, pids, os.getpid())
        watch.look(look * LOOK_MS + 1, pids, 0)  # too early: nothing is read
        seen.append([block.shard(number)["proportional_bytes"] > MIB for number in range(3)])
        assert block.keeper["bus_bytes"] > MIB
    assert seen[:3] == [[True, False, False], [False, False, False], [False, False, True]]
    assert not any(any(row) for row in seen[3:-1])
    assert seen[-1] == [True, False, False], "a minute later"
    assert block.keeper["tcp_memory_limit_bytes"] > 0
