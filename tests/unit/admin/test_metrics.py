"""Check a scrape: every number once, in the terms of Prometheus, and no counter that goes backwards."""

import re

import pytest
from prometheus_client.openmetrics import parser as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from wsgate.admin.metrics import BlockCollector, expose, make_registry
from wsgate.shard.statistics_layout import LAYOUT
from wsgate.statistics import PHASE_DRAINING, Layout, Region, StatisticsBlock
from wsgate.statistics.layout import HISTOGRAM_BUCKETS

NOW_MS = 1_000_000
Series = tuple[str, tuple[tuple[str, str], ...]]
HISTOGRAM_ENDS = ("_bucket", "_sum", "_count")


def scrape_text(block: StatisticsBlock) -> str:
    return expose(make_registry(block, "n1", lambda: NOW_MS), "")[0].decode()


def parse(text: str) -> dict[Series, float]:
    found: dict[Series, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series = (sample.name, tuple(sorted(sample.labels.items())))
            assert series not in found, "one series twice"
            found[series] = sample.value
    return found


def scrape(block: StatisticsBlock) -> dict[Series, float]:
    return parse(scrape_text(block))


def series(name: str, **labels: str) -> Series:
    return f"wsgate_{name}", tuple(sorted(labels.items()))


def counters(found: dict[Series, float]) -> dict[Series, float]:
    return {key: value for key, value in found.items() if key[0].endswith("_total")}


@pytest.fixture
def block() -> StatisticsBlock:
    return StatisticsBlock.create(LAYOUT, 2)


# --- every number once --------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", sorted(set(LAYOUT.counters) - {"ended_head_refused"}))
def test_every_counter_is_shown_in_exactly_one_series(block: StatisticsBlock, slot: str) -> None:
    block.shard(0)["publications_received"] = 100
    before = scrape(block)
    block.shard(1).add(slot, 7)
    after = scrape(block)
    moved = {key: after[key] - before[key] for key in after if after[key] > before[key]}
    assert list(moved.values()) == [7]


def test_refused_head_is_counted_once_by_its_own_reason(block: StatisticsBlock) -> None:
    before = scrape(block)
    block.shard(0).add("ended_head_refused", 5)
    assert scrape(block) == before
    block.shard(0).add("handshake_unknown_path", 5)
    assert scrape(block)[series("refusals_total", reason="unknown_path")] == 5


NO_SERIES = {"pid", "beat_ms", "probe_due_ms"}
OF_NODE = {"sockets_short", "tcp_memory_bytes", "tcp_memory_limit_bytes", "bus_bytes", "bus_limit_bytes"}


@pytest.mark.parametrize("slot", sorted(set(LAYOUT.gauges) - NO_SERIES - OF_NODE))
def test_every_gauge_is_shown_in_exactly_one_series_of_its_shard(block: StatisticsBlock, slot: str) -> None:
    before = scrape(block)
    block.shard(1)[slot] = 7
    after = scrape(block)
    moved = [key for key in after if after[key] != before[key] and key[0] != "wsgate_ledger_drift_bytes"]
    assert len(moved) == 1
    assert dict(moved[0][1])["shard"] == "1"
    assert after[moved[0]] == 7


def test_every_slot_of_the_layout_has_its_own_help(block: StatisticsBlock) -> None:
    text = scrape_text(block)
    for stand_in in ("What the node counts as", "What a shard shows as", "What the shards observe as"):
        assert stand_in not in text


def test_slot_without_a_configured_name_is_exposed_under_its_slot_name() -> None:
    layout = Layout(("brand_new",), ("beat_ms", "fresh_level"), ("novelty_us",))
    block = StatisticsBlock.create(layout, 1)
    block.shard(0)["brand_new"] = 3
    block.shard(0)["fresh_level"] = 4
    block.shard(0).observe("novelty_us", 5)
    found = scrape(block)
    assert found[series("brand_new_total")] == 3
    assert found[series("fresh_level", shard="0")] == 4
    assert found[series("novelty_seconds_count", shard="0")] == 1


def test_every_family_has_a_help_and_a_valid_name(block: StatisticsBlock) -> None:
    for family in text_string_to_metric_families(scrape_text(block)):
        assert re.fullmatch(r"wsgate_[a-z0-9_]+", family.name)
        assert family.documentation.endswith(".")


@pytest.mark.parametrize(
    ("slot", "shown"),
    [
        ("accepted", series("accepts_total")),
        ("ended_refused_rate", series("refusals_total", reason="refused_rate")),
        ("refused_silent", series("refusals_total", reason="refused_silent")),
        ("handshake_unserved", series("refusals_total", reason="unserved")),
        ("ended_heartbeat_timeout", series("closes_total", reason="heartbeat_timeout")),
        ("messages_in", series("messages_total", direction="in")),
        ("bytes_out", series("bytes_total", direction="out")),
        ("deliveries", series("deliveries_total")),
        ("publications_unheard", series("publications_total", outcome="unheard")),
        ("publishes_failed", series("publishes_total", outcome="failed")),
        ("error_unknown_op", series("errors_total", error="unknown_op")),
        ("command_presence_stats", series("commands_total", op="presence_stats")),
        ("tokens_cached", series("tokens_total", outcome="cached")),
        ("restarts", series("restarts_total")),
    ],
)
def test_counter_slot_is_exposed_under_its_documented_series(
    block: StatisticsBlock, slot: str, shown: Series
) -> None:
    block.keeper[slot] = 2
    block.shard(0)[slot] = 3
    block.retired[slot] = 5
    assert scrape(block)[shown] == 10


@pytest.mark.parametrize(
    ("slot", "name", "labels"),
    [
        ("now_lingering", "connections", {"state": "lingering"}),
        ("held_outbox", "memory_bytes", {"kind": "outbox"}),
        ("held_kernel_queued", "memory_bytes", {"kind": "kernel_queued"}),
        ("bus_up", "bus_up", {}),
        ("room", "room", {}),
        ("python_blocks", "python_blocks", {}),
    ],
)
def test_gauge_slot_is_exposed_under_its_documented_series(
    block: StatisticsBlock, slot: str, name: str, labels: dict[str, str]
) -> None:
    block.shard(1)[slot] = 9
    assert scrape(block)[series(name, shard="1", **labels)] == 9


def test_gauges_of_the_keeper_have_no_shard_label(block: StatisticsBlock) -> None:
    """These gauges once had the label of a shard, and every shard had 0."""
    for number, slot in enumerate(sorted(OF_NODE)):
        block.keeper[slot] = 5 + number
        assert scrape(block)[series(slot.replace("bus_", "bus_memory_"))] == 5 + number


def test_ledger_drift_is_negative_or_positive(block: StatisticsBlock) -> None:
    block.shard(0)["memory_growth_bytes"], block.shard(0)["memory_accounted_bytes"] = 10, 30
    block.shard(1)["memory_growth_bytes"], block.shard(1)["memory_accounted_bytes"] = 30, 10
    numbers = scrape(block)
    assert [numbers[series("ledger_drift_bytes", shard=shard)] for shard in "01"] == [-20, 20]


def test_reason_counted_by_reactor_and_handshake_is_one_series(block: StatisticsBlock) -> None:
    block.shard(0)["ended_head_too_large"] = 2
    block.shard(0)["handshake_head_too_large"] = 3
    assert scrape(block)[series("refusals_total", reason="head_too_large")] == 5


# --- nothing goes backwards, nothing grows ------------------------------------------------------------


def test_no_counter_goes_backwards_when_a_shard_is_retired(block: StatisticsBlock) -> None:
    for number, slot in enumerate(LAYOUT.counters):
        block.shard(0)[slot] = 1_000 + number
        block.shard(1)[slot] = 10
    before = counters(scrape(block))
    block.retire(0)
    assert counters(scrape(block)) == before
    block.shard(0).add("accepted", 1)
    assert scrape(block)[series("accepts_total")] == before[series("accepts_total")] + 1


def test_delivered_counts_received_publications_without_dropped_ones(block: StatisticsBlock) -> None:
    block.shard(0)["publications_received"] = 10
    block.shard(0)["publications_malformed"] = 2
    block.shard(1)["publications_too_large"] = 1
    block.shard(1)["publications_unheard"] = 50  # received by no subscriber
    assert scrape(block)[series("publications_total", outcome="delivered")] == 7


def test_delivered_does_not_go_backwards_while_a_shard_writes_its_numbers(block: StatisticsBlock) -> None:
    registry = make_registry(block, "n1", lambda: NOW_MS)
    shown = series("publications_total", outcome="delivered")
    block.shard(0)["publications_received"] = 10
    assert parse(expose(registry, "")[0].decode())[shown] == 10
    block.shard(0)["publications_malformed"] = 3  # the shard has written only a part of its numbers
    assert parse(expose(registry, "")[0].decode())[shown] == 10
    block.shard(0)["publications_received"] = 15
    assert parse(expose(registry, "")[0].decode())[shown] == 12


def test_set_of_series_does_not_depend_on_the_values(block: StatisticsBlock) -> None:
    before = set(scrape(block))
    for region in (block.keeper, block.shard(0), block.shard(1), block.retired):
        for place in range(LAYOUT.slots):
            region.slots[place] = 12_345
    beats = {("wsgate_beat_age_seconds", (("process", name),)) for name in ("keeper", "shard-0", "shard-1")}
    assert set(scrape(block)) == before | beats


# --- histograms ---------------------------------------------------------------------------------------


def buckets(found: dict[Series, float], name: str, shard: str) -> dict[float, float]:
    rows = {}
    for (sample, labels), value in found.items():
        if sample == f"wsgate_{name}_bucket" and dict(labels)["shard"] == shard:
            rows[float(dict(labels)["le"])] = value
    return rows


def test_buckets_are_cumulative_and_in_seconds(block: StatisticsBlock) -> None:
    for value_us in (0, 1, 900, 1_500_000, 2**40):
        block.shard(1).observe("probe_us", value_us)
    found = scrape(block)
    rows = buckets(found, "probe_seconds", "1")
    assert len(rows) == HISTOGRAM_BUCKETS
    assert rows[1e-6] == 1
    assert rows[2e-6] == 2
    assert rows[512e-6] == 2
    assert rows[1024e-6] == 3
    assert rows[2**21 / 1e6] == 4
    assert rows[2**24 / 1e6] == 4
    assert rows[float("inf")] == 5 == found[series("probe_seconds_count", shard="1")]
    assert found[series("probe_seconds_sum", shard="1")] == pytest.approx((901 + 1_500_000 + 2**40) / 1e6)
    assert buckets(found, "probe_seconds", "0")[float("inf")] == 0


@pytest.mark.parametrize("value_us", [0, 1, 2, 3, 4, 1_023, 1_024, 2**24 - 1, 2**24, 2**25, 2**60])
def test_value_is_counted_in_exactly_the_buckets_above_the_value(
    block: StatisticsBlock, value_us: int
) -> None:
    block.shard(0).observe("loop_lag_us", value_us)
    for bound, count in buckets(scrape(block), "loop_lag_seconds", "0").items():
        assert count == (value_us < bound * 1e6)


def test_histogram_of_a_retired_shard_starts_at_zero(block: StatisticsBlock) -> None:
    block.shard(0).observe("loop_lag_us", 5)
    block.retire(0)
    assert scrape(block)[series("loop_lag_seconds_count", shard="0")] == 0


# --- other numbers ------------------------------------------------------------------------------------


def test_beat_age_is_exposed_only_for_processes_with_a_beat(block: StatisticsBlock) -> None:
    block.keeper["beat_ms"] = NOW_MS - 250
    block.shard(1)["beat_ms"] = NOW_MS + 3  # the shard beat again between the clock and the snapshot
    found = scrape(block)
    assert found[series("beat_age_seconds", process="keeper")] == 0.25
    assert found[series("beat_age_seconds", process="shard-1")] == 0
    assert series("beat_age_seconds", process="shard-0") not in found


def test_phase_of_a_shard_is_exposed_as_a_number(block: StatisticsBlock) -> None:
    block.shard(0)["phase"] = PHASE_DRAINING
    assert scrape(block)[series("phase", shard="0")] == 2


def test_info_metric_escapes_any_node_name() -> None:
    block = StatisticsBlock.create(LAYOUT, 1)
    node = 'a"b\\c\n# TYPE'
    text = expose(make_registry(block, node, lambda: NOW_MS), "")[0].decode()
    found = [dict(labels) for name, labels in parse(text) if name == "wsgate_info"]
    assert [labels["node"] for labels in found] == [node]


# --- the library --------------------------------------------------------------------------------------


def test_registering_does_not_read_the_block(block: StatisticsBlock, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> list[list[int]]:
        raise AssertionError("the block was read")

    monkeypatch.setattr(block, "snapshot", read)
    assert list(BlockCollector(block, "n1", lambda: NOW_MS).describe()) == []
    registry = make_registry(block, "n1", lambda: NOW_MS)
    with pytest.raises(AssertionError):
        expose(registry, "")


def test_scrape_reads_the_block_only_through_snapshots(
    block: StatisticsBlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = BlockCollector(block, "n1", lambda: NOW_MS)

    def read(self: Region, name: str) -> int:
        raise AssertionError(f"{name} was read outside a snapshot")

    monkeypatch.setattr(Region, "__getitem__", read)
    assert list(collector.collect())


def test_open_metrics_format_is_returned_if_requested(block: StatisticsBlock) -> None:
    registry = make_registry(block, "n1", lambda: NOW_MS)
    text, content_type = expose(registry, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text")
    families = open_metrics.text_string_to_metric_families(text.decode())  # type: ignore[no-untyped-call]
    names = {family.name for family in families}
    assert {"wsgate_accepts", "wsgate_connections", "wsgate_probe_seconds"} <= names


@pytest.mark.parametrize(
    "accept", ["", "text/plain;version=abc", "*/*", "text/plain;version=;;=", "\xff" * 9_000]
)
def test_invalid_accept_header_gets_the_plain_format(block: StatisticsBlock, accept: str) -> None:
    text, content_type = expose(make_registry(block, "n1", lambda: NOW_MS), accept)
    assert content_type.startswith("text/plain; version=0.0.4")
    assert parse(text.decode())
