"""The Python face of the compiled client; durations in seconds, latencies in ns."""

from typing import Literal

from typing_extensions import disjoint_base

from loadtest.engine.plans import ConnectPlan, EchoPlan, EngineSettings
from loadtest.engine.results import CloseResult, ConnectResult, EchoResult, ReconcileResult, Stats

__all__ = ["Engine"]

@disjoint_base
class Engine:
    """Tens of thousands of WebSocket connections driven by one thread on its own epoll set.

    Nothing happens between calls: pings are answered and messages read only while a method that runs the loop
    is inside (`connect`, `echo`, `close`, `hold`, `step`). Those release the GIL. Use from one thread at a
    time.
    """

    def __init__(self, settings: EngineSettings | None = None) -> None:
        """Raise the soft descriptor limit to the hard one and prepare the table.

        Raises:
            EngineLimitError: `max_connections` plus the reserve of 64 is more than the hard descriptor limit.
        """

    @property
    def settings(self) -> EngineSettings:
        """The settings in force, with max_connections and source_count as resolved."""

    def connect(self, plan: ConnectPlan) -> ConnectResult:
        """Run the loop until every connection of the plan is open, refused or failed.

        Connections that are open already are served meanwhile.

        Raises:
            EngineLimitError: The plan and the connections there are need more slots than the table has.
        """

    def echo(self, plan: EchoPlan) -> EchoResult:
        """Run the loop until the plan's messages are sent and answered, or the drain is over."""

    def hold(self, duration_s: float, *, until_messages: int = 0) -> int:
        """Run the loop only: answer pings, read, count.

        Args:
            duration_s: How long, >= 0.
            until_messages: Return early once `Stats.messages` has reached this; 0 never does.

        Returns:
            `Stats.messages` at the end.
        """

    def send(self, payload: bytes, *, first: int = 0, count: int = 0, is_text: bool = True) -> int:
        """Send one message on each of some open connections, now.

        ``{index}`` in it becomes the connection's index. For subscribe commands and the like. Does not read
        meanwhile; what a socket does not take is kept and sent by the next loop.

        Args:
            payload: The message; up to 65,536 bytes after substitution.
            first: Open connections passed over, in slot order.
            count: How many, 0 for all after `first`.
            is_text: Text frame, else binary.

        Returns:
            Connections it was sent on. O(table).
        """

    def close(
        self, mode: Literal["close", "reset", "fin"] = "close", *, count: int = 0, timeout_s: float = 5.0
    ) -> CloseResult:
        """End connections and run the loop until they are gone.

        Args:
            mode: "close" is the closing handshake with 1000; "reset" is SO_LINGER 0 (no TIME_WAIT); "fin"
                shuts the write side without a Close frame. Slow readers read again for "close" and "fin".
            count: How many, in slot order; 0 for all.
            timeout_s: What is not gone by then is reset and counted.
        """

    def reconcile(self, stream: int, *, first: int, last: int) -> ReconcileResult:
        """Compare what each open reader received of a stream with what was published.

        Args:
            stream: The stream's number as stamped.
            first: First sequence number published while all were subscribed.
            last: Last one, inclusive.

        Returns:
            Counts over all open connections that are not slow readers. O(connections + holes).
        """

    def stats(self, *, with_counts: bool = False) -> Stats:
        """Return every counter; `with_counts` adds the histogram buckets that merging needs."""

    def reset_stats(self) -> None:
        """Zero the counters and histograms; gauges, connections and sequence positions stay.

        A hole seen before is no longer counted as missing; `reconcile` still knows it, and what comes late
        counts as reordered.
        """

    def begin_connect(self, plan: ConnectPlan) -> None:
        """Start what `connect` does without running the loop; `step` runs it, `take_connect` ends it.

        Raises:
            EngineBusyError: A connect has begun and was not taken.
        """

    def begin_echo(self, plan: EchoPlan) -> None:
        """Start what `echo` does without running the loop (EngineBusyError if one is under way)."""

    def begin_close(
        self, mode: Literal["close", "reset", "fin"] = "close", *, count: int = 0, timeout_s: float = 5.0
    ) -> None:
        """Start what `close` does without running the loop (EngineBusyError if one is under way)."""

    def take_connect(self) -> ConnectResult | None:
        """Return the result once, when the connect that began is over; None before."""

    def take_echo(self) -> EchoResult | None:
        """Return the result once, when the echo that began is over; None before."""

    def take_close(self) -> CloseResult | None:
        """Return the result once, when the close that began is over; None before."""

    def step(self, timeout_s: float, *, wake_fd: int = -1) -> bool:
        """Run the loop until the timeout, until a job ends, or until `wake_fd` is readable.

        Returns:
            True when `wake_fd` is readable.
        """

    def shut(self) -> None:
        """Reset every connection and free everything; the engine is of no use afterwards. Idempotent."""

    def __enter__(self) -> Engine: ...
    def __exit__(self, *exc_info: object) -> None:
        """Call `shut`."""
