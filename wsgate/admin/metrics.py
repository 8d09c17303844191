"""Export the statistics block of the node to Prometheus: slots go in, metric families come out.

Rules:
- A scrape reads only the block. It never interrupts a shard, and its cost does not depend on the load.
- A counter is the sum over the keeper, the shards and the shards that have ended, so it never decreases. A
  histogram is exported per shard and starts at 0 with the successor of a shard, as Prometheus expects of a
  process that was restarted.
- Label values come from the layout, which is fixed. No input of a client can create one.
- Every slot is exported. A slot that no table here names is exported under its own name.

`docs/reference/metrics.md` is generated from what this module exports.
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

__all__ = ["LABEL_VALUES", "BlockCollector", "expose", "make_registry"]


class _Counter(NamedTuple):
    """One family of counters, with the slots that it consists of and their label values."""

    name: str  # without the prefix wsgate_ and the suffix _total
    text: str
    label: str = ""
    slots: Mapping[str, str] = {}  # label value of each slot; empty if there is no label


class _Gauge(NamedTuple):
    """One family of gauges, with the label shard if each shard has its own value."""

    name: str
    text: str
    slot: str


def _one(name: str, text: str, slot: str) -> _Counter:
    return _Counter(name, text, "", {slot: ""})


_DIRECTION: Final = "direction"
_COUNTERS: Final = (
    _one("accepts", "Connections that a shard accepted on the client port.", "accepted"),
    _one(
        "refusals_answered",
        "Connections that a limit refused directly after accept, before their request was read, and"
        " that received an HTTP answer. wsgate_refusals_total has the reasons.",
        "refused",
    ),
    _Counter(
        "accept_failures",
        "Failed calls of accept. The label cause is exhausted if the process or the machine"
        " had no descriptor or no memory left, and failed for any other error, usually of the"
        " peer.",
        "cause",
        {"accept_exhausted": "exhausted", "accept_failed": "failed"},
    ),
    _one(
        "accepts_paused",
        "Times that a shard stopped accepting until the next tick (at most 250 ms), because"
        " more connections arrived than four times the allowed rate of handshakes, and more"
        " than 1,000 per second.",
        "accepts_paused",
    ),
    _Counter(
        "addresses_missed",
        "Connections that are not counted for any address. The label cause is uncounted if the"
        " table of addresses was full, and unnamed if a trusted proxy did not name the client.",
        "cause",
        {"addresses_uncounted": "uncounted", "addresses_unnamed": "unnamed"},
    ),
    _Counter(
        "admission_changes",
        "Times that the admission state of a shard changed to the state in the label: open,"
        " refusing (new connections are refused) or shedding (some connections are closed as"
        " well).",
        "state",
        {f"admission_{name}": name for name in ("open", "refusing", "shedding")},
    ),
    _Counter(
        "accept_queue_losses",
        "Connections on the whole machine since the node started that found a full accept"
        " queue (cause overflows) or were dropped in an accept queue for any reason (cause"
        " drops). It includes other programs.",
        "cause",
        {"listen_overflows": "overflows", "listen_drops": "drops"},
    ),
    _one(
        "handovers",
        "Accepted connections that a shard without room passed to another shard of the node.",
        "handovers",
    ),
    _one(
        "handovers_lost",
        "Connections that another shard passed on and that were cut, because the receiving"
        " shard had no descriptor left.",
        "handovers_lost",
    ),
    _one("request_heads", "Complete HTTP request heads that shards received.", "opens"),
    _one(
        "upgrades",
        "Handshakes that were answered with 101, so that a WebSocket connection was opened.",
        "upgrades",
    ),
    _Counter(
        "messages",
        "Messages that clients sent and that the rate limits allowed (direction in), and frames that"
        " were written to clients (direction out). Control frames count in direction out only.",
        _DIRECTION,
        {"messages_in": "in", "frames_out": "out"},
    ),
    _one(
        "message_payload_bytes",
        "Payload bytes of the messages that clients sent, after reassembly.",
        "message_bytes_in",
    ),
    _Counter(
        "bytes",
        "Bytes that shards read from (direction in) and wrote to (direction out) the sockets"
        " of clients, without TCP and IP headers.",
        _DIRECTION,
        {"bytes_in": "in", "bytes_out": "out"},
    ),
    _one(
        "frames_received",
        "WebSocket frames that clients sent, including fragments and control frames.",
        "frames_in",
    ),
    _Counter(
        "system_calls",
        "System calls on the sockets of clients. The label call is recv or send.",
        "call",
        {"receives": "recv", "sends": "send"},
    ),
    _one(
        "sends_blocked",
        "Writes to a client that stopped because the send buffer of the socket was full.",
        "sends_blocked",
    ),
    _one(
        "fanouts",
        "Publications, and gap notices of one channel, whose distribution to the outboxes of a"
        " shard has begun.",
        "publications",
    ),
    _one(
        "deliveries",
        "Publications that were queued for a connection. One publication with 100 subscribers counts 100.",
        "deliveries",
    ),
    _Counter(
        "pings",
        "Ping frames that clients sent (direction in) or the gateway sent (direction out).",
        _DIRECTION,
        {"pings_in": "in", "pings_out": "out"},
    ),
    _Counter(
        "pongs",
        "Pong frames that clients sent (direction in) or the gateway sent (direction out).",
        _DIRECTION,
        {"pongs_in": "in", "pongs_out": "out"},
    ),
    _one(
        "pongs_dropped",
        "Pong frames that were not sent to a client, because a later pong replaced them or the"
        " connection ended.",
        "pongs_dropped",
    ),
    _Counter(
        "drops",
        "Messages that waited for a client and were not sent. The label cause is policy if the"
        " setting slow_consumer of the channel dropped an older publication, and closing if the"
        " connection closed.",
        "cause",
        {"dropped_policy": "policy", "dropped_closing": "closing"},
    ),
    _Counter(
        "gaps",
        "Notices to connections that publications are missing. The label reason is slow if the"
        " connection read too slowly, backlog if the shard could not keep the publications, bus"
        " if the bus was lost for a while, and too_large if a publication was larger than its"
        " channel allows.",
        "reason",
        {"gaps": "slow", "gaps_slow": "backlog", "gaps_bus": "bus", "gaps_too_large": "too_large"},
    ),
    _one("stale_handles", "Calls inside a shard that named a connection which had ended already.", "stale"),
    _one(
        "stalls_forgiven",
        "Pauses of a shard of more than 2 s after which the deadlines of its connections were"
        " extended by the pause, which happens at most once a minute.",
        "stalls_forgiven",
    ),
    _one(
        "lingers_skipped",
        "Connections that were closed at once, because too many closed sockets already waited"
        " for their peers to read the rest.",
        "lingers_skipped",
    ),
    _Counter(
        "pool_requests",
        "Buffers that shards requested from their pool of memory. The label outcome is hit if"
        " the pool had a free buffer, and miss if new memory was allocated.",
        "outcome",
        {"pool_hits": "hit", "pool_misses": "miss"},
    ),
    _one("messages_inflated", "Compressed messages of clients that were decompressed.", "messages_inflated"),
    _one(
        "publications_deflated",
        "Compressions of publications. One compression serves all subscribers of a shard that use it.",
        "publications_deflated",
    ),
    _Counter(
        "deflate_bytes",
        "Bytes of compressed publications before compression (direction in) and after it (direction out).",
        _DIRECTION,
        {"deflate_bytes_in": "in", "deflate_bytes_out": "out"},
    ),
    _one("polls", "Passes of the event loop of the reactor.", "polls"),
    _one("timers", "Timers of connections that expired and were handled.", "timers"),
    _Counter(
        "subscriptions_refused",
        "Subscriptions of clients that were refused because of the bus. The label cause is"
        " behind if the bus has not answered earlier requests of the connection or shard,"
        " bus_memory if the private bus has no memory for another channel name, and forbidden"
        " if the access control list of the bus forbids the channel. With forbidden the client"
        " should not try again.",
        "cause",
        {
            "subscriptions_behind": "behind",
            "subscriptions_bus_memory": "bus_memory",
            "subscriptions_forbidden": "forbidden",
        },
    ),
    _Counter(
        "publishes",
        "Publishes of clients. The label outcome is sent if the bus has accepted the"
        " publication, and failed if the client received an error.",
        "outcome",
        {"publishes_sent": "sent", "publishes_failed": "failed"},
    ),
    _one(
        "publishes_over_bytes",
        "Publishes and messages of clients that were answered with 429, because the connection"
        " or its shard has sent too many bytes to the bus.",
        "publishes_over_bytes",
    ),
    _Counter(
        "publishes_limited",
        "Publishes of clients that were answered with 429. The label limit is rate if the"
        " connection exceeded limits.publish_rate, and crowded if too many publishes of one"
        " user or address waited for the bus; crowded ones are also counted as failed.",
        "limit",
        {"publishes_over_rate": "rate", "publishes_crowded": "crowded"},
    ),
    _Counter(
        "tokens",
        "Tokens that clients sent. The label outcome is verified if the signature was checked,"
        " cached if the shard had verified the same token before, and refused if the token is"
        " not valid.",
        "outcome",
        {"tokens_verified": "verified", "tokens_cached": "cached", "tokens_refused": "refused"},
    ),
    _one(
        "tokens_evicted",
        "Verified tokens that a shard removed from its cache before they expired, because memory was short.",
        "tokens_evicted",
    ),
    _one(
        "unknown_key_ids_requested",
        "Requests of a shard for a new fetch of the key set, because a token named a key id that no key"
        " has. A shard requests at most two fetches for one key id.",
        "unknown_key_ids_requested",
    ),
    _one("key_set_updates", "Fetched key sets that a shard has applied.", "keys_fetched"),
    _one(
        "revocations_forgotten",
        "Revocations of single users that were dropped because too many users were revoked: merged into"
        " one revocation for all users, removed from the bus, or not stored there.",
        "revocations_forgotten",
    ),
    _one(
        "revocations_unread",
        "Failed attempts of a shard to read the revocations from the bus. Each attempt is repeated.",
        "revocations_unread",
    ),
    _Counter(
        "controls",
        "Commands that backends sent on the control channel, counted once in every shard. The"
        " label outcome is run, or malformed if the command could not be read.",
        "outcome",
        {"controls_run": "run", "controls_malformed": "malformed"},
    ),
    _one(
        "config_reloads", "Reloaded configurations that a shard has applied while it ran.", "config_reloads"
    ),
    _one(
        "bus_connects",
        "Times that the subscriber connection of a shard to the bus was established.",
        "bus_connects",
    ),
    _one(
        "bus_failures", "Times that the subscriber connection of a shard to the bus was lost.", "bus_failures"
    ),
    _Counter(
        "events",
        "Events for backends. The label outcome is appended if the stream confirmed the event,"
        " repeated if it was sent again, dropped if too many events waited, trimmed if the"
        " gateway removed it because the private bus was full, and taken or refused for"
        " messages of clients to backends. An event can be counted under more than one outcome.",
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
        "Decisions about a limit per user that were made without the bus, because it did not"
        " answer, so that the client was admitted. The label limit is connections for"
        " admission.per_user_connections and messages for admission.per_user_rate.",
        "limit",
        {"users_unchecked": "connections", "rates_unchecked": "messages"},
    ),
    _one(
        "user_deregistrations_lost",
        "Ended connections that still count for their user on the bus, because the bus was"
        " away and too many removals waited.",
        "user_deregistrations_lost",
    ),
    _one(
        "messages_of_reset_connections",
        "Complete messages of clients that were dropped, because the connection was reset"
        " before the shard handled them.",
        "messages_of_reset_connections",
    ),
    _one(
        "publications_dropped",
        "Publications that a shard dropped because more arrived than bus.backlog holds. Their"
        " subscribers are notified with a gap.",
        "publications_dropped",
    ),
    _one("probes", "Probes that a shard sent to itself through the bus and received again.", "probes_echoed"),
    _one("client_requests", "Requests for /client.js on the client port.", "client_asked"),
    _one("readiness_requests", "Requests for /readyz on the client port.", "readiness_asked"),
    _one(
        "restarts", "Child processes of the node that ended unexpectedly and were started again.", "restarts"
    ),
    _one(
        "log_lines_dropped",
        "Log lines of the keeper and the shards that were dropped, because the reader of"
        " standard error was too slow or gone.",
        "log_lines_dropped",
    ),
)
# Families with one label value for each slot whose name starts with the last text.
_MARKED: Final = (
    (
        "errors",
        "Commands of clients that were answered with an error. The label error is the name of the error.",
        "error",
        "error_",
    ),
    (
        "commands",
        "Commands that clients sent, also those that were refused. The label op is the name of the command.",
        "op",
        "command_",
    ),
    (
        "keeper_duty_failures",
        (
            "Exceptions in a duty of the keeper. The label duty is the name of the duty; the "
            "keeper continues, and repeats the duties that it does periodically."
        ),
        "duty",
        "duty_failed_",
    ),
    (
        "token_refusals",
        "Tokens that were refused. The label fault is the reason; the log has more about the causes, at"
        " most one line per cause and second.",
        "fault",
        "token_fault_",
    ),
)
_GATE_MANNERS: Final = ("refused_silent", "refused_undrained")
_RECEIVED: Final = "publications_received"
_UNHEARD: Final = "publications_unheard"
_DROPPED: Final = {"publications_malformed": "malformed", "publications_too_large": "too_large"}

_GAUGES: Final = (
    _Gauge("phase", "Phase of a shard: 0 starting, 1 ready, 2 draining.", "phase"),
    _Gauge(
        "room",
        "Number of connections that the shard can still accept. New connections are"
        " distributed in this proportion.",
        "room",
    ),
    _Gauge(
        "bus_up",
        "Whether the subscriber connection of the shard to the bus works: 1 if it does, 0 if not.",
        "bus_up",
    ),
    _Gauge(
        "backlog_publications",
        "Publications that the shard has received from the bus and not yet passed on to its clients.",
        "backlog_publications",
    ),
    _Gauge(
        "backlog_bytes", "Bytes of memory that these waiting publications take in the shard.", "backlog_bytes"
    ),
    _Gauge(
        "bus_received_bytes",
        "Bytes of memory that a shard holds for what it has received from the bus and not handled yet: the"
        " buffer of its reader, at most 1 MiB when idle, and replies.",
        "bus_received_bytes",
    ),
    _Gauge(
        "subscriptions_pending",
        "Channels of the shard whose subscription the bus has not confirmed yet.",
        "subscriptions_pending",
    ),
    _Gauge("token_cache_entries", "Verified tokens that the shard remembers.", "token_cache_entries"),
    _Gauge(
        "permission_sets",
        "Different permission sets in the memory of the shard. Connections with equal"
        " permissions share one set.",
        "permission_sets",
    ),
    _Gauge(
        "permission_sets_bytes",
        "Estimated bytes of memory of the permission sets of the shard, a part of wsgate_memory_bytes.",
        "permission_sets_bytes",
    ),
    _Gauge(
        "revoked_users",
        "Users with a revocation in the memory of the shard, which refuses their tokens issued"
        " before that time.",
        "revoked_users",
    ),
    _Gauge(
        "events_waiting",
        "Events for backends that the shard holds because no stream has confirmed them yet.",
        "events_waiting",
    ),
    _Gauge(
        "events_waiting_bytes",
        "Bytes of memory of the events for backends that no stream has confirmed yet.",
        "events_waiting_bytes",
    ),
    _Gauge(
        "events_streams_refusing",
        "Event streams that the bus does not let the shard append to: because of the type of the key, of"
        " the access control list, or because the server refuses all writes (no memory, a replica)."
        " Messages of clients are refused meanwhile. Readiness does not depend"
        " on streams, so alert on more than 0.",
        "events_streams_refusing",
    ),
    _Gauge(
        "key_set_missing",
        "Whether the shard waits for the first fetch of the key set: 1 if it does, 0 if not.",
        "key_set_missing",
    ),
    _Gauge(
        "python_blocks",
        "Memory blocks that the allocator of CPython has in use in the shard.",
        "python_blocks",
    ),
    _Gauge("connections_held", "Connections of the shard in any state.", "now_connections"),
    _Gauge("connections_blocked", "Connections of the shard whose send buffer is full.", "now_blocked"),
    _Gauge(
        "connections_pacing",
        "Connections of the shard that make publications wait: their outbox is over half of"
        " its limits, and the limits do not apply to them at the moment.",
        "now_pacing",
    ),
    _Gauge(
        "refusals_draining",
        "Refused sockets of the shard that still receive input until the answer has arrived.",
        "now_draining",
    ),
    _Gauge("channels", "Channels with at least one subscriber in the shard.", "now_channels"),
    _Gauge(
        "fanouts_under_way",
        "Publications that the shard is distributing to large channels at the moment.",
        "now_walks",
    ),
    _Gauge(
        "admission_state",
        "Admission state of the shard: 0 open, 1 refusing new connections, 2 shedding (closing"
        " some connections as well).",
        "admission_state",
    ),
    _Gauge("connections_limit", "Largest number of connections that the shard accepts.", "connections_limit"),
    _Gauge(
        "descriptors_limit",
        "File descriptor number below which the sockets of the clients of the shard must stay.",
        "descriptors_limit",
    ),
    _Gauge(
        "connections_growth_per_1000_seconds",
        "Mean growth of the connections of the shard over about the last 20 s, in connections"
        " per 1,000 s. 0 if they do not grow.",
        "growth_per_1000_s",
    ),
    _Gauge(
        "full_in_seconds",
        "Seconds until the shard is full if its connections continue to grow as now. 2147483648 means never.",
        "full_in_s",
    ),
    _Gauge(
        "memory_accounted_bytes",
        "Bytes that the memory accounts of the shard hold for memory of the process itself.",
        "memory_accounted_bytes",
    ),
    _Gauge(
        "memory_growth_bytes",
        "Bytes by which the resident memory of the process of the shard has grown since it started.",
        "memory_growth_bytes",
    ),
    _Gauge(
        "memory_unaccounted_bytes",
        "Bytes by which the memory of the shard has grown since its start beyond the sum of"
        " wsgate_memory_bytes and 8 MiB. A large value is a leak or a fragmented heap; near the memory"
        " budget it makes the shard refuse new connections.",
        "memory_unaccounted_bytes",
    ),
    _Gauge("listen_queue", "Connections that wait in the accept queue of the shard.", "listen_queue"),
    _Gauge(
        "listen_queue_limit",
        "Largest number of connections that the accept queue of the shard can hold.",
        "listen_queue_limit",
    ),
    _Gauge(
        "proportional_set_bytes",
        "Proportional set size of the process of the shard in bytes, read once a minute."
        " Shared pages count in proportion.",
        "proportional_set_bytes",
    ),
    _Gauge(
        "bus_names_bytes",
        "Bytes of memory that the channel names of the shard take in the private bus, by the"
        " count of the shard.",
        "bus_names_bytes",
    ),
    _Gauge(
        "bus_used_bytes",
        "Bytes of memory that the private bus uses, by its last answer to the shard.",
        "bus_used_bytes",
    ),
    _Gauge(
        "bus_buffers_bytes",
        "Bytes of memory that the private bus uses for data that waits for shards, by its last"
        " answer to the shard.",
        "bus_buffers_bytes",
    ),
    _Gauge(
        "memory_shedding",
        "Whether the shard closes connections because its memory is over the budget: 1 if it does, 0 if not.",
        "now_shedding",
    ),
    _Gauge(
        "memory_short",
        "Whether the shard refuses new connections because memory is short: 1 if it does, 0 if not.",
        "now_short",
    ),
    _Gauge(
        "memory_budget_bytes",
        "Largest sum of wsgate_memory_bytes that the shard may reach. Above it the shard closes connections.",
        "memory_budget_bytes",
    ),
)
_NODE_GAUGES: Final = (
    _Gauge(
        "sockets_short",
        "Whether the machine has no memory for more sockets: 1 if it has none, 0 if it has.",
        "sockets_short",
    ),
    _Gauge(
        "tcp_memory_bytes",
        "Bytes of memory that all TCP sockets of the machine use, including other programs.",
        "tcp_memory_bytes",
    ),
    _Gauge(
        "tcp_memory_limit_bytes",
        "Bytes of memory of all TCP sockets above which the kernel drops incoming data.",
        "tcp_memory_limit_bytes",
    ),
    _Gauge(
        "bus_memory_bytes",
        "Resident memory of the private bus in bytes. 0 if the node has no private bus.",
        "bus_bytes",
    ),
    _Gauge(
        "bus_memory_limit_bytes",
        "Bytes of memory that the private bus may use. 0 if the node has no private bus.",
        "bus_limit_bytes",
    ),
)
"""Gauges of the node or its machine, which the keeper writes."""
_BOOKED: Final = "memory_accounted_bytes"
_FOOTPRINT: Final = "memory_growth_bytes"
LABEL_VALUES: Final = {
    "wsgate_connections": {
        "head": "The shard receives the request head.",
        "deciding": "The request head is complete, and the shard has not answered it yet.",
        "open": "The WebSocket connection is open.",
        "failing": "A fault or the Close of the peer was found, and the shard will queue its Close next.",
        "closing": "The Close, or the HTTP refusal, is queued or sent.",
        "lingering": "Everything is written; the shard discards input until the peer ends the connection.",
        "gone": "The socket is closed, and the shard has not finished with the connection yet.",
    },
    "wsgate_memory_bytes": {
        "table": "The table of connections.",
        "frame": "Encoded frames; a frame that several connections share counts once.",
        "outbox": "Outboxes with their entries, control frames and gaps.",
        "partial": "Unfinished request heads, frames and messages, and input that was not handled yet.",
        "channel": "Channels with their names and lists of subscribers.",
        "subscription": "The lists of channels of each connection.",
        "deflate": "The largest amount that compressing or decompressing one message may take.",
        "user": "The index of connections by user.",
        "pool": "Freed buffers that are kept for reuse.",
        "outside": "What the Python part of the shard holds, such as cached tokens and waiting publications.",
        "kernel_queued": "Data that clients have not taken yet and that the kernel holds in their sockets.",
        "kernel_orphans": "The same for sockets that were closed meanwhile.",
        "connections": "A fixed amount for each connection: its socket in the kernel and its objects.",
    },
}
"""Meaning of label values that the help does not explain, by family. The generated reference shows it."""
# Not exported as they are: a process id, and times of a clock that no scraper has.
_NOT_SHOWN: Final = frozenset({"pid", "beat_ms", "probe_due_ms"})
_HISTOGRAMS: Final = {
    "loop_lag_us": "Delay of the tick of a shard, in seconds. The tick is due four times a second.",
    "probe_us": "Time that a probe of a shard took through the bus and back, in seconds.",
}
_MICRO: Final = "_us"
_BOUNDS: Final = (*(str(2**bucket / 1e6) for bucket in range(HISTOGRAM_BUCKETS - 1)), "+Inf")


def make_registry(block: StatisticsBlock, node: str, now_ms: Callable[[], int]) -> CollectorRegistry:
    """Return a registry with everything in the block; the default registry of the library is not used.

    Args:
        block: The node's numbers.
        node: Name of the node, for `wsgate_info`.
        now_ms: Returns the time of the machine's monotonic clock.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(BlockCollector(block, node, now_ms))
    registry.register(_OwnLines())
    return registry


