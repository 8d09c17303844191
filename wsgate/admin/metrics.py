"""The node's numbers for Prometheus: slots of the statistics block in, metric families out.

Rules:
- Only the block is read: a scrape never touches a shard and costs the same whatever the load.
- A counter is summed over keeper, shards and what dead shards had counted, so it never goes backwards.
  A histogram is told per shard and begins anew with a shard's successor, as Prometheus expects of a
  process that was restarted.
- Label values come from the layout, which is fixed: nothing a client says can make one.
- Nothing counted is lost: a slot that no table here names is shown under its own name.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from wsgate import __version__
from wsgate.output import dropped_lines
from wsgate.reasons import REASONS, Reason
from wsgate.statistics import Layout, StatisticsBlock
from wsgate.statistics.layout import HISTOGRAM_BUCKETS

__all__ = ["BlockCollector", "expose", "make_registry"]


class _Counter(NamedTuple):
    """One counter family: which slots it is made of, by the value of its label."""

    name: str  # without wsgate_ and _total
    text: str
    label: str = ""
    slots: Mapping[str, str] = {}  # slot to label value; without a label, to ""


class _Gauge(NamedTuple):
    """One gauge family with the label shard, and perhaps another."""

    name: str
    text: str
    slot: str


def _one(name: str, text: str, slot: str) -> _Counter:
    return _Counter(name, text, "", {slot: ""})


_DIRECTION: Final = "direction"
_COUNTERS: Final = (
    _one("accepts", "Sockets accepted.", "accepted"),
    _one("refusals_answered", "Refusals at the gate that were answered.", "refused"),
    _Counter(
        "accept_failures",
        "Accepts that failed: out of descriptors or memory (exhausted), or by the peer (failed).",
        "cause",
        {"accept_exhausted": "exhausted", "accept_failed": "failed"},
    ),
    _one(
        "accepts_paused",
        "Times accepting waited for the next tick: over four times the rate of handshakes was offered.",
        "accepts_paused",
    ),
    _Counter(
        "addresses_missed",
        "Connections that count for no address: the table was full (uncounted), or a proxy named none"
        " (unnamed).",
        "cause",
        {"addresses_uncounted": "uncounted", "addresses_unnamed": "unnamed"},
    ),
    _Counter(
        "admission_changes",
        "Times a shard's state became this one.",
        "state",
        {f"admission_{name}": name for name in ("open", "refusing", "shedding")},
    ),
    _Counter(
        "accept_queue_losses",
        "Connections of the whole machine that found an accept queue full (overflows), or were dropped there"
        " for any reason (drops), since the node started.",
        "cause",
        {"listen_overflows": "overflows", "listen_drops": "drops"},
    ),
    _one(
        "handovers",
        "Connections a shard had no room for, given to one that had.",
        "handovers",
    ),
    _one(
        "handovers_lost",
        "Connections that a sibling handed over and no descriptor was left to take: cut.",
        "handovers_lost",
    ),
    _one("request_heads", "Complete request heads read.", "opens"),
    _one("upgrades", "Handshakes answered with 101.", "upgrades"),
    _Counter(
        "messages",
        "Messages of clients (in), and frames written whole to them, control frames included (out).",
        _DIRECTION,
        {"messages_in": "in", "frames_out": "out"},
    ),
    _one("message_payload_bytes", "Payload bytes of clients' messages.", "message_bytes_in"),
    _Counter("bytes", "Bytes on clients' sockets.", _DIRECTION, {"bytes_in": "in", "bytes_out": "out"}),
    _one("frames_received", "Frames of clients, fragments and control frames included.", "frames_in"),
    _Counter("system_calls", "Calls on clients' sockets.", "call", {"receives": "recv", "sends": "send"}),
    _one("sends_blocked", "Sends that found the socket full.", "sends_blocked"),
    _one("fanouts", "Publications walked into outboxes.", "publications"),
    _one("deliveries", "Publications queued for a connection, one for each that got it.", "deliveries"),
    _Counter("pings", "Ping frames.", _DIRECTION, {"pings_in": "in", "pings_out": "out"}),
    _Counter("pongs", "Pong frames.", _DIRECTION, {"pongs_in": "in", "pongs_out": "out"}),
    _one("pongs_dropped", "Pongs that gave way to later ones.", "pongs_dropped"),
    _Counter(
        "drops",
        "Queued items dropped: by the channel's policy for slow consumers, or because the connection closed.",
        "cause",
        {"dropped_policy": "policy", "dropped_closing": "closing"},
    ),
    _Counter(
        "gaps",
        "Notices to connections that publications are missing, by reason: the connection read too slowly"
        " (slow), the shard could not keep what came (backlog), the bus was lost for a while (bus), or a"
        " publication was larger than its channel allows (too_large).",
        "reason",
        {"gaps": "slow", "gaps_slow": "backlog", "gaps_bus": "bus", "gaps_too_large": "too_large"},
    ),
    _one("stale_handles", "Calls for a connection that was gone.", "stale"),
    _one("stalls_forgiven", "Pauses of ours for which deadlines were moved.", "stalls_forgiven"),
    _one("lingers_skipped", "Connections closed without lingering: too many lingered.", "lingers_skipped"),
    _Counter("pool_requests", "Buffers needed.", "outcome", {"pool_hits": "hit", "pool_misses": "miss"}),
    _one("messages_inflated", "Compressed messages of clients.", "messages_inflated"),
    _one(
        "publications_deflated",
        "Compressions of publications, however many shared one.",
        "publications_deflated",
    ),
    _Counter(
        "deflate_bytes",
        "Publications that were deflated: bytes before (in) and after (out).",
        _DIRECTION,
        {"deflate_bytes_in": "in", "deflate_bytes_out": "out"},
    ),
    _one("polls", "Passes of the reactor.", "polls"),
    _one("timers", "Timers that came due.", "timers"),
    _Counter(
        "subscriptions_refused",
        "Subscriptions of clients that were refused because of the bus: it has not answered what this"
        " connection or shard asked before (behind), the node's own bus has no memory for one more channel"
        " name (bus_memory), or the ACL of the bus forbids the channel (forbidden), which does not pass.",
        "cause",
        {
            "subscriptions_behind": "behind",
            "subscriptions_bus_memory": "bus_memory",
            "subscriptions_forbidden": "forbidden",
        },
    ),
    _Counter(
        "publishes",
        "Publishes by clients: the bus has them (sent), or they were answered with an error (failed).",
        "outcome",
        {"publishes_sent": "sent", "publishes_failed": "failed"},
    ),
    _one(
        "publishes_over_bytes",
        "Publishes and messages of clients that were answered with 429 because the connection or its shard"
        " has put too many bytes onto the bus.",
        "publishes_over_bytes",
    ),
    _Counter(
        "publishes_limited",
        "Publishes by clients that were answered with 429: more than limits.publish_rate allows a connection"
        " (rate), or too many of one user or address under way to the bus (crowded, also counted as failed).",
        "limit",
        {"publishes_over_rate": "rate", "publishes_crowded": "crowded"},
    ),
    _Counter(
        "tokens",
        "Tokens shown: verified, known from before (cached), or refused.",
        "outcome",
        {"tokens_verified": "verified", "tokens_cached": "cached", "tokens_refused": "refused"},
    ),
    _one(
        "tokens_evicted",
        "Cached tokens that a shard has forgotten before their time because memory was short.",
        "tokens_evicted",
    ),
    _one(
        "unknown_key_ids_requested",
        "Kids in tokens that no key has, asked of the fetcher of the key set.",
        "unknown_key_ids_requested",
    ),
    _one("key_set_updates", "Key sets that a shard has taken over.", "keys_fetched"),
    _one(
        "revocations_forgotten",
        "Revocations of single users that became one for all users, because too many users were revoked.",
        "revocations_forgotten",
    ),
    _one(
        "revocations_unread",
        "Attempts of a shard to read the revocations on the bus that failed; each is repeated.",
        "revocations_unread",
    ),
    _Counter(
        "controls",
        "Commands of backends on the control channel, as many as there are shards.",
        "outcome",
        {"controls_run": "run", "controls_malformed": "malformed"},
    ),
    _one("config_reloads", "Configurations that a shard has taken over while it ran.", "config_reloads"),
    _one("bus_connects", "Times a shard's subscriber connection came up.", "bus_connects"),
    _one("bus_failures", "Times a shard's subscriber connection was lost.", "bus_failures"),
    _Counter(
        "events",
        "Events for backends: answered by their stream (appended), sent once more (repeated), given up"
        " because too many waited (dropped), thrown away by us because the node's own bus was full (trimmed);"
        " messages of clients among them, taken or refused.",
        "outcome",
        {
            "events_appended": "appended",
            "events_repeated": "repeated",
            "events_dropped": "dropped",
            "events_trimmed": "trimmed",
            "events_taken": "taken",
            "events_refused": "refused",
        },
    ),
    _Counter(
        "limits_unchecked",
        "Limits of users that were not asked for because the bus did not answer: somebody was let in.",
        "limit",
        {"users_unchecked": "connections", "rates_unchecked": "messages"},
    ),
    _one(
        "user_deregistrations_lost",
        "Connections that ended while the bus was away, too many to be taken off their users' counts later.",
        "user_deregistrations_lost",
    ),
    _one(
        "messages_of_reset_connections",
        "Whole messages of clients that were dropped because the connection was reset in the same turn.",
        "messages_of_reset_connections",
    ),
    _one(
        "publications_dropped",
        "Publications that a shard dropped, because more arrived than its backlog holds; their subscribers"
        " are sent a gap.",
        "publications_dropped",
    ),
    _one("probes", "Probes that came back through the bus.", "probes_echoed"),
    _one("client_requests", "GET /client.js on the client port.", "client_asked"),
    _one("readiness_requests", "GET /readyz on the client port.", "readiness_asked"),
    _one("restarts", "Child processes that ended and were started again.", "restarts"),
    _one(
        "log_lines_dropped",
        "Lines of the keeper and the shards that were dropped because whoever reads standard error was too"
        " slow or gone.",
        "log_lines_dropped",
    ),
)
# Families with one label value for each slot with a mark before it.
_MARKED: Final = (
    ("errors", "Errors commands were answered with.", "error", "error_"),
    ("commands", "Commands of clients.", "op", "command_"),
    (
        "keeper_duty_failures",
        "Exceptions that a duty of the keeper raised, by the duty's name; the keeper goes on.",
        "duty",
        "duty_failed_",
    ),
    (
        "token_refusals",
        "Tokens that were refused. The label fault is the reason; the log has more about each fault.",
        "fault",
        "token_fault_",
    ),
)
_GATE_MANNERS: Final = ("refused_silent", "refused_undrained")
_RECEIVED: Final = "publications_received"
_UNHEARD: Final = "publications_unheard"
_DROPPED: Final = {"publications_malformed": "malformed", "publications_too_large": "too_large"}

_GAUGES: Final = (
    _Gauge("phase", "0 starting, 1 ready, 2 draining.", "phase"),
    _Gauge("room", "How many more connections fit; the weight of the shard's listener.", "room"),
    _Gauge("bus_up", "Whether the shard's subscriber connection to the bus is up.", "bus_up"),
    _Gauge(
        "backlog_publications",
        "Publications that the shard has received and not handed on to its clients yet.",
        "backlog_publications",
    ),
    _Gauge("backlog_bytes", "Bytes of memory that the shard holds for them.", "backlog_bytes"),
    _Gauge("subscriptions_pending", "Channels the bus has not confirmed yet.", "subscriptions_pending"),
    _Gauge("token_cache_entries", "Verified tokens remembered.", "token_cache_entries"),
    _Gauge(
        "permission_sets",
        "Different permission sets in the memory of a shard; connections with equal ones share them.",
        "permission_sets",
    ),
    _Gauge(
        "permission_sets_bytes",
        "Estimated bytes of memory of those permission sets, part of wsgate_memory_bytes.",
        "permission_sets_bytes",
    ),
    _Gauge(
        "revoked_users",
        "Users with a revocation in the memory of a shard: it refuses their tokens issued before that time.",
        "revoked_users",
    ),
    _Gauge("events_waiting", "Events that no stream has answered for yet.", "events_waiting"),
    _Gauge("events_waiting_bytes", "Their bytes.", "events_waiting_bytes"),
    _Gauge(
        "events_streams_refusing",
        "Event streams that refuse what a shard appends, each counted once a shard. Readiness says nothing"
        " about streams, so alert on more than 0.",
        "events_streams_refusing",
    ),
    _Gauge("key_set_missing", "Whether a key set is to be fetched and none was yet.", "key_set_missing"),
    _Gauge("python_blocks", "Memory blocks that CPython's allocator has given out.", "python_blocks"),
    _Gauge("connections_held", "Connections in the table, in whatever state.", "now_connections"),
    _Gauge("connections_blocked", "Connections whose socket is full.", "now_blocked"),
    _Gauge(
        "connections_pacing",
        "Connections over half their outbox limits and not judged by them: publications wait for them.",
        "now_pacing",
    ),
    _Gauge("refusals_draining", "Refused sockets that are being drained.", "now_draining"),
    _Gauge("channels", "Channels with subscribers.", "now_channels"),
    _Gauge("fanouts_under_way", "Publications on their way into large channels.", "now_walks"),
    _Gauge("admission_state", "0 open, 1 refusing newcomers, 2 shedding.", "admission_state"),
    _Gauge("connections_limit", "Connections a shard may hold.", "connections_limit"),
    _Gauge("descriptors_limit", "Descriptors below which a shard's clients must stay.", "descriptors_limit"),
    _Gauge(
        "connections_growth_per_1000_seconds",
        "Mean growth over about the last 20 s; 0 when they do not grow.",
        "growth_per_1000_s",
    ),
    _Gauge("full_in_seconds", "When a shard is full at that growth; 2^31: never.", "full_in_s"),
    _Gauge(
        "memory_accounted_bytes", "On the books for memory of the process itself.", "memory_accounted_bytes"
    ),
    _Gauge(
        "memory_growth_bytes", "What a shard's process has grown by since it started.", "memory_growth_bytes"
    ),
    _Gauge(
        "memory_unaccounted_bytes", "Of that on no account, beyond some slack.", "memory_unaccounted_bytes"
    ),
    _Gauge("listen_queue", "Connections that wait to be accepted.", "listen_queue"),
    _Gauge("listen_queue_limit", "How many may.", "listen_queue_limit"),
    _Gauge(
        "proportional_set_bytes", "Of a shard's process, weighed once a minute.", "proportional_set_bytes"
    ),
    _Gauge(
        "bus_names_bytes",
        "Bytes of memory that the channels of a shard take in the node's own bus, by the shard's own count.",
        "bus_names_bytes",
    ),
    _Gauge(
        "bus_used_bytes",
        "Bytes of memory that the node's own bus uses, as it told the shard last.",
        "bus_used_bytes",
    ),
    _Gauge(
        "bus_buffers_bytes",
        "Bytes of memory that the node's own bus uses for what waits for shards, as it told the shard last.",
        "bus_buffers_bytes",
    ),
    _Gauge("memory_shedding", "Whether connections are being cut for want of memory.", "now_shedding"),
    _Gauge("memory_short", "Whether newcomers are refused for want of memory.", "now_short"),
    _Gauge("memory_budget_bytes", "What all of wsgate_memory_bytes may come to.", "memory_budget_bytes"),
)
_NODE_GAUGES: Final = (
    _Gauge("sockets_short", "Whether the machine has no memory for more sockets.", "sockets_short"),
    _Gauge("tcp_memory_bytes", "Memory that all sockets of the machine use.", "tcp_memory_bytes"),
    _Gauge("tcp_memory_limit_bytes", "Beyond it the kernel drops what arrives.", "tcp_memory_limit_bytes"),
    _Gauge("bus_memory_bytes", "Resident memory of the node's own bus.", "bus_bytes"),
    _Gauge("bus_memory_limit_bytes", "What it may hold; 0: the node has none.", "bus_limit_bytes"),
)
"""The keeper's, of the node or its machine."""
_BOOKED: Final = "memory_accounted_bytes"
_FOOTPRINT: Final = "memory_growth_bytes"
# No metrics by themselves: a process id, and times of a clock nobody outside has.
_NOT_SHOWN: Final = frozenset({"pid", "beat_ms", "probe_due_ms"})
_HISTOGRAMS: Final = {
    "loop_lag_us": "How late the loop ran its tick.",
    "probe_us": "How long a probe took through the bus and back.",
}
_MICRO: Final = "_us"
_BOUNDS: Final = (*(str(2**bucket / 1e6) for bucket in range(HISTOGRAM_BUCKETS - 1)), "+Inf")


