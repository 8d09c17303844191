"""The results of the engine. JSON can represent every shape without loss (keys are strings)."""

from __future__ import annotations

from typing import NotRequired, TypedDict

__all__ = ["CloseResult", "ConnectResult", "EchoResult", "HistogramDict", "ReconcileResult", "Stats"]


class HistogramDict(TypedDict):
    """A summary of one latency histogram in ns, each value within 0.1 % (max, min and mean are exact).

    `counts` maps the number of a bucket to its count. It is only there on request, and merging needs it.
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
    """The result of one ConnectPlan: requested = opened + sum(refused) + sum(failed).

    `refused` counts by HTTP status other than 101, `failed` by name: an errno name (ECONNREFUSED), "timeout",
    "eof", "bad_head", "bad_accept", "bad_upgrade", "bad_subprotocol", "bad_extension", "no_slot" (the table
    is full), "source_exhausted".
    """

    requested: int
    opened: int
    refused: dict[str, int]
    failed: dict[str, int]
    elapsed_s: float


class EchoResult(TypedDict):
    """The result of one EchoPlan: messages sent, answered and unanswered.

    `unanswered` messages were sent and had no answer before the drain or their connection ended; `unsent`
    messages were due (or requested) and never sent.
    """

    connections: int
    sent: int
    received: int
    unanswered: int
    unsent: int
    elapsed_s: float


class CloseResult(TypedDict):
    """The result of closing: `timed_out` connections had to be reset; `remaining` ones are still open."""

    closed: int
    timed_out: int
    remaining: int


class ReconcileResult(TypedDict):
    """How many messages of one stream the open readers have received and how many they miss.

    `connections` = `complete` + `incomplete`; `silent` of the incomplete ones received nothing of the stream.
    `missing` counts messages over all of them, also at the beginning and the end of the stream, which
    `Stats.missing` cannot know.
    """

    connections: int
    complete: int
    incomplete: int
    silent: int
    missing: int


class Stats(TypedDict):
    """All counters since the start or the last reset; gauges (the first block) are never reset.

    `counted` has every text of `EngineSettings.counted`. Counters of sequences: `missing` messages lie in
    `gaps`, runs of sequence numbers that were skipped and have not arrived since. A message that arrives late
    is subtracted from `missing` and counted as `reordered`; one that arrives again is counted as
    `duplicates`. `misrouted` messages have the echo stamp of another connection, or answer no message that
    was sent.
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
