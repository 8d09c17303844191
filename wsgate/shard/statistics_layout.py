"""Define the layout of a process's region of the statistics block: counters, gauges and histograms.

The reactor's numbers keep their names. Other families have a prefix: `ended_` for ended connections by
reason, `handshake_` for refused handshakes by name, `error_` for errors sent to clients, `command_` for
commands, `held_` for accounted bytes by kind, `now_` for connections by state.
"""

from typing import Final

from wsgate.auth import FAULTS
from wsgate.handshake import REFUSALS
from wsgate.reactor.metric_names import COUNTER_NAMES, KIND_NAMES, REASON_NAMES, STATE_NAMES
from wsgate.reasons import ERRORS
from wsgate.statistics import Layout

__all__ = ["COMMANDS", "DUTIES", "LAYOUT", "SHARD_REFUSALS"]

SHARD_REFUSALS: Final = {
    "address_connections": 429,
    "address_rate": 429,
    "bad_extensions": 400,
    "bad_query": 400,
    "draining": 503,
    "forbidden_origin": 403,
    "invalid_token": 401,
    "key_awaited": 503,
    "no_common_subprotocol": 400,
    "token_not_yet_valid": 503,
    "too_many_unauthenticated": 503,
    "unknown_path": 404,
    "unserved": 503,
}
"""Refusals of handshakes by a shard, by name with their HTTP status; others are in `handshake.REFUSALS`.

The keeper sends `unserved` to the connections in the queue of a shard that hangs.
"""

COMMANDS: Final = (
    "auth",
    "sub",
    "unsub",
    "pub",
    "send",
    "history",
    "presence",
    "presence_stats",
    "refresh",
    "ping",
)

DUTIES: Final = (
    "announce",
    "beat",
    "bus_probe",
    "clean",
    "fold",
    "notify",
    "reload",
    "runtime_directory",
    "steer",
    "tend",  # a round of the keeper as a whole: counts faults that no other duty has contained
    "unserved",
    "watch",
)
"""Duties of the keeper besides forking, reaping and signals; a failure is counted by the duty's name."""