def make_registry(block: StatisticsBlock, node: str, now_ms: Callable[[], int]) -> CollectorRegistry:
    """A registry of its own with everything the block holds; the library's default one stays out.

    Args:
        block: The node's numbers.
        node: Its name, for `wsgate_info`.
        now_ms: The machine's monotonic clock.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(BlockCollector(block, node, now_ms))
    registry.register(_OwnLines())
    return registry


def expose(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Everything in the text format the scraper asks for, and its content type.

    Args:
        registry: What to collect.
        accept: The request's Accept header; what cannot be read gets the plain format.
    """
    try:
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type
    except (TypeError, ValueError):  # a version that is no version is compared and formatted unchecked
        encode, content_type = choose_encoder("")
        return encode(registry), content_type


class _OwnLines(Collector):
    """Export the log lines that the admin process dropped; no region of a shard counts them."""

    def describe(self) -> Iterable[Metric]:
        """Nothing, as below."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The one family."""
        text = "Lines of the admin process that were dropped because the reader was too slow or gone."
        yield CounterMetricFamily("wsgate_admin_log_lines_dropped", text, value=dropped_lines())


class BlockCollector(Collector):
    """Turns one snapshot into metric families."""

    def __init__(self, block: StatisticsBlock, node: str, now_ms: Callable[[], int]) -> None:
        """Lay out the families once; a scrape then only adds numbers."""
        self._block = block
        self._node = node
        self._now_ms = now_ms
        self._index = block.layout.index
        self._counters = _counters(block.layout)
        self._gauges = _gauges(block.layout)
        self._delivered = 0

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read the block."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families, of one moment."""
        regions = self._block.snapshot()
        shards = regions[1:-1]
        yield self._info()
        yield from self._sums(regions)
        if _RECEIVED in self._index:
            yield self._publications(regions)
        yield from self._by_shard(shards)
        yield from self._of_node(regions[0])
        if _FOOTPRINT in self._index:
            yield self._drift(shards)
        yield self._ages(regions[:-1])
        for name in self._block.layout.histograms:
            yield self._histogram(name, shards)

    def _info(self) -> Metric:
        family = GaugeMetricFamily("wsgate_info", "Which node this is.", labels=["node", "version"])
        family.add_metric([self._node, __version__], 1)
        return family

    def _sums(self, regions: Sequence[Sequence[int]]) -> Iterator[Metric]:
        for row in self._counters:
            totals: dict[str, int] = {}
            for slot, value in row.slots.items():
                totals[value] = totals.get(value, 0) + self._total(regions, slot)
            yield _counter_family(row, totals)

    def _total(self, regions: Sequence[Sequence[int]], slot: str) -> int:
        place = self._index[slot]
        return sum(region[place] for region in regions)

    def _publications(self, regions: Sequence[Sequence[int]]) -> Metric:
        """What became of publications. `delivered` is a difference, and the only one.

        A shard may be writing the numbers it is made of just now: it must not go back for that, or a
        rate would take it for a restart.
        """
        dropped = {outcome: self._total(regions, slot) for slot, outcome in _DROPPED.items()}
        delivered = self._total(regions, _RECEIVED) - sum(dropped.values())
        self._delivered = max(self._delivered, delivered)
        totals = {"delivered": self._delivered, **dropped, "unheard": self._total(regions, _UNHEARD)}
        text = "Publications that came over the bus, by what became of them."
        return _counter_family(_Counter("publications", text, "outcome"), totals)

    def _by_shard(self, shards: Sequence[Sequence[int]]) -> Iterator[Metric]:
        for name, text, label, slots in self._gauges:
            labels = ["shard", label] if label else ["shard"]
            family = GaugeMetricFamily(f"wsgate_{name}", text, labels=labels)
            for number, region in enumerate(shards):
                for slot, value in slots.items():
                    values = [str(number), value] if label else [str(number)]
                    family.add_metric(values, region[self._index[slot]])
            yield family

    def _of_node(self, keeper: Sequence[int]) -> Iterator[Metric]:
        for row in _NODE_GAUGES:
            if row.slot in self._index:
                yield GaugeMetricFamily(f"wsgate_{row.name}", row.text, value=keeper[self._index[row.slot]])

    def _drift(self, shards: Sequence[Sequence[int]]) -> Metric:
        text = "What a shard has grown by less what its books hold of that; below 0: they hold too much."
        family = GaugeMetricFamily("wsgate_ledger_drift_bytes", text, labels=["shard"])
        for number, region in enumerate(shards):
            family.add_metric([str(number)], region[self._index[_FOOTPRINT]] - region[self._index[_BOOKED]])
        return family

    def _ages(self, regions: Sequence[Sequence[int]]) -> Metric:
        """Not the time of the beat but its age: nobody outside has the same clock."""
        text = "Since the process last beat; more than 2 s is silence."
        family = GaugeMetricFamily("wsgate_beat_age_seconds", text, labels=["process"])
        names = ["keeper", *(f"shard-{number}" for number in range(len(regions) - 1))]
        for name, region in zip(names, regions, strict=True):
            beat_ms = region[self._index["beat_ms"]]
            if beat_ms:
                family.add_metric([name], max(0, self._now_ms() - beat_ms) / 1000)
        return family

    def _histogram(self, slot: str, shards: Sequence[Sequence[int]]) -> Metric:
        text = _HISTOGRAMS.get(slot, f"What the shards observe as {slot}.")
        name = f"wsgate_{slot.removesuffix(_MICRO)}_seconds"
        family = HistogramMetricFamily(name, text, labels=["shard"])
        first = self._index[slot]
        for number, region in enumerate(shards):
            counts = region[first : first + HISTOGRAM_BUCKETS]
            total = region[first + HISTOGRAM_BUCKETS]
            family.add_metric([str(number)], _cumulate(counts), total / 1e6)
        return family