def expose(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return all metrics in the text format that the scraper accepts, and its content type.

    Args:
        registry: Registry of the metrics to collect.
        accept: Accept header of the request; the plain text format is used if it cannot be parsed.
    """
    try:
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type
    except (TypeError, ValueError):  # the library does not check the version in the header
        encode, content_type = choose_encoder("")
        return encode(registry), content_type


class _OwnLines(Collector):
    """Export the log lines that the admin process dropped; no region of a shard counts them."""

    def describe(self) -> Iterable[Metric]:
        """Return no description, so that the registry does not collect while it registers."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return the only family of this collector."""
        text = (
            "Log lines of the admin process that were dropped, because the reader of standard "
            "error was too slow or gone."
        )
        yield CounterMetricFamily("wsgate_admin_log_lines_dropped", text, value=dropped_lines())


class BlockCollector(Collector):
    """Convert one snapshot of the block into metric families."""

    def __init__(self, block: StatisticsBlock, node: str, now_ms: Callable[[], int]) -> None:
        """Prepare the families once, so that a scrape only adds numbers."""
        self._block = block
        self._node = node
        self._now_ms = now_ms
        self._index = block.layout.index
        self._counters = _counters(block.layout)
        self._gauges = _gauges(block.layout)
        self._delivered = 0

    def describe(self) -> Iterable[Metric]:
        """Return no description, so that the registry does not read the block while it registers."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return all families, with the values of one moment."""
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
        family = GaugeMetricFamily(
            "wsgate_info",
            ("Name (label node) and version (label version) of this node. The value is always 1."),
            labels=["node", "version"],
        )
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
        """Return the publications by outcome. `delivered` is a difference, and the only one.

        A shard may be writing these numbers at this moment. The result must not decrease then,
        because Prometheus takes a decrease for a restart.
        """
        dropped = {outcome: self._total(regions, slot) for slot, outcome in _DROPPED.items()}
        delivered = self._total(regions, _RECEIVED) - sum(dropped.values())
        self._delivered = max(self._delivered, delivered)
        totals = {"delivered": self._delivered, **dropped, "unheard": self._total(regions, _UNHEARD)}
        text = (
            "Publications that shards received from the bus. The label outcome is delivered "
            "if the publication went to subscribers, malformed or too_large if it was dropped "
            "for that reason, and unheard if no connection was subscribed any more."
        )
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
        text = (
            "Bytes by which the process of a shard has grown, minus the bytes in its accounts "
            "for that. Below 0 the accounts hold too much."
        )
        family = GaugeMetricFamily("wsgate_ledger_drift_bytes", text, labels=["shard"])
        for number, region in enumerate(shards):
            family.add_metric([str(number)], region[self._index[_FOOTPRINT]] - region[self._index[_BOOKED]])
        return family

    def _ages(self, regions: Sequence[Sequence[int]]) -> Metric:
        """Return the age of each beat, because the time of a beat is on a clock that no scraper has."""
        text = (
            "Seconds since the process in the label last reported that it runs. More than 2 s "
            "means that the process hangs."
        )
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
    """Return cumulative buckets. Bucket n counts values below 2**n us that are in no earlier bucket."""
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
    shown.add("ended_head_refused")  # the refusals count each of these under its own name
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
    """Return the slots of connections that were refused, or of those that ended after they were opened."""
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
        "Connections that were refused before they were opened. The label reason is the "
        "name of the refusal. The reasons refused_silent and refused_undrained describe "
        "how some of them were refused, and count these a second time."
    )
    return _Counter("refusals", text, "reason", slots)


