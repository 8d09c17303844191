"""Consumes the event streams as a member of a consumer group, so that each event is handled at least once.

This module owns the loops. An entry is acknowledged only when it was handled, was recognized as handled
before, or was moved to the dead letters. If this process ends earlier, another consumer claims the entry.

Source: protocols/backend/v1/spec.md.
"""

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from wsgate.client.backend.address import Client
from wsgate.client.backend.bus import Bus, Entry, NoGroup, Reader
from wsgate.client.backend.event import Event
from wsgate.client.backend.handling import EntryCase, Handling
from wsgate.client.backend.options import ConsumerOptions
from wsgate.client.backend.ownership import RENEWALS, renew
from wsgate.client.backend.partition import Partition, Turn
from wsgate.client.backend.stopping import Stopping
from wsgate.client.callbacks import Callbacks, ErrorCallback
from wsgate.client.tasks import Tasks
from wsgate.errors import InternalError, SettingsError

__all__ = ["EventConsumer"]

_BEGINNING: Final = "0-0"


class EventConsumer:
    """Reads events from the bus and calls a handler at least once for each of them.

    An event is finished when its handler returns. If the handler raises, it is called again after a delay; an
    event whose attempts all failed is moved to the stream `P:events:dead`. Within one consumer, events of one
    user are handled in their order, those of different users at the same time. Two consumers of one group
    that read the same partition may handle events of one user at the same time: see `own_partitions`. A
    repeated event (the same `id`) is acknowledged without being handled, if this process remembers it. Events
    that another process has handled are not recognized.
    """

    def __init__(
        self,
        where: str | Client,
        group: str,
        handle: Callable[[Event], Awaitable[None]],
        *,
        options: ConsumerOptions | None = None,
        on_error: ErrorCallback | None = None,
    ) -> None:
        """Create a consumer; it reads nothing before `run`.

        Args:
            where: A bus URL, or a client of `redis.asyncio`, which the caller must close. See `Publisher`.
            group: The name of the consumer group, one for each backend. Its processes share the events.
            handle: The handler, a coroutine function, or an object whose `__call__` is one.
            options: See `ConsumerOptions`.
            on_error: Called with each error, also with the exceptions of the handler. Without it, errors are
                logged.

        Raises:
            SettingsError: The URL is not valid, the client has `decode_responses` or retries, `group` is
                empty, `handle` is not a coroutine function, `own_partitions` names a partition that does not
                exist, or `block_s` is not less than the `socket_timeout` of the client.
        """
        given: object = group  # not every caller checks types
        if not isinstance(given, str) or not given:
            raise SettingsError(f"group: {given!r} is not a text of one character or more")
        if not _is_coroutine_function(handle):
            raise SettingsError(f"handle: {handle!r} is not a coroutine function (async def)")
        self._options = options or ConsumerOptions()
        self._bus = Bus(where, timeout_s=self._options.timeout_s)
        self._bus.check_block(self._options.block_s)
        self._callbacks = Callbacks(on_error)
        self._tasks = Tasks(self._callbacks.report)
        self._stopping = Stopping()
        self._handling = Handling(
            self._bus,
            handle,
            options=self._options,
            stopping=self._stopping,
            report=self._callbacks.report,
        )
        self._ended = asyncio.Event()
        self._is_started = False
        prefix, name = self._options.prefix, self._options.consumer
        self._partitions = [
            Partition(
                Reader(f"{prefix}:events:{number}", group, name),
                self._options.concurrency,
                self._options.start_at,
            )
            for number in self._own_partitions()
        ]

    def _own_partitions(self) -> Collection[int]:
        """Return the numbers of the partitions that are read; raise SettingsError if one does not exist."""
        partitions, own = range(self._options.partitions), self._options.own_partitions
        if own is None:
            return partitions
        if not own or not set(own) <= set(partitions):
            raise SettingsError(f"own_partitions: {own!r} is not a choice from 0 to {len(partitions) - 1}")
        return sorted(set(own))

    async def run(self) -> None:
        """Handle events until `stop` is called. May be called once.

        When it is cancelled, it ends at once; other consumers claim the entries that were not finished.
        """
        if self._is_started:
            raise InternalError("the consumer was run already")
        self._is_started = True
        try:
            for partition in self._partitions:
                self._tasks.start(self._take_over(partition))
                self._tasks.start(self._renew(partition))
            readers = {self._tasks.start(self._read(partition)) for partition in self._partitions}
            await asyncio.wait(readers)
            for partition in self._partitions:
                await partition.wait_until_empty()
        finally:
            try:
                await self._tasks.cancel()
                await self._callbacks.cancel()
                await self._bus.close()
            finally:
                self._ended.set()

    async def stop(self) -> None:
        """Stop reading, finish the accepted entries, and return when `run` has returned.

        An entry whose handler fails during this time is not tried again here. This entry and later ones of
        the same user are left, and another consumer claims them. Must not be called by a handler.
        """
        self._stopping.set()
        if self._is_started:
            await self._ended.wait()

    # --- reading --------------------------------------------------------------------------------------

    async def _read(self, partition: Partition) -> None:
        """Read one partition in a loop as far as there is room; after an error, pause and continue."""
        failures = 0
        while not self._stopping.is_set:
            try:
                await self._read_once(partition)
                failures = 0
            except Exception as error:
                if isinstance(error, NoGroup):
                    partition.lost_group()
                partition.look_back()
                self._callbacks.report(error)
                await self._stopping.pause(self._options.backoff.delay_s(failures, random.random))
                failures += 1

    async def _read_once(self, partition: Partition) -> None:
        if not partition.has_group:
            await self._bus.create_group(partition.reader, partition.start_at)
            partition.has_group = True
        await partition.wait_for_room()
        if self._stopping.is_set:
            return
        asked_at_s = _now_s()
        entries = await self._bus.read(
            partition.reader, partition.cursor, count=partition.room, block_s=self._options.block_s
        )
        if partition.cursor == ">":
            for entry in entries:
                self._accept(partition, entry, owned_at_s=asked_at_s)
            return
        partition.cursor = entries[-1].id if entries else ">"
        await self._accept_again(partition, entries, owned_at_s=asked_at_s)

    async def _take_over(self, partition: Partition) -> None:
        """Claim the unfinished entries of other consumers in a loop."""
        while not self._stopping.is_set:
            try:
                await self._take_over_all(partition)
            except NoGroup:
                pass  # `_read` creates the group
            except Exception as error:
                self._callbacks.report(error)
            # The pause is random, so that consumers that started together do not claim at the same moment.
            spread = 0.5 + random.random()  # noqa: S311 - not a secret
            await self._stopping.pause(self._options.takeover_every_s * spread)

    async def _take_over_all(self, partition: Partition) -> None:
        cursor = ""
        while cursor != _BEGINNING and not self._stopping.is_set:
            await partition.wait_for_room()
            asked_at_s = _now_s()
            cursor, entries = await self._bus.take_over(
                partition.reader,
                cursor or _BEGINNING,
                count=partition.room,
                idle_s=self._options.takeover_idle_s,
            )
            await self._accept_again(partition, entries, owned_at_s=asked_at_s)

    async def _renew(self, partition: Partition) -> None:
        """Renew the accepted entries in a loop, also while the consumer stops; its owner cancels it."""
        idle_s = self._options.takeover_idle_s
        while True:
            await asyncio.sleep(idle_s / RENEWALS)
            try:
                await renew(self._bus, partition.reader, partition.turns, idle_s)
            except NoGroup:
                pass  # `_read` creates the group
            except Exception as error:
                self._callbacks.report(error)

    # --- one entry ------------------------------------------------------------------------------------

    async def _accept_again(self, partition: Partition, entries: list[Entry], *, owned_at_s: float) -> None:
        """Accept entries that were delivered before; those delivered too often become dead letters.

        An entry that is no longer pending was acknowledged, perhaps by this process, after it was read here.
        """
        if not entries:
            return
        deliveries = await self._bus.deliveries(partition.reader, entries)
        for entry in entries:
            if entry.id in deliveries:
                is_fatal = deliveries[entry.id] > self._options.deliveries_limit
                self._accept(partition, entry, owned_at_s=owned_at_s, is_fatal=is_fatal)

    def _accept(
        self, partition: Partition, entry: Entry, *, owned_at_s: float, is_fatal: bool = False
    ) -> None:
        """Start a task for an entry, unless one exists: a claim may return an entry of this process."""
        case = self._handling.examine(entry, is_fatal=is_fatal)
        turn = partition.take(entry, case.key, owned_at_s=owned_at_s)
        if turn is not None:
            self._tasks.start(self._settle(partition, case, turn))

    async def _settle(self, partition: Partition, case: EntryCase, turn: Turn) -> None:
        is_left = True
        try:
            if await turn.begin():
                is_left = not await self._handling.settle(partition.reader, case, turn)
        finally:
            # A read that is under way when the consumer stops may still return events of the same user.
            partition.put_down(turn, is_left=is_left, closes_queue=self._stopping.is_set)


def _is_coroutine_function(handle: object) -> bool:
    """Return whether a call returns a coroutine; a plain function would act before its result is refused."""
    called = getattr(handle, "__call__", None)  # noqa: B004 - the method itself is examined
    return inspect.iscoroutinefunction(handle) or inspect.iscoroutinefunction(called)


def _now_s() -> float:
    """Return the time of the event loop, in seconds."""
    return asyncio.get_running_loop().time()
