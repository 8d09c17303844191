"""Measures a gateway without clients: its memory, the memory of one more shard, and the CPU of a shard.

This uses separate gateways, one with one shard and one with many. The memory is the proportional set size of
keeper, shards and admin process, without the private bus. The memory of one more shard is the growth from one
to many, divided.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from loadtest.harness.gateway import GatewayProcess
from loadtest.scenarios.stage import Results, Sizes

__all__ = ["measure"]


def measure(results: Results, start: Callable[[int], GatewayProcess], sizes: Sizes, runs: int) -> None:
    """Measure the memory of both gateways, and `runs` times the share of a core that an idle shard uses.

    Args:
        results: The numbers are added to it.
        start: Starts a gateway with so many shards.
        sizes: The number of shards of the second gateway, and the length of each run.
        runs: How often the share is measured.
    """
    with start(1) as gateway:
        empty = gateway.memory()
    with start(sizes.resting_shards) as gateway:
        held = gateway.memory()
        gateway.settle()
        for _ in range(runs):
            results.add({"shard_cpu_percent": 100 * _busy_share(gateway, sizes.resting_s)})
        results.lost += [f"resting: {fault}" for fault in gateway.faults()]
    results.add(
        {
            "empty_mb": empty["pss_bytes"] / 1e6,
            "empty_bus_mb": empty["bus_pss_bytes"] / 1e6,
            "shard_mb": (held["pss_bytes"] - empty["pss_bytes"]) / (sizes.resting_shards - 1) / 1e6,
        }
    )


def _busy_share(gateway: GatewayProcess, duration_s: float) -> float:
    """Wait; return the share of a CPU that one shard used during that time."""
    before_s, began_s = gateway.cpu_s(), time.monotonic()
    time.sleep(duration_s)
    return (gateway.cpu_s() - before_s) / (time.monotonic() - began_s) / gateway.shards
