"""Decide whether the node is alive and ready, as JSON for `/healthz` and `/readyz` and as a page for people.

The decision uses only the statistics block. So nothing here waits, and a failed bus or a hung shard cannot
delay a response.
"""

from collections.abc import Sequence
from html import escape
from string import Template
from typing import Final

from wsgate.admin.headroom import headroom_card
from wsgate.statistics import StatisticsBlock, why_not_ready
from wsgate.statistics.readiness import why_not_alive

__all__ = ["HealthAnswer", "connections_by_state", "judge_liveness", "judge_readiness", "status_page"]

HealthAnswer = tuple[int, dict[str, object]]
"""The HTTP status, 200 or 503, and the JSON body of the response."""

_STATE_MARK: Final = "now_"
_STATES: Final = ("head", "deciding", "open", "failing", "closing", "lingering", "gone")


def judge_liveness(block: StatisticsBlock, now_ms: int) -> HealthAnswer:
    """Decide about `/healthz`: `{"alive": true}` if keeper and shards publish beats, else false and `why`.

    Args:
        block: The statistics of the node.
        now_ms: The machine's monotonic clock, in milliseconds.
    """
    return _verdict("alive", why_not_alive(block, now_ms))


def judge_readiness(block: StatisticsBlock, now_ms: int) -> HealthAnswer:
    """Decide about `/readyz`: `{"ready": true}` if all shards accept and have the bus, else `why` not."""
    return _verdict("ready", why_not_ready(block, now_ms))


def _verdict(claim: str, why: list[str]) -> HealthAnswer:
    """Make the response of a health check: 503 with the reasons, or 200."""
    return (503, {claim: False, "why": why}) if why else (200, {claim: True})


def connections_by_state(block: StatisticsBlock) -> dict[str, int]:
    """Count the connections of all shards by state, in the order in which a connection has these states."""
    shards = [block.shard(number) for number in range(block.shards)]
    return {name: sum(shard[_STATE_MARK + name] for shard in shards) for name in _STATES}


# --- for people ---------------------------------------------------------------------------------------

_PAGE: Final = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="refresh" content="5">
<title>$title - wsgate</title>
<link rel="stylesheet" href="/page.css">
</head>
<body class="status">
<header><h1>wsgate</h1><p class="node">$node</p></header>
<main>
<section class="card"><h2 data-state="$state"><span class="dot"></span>$title</h2>$why</section>
$numbers
<nav class="card" aria-label="More"><a href="/readyz">/readyz</a> <a href="/healthz">/healthz</a>
<a href="/metrics">/metrics</a></nav>
</main>
</body>
</html>
"""
)


def status_page(node: str, block: StatisticsBlock, now_ms: int, *, has_numbers: bool) -> str:
    """Render the status page, with the result of `/readyz`.

    Args:
        node: The name of the node.
        block: The statistics of the node.
        now_ms: The machine's monotonic clock, in milliseconds.
        has_numbers: Whether the page shows the headroom and the counts of connections, as the metrics do.
    """
    why = why_not_ready(block, now_ms)
    return _PAGE.substitute(
        node=escape(node),
        title="Not ready" if why else "Ready",
        state="stopped" if why else "open",
        why=_list(why),
        numbers=headroom_card(block) + _table(connections_by_state(block)) if has_numbers else "",
    )


def _list(rows: Sequence[str]) -> str:
    """Render the reasons why the node is not ready as a list."""
    items = "".join(f"<li><code>{escape(row)}</code></li>" for row in rows)
    return f"<ul>{items}</ul>" if rows else "<p>Every shard accepts connections and has the bus.</p>"


def _table(counts: dict[str, int]) -> str:
    """Render the numbers of connections by state as a table."""
    row = '<tr><th scope="row">{}</th><td>{:,}</td></tr>'
    rows = "".join(row.format(escape(name), count) for name, count in counts.items())
    return f'<section class="card"><h2>Connections</h2><table>{rows}</table></section>'
