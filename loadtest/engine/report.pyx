"""Converts the counters to Python values, in the shapes of results.py."""

from errno import errorcode as _errorcode

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from loadtest.engine.core cimport (
    CLOSE_CODES,
    ERRNOS,
    FAILURES,
    GONE_NO_ANSWER,
    STATE_CLOSING,
    STATE_HANDSHAKE,
    STATE_OPEN,
    STATUSES,
    conn_t,
    counters_t,
    outcome_t,
    partial_t,
)
from loadtest.engine.frames cimport FAULTS
from loadtest.engine.histogram cimport HIST_BUCKETS, hist_reset, hist_to_dict
from loadtest.engine.sequences cimport hole_t, reset_ledger, tracker_t

# The same order as failure_t and fault_t.
_FAILURES = (
    "none",
    "timeout",
    "eof",
    "bad_head",
    "bad_accept",
    "bad_upgrade",
    "bad_subprotocol",
    "bad_extension",
    "no_slot",
    "source_exhausted",
)
_FAULTS = (
    "none",
    "masked",
    "rsv",
    "opcode",
    "control_fragmented",
    "control_length",
    "length",
    "continuation",
    "interleaved",
    "close_payload",
)
_ERRNOS = tuple(_errorcode.get(i, str(i)) for i in range(ERRNOS))
_DISCONNECTS = ("eof", *_ERRNOS[1:GONE_NO_ANSWER], "no_close_answer")
assert len(_FAILURES) == FAILURES and len(_FAULTS) == FAULTS


cdef dict _named(const uint32_t* counts, tuple names):
    return {names[i]: counts[i] for i in range(len(names)) if counts[i]}


cdef dict _failed(outcome_t* outcome):
    cdef dict failed = _named(outcome.failures, _FAILURES)
    failed.update(_named(outcome.errnos, _ERRNOS))
    return failed


cdef dict _refused(outcome_t* outcome):
    return {str(i): outcome.refused[i] for i in range(STATUSES) if outcome.refused[i]}


cdef dict connect_result(core_t* core):
    """Return the results.ConnectResult of the job that has ended."""
    return {
        "requested": core.connect.count,
        "opened": core.connect.outcome.opened,
        "refused": _refused(&core.connect.outcome),
        "failed": _failed(&core.connect.outcome),
        "elapsed_s": (core.connect.end_ns - core.connect.start_ns) / 1e9,
    }


cdef dict echo_result(core_t* core):
    """Return the results.EchoResult of the job that has ended."""
    return {
        "connections": core.echo.member_count,
        "sent": core.echo.sent,
        "received": core.echo.received,
        "unanswered": core.echo.sent - core.echo.received,
        "unsent": core.echo.unsent,
        "elapsed_s": (core.echo.end_ns - core.echo.start_ns) / 1e9,
    }


cdef dict close_result(core_t* core):
    """Return the results.CloseResult of the job that has ended."""
    return {
        "closed": core.closing.closed - core.closing.timed_out,
        "timed_out": core.closing.timed_out,
        "remaining": core.used,
    }


cdef dict _gauges(core_t* core):
    cdef uint64_t in_flight = 0
    cdef size_t histograms = 5 * HIST_BUCKETS * sizeof(uint64_t)
    if core.echo.members != NULL:
        in_flight = core.echo.sent - core.echo.received - core.echo.lost
    return {
        "open": core.gauges[<int>STATE_OPEN],
        "connecting": core.gauges[<int>STATE_HANDSHAKE],
        "closing": core.gauges[<int>STATE_CLOSING],
        "slow": core.slow,
        "echo_in_flight": in_flight,
        "slots_used_most": core.most_used,
        "memory_bytes": {
            "table": core.fresh * sizeof(conn_t),
            "trackers": core.ledger.trackers * sizeof(tracker_t),
            "holes": core.ledger.holes * sizeof(hole_t),
            "partials": core.partials * (sizeof(partial_t) + core.stamp_window),
            "blocks": core.block_bytes,
            "fixed": sizeof(core_t) + core.read_bytes + core.scratch_bytes + histograms,
        },
    }


