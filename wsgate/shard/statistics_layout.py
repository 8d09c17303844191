"""What a shard counts: the layout of its region of the statistics block.

The reactor's own numbers keep their names. Before the others stands what they are about:
`handshake_` a refusal over HTTP by name, `error_` an error a command was answered with, `command_` a
command by op, `held_` bytes by kind, `now_` connections by state.
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
"""Handshakes refused beside those in `handshake.REFUSALS`, with their HTTP status.

`unserved` is the keeper's answer in the queue of a shard that hangs.
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
    "tend",  # a round of the keeper as a whole: nothing but an unforeseen fault
    "unserved",
    "watch",
)
"""What the keeper does beside forking, reaping and signals; a failure of one is counted by its name."""

LAYOUT: Final = Layout(
    counters=(
        *COUNTER_NAMES,
        *(f"ended_{name}" for name in REASON_NAMES[1:]),
        *(f"handshake_{name}" for name in (*REFUSALS, *SHARD_REFUSALS)),
        *(f"error_{name}" for name in ERRORS),
        *(f"command_{name}" for name in COMMANDS),
        "publications_received",  # came over the bus for a channel
        "publications_malformed",  # broken envelope: dropped
        "publications_too_large",  # over the channel's max_publish: dropped
        "publications_unheard",  # nobody subscribed any more
        "publications_dropped",  # oldest of the backlog: more arrived than it holds
        "gaps_slow",  # notices to connections: publications that the shard could not keep
        "gaps_bus",  # the bus was lost
        "gaps_too_large",  # a publication was too large
        "publications_deflated",  # compressions, not subscribers
        "deflate_bytes_in",
        "deflate_bytes_out",
        "subscriptions_behind",  # refused: the bus has not answered what was asked before
        "subscriptions_bus_memory",  # refused: the node's own bus has no memory for one more name
        "subscriptions_forbidden",  # refused or taken: the bus does not let the gateway hear the channel
        "publishes_sent",  # by clients, and the bus has them
        "publishes_failed",  # by clients, answered with an error
        "publishes_crowded",  # of those failed: the client had too much under way
        "publishes_over_rate",  # by clients, answered with an error and not counted as failed
        "publishes_over_bytes",  # publishes and messages of clients over their budget, answered likewise
        "tokens_verified",
        "tokens_cached",  # seen before, not verified again
        "tokens_refused",
        *(f"token_fault_{name}" for name in FAULTS),  # the same ones, by what was wrong
        "tokens_evicted",  # cached ones, because memory was short
        "unknown_key_ids_requested",  # kids that no key has, asked of whoever fetches the key set
        "keys_fetched",  # key sets taken over
        "revocations_forgotten",  # too many users: from then on one time counts for all of them
        "revocations_unread",  # readings of the bus that failed
        "controls_run",  # commands of backends on the control channel
        "controls_malformed",
        "config_reloads",  # configurations taken over
        "bus_connects",
        "bus_failures",
        "probes_echoed",
        "events_appended",  # to a stream, and answered
        "events_repeated",  # sent once more: it was not known whether the stream has them
        "events_dropped",  # too many waited
        "events_trimmed",  # by us, of a stream: the node's own bus was full
        "events_taken",  # of those appended: messages of clients
        "events_refused",  # messages of clients, answered with an error
        "addresses_unnamed",  # a listed proxy did not say for whom it speaks
        "users_unchecked",  # connections of users let in because the bus did not answer
        "messages_of_reset_connections",  # received whole from a connection that was reset in the same turn
        "user_deregistrations_lost",  # gone, and still counted: the bus was away too long
        "rates_unchecked",  # leases of messages, likewise
        "admission_open",  # times the state became this one
        "admission_refusing",
        "admission_shedding",
        "handovers_lost",  # by a sibling, and there was no descriptor to take it with
        "listen_overflows",  # accept queues that were full, on the whole machine; the keeper's
        "listen_drops",
        "client_asked",  # GET /client.js on the client port
        "readiness_asked",  # GET /readyz on the client port
        "restarts",  # of a child; the keeper's
        "log_lines_dropped",  # the reader of standard error was too slow; the keeper's and the shards'
        *(f"duty_failed_{name}" for name in DUTIES),  # exceptions contained; the keeper's
    ),
    gauges=(
        "phase",  # statistics.readiness.PHASE_
        "pid",
        "beat_ms",  # monotonic clock, when it last beat
        "room",  # how many more connections fit; the weight of its listener
        "admission_state",  # admission.State
        "connections_limit",
        "descriptors_limit",
        "room_connections",  # how many more fit as far as each resource goes
        "room_descriptors",
        "room_memory",
        "binds_connections",  # 1: it is the one that goes least far
        "binds_descriptors",
        "binds_memory",
        "growth_per_1000_s",  # connections, mean of about the last 20 s; 0: they do not grow
        "full_in_s",  # at that growth; 2**31: never
        "memory_accounted_bytes",  # on the books for memory of the process itself
        "memory_growth_bytes",  # what the process has really grown by since it started
        "memory_unaccounted_bytes",  # of that on no account: newcomers are refused for it, nobody is cut
        "listen_queue",  # connections that wait to be accepted
        "listen_queue_limit",
        "sockets_short",  # 1: the machine has no memory for more sockets; the keeper's
        "tcp_memory_bytes",  # of all sockets of the machine; the keeper's
        "tcp_memory_limit_bytes",
        "bus_bytes",  # resident, of the node's own bus; the keeper's
        "bus_limit_bytes",  # what that may hold; 0: the node has none
        "bus_names_bytes",  # what the channels of a shard take there, by the shard's own count
        "bus_used_bytes",  # all that it uses, as it told a shard last
        "bus_buffers_bytes",  # of that, what waits for shards
        "proportional_set_bytes",  # of a shard's process, weighed once a minute by itself
        "bus_up",
        "probe_due_ms",  # monotonic clock, when the bus must have echoed the next probe
        "backlog_publications",  # received from the bus and not handed on
        "backlog_bytes",  # held for them
        "subscriptions_pending",  # channels the bus has not confirmed yet
        "token_cache_entries",
        "permission_sets",  # different ones, of connections and cached tokens
        "permission_sets_bytes",
        "revoked_users",
        "key_set_missing",  # 1: a key set is to be fetched and none was yet
        "events_waiting",
        "events_waiting_bytes",
        "events_streams_refusing",
        "python_blocks",  # memory blocks CPython's allocator has given out
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
        "held_kernel_orphans",  # of sockets closed with data that their peers have not taken
        "held_connections",
        "memory_budget_bytes",  # what all of held_ together may come to
    ),
    histograms=("loop_lag_us", "probe_us"),
)
"""One layout for every region of a node; the keeper uses the few that fit it."""
