"""Drive one shard: its start and end, the pass, and what is due four times a second.

A pass is `Shard._pump`: poll the reactor, run the messages of clients, let each part do its share, flush. It
runs when the reactor's descriptor is readable, after every pass of the bus reader and every 250 ms. Work that
is left over requests another pass. Nothing in a pass waits.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import uvloop

from wsgate.auth import Member
from wsgate.auth.jwks import read_jwks
from wsgate.errors import WsgateError
from wsgate.handshake import refusal
from wsgate.log import Log
from wsgate.output import finish_outputs, flush_outputs
from wsgate.reactor import event_kinds
from wsgate.reactor.metric_names import COUNTER_NAMES
from wsgate.reasons import Reason
from wsgate.shard import statistics_layout
from wsgate.shard.collector import CollectorClock
from wsgate.shard.drain import drain, empty_queue
from wsgate.shard.handshakes import spread_s
from wsgate.shard.members import now_ms, wall_ms
from wsgate.shard.options import ShardOptions, Shared
from wsgate.shard.pass_budget import PassBudget
from wsgate.shard.publication_encoder import DIALECT_OF
from wsgate.shard.reload import Renewal
from wsgate.shard.wiring import Hooks, Parts
from wsgate.statistics import PHASE_DRAINING, PHASE_READY, Region

__all__ = ["Shard", "run_shard"]

TICK_S: Final = 0.25
RESTING_TICKS: Final = 2
"""A shard without a connection does every second tick only: 0.16 % of a core became 0.09 %."""
NUMBERS_TICKS: Final = 4
"""Publish the statistics only every fourth tick, so that an idle shard uses almost no CPU."""
FLUSH_S: Final = 1.0
"""How long the last events may take to reach their stream: half of what the keeper allows after a drain."""
SOON_S: Final = 0.001
COSTLY_NS: Final = 10_000
"""A message that took longer is charged to its connection; the reactor charges 5 us for each by itself.

