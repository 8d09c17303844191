"""One shard: its loop, its reactor, and everything wired to them.

A pass of the loop is `_pump`: poll, run what clients said, tidy, flush. It runs when the reactor's
descriptor is readable, after every pass of the bus reader and every 250 ms; whatever is left over asks
for another pass. Nothing in it waits.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import uvloop

from wsgate.admission import BusLedger
from wsgate.auth import Member
from wsgate.auth.jwks import read_jwks
from wsgate.bus import AppenderOptions, Backlog, Covers, Names, RevocationKeeper, SubscriberOptions, make_bus
from wsgate.bus.names import INBOX_MARK
from wsgate.errors import WsgateError
from wsgate.handshake import Refusal, refusal
from wsgate.log import Log
from wsgate.output import dropped_lines, finish_outputs, flush_outputs, waiting_bytes
from wsgate.reactor import Reactor, event_kinds
from wsgate.reactor.metric_names import COUNTER_NAMES, REASON_NAMES
from wsgate.reasons import Reason
from wsgate.shard import statistics_layout
from wsgate.shard.access import Access
from wsgate.shard.backend_events import Events
from wsgate.shard.bus_memory import BusMemory
from wsgate.shard.capacity import CapacityReporter
from wsgate.shard.collector import CollectorClock
from wsgate.shard.commands import Commands
from wsgate.shard.control import Control
from wsgate.shard.drain import drain, empty_queue
from wsgate.shard.gaps import Gaps, spread_ms_for
from wsgate.shard.handover import Siblings
from wsgate.shard.handshakes import Entry, HandshakePolicy, ProxyClaims, spread_s
from wsgate.shard.http_pages import (
    CLIENT_PAGE,
    answer,
    is_client_request,
    is_page_request,
    is_readiness_request,
    page_redirect,
)
from wsgate.shard.hub import Hub
from wsgate.shard.lease import NodeLease
from wsgate.shard.login import LoginParts, Logins
from wsgate.shard.members import Members, now_ms, wall_ms
from wsgate.shard.membership import Membership
from wsgate.shard.options import ShardOptions, Shared
from wsgate.shard.pacing import Pacer
from wsgate.shard.pass_budget import PassBudget
from wsgate.shard.pausing import Pauses
from wsgate.shard.probe import Probe
from wsgate.shard.publication_encoder import DIALECT_OF, PublicationEncoder
from wsgate.shard.reload import Renewal
from wsgate.shard.replies import Replies
from wsgate.shard.subscriptions import Subscriptions
from wsgate.shard.tokens import Tokens
from wsgate.shard.users import Users
from wsgate.shard.verification import Verification
from wsgate.statistics import PHASE_DRAINING, PHASE_READY, Region, why_not_ready

__all__ = ["Shard", "run_shard"]

TICK_S: Final = 0.25
RESTING_TICKS: Final = 2
"""A shard without a connection does every second tick only: 0.16 % of a core became 0.09 %."""
NUMBERS_TICKS: Final = 4
"""Publish the statistics only every fourth tick, so that an idle shard uses almost no CPU."""
BLOCKS_TICKS: Final = 240
"""Ticks after which the blocks of the heap are counted in any case."""
FLUSH_S: Final = 1.0
"""For events of the last clients to reach their stream: half of what the keeper grants after a drain."""
SOON_S: Final = 0.001
COSTLY_NS: Final = 10_000
"""A message that took longer is charged to its connection; the reactor charges 5 us for each by itself.

A `pub` takes 20 us. With 25 us here, 250 clients that publish without pause owed a quarter of what they cost,
and a good client's publish took 31 ms (p50) where it takes 7.5. python -m loadtest publish_fairness
"""
GOODBYE_S: Final = 0.5
LATE_MS: Final = 500
CACHE_PART: Final = 8
"""The token cache may take one in so many bytes of a shard's budget, permission sets included."""
CACHE_MARK: Final = 27 / 32
"""Of the budget: above it the oldest cached tokens go, well before newcomers are refused at 15/16."""
RENEW_S: Final = 1.0
"""Between two times that the bus connections are made anew because the bus has no receiver."""
LEASE_BYTES: Final = 256
"""One user's lease of messages, with its place in the table."""
ENVELOPE_ROOM_BYTES: Final = 4 * 1024
"""What an envelope may add to the largest payload."""
_OUR_OWN: Final = tuple(name for name in statistics_layout.LAYOUT.counters if name not in COUNTER_NAMES)


