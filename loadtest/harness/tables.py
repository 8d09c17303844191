"""Prints bench.json for people: one table each for the reactor and the gateway, their budgets, and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from loadtest.scenarios.stage import Sizes

__all__ = ["table"]

# Label, the floor's figure (None: there is none), the servers' figure, decimals.
Rows = tuple[tuple[str, str | None, str, int], ...]
# Label, figure, bound, and whether the bound is a minimum.
Budgets = tuple[tuple[str, str, float, bool], ...]

_ROWS: Final[Rows] = (
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
# The budgets of the reactor alone.
_BUDGETS: Final[Budgets] = (
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
    # These two have the same bound as the reply while a publication walks.
    ("reply while peers flood, p99, ms", "control_flood_p99_ms", 5, False),
    ("reply while peers never read, p99, ms", "control_nonreaders_p99_ms", 5, False),
    ("their kernel send memory, share of booked", "nonreaders_kernel_share", 1, False),
    ("pool hit rate", "pool_hit_rate", 0.99, True),
)

_GATEWAY_ROWS: Final[Rows] = (
    ("idle connection, user memory, B", None, "bytes_per_conn", 0),
    ("  growth of private pages, B", None, "private_bytes_per_conn", 0),
    ("  in its private bus, B", None, "bus_bytes_per_conn", 0),
    ("idle connection, CPython blocks of the shard", None, "allocatedblocks_per_conn", 3),
    ("empty, one shard, MB", None, "empty_mb", 1),
    ("  its private bus, MB", None, "empty_bus_mb", 1),
    ("one more resting shard, MB", None, "shard_mb", 2),
    ("  share of a core, %", None, "shard_cpu_percent", 3),
    ("handshake, anonymous, welcome read, us", "accept", "handshake_us", 2),
    ("  new token, inbox held already, us", None, "handshake_token_us", 2),
    ("  token seen before, inbox held already, us", None, "handshake_seen_us", 2),
    ("  new token, new user, SUBSCRIBE in it, us", None, "handshake_subscribing_us", 2),
    ("fan-out to {many:,}, us per delivery", "fanout", "fanout_us", 2),
    ("  the floor with the same client", "fanout_same_client", "", 2),
    ("  p99 from the intended time, ms", None, "fanout_p99_ms", 1),
    ("fan-out to {few:,}, us per delivery", "fanout_few", "fanout_few_us", 2),
    ("  the floor with the same client", "fanout_few_same_client", "", 2),
    ("16 frames a write to {many:,}, us per frame", "coalesced16", "coalesced16_us", 3),
    ("16 frames a write to {few:,}, us per frame", "coalesced16_few", "coalesced16_few_us", 3),
    ("64 frames a write to {few:,}, us per frame", "coalesced64_few", "coalesced64_few_us", 3),
    ("publication to {channels} channels in turn, us", None, "publication_us", 2),
    ("  of the bus, us", None, "publication_bus_us", 2),
    ("  the knee, per s", None, "publication_knee_per_s", 0),
    ("  share of its time the shard worked", None, "publication_busy_share", 2),
    ("  at half of it, p50, ms", None, "publication_p50_ms", 2),
    ("  p99", None, "publication_p99_ms", 2),
    ("  the backend's own lateness at most, ms", None, "publication_late_ms", 2),
    ("publication to one channel, us", None, "publication_one_us", 2),
    ("client publish and back, us", None, "client_publish_us", 2),
    ("  answered ok as well, us", None, "client_publish_ok_us", 2),
    ("reply while a publication walks, p99, ms", None, "reply_p99_during_walk_ms", 2),
    ("  share of the time the shard worked", None, "walk_share", 2),
)
# The budgets of the whole gateway. "Per core second" is per CPU second of the shard.
_GATEWAY_BUDGETS: Final[Budgets] = (
    ("user memory per idle connection, B", "bytes_per_conn", 600, False),
    ("CPython blocks per idle connection", "allocatedblocks_per_conn", 5, False),
    ("empty gateway with one shard, MB", "empty_mb", 80, False),
    ("one more resting shard, MB", "shard_mb", 6, False),
    ("one resting shard, % of a core", "shard_cpu_percent", 0.1, False),
    ("handshake, anonymous, us", "handshake_us", 35, False),
    ("handshake, anonymous, times the floor", "handshake_multiple", 3, False),
    ("handshake, new token, us", "handshake_token_us", 85, False),
    ("handshake, token seen before, us", "handshake_seen_us", 40, False),
    ("fan-out, share of the floor", "fanout_ratio", 0.85, True),
    ("coalesced frames per core second", "coalesced_per_s", 1_000_000, True),
    ("publications per core second", "publication_per_s", 80_000, True),
    ("publication at half of the knee, p99, ms", "publication_p99_ms", 10, False),
    ("client publishes per core second", "client_publish_per_s", 25_000, True),
    ("reply while a publication walks, p99, ms", "reply_p99_during_walk_ms", 10, False),
)
# If the engine is busy for a larger share, the figure may be that of the client and not of the server.
_ENGINE_SHARE_MOST: Final = 0.8
_COLUMNS: Final = ("reactor", "floor", "reactor", "pool off", "uvloop", "websockets")
_GATEWAY_COLUMNS: Final = ("whole gateway", "floor", "gateway")


def table(result: Mapping[str, Any], sizes: Sizes) -> str:
    """Return two readable tables, each followed by its budgets, and then losses and failures."""
    peers = result["peers"]
    servers = (result["reactor"], result["pool_off"], peers["uvloop"], peers["websockets"])
    lines = _table(_COLUMNS, _ROWS, result["floor_us"], servers, sizes)
    lines += _budget_lines(_BUDGETS, result["reactor"])
    lines += _table(_GATEWAY_COLUMNS, _GATEWAY_ROWS, result["floor_us"], (result["gateway"],), sizes)
    lines += _budget_lines(_GATEWAY_BUDGETS, result["gateway"])
    return "\n".join([*lines, *_lost_lines(result)])


def _table(
    columns: Sequence[str],
    rows: Rows,
    floor_us: Mapping[str, float],
    servers: Sequence[Mapping[str, float]],
    sizes: Sizes,
) -> list[str]:
    """Return a heading and the rows for which any server has a figure; nothing if there is no such row."""
    if not any(name in server for server in servers for _, _, name, _ in rows):
        return []
    numbers = {
        "many": sizes.many,
        "few": sizes.few,
        "flooders": sizes.flooders,
        "nonreaders": sizes.nonreaders,
        "channels": sizes.single_channels,
        "pings_many": sizes.pinged_many * 1_000 // sizes.ping_interval_ms,
        "pings_few": sizes.pinged_few * 1_000 // sizes.ping_interval_ms,
    }
    title, *names = columns
    lines = [f"{title:46}" + "".join(f"{name:>12}" for name in names)]
    for label, floor_name, name, decimals in rows:
        values = [server.get(name) for server in servers]
        if any(value is not None for value in values) or not name:
            values = [floor_us.get(floor_name) if floor_name else None, *values]
            line = f"{label.format(**numbers):46}" + "".join(_cell(value, decimals) for value in values)
            lines += [line] if any(value is not None for value in values) else []
    return [*lines, ""]


def _cell(value: float | None, decimals: int) -> str:
    return f"{'-':>12}" if value is None else f"{value:>12,.{decimals}f}"


def _budget_lines(budgets: Budgets, server: Mapping[str, Any]) -> list[str]:
    lines = []
    for label, name, bound, is_least in budgets:
        value = server.get(name)
        if value is None:
            continue
        is_met = value >= bound if is_least else value <= bound
        least, most = server["spread"].get(name, (value, value))
        verdict = f"{'ok' if is_met else 'MISS':4} {label:42} {value:>12,.4g}"
        lines.append(f"{verdict}  ({least:,.4g} to {most:,.4g})  {'>=' if is_least else '<='} {bound:,g}")
    return [*lines, ""] if lines else []


def _lost_lines(result: Mapping[str, Any]) -> list[str]:
    servers = {name: result[name] for name in ("reactor", "gateway", "pool_off")} | result["peers"]
    failed = [f"FAILED {sentence}" for sentence in result["failures"]]
    lines = [f"LOST {name}: {sentence}" for name, server in servers.items() for sentence in server["lost"]]
    lines = failed + (lines or ["no message and no connection was lost"])
    for name, server in servers.items():
        if server.get("fanout_engine_share", 0.0) > _ENGINE_SHARE_MOST:
            lines.append(
                f"VOID {name}: the engine was busy {server['fanout_engine_share']:.0%} of the fan-out"
            )
    return lines
