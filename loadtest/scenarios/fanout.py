"""Measures fan-out: single frames to many and to few connections, and several frames in one write.

The CPU time is that of the whole server process, from the command to publish until the last message is read.
It includes the Python code around the reactor, its ticks and the control channel; nothing is subtracted. For
the gateway it is the time of its shard, and a publication comes through Redis.
"""

from __future__ import annotations

import time
from typing import cast

from loadtest.engine import EngineProcess
from loadtest.harness import floor_probe
from loadtest.harness.arithmetic import hit_rate, per_unit_us
from loadtest.peers.publisher import PublishResult
from loadtest.scenarios.stage import FEW, MANY, Contender, Figures, Scenario, Sizes

__all__ = ["COALESCED", "FANOUT", "STREAMS", "publish", "reconcile"]

STREAMS = {MANY: 1, FEW: 2}
_DEADLINE_S = 30.0


def publish(
    contender: Contender,
    channel: str,
    subscribers: int,
    *,
    count: int,
    size: int,
    frames: int = 1,
    **pace: float,
) -> PublishResult:
    """Publish to a channel, and wait until the engine has read every message.

    Args:
        contender: The server and its engine; the counters of the engine are reset.
        channel: MANY or FEW.
        subscribers: The number of subscribers of the channel.
        count: The number of publications.
        size: The bytes of each payload.
        frames: The number of messages per publication.
        pace: `rate_per_s` or `gap_s`, see PublishPlan.
    """
    first = contender.next_sequences.get(channel, 1)
    contender.engine.reset_stats()
    result = cast(
        PublishResult,
        contender.server.call(
            "publish",
            timeout_s=_DEADLINE_S,
            channel=channel,
            stream=STREAMS[channel],
            first_sequence=first,
            count=count,
            frames=frames,
            payload_bytes=size,
            **pace,
        ),
    )
    contender.engine.run(_DEADLINE_S, until_messages=subscribers * count * frames)
    contender.next_sequences[channel] = result["last_sequence"] + 1
    return result


def measure_publish(
    contender: Contender,
    channel: str,
    subscribers: int,
    *,
    count: int,
    size: int,
    frames: int = 1,
    rate_per_s: float,
) -> Figures:
    """Publish as `publish` does, measure it, and record lost messages.

    Returns:
        cpu_us (per delivery), p99_ms (from the intended time), engine_share (of its CPU), and pool_hits
        and pool_misses.
    """
    engine, server = contender.engine, contender.server
    hits, misses = contender.pool()
    began_s, before_s = time.monotonic(), server.cpu_s()
    result = publish(
        contender, channel, subscribers, count=count, size=size, frames=frames, rate_per_s=rate_per_s
    )
    cpu_s, wall_s, stats = server.cpu_s() - before_s, time.monotonic() - began_s, engine.stats()
    hits_after, misses_after = contender.pool()
    reconcile(contender, channel, subscribers, result["last_sequence"] - result["published"] + 1)
    return {
        "cpu_us": per_unit_us(cpu_s, subscribers * count * frames),
        "p99_ms": stats["delivery_latency"]["p99"] / 1e6,
        "engine_share": stats["cpu_s"] / wall_s,  # CPU time since `publish` reset the counters
        "pool_hits": hits_after - hits,
        "pool_misses": misses_after - misses,
    }


def reconcile(contender: Contender, channel: str, subscribers: int, first: int) -> None:
    """Record a loss since the sequence `first`, unless exactly the subscribers have every message once."""
    last = contender.next_sequences[channel] - 1
    found = contender.engine.reconcile(STREAMS[channel], first=first, last=last)
    stats = contender.engine.stats()
    wrong = {
        "incomplete": found["incomplete"] - found["silent"],
        "complete - subscribers": found["complete"] - subscribers,
        "duplicates": stats["duplicates"],
        "reordered": stats["reordered"],
        "misrouted": stats["misrouted"],
        "unexpected_disconnects": stats["unexpected_disconnects"],
    }
    if any(wrong.values()):
        contender.lost.append(f"{channel}, messages {first} to {last}: {wrong}")


