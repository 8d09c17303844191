"""What becomes of one entry: handled, known already, or a dead letter; and that Redis knows.

Rules: an entry is acknowledged after its handler has returned, never before. What is left, because it is time
to stop, stays pending in the group: it is nobody's loss.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import Final

from wsgate.client.backend.bus import Bus, Entry, Reader
from wsgate.client.backend.event import Event, MalformedEvent, parse_event
from wsgate.client.backend.options import ConsumerOptions
from wsgate.client.backend.stopping import Stopping
from wsgate.client.backend.window import Window

__all__ = ["EntryCase", "Handling"]

ABANDONED: Final = "Abandoned"
"""The `error` of an entry that took too many processes with it before any of them could say why."""


@dataclass(frozen=True, slots=True)
class DeadLetterCause:
    """Why an entry is a dead letter: an exception's type and after how many attempts."""

    error: str
    attempts: int


@dataclass(frozen=True, slots=True)
class EntryCase:
    """An entry, and what it is: an event, a dead letter at once, or neither when it was trimmed away."""

    entry: Entry
    event: Event | None = None
    verdict: DeadLetterCause | None = None

    @property
    def key(self) -> str:
        """Cases with the same key are settled one after the other."""
        return (self.event.user or self.event.conn) if self.event else self.entry.id


class _Left(Exception):
    """It is time to stop: others will deal with it."""


class Handling:
    """See the module."""

    def __init__(
        self,
        bus: Bus,
        handle: Callable[[Event], Awaitable[None]],
        *,
        options: ConsumerOptions,
        stopping: Stopping,
        report: Callable[[Exception], None],
    ) -> None:
        """Of one consumer."""
        self._bus = bus
        self._handle = handle
        self._options = options
        self._stopping = stopping
        self._report = report
        self._running = asyncio.Semaphore(options.concurrency)
        self._seen = Window(options.seen_limit)
        self._dead = Window(options.seen_limit)

    def examine(self, entry: Entry, *, is_fatal: bool) -> EntryCase:
        """What an entry is; `is_fatal` when it was given to too many already and none came back."""
        if is_fatal:
            return EntryCase(entry, verdict=DeadLetterCause(ABANDONED, 0))
        if not entry.fields:
            return EntryCase(entry)
        try:
            return EntryCase(entry, parse_event(entry.stream, entry.id, entry.fields))
        except MalformedEvent as error:
            self._report(error)
            return EntryCase(entry, verdict=DeadLetterCause(type(error).__name__, 0))

    async def settle(self, reader: Reader, case: EntryCase) -> None:
        """Handle the entry or make it a dead letter, and acknowledge it.

        An entry may be taken over again before the reply to its acknowledgement arrives. It is recognized by
        the event's id, or as a dead letter by the entry's id, and is then only acknowledged.
        """
        event, verdict = case.event, case.verdict
        place = f"{case.entry.stream} {case.entry.id}"
        try:
            if place in self._dead:
                verdict = None
            elif event is not None and event.id not in self._seen:
                verdict = await self._try(event)
                self._seen.add(event.id)
            await self._insist(lambda: self._tell(reader, case.entry, verdict))
            if verdict is not None:
                self._dead.add(place)
        except _Left:
            return

    async def _try(self, event: Event) -> DeadLetterCause | None:
        """Call the handler until it returns; why it never did."""
        attempts = self._options.attempts
        for attempt in range(attempts):
            try:
                async with self._running:
                    await self._handle(event)
                return None
            except Exception as error:
                self._report(error)
                verdict = DeadLetterCause(type(error).__name__, attempt + 1)
            if attempt + 1 < attempts:
                await self._stopping.pause(self._options.backoff.delay_s(attempt, random.random))
                if self._stopping.is_set:
                    raise _Left
        return verdict

    async def _insist(self, tell: Callable[[], Awaitable[None]]) -> None:
        """Until Redis knows, or it is time to stop."""
        for attempt in count():
            try:
                await tell()
                return
            except Exception as error:
                self._report(error)
            await self._stopping.pause(self._options.backoff.delay_s(attempt, random.random))
            if self._stopping.is_set:
                raise _Left

    async def _tell(self, reader: Reader, entry: Entry, verdict: DeadLetterCause | None) -> None:
        if verdict is None:
            await self._bus.acknowledge(reader, entry)
            return
        why = {
            "error": verdict.error,
            "attempts": str(verdict.attempts),
            "stream": entry.stream,
            "entry": entry.id,
        }
        dead = f"{self._options.prefix}:events:dead"
        await self._bus.move_to_dead_letters(reader, entry, dead, why=why, limit=self._options.dead_limit)