A `pub` takes 20 us. With 25 us here, 250 clients that publish without pause owed a quarter of what they cost,
and a good client's publish took 31 ms (p50) where it takes 7.5. python -m loadtest publish_fairness
"""
GOODBYE_S: Final = 0.5
LATE_MS: Final = 500
CACHE_MARK: Final = 27 / 32
"""Of the budget: above it the oldest cached tokens go, well before newcomers are refused at 15/16."""
_OUR_OWN: Final = tuple(name for name in statistics_layout.LAYOUT.counters if name not in COUNTER_NAMES)


def run_shard(
    options: ShardOptions,
    listener_fd: int,
    shared: Shared,
    alive_fd: int,
    seen: int = 0,
) -> int:
    """Run a shard until SIGTERM or until the keeper ends; return the exit code.

    Call it in a fresh process, forked or not: it seeds the random generator and makes every key.

    Args:
        options: Of the shard.
        listener_fd: A listening socket, which the keeper owns.
        shared: Memory and sockets that the node's processes share. A shard writes to its own region only.
        alive_fd: The read end of a pipe from the keeper. It becomes readable when the keeper has ended.
        seen: The version of the configuration on the board that the options come from; 0: none was posted.
    """
    random.seed()
    return uvloop.run(Shard(options, listener_fd, shared, alive_fd, seen).run())


class Shard:
    """One shard of a node, in a process of its own. The arguments are those of `run_shard`."""

    def __init__(
        self,
        options: ShardOptions,
        listener_fd: int,
        shared: Shared,
        alive_fd: int,
        seen: int = 0,
    ) -> None:
        """Make nothing yet: sockets and connections are made by `run`."""
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
        self._is_over = False
        self._refused_before = -1

    def count(self, name: str, amount: int) -> None:
        """Add an amount to one of the shard's own counters."""
        self._counts[name] += amount

    # --- wiring ---------------------------------------------------------------------------------------

    def _build(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # Closed at the end, where an accept needs a descriptor and none is free.
        self._spare_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        hooks = Hooks(
            count=self.count,
            wake=self._schedule,
            wake_soon=self._schedule_soon,
            clock_s=loop.time,
        )
        self._parts = Parts(self._options, self._shared, self._log, self._counts, hooks)
        self._reactor = self._parts.reactor

    async def run(self) -> int:
        """Serve until SIGTERM, then drain; return 0, or 1 if clients were cut at the end of the drain."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_fault)
        self._build(loop)
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(
            signal.SIGINT, lambda: None
        )  # comes from a terminal to all processes; the keeper decides
        loop.add_reader(self._alive_fd, self._keeper_is_gone)
        tasks = [
            loop.create_task(part.run())
            for part in (*self._parts.bus.parts, *self._parts.events.appenders, self._parts.probe)
        ]
        for task in tasks:
            task.add_done_callback(self._on_task_done)
        self._collector.start()
        self._renew_gate(0)
        self._reactor.listen(self._listener_fd)
        loop.add_reader(self._reactor.fileno(), self._pump)
        if self._parts.siblings:
            loop.add_reader(self._parts.siblings.fileno(), self._take_handed)
        self._region["pid"] = os.getpid()
        self._region["phase"] = PHASE_READY
        self._write_statistics(self._reactor.counters())
        self._tick(loop.time())
        await stop.wait()
        left = await self._leave()
        if untold := await self._parts.events.flush(FLUSH_S):
            self._log.warning("events_lost_at_shutdown", events=untold)
        await self._say_goodbye()
        self._parts.bus_events.is_ending = True
        for task in tasks:
            task.remove_done_callback(self._on_task_done)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._parts.publisher.close()
        self._write_statistics(self._reactor.counters())
        self._is_over = True  # the loop goes round a few times more
        self._collector.stop()
        loop.remove_reader(self._reactor.fileno())
        self._reactor.shutdown()
        return 1 if left else 0

    async def _say_goodbye(self) -> None:
        """Delete this shard's liveness key and the lease of the node's name; wait at most `GOODBYE_S`."""
        deleted, released, left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._parts.users.close(deleted.set)
        self._parts.lease.release(released.set)
        self._parts.membership.leave(left.set)
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
        self._is_draining = self._parts.handshakes.is_draining = True
        self._region["phase"] = PHASE_DRAINING
        self._region["room"] = 0
        self._parts.siblings.stop()  # all shards of the node are ending
        self._stop_rating()
        await empty_queue(self._reactor, self._listener_fd, self._pump, self._spare_fd)
        self._reactor.stop_listening()
        os.close(self._listener_fd)
        self._listener_fd = -1
        self._parts.logins.refuse_waiting(
            lambda: refusal(503, "draining", retry_after_s=spread_s(5)).response
        )
        passed_ms = int((self._loop.time() - began_s) * 1000)
        left = await self._drain(max(0, self._options.drain_timeout_ms - passed_ms))
        if self._parts.siblings:
            # Answer the connections that other shards have handed over until just now, like all late ones.
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
            self._parts.replies,
            within_ms,
            self._schedule,
            has_private_bus=self._options.has_private_bus,
        )

    def _take_handed(self) -> None:
        self._parts.siblings.take(now_ms())
        self._schedule()

    def _keeper_is_gone(self) -> None:
        """End at once when the keeper is gone, because nothing would restart, drain or count this shard."""
        os._exit(1)

    def _on_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an exception of a callback of the loop, which is a fault of ours, at most once a second."""
        fault = context.get("exception")
        if isinstance(fault, BaseException):
            # Without the message: it may show what the callback was called with.
            self._log.exception("callback_failed", fault)
        else:
            self._log.error("callback_failed", text=context["message"])

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        """End the process when a part ends by itself, which is a fault of ours; the keeper restarts it."""
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
        """Request a pass within a millisecond: a pass for each reply of the bus costs more than the reply.

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
        most, released, took_ns = self._budget.messages, 0, 0
        if self._parts.logins.has_released:
            messages = self._parts.logins.take_released(most)
            released, took_ns = len(messages), self._handle(messages, now)
        taken = reactor.poll(now, max(1, most - released))
        took_ns += self._handle(taken, now)
        self._budget.note(released + len(taken), took_ns / 1e9)
        # Each part does its share of the pass, whether or not another one has more to do.
        has_more = self._parts.newcomers.step() | self._parts.hub.tidy() | self._parts.control.step()
        if reactor.is_full:
            # Replies of this pass may have filled an outbox whose socket takes them at once.
            reactor.flush(now)
        self._parts.pacer.step()
        has_more = has_more or self._parts.logins.has_released or self._parts.pacer.is_ready
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
        reactor, run = self._reactor, self._parts.commands.run
        self._collector.take_ns()
        before_ns = began_ns = time.perf_counter_ns()
        for kind, conn, value in taken:
            try:
                if kind <= event_kinds.BINARY:
                    if (variant := reactor.variant(conn)) < 0:
                        self.count("messages_of_reset_connections", 1)
                        continue
                    run(conn, DIALECT_OF[variant], value, kind)  # type: ignore[arg-type]
                elif kind == event_kinds.OPEN:
                    self._parts.newcomers.open(conn, value)  # type: ignore[arg-type]
                elif kind == event_kinds.CLOSED:
                    self._on_closed(conn, *cast(tuple[int, Any], value), now)
            except Exception:  # a fault of ours must end this connection only
                self._log.exception("command_failed")
                if (variant := reactor.variant(conn)) >= 0:
                    self._parts.replies.end(conn, DIALECT_OF[variant], Reason.INTERNAL)
            after_ns = time.perf_counter_ns()
            if after_ns - before_ns >= COSTLY_NS and kind <= event_kinds.BINARY:
                reactor.charge(conn, max(0, after_ns - before_ns - self._collector.take_ns()))
            before_ns = after_ns
        return before_ns - began_ns

    def _on_closed(self, conn: int, reason: int, member: Member | None, now: int) -> None:
        """Record the end of a connection for backends, and forget the connection in every part."""
        if self._parts.events.is_on:
            self._parts.events.disconnected(conn, reason, member, now)
        if member is not None:
            if self._parts.users.has_counted and member.user_utf8:
                self._parts.users.leave(conn, member.user)
            self._parts.members.release(member)
        self._parts.forget(conn)

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
        self._parts.users.tick(now_s)
        self._parts.lease.tick(now_s)
        self._parts.membership.tick(now_s)
        self._parts.revocations.tick(now_s)
        self._pump()
        flush_outputs()
        numbers_now = self._reactor.counters()
        self._renew_gate(numbers_now["refused"])
        self._ticks += steps
        self._is_resting = not (numbers_now["now_connections"] or self._is_draining)
        if self._ticks % NUMBERS_TICKS == 0:
            self._parts.tokens.tick(time.time(), now_s)
            self._write_statistics(numbers_now)
        self._beat(numbers_now)

    def _write_statistics(self, numbers_now: Mapping[str, int]) -> None:
        self._parts.reporter.write(numbers_now, self._options.gate, self._listener_fd)

    def _look_at_boards(self) -> None:
        """Apply the configuration and the key set that were posted since the last tick."""
        boards = self._boards
        if boards.configuration.version != self._seen and (posted := boards.configuration.read()):
            self._seen = posted[0]
            try:
                self._renew(Renewal.from_bytes(posted[1]).applied(self._options))
            except (
                Exception
            ) as error:  # the keeper has checked it, so this is a fault of ours; the shard goes on
                self._log.error("config_reload_failed", error=_safe_text(error))
        if boards.key_set.version != self._seen_keys and (posted := boards.key_set.read()):
            self._seen_keys = posted[0]
            try:
                self._parts.tokens.renew_fetched(*read_jwks(posted[1]))
                self.count("keys_fetched", 1)
            except Exception as error:
                self._log.error("key_set_rejected", error=_safe_text(error))
        self._region["key_set_missing"] = self._parts.tokens.is_awaiting

    def _renew(self, options: ShardOptions) -> None:
        """Use other keys, rules and limits from now on; no connection is closed for them."""
        self._parts.renew(options)
        self._options = options
        self._refused_before = -1  # the gate is set with the next tick's Retry-After
        self.count("config_reloads", 1)
        self._log.info("config_reloaded")

    def _renew_gate(self, refused: int) -> None:
        """Draw a new Retry-After for connections that the gate refuses, to spread their return."""
        if refused == self._refused_before:
            return
        self._refused_before = refused
        self._reactor.set_gate(
            self._options.gate,
            refusal(503, "over_capacity", retry_after_s=spread_s(10)).response,
            refusal(429, "too_many_of_address", retry_after_s=spread_s(10)).response,
        )

    def _beat(self, numbers_now: Mapping[str, int]) -> None:
        """Report the shard's capacity, look for shards with room, and give back memory of the token cache."""
        self._parts.bus_memory.tick(self._loop.time())
        refuses_newcomers = bool(self._block.keeper["sockets_short"]) or self._parts.bus_memory.is_full
        self._parts.capacity.tick(numbers_now, self._options.gate, refuses_newcomers=refuses_newcomers)
        if self._is_draining:
            self._region["room"] = 0
        if not self._is_draining:
            self._look_at_siblings(numbers_now)
        self._region["beat_ms"] = now_ms()
        self._spare_cache()
        if numbers_now["now_short"]:
            self._parts.replies.spread_shed()  # for the connections that are cut before the next tick

    def _spare_cache(self) -> None:
        """Shrink the token cache before its memory makes the gate refuse newcomers."""
        budget = self._options.gate.memory_bytes
        over = (
            sum(self._reactor.bytes_held().values())
            + self._region["memory_unaccounted_bytes"]
            - budget * CACHE_MARK
        )
        if budget and over > 0:
            self._parts.tokens.shrink(int(over), time.time())

    def _look_at_siblings(self, numbers_now: Mapping[str, int]) -> None:
        """Look for shards with room once a second, and at every tick while this shard may soon be full."""
        options = self._options
        gate = options.gate
        force_refresh = (
            self._ticks % NUMBERS_TICKS == 0
            or numbers_now["now_connections"] > gate.connections // 8 * 7
            or bool(numbers_now["now_short"])
        )
        share = self._parts.siblings.look(
            now_ms(), options.node_limits.handshake_rate_per_s, force_refresh=force_refresh
        )
        if share is not None and abs(share - gate.handshake_rate_per_s) > gate.handshake_rate_per_s // 8:
            self._options = replace(options, gate=replace(gate, handshake_rate_per_s=share))
            self._refused_before = -1  # the gate is set with the next tick


def _safe_text(error: Exception) -> str:
    """The text of an error of ours; of any other only its type, because its text may show what was read."""
    return str(error) if isinstance(error, WsgateError) else type(error).__name__
