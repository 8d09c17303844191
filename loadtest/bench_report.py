"""From summaries to bench.json and the table: names, shares of the floor, budgets.

The JSON has the keys {machine, kernel, commit, floor_us, reactor, peers, pool_off}. A server's object holds
the median of each figure by name; `spread` has [least, most] of every figure with more than one run, `runs`
all values in the order they ran, so that the n-th of a server and the n-th of the floor were neighbours in
time; `control_group` gathers what the well-behaved see of the others (medians, from the figures of the same
names); `lost` lists every run that lost something.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any, Final

from loadtest.bench_machine import commit, machine
from loadtest.bench_math import Summary, per_second, ratios, summarize
from loadtest.scenarios.stage import Sizes

__all__ = ["assemble", "derive", "table"]

Summaries = Mapping[str, Summary]

# Share of the floor: name, the floor's figure, the server's. Above 1 means cheaper than the floor.
_SHARES: Final = (
    ("fanout_ratio", "fanout", "fanout_us"),
    ("fanout_few_ratio", "fanout_few", "fanout_few_us"),
    ("coalesced_ratio", "coalesced16", "coalesced16_us"),
    ("echo_ratio", "echo", "echo_us"),
)
# A multiple of the floor: the same the other way round.
_MULTIPLES: Final = (
    ("handshake_multiple", "accept", "handshake_us"),
    ("refusal_ratio", "refuse", "refusal_us"),
    ("refusal_at_once_ratio", "refuse_at_once", "refusal_us"),
)
_RATES: Final = (
    ("echo_per_s", "echo_us"),
    ("coalesced_per_s", "coalesced16_us"),
    ("coalesced_few_per_s", "coalesced16_few_us"),
    ("coalesced64_few_per_s", "coalesced64_few_us"),
)

# Name in `control_group`, the figure.
_CONTROL_GROUP: Final = (
    ("quiet_p99_ms", "control_quiet_p99_ms"),
    ("flood_p99_ms", "control_flood_p99_ms"),
    ("nonreaders_p99_ms", "control_nonreaders_p99_ms"),
    ("walk_p99_ms", "reply_p99_during_walk_ms"),
    ("nonreaders_kernel_bytes", "nonreaders_kernel_bytes"),
    ("nonreaders_booked_bytes", "nonreaders_booked_bytes"),
)


def derive(floor: Summaries, server: Summaries, same_client: Summaries) -> dict[str, Summary]:
    """Return the figures that need more than one measurement: shares of the floor and rates per core.

    Args:
        floor: The C probe's figures, us.
        server: One server's figures.
        same_client: Those of the floor's loop with the engine as its receiver; may be empty.
    """
    found: dict[str, Summary] = {}
    for name, below, above in _SHARES:
        if below in floor and above in server:
            found[name] = summarize(ratios(floor[below]["runs"], server[above]["runs"]))
    for name, below, above in _MULTIPLES:
        if below in floor and above in server:
            found[name] = summarize(ratios(server[above]["runs"], floor[below]["runs"]))
    for name in ("fanout", "fanout_few"):
        if f"{name}_us" in same_client and f"{name}_us" in server:
            runs = ratios(same_client[f"{name}_us"]["runs"], server[f"{name}_us"]["runs"])
            found[f"{name}_ratio_same_client"] = summarize(runs)
    for name, cost in _RATES:
        if cost in server:
            found[name] = summarize([per_second(value) for value in server[cost]["runs"]])
    return found


def _plain(summaries: Summaries) -> dict[str, Any]:
    """Medians by name, with spread and runs beside them."""
    several = {name: summary for name, summary in summaries.items() if len(summary["runs"]) > 1}
    return {
        **{name: summary["median"] for name, summary in summaries.items()},
        "spread": {name: [summary["least"], summary["most"]] for name, summary in several.items()},
        "runs": {name: summary["runs"] for name, summary in several.items()},
    }


def assemble(
    floor: Summaries, servers: Mapping[str, Summaries], lost: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Put the whole result together.

    Args:
        floor: The C probe's figures, us.
        servers: Figures by server name; "floor_same_client" joins the floor.
        lost: What each server lost, by name.
    """
    same_client = servers.get("floor_same_client", {})

    def of(name: str) -> dict[str, Any]:
        figures = dict(servers.get(name, {}))
        if name == "reactor" or figures:
            figures.update(derive(floor, figures, same_client))
        if "heartbeat_us" in figures:
            figures["heartbeat_750_us"] = figures.pop("heartbeat_few_us", figures["heartbeat_us"])
        group = {short: figures[long]["median"] for short, long in _CONTROL_GROUP if long in figures}
        return {**_plain(figures), "control_group": group, "lost": list(lost.get(name, ()))}

    floor_us = dict(floor)
    for name, summary in same_client.items():
        if name.endswith("_us"):
            floor_us[f"{name.removesuffix('_us')}_same_client"] = summary
    return {
        "machine": machine(),
        "kernel": platform.release(),
        "commit": commit(),
        "floor_us": _plain(floor_us),
        "reactor": of("reactor"),
        "peers": {name: of(name) for name in ("websockets", "uvloop")},
        "pool_off": of("pool_off"),
    }


