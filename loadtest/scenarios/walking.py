"""How long a small reply waits on a control connection while publications walk over many connections.

Publications follow each other at once, so that nearly every echo falls into a walk. The control connection
belongs to an engine of its own with real-time priority: its waiting is the server's, not the measuring
side's.
"""

from __future__ import annotations

import dataclasses
import time

from loadtest.engine import EchoPlan, EngineProcess
from loadtest.scenarios.fanout import publish, reconcile
from loadtest.scenarios.stage import MANY, Contender, Figures, Scenario, Sizes, favoured, visit

__all__ = ["WALK"]

_GAP_S = 0.005
_COUNT = 2  # publications per command; the next command follows at once


def _measure(contender: Contender, visitor: EngineProcess, sizes: Sizes) -> Figures:
    plan = EchoPlan(
        duration_s=sizes.walk_s,
        payload_bytes=sizes.payload_bytes,
        in_flight=0,
        rate_per_s=sizes.walk_rate_per_s,
        drain_s=5.0,  # `websockets` answers after a whole walk
        is_text=True,
    )
    with visit(contender, visitor, 1), favoured(visitor.pid):
        visitor.reset_stats()
        contender.server.call("watch_lag", is_on=True)
        echoed = visitor.start("echo", **dataclasses.asdict(plan))
        first = contender.next_sequences.get(MANY, 1)
        walk_share = _walk(contender, sizes)
        result = echoed.result(60.0)
        lag = contender.server.call("watch_lag", is_on=False)
        latency = visitor.stats()["echo_latency"]
    reconcile(contender, MANY, sizes.many, first)
    if result["received"] != result["sent"]:
        contender.lost.append(f"walk: {result['received']} of {result['sent']} echoes came back")
    return {
        "reply_p50_during_walk_ms": latency["p50"] / 1e6,
        "reply_p99_during_walk_ms": latency["p99"] / 1e6,
        "reply_max_during_walk_ms": latency["max"] / 1e6,
        "loop_lag_during_walk_ms": lag["lag_ms"],
        "walk_share": walk_share,
    }


def _walk(contender: Contender, sizes: Sizes) -> float:
    """Publish for the length of the scenario; return the share of the time in which a walk was under way."""
    began_s, walked_s = time.monotonic(), 0.0
    while time.monotonic() - began_s < sizes.walk_s:
        result = publish(contender, MANY, sizes.many, count=_COUNT, gap_s=_GAP_S, size=sizes.payload_bytes)
        walked_s += result["walk_s"]
    return walked_s / (time.monotonic() - began_s)


WALK = Scenario(
    name="walk",
    contenders=frozenset({"reactor", "uvloop", "websockets"}),
    needs_many=True,
    floor=None,
    measure=_measure,
)
