"""A gateway that does nothing: what it holds, what one more shard holds, and what a shard burns.

Runs on gateways of its own without a client, one with one shard, then one with many. Memory is the
proportional set of keeper, shards and admin process, the private bus apart; a further shard's is the growth
from one to many.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from loadtest.harness.gateway import GatewayProcess
from loadtest.scenarios.stage import Results, Sizes

__all__ = ["measure"]


def measure(results: Results, start: Callable[[int], GatewayProcess], sizes: Sizes, runs: int) -> None:
    """Note the memory of both, and the share of a core that a resting shard takes, `runs` times.

    Args:
        results: Gets the figures.
        start: Starts a gateway with so many shards.
        sizes: How many are many, and how long each run is.
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
    """Wait; return the share of a processor that one of its shards took meanwhile."""
    before_s, began_s = gateway.cpu_s(), time.monotonic()
    time.sleep(duration_s)
    return (gateway.cpu_s() - before_s) / (time.monotonic() - began_s) / gateway.shards
