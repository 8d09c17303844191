"""Render the headroom of the node as HTML: used and allowed resources, the tightest one, and when it is full.

All numbers come from the statistics block. The HTML has no script and no style of its own, so that a strict
content security policy does not hide it.
"""

from collections.abc import Sequence
from string import Template
from typing import Final

from wsgate.statistics import Region, StatisticsBlock

__all__ = ["headroom_card"]

_MIB: Final = 1 << 20
_STATES: Final = ("open", "refusing", "shedding")
_RESOURCES: Final = ("connections", "descriptors", "memory")
_NEVER_S: Final = 1 << 31
_HELD_MARK: Final = "held_"

_CARD: Final = Template(
    """<section class="card"><h2>Room</h2>
<p class="room"><strong>$room</strong> more connections fit; $binding. $outlook</p>
<table class="rooms">
<thead><tr><th scope="col">Shard</th><th scope="col">State</th><th scope="col">Connections</th>
<th scope="col">Memory</th><th scope="col">Waiting to be accepted</th><th scope="col">Room</th></tr></thead>
<tbody>$rows</tbody>
</table>
$machine
</section>"""
)


def headroom_card(block: StatisticsBlock) -> str:
    """Render the section: a sentence about the node, a row for each shard, and the limits of the machine."""
    shards = [block.shard(number) for number in range(block.shards)]
    return _CARD.substitute(
        room=f"{sum(_room(shard) for shard in shards):,}",
        binding=_binding(shards),
        outlook=_outlook(shards),
        rows="".join(_row(number, shard) for number, shard in enumerate(shards)),
        machine=_machine(block.keeper),
    )


def _row(number: int, shard: Region) -> str:
    """Render the row of one shard: its state, its used and allowed resources, and its room."""
    held = sum(shard[name] for name in shard.layout.gauges if name.startswith(_HELD_MARK))
    cells = (
        _meter(shard["now_connections"], shard["connections_limit"], "connections"),
        _meter(held // _MIB, shard["memory_budget_bytes"] // _MIB, "MiB"),
        _meter(shard["listen_queue"], shard["listen_queue_limit"], ""),
        f"{_room(shard):,}",
    )
    number_of_state = shard["admission_state"]  # not trusted: a faulty shard may have written any number
    state = _STATES[number_of_state] if number_of_state < len(_STATES) else "unknown"
    row = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{number}</th><td data-admission="{state}">{state}</td>{row}</tr>'


def _meter(used: int, limit: int, unit: str) -> str:
    """Render a bar: amber from three quarters of the limit, red from fifteen sixteenths."""
    if limit <= 0:
        return f"{used:,} {unit}"
    text = f"{used:,} of {limit:,} {unit}".rstrip()
    low, high = limit * 3 / 4, limit * 15 / 16
    meter = f'<meter min="0" max="{limit}" low="{low:g}" high="{high:g}" optimum="0" value="{used}">'
    return f'{meter}{text}</meter><span class="of">{text}</span>'


def _room(shard: Region) -> int:
    """Return how many more connections a shard can accept: the least of its resources."""
    return min(shard["room_" + resource] for resource in _RESOURCES)


def _binding(shards: Sequence[Region]) -> str:
    """Say in words which resource will be used up first in most shards, or that nothing is measured yet."""
    votes = {name: sum(shard["binds_" + name] for shard in shards) for name in _RESOURCES}
    most = max(_RESOURCES, key=lambda name: votes[name])
    if not votes[most]:
        return "nothing is measured yet"
    named = {
        "connections": "the configured number of connections is the limit",
        "descriptors": "descriptors are the limit",
        "memory": "memory is the limit",
    }
    return named[most]


def _outlook(shards: Sequence[Region]) -> str:
    """Describe how fast the connections grow in number, and when the first shard is full."""
    growth = sum(shard["growth_per_1000_s"] for shard in shards) / 1000
    if growth < 0.01:
        return "The number of connections does not grow."
    soonest = min((shard["full_in_s"] for shard in shards), default=_NEVER_S)
    when = "" if soonest >= _NEVER_S else f", and the first shard is full in {_span(soonest)}"
    return f"The number of connections grows by {growth:,.1f} a second{when}."


def _span(seconds: int) -> str:
    """Format a time span with its largest unit that gives a number of 2 or more."""
    for unit, length_s in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds // length_s:,} {unit}"
    return f"{seconds} s"


def _machine(keeper: Region) -> str:
    """Render the numbers outside of shards: memory of sockets and of the private bus, full accept queues."""
    limit = keeper["tcp_memory_limit_bytes"] // _MIB
    rows = []
    if limit:
        used = _meter(keeper["tcp_memory_bytes"] // _MIB, limit, "MiB")
        rows.append(f"<dt>TCP memory of the machine</dt><dd>{used}</dd>")
    if keeper["bus_limit_bytes"]:
        used = _meter(keeper["bus_bytes"] // _MIB, keeper["bus_limit_bytes"] // _MIB, "MiB")
        rows.append(f"<dt>Private bus of the node</dt><dd>{used}</dd>")
    lost = keeper["listen_overflows"]
    rows.append(f"<dt>Overflows of accept queues since the start</dt><dd>{lost:,}</dd>")
    return f'<dl class="machine">{"".join(rows)}</dl>'
