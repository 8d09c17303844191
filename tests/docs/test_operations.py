"""The pages for operators name what exists: every reason and error has its row, and every metric is exposed.

Source: docs/operations.md and the other pages that quote metrics; for the names wsgate/reasons.py and
wsgate/shard/statistics_layout.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from prometheus_client import CollectorRegistry

from wsgate.admin.keys import KeySetCollector, KeySetFetcher
from wsgate.admin.metrics import make_registry
from wsgate.handshake import REFUSALS
from wsgate.reasons import ERRORS, REASONS, Reason
from wsgate.shard.statistics_layout import LAYOUT, SHARD_REFUSALS
from wsgate.statistics import Board, StatisticsBlock

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
OPERATIONS: Final = (DOCS / "operations.md").read_text(encoding="utf-8")
PAGES: Final = ("operations.md", "security.md", "http-api.md", "faq.md", "comparison.md")
MANNERS: Final = {"refused_silent", "refused_undrained"}
"""Values of the label `reason` that say how a refusal was sent; the page explains them with the reasons."""
METRIC: Final = re.compile(r"`?\bwsgate_[a-z0-9_]+\b")


def rows_of(title: str, page: str = OPERATIONS) -> list[str]:
    """The names in the first column of the table below a heading, in order."""
    section = page.split(f"### {title}\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [name for line in lines for name in re.findall(r"`([a-z_0-9]+)`", line.split(" | ", 1)[0])]


def metrics_of(page: str) -> set[str]:
    """Every metric that a page names."""
    return {name.lstrip("`") for name in METRIC.findall(page)}


def exposed() -> Iterator[str]:
    """Every name of a series that a node exposes."""
    block = StatisticsBlock.create(LAYOUT, 1)
    registry: CollectorRegistry = make_registry(block, "node", lambda: 0)
    registry.register(KeySetCollector(KeySetFetcher("https://issuer.example/keys", block, Board(64))))
    for family in registry.collect():
        yield family.name
        yield from {"counter": (f"{family.name}_total",), "histogram": (f"{family.name}_bucket",)}.get(
            family.type, ()
        )


def test_every_refusal_has_exactly_one_row() -> None:
    refused = {reason.name.lower() for reason, row in REASONS.items() if row.http_status}
    wanted = refused | {"bad_proxy_header"} | set(REFUSALS) | set(SHARD_REFUSALS) | MANNERS
    assert sorted(rows_of("Refused before the connection is open")) == sorted(wanted)


def test_every_reason_of_a_close_has_exactly_one_row() -> None:
    refused = {reason for reason, row in REASONS.items() if row.http_status}
    refused |= {Reason.BAD_PROXY_HEADER, Reason.NONE}
    # These are refusals and closes; the page explains them once, with the refusals.
    once = {Reason.INVALID_TOKEN, Reason.KEY_AWAITED, Reason.TOKEN_NOT_YET_VALID}
    wanted = {reason.name.lower() for reason in set(REASONS) - refused - once}
    assert sorted(rows_of("Closed")) == sorted(wanted)


def test_every_error_has_exactly_one_row() -> None:
    assert sorted(rows_of("Errors of commands")) == sorted(ERRORS)


def test_a_missing_and_a_repeated_row_are_found() -> None:
    rows = "| `a`, `b` | c |\n| `b` | `d` |\n"
    page = f"### Errors of commands\n\n| Error | Check |\n|---|---|\n{rows}\n## Next\n| `e` | f |\n"
    assert rows_of("Errors of commands", page) == ["a", "b", "b"]


@pytest.mark.parametrize("name", PAGES)
def test_every_metric_that_a_page_names_is_exposed(name: str) -> None:
    unknown = metrics_of((DOCS / name).read_text(encoding="utf-8")) - set(exposed())
    assert not unknown


def test_a_metric_that_does_not_exist_is_found() -> None:
    assert metrics_of("rate(wsgate_nothing_total[5m])") - set(exposed()) == {"wsgate_nothing_total"}
