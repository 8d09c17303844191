"""Converts the summaries of all runs to bench.json: names, ratios to the floor, rates.

The JSON has the keys {machine, kernel, commit, floor_us, reactor, gateway, peers, pool_off, failures}. The
object of a server holds the median of each figure by name. `spread` has [least, most] of every figure with
more than one run. `runs` has all values in the order of the runs, so that the n-th value of a server and the
n-th of the floor were measured at about the same time. `control_group` has the medians of the latencies that
well-behaved connections saw during the load of others, by shorter names. `lost` has a sentence for every run
that lost something, and `failures` one for everything that could not be measured.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any, Final

from loadtest.harness.arithmetic import Summary, per_second, ratios, summarize
from loadtest.harness.machine_info import commit, machine

__all__ = ["assemble", "derive"]

Summaries = Mapping[str, Summary]

# Ratios to the floor, as floor / server: name, the floor's figure, the server's. Above 1: cheaper than the
# floor.
_SHARES: Final = (
    ("fanout_ratio", "fanout", "fanout_us"),
    ("fanout_few_ratio", "fanout_few", "fanout_few_us"),
    ("coalesced_ratio", "coalesced16", "coalesced16_us"),
    ("echo_ratio", "echo", "echo_us"),
)
# Ratios to the floor, as server / floor: how many times the cost of the floor.
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
    ("publication_per_s", "publication_us"),
    ("publication_one_per_s", "publication_one_us"),
    ("client_publish_per_s", "client_publish_us"),
    ("client_publish_ok_per_s", "client_publish_ok_us"),
)

# Name in `control_group`, and the figure.
_CONTROL_GROUP: Final = (
    ("quiet_p99_ms", "control_quiet_p99_ms"),
    ("flood_p99_ms", "control_flood_p99_ms"),
    ("nonreaders_p99_ms", "control_nonreaders_p99_ms"),
    ("walk_p99_ms", "reply_p99_during_walk_ms"),
    ("nonreaders_kernel_bytes", "nonreaders_kernel_bytes"),
    ("nonreaders_booked_bytes", "nonreaders_booked_bytes"),
)


def derive(floor: Summaries, server: Summaries, same_client: Summaries) -> dict[str, Summary]:
    """Return the numbers that need more than one measurement: ratios to the floor, and rates per core.

    Args:
        floor: The numbers of the C probe, in us.
        server: The numbers of one server.
        same_client: The numbers of the floor's loop with the engine as its receiver; may be empty.
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
    """Return the medians by name, with `spread` and `runs` of the numbers with several runs."""
    several = {name: summary for name, summary in summaries.items() if len(summary["runs"]) > 1}
    return {
        **{name: summary["median"] for name, summary in summaries.items()},
        "spread": {name: [summary["least"], summary["most"]] for name, summary in several.items()},
        "runs": {name: summary["runs"] for name, summary in several.items()},
    }


def assemble(
    floor: Summaries,
    servers: Mapping[str, Summaries],
    lost: Mapping[str, Sequence[str]],
    failures: Sequence[str] = (),
) -> dict[str, Any]:
    """Build the complete content of bench.json.

    Args:
        floor: The numbers of the C probe, in us.
        servers: The numbers of each server, by its name; those of "floor_same_client" are added to the floor.
        lost: A sentence for everything that a server lost, by its name.
        failures: A sentence for everything that could not be measured.
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
        "gateway": of("gateway"),
        "peers": {name: of(name) for name in ("websockets", "uvloop")},
        "pool_off": of("pool_off"),
        "failures": list(failures),
    }
