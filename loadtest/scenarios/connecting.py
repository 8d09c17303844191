"""Measures the server's CPU time for each accepted handshake and for each refused connection.

The gateway's handshake is measured in four ways, each from the first SYN until the last client has its
messages. It includes all work of the shard: accept, request head, 101 and `welcome`, and for users the token,
the inbox and `subbed`. New tokens of users whose inbox another connection has need no SUBSCRIBE on the bus:
that is the cost without the bus. New users need one SUBSCRIBE each, sent in batches: that is the cost with
the bus.
"""

from __future__ import annotations

import time
from typing import Any, Final

from loadtest.engine import ConnectPlan, EngineProcess
from loadtest.harness import floor_probe
from loadtest.harness.arithmetic import per_unit_us
from loadtest.scenarios.members import BEARER, GatewayContender, await_told
from loadtest.scenarios.stage import Contender, Figures, Scenario, Sizes, open_connections

__all__ = ["HANDSHAKE", "REFUSAL"]

_COUNTED_S: Final = 10.0  # time in which a shard writes its counters; it does so once a second


def _accept_floor(sizes: Sizes, processors: tuple[int, int] | None) -> Figures:
    """Measure accept with 101, and accept alone by epoll and by io_uring.

    The latter two have numbers for system calls and context switches too.
    """
    result = floor_probe.run(
        "accept", processors=processors, sockets=sizes.handshakes, window=sizes.handshake_window
    )
    figures = {"accept": float(result["accept"]["cpu_us_per_accept"])}
    names = ("accept_epoll", "accept_epoll_burst", "accept_uring", "accept_uring_burst")
    alone = floor_probe.run(*names, processors=processors, sockets=sizes.handshakes, window=512)
    for name in names:
        if not alone[name]["unavailable"]:
            figures[name] = float(alone[name]["cpu_us_per_accept"])
            figures[f"{name}_calls"] = float(alone[name]["system_calls_each"])
            figures[f"{name}_switches"] = float(alone[name]["voluntary_switches_each"]) + float(
                alone[name]["involuntary_switches_each"]
            )
    return figures


def _handshake(contender: Contender, visitor: EngineProcess, sizes: Sizes) -> Figures:
    plan = ConnectPlan(
        count=sizes.handshakes,
        host="127.0.0.1",
        port=contender.server.port,
        path="/ws",
        window=sizes.handshake_window,
    )
    visitor.reset_stats()
    before_s = contender.server.cpu_s()
    result = visitor.connect(plan)
    cpu_s = contender.server.cpu_s() - before_s
    if result["opened"] != sizes.handshakes:
        contender.lost.append(
            f"handshake: {result['opened']} of {sizes.handshakes} opened: {result['failed']}"
        )
    latency = visitor.stats()["connect_latency"]
    visitor.close("reset")
    contender.server.settle()
    return {"handshake_us": per_unit_us(cpu_s, result["opened"]), "handshake_p99_ms": latency["p99"] / 1e6}


def _gateway_handshakes(contender: Contender, visitor: EngineProcess, sizes: Sizes) -> Figures:
    assert isinstance(contender, GatewayContender)
    count = sizes.handshakes
    contender.batches += 1
    strangers = [f"stranger-{contender.batches}-{number}" for number in range(count)]
    held = [contender.users[number % len(contender.users)] for number in range(count)]
    fresh = {"headers": BEARER, "tokens": contender.tokens(held)}
    unknown = {"headers": BEARER, "tokens": contender.tokens(strangers)}
    figures = {
        "handshake_us": _handshake_of(contender, visitor, sizes),
        "handshake_token_us": _handshake_of(contender, visitor, sizes, **fresh),
        "handshake_seen_us": _handshake_of(contender, visitor, sizes, **fresh),
        "handshake_subscribing_us": _handshake_of(contender, visitor, sizes, **unknown),
    }
    contender.shown_again += count
    contender.lost += _misjudged(contender)
    return figures


def _misjudged(contender: GatewayContender) -> list[str]:
    """Return a sentence unless the gateway verified each new token and found each other one in its cache."""
    wanted = {"verified": contender.shown, "cached": contender.shown_again, "refused": 0}
    until_s = time.monotonic() + _COUNTED_S
    while True:
        found = {name: contender.gateway.metric("tokens_total", outcome=name) for name in wanted}
        if found == wanted:
            return []
        if time.monotonic() > until_s:
            return [f"handshake: tokens were {found}, not {wanted}"]
        time.sleep(0.1)


def _handshake_of(contender: Contender, visitor: EngineProcess, sizes: Sizes, **fields: Any) -> float:
    """Open connections until each has its welcome; return the shard's CPU us for each."""
    count = sizes.handshakes
    visitor.reset_stats()
    before_s = contender.server.cpu_s()
    open_connections(visitor, contender.server, count, window=sizes.handshake_window, **fields)
    await_told(visitor, welcome=count, subbed=count if fields else 0)
    cpu_s = contender.server.cpu_s() - before_s
    visitor.close("reset")
    contender.server.settle()
    return per_unit_us(cpu_s, count)


def _refusal_floor(sizes: Sizes, processors: tuple[int, int] | None) -> Figures:
    names = ("refuse", "refuse_at_once")
    result = floor_probe.run(
        *names, processors=processors, sockets=sizes.refusals, window=sizes.refusal_window
    )
    return {name: float(result[name]["cpu_us_per_accept"]) for name in names}


def _refusal(contender: Contender, visitor: EngineProcess, sizes: Sizes) -> Figures:
    plan = ConnectPlan(
        count=sizes.refusals,
        host="127.0.0.1",
        port=contender.server.port,
        path="/ws",
        window=sizes.refusal_window,
    )
    contender.server.call("gate", connections=1)  # more connections than that are open already
    before_s = contender.server.cpu_s()
    result = visitor.connect(plan)
    contender.server.settle()  # draining and closing are part of the refusal
    cpu_s = contender.server.cpu_s() - before_s
    contender.server.call("gate", connections=0)
    seen = result["refused"].get("503", 0)
    if seen != sizes.refusals:
        contender.lost.append(f"refusal: {seen} of {sizes.refusals} read their 503: {result['failed']}")
    return {"refusal_us": per_unit_us(cpu_s, sizes.refusals)}


HANDSHAKE = Scenario(
    name="handshake",
    contenders=frozenset({"reactor", "uvloop", "websockets"}),
    needs_many=False,
    floor=_accept_floor,
    measure=_handshake,
    measure_gateway=_gateway_handshakes,
)
REFUSAL = Scenario(
    name="refusal",
    contenders=frozenset({"reactor", "uvloop", "websockets"}),
    needs_many=False,
    floor=_refusal_floor,
    measure=_refusal,
)
