"""The settings and plans of the engine: frozen, and checked when they are created.

The JSON commands of ``python -m loadtest.engine`` have the same field names.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.engine.stamps import STAMP_BYTES

__all__ = ["COUNTED_MOST", "ConnectPlan", "EchoPlan", "EngineSettings"]

COUNTED_MOST = 8  # the same number as in core.pxd


def _require(is_met: bool, message: str) -> None:
    if not is_met:
        raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The settings of one engine, which never change.

    Attributes:
        max_connections: The number of table slots, >= 1; 0: the hard descriptor limit less a reserve of 64.
        first_source: The first source address inside 127.0.0.0/8; the others follow one by one. Give every
            engine process its own range (127.1.0.1, 127.2.0.1, ...). Not used if the server is not in
            127.0.0.0/8.
        source_count: The number of source addresses that are used in turn; 0: one per 14,000 slots.
        read_bytes: The size of the one shared receive buffer, 4 KiB to 16 MiB.
        stamp_window_bytes: The first bytes of a message in which a stamp is searched, 48 to 65,536. A message
            that has arrived in part takes at most this much memory; bytes beyond it are counted and dropped.
        first_sequence: The sequence number with which every stream starts; None: the first number that a
            connection receives, so that a late subscription is no loss.
        close_timeout_s: How long a connection may take to end after a Close was sent or answered, > 0.
        counted: At most 8 texts of 1 to 64 ASCII characters. Messages without a stamp that begin with such a
            text are counted in `Stats.counted`.
    """

    max_connections: int = 0
    first_source: str = "127.1.0.1"
    source_count: int = 0
    read_bytes: int = 65_536
    stamp_window_bytes: int = 512
    first_sequence: int | None = None
    close_timeout_s: float = 5.0
    counted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for an engine setting outside the ranges given above."""
        _require(0 <= self.max_connections <= 1_000_000, "max_connections must be 0 to 1,000,000")
        _require(0 <= self.source_count <= 65_536, "source_count must be 0 to 65,536")
        _require(4_096 <= self.read_bytes <= 16_777_216, "read_bytes must be 4 KiB to 16 MiB")
        _require(STAMP_BYTES <= self.stamp_window_bytes <= 65_536, "stamp_window_bytes must be 48 to 65,536")
        _require(
            self.first_sequence is None or 0 <= self.first_sequence < 2**63, "first_sequence must be >= 0"
        )
        _require(self.close_timeout_s > 0, "close_timeout_s must be > 0")
        _require(len(self.counted) <= COUNTED_MOST, f"at most {COUNTED_MOST} beginnings are counted")
        for text in self.counted:
            _require(text.isascii() and 1 <= len(text) <= 64, "a beginning has 1 to 64 ASCII characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectPlan:
    """A request to open `count` connections to one server.

    Attributes:
        count: The number of connections to attempt, >= 1.
        host: The IPv4 address of the server (names are not resolved).
        port: The TCP port, 1 to 65,535.
        path: The request target. ``{index}`` is replaced by the number of the attempt in this plan plus
            `first_index`, ``{token}`` by the token of that attempt.
        headers: Further request headers (name, value), with the same two placeholders.
            Sec-WebSocket-Extensions is refused, because the engine has none.
        tokens: Used in turn for ``{token}``; kept only while connecting.
        first_index: The value of ``{index}`` for the first attempt.
        rate_per_s: Attempts per second at fixed times (open loop, latency from the intended start); 0: as
            fast as `window` allows.
        window: How many handshakes are under way at once if `rate_per_s` is 0, >= 1.
        timeout_s: The time limit from SYN to the end of the response head, > 0.
        receive_buffer_bytes: SO_RCVBUF, set before connecting; 0 leaves the kernel's default.
        slow_share: The share of the attempts, 0 to 1, spread evenly, that become slow readers once they are
            open.
        slow_bytes_per_s: How many bytes a slow reader reads per second; 0: none, except those that arrived in
            one read with the response head. A ping that is not read is not answered.
        is_overcommitted: Allow more attempts than there are free slots, to measure refusals in large numbers;
            an attempt without a slot fails as "no_slot".
        is_refusal_reset: End refused connections with a reset instead of a FIN (leaves no TIME_WAIT).
    """

    count: int
    host: str
    port: int
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    tokens: tuple[str, ...] = ()
    first_index: int = 0
    rate_per_s: float = 0.0
    window: int = 256
    timeout_s: float = 10.0
    receive_buffer_bytes: int = 0
    slow_share: float = 0.0
    slow_bytes_per_s: int = 0
    is_refusal_reset: bool = False
    is_overcommitted: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for a field of a connect plan outside the ranges given above."""
        _require(self.count >= 1, "count must be >= 1")
        _require(1 <= self.port <= 65_535, "port must be 1 to 65,535")
        _require(self.path.startswith("/") and self.path.isascii(), "path must be ASCII and start with /")
        _require(0 <= self.first_index < 2**31, "first_index must be 0 to 2**31-1")
        _require(self.rate_per_s >= 0, "rate_per_s must be >= 0")
        _require(self.window >= 1, "window must be >= 1")
        _require(self.timeout_s > 0, "timeout_s must be > 0")
        _require(self.receive_buffer_bytes >= 0, "receive_buffer_bytes must be >= 0")
        _require(0 <= self.slow_share <= 1, "slow_share must be 0 to 1")
        _require(0 <= self.slow_bytes_per_s < 2**31, "slow_bytes_per_s must be 0 to 2**31-1")
        for text in (self.path, *(part for header in self.headers for part in header), *self.tokens):
            _require("\r" not in text and "\n" not in text, "no CR or LF in the request")
        for name, _ in self.headers:
            _require(name.lower() != "sec-websocket-extensions", "the engine offers no extensions")


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoPlan:
    """A request to send messages and to wait for the answer to each on the same connection, by its stamp.

    With `rate_per_s` the plan is an open loop: message k of all is due at start + k/rate, and connections
    take turns. A message that has to wait (for its connection or for the engine) keeps its due time, so that
    the wait is part of its latency.

    Attributes:
        connections: The number of open connections that take part (never slow readers); 0: all.
        messages_per_connection: Stop after so many messages on each; 0: no such end.
        duration_s: Stop sending after so many seconds; 0: no such end. At least one of the two ends is
            required.
        payload_bytes: The size of the stamp with its padding, 48 to 1,048,576.
        message: The message, ASCII: ``{stamp}`` is replaced by the stamp, ``{index}`` by the connection's
            index. By default the stamp alone.
        answer: For a message without ``{stamp}``, in a plan with `rate_per_s`: the beginning of its answer,
            ASCII. The n-th message without a stamp that starts so answers the n-th message that was sent on
            that connection, so no earlier answer may be under way.
        in_flight: How many messages of one connection may be without an answer; 0: no limit, which needs
            `rate_per_s`.
        rate_per_s: Messages per second over all connections, at fixed times; 0: send as soon as in_flight
            allows.
        drain_s: How long to wait for answers after the last send, >= 0. In a plan with neither rate nor
            duration: how long to wait without any answer.
        is_text: Send text frames instead of binary ones.
    """

    connections: int = 0
    messages_per_connection: int = 0
    duration_s: float = 0.0
    payload_bytes: int = 128
    in_flight: int = 1
    rate_per_s: float = 0.0
    drain_s: float = 2.0
    is_text: bool = False
    message: str = "{stamp}"
    answer: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for a field of an echo plan outside the ranges given above."""
        _require(self.connections >= 0, "connections must be >= 0")
        _require(self.messages_per_connection >= 0, "messages_per_connection must be >= 0")
        _require(self.duration_s >= 0 and self.drain_s >= 0, "durations must be >= 0")
        _require(self.messages_per_connection > 0 or self.duration_s > 0, "the plan needs an end")
        _require(STAMP_BYTES <= self.payload_bytes <= 1_048_576, "payload_bytes must be 48 to 1,048,576")
        _require(0 <= self.in_flight < 2**31, "in_flight must be >= 0")
        _require(self.rate_per_s >= 0, "rate_per_s must be >= 0")
        _require(self.in_flight > 0 or self.rate_per_s > 0, "in_flight 0 needs a rate")
        _require(self.message.isascii() and self.answer.isascii(), "message and answer must be ASCII")
        _require(self.message.count("{stamp}") <= 1, "a message carries one stamp")
        is_stamped = "{stamp}" in self.message
        _require(is_stamped != bool(self.answer), "the plan needs either a stamp or an answer")
        _require(not self.answer or self.rate_per_s > 0, "an answer without a stamp needs a rate")
