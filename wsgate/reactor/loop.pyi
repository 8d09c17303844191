"""The typed interface of the reactor: the `Reactor` class with everything that a caller may rely on."""

from collections.abc import Callable, Sequence
from typing import Any, Final, final

from wsgate.reactor.addresses import SharedAddresses
from wsgate.reactor.event_kinds import Event
from wsgate.reactor.settings import GateLimits, Settings

__all__ = ["ENUMERATIONS", "Reactor"]

ENUMERATIONS: Final[dict[str, int]]

@final
class Reactor:
    """Reads, writes and times all client sockets of one shard, behind one epoll descriptor.

    Not thread-safe: one thread makes all calls, and no callback may call the reactor. The caller passes the
    time to every call that needs it, as milliseconds of one monotonic clock. `conn` is an opaque handle (slot
    and generation), never 0. Once its connection is released, every call refuses the handle for ever and
    counts it as `stale`. Most calls raise InternalError after `shutdown`, and when a callback makes them.

    The driving loop, for any event loop::

        def on_readable():
            for kind, conn, value in reactor.poll(now_ms()):
                ...
            if reactor.flush(now_ms()) or reactor.more:
                loop.call_soon(on_readable)

        loop.add_reader(reactor.fileno(), on_readable)
        # and every 250 ms: reactor.tick(now_ms()), then on_readable()

    After a call from outside this loop (for example `publish` for a publication from the bus), call `flush`
    as above.
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
        """Make a reactor without connections, with its own epoll set.

        Args:
            settings: Limits and deadlines for all connections; defaults to `Settings()`.
            now_ms: The caller's monotonic clock in milliseconds, 0 or more; no later call may pass less.
            gap_encoder: Called as `(variant, channel, first, last)` when the reactor is about to write to a
                connection that lost publications. Returns the payload of the message that reports this gap.
                `first` and `last` are the positions of the lost publications, 0 when `publish` received none.
                It must not call the reactor. An exception closes that connection with 4050. None: gaps are
                not reported.
            hash_key: 16 secret bytes of the keyed hash for channel names, user ids and public ids; random by
                default. Make a new key after a fork.
            addresses: The shared memory in which all shards of a node count the connections of each address.
            shard: The number of this shard in `addresses`, from 0.

        Raises:
            SettingsError: A setting is out of range; the message names the setting and its range.
        """

    def fileno(self) -> int:
        """Return the epoll descriptor, which is readable when `poll` has work to do; -1 after shutdown."""

    @property
    def is_full(self) -> bool:
        """Whether the caller should hold back publications until `flush` has written some. O(1).

        True in four cases; outbox.pyx has the rules:

        - An outbox is over half its limits and its connection is not behind.
        - Many connections are behind at once (from more than half of the open ones until less than an
          eighth), at least one of them took bytes in the last second, and one that is in its grace is over
          half its limits.
        - An outbox is over half its limits and its connection is behind, in its grace, and took bytes a short
          while ago (`Settings.blocked_moving_ms`).
        - 64 publications are on their way into the outboxes of large channels.

        The value becomes False again without help: by `flush`, when peers read, when a grace ends, or when
        the allowance for such waits is used up. A connection that is behind and has no grace never makes it
        True.
        """

    @property
    def more(self) -> bool:
        """Whether the caller should call `poll` again without waiting for `fileno` to become readable.

        False does not mean that there is nothing to read: unread data in the kernel keeps `fileno` readable.
        """

    def renew(self, settings: Settings) -> None:
        """Replace the limits and deadlines of all connections, also of those that are already open.

        An armed timer keeps its time; the new deadlines of an open connection count from when that timer
        expires. A connection that waits for its head, its upgrade, the end of its Close or of lingering
        keeps the deadline that it has. `report_vacated`, `report_meta` and the HTTP responses keep the values
        that they had when the reactor was made.

        Raises:
            SettingsError: A setting is out of range, or `variant_opcodes` differs; all limits stay as they
                were.
        """

    def listen(self, listener_fd: int) -> None:
        """Accept connections from a listening, non-blocking socket, which the caller continues to own.

        Raises:
            InternalError: The reactor has a listener already.
            OSError: The descriptor cannot be added to the epoll set.
        """

    def stop_listening(self) -> None:
        """Accept no more connections from the listener; connections that are open stay open."""

    def set_gate(self, limits: GateLimits, refusal: bytes, too_many: bytes = b"") -> None:
        """Replace the limits for new connections and the HTTP responses sent to peers that are refused.

        The change is made completely or not at all.

        Args:
            limits: The limits that are checked when a socket is accepted. The memory budget and
                `partial_bytes` hold for open connections too.
            refusal: A whole HTTP response of at most 4 KiB, or empty: nothing is sent.
            too_many: The response when the peer's address has too many connections or opens them too fast; at
                most 4 KiB; empty: `refusal` is sent.

        Raises:
            SettingsError: A value is out of range.
            OverflowError: A number is negative or does not fit into its field.
        """

    def set_bye(
        self, close_code: int, variants: Sequence[bytes | None], *, reason: int = 0, rank: int = 0
    ) -> None:
        """Set the message that precedes a Close which the reactor sends by itself, for each variant.

        The message is queued even if the outbox is over its limits. `close` does not send it.

        Args:
            close_code: The code of the Close that it precedes.
            variants: One payload for each variant; None: that variant receives no message.
            reason: 0: for every Close with this code. Otherwise only for a Close with this code and this
                reason, where it is sent instead of the message for the code alone, because several reasons
                share a code.
            rank: 0 to 255, only with a reason. The message is used after 1,000 times `rank` connections were
                closed for this reason within one second. Of several ranks that apply, the highest is used.

        Raises:
            ValueError: An argument is out of range, or there are more payloads than variants.
            MemoryError: There is no memory for the message.
        """

    def book(self, outside_bytes: int, *, refuses_newcomers: bool = False) -> None:
        """Charge memory that the caller holds outside of this reactor, replacing the last value.

        Args:
            outside_bytes: Bytes; they count against `GateLimits.memory_bytes` like all other accounts.
            refuses_newcomers: True refuses new connections (`refused_memory`) for a cause that the accounts
                do not show, for example the machine's limit of memory for sockets.
        """

    def trim(self) -> None:
        """Return free pages of the heap to the system, which a past peak of memory use has left behind.

        Takes milliseconds for a hundred megabytes, so do not call it every second.
        """

    def set_handover(self, fd: int, *, next_fd: int = -1, handovers: int = 1) -> None:
        """Set the sibling shards that receive the connections for which this shard has no room.

        A connection is handed over when it would be refused for want of descriptors, connections or memory.
        It is refused after all when the socket to the sibling is full.

        Args:
            fd: A Unix socket, blocking or not, that the caller continues to own. Each connection is sent as
                its descriptor and one byte, the number of handovers that it has passed. -1: refuse the
                connections.
            next_fd: The same for connections that a sibling has handed to this shard.
            handovers: How many times a connection may be passed between shards before it is refused. 0 to
                255.
        """

    def accept_handover(self, fd: int, *, now_ms: int, handovers: int = 1) -> None:
        """Take over a non-blocking socket that a sibling shard accepted, and apply this shard's limits.

        Args:
            fd: The reactor owns it from now on, also when the connection is refused.
            now_ms: The monotonic clock, as for `poll`.
            handovers: How many handovers the connection has passed: the byte that came with the descriptor.
                If there is no room here, the connection is handed to the next sibling.
        """

    def is_from_proxy(self, conn: int) -> bool:
        """Whether the peer's own address lies in one of `GateLimits.trusted_networks`. One system call."""

    def origin(self, conn: int) -> int:
        """Return a number for the address that a connection comes from, equal for all connections from there.

        The address is the peer's (one IPv6 /64 counts as one address). If connections of an address are
        limited and a proxy has named the client's address, it is the named one. One system call.

        Args:
            conn: The handle of the connection.

        Returns:
            64 bits; 0 for a stale handle and for a peer without a network address.
        """

    def claim_address(self, conn: int, address: bytes) -> int:
        """Count an accepted connection for the client address that its proxy has named.

        The count for the proxy's own address, if there is one, is removed. Call it at most once for each
        connection.

        Args:
            conn: The handle of the connection; a stale one returns 0.
            address: 16 bytes; an IPv4 address is mapped into IPv6.

        Returns:
            0, or the number of the reason with which the caller must refuse the connection.

        Raises:
            ValueError: The address does not have 16 bytes.
        """

    def adopt(self, fd: int, *, now_ms: int, upgraded: bool = False, variant: int = 0) -> int:
        """Take over a connected stream socket that the caller has; returns its handle.

        Args:
            fd: The descriptor; it becomes non-blocking and belongs to the reactor.
            now_ms: The caller's monotonic clock.
            upgraded: True: WebSocket frames are exchanged at once, and there is no `OPEN` event. False: the
                peer must send a request head first, and `OPEN` is the first event, as for an accepted socket.
            variant: As for `upgrade`; used when `upgraded` is True.

        Raises:
            OSError: The descriptor cannot be watched (not a socket, or already in the epoll set); the caller
                keeps it.
            MemoryError: No slot is free; the caller keeps the descriptor.
            ValueError: The variant is not configured.
        """

    def poll(self, now_ms: int, messages: int = 256) -> list[Event]:
        """Read from the connections that are ready and return their events in order. Never blocks.

        One call stops after 256 messages, 32 request heads, 1 MiB, 2 ms, or when the messages are expected to
        take the caller 2 ms. It takes at most 64 messages of one connection. If more is left, `more` is True.
        Connections that have lately used more than their share of time are read after all others, see
        `charge`.

        Args:
            now_ms: The caller's monotonic clock in milliseconds.
            messages: Return at most this many messages, 1 to 256: as many as the caller can handle without
                stopping its event loop for too long.

        Returns:
            `(kind, conn, value)` tuples (see `event_kinds`). For each connection in order: `OPEN`, messages,
            at most one of `FAILING` and `PEER_CLOSED`, and exactly once, as its last event, `CLOSED`. Replies
            that are sent while the caller handles this list are written before the Close that follows
            `FAILING` or `PEER_CLOSED`. A connection without an `OPEN` event has no other events, unless it
            was adopted as upgraded.
        """

    def charge(self, conn: int, cost_ns: int) -> None:
        """Charge a connection for the time that the caller took to handle one of its messages.

        A connection that has lately cost more than its share is read after all others (debts.pyx). The
        reactor by itself charges 5 us for each message in turns of 20 us or more, so the call is needed only
        for a message that took clearly longer. A cost of 0.2 ms or more is compared with the CPU time that
        this thread has used since the reactor last read it, and the smaller one is charged. A stale handle
        has no effect.

        Args:
            conn: The connection that sent the message.
            cost_ns: How long handling it took by a monotonic clock, in nanoseconds.
        """

    def flush(self, now_ms: int) -> bool:
        """Write the frames that wait in the outboxes, for at most 2 ms.

        True if some are left (call again soon).
        """

    def tick(self, now_ms: int, wall_ms: int | None = None) -> None:
        """Act on deadlines that have passed and do the reactor's periodic work; call it every 250 ms.

        If no call at all came for more than 2 s and this one is late by as much, the process itself was
        stopped: every deadline that applies to a peer moves by the delay, at most once a minute.

        Args:
            now_ms: The caller's monotonic clock in milliseconds.
            wall_ms: The wall clock in milliseconds since 1970, for `set_expiry`. None: the last known
                difference between the two clocks stays in use.
        """

    def upgrade(self, conn: int, response: bytes, *, variant: int = 0) -> bool:
        """Accept a handshake: send `response` (a whole 101) and exchange WebSocket frames from then on.

        Args:
            conn: A connection with an `OPEN` event that has not been answered yet.
            response: The bytes of the HTTP response, sent unchanged.
            variant: The form of publications that this connection takes: an index into
                `Settings.variant_opcodes`.

        Returns:
            False if the handle is stale, if the handshake was answered already, or if the connection ended
            meanwhile.

        Raises:
            ValueError: The variant is not configured.
            MemoryError: There is no memory for the response; the handshake is still unanswered.
        """

    def refuse(self, conn: int, response: bytes, *, reason: int = ...) -> bool:
        """Reject a handshake: send an HTTP response and end the connection so that the response arrives.

        Args:
            conn: A connection with an `OPEN` event that has not been answered yet.
            response: A whole HTTP response; empty: the connection ends without one.
            reason: The number of the reason that is counted.

        Returns:
            False if the handle is stale or the handshake was answered already.

        Raises:
            ValueError: There is no reason with this number.
            MemoryError: There is no memory for the response; the handshake is still unanswered.
        """

    def send(self, conn: int, payload: bytes, opcode: int = 1) -> bool:
        """Queue one message for a connection (1 text, 2 binary); the next `flush` writes it.

        A text payload must be valid UTF-8: it is not checked again. A message that is compressed already has
        `DEFLATED` added to its opcode.

        Returns:
            False if the connection has ended or is closing, or if this message put a connection that is
            behind over its outbox limits, which closes it with 4010.

        Raises:
            ValueError: The opcode is another one, or the connection has not agreed to permessage-deflate.
            MemoryError: There is no memory for the frame; nothing was queued.
        """

    def close(self, conn: int, code: int, text: bytes = b"", *, reason: int = ...) -> bool:
        """Close a connection after everything in its outbox: send Close, wait for the peer's Close, and end.

        Args:
            conn: The connection to close.
            code: A close code that a server may send; 1005 sends a Close without a code.
            text: The text of the Close, at most 123 bytes.
            reason: The number of the reason that is counted.

        Returns:
            False if the connection is not open.

        Raises:
            ValueError: A server may not send this code, the text is too long, or the reason is unknown.
        """

    def abort(self, conn: int, *, reason: int = ...) -> bool:
        """Reset a connection at once, without Close and without what waits in its outbox.

        False for a stale handle.
        """

    def pause_reading(self, conn: int) -> bool:
        """Stop reading from a connection until `resume_reading`; its heartbeat stops meanwhile."""

    def resume_reading(self, conn: int) -> bool:
        """Read again from a connection that `pause_reading` has stopped; False for a stale handle."""

    def subscribe(self, conn: int, channel: bytes, *, policy: int = 0, is_counted: bool = True) -> int:
        """Subscribe an open connection to a channel, which is made if it does not exist. O(1).

        Args:
            conn: An open connection.
            channel: The channel's name, 1 to 1,024 bytes.
            policy: Which publications of this channel a full outbox drops, one of the `POLICY_` numbers. The
                first subscriber of a channel sets it; later values have no effect.
            is_counted: Whether subscriptions to this channel count against the limit of a connection. One
                call with False makes the channel uncounted for all its subscribers.

        Returns:
            The number of the channel's subscribers in this reactor; -1 if the connection was subscribed
            already; -2 if it has as many subscriptions as `Settings.max_subscriptions` allows; 0 if it is not
            open.

        Raises:
            ValueError: The policy is unknown, or the length of the name is out of range.
            MemoryError: There is no memory for the subscription.
        """

    def unsubscribe(self, conn: int, channel: bytes) -> int:
        """Unsubscribe a connection; returns the subscribers left in the channel, -1 if it was not subscribed.

        O(1).
        """

    def subscriptions(self, conn: int) -> list[bytes]:
        """Return the names of all channels that a connection is subscribed to, in no order."""

    def is_subscribed(self, conn: int, channel: bytes) -> bool:
        """Whether one connection is subscribed to one channel. O(1)."""

    def subscribed(self, channel: bytes) -> list[int]:
        """Return the handles of all connections that are subscribed to a channel, in no order.

        O(subscribers).
        """

    def variants(self, channel: bytes) -> int:
        """Return the variants of a channel's subscribers as bits; 0 if it has no subscriber.

        Bit n is set if a connection of variant n has subscribed since the channel was last empty.
        """

    def channels(self, start: int, limit: int) -> tuple[list[bytes], int]:
        """List the names of channels that have subscribers in this reactor, a part at a time.

        Args:
            start: 0, or the second value that the last call returned.
            limit: The most names to return.

        Returns:
            The names, and the `start` of the next call, 0 at the end. A channel that has subscribers during
            all calls is listed exactly once; a channel that gains or loses its subscribers meanwhile may be
            left out.
        """

    def take_vacated(self, limit: int) -> list[bytes]:
        """Take at most `limit` names of channels that have lost their last subscriber since the last call.

        Only with `Settings.report_vacated`. A channel that has subscribers again is left out.
        """

    def answer_page(self, conn: int, *, reason: int = ...) -> bool:
        """Answer a request head with `Settings.page_response` and end; the page is in memory only once.

        Args and result are those of `refuse`.
        """

    def public_id(self, conn: int) -> int:
        """Return the 64-bit id of a connection that may be shown outside of this process.

        It is a keyed permutation of the handle (`hash_key`): unique, not to be guessed, and stored nowhere.
        """

    def find_public(self, public_id: int) -> int:
        """Return the handle that belongs to a public id, or 0 if no connection here has it now."""

    def subscribers(self, channel: bytes) -> int:
        """Return how many connections of this reactor are subscribed to a channel.

        0 for an unknown channel.
        """

    def is_vacated(self, channel: bytes) -> bool:
        """Whether a channel has lost its last subscriber and `take_vacated` has not returned its name yet."""

    def channel_names(self) -> tuple[int, int]:
        """Return the number of channels, vacated ones included, and the total bytes of their names. O(1)."""

    def publish(
        self, channel: bytes, variants: Sequence[bytes | int | None], *, position: int = 0, exclude: int = 0
    ) -> int:
        """Queue one publication for every open subscriber of a channel. O(subscribers).

        Makes no Python object for each.

        Args:
            channel: The channel's name.
            variants: One payload for each variant, which is encoded as a frame once. None: that variant
                receives nothing. A number: share the frame of that earlier variant. The payload for a
                deflated variant must be compressed already, without the last four bytes (RFC 7692 section
                7.2.1).
            position: The place of the publication in its channel's stream, above 0, which a gap reports; 0:
                none.
            exclude: The handle of a connection that does not receive it; 0: none.

        Returns:
            For how many connections it is queued, was replaced by a gap, or will be queued: with more
            subscribers than `Settings.walk_at_once`, later calls of `flush` queue it step by step. Queued
            does not mean written.

        Raises:
            ValueError: There are more payloads than variants, or a number is not an earlier variant's.
            MemoryError: There is no memory for a frame; nothing was queued.
        """

    def mark_lost(self, channel: bytes, round: int) -> bool:
        """Mark a channel as having lost publications, for the round of `send_notices` with this number.

        Args:
            channel: The channel's name.
            round: The number of the round, above 0. It replaces an earlier one.

        Returns:
            False if the channel has no subscriber here.
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
        """Queue a notice for the next connections that a loss of publications concerns. O(`most`).

        Args:
            start: The slot to continue with; 0 at first.
            most: How many slots to examine.
            forms: 1 to 32 different messages, each with one payload for every variant as for `publish`, never
                compressed. Connections in neighbouring slots receive different messages.
            round: With `channel` None: notify the subscribers of all channels that `mark_lost` marked with
                this number. A connection receives one message, however many of its channels are marked, also
                if its outbox is full.
            channel: Notify the subscribers of this one channel instead. The message then obeys the outbox
                limits and the policy of the channel, like a publication.

        Returns:
            The slot to continue with, or None at the end; and for how many connections a notice is queued.
            While many connections wait to be written, nothing is done and `start` is returned.

        Raises:
            ValueError: There are no messages or more than 32, or one has wrong payloads as for `publish`.
            MemoryError: There is no memory for a frame; nothing was queued.
        """

    def variant(self, conn: int) -> int:
        """Return the variant that a connection was upgraded with, an index as for `upgrade`.

        -1 for a stale handle.
        """

    def connections(self, start: int, limit: int) -> tuple[list[int], int]:
        """List the handles of open connections, at most `limit`.

        Also returns where to continue, 0 at the end. A connection that is open during all calls is listed
        exactly once. O(slots examined).
        """

    def set_meta(self, conn: int, meta: object) -> bool:
        """Attach one object of the caller's to a connection, until its `CLOSED` event; None removes it.

        The garbage collector does not see this reference: an object that refers to the reactor keeps both
        alive until `shutdown`. Returns False for a stale handle.
        """

    def meta(self, conn: int) -> Any:
        """Return the object that `set_meta` attached to a connection, or None."""

    def set_deadline(self, conn: int, at_ms: int, close_code: int, *, is_forgiven: bool = False) -> bool:
        """Set a time of the monotonic clock at which a connection is closed; 0 clears it.

        A connection has one application deadline: this call and `set_expiry` replace each other's.

        Args:
            conn: The connection to close.
            at_ms: The time in milliseconds; 0: no deadline.
            close_code: The code that the peer is sent; 0 means 4001. With 4002 the reason is `auth_timeout`,
                otherwise `token_expired`.
            is_forgiven: Whether the deadline moves when a stall of this process is forgiven (see `tick`),
                because it measures how fast the peer acts.

        Returns:
            False for a stale handle.

        Raises:
            ValueError: A server may not send this code.
        """

    def set_expiry(self, conn: int, wall_ms: int, close_code: int, *, only_sooner: bool = False) -> bool:
        """Set a time of the wall clock at which a connection is closed, such as the expiry of its token.

        A step of the wall clock takes effect within a tick. A stall of this process does not move this
        deadline.

        Args:
            conn: The connection to close.
            wall_ms: Milliseconds since 1970, above 0.
            close_code: The code that the peer is sent.
            only_sooner: Keep the present deadline if it comes first.

        Returns:
            False for a stale handle.

        Raises:
            ValueError: A server may not send this code, or the time is not above 0.
        """

    def set_user(self, conn: int, user: bytes, *, issued_s: int = 0) -> bool:
        """Enter a connection in the index by user; an empty `user` removes it. O(1).

        The connection stays in the index until it is released, in every state and with any subscriptions.

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
        """Return the handles of a user's connections, the one entered last first, in every state but closed.

        With `issued_before_s` above 0, only connections whose token was issued before that time (seconds
        since 1970) or has no known time of issue.

        The index keeps a hash of 32 bits: very rarely a connection of another user is in the list, so compare
        the user in its meta object. O(connections of the user).
        """

    def peer(self, conn: int) -> str:
        """Return the peer's address as `host:port` or `[host]:port`.

        Empty for a stale handle or no network address.
        """

    def inspect(self, conn: int) -> dict[str, int] | None:
        """Return the state, flags and queue sizes of one connection, or None for a stale handle.

        For tests and operators.
        """

    def counters(self) -> dict[str, int]:
        """Return every counter and gauge of the reactor by name.

        The names in `COUNTER_NAMES` count since the start, as do `ended_<reason>` for refused and closed
        connections. Names that begin with `now_` are present values: `now_<state>` for the connections in
        each state, `now_connections`, `now_blocked`, `now_pacing`, `now_draining`, `now_channels`,
        `now_walks`, `now_short` and `now_shedding`.
        """

    def bytes_held(self) -> dict[str, int]:
        """Return the bytes of memory charged to each account now, by name.

        Besides the names in `KIND_NAMES`: `pool`, freed blocks kept for reuse; `outside`, the last value of
        `book`; `kernel_queued`, what the kernel holds in sockets for data not yet taken, known exactly for
        full sockets and for others from the last time that the kernel was queried; `kernel_orphans`, the same
        for sockets closed with unsent data; `connections`, `GateLimits.connection_bytes` for each connection.
        `GateLimits.memory_bytes` limits their sum.
        """

    def shutdown(self) -> None:
        """Close every socket at once, without Close frames or events, and release all memory.

        The counters can still be read afterwards.
        """