def run_shard(
    options: ShardOptions,
    listener_fd: int,
    shared: Shared,
    alive_fd: int,
    seen: int = 0,
) -> int:
    """Be a shard until SIGTERM or until the keeper is gone; returns the exit code.

    Call in a fresh process, after a fork or not: randomness is seeded here and every key made here.

    Args:
        options: What to be.
        listener_fd: A listening socket; the keeper's.
        shared: Where to count, this shard in its own region only, and what may be told anew.
        alive_fd: The read end of a pipe whose other end the keeper holds: its end of file is the keeper's.
        seen: The version on the board of the configuration that the options are of; 0: of none.
    """
    random.seed()
    return uvloop.run(Shard(options, listener_fd, shared, alive_fd, seen).run())


class Shard:
    """All parts of one shard, wired."""

    def __init__(
        self,
        options: ShardOptions,
        listener_fd: int,
        shared: Shared,
        alive_fd: int,
        seen: int = 0,
    ) -> None:
        """Nothing runs yet."""
        self._shared = shared
        self._boards = shared.boards
        self._seen = seen
        self._seen_keys = 0
        self._options = options
        self._listener_fd = listener_fd  # -1: closed
        self._alive_fd = alive_fd
        self._block = shared.block
        self._region: Region = shared.block.shard(options.number)
        self._counts = dict.fromkeys(_OUR_OWN, 0)
        self._log = Log(f"shard-{options.number}")
        self._ticks = 0
        self._is_resting = False  # no connection at the last tick
        self._is_scheduled = False
        self._is_due = False  # within a millisecond
        self._is_draining = False
        self._budget = PassBudget()
        self._collector = CollectorClock()
        self._has_left = False
        self._is_over = False
        self._refused_before = -1
        self._written: Mapping[str, int] = {}  # the reactor's numbers that stand in the region
        self._renew_after_s = 0.0  # the bus connections may be made anew
        self._blocks_of = -1  # connections when the blocks of the heap were counted

    def count(self, name: str, amount: int) -> None:
        """Add to one of the shard's own counters."""
        self._counts[name] += amount

    # --- wiring ---------------------------------------------------------------------------------------

    def _build(self, loop: asyncio.AbstractEventLoop) -> None:
        options = self._options
        self._loop = loop
        # Given up at the end, where an accept needs a descriptor and none is free.
        self._spare_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        settings = replace(options.reactor, page_response=CLIENT_PAGE)
        self._reactor = Reactor(
            settings,
            now_ms=now_ms(),
            gap_encoder=self._encode_slow,
            addresses=self._shared.addresses,
            shard=options.number,
        )
        self._siblings = Siblings(
            options.number, self._shared.handovers, self._block, self._reactor, self.count
        )
        access = self._access = Access(options.channels, options.any_channel)
        names = Names(options.bus_prefix)
        tokens = Tokens(
            tuple(source.make(is_checked=True) for source in options.keys),
            options.tokens,
            options.token_cache_entries,
            self.count,
            cache_bytes=options.gate.memory_bytes // CACHE_PART,
            is_fetching=options.is_fetching_keys,
            log=self._log,
        )
        self._tokens = tokens
        self._handshakes = HandshakePolicy(options, tokens, self._log.info)
        self._claims = ProxyClaims(self._reactor, options.gate, self.count)
        self._verification: Verification[Entry | Callable[[], bool]] = Verification(
            self._verify, self._reactor.charge
        )
        forms = self._forms = PublicationEncoder(options.compression_threshold_bytes, self.count)
        variants = len(options.reactor.variant_opcodes)
        self._gaps = Gaps(self._reactor, forms, self.count, self._gap_spread_ms, now_ms, variants=variants)
        self._hub = Hub(self._reactor, access, forms, self._gaps, self.count)
        self._backlog = Backlog(options.bus_backlog_bytes)
        self._pacer = Pacer(self._backlog, self._hub, self._reactor, self._on_publication_fault)
        self._bus = make_bus(
            options.bus,
            names.channels,
            self,
            self._backlog,
            SubscriberOptions(
                connect_timeout_s=options.bus_connect_timeout_s,
                reply_timeout_s=options.bus_command_timeout_s,
                payload_limit_bytes=_payload_limit_bytes(options),
            ),
        )
        self._publisher, self._subscriber = self._bus.publisher, self._bus.subscriber
        self._events = self._make_events(names)
        self._users = Users(
            options.user_limits,
            self._reactor,
            self._publisher,
            names,
            self._shared.owners,
            self.count,
            self._schedule_soon,
        )
        self._members = Members(options, self._reactor, tokens.permissions, self._events)
        self._replies = Replies(options, self._reactor, self._events, self.count)
        self._subscriptions = Subscriptions(
            options, self._reactor, self._hub, access, self._replies, self._events, self.count
        )
        parts = LoginParts(
            reactor=self._reactor,
            hub=self._hub,
            access=access,
            tokens=tokens,
            users=self._users,
            events=self._events,
            members=self._members,
            replies=self._replies,
            subscriptions=self._subscriptions,
            pauses=Pauses(self._reactor),
            verify_later=self._verify_later,
        )
        self._logins = Logins(options, parts)
        self._accounts = CapacityReporter(
            self._region, self._reactor, self._outside_bytes, self.count, self._log
        )
        self._lease = NodeLease(self._publisher, names.node(options.node), options.node_lease, self._log)
        self._membership = Membership(self._publisher, names, f"{options.node}/{options.number}")
        self._revocations = RevocationKeeper(
            self._publisher, names, tokens.revocations, self._learn_revocation, self.count
        )
        self._control = Control(
            parts,
            self._logins,
            self._users.owner,
            self.count,
            reply=self._membership.reply,
            keeper=self._revocations,
        )
        self._control_names = names.control(options.node)
        self._commands = Commands(
            options,
            parts,
            self._logins,
            self._publisher,
            names,
            count=self.count,
            wake=self._schedule,
            unheard=self._on_unheard,
        )
        self._hub.attach(self._subscriber)
        self._hub.limit_unconfirmed(options.reactor.max_subscriptions)
        self._bus_memory = BusMemory(
            BusLedger(options.bus_shares),
            self._reactor,
            self._publisher,
            self._block,
            options.number,
            names.channels,
            self._log,
        )
        self._hub.takes_name = self._bus_memory.takes_name
        self._hub.on_taken = self._subscriptions.on_forbidden
        self._events.has_room = self._bus_memory.takes_message
        self._bus_memory.appenders = self._events.appenders
        self._probe = Probe(
            names.probe(options.node, options.number),
            self._publisher,
            self._subscriber,
            options.probe_interval_ms,
            self._on_echo,
            self._on_unheard,
        )

    def _encode_slow(self, variant: int, name: bytes, first: int, last: int) -> bytes:
        return self._gaps.encode_slow(variant, name, first, last)

    def _gap_spread_ms(self) -> int:
        """Within how many milliseconds the clients of this node load anew what they missed."""
        shards = range(self._block.shards)
        connections = sum(self._block.shard(number)["now_connections"] for number in shards)
        return self._options.gap_spread_ms or spread_ms_for(connections)

    def _make_events(self, names: Names) -> Events:
        """Told to backends, by connections of their own."""
        options, told, shares = self._options, self._options.events, self._options.bus_shares
        streams = [names.events(partition) for partition in range(told.partitions)]
        timing = AppenderOptions(
            connect_timeout_s=options.bus_connect_timeout_s,
            command_timeout_s=options.bus_command_timeout_s,
            # The node's own bus has so much memory, and nobody but us to say what it is for.
            trimmed_streams=tuple(streams) if options.has_private_bus else (),
            stream_bytes=(shares.maxmemory_bytes - shares.names_bytes) * 3 // 4 // told.partitions,
        )
        return Events(
            told,
            options.node,
            streams,
            self._bus.appenders(streams, timing, self.on_failed),
            self._reactor.public_id,
            self.count,
            is_sharded=options.bus.is_cluster,
        )

    async def run(self) -> int:
        """Serve until told to stop; 0 when every client was told, 1 when some were cut."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_fault)
        self._build(loop)
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # the terminal's; the keeper decides
        loop.add_reader(self._alive_fd, self._keeper_is_gone)
        tasks = [
            loop.create_task(part.run()) for part in (*self._bus.parts, *self._events.appenders, self._probe)
        ]
        for task in tasks:
            task.add_done_callback(self._on_task_done)
        self._collector.start()
        self._renew_gate(0)
        self._reactor.listen(self._listener_fd)
        loop.add_reader(self._reactor.fileno(), self._pump)
        if self._siblings:
            loop.add_reader(self._siblings.fileno(), self._take_handed)
        self._region["pid"] = os.getpid()
        self._region["phase"] = PHASE_READY
        self._write_numbers(self._reactor.counters())
        self._tick(loop.time())
        await stop.wait()
        left = await self._leave()
        if untold := await self._events.flush(FLUSH_S):
            self._log.warning("events_lost_at_shutdown", events=untold)
        await self._say_goodbye()
        self._has_left = True
        for task in tasks:
            task.remove_done_callback(self._on_task_done)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._publisher.close()
        self._write_numbers(self._reactor.counters())
        self._is_over = True  # the loop goes round a few times more
        self._collector.stop()
        loop.remove_reader(self._reactor.fileno())
        self._reactor.shutdown()
        return 1 if left else 0

    async def _say_goodbye(self) -> None:
        """Delete this shard's liveness key and the lease of the node's name; wait at most `GOODBYE_S`."""
        deleted, released, left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._users.close(deleted.set)
        self._lease.release(released.set)
        self._membership.leave(left.set)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await deleted.wait()
                await released.wait()
                await left.wait()

    async def _leave(self) -> int:
        """Answer every connection in the accept queue, close the listener and send Close to every client.

        Returns:
            How many clients were still there at the deadline.
        """
        began_s = self._loop.time()
        self._is_draining = self._handshakes.is_draining = True
        self._region["phase"] = PHASE_DRAINING
        self._region["room"] = 0
        self._siblings.stop()  # they are all ending
        self._stop_rating()
        await empty_queue(self._reactor, self._listener_fd, self._pump, self._spare_fd)
        self._reactor.stop_listening()
        os.close(self._listener_fd)
        self._listener_fd = -1
        self._logins.refuse_waiting(lambda: refusal(503, "draining", retry_after_s=spread_s(5)).response)
        passed_ms = int((self._loop.time() - began_s) * 1000)
        left = await self._drain(max(0, self._options.drain_timeout_ms - passed_ms))
        if self._siblings:
            # What siblings have handed over until just now: answered like everybody who comes late.
            self._take_handed()
            self._pump()
            left += await self._drain(LATE_MS)
        self._log.info("drained", left=left)
        if left:
            why = "no answer to the Close within server.drain_timeout"
            self._log.warning("clients_cut", clients=left, why=why)
        return left

    def _stop_rating(self) -> None:
        """Accept without a rate limit: the gate only refuses now, and a refusal must not wait."""
        self._options = replace(self._options, gate=replace(self._options.gate, handshake_rate_per_s=0))
        self._refused_before = -1
        self._renew_gate(0)

    async def _drain(self, within_ms: int) -> int:
        return await drain(
            self._reactor,
            self._replies,
            within_ms,
            self._schedule,
            has_private_bus=self._options.has_private_bus,
        )

    def _take_handed(self) -> None:
        self._siblings.take(now_ms())
        self._schedule()

    def _keeper_is_gone(self) -> None:
        """Nobody would restart, drain or count us: end at once, so that nothing is orphaned."""
        os._exit(1)

    def _on_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback of the loop raised: a fault of ours, said once a second at most."""
        fault = context.get("exception")
        if isinstance(fault, BaseException):
            # Without the message: it may show what the callback was called with.
            self._log.exception("callback_failed", fault)
        else:
            self._log.error("callback_failed", text=context["message"])

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        """A part that ends by itself is a fault of ours: end, and be restarted whole."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("task_failed", error=repr(error))
        finish_outputs()
        os._exit(1)

    # --- the pass -------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._resume)

    def _schedule_soon(self) -> None:
        """A pass within a millisecond: one of its own for every answer costs more than what it answers.

        Counting users with a pass for each batch of answers took three times as many passes, and 25 us of
        107 a handshake: python -m loadtest limits_cost
        """
        if not self._is_due:
            self._is_due = True
            self._loop.call_later(SOON_S, self._resume_due)

    def _resume_due(self) -> None:
        if self._is_due and not self._is_over:
            self._pump()

    def _resume(self) -> None:
        self._is_scheduled = False
        if not self._is_over:
            self._pump()

    def _pump(self) -> None:
        reactor = self._reactor
        self._is_due = False
        now = now_ms()
        if self._logins.has_released:
            self._handle(self._logins.take_released(), now)
        taken = reactor.poll(now, self._budget.messages)
        self._budget.note(len(taken), self._handle(taken, now) / 1e9)
        # Each part does its share of the pass, whether or not another one has more to do.
        has_more = self._verification.step() | self._hub.tidy() | self._control.step()
        self._pacer.step()
        has_more = has_more or self._logins.has_released or self._pacer.is_ready
        if reactor.flush(now) or reactor.more or has_more:
            self._schedule()

    def _handle(self, taken: Sequence[event_kinds.Event], now: int) -> int:
        """Act on events of the reactor, and charge connections for messages that are costly to handle.

        Args:
            taken: The events, in order.
            now: The reactor's clock.

        Returns:
            How many nanoseconds the events took together.
        """
        reactor = self._reactor
        self._collector.take_ns()
        before_ns = began_ns = time.perf_counter_ns()
        for kind, conn, value in taken:
            try:
                if kind <= event_kinds.BINARY:
                    if (variant := reactor.variant(conn)) < 0:
                        self.count("messages_of_reset_connections", 1)
                        continue
                    self._commands.run(conn, DIALECT_OF[variant], value, kind)  # type: ignore[arg-type]
                elif kind == event_kinds.OPEN:
                    self._on_open(conn, value)  # type: ignore[arg-type]
                elif kind == event_kinds.CLOSED:
                    self._on_closed(conn, *cast(tuple[int, Any], value), now)
            except Exception:  # a fault of ours must end this connection only
                self._log.exception("command_failed")
                if (variant := reactor.variant(conn)) >= 0:
                    self._replies.end(conn, DIALECT_OF[variant], Reason.INTERNAL)
            after_ns = time.perf_counter_ns()
            if after_ns - before_ns >= COSTLY_NS and kind <= event_kinds.BINARY:
                reactor.charge(conn, max(0, after_ns - before_ns - self._collector.take_ns()))
            before_ns = after_ns
        return before_ns - began_ns

    def _on_closed(self, conn: int, reason: int, member: Member | None, now: int) -> None:
        """Record the end of a connection for backends, and forget the connection in every part."""
        if self._events.is_on:
            self._events.disconnected(conn, reason, member, now)
        if member is not None:
            if self._users.has_counted and member.user_utf8:
                self._users.leave(conn, member.user)
            self._members.release(member)
        self._logins.forget(conn)
        self._subscriptions.forget(conn)
        self._replies.forget(conn)
        self._commands.forget(conn)
        self._verification.forget(conn)

    def _on_open(self, conn: int, head: bytes) -> None:
        if is_readiness_request(head):
            self._answer_readiness(conn)
            return
        if is_client_request(head):
            self.count("client_asked", 1)
            self._reactor.answer_page(conn, reason=Reason.APPLICATION)
            return
        if self._options.page_url and is_page_request(head):
            self._reactor.refuse(conn, page_redirect(self._options.page_url), reason=Reason.APPLICATION)
            return
        now_s = time.time()
        entry = self._handshakes.examine(head, now_s, self._claims.of(conn))
        if isinstance(entry, Refusal) or self._handshakes.is_known(entry, now_s):
            self._enter(conn, entry, now_s)
        else:
            origin = self._reactor.origin(conn)
            self._verification.add(conn, origin, entry, len(head), is_handshake=True)

    def _verify_later(self, conn: int, size: int, act: Callable[[], bool]) -> None:
        """Verify a token that came in a message when it is its turn: in this pass if nobody else waits."""
        self._verification.add(conn, self._reactor.origin(conn), act, size, is_handshake=False)
        self._schedule()

    def _verify(self, conn: int, item: Entry | Callable[[], bool]) -> bool:
        """Go on with what a token came for that was not seen before; whether the token was good."""
        if self._reactor.variant(conn) < 0:
            return True  # it was reset, and its end is not reported yet
        if isinstance(item, Entry):
            return self._verify_handshake(conn, item)
        try:
            return item()
        except Exception:  # the connection was ended for it; it must not take the others down with it
            self._log.exception("command_failed")
            return True

    def _verify_handshake(self, conn: int, entry: Entry) -> bool:
        now_s = time.time()
        refusals = self._counts["tokens_refused"]
        try:
            self._enter(conn, self._handshakes.verify(entry, now_s), now_s)
        except Exception:  # a fault of ours must not take the others down with it
            self._log.exception("handshake_failed")
            self._reactor.abort(conn, reason=Reason.INTERNAL)
        return self._counts["tokens_refused"] == refusals

    def _enter(self, conn: int, entry: Entry | Refusal, now_s: float) -> None:
        """Log in the connection of a handshake whose token is verified, or send the refusal."""
        if not isinstance(entry, Refusal):
            entry = self._handshakes.admit(entry, now_s, len(self._logins.unauthenticated))
        if isinstance(entry, Refusal):
            self.count("handshake_" + entry.reason, 1)
            self._reactor.refuse(conn, entry.response)
            return
        self._logins.enter(conn, entry)

    def _answer_readiness(self, conn: int) -> None:
        self.count("readiness_asked", 1)
        why = why_not_ready(self._block, now_ms())
        said = answer(503, b'{"ready":false}') if why else answer(200, b'{"ready":true}')
        self._reactor.refuse(conn, said, reason=Reason.APPLICATION)

    def _learn_revocation(self, user: str, before_s: float) -> None:
        """Apply a revocation that was read from the bus and is new to this shard."""
        self._control.learn(user, before_s)
        self._schedule()

    # --- the bus --------------------------------------------------------------------------------------

    def on_up(self, covers: Covers | None = None) -> None:
        """A subscriber connection is there: hear everything it covers again."""
        self.count("bus_connects", 1)
        self._log.info("bus_up", bus=str(self._options.bus))
        for name in self._control_names:
            self._subscriber.subscribe_control(name)
        self._hub.on_up(covers)
        self._publisher.resume()
        self._probe.on_up()
        self._users.on_up()
        self._membership.on_up()

    def on_down(self, covers: Covers | None = None) -> None:
        """It is lost: sockets stay, publishes and subscriptions fail until it is back."""
        if self._has_left:  # nobody is left to miss it
            return
        self.count("bus_failures", 1)
        self._log.warning("bus_down", bus=str(self._options.bus))
        self._region["bus_up"] = 0
        self._region["probe_due_ms"] = 0
        self._hub.on_down(covers)
        self._schedule()

    def on_failed(self, why: str) -> None:
        """The bus was lost or cannot be reached, by either connection: an operator wants to know why."""
        if not self._has_left:
            self._log.warning("bus_failed", bus=str(self._options.bus), why=why)

    def _on_publication_fault(self, fault: Exception) -> None:
        """A publication could not be handed on: a fault of ours, which costs that one."""
        self._log.exception("publication_failed", fault)

    def on_control(self, name: bytes, payload: bytes | None) -> None:
        """Something that is no publication, or the confirmation that it is heard."""
        if name in self._control_names:
            if payload is not None:
                self._control.run(payload)
                self._schedule()
            elif name == self._control_names[0]:
                # Only now: what is revoked between reading all revocations and this would be missed.
                self._revocations.on_up()
        else:
            self._probe.on_control(name, payload)

    def on_subscribed(self, name: bytes) -> bool:
        """A subscription is live; False: not everybody is told yet."""
        return self._hub.on_subscribed(name)

    def on_refused(self, name: bytes) -> bool:
        """The bus forbids a channel. One that forbids an inbox is of no use: no backend reaches its user."""
        if name.startswith(INBOX_MARK.encode()):
            return False
        why = "the ACL of the bus forbids a channel: give the gateway's user every channel below the prefix"
        self._log.warning("bus_forbids_channel", bus=str(self._options.bus), why=why)
        self._hub.on_refused(name)
        self._schedule()
        return True

    def on_lost(self, name: bytes, *, was_asked: bool) -> None:
        """A slot of the cluster moved."""
        self._hub.on_lost(name, was_asked=was_asked)

    def on_moved(self) -> None:
        """The cluster's map was read again."""
        self._hub.on_moved()
        self._schedule()

    def on_pass(self) -> None:
        """Hand on what was received, and write what it gave rise to."""
        self._hub.resubscribe()
        self._schedule()

    def _on_unheard(self, name: bytes) -> None:
        """The bus answers that nobody receives a name this shard is subscribed to: so it does not receive.

        Both connections are made anew, at most once a second: a server that always says so is not asked more
        often for it.
        """
        if self._loop.time() < self._renew_after_s or not self._subscriber.is_up:
            return  # they are being made anew
        self._renew_after_s = self._loop.time() + RENEW_S
        self._log.warning("bus_silent", bus=str(self._options.bus))
        self._publisher.renew("the bus has no receiver", name)
        self._subscriber.renew("the bus has no receiver", name)

    def _on_echo(self, took_us: int, due_ms: int) -> None:
        if not self._subscriber.is_up:  # it was under way when a connection was lost
            return
        self._region["bus_up"] = 1
        self._region["probe_due_ms"] = due_ms
        self._region.observe("probe_us", took_us)
        self.count("probes_echoed", 1)

    # --- four times a second --------------------------------------------------------------------------

    def _tick(self, due_s: float) -> None:
        if self._is_over:
            return
        now_s = self._loop.time()
        self._region.observe("loop_lag_us", max(0, int((now_s - due_s) * 1e6)))
        # An even count keeps the ticks at which the statistics are due.
        steps = RESTING_TICKS if self._is_resting and self._ticks % RESTING_TICKS == 0 else 1
        next_s = max(now_s, due_s + steps * TICK_S)
        self._loop.call_at(next_s, self._tick, next_s)
        self._reactor.tick(now_ms(), wall_ms())
        self._look_at_boards()
        self._users.tick(now_s)
        self._lease.tick(now_s)
        self._membership.tick(now_s)
        self._revocations.tick(now_s)
        self._pump()
        flush_outputs()
        numbers_now = self._reactor.counters()
        self._renew_gate(numbers_now["refused"])
        self._ticks += steps
        self._is_resting = not (numbers_now["now_connections"] or self._is_draining)
        if self._ticks % NUMBERS_TICKS == 0:
            self._tokens.tick(time.time())
            self._write_numbers(numbers_now)
        self._beat(numbers_now)

    def _look_at_boards(self) -> None:
        """What was told anew since the last tick: the configuration, the key set."""
        boards = self._boards
        if boards.configuration.version != self._seen and (posted := boards.configuration.read()):
            self._seen = posted[0]
            try:
                self._renew(Renewal.from_bytes(posted[1]).applied(self._options))
            except Exception as error:  # the keeper has checked it: a fault of ours, and no reason to end
                self._log.error("config_reload_failed", error=_safe_text(error))
        if boards.key_set.version != self._seen_keys and (posted := boards.key_set.read()):
            self._seen_keys = posted[0]
            try:
                self._tokens.renew_fetched(*read_jwks(posted[1]))
                self.count("keys_fetched", 1)
            except Exception as error:
                self._log.error("key_set_rejected", error=_safe_text(error))
        self._region["key_set_missing"] = self._tokens.is_awaiting

    def _renew(self, options: ShardOptions) -> None:
        """Other keys, rules and limits; nobody is dropped for them."""
        keys = tuple(source.make(is_checked=True) for source in options.keys)
        self._reactor.renew(options.reactor)
        self._options = options
        self._tokens.renew(keys, options.tokens, options.token_cache_entries)
        self._access.renew(options.channels, options.any_channel)
        self._handshakes.renew(options)
        self._claims = ProxyClaims(self._reactor, options.gate, self.count)
        for part in (self._members, self._replies, self._subscriptions, self._logins, self._commands):
            part.renew(options)
        self._hub.limit_unconfirmed(options.reactor.max_subscriptions)
        self._users.renew(options.user_limits)
        self._subscriber.limit_payload(_payload_limit_bytes(options))
        self._forms.threshold_bytes = options.compression_threshold_bytes
        self._refused_before = -1  # the gate is set with the next tick's Retry-After
        self.count("config_reloads", 1)
        self._log.info("config_reloaded")

    def _renew_gate(self, refused: int) -> None:
        """A new Retry-After for those the gate refuses, so that they do not come back together."""
        if refused == self._refused_before:
            return
        self._refused_before = refused
        self._reactor.set_gate(
            self._options.gate,
            refusal(503, "over_capacity", retry_after_s=spread_s(10)).response,
            refusal(429, "too_many_of_address", retry_after_s=spread_s(10)).response,
        )

    def _beat(self, numbers_now: Mapping[str, int]) -> None:
        """What the keeper steers by, and what clients that are cut are told."""
        self._bus_memory.tick(self._loop.time())
        refuses_newcomers = bool(self._block.keeper["sockets_short"]) or self._bus_memory.is_full
        self._accounts.tick(numbers_now, self._options.gate, refuses_newcomers=refuses_newcomers)
        if self._is_draining:
            self._region["room"] = 0
        if not self._is_draining:
            self._look_at_siblings(numbers_now)
        self._region["beat_ms"] = now_ms()
        self._spare_cache()
        if numbers_now["now_short"]:
            self._replies.spread_shed()  # the next lot, which is cut before this is called again

    def _spare_cache(self) -> None:
        """Have the token cache give way, so that nobody is ever refused for what it holds."""
        budget = self._options.gate.memory_bytes
        over = (
            sum(self._reactor.bytes_held().values())
            + self._region["memory_unaccounted_bytes"]
            - budget * CACHE_MARK
        )
        if budget and over > 0:
            self._tokens.shrink(int(over), time.time())

    def _look_at_siblings(self, numbers_now: Mapping[str, int]) -> None:
        """Once a second, and four times while it may soon be full."""
        options = self._options
        gate = options.gate
        force_refresh = (
            self._ticks % NUMBERS_TICKS == 0
            or numbers_now["now_connections"] > gate.connections // 8 * 7
            or bool(numbers_now["now_short"])
        )
        share = self._siblings.look(
            now_ms(), options.node_limits.handshake_rate_per_s, force_refresh=force_refresh
        )
        if share is not None and abs(share - gate.handshake_rate_per_s) > gate.handshake_rate_per_s // 8:
            self._options = replace(options, gate=replace(gate, handshake_rate_per_s=share))
            self._refused_before = -1  # the gate is set with the next tick

    def _outside_bytes(self) -> int:
        """What the shard's own parts hold beside the reactor."""
        rates = self._users.rates
        return (
            self._tokens.cached_bytes
            + self._tokens.permissions.bytes_held
            + self._tokens.revoked_bytes
            + self._logins.waiting_bytes
            + self._subscriptions.waiting_bytes
            + self._commands.waiting_bytes
            + self._verification.waiting_bytes
            + self._publisher.waiting_bytes
            + self._hub.waiting_bytes
            + self._commands.budget.bytes_estimate
            + self._backlog.held_bytes
            + sum(each.memory_bytes for each in set(self._events.appenders))
            + (rates.users * LEASE_BYTES if rates else 0)
            + waiting_bytes()
        )

    def _write_numbers(self, numbers_now: Mapping[str, int]) -> None:
        """Everything counted, into the region."""
        region = self._region
        if numbers_now != self._written:  # equal in a resting shard, where comparing is all it costs
            self._written = numbers_now
            for name in COUNTER_NAMES:
                region[name] = numbers_now[name]
            for name in REASON_NAMES[1:]:
                region["ended_" + name] = numbers_now["ended_" + name]
            for name in numbers_now:
                if name.startswith("now_"):
                    region[name] = numbers_now[name]
        for name, value in self._counts.items():
            if not name.startswith("ended_"):
                region[name] = value
        held = self._reactor.bytes_held()
        for name, value in held.items():
            region["held_" + name] = value
        self._accounts.look(numbers_now, self._options.gate, held, self._listener_fd)
        region["token_cache_entries"] = self._tokens.cached
        region["permission_sets"] = len(self._tokens.permissions)
        region["permission_sets_bytes"] = self._tokens.permissions.bytes_held
        region["revoked_users"] = self._tokens.revoked
        region["subscriptions_pending"] = self._hub.pending
        region["backlog_publications"] = len(self._backlog)
        region["backlog_bytes"] = self._backlog.held_bytes
        self._counts["publications_dropped"] = self._backlog.dropped
        # The interpreter walks its whole heap for this number: 0.05 ms, and 20 ms where the kernel has put
        # the pages of a resting process away. So only when connections came or went, and once a minute.
        if numbers_now["now_connections"] != self._blocks_of or self._ticks % BLOCKS_TICKS == 0:
            self._blocks_of = numbers_now["now_connections"]
            region["python_blocks"] = sys.getallocatedblocks()
        region["log_lines_dropped"] = dropped_lines()
        region["events_appended"] = sum(each.appended for each in self._events.appenders)
        region["events_repeated"] = sum(each.repeated for each in self._events.appenders)
        region["events_trimmed"] = sum(each.trimmed for each in self._events.appenders)
        region["events_waiting"] = sum(each.held for each in self._events.appenders)
        region["events_waiting_bytes"] = sum(each.held_bytes for each in self._events.appenders)
        region["events_streams_refusing"] = self._events.refusing_streams


def _payload_limit_bytes(options: ShardOptions) -> int:
    """Of what the bus may send: the largest publication of any channel, in an envelope."""
    rules = [*options.channels.values(), *filter(None, [options.any_channel])]
    return max((each.max_publish_bytes for each in rules), default=0) + ENVELOPE_ROOM_BYTES


def _safe_text(error: Exception) -> str:
    """The text of an error of ours; of any other only its type, because its text may show what was read."""
    return str(error) if isinstance(error, WsgateError) else type(error).__name__