def _fanout_floor(sizes: Sizes, processors: tuple[int, int] | None) -> Figures:
    many = floor_probe.run(
        "fanout",
        processors=processors,
        sockets=sizes.many,
        rounds=sizes.many_rounds,
        interval_ms=1000 // sizes.many_rate_per_s,
    )
    few = floor_probe.run(
        "fanout",
        processors=processors,
        sockets=sizes.few,
        rounds=sizes.few_rounds,
        interval_ms=1000 // sizes.few_rate_per_s,
    )
    return {
        "fanout": float(many["fanout"]["cpu_us_per_delivery"]),
        "fanout_few": float(few["fanout"]["cpu_us_per_delivery"]),
    }


def _fanout(contender: Contender, _visitor: EngineProcess, sizes: Sizes) -> Figures:
    size = sizes.payload_bytes
    many = measure_publish(
        contender, MANY, sizes.many, count=sizes.many_rounds, rate_per_s=sizes.many_rate_per_s, size=size
    )
    few = measure_publish(
        contender, FEW, sizes.few, count=sizes.few_rounds, rate_per_s=sizes.few_rate_per_s, size=size
    )
    figures = {
        "fanout_us": many["cpu_us"],
        "fanout_p99_ms": many["p99_ms"],
        "fanout_engine_share": many["engine_share"],
        "fanout_few_us": few["cpu_us"],
        "fanout_few_p99_ms": few["p99_ms"],
    }
    deliveries = sizes.many * sizes.many_rounds + sizes.few * sizes.few_rounds
    hits, misses = int(many["pool_hits"] + few["pool_hits"]), int(many["pool_misses"] + few["pool_misses"])
    rate = hit_rate(hits, misses)
    if rate is not None:
        figures["pool_hit_rate"] = rate
        figures["pool_misses_per_delivery"] = misses / deliveries
    return figures


def _coalesced_floor(sizes: Sizes, processors: tuple[int, int] | None) -> Figures:
    interval_ms = 1000 // sizes.coalesced_rate_per_s
    rounds = sizes.coalesced_rounds
    many = floor_probe.run(
        "coalesced16", processors=processors, sockets=sizes.many, rounds=rounds, interval_ms=interval_ms
    )
    few = floor_probe.run(
        "coalesced16",
        "coalesced64",
        processors=processors,
        sockets=sizes.few,
        rounds=rounds,
        interval_ms=interval_ms,
    )
    return {
        "coalesced16": float(many["coalesced16"]["cpu_us_per_delivery"]),
        "coalesced16_few": float(few["coalesced16"]["cpu_us_per_delivery"]),
        "coalesced64_few": float(few["coalesced64"]["cpu_us_per_delivery"]),
    }


def _coalesced(contender: Contender, _visitor: EngineProcess, sizes: Sizes) -> Figures:
    figures: Figures = {}
    cases = [("coalesced16_few_us", FEW, sizes.few, 16), ("coalesced64_few_us", FEW, sizes.few, 64)]
    # websockets writes each frame alone: for 15,000 sockets that takes 4 s a publication, and shows the same
    # as FEW.
    if contender.name != "websockets":
        cases.append(("coalesced16_us", MANY, sizes.many, 16))
    for name, channel, subscribers, frames in cases:
        result = measure_publish(
            contender,
            channel,
            subscribers,
            count=sizes.coalesced_rounds,
            rate_per_s=sizes.coalesced_rate_per_s,
            frames=frames,
            size=sizes.payload_bytes,
        )
        figures[name] = result["cpu_us"]
    return figures


_EVERYONE = frozenset({"floor_same_client", "reactor", "pool_off", "uvloop", "websockets"})

FANOUT = Scenario(
    name="fanout",
    contenders=_EVERYONE,
    needs_many=True,
    floor=_fanout_floor,
    measure=_fanout,
    measure_gateway=_fanout,
)
COALESCED = Scenario(
    name="coalesced",
    contenders=_EVERYONE,
    needs_many=True,
    floor=_coalesced_floor,
    measure=_coalesced,
    measure_gateway=_coalesced,
)
