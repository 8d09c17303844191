"""Measures the CPU time of an echo, with one message in flight on each of some connections."""

from __future__ import annotations

from loadtest.engine import EchoPlan, EngineProcess
from loadtest.harness import floor_probe
from loadtest.harness.arithmetic import per_unit_us
from loadtest.scenarios.stage import Contender, Figures, Scenario, Sizes, visit

__all__ = ["ECHO"]


def _floor(sizes: Sizes, processors: tuple[int, int] | None) -> Figures:
    count = sizes.echo_connections
    result = floor_probe.run(
        "echo", processors=processors, sockets=count, window=count, rounds=sizes.floor_echoes
    )
    return {"echo": float(result["echo"]["cpu_us_per_echo"])}


def _measure(contender: Contender, visitor: EngineProcess, sizes: Sizes) -> Figures:
    plan = EchoPlan(duration_s=sizes.echo_s, payload_bytes=sizes.payload_bytes, in_flight=1, is_text=True)
    with visit(contender, visitor, sizes.echo_connections):
        before_s = contender.server.cpu_s()
        result = visitor.echo(plan)
        cpu_s = contender.server.cpu_s() - before_s
        latency = visitor.stats()["echo_latency"]
    if result["received"] != result["sent"]:
        contender.lost.append(f"echo: {result['received']} of {result['sent']} came back")
    return {"echo_us": per_unit_us(cpu_s, result["received"]), "echo_p99_ms": latency["p99"] / 1e6}


ECHO = Scenario(
    name="echo",
    contenders=frozenset({"reactor", "pool_off", "uvloop", "websockets"}),
    needs_many=False,
    floor=_floor,
    measure=_measure,
)
