"""Measures how long a small reply waits while publications are written to many connections.

Publications follow each other at once, so that nearly every echo arrives during such a walk. The control
connection has its own engine with real-time priority, so that the waiting is that of the server and not of
the measuring side.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from loadtest.engine import EchoPlan, EngineProcess
from loadtest.scenarios.fanout import publish, reconcile
from loadtest.scenarios.members import await_told
from loadtest.scenarios.stage import MANY, Contender, Figures, Scenario, Sizes, favoured, visit

__all__ = ["WALK"]

_GAP_S = 0.005
_COUNT = 2  # publications per command; the next command follows at once


def _measure(contender: Contender, visitor: EngineProcess, sizes: Sizes) -> Figures:
    plan = _plan(sizes, payload_bytes=sizes.payload_bytes)
    with visit(contender, visitor, 1), favoured(visitor.pid):
        contender.server.call("watch_lag", is_on=True)
        figures = _replies(contender, visitor, sizes, plan)
        lag = contender.server.call("watch_lag", is_on=False)
    return {**figures, "loop_lag_during_walk_ms": lag["lag_ms"]}


def _measure_gateway(contender: Contender, visitor: EngineProcess, sizes: Sizes) -> Figures:
    """Measure with the protocol's ping; here the share is that of the time in which the shard worked."""
    plan = _plan(sizes, message='{"op":"ping"}', answer='{"op":"pong"}')
    with visit(contender, visitor, 1), favoured(visitor.pid):
        await_told(visitor, welcome=1)
        began_s, before_s = time.monotonic(), contender.server.cpu_s()
        figures = _replies(contender, visitor, sizes, plan)
        share = (contender.server.cpu_s() - before_s) / (time.monotonic() - began_s)
    return {**figures, "walk_share": share}


def _plan(sizes: Sizes, **fields: Any) -> EchoPlan:
    return EchoPlan(
        duration_s=sizes.walk_s,
        in_flight=0,
        rate_per_s=sizes.walk_rate_per_s,
        drain_s=5.0,  # `websockets` replies only after a whole walk
        is_text=True,
        **fields,
    )


def _replies(contender: Contender, visitor: EngineProcess, sizes: Sizes, plan: EchoPlan) -> Figures:
    """Publish repeatedly while the control connection sends and receives; return its latencies."""
    visitor.reset_stats()
    echoed = visitor.start("echo", **dataclasses.asdict(plan))
    first = contender.next_sequences.get(MANY, 1)
    walk_share = _walk(contender, sizes)
    result = echoed.result(60.0)
    latency = visitor.stats()["echo_latency"]
    reconcile(contender, MANY, sizes.many, first)
    if result["received"] != result["sent"] or result["unsent"]:
        contender.lost.append(f"walk: {result['received']} of {result['sent']} echoes came back")
    return {
        "reply_p50_during_walk_ms": latency["p50"] / 1e6,
        "reply_p99_during_walk_ms": latency["p99"] / 1e6,
        "reply_max_during_walk_ms": latency["max"] / 1e6,
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
    measure_gateway=_measure_gateway,
)
