"""Publishes stamped messages at fixed times, from inside the server process.

A publication that arrived over a socket would add the cost of that socket to the measurement.
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
    """A request to publish stamped messages to one channel.

    Attributes:
        channel: The channel.
        stream: The stream of the stamps, one per channel, so that the engine can distinguish them.
        first_sequence: The sequence number of the first message.
        count: The number of publications, >= 1.
        frames: The number of messages per publication, queued before the first write, 1 to 64.
        payload_bytes: The size of a message, >= 48; 130 makes a frame of 134 bytes.
        rate_per_s: Publications per second at fixed times; 0: each starts `gap_s` after the one before was
            written.
        gap_s: The pause between publications if there is no rate.
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
    """The result of a plan: `queued` deliveries of `published` messages; the last has `last_sequence`.

    `walk_cpu_s` is the sum of this process's CPU time from each publication to its last write; `walk_s` is
    the same in wall time. `late_s` is the worst lateness of a publication.
    """

    published: int
    queued: int
    last_sequence: int
    walk_cpu_s: float
    walk_s: float
    late_s: float


async def publish(server: Server, plan: PublishPlan) -> PublishResult:
    """Publish the messages of a plan, and return when the last one is written."""
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
