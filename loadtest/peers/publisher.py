"""Publishes stamped messages by the clock, from inside the server process.

Inside, because a publication that had to come over a socket would add that socket's cost to what is measured.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TypedDict

from loadtest.engine.stamps import stamp
from loadtest.peers.server import Server

__all__ = ["PublishPlan", "PublishResult", "publish"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishPlan:
    """What to publish.

    Attributes:
        channel: Whose subscribers get it.
        stream: The stamp's stream, one per channel, so that the engine can tell them apart.
        first_sequence: Sequence number of the first message.
        count: Publications, >= 1.
        frames: Messages per publication, queued before the first write, 1 to 64.
        payload_bytes: Size of a message, >= 48; 130 makes a frame of 134 bytes.
        rate_per_s: Publications per second by the clock; 0 begins each `gap_s` after the one before was
            written.
        gap_s: Pause between publications when there is no rate.
    """

    channel: str
    stream: int
    first_sequence: int
    count: int
    frames: int = 1
    payload_bytes: int = 130
    rate_per_s: float = 0.0
    gap_s: float = 0.0


class PublishResult(TypedDict):
    """What was published: `queued` deliveries of `published` messages, the last one with `last_sequence`.

    `walk_cpu_s` is CPU of this process from a publication to its last write, summed; `walk_s` the wall time.
    `late_s` is the worst lateness of a publication against the clock.
    """

    published: int
    queued: int
    last_sequence: int
    walk_cpu_s: float
    walk_s: float
    late_s: float


async def publish(server: Server, plan: PublishPlan) -> PublishResult:
    """Run the plan; ends when the last publication is written."""
    result = PublishResult(
        published=0, queued=0, last_sequence=plan.first_sequence - 1, walk_cpu_s=0.0, walk_s=0.0, late_s=0.0
    )
    start_ns = time.monotonic_ns()
    for index in range(plan.count):
        due_ns = time.monotonic_ns()
        if plan.rate_per_s > 0:
            due_ns = start_ns + int(index * 1e9 / plan.rate_per_s)
            await asyncio.sleep(max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
        elif index > 0:
            await asyncio.sleep(plan.gap_s)
            due_ns = time.monotonic_ns()
        await _publish_one(server, plan, result, due_ns)
    return result


async def _publish_one(server: Server, plan: PublishPlan, result: PublishResult, due_ns: int) -> None:
    payloads = [
        stamp(plan.stream, result["last_sequence"] + 1 + index, due_ns, plan.payload_bytes)
        for index in range(plan.frames)
    ]
    began_ns, began_cpu_ns = time.monotonic_ns(), time.process_time_ns()
    reached = server.publish(plan.channel, payloads)
    await server.drained()
    result["walk_cpu_s"] += (time.process_time_ns() - began_cpu_ns) / 1e9
    result["walk_s"] += (time.monotonic_ns() - began_ns) / 1e9
    result["late_s"] = max(result["late_s"], (began_ns - due_ns) / 1e9)
    result["published"] += plan.frames
    result["last_sequence"] += plan.frames
    result["queued"] += reached * plan.frames