# Label, the floor's figure (None: the floor has none), the servers' figure, decimals.
_ROWS: Final[tuple[tuple[str, str | None, str, int], ...]] = (
    ("idle connection, user memory, B", None, "bytes_per_conn", 0),
    ("idle connection, kernel slab, both ends, B", None, "kernel_bytes_per_conn", 0),
    ("idle connection, CPython blocks", None, "allocatedblocks_per_conn", 3),
    ("handshake, us", "accept", "handshake_us", 2),
    ("refusal at the gate, us", "refuse", "refusal_us", 2),
    ("echo, us", "echo", "echo_us", 2),
    ("fan-out to {many:,}, us per delivery", "fanout", "fanout_us", 2),
    ("  the floor with the same client", "fanout_same_client", "", 2),
    ("fan-out to {few:,}, us per delivery", "fanout_few", "fanout_few_us", 2),
    ("  the floor with the same client", "fanout_few_same_client", "", 2),
    ("16 frames a write to {many:,}, us per frame", "coalesced16", "coalesced16_us", 3),
    ("16 frames a write to {few:,}, us per frame", "coalesced16_few", "coalesced16_few_us", 3),
    ("64 frames a write to {few:,}, us per frame", "coalesced64_few", "coalesced64_few_us", 3),
    ("ping cycle at {pings_many:,}/s, us", "ping_many", "heartbeat_us", 2),
    ("ping cycle at {pings_few:,}/s, us", "ping_few", "heartbeat_750_us", 2),
    ("reply while a publication walks, p99, ms", None, "reply_p99_during_walk_ms", 2),
    ("  share of the time walking", None, "walk_share", 2),
    ("small reply, nothing else going on, p50, ms", None, "control_quiet_p50_ms", 2),
    ("  p99", None, "control_quiet_p99_ms", 2),
    ("  while {flooders} peers flood, p50", None, "control_flood_p50_ms", 2),
    ("  p99", None, "control_flood_p99_ms", 2),
    ("  answered at all, share", None, "control_flood_answered_share", 2),
    ("  while {nonreaders} peers never read, p50", None, "control_nonreaders_p50_ms", 2),
    ("  p99", None, "control_nonreaders_p99_ms", 2),
    ("1-byte messages of the flood answered per s", None, "flood_answered_per_s", 0),
    ("kernel send memory, peers that never read, B", None, "nonreaders_kernel_bytes", 0),
    ("  booked for them", None, "nonreaders_booked_bytes", 0),
    ("pool hit rate", None, "pool_hit_rate", 4),
    ("pool misses per delivery", None, "pool_misses_per_delivery", 5),
)
# Label, figure of the reactor, bound, whether it is a least. Source: architecture, section 12.
_BUDGETS: Final[tuple[tuple[str, str, float, bool], ...]] = (
    ("user memory per idle connection, B", "bytes_per_conn", 150, False),
    ("CPython blocks per idle connection", "allocatedblocks_per_conn", 0.1, False),
    ("fan-out, share of the floor", "fanout_ratio", 0.90, True),
    ("coalesced frames per core second", "coalesced_per_s", 1_500_000, True),
    ("echoes per core second", "echo_per_s", 120_000, True),
    ("handshake, us", "handshake_us", 20, False),
    ("refusal, times the floor", "refusal_ratio", 1.5, False),
    ("ping cycle at 7,500/s, us", "heartbeat_us", 8, False),
    ("ping cycle at 750/s, us", "heartbeat_750_us", 11, False),
    ("reply while a publication walks, p99, ms", "reply_p99_during_walk_ms", 5, False),
    # Source of these two: the bound of the third crowd, above.
    ("reply while peers flood, p99, ms", "control_flood_p99_ms", 5, False),
    ("reply while peers never read, p99, ms", "control_nonreaders_p99_ms", 5, False),
    ("their kernel send memory, share of booked", "nonreaders_kernel_share", 1, False),
    ("pool hit rate", "pool_hit_rate", 0.99, True),
)
# Beyond it the client, not the server, may be what is measured (performance reference, section 6).
_ENGINE_SHARE_MOST: Final = 0.8
_COLUMNS: Final = ("floor", "reactor", "pool off", "uvloop", "websockets")


