"""Measures publications with one subscriber each: from a backend, and from clients.

From a backend: another process publishes through Redis. First it publishes everything that it has prepared,
as fast as Redis accepts it, to many channels in turn. Then it publishes at a fixed rate, half of the rate
that the flood reached (the knee), for the latency from the intended time. Last it floods one channel. From
clients: each publishes to a channel to which only it is subscribed, with so many messages under way that the
shard never waits.

The CPU time is that of the shard, from the first publication until the last one is read. On a machine with
two CPUs Redis, backend and clients share the other CPU, so the knee may be theirs:
`publication_busy_share` is the share of the flood's time in which the shard worked.
"""

from __future__ import annotations

import math
import time
from typing import Any, Final

from loadtest.engine import EchoPlan, EchoResult, EngineProcess
from loadtest.harness.arithmetic import per_unit_us
from loadtest.scenarios.members import OK, GatewayContender, await_told
from loadtest.scenarios.stage import Contender, Figures, Scenario, Sizes, favoured, visit

__all__ = ["CLIENT_PUBLISH", "PUBLICATION"]

_STREAM: Final = 100  # fanout.STREAMS and crowding.py use lower numbers
_DEADLINE_S: Final = 30.0
_DRAIN_S: Final = 5.0


def _publication(contender: Contender, visitor: EngineProcess, sizes: Sizes) -> Figures:
    assert isinstance(contender, GatewayContender)
    count, each = sizes.single_channels, math.ceil(sizes.publications / sizes.single_channels)
    channels = [f"one-{number}" for number in range(count)]
    with visit(contender, visitor, count, path="/ws?ch=one-{index}"):
        await_told(visitor, welcome=count, subbed=count)
        many = _flood(contender, visitor, sizes, channels, first=1, each=each)
        paced = _pace(contender, visitor, sizes, channels, first=1 + each, rate_per_s=many["per_s"] / 2)
        later = 1 + each + paced["each"]
        one = _flood(contender, visitor, sizes, channels[:1], first=int(later), each=sizes.publications_one)
    return {
        "publication_us": many["us"],
        "publication_bus_us": many["bus_us"],
        "publication_knee_per_s": many["per_s"],
        "publication_busy_share": many["busy_share"],
        "publication_p50_ms": paced["p50_ms"],
        "publication_p99_ms": paced["p99_ms"],
        "publication_late_ms": paced["late_ms"],
        "publication_one_us": one["us"],
        "publication_one_knee_per_s": one["per_s"],
    }


def _flood(
    contender: GatewayContender,
    visitor: EngineProcess,
    sizes: Sizes,
    channels: list[str],
    *,
    first: int,
    each: int,
) -> Figures:
    """Publish `each` messages to each channel, as fast as possible.

    Returns:
        CPU `us` of the shard and `bus_us` of the bus per message; `per_s`, until the last one was read;
        `busy_share`, the share of that time in which the shard worked.
    """
    gateway, total = contender.gateway, each * len(channels)
    plan: dict[str, Any] = {
        "channels": channels,
        "stream": _STREAM,
        "first_sequence": first,
        "count": each,
        "payload_bytes": sizes.payload_bytes,
    }
    gateway.call("prepare", **plan)
    gateway.settle()
    visitor.reset_stats()
    began_s, before_s, bus_before_s = time.monotonic(), gateway.cpu_s(), gateway.bus_cpu_s()
    sent = gateway.call("flood", timeout_s=_DEADLINE_S)
    visitor.run(_DEADLINE_S, until_messages=total)
    wall_s, cpu_s = time.monotonic() - began_s, gateway.cpu_s() - before_s
    bus_s = gateway.bus_cpu_s() - bus_before_s
    _judge(contender, visitor, f"a flood to {len(channels)} channels", sent["reached"], total)
    return {
        "us": per_unit_us(cpu_s, total),
        "bus_us": per_unit_us(bus_s, total),
        "per_s": total / wall_s,
        "busy_share": cpu_s / wall_s,
    }


