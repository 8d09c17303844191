"""Measures the latency of well-behaved connections during floods of small messages and with non-readers.

A control group of a few connections sends small messages at a fixed rate (open loop): first alone, then
during the load of each other group. The control group has its own engine with real-time priority, as in
walking.py. The messages of the other groups are only counted. For the reactor, a message of the control group
without a reply is a loss. The peer servers have no read budget, and a flood starves their control group:
there the share of replies is a figure, and no latency is given. The third case, a publication that walks over
many connections, is in walking.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, Final, Literal

from loadtest.engine import ConnectPlan, EchoPlan, EchoResult, EngineProcess
from loadtest.harness.server import ServerError
from loadtest.peers.message_flood import FloodProcess
from loadtest.scenarios.stage import Contender, Figures, Scenario, Sizes, favoured, visit

__all__ = ["CROWD"]

_CHANNEL: Final = "crowd"
_STREAM: Final = 3  # fanout.STREAMS has the lower numbers
_UNDER_WAY_S: Final = 0.2  # until a flood has filled every buffer
_DRAIN_S: Final = 5.0
# So small that the peer's own buffers hold little: the memory on the server's side is measured.
_NONREADER_BUFFER_BYTES: Final = 4_096
_JUDGED: Final = "reactor"
_POINTS: Final[tuple[Literal["p50", "p99", "max"], ...]] = ("p50", "p99", "max")


def _measure(contender: Contender, visitor: EngineProcess, sizes: Sizes) -> Figures:
    if contender.name != _JUDGED and "control_quiet_answered_share" in contender.runs:
        return {}  # peers are compared once: no ratio run by run is derived from them
    with visit(contender, visitor, sizes.control_connections):
        figures = _echo(contender, visitor, sizes, "quiet", sizes.quiet_s)
        figures |= _flooded(contender, visitor, sizes)
    with _nonreaders(contender, visitor, sizes), visit(contender, visitor, sizes.control_connections):
        figures |= _beside_nonreaders(contender, visitor, sizes)
    return figures


def _flooded(contender: Contender, visitor: EngineProcess, sizes: Sizes) -> Figures:
    """Measure the control group while another process sends 1-byte messages as fast as it can."""
    limit_s = _UNDER_WAY_S + sizes.flood_s + _DRAIN_S
    with FloodProcess(contender.server.port, sizes.flooders, limit_s=limit_s) as flood:
        flood.begin()
        time.sleep(_UNDER_WAY_S)
        figures = _echo(contender, visitor, sizes, "flood", sizes.flood_s)
        result = flood.finish()
    figures["flood_answered_per_s"] = result["answered"] / result["elapsed_s"]
    figures["flooders_ended"] = result["ended"]
    return figures


@contextlib.contextmanager
def _nonreaders(contender: Contender, visitor: EngineProcess, sizes: Sizes) -> Iterator[None]:
    """Open peers that subscribe and never read.

    The `visit` inside this block closes them with its own connections.
    """
    plan = ConnectPlan(
        count=sizes.nonreaders,
        host="127.0.0.1",
        port=contender.server.port,
        path="/ws",
        receive_buffer_bytes=_NONREADER_BUFFER_BYTES,
        slow_share=1.0,
    )
    try:
        result = visitor.connect(plan)
        if result["opened"] != sizes.nonreaders:
            raise RuntimeError(f"{result['opened']} of {sizes.nonreaders} peers that never read: {result}")
        visitor.send(f"subscribe:{_CHANNEL}")  # before the control group is connected
        until_s = time.monotonic() + 10.0
        while contender.server.call("subscribers", channel=_CHANNEL) != sizes.nonreaders:
            if time.monotonic() > until_s:
                raise ServerError(f"{contender.name}: not every peer that never reads subscribed")
            time.sleep(0.02)
        yield
    finally:
        visitor.close("reset")


def _beside_nonreaders(contender: Contender, visitor: EngineProcess, sizes: Sizes) -> Figures:
    """Measure the control group during publications to non-readers; then read their kernel memory."""
    publishing = contender.server.start(
        "publish",
        channel=_CHANNEL,
        stream=_STREAM,
        first_sequence=1,
        count=max(1, round(sizes.nonreaders_s * sizes.nonreaders_rate_per_s)),
        payload_bytes=sizes.nonreaders_payload_bytes,
        rate_per_s=float(sizes.nonreaders_rate_per_s),
    )
    figures = _echo(contender, visitor, sizes, "nonreaders", sizes.nonreaders_s)
    published = contender.server.finish(publishing, timeout_s=sizes.nonreaders_s)
    figures["nonreaders_publish_late_ms"] = published["late_s"] * 1e3
    return figures | _kernel_memory(contender.server.call("stats", with_send_memory=True))


def _kernel_memory(stats: dict[str, Any]) -> Figures:
    """Return the bytes in the send queues, and the bytes that the server has charged for them, if any."""
    held = stats["send_memory"]
    figures = {
        "nonreaders_kernel_bytes": float(held["queued_bytes"]),
        "nonreaders_kernel_most_bytes": float(held["queued_most_bytes"]),
    }
    booked = stats["bytes_held"].get("kernel_queued")
    if booked is not None:
        figures["nonreaders_blocked"] = float(stats["counters"]["now_blocked"])
        figures["nonreaders_booked_bytes"] = float(booked)
        if booked > 0:
            figures["nonreaders_kernel_share"] = held["queued_bytes"] / booked
    return figures


def _echo(
    contender: Contender, visitor: EngineProcess, sizes: Sizes, crowd: str, duration_s: float
) -> Figures:
    """Send at a fixed rate on the control group, and record a lost message or connection."""
    plan = EchoPlan(
        duration_s=duration_s,
        payload_bytes=sizes.control_payload_bytes,
        in_flight=0,
        rate_per_s=sizes.control_rate_per_s,
        drain_s=_DRAIN_S,
        is_text=True,
    )
    visitor.reset_stats()
    with favoured(visitor.pid):
        echoing: Future[EchoResult] = visitor.start("echo", **dataclasses.asdict(plan))
        result = echoing.result(duration_s + _DRAIN_S + 30.0)
    stats = visitor.stats()
    if contender.name == _JUDGED:
        alive = stats["open"] - stats["slow"]
        contender.lost += _losses(crowd, result, alive=alive, expected=sizes.control_connections)
    due, latency = result["sent"] + result["unsent"], stats["echo_latency"]
    figures = {f"control_{crowd}_answered_share": result["received"] / due if due else 0.0}
    if 0 < due == result["received"]:  # the latency of the fast replies alone would be misleading
        figures |= {f"control_{crowd}_{name}_ms": latency[name] / 1e6 for name in _POINTS}
    # How late the engine itself has sent: beyond 1 ms the figure may be that of the engine.
    return figures | {f"control_{crowd}_send_lag_p99_ms": stats["send_lag"]["p99"] / 1e6}


def _losses(crowd: str, result: EchoResult, *, alive: int, expected: int) -> list[str]:
    """Return a sentence for each kind of loss in the control group."""
    lost, due = [], result["sent"] + result["unsent"]
    if not 0 < due == result["received"]:
        lost.append(f"crowd, {crowd}: {result['received']} of {due} echoes came back")
    if alive != expected:
        lost.append(f"crowd, {crowd}: {alive} of {expected} connections are left")
    return lost


CROWD = Scenario(
    name="crowd",
    contenders=frozenset({"reactor", "uvloop", "websockets"}),
    needs_many=False,
    floor=None,
    measure=_measure,
)