def table(result: Mapping[str, Any], sizes: Sizes) -> str:
    """Return the readable table: every figure, then the budgets of the reactor, then what was lost."""
    numbers = {
        "many": sizes.many,
        "few": sizes.few,
        "flooders": sizes.flooders,
        "nonreaders": sizes.nonreaders,
        "pings_many": sizes.pinged_many * 1_000 // sizes.ping_interval_ms,
        "pings_few": sizes.pinged_few * 1_000 // sizes.ping_interval_ms,
    }
    servers = (
        result["reactor"],
        result["pool_off"],
        result["peers"]["uvloop"],
        result["peers"]["websockets"],
    )
    lines = [f"{'':46}" + "".join(f"{name:>12}" for name in _COLUMNS)]
    for label, floor_name, name, decimals in _ROWS:
        floor_value = result["floor_us"].get(floor_name) if floor_name else None
        values = [floor_value, *(server.get(name) for server in servers)]
        if any(value is not None for value in values):
            lines.append(
                f"{label.format(**numbers):46}" + "".join(_cell(value, decimals) for value in values)
            )
    lines += ["", *_budget_lines(result["reactor"]), "", *_lost_lines(result)]
    return "\n".join(lines)


def _cell(value: float | None, decimals: int) -> str:
    return f"{'-':>12}" if value is None else f"{value:>12,.{decimals}f}"


def _budget_lines(reactor: Mapping[str, Any]) -> list[str]:
    lines = []
    for label, name, bound, is_least in _BUDGETS:
        value = reactor.get(name)
        if value is None:
            continue
        is_met = value >= bound if is_least else value <= bound
        least, most = reactor["spread"].get(name, (value, value))
        verdict = f"{'ok' if is_met else 'MISS':4} {label:42} {value:>12,.4g}"
        lines.append(f"{verdict}  ({least:,.4g} to {most:,.4g})  {'>=' if is_least else '<='} {bound:,g}")
    return lines


def _lost_lines(result: Mapping[str, Any]) -> list[str]:
    servers = {"reactor": result["reactor"], "pool_off": result["pool_off"], **result["peers"]}
    lines = [f"LOST {name}: {sentence}" for name, server in servers.items() for sentence in server["lost"]]
    lines = lines or ["no message and no connection was lost"]
    for name, server in servers.items():
        if server.get("fanout_engine_share", 0.0) > _ENGINE_SHARE_MOST:
            lines.append(
                f"VOID {name}: the engine was busy {server['fanout_engine_share']:.0%} of the fan-out"
            )
    return lines
