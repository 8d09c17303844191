"""Generate the reference of every metric from what the admin process exports."""

from collections.abc import Iterator
from typing import Final, cast

from prometheus_client.core import Metric

from docs.generate.markdown import code, head, listed, paragraph, table
from wsgate.admin.keys import KeySetCollector, KeySetFetcher
from wsgate.admin.metrics import LABEL_VALUES, make_registry
from wsgate.shard.statistics_layout import LAYOUT
from wsgate.statistics import StatisticsBlock

__all__ = ["families", "page"]

KINDS: Final = {"counter": "Counters", "gauge": "Gauges", "histogram": "Histograms"}
ABOUT_KINDS: Final = {
    "counter": (
        "A counter is the sum over all processes of the node, and over processes that have ended. It"
        " begins at 0 when the node starts. `wsgate_admin_log_lines_dropped_total` and"
        " `wsgate_key_set_fetches_total` are counted by the admin process and begin at 0 when that process"
        " starts; only a node with `auth.jwks_url` exports the second one."
    ),
    "gauge": (
        "A gauge is the value of this moment. The label `shard` is the number of the shard, from 0. A gauge"
        " without this label is a value of the node, its machine, or the process in the label `process`."
    ),
    "histogram": (
        "A histogram counts observations of one shard; the label `shard` is its number. It begins at 0"
        " when the shard starts again."
    ),
}
ABOUT: Final = (
    "The admin process exports these metrics at `/metrics` on the admin port, in the formats of"
    " Prometheus and OpenMetrics. A scrape reads shared memory only and does not interrupt a shard. No"
    " label value comes from a client.",
)
MANY: Final = 12
"""A label with more values is listed as a link to the page that explains the values."""
EXPLAINED: Final = {
    "wsgate_refusals": "[close codes and errors](codes.md)",
    "wsgate_closes": "[close codes and errors](codes.md)",
    "wsgate_errors": "[close codes and errors](codes.md)",
    "wsgate_token_refusals": "[log events](log-events.md)",
}


def families() -> list[Metric]:
    """Return one family for each metric, as a node with one shard exports it."""
    block = StatisticsBlock.create(LAYOUT, 1)
    # A beat makes the age of the process appear.
    block.keeper["beat_ms"] = block.shard(0)["beat_ms"] = 1
    registry = make_registry(block, "node", lambda: 1)
    # Only a node with auth.jwks_url registers these.
    fetcher = cast(KeySetFetcher, _NoFetches())
    return [*registry.collect(), *KeySetCollector(fetcher).collect()]


class _NoFetches:
    fetched = 0
    failed = 0


def page() -> str:
    """Return the page."""
    return head("Metrics", "wsgate/admin/metrics.py") + "".join(_parts())


def _parts() -> Iterator[str]:
    yield from (paragraph(text) for text in ABOUT)
    found = families()
    for kind, title in KINDS.items():
        yield f"## {title}\n\n" + paragraph(ABOUT_KINDS[kind])
        for family in found:
            if family.type == kind:
                yield from _entry(family)


def _entry(family: Metric) -> Iterator[str]:
    name = family.name + ("_total" if family.type == "counter" else "")
    yield f"### `{name}`\n\n" + paragraph(family.documentation)
    labels: dict[str, list[str]] = {}
    for sample in family.samples:
        for label, value in sample.labels.items():
            if label != "le" and value not in labels.setdefault(label, []):
                labels[label].append(value)
    rows = [_label(family.name, label, values) for label, values in labels.items() if label != "shard"]
    if "shard" in labels:
        rows.insert(0, "Label `shard`")
    if rows:
        yield listed(rows)
    if texts := LABEL_VALUES.get(family.name):
        [label] = [label for label in labels if label != "shard"]
        assert set(texts) == set(labels[label]), family.name
        yield table((label, "meaning"), ((code(value), text) for value, text in texts.items()))


def _label(family: str, label: str, values: list[str]) -> str:
    if family == "wsgate_info":
        return f"Label {code(label)}"
    if family in LABEL_VALUES:
        return f"Label {code(label)}, with the values below"
    more = f"; see {EXPLAINED[family]}" if family in EXPLAINED else ""
    return f"Label {code(label)}: {', '.join(code(value) for value in values)}{more}"