def _cumulate(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Bucket n holds what is below 2**n microseconds and in no bucket before it."""
    rows: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip(_BOUNDS, counts, strict=True):
        below += count
        rows.append((bound, below))
    return rows


def _counter_family(row: _Counter, totals: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"wsgate_{row.name}", row.text, labels=[row.label] if row.label else [])
    for value, total in totals.items():
        family.add_metric([value] if row.label else [], total)
    return family


# --- which slot is shown where ------------------------------------------------------------------------


def _counters(layout: Layout) -> list[_Counter]:
    rows = [*_COUNTERS, _refusals(layout), _closes(layout), *(_marked(layout, *mark) for mark in _MARKED)]
    rows = [_only(row, set(layout.counters)) for row in rows]
    shown = {slot for row in rows for slot in row.slots} | {_RECEIVED, _UNHEARD, *_DROPPED}
    shown.add("ended_head_refused")  # each of these is in the refusals under its own name
    rest = [slot for slot in layout.counters if slot not in shown]
    rows += [_one(slot, f"What the node counts as {slot}.", slot) for slot in rest]
    return [row for row in rows if row.slots]


def _only(row: _Counter, there: Set[str]) -> _Counter:
    return row._replace(slots={slot: value for slot, value in row.slots.items() if slot in there})


def _marked(layout: Layout, name: str, text: str, label: str, mark: str) -> _Counter:
    return _Counter(name, text, label, _without_mark(layout, mark))


def _without_mark(layout: Layout, mark: str) -> dict[str, str]:
    return {slot: slot.removeprefix(mark) for slot in layout.counters if slot.startswith(mark)}


def _ended(layout: Layout, *, is_refusal: bool) -> dict[str, str]:
    """Slots of connections that ended before (refused) or after (closed) they were let in."""
    found = {}
    for slot in layout.counters:
        name = slot.removeprefix("ended_")
        if name != slot and name.upper() in Reason.__members__:
            row = REASONS[Reason[name.upper()]]
            if bool(row.http_status) == is_refusal:
                found[slot] = name
    return found


def _refusals(layout: Layout) -> _Counter:
    slots = _ended(layout, is_refusal=True)
    slots.pop("ended_head_refused", None)
    slots |= _without_mark(layout, "handshake_") | dict(zip(_GATE_MANNERS, _GATE_MANNERS, strict=True))
    text = (
        "Connections refused. refused_silent and refused_undrained say how the gate told some of them,"
        " and count these a second time."
    )
    return _Counter("refusals", text, "reason", slots)


def _closes(layout: Layout) -> _Counter:
    slots = _ended(layout, is_refusal=False)
    return _Counter("closes", "Connections that ended, by reason.", "reason", slots)


def _gauges(layout: Layout) -> list[tuple[str, str, str, dict[str, str]]]:
    """Name, help, second label, and slot to its value."""
    named = {row.slot: row for row in _GAUGES}
    states = {slot: slot.removeprefix("now_") for slot in layout.gauges if slot.startswith("now_")}
    states = {slot: value for slot, value in states.items() if slot not in named}
    kinds = {slot: slot.removeprefix("held_") for slot in layout.gauges if slot.startswith("held_")}
    rooms = {slot: slot.removeprefix("room_") for slot in layout.gauges if slot.startswith("room_")}
    binds = {slot: slot.removeprefix("binds_") for slot in layout.gauges if slot.startswith("binds_")}
    nodes = {row.slot for row in _NODE_GAUGES}
    rows: list[tuple[str, str, str, dict[str, str]]] = [
        ("headroom", "How many more connections fit as far as this resource goes.", "resource", rooms),
        ("headroom_binding", "Whether this resource goes least far.", "resource", binds),
        ("connections", "Connections by state.", "state", states),
        ("memory_bytes", "Bytes held, by what for.", "kind", kinds),
    ]
    for slot in layout.gauges:
        if slot in named:
            rows.append((named[slot].name, named[slot].text, "", {slot: ""}))
        elif not any(slot in each for each in (states, kinds, rooms, binds, _NOT_SHOWN, nodes)):
            rows.append((slot, f"What a shard shows as {slot}.", "", {slot: ""}))
    return [row for row in rows if row[3]]
