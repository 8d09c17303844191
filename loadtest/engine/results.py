"""What comes back from the engine; every shape survives JSON unchanged (keys are strings)."""

from __future__ import annotations

from typing import NotRequired, TypedDict

__all__ = ["CloseResult", "ConnectResult", "EchoResult", "HistogramDict", "ReconcileResult", "Stats"]


class HistogramDict(TypedDict):
    """One latency histogram, values in ns, each within 0.1 % (max, min and mean are exact).

    `counts` maps a bucket's number to its count and is there only when asked for; merging needs it.
    """

    count: int
    min: int
    mean: float
    p50: int
    p90: int
    p99: int
    p99_9: int
    max: int
    clamped: int
    counts: NotRequired[dict[str, int]]


class ConnectResult(TypedDict):
    """How one ConnectPlan ended: requested = opened + sum(refused) + sum(failed).

    `refused` counts by HTTP status other than 101, `failed` by name: an errno name (ECONNREFUSED), "timeout",
    "eof", "bad_head", "bad_accept", "bad_upgrade", "bad_subprotocol", "bad_extension", "no_slot" (full),
    "source_exhausted".
    """

    requested: int
    opened: int
    refused: dict[str, int]
    failed: dict[str, int]
    elapsed_s: float


class EchoResult(TypedDict):
    """How one EchoPlan ended.

    `unanswered` messages were sent and did not come back before the drain ended or their connection did;
    `unsent` were due (or asked for) and never left.
    """

    connections: int
    sent: int
    received: int
    unanswered: int
    unsent: int
    elapsed_s: float


class CloseResult(TypedDict):
    """How a close ended: `timed_out` connections had to be reset; `remaining` are still open."""

    closed: int
    timed_out: int
    remaining: int


class ReconcileResult(TypedDict):
    """What the open readers have of one stream, against what was published.

    `connections` = `complete` + `incomplete`; `silent` of the incomplete got nothing of the stream. `missing`
    counts messages over all of them, also lost heads and tails, which `Stats.missing` cannot know of.
    """

    connections: int
    complete: int
    incomplete: int
    silent: int
    missing: int


class Stats(TypedDict):
    """Everything counted since the start or the last reset; gauges (first block) are never reset.

    `counted` has every beginning of `EngineSettings.counted`. Sequence counters: `missing` messages lie in
    `gaps` runs of sequence numbers that were jumped over and have not come since; one that comes late leaves
    `missing` and counts as `reordered`; one that had come already counts as `duplicates`. `misrouted` stamps
    carry the echo stream of another connection; an answer that no message was sent for is one too.
    """

    open: int
    connecting: int
    closing: int
    slow: int
    echo_in_flight: int
    slots_used_most: int
    memory_bytes: dict[str, int]

    connects_attempted: int
    connects_opened: int
    connects_refused: dict[str, int]
    connects_failed: dict[str, int]

    bytes_received: int
    bytes_sent: int
    frames_received: int
    messages: int
    message_bytes: int
    stamped: int
    text_messages: int
    binary_messages: int
    fragmented_messages: int
    pings_answered: int
    pongs_received: int
    pongs_dropped: int
    messages_sent: int
    echoes_sent: int
    echoes_received: int
    counted: dict[str, int]

    gaps: int
    missing: int
    duplicates: int
    reordered: int
    misrouted: int
    gaps_forgotten: int

    closes_received: dict[str, int]
    closes_sent: int
    close_timeouts: int
    ended_clean: int
    disconnects: dict[str, int]
    unexpected_disconnects: int
    slow_server_ended: int
    protocol_errors: dict[str, int]

    receive_calls: int
    send_calls: int
    send_blocked: int
    wakes: int
    cpu_s: float
    loop_s: float

    connect_latency: HistogramDict
    connect_lag: HistogramDict
    echo_latency: HistogramDict
    delivery_latency: HistogramDict
    send_lag: HistogramDict
