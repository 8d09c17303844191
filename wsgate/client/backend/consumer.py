"""Hears what clients did: reads event streams as one of a group, and loses nothing.

Owns the loops. An entry is acknowledged only when it was dealt with: handled, seen before, or moved to the
dead letters. Whatever else becomes of this process, somebody takes the entry over.

Source: protocols/backend/v1/spec.md.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

from wsgate.client.backend.address import Client
from wsgate.client.backend.bus import Bus, Entry, NoGroup, Reader
from wsgate.client.backend.event import Event
from wsgate.client.backend.handling import EntryCase, Handling
from wsgate.client.backend.options import ConsumerOptions
from wsgate.client.backend.partition import Partition, Turn
from wsgate.client.backend.stopping import Stopping
from wsgate.client.callbacks import Callbacks, ErrorCallback
from wsgate.client.tasks import Tasks
from wsgate.errors import InternalError

__all__ = ["EventConsumer"]

_BEGINNING: Final = "0-0"


class EventConsumer:
    """Hands events to a handler, at least once each.

    A handler that returns has dealt with its event. One that raises is called again, after a while; an event
    that fails every time is moved to the stream `P:events:dead`. Events of one user are handled in the order
    in which they came, those of different users side by side. A repetition (the same `id`) is acknowledged
    without being handled, as far as this process remembers; what another process has handled it cannot know.
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
        """Nothing happens before `run`.

        Args:
            where: A bus URL, or a client of `redis.asyncio`, which stays its owner's. See `Publisher`.
            group: One for each backend; its processes share the work.
            handle: The handler, a coroutine function.
            options: See `ConsumerOptions`.
            on_error: Told what goes wrong, a handler's exceptions too; by default the log is.

        Raises:
            SettingsError: The URL is none, or the client decodes what it reads.
        """
        self._options = options or ConsumerOptions()
        self._bus = Bus(where, timeout_s=self._options.timeout_s)
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
            for number in range(self._options.partitions)
        ]

    async def run(self) -> None:
        """Handle events until `stop`; once.

        Cancelled, it ends at once: what was in hand is taken over by others.
        """
        if self._is_started:
            raise InternalError("a consumer runs once")
        self._is_started = True
        try:
            for partition in self._partitions:
                self._tasks.start(self._take_over(partition))
            readers = {self._tasks.start(self._read(partition)) for partition in self._partitions}
            await asyncio.wait(readers)
            for partition in self._partitions:
                await partition.wait_until_empty()
        finally:
            try:
                await self._tasks.cancel()
                await self._callbacks.tasks.cancel()
                await self._bus.close()
            finally:
                self._ended.set()

    async def stop(self) -> None:
        """Read no more, finish what is in hand, and return when `run` has. Not from within a handler.

        What fails meanwhile is not tried again: it is left to others.
        """
        self._stopping.set()
        if self._is_started:
            await self._ended.wait()

    # --- reading --------------------------------------------------------------------------------------

    async def _read(self, partition: Partition) -> None:
        """Read as much as there is room for, whatever becomes of Redis meanwhile."""
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
        entries = await self._bus.read(
            partition.reader, partition.cursor, count=partition.room, block_s=self._options.block_s
        )
        if partition.cursor == ">":
            for entry in entries:
                self._accept(partition, entry)
            return
        partition.cursor = entries[-1].id if entries else ">"
        await self._accept_again(partition, entries)

    async def _take_over(self, partition: Partition) -> None:
        """Now and then, take over what others left."""
        while not self._stopping.is_set:
            try:
                await self._take_over_all(partition)
            except NoGroup:
                pass  # whoever reads creates it
            except Exception as error:
                self._callbacks.report(error)
            # Not in step with others that were started together.
            spread = 0.5 + random.random()  # noqa: S311 - spreading, not secrecy
            await self._stopping.pause(self._options.takeover_every_s * spread)

    async def _take_over_all(self, partition: Partition) -> None:
        cursor = ""
        while cursor != _BEGINNING and not self._stopping.is_set:
            await partition.wait_for_room()
            cursor, entries = await self._bus.take_over(
                partition.reader,
                cursor or _BEGINNING,
                count=partition.room,
                idle_s=self._options.takeover_idle_s,
            )
            await self._accept_again(partition, entries)

    # --- one entry ------------------------------------------------------------------------------------

    async def _accept_again(self, partition: Partition, entries: list[Entry]) -> None:
        """Accept entries that were delivered before; those delivered too often become dead letters.

        An entry that is no longer pending was acknowledged, perhaps by this process, after it was read here.
        """
        if not entries:
            return
        deliveries = await self._bus.deliveries(partition.reader, entries)
        for entry in entries:
            if entry.id in deliveries:
                is_fatal = deliveries[entry.id] > self._options.deliveries_limit
                self._accept(partition, entry, is_fatal=is_fatal)

    def _accept(self, partition: Partition, entry: Entry, *, is_fatal: bool = False) -> None:
        """Take an entry in hand, unless it is: this process may take over from itself."""
        case = self._handling.examine(entry, is_fatal=is_fatal)
        turn = partition.take(entry.id, case.key)
        if turn is not None:
            self._tasks.start(self._settle(partition, case, turn))

    async def _settle(self, partition: Partition, case: EntryCase, turn: Turn) -> None:
        try:
            await turn.begin()
            await self._handling.settle(partition.reader, case)
        finally:
            partition.put_down(case.entry.id, turn)
