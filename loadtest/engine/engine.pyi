"""The Python interface of the compiled client. Durations are in seconds, latencies in ns."""

from typing import Literal

from typing_extensions import disjoint_base

from loadtest.engine.plans import ConnectPlan, EchoPlan, EngineSettings
from loadtest.engine.results import CloseResult, ConnectResult, EchoResult, ReconcileResult, Stats

__all__ = ["Engine"]

@disjoint_base
class Engine:
    """Tens of thousands of WebSocket connections, driven by one thread on its own epoll set.

    The engine works only during a call that runs the loop (`connect`, `echo`, `close`, `hold`, `step`): only
    then it answers pings and reads messages. These calls release the GIL. Use an engine from one thread at a
    time.
    """

    def __init__(self, settings: EngineSettings | None = None) -> None:
        """Raise the soft descriptor limit to the hard one, and prepare the table.

        Raises:
            EngineLimitError: `max_connections` plus the reserve of 64 exceeds the hard descriptor limit.
        """

    @property
    def settings(self) -> EngineSettings:
        """The settings in use, with the values of max_connections and source_count that were filled in."""

    def connect(self, plan: ConnectPlan) -> ConnectResult:
        """Run the loop until every connection of the plan is open, refused or failed.

        Connections that are open already are served meanwhile.

        Raises:
            EngineLimitError: The plan and the existing connections need more slots than the table has.
        """

    def echo(self, plan: EchoPlan) -> EchoResult:
        """Run the loop until the plan's messages are sent and answered, or the drain has ended."""

    def hold(self, duration_s: float, *, until_messages: int = 0) -> int:
        """Run the loop without a job: answer pings, read and count messages.

        Args:
            duration_s: How many seconds, >= 0.
            until_messages: Return as soon as `Stats.messages` has reached this number; 0: never.

        Returns:
            `Stats.messages` at the end.
        """

    def send(self, payload: bytes, *, first: int = 0, count: int = 0, is_text: bool = True) -> int:
        """Send one message on each of some open connections, at once.

        ``{index}`` in the payload is replaced by the connection's index. Used for subscribe commands, for
        example. Does not read meanwhile; bytes that a socket does not accept are sent when the loop runs
        next.

        Args:
            payload: The message; up to 65,536 bytes after replacement.
            first: How many open connections to skip, in slot order.
            count: On how many to send; 0: on all after `first`.
            is_text: Send a text frame, otherwise a binary one.

        Returns:
            The number of connections on which it was sent. O(table).
        """

    def close(
        self, mode: Literal["close", "reset", "fin"] = "close", *, count: int = 0, timeout_s: float = 5.0
    ) -> CloseResult:
        """End connections, and run the loop until they have ended.

        Args:
            mode: "close" is the closing handshake with 1000; "reset" is SO_LINGER 0 (no TIME_WAIT); "fin"
                closes the sending side without a Close frame. Slow readers read again for "close" and "fin".
            count: How many, in slot order; 0: all.
            timeout_s: Connections that have not ended after this time are reset and counted.
        """

    def reconcile(self, stream: int, *, first: int, last: int) -> ReconcileResult:
        """Compare the messages of a stream that each open reader has received with the published ones.

        Args:
            stream: The number of the stream in the stamps.
            first: The first sequence number that was published while all were subscribed.
            last: The last one, inclusive.

        Returns:
            Counts over all open connections that are not slow readers. O(connections + holes).
        """

    def stats(self, *, with_counts: bool = False) -> Stats:
        """Return all counters; `with_counts` adds the histogram buckets, which merging needs."""

    def reset_stats(self) -> None:
        """Set the counters and histograms to zero; gauges, connections and sequence positions stay.

        Messages that are missing now are no longer counted as missing; `reconcile` still knows them, and
        those that arrive late are counted as reordered.
        """

    def begin_connect(self, plan: ConnectPlan) -> None:
        """Start a connect job without running the loop; `step` runs it, `take_connect` ends it.

        Raises:
            EngineBusyError: A connect job has begun and was not taken.
        """

    def begin_echo(self, plan: EchoPlan) -> None:
        """Start an echo job without running the loop; raise EngineBusyError if one exists."""

    def begin_close(
        self, mode: Literal["close", "reset", "fin"] = "close", *, count: int = 0, timeout_s: float = 5.0
    ) -> None:
        """Start a close job without running the loop; raise EngineBusyError if one exists."""

    def take_connect(self) -> ConnectResult | None:
        """Return the result of the connect job once, when it has ended; None before."""

    def take_echo(self) -> EchoResult | None:
        """Return the result of the echo job once, when it has ended; None before."""

    def take_close(self) -> CloseResult | None:
        """Return the result of the close job once, when it has ended; None before."""

    def step(self, timeout_s: float, *, wake_fd: int = -1) -> bool:
        """Run the loop until the timeout, until a job ends, or until `wake_fd` is readable.

        Returns:
            True if `wake_fd` is readable.
        """

    def shut(self) -> None:
        """Reset every connection and free all memory; the engine cannot be used after that.

        May be called twice.
        """

    def __enter__(self) -> Engine: ...
    def __exit__(self, *exc_info: object) -> None:
        """Call `shut`, which resets every connection."""
