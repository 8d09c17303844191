"""The names of the reactor's numbers, in the order of the enumerations in structs.pxd."""

from typing import Final

__all__ = ["COUNTER_NAMES", "KIND_NAMES", "REASON_NAMES", "STATE_NAMES"]

STATE_NAMES: Final = ("free", "head", "deciding", "open", "failing", "closing", "lingering", "gone")
KIND_NAMES: Final = ("table", "frame", "outbox", "partial", "channel", "subscription")
REASON_NAMES: Final = (
    "none", "refused_descriptors", "refused_connections", "refused_handshakes", "refused_rate",
    "refused_partial_bytes", "head_timeout", "head_too_large", "head_refused", "upgrade_timeout",
    "peer_closed", "peer_gone", "peer_reset", "protocol_error", "invalid_utf8", "message_too_big",
    "too_many_fragments", "control_rate", "message_timeout", "message_rate", "byte_rate",
    "heartbeat_timeout", "idle_timeout", "deadline", "slow_consumer", "outbox_age", "write_stall",
    "application", "partial_bytes", "out_of_memory", "internal", "shutdown",
)
COUNTER_NAMES: Final = (
    "accepted", "refused", "refused_silent", "refused_undrained", "accept_exhausted", "accept_failed",
    "opens", "upgrades", "messages_in", "message_bytes_in", "frames_in", "bytes_in", "receives",
    "bytes_out", "sends", "frames_out", "publications", "deliveries", "sends_blocked", "pings_in",
    "pongs_in", "pings_out", "pongs_out", "pongs_dropped", "dropped_policy", "dropped_closing", "gaps",
    "stale", "stalls_forgiven", "lingers_skipped", "pool_hits", "pool_misses", "polls", "timers",
)
