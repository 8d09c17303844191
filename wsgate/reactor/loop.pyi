"""The poll loop: one `Reactor` holds all client sockets of a shard."""

from collections.abc import Callable, Sequence
from typing import Any, Final, final

from wsgate.reactor.addresses import SharedAddresses
from wsgate.reactor.event_kinds import Event
from wsgate.reactor.settings import GateLimits, Settings

__all__ = ["ENUMERATIONS", "Reactor"]

ENUMERATIONS: Final[dict[str, int]]

@final
class Reactor:
    """All client sockets of one shard behind one descriptor.

    Not thread-safe: one thread calls it, and no callback may call back into it. Time is passed in as
    milliseconds of one monotonic clock. `conn` is an opaque handle (slot and generation), never 0; a
    handle whose connection is gone is refused by every call, for ever, and counted as `stale`.

    The driving loop, for any event loop::

        def on_readable():
            for kind, conn, value in reactor.poll(now_ms()):
                ...
            if reactor.flush(now_ms()) or reactor.more:
                loop.call_soon(on_readable)

        loop.add_reader(reactor.fileno(), on_readable)
        # and every 250 ms: reactor.tick(now_ms()), then on_readable()

    After calls from elsewhere (a publication from the bus) call `flush` as above.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        now_ms: int,
        gap_encoder: Callable[[int, bytes, int, int], bytes] | None = None,
        hash_key: bytes | None = None,
        addresses: SharedAddresses | None = None,
        shard: int = 0,
    ) -> None:
        """Make an empty reactor with its own epoll set.

        Args:
            settings: Limits and deadlines for all connections; defaults to `Settings()`.
            now_ms: The caller's monotonic clock; no later call may pass less.
            gap_encoder: Called as `(variant, channel, first, last)` when a consumer that lost
                publications can be written to again; returns the payload of the message that says so.
                `first` and `last` are positions, 0 when none was given. Must not call the reactor. An
                exception closes that connection with 4050. None: nothing is said.
            hash_key: 16 secret bytes under which channel names are hashed; random by default. Make a
                new one after a fork.
            addresses: Where connections of an address are counted, with all shards of the node.
            shard: Our number among them.

        Raises:
            SettingsError: A setting is out of range; the message names it and the range.
        """

    def fileno(self) -> int:
        """The epoll descriptor: readable when `poll` has something to do; -1 after shutdown."""

    @property
    def is_full(self) -> bool:
        """Whether publications should wait until `flush` has written some. O(1).

        An outbox that is not judged by its limits is over half of them: of a connection that is not behind,
        or of more than half of all connections, behind and within their grace. Or 64 publications are
        on their way into large channels. It always ends by itself: with `flush`, with what peers read, or
        with their grace. A connection that is judged, and one alone that is behind, never make it true.
        """

    @property
    def more(self) -> bool:
        """Whether `poll` should be called again without waiting for `fileno` to be readable.

        False does not mean that nothing is to be read: data still in the kernel keeps `fileno` readable.
        """

    def renew(self, settings: Settings) -> None:
        """Other limits and deadlines for everybody, connections that are open included.

        A deadline that is running is looked at when it comes due; the new one holds from then on.
        `variant_opcodes` and what is reported to the caller stay as they were made.

        Raises:
            SettingsError: A setting is out of range, or may not change; then nothing has.
        """

    def listen(self, listener_fd: int) -> None:
        """Accept from a listening, non-blocking socket, which stays the caller's."""

    def stop_listening(self) -> None:
        """Accept no more; connections go on."""

    def set_gate(self, limits: GateLimits, refusal: bytes, too_many: bytes = b"") -> None:
        """Replace the gate's limits, and the whole HTTP answers (at most 4 KiB) a refused peer is sent.

        `too_many` is for those whose address has too many connections or asks too often; empty: as others.

        All or nothing: SettingsError or OverflowError leaves the former ones.
        """

    def set_bye(
        self, close_code: int, variants: Sequence[bytes | None], *, reason: int = 0, rank: int = 0
    ) -> None:
        """What goes before a Close with this code that the reactor itself sends: one payload a variant.

        With a reason, before those Closes only that have it, and then in place of the code's own: several
        reasons share a code. With a rank above 0, from the 1,000 times `rank`th such Close of a second on:
        of the ranks that are set the highest one counts.

        Sent from a reserve: also when the outbox is over its limits.
        """

    def book(self, outside_bytes: int, *, refuses_newcomers: bool = False) -> None:
        """Put on the books what the caller holds beside this reactor, in place of what it said before.

        Args:
            outside_bytes: Bytes; they count against `GateLimits.memory_bytes` like everything else.
            refuses_newcomers: Whether newcomers are to be refused (`refused_memory`) for a reason that the
                accounts do not show, such as the machine's memory for sockets.
        """

    def trim(self) -> None:
        """Give the heap's free pages back to the system: what a burst has left between other blocks.

        Milliseconds for a hundred megabytes; not for every second.
        """

    def set_handover(self, fd: int, *, next_fd: int = -1, handovers: int = 1) -> None:
        """Say who gets the connections for which there is no room here.

        Args:
            fd: A Unix socket, non-blocking or not, that stays the caller's: each connection goes there as one
                byte, how many handovers it went through, with a descriptor. -1: nobody, and they are refused.
                When it is full they are too.
            next_fd: Likewise, for those that siblings handed here.
            handovers: Through so many one may go, 0 to 255; then it is refused.
        """

    def accept_handover(self, fd: int, *, now_ms: int, handovers: int = 1) -> None:
        """Take in a non-blocking socket that a sibling accepted: judged as at our own gate.

        Args:
            fd: The reactor's from now on, whatever becomes of it.
            now_ms: As `poll`'s.
            handovers: Through so many it came, as the byte says that came with it. Where it finds no room it
                is handed on.
        """

    def is_from_proxy(self, conn: int) -> bool:
        """Whether the peer is in one of the listed networks. One system call."""

    def origin(self, conn: int) -> int:
        """A number for where a connection comes from, the same for all connections from there.

        It stands for the peer's address (an IPv6 /64 is one address), or for the address that the proxy has
        named where limits of addresses count it. One system call.

        Args:
            conn: Its handle.

        Returns:
            64 bits; 0 for a stale handle and for a peer without an address.
        """

    def claim_address(self, conn: int, address: bytes) -> int:
        """Count an accepted connection for whom its proxy names, once.

        Args:
            conn: Its handle; 0 comes back for a stale one.
            address: 16 bytes, IPv4 mapped.

        Returns:
            0, or the number of the reason it is to be refused with.
        """

    def adopt(self, fd: int, *, now_ms: int, upgraded: bool = False, variant: int = 0) -> int:
        """Take over a connected stream socket, which is the reactor's from now on.

        Args:
            fd: The descriptor; made non-blocking.
            now_ms: The caller's clock.
            upgraded: Frames both ways at once, without `OPEN`. Otherwise a head is expected, and the
                first event is `OPEN`, as for an accepted socket.
            variant: As for `upgrade`, when `upgraded`.

        Returns:
            The handle.

        Raises:
            OSError: It cannot be watched (not a socket, or already adopted); it stays the caller's.
            MemoryError: No slot is left; it stays the caller's.
        """

    def poll(self, now_ms: int, messages: int = 256) -> list[Event]:
        """Read what became ready and return what happened. Never blocks.

        One call takes at most 256 messages, 32 opens, 1 MiB, 2 ms or messages that are expected to take the
        caller 2 ms, and at most 64 messages of one connection; whatever is left makes `more` true.
        Connections that have cost more than their share lately come after all others, see `charge`.

        Args:
            now_ms: The monotonic clock.
            messages: Take no more than this, 1 to 256: what the caller can handle without holding its loop.

        Returns:
            `(kind, conn, value)` (see `events`). For each connection in order: `OPEN`, messages, then at
            most one of `FAILING` and `PEER_CLOSED`, and exactly once, last, `CLOSED`. Answers sent while
            handling a batch leave before the Close that follows `FAILING` or `PEER_CLOSED`. A
            connection that was never `OPEN` has no events.
        """

    def charge(self, conn: int, cost_ns: int) -> None:
        """Say what handling one message of a connection took: it waits while others cost less.

        The reactor charges each message 5 us by itself, so only a message that took clearly longer needs this
        call. A long time is compared with the processor time of this thread since the last `poll` or
        `charge`, and the smaller one counts. Harmless for a stale handle.

        Args:
            conn: Whose message it was.
            cost_ns: How long it took, by a monotonic clock, in nanoseconds.
        """

    def flush(self, now_ms: int) -> bool:
        """Write what waits, for at most 2 ms; True when more waits (call again soon)."""

    def tick(self, now_ms: int, wall_ms: int | None = None) -> None:
        """Run the timers that are due; call every 250 ms.

        A tick more than 2 s late is taken for a pause of our own: every deadline that judges a peer moves by
        the lateness, at most once a minute. `wall_ms` is the wall clock in milliseconds since 1970, for
        `set_expiry`; without it the last difference between the clocks stays.
        """

    def upgrade(self, conn: int, response: bytes, *, variant: int = 0) -> bool:
        """Answer a head with `response` (a whole 101) and start frames.

        Args:
            conn: A connection whose `OPEN` was given and not answered yet.
            response: Sent as it is.
            variant: Which form of publications this connection takes: an index into
                `Settings.variant_opcodes`.

        Returns:
            False for a stale handle, or when it was answered already.
        """

    def refuse(self, conn: int, response: bytes, *, reason: int = ...) -> bool:
        """Answer a head with an HTTP response and end, so that the answer arrives. As `upgrade`."""

    def send(self, conn: int, payload: bytes, opcode: int = 1) -> bool:
        """Queue one message (1 text, 2 binary); it leaves with the next `flush`.

        Text must be valid UTF-8: that is not checked again here.

        Returns:
            False when the connection is gone or closing, or when this message put its outbox over the
            limits, which ends it with 4010.
        """

    def close(self, conn: int, code: int, text: bytes = b"", *, reason: int = ...) -> bool:
        """Send Close after what waits, await the peer's, and end; False when it is not open."""

    def abort(self, conn: int, *, reason: int = ...) -> bool:
        """Reset at once, without Close; False for a stale handle."""

    def pause_reading(self, conn: int) -> bool:
        """Read no more from this connection until `resume_reading`; its heartbeat rests meanwhile."""

    def resume_reading(self, conn: int) -> bool:
        """Read again."""

    def subscribe(self, conn: int, channel: bytes, *, policy: int = 0, is_counted: bool = True) -> int:
        """Subscribe to a channel (1 to 1,024 bytes). O(1).

        Args:
            conn: An open connection.
            channel: Its name.
            policy: What a full outbox does with its publications, one of the `POLICY_` numbers; counts
                for the first subscriber of a channel, later ones find it set.
            is_counted: Whether subscriptions to this channel count against the limit of a connection; False
                for any subscriber holds for the channel.

        Returns:
            The channel's subscribers in this reactor; -1 when it was subscribed already; -2 when the
            connection has as many as `Settings.max_subscriptions`; 0 when it is not open.
        """

    def unsubscribe(self, conn: int, channel: bytes) -> int:
        """Unsubscribe; the subscribers left here, or -1 when it was not subscribed. O(1)."""

    def subscriptions(self, conn: int) -> list[bytes]:
        """The names of a connection's channels, in no order."""

    def is_subscribed(self, conn: int, channel: bytes) -> bool:
        """Whether this connection is subscribed. O(1)."""

    def subscribed(self, channel: bytes) -> list[int]:
        """The handles of all who are subscribed to a channel, in no order. O(subscribers)."""

    def variants(self, channel: bytes) -> int:
        """Which variants have subscribed to a channel since it was empty, bit n for variant n; 0: empty."""

    def channels(self, start: int, limit: int) -> tuple[list[bytes], int]:
        """Names of channels with subscribers here, a part at a time.

        Args:
            start: 0, or where the last call stopped.
            limit: How many names at most.

        Returns:
            The names and where to go on, 0 at the end. A channel that had subscribers all the while is
            listed exactly once; one that came meanwhile perhaps.
        """

    def take_vacated(self, limit: int) -> list[bytes]:
        """At most `limit` channels that have lost their last subscriber since they were last taken.

        With `Settings.report_vacated` only. One that has subscribers again is left out.
        """

    def answer_page(self, conn: int, *, reason: int = ...) -> bool:
        """Answer a head with `Settings.page_response` and end; as `refuse`, but the bytes are held once."""

    def public_id(self, conn: int) -> int:
        """The 64 bits under which the outside may know a connection.

        A keyed permutation of the handle (`hash_key`): unique, not to be guessed, nothing to store.
        """

    def find_public(self, public_id: int) -> int:
        """The live connection of a public id, or 0: gone, never there, or another process's."""

    def subscribers(self, channel: bytes) -> int:
        """How many connections of this reactor are subscribed."""

    def is_vacated(self, channel: bytes) -> bool:
        """Whether a channel lost its last subscriber, and `take_vacated` has not reported that yet."""

    def channel_names(self) -> tuple[int, int]:
        """How many channels there are, vacated ones included, and the bytes of all their names. O(1)."""

    def publish(
        self, channel: bytes, variants: Sequence[bytes | int | None], *, position: int = 0, exclude: int = 0
    ) -> int:
        """Queue one publication for every open subscriber. O(subscribers), no Python object for any.

        Args:
            channel: Its name.
            variants: One payload for each variant, encoded once here; None sends that variant nothing, a
                number the very frame of an earlier variant. The payload of a deflated variant is deflated
                already, without the last four bytes of RFC 7692 section 7.2.1.
            position: Where it stands in its channel's stream, > 0, for gaps; 0 without one.
            exclude: A handle that does not get it; 0 for none.

        Returns:
            For how many it is queued, has given way to a gap, or will be queued: with more subscribers than
            `Settings.walk_at_once` that happens in steps of `flush`. Queued is not written.
        """

    def mark_lost(self, channel: bytes, round: int) -> bool:
        """Note that a channel lost publications; the subscribers are notified in this round.

        Args:
            channel: Its name.
            round: The number of the round, > 0. A later mark replaces an earlier one.

        Returns:
            False when nobody is subscribed here.
        """

    def send_notices(
        self,
        start: int,
        most: int,
        forms: Sequence[Sequence[bytes | int | None]],
        *,
        round: int = 0,
        channel: bytes | None = None,
    ) -> tuple[int | None, int]:
        """Queue one message for each of the next connections that are concerned by a loss. O(`most`).

        Args:
            start: The slot to go on with; 0 at first.
            most: How many slots are looked at.
            forms: 1 to 32 messages, each with one payload for every variant as for `publish`, never deflated.
                Neighbours in the table receive different ones.
            round: Which channels it is about: those marked with this number. A connection that is subscribed
                to one of them receives the message once, also when its outbox is full.
            channel: The one channel it is about, instead of a round. The message is then bounded and dropped
                as a publication of this channel is.

        Returns:
            The slot to go on with, None at the end; and for how many connections a notice is queued. While
            many connections wait to be written nothing is done and `start` comes back.
        """

    def variant(self, conn: int) -> int:
        """Which form of publications this connection takes, as for `upgrade`; -1 for a stale handle."""

    def connections(self, start: int, limit: int) -> tuple[list[int], int]:
        """Handles of open connections, a part at a time: at most `limit`, and where to go on, 0 at the end.

        One that was open all the while is listed exactly once. O(slots looked at).
        """

    def set_meta(self, conn: int, meta: object) -> bool:
        """Attach one object of the caller's, held until the `CLOSED` event; None removes it.

        The garbage collector does not see it: an object that leads back to the reactor keeps both alive
        until `shutdown`.
        """

    def meta(self, conn: int) -> Any:
        """The attached object, or None."""

    def set_deadline(self, conn: int, at_ms: int, close_code: int, *, is_forgiven: bool = False) -> bool:
        """End the connection at a time of the caller's clock; `at_ms` 0 clears the deadline.

        A connection has one application deadline: this and `set_expiry` replace each other's.

        Args:
            conn: The connection.
            at_ms: The time; 0: no deadline.
            close_code: What the peer is sent; 0 means 4001.
            is_forgiven: Whether a forgiven stall of the process moves the deadline, because it judges the
                peer's diligence.

        Returns:
            False for a stale handle.

        Raises:
            ValueError: For a code that a server may not send.
        """

    def set_expiry(self, conn: int, wall_ms: int, close_code: int, *, only_sooner: bool = False) -> bool:
        """End the connection at a time of the wall clock, as `tick` was told it; no stall is forgiven.

        A step of the wall clock is followed within a tick. With `only_sooner` a deadline that comes before
        stays.

        Args:
            conn: The connection.
            wall_ms: Milliseconds since 1970, above 0.
            close_code: What the peer is sent.
            only_sooner: Never postpone.

        Returns:
            False for a stale handle.

        Raises:
            ValueError: For a code that a server may not send, or a time that is none.
        """

    def set_user(self, conn: int, user: bytes, *, issued_s: int = 0) -> bool:
        """Enter a connection in the index by user; an empty `user` takes it out. O(1).

        The connection stays in the index until it is released, in every state and whatever it is
        subscribed to.

        Args:
            conn: The connection.
            user: The user's id.
            issued_s: When the connection's token was issued, in seconds since 1970; 0: not known.

        Returns:
            False for a stale handle.

        Raises:
            MemoryError: The index could not grow; the connection is in no list then.
        """

    def user_connections(self, user: bytes, *, issued_before_s: int = 0) -> list[int]:
        """The handles of a user's connections, in every state but closed, the newest first.

        With `issued_before_s` above 0, only those whose token was issued before that time or does not say
        when.

        The index keeps a hash of 32 bits: very rarely a connection of another user is among them, so compare
        the user in its meta object. O(connections of the user).
        """

    def peer(self, conn: int) -> str:
        """The peer's address as `host:port` or `[host]:port`; empty for a stale handle or no network."""

    def inspect(self, conn: int) -> dict[str, int] | None:
        """The connection's own numbers, or None for a stale handle. For tests and operators."""

    def counters(self) -> dict[str, int]:
        """Everything counted.

        `COUNTER_NAMES` since the start; `ended_<reason>` for refusals and closes; `now_<state>`,
        `now_connections`, `now_blocked`, `now_pacing`, `now_draining` and `now_channels` as of now.
        """

    def bytes_held(self) -> dict[str, int]:
        """Bytes held as of now, by `KIND_NAMES`.

        Besides: `pool`, freed and kept for reuse; `kernel_queued`, what the kernel holds in sockets of
        what was not taken: of full ones always, of others as it was at their last look; `kernel_orphans`,
        the same of sockets that were closed meanwhile; `connections`, what each costs beside. Together they
        are what `GateLimits.memory_bytes` limits.
        """

    def shutdown(self) -> None:
        """Close every socket at once, without Close or events, and give every byte back."""