def _pace(
    contender: GatewayContender,
    visitor: EngineProcess,
    sizes: Sizes,
    channels: list[str],
    *,
    first: int,
    rate_per_s: float,
) -> Figures:
    """Publish at a rate over all channels; return the latency and the lateness of the backend.

    Backend, bus and clients have real-time priority, the shard does not: they share one CPU with all
    other programs of the machine. A trace showed another process on it for 45 ms, in slices of 4 ms.
    """
    each = max(1, int(rate_per_s * sizes.pace_s / len(channels)))
    visitor.reset_stats()
    gateway = contender.gateway
    with favoured(gateway.backend_pid), favoured(gateway.bus_pid), favoured(visitor.pid):
        sent = gateway.call(
            "pace",
            timeout_s=_DEADLINE_S,
            channels=channels,
            stream=_STREAM,
            first_sequence=first,
            count=each,
            payload_bytes=sizes.payload_bytes,
            rate_per_s=rate_per_s,
        )
        visitor.run(_DEADLINE_S, until_messages=each * len(channels))
    _judge(contender, visitor, f"{rate_per_s:,.0f}/s", sent["reached"], each * len(channels))
    latency = visitor.stats()["delivery_latency"]
    return {
        "p50_ms": latency["p50"] / 1e6,
        "p99_ms": latency["p99"] / 1e6,
        "late_ms": sent["late_s"] * 1e3,
        "each": each,
    }


def _judge(contender: Contender, visitor: EngineProcess, what: str, reached: int, total: int) -> None:
    """Record publications that did not reach one shard, or that did not arrive once and in order."""
    stats = visitor.stats()
    wrong: dict[str, int] = {
        "unheard": total - reached,
        "not received": total - stats["messages"],
        "unstamped": stats["messages"] - stats["stamped"],
        "missing": stats["missing"],
        "duplicates": stats["duplicates"],
        "reordered": stats["reordered"],
        "unexpected_disconnects": stats["unexpected_disconnects"],
    }
    if any(wrong.values()):
        contender.lost.append(f"publication, {what}: {wrong}")


def _client_publish(contender: Contender, visitor: EngineProcess, sizes: Sizes) -> Figures:
    """Publish without and with an `id`; with one, the gateway replies `ok` in addition to the publication."""
    plain = '{"op":"pub","ch":"own-{index}","data":"{stamp}"}'
    acknowledged = '{"op":"pub","ch":"own-{index}","data":"{stamp}","id":1}'
    count = sizes.publishers
    with visit(contender, visitor, count, path="/ws?ch=own-{index}"):
        await_told(visitor, welcome=count, subbed=count)
        figures = _publish_back(contender, visitor, sizes, plain, "client_publish")
        figures |= _publish_back(contender, visitor, sizes, acknowledged, "client_publish_ok")
    return figures


def _publish_back(
    contender: Contender, visitor: EngineProcess, sizes: Sizes, message: str, name: str
) -> Figures:
    plan = EchoPlan(
        duration_s=sizes.client_publish_s,
        payload_bytes=sizes.payload_bytes,
        in_flight=sizes.publishes_in_flight,
        drain_s=_DRAIN_S,
        is_text=True,
        message=message,
    )
    visitor.reset_stats()
    before_s = contender.server.cpu_s()
    result = visitor.echo(plan)
    cpu_s = contender.server.cpu_s() - before_s
    if '"id"' in message:
        await_told(visitor, ok=result["sent"])
    stats = visitor.stats()
    contender.lost += _losses(name, result, stats["counted"][OK], sizes, is_answered='"id"' in message)
    latency = stats["echo_latency"]
    return {f"{name}_us": per_unit_us(cpu_s, result["received"]), f"{name}_p99_ms": latency["p99"] / 1e6}


def _losses(name: str, result: EchoResult, answered: int, sizes: Sizes, *, is_answered: bool) -> list[str]:
    """Return a sentence if a publication did not come back, had no reply, or had one without an `id`."""
    wrong = {
        "sent and not back": result["sent"] - result["received"],
        "clients missing": sizes.publishers - result["connections"],
        "answers": answered - (result["sent"] if is_answered else 0),
    }
    return [f"{name}: {wrong}"] if any(wrong.values()) or not result["sent"] else []


PUBLICATION = Scenario(
    name="publication",
    contenders=frozenset(),
    needs_many=False,
    floor=None,
    measure=None,
    measure_gateway=_publication,
)
CLIENT_PUBLISH = Scenario(
    name="client_publish",
    contenders=frozenset(),
    needs_many=False,
    floor=None,
    measure=None,
    measure_gateway=_client_publish,
)