LAYOUT: Final = Layout(
    counters=(
        *COUNTER_NAMES,
        *(f"ended_{name}" for name in REASON_NAMES[1:]),
        *(f"handshake_{name}" for name in (*REFUSALS, *SHARD_REFUSALS)),
        *(f"error_{name}" for name in ERRORS),
        *(f"command_{name}" for name in COMMANDS),
        "publications_received",  # from the bus, for a channel with subscribers here
        "publications_malformed",  # dropped: the envelope cannot be decoded
        "publications_too_large",  # dropped: over the channel's max_publish
        "publications_unheard",  # discarded: the channel has no confirmed subscriber here
        "publications_dropped",  # the oldest of the backlog, because more arrived than it may hold
        "gaps_slow",  # gap notices sent to connections: the shard could not keep publications
        "gaps_bus",  # the same: the bus was lost
        "gaps_too_large",  # the same: a publication was too large
        "publications_deflated",  # compressions; one serves many subscribers
        "deflate_bytes_in",
        "deflate_bytes_out",
        "subscriptions_behind",  # refused: the bus has not answered earlier SUBSCRIBE commands
        "subscriptions_bus_memory",  # refused: the node's own bus has no memory for one more channel
        "subscriptions_forbidden",  # refused or ended: the bus forbids the gateway the channel
        "publishes_sent",  # publishes of clients that the bus has taken
        "publishes_failed",  # publishes of clients that were answered with an error
        "publishes_crowded",  # failed publishes of clients that had too many commands waiting
        "publishes_over_rate",  # publishes over the client's rate; not counted as failed
        "publishes_over_bytes",  # publishes and messages over the client's byte budget; not counted as failed
        "tokens_verified",
        "tokens_cached",  # tokens found in the cache and not verified again
        "tokens_refused",
        *(f"token_fault_{name}" for name in FAULTS),  # refused tokens by fault
        "tokens_evicted",  # tokens removed from the cache because memory was short
        "unknown_key_ids_requested",  # requests to fetch the key set, for a kid that no key has
        "keys_fetched",  # key sets that were taken into use
        "revocations_forgotten",  # too many users: the earliest revocation became one for all users
        "revocations_unread",  # failed attempts to read revocations from the bus
        "controls_run",  # commands of backends on the control channel
        "controls_malformed",
        "config_reloads",  # configurations that were taken into use
        "bus_connects",
        "bus_failures",
        "probes_echoed",
        "events_appended",  # events that a stream has confirmed
        "events_repeated",  # events sent again, because it was not known whether the stream has them
        "events_dropped",  # events dropped because too many waited
        "events_trimmed",  # entries that the gateway removed from a stream of its own full bus
        "events_taken",  # messages of clients that were appended
        "events_refused",  # messages of clients that were answered with an error
        "addresses_unnamed",  # connections whose trusted proxy named no client address
        "users_unchecked",  # connections of users that were admitted because the bus did not answer
        "messages_of_reset_connections",  # complete messages of a connection that was reset in the same turn
        "user_deregistrations_lost",  # closed connections that the bus still counts after a long outage
        "rates_unchecked",  # leases of messages granted because the bus did not answer
        "admission_open",  # how often the admission state became this one
        "admission_refusing",
        "admission_shedding",
        "handovers_lost",  # connections handed over by another shard that no descriptor was free for
        "listen_overflows",  # full accept queues on the whole machine; of the keeper
        "listen_drops",
        "client_asked",  # GET /client.js on the client port
        "readiness_asked",  # GET /readyz on the client port
        "restarts",  # of child processes; of the keeper
        "log_lines_dropped",  # the reader of standard error was too slow; of the keeper and the shards
        *(f"duty_failed_{name}" for name in DUTIES),  # contained exceptions; of the keeper
    ),
    gauges=(
        "phase",  # statistics.readiness.PHASE_
        "pid",
        "beat_ms",  # monotonic time of the last heartbeat
        "room",  # how many more connections fit; the keeper distributes connections by it
        "admission_state",  # admission.State
        "connections_limit",
        "descriptors_limit",
        "room_connections",  # how many more connections each resource has room for
        "room_descriptors",
        "room_memory",
        "binds_connections",  # 1: this resource has the least room
        "binds_descriptors",
        "binds_memory",
        "growth_per_1000_s",  # growth of connections, mean of about the last 20 s; 0: no growth
        "full_in_s",  # when the shard is full at that growth; 2**31: never
        "memory_accounted_bytes",  # accounted memory of the process itself
        "memory_growth_bytes",  # resident memory that the process has gained since it started
        "memory_unaccounted_bytes",  # growth that no account explains; newcomers are refused, none is closed
        "listen_queue",  # connections that wait to be accepted
        "listen_queue_limit",
        "sockets_short",  # 1: the machine has no memory for more sockets; of the keeper
        "tcp_memory_bytes",  # memory of all TCP sockets of the machine; of the keeper
        "tcp_memory_limit_bytes",
        "bus_bytes",  # resident memory of the node's own bus; of the keeper
        "bus_limit_bytes",  # memory that the node's own bus may take; 0: there is none
        "bus_names_bytes",  # memory of a shard's channel names on the node's own bus, by the shard's count
        "bus_used_bytes",  # memory that the node's own bus uses, from its last answer to the shard
        "bus_buffers_bytes",  # the part of it that waits to be sent to clients of the bus
        "proportional_set_bytes",  # of a shard's process, which measures it once a minute
        "bus_up",
        "probe_due_ms",  # monotonic time by which the bus must have echoed the next probe
        "backlog_publications",  # received from the bus and not delivered yet
        "backlog_bytes",  # memory of these publications
        "bus_received_bytes",  # memory of received bytes and replies that the shard has not handled
        "subscriptions_pending",  # channels that the bus has not confirmed yet
        "token_cache_entries",
        "permission_sets",  # different permission sets of connections and cached tokens
        "permission_sets_bytes",
        "revoked_users",
        "key_set_missing",  # 1: a key set is to be fetched, and none has come yet
        "events_waiting",
        "events_waiting_bytes",
        "events_streams_refusing",
        "python_blocks",  # memory blocks that CPython's allocator has allocated
        *(f"now_{name}" for name in STATE_NAMES[1:]),
        "now_connections",
        "now_blocked",
        "now_pacing",
        "now_draining",
        "now_channels",
        "now_walks",
        "now_short",
        "now_shedding",
        *(f"held_{name}" for name in KIND_NAMES),
        "held_pool",
        "held_outside",
        "held_kernel_queued",
        "held_kernel_orphans",  # for closed sockets with data that their peers have not taken
        "held_connections",
        "memory_budget_bytes",  # limit of the sum of all `held_` gauges
    ),
    histograms=("loop_lag_us", "probe_us"),
)
"""The one layout of all regions of a node; the keeper uses the few numbers that apply to it."""