def _closes(layout: Layout) -> _Counter:
    slots = _ended(layout, is_refusal=False)
    return _Counter(
        "closes",
        ("Connections that ended after they were opened. The label reason is the name of the reason."),
        "reason",
        slots,
    )


def _gauges(layout: Layout) -> list[tuple[str, str, str, dict[str, str]]]:
    """Return name, help, second label, and the value of that label for each slot."""
    named = {row.slot: row for row in _GAUGES}
    states = {slot: slot.removeprefix("now_") for slot in layout.gauges if slot.startswith("now_")}
    states = {slot: value for slot, value in states.items() if slot not in named}
    kinds = {slot: slot.removeprefix("held_") for slot in layout.gauges if slot.startswith("held_")}
    rooms = {slot: slot.removeprefix("room_") for slot in layout.gauges if slot.startswith("room_")}
    binds = {slot: slot.removeprefix("binds_") for slot in layout.gauges if slot.startswith("binds_")}
    nodes = {row.slot for row in _NODE_GAUGES}
    rows: list[tuple[str, str, str, dict[str, str]]] = [
        (
            "headroom",
            "Number of connections that the shard can still accept as far as one resource is"
            " concerned. The label resource is connections, descriptors or memory.",
            "resource",
            rooms,
        ),
        (
            "headroom_binding",
            "Whether this resource limits the shard first: 1 for the one in the label that leaves"
            " the least room, 0 for the others.",
            "resource",
            binds,
        ),
        ("connections", "Connections of the shard by state of the connection.", "state", states),
        ("memory_bytes", "Bytes of memory in the accounts of the shard, by kind.", "kind", kinds),
    ]
    for slot in layout.gauges:
        if slot in named:
            rows.append((named[slot].name, named[slot].text, "", {slot: ""}))
        elif not any(slot in each for each in (states, kinds, rooms, binds, _NOT_SHOWN, nodes)):
            rows.append((slot, f"What a shard shows as {slot}.", "", {slot: ""}))
    return [row for row in rows if row[3]]