cdef dict _named_counts(counters_t* counters):
    cdef dict gone = {}
    cdef dict faults = {}
    cdef dict closes = {}
    cdef uint64_t unexpected = 0
    cdef int i
    for i in range(ERRNOS):
        if counters.disconnects[i]:
            gone[_DISCONNECTS[i]] = counters.disconnects[i]
            unexpected += counters.disconnects[i] if i != GONE_NO_ANSWER else 0
    for i in range(FAULTS):
        if counters.faults[i]:
            faults[_FAULTS[i]] = counters.faults[i]
    for i in range(CLOSE_CODES):
        if counters.closes_received[i]:
            closes[str(i)] = counters.closes_received[i]
    return {
        "closes_received": closes,
        "disconnects": gone,
        "unexpected_disconnects": unexpected,
        "protocol_errors": faults,
    }


cdef dict _counts(counters_t* counters):
    return {
        "bytes_received": counters.bytes_received,
        "bytes_sent": counters.bytes_sent,
        "frames_received": counters.frames_received,
        "messages": counters.messages,
        "message_bytes": counters.message_bytes,
        "stamped": counters.stamped,
        "text_messages": counters.text_messages,
        "binary_messages": counters.messages - counters.text_messages,
        "fragmented_messages": counters.fragmented_messages,
        "pings_answered": counters.pings_answered,
        "pongs_received": counters.pongs_received,
        "pongs_dropped": counters.pongs_dropped,
        "messages_sent": counters.messages_sent,
        "echoes_sent": counters.echoes_sent,
        "echoes_received": counters.echoes_received,
        "misrouted": counters.misrouted,
        "closes_sent": counters.closes_sent,
        "close_timeouts": counters.close_timeouts,
        "ended_clean": counters.ended_clean,
        "slow_server_ended": counters.slow_server_ended,
        "receive_calls": counters.receive_calls,
        "send_calls": counters.send_calls,
        "send_blocked": counters.send_blocked,
        "wakes": counters.wakes,
    }


cdef dict stats(core_t* core, bint with_counts):
    """Return all gauges, counters and histograms as results.Stats."""
    cdef dict all_counts = _gauges(core)
    all_counts.update(_counts(&core.counters))
    all_counts.update(_named_counts(&core.counters))
    all_counts.update(
        connects_attempted=core.totals.attempted,
        connects_opened=core.totals.opened,
        connects_refused=_refused(&core.totals),
        connects_failed=_failed(&core.totals),
        gaps=core.ledger.gaps,
        missing=core.ledger.missing,
        duplicates=core.ledger.duplicates,
        reordered=core.ledger.reordered,
        gaps_forgotten=core.ledger.gaps_forgotten,
        cpu_s=core.cpu_ns / 1e9,
        loop_s=core.loop_ns / 1e9,
        connect_latency=hist_to_dict(&core.connect_latency, with_counts),
        connect_lag=hist_to_dict(&core.connect_lag, with_counts),
        echo_latency=hist_to_dict(&core.echo_latency, with_counts),
        delivery_latency=hist_to_dict(&core.delivery_latency, with_counts),
        send_lag=hist_to_dict(&core.send_lag, with_counts),
    )
    return all_counts


cdef void reset_counters(core_t* core) noexcept nogil:
    """Set all counters to zero; jobs, gauges and positions stay."""
    memset(&core.counters, 0, sizeof(core.counters))
    memset(&core.totals, 0, sizeof(core.totals))
    reset_ledger(&core.ledger)
    hist_reset(&core.connect_latency)
    hist_reset(&core.connect_lag)
    hist_reset(&core.echo_latency)
    hist_reset(&core.delivery_latency)
    hist_reset(&core.send_lag)
    core.cpu_ns = 0
    core.loop_ns = 0
