"""Handles one entry: calls the handler or makes the entry a dead letter, and then acknowledges it.

Rules: an entry is acknowledged after its handler has returned, never before. An entry that is not finished
when the consumer stops stays pending in the group, and another consumer claims it. So does a dead letter that
the server refuses for good: it would otherwise keep a place from all later entries.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Final

from wsgate.client.backend.bus import Bus, BusError, Entry, Reader
from wsgate.client.backend.event import Event, MalformedEvent, parse_event
from wsgate.client.backend.options import ConsumerOptions
from wsgate.client.backend.ownership import Owner, find_owner, is_in_doubt
from wsgate.client.backend.partition import Turn
from wsgate.client.backend.stopping import Stopping
from wsgate.client.backend.window import Window
from wsgate.errors import WsgateError

__all__ = ["EntryCase", "HandlerCancelled", "Handling"]

ABANDONED: Final = "Abandoned"
"""The `error` of a dead letter that was delivered too often: perhaps its handling ends the process each
time."""

_REFUSAL_REPORT_EVERY_S: Final = 60.0
"""Seconds between two reports about dead letters that the server refuses: the cause is the same for all."""


class HandlerCancelled(WsgateError):
    """A handler ended with `CancelledError` although nobody cancelled the consumer; this counts as a failure.

    This happens when the handler awaits a future or a task that other code has cancelled.
    """


@dataclass(frozen=True, slots=True)
class DeadLetterCause:
    """Why an entry is a dead letter: the type of the last exception, and the number of attempts."""

    error: str
    attempts: int


@dataclass(frozen=True, slots=True)
class EntryCase:
    """An entry with its parsed event, a cause for the dead letters, or neither if it was trimmed."""

    entry: Entry
    event: Event | None = None
    verdict: DeadLetterCause | None = None

    @property
    def key(self) -> str:
        """The key for ordering: entries with the same key are handled one after the other."""
        return (self.event.user or self.event.conn) if self.event else self.entry.id


class _Left(Exception):
    """The entry stays pending for another consumer: this one is stopping, or that one has claimed it."""


class _Gone(Exception):
    """Another consumer has finished the entry, or it will be delivered again."""


class _Refused(Exception):
    """The server refused the dead letter for good, so that the entry stays pending."""


class Handling:
    """Calls the handler for the entries of one consumer, with repeated attempts."""

    def __init__(
        self,
        bus: Bus,
        handle: Callable[[Event], Awaitable[None]],
        *,
        options: ConsumerOptions,
        stopping: Stopping,
        report: Callable[[Exception], None],
    ) -> None:
        """Create the handling of one consumer."""
        self._bus = bus
        self._handle = handle
        self._options = options
        self._stopping = stopping
        self._report = report
        self._running = asyncio.Semaphore(options.concurrency)
        self._seen = Window(options.seen_limit)
        self._dead = Window(options.seen_limit)
        self._unstored: dict[str, DeadLetterCause] = {}
        self._refusals = 0
        self._refusal_reported_s = float("-inf")

    def examine(self, entry: Entry, *, is_fatal: bool) -> EntryCase:
        """Parse an entry, and decide whether it is a dead letter.

        With `is_fatal`, the entry was delivered too often and is a dead letter without being parsed.
        """
        if is_fatal:
            return EntryCase(entry, verdict=DeadLetterCause(ABANDONED, 0))
        if not entry.fields:
            return EntryCase(entry)
        try:
            return EntryCase(entry, parse_event(entry.stream, entry.id, entry.fields))
        except MalformedEvent as error:
            self._report(error)
            return EntryCase(entry, verdict=DeadLetterCause(type(error).__name__, 0))

    async def settle(self, reader: Reader, case: EntryCase, turn: Turn) -> bool:
        """Handle the entry or make it a dead letter, and acknowledge it.

        Returns False if the entry was left unfinished, so that another consumer has to handle it.

        An entry may be claimed again before the reply to its acknowledgement arrives. It is recognized by the
        event's id, or as a dead letter by the entry's id, and is then only acknowledged.
        """
        event, verdict = case.event, case.verdict
        place = f"{case.entry.stream} {case.entry.id}"
        try:
            if place in self._dead:
                verdict = None
            elif place in self._unstored:
                verdict = self._unstored[place]
            elif event is not None and event.id not in self._seen:
                verdict = await self._try(reader, event, turn)
            if verdict is not None:
                await self._add_dead_letter(case.entry, verdict, place)
            if event is not None:
                self._seen.add(event.id)
            await self._insist(lambda: self._bus.acknowledge(reader, case.entry))
        except _Left:
            return False
        except (_Gone, _Refused):
            pass
        return True

    async def _try(self, reader: Reader, event: Event, turn: Turn) -> DeadLetterCause | None:
        """Call the handler until it returns, or until all attempts have failed; then return the cause."""
        attempts = self._options.attempts
        for attempt in range(attempts):
            try:
                async with self._running:
                    await self._confirm(reader, turn)
                    await self._call(event)
                return None
            except (_Left, _Gone):
                raise
            except Exception as error:
                self._report(error)
                verdict = DeadLetterCause(type(error).__name__, attempt + 1)
            if attempt + 1 < attempts:
                await self._stopping.pause(self._options.backoff.delay_s(attempt, random.random))
                if self._stopping.is_set:
                    raise _Left
        await self._confirm(reader, turn)  # another consumer may be about to handle the event
        return verdict

    async def _call(self, event: Event) -> None:
        """Call the handler once; only a cancellation of the consumer itself may end this task."""
        try:
            await self._handle(event)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise HandlerCancelled("the handler awaited something that other code has cancelled") from error

    async def _confirm(self, reader: Reader, turn: Turn) -> None:
        """Raise `_Left` or `_Gone` if this consumer must neither handle nor move the entry any more.

        As long as renewals succeed, this asks nobody. While Redis does not answer, it waits: otherwise the
        handler might run here and, at the same time, at another consumer. If Redis refuses the question for
        good, perhaps because the Redis user has no right to XCLAIM, it goes on: an event that is handled
        twice is better than a consumer that stops. The loop of renewals reports that refusal.
        """
        idle_s = self._options.takeover_idle_s
        if not is_in_doubt(turn, idle_s):
            return
        owner = Owner.THIS

        async def ask() -> None:
            nonlocal owner
            owner = await find_owner(self._bus, reader, turn, idle_s)

        with suppress(BusError):
            await self._insist(ask, is_refusable=True)
        if owner is Owner.ANOTHER:
            raise _Left
        if owner is Owner.NOBODY:
            raise _Gone

    async def _insist(self, tell: Callable[[], Awaitable[None]], *, is_refusable: bool = False) -> None:
        """Repeat a Redis command until it succeeds.

        Raises `_Left` when the consumer stops. With `is_refusable`, raises the `BusError` of a refusal that a
        retry cannot change.
        """
        for attempt in count():
            try:
                await tell()
                return
            except Exception as error:
                if is_refusable and isinstance(error, BusError) and not error.temporary:
                    raise
                self._report(error)
            await self._stopping.pause(self._options.backoff.delay_s(attempt, random.random))
            if self._stopping.is_set:
                raise _Left

    async def _add_dead_letter(self, entry: Entry, verdict: DeadLetterCause, place: str) -> None:
        """Store the dead letter. Raises `_Refused` if the server refuses that for good.

        The entry then stays pending and is claimed again after `takeover_idle_s`. Remember its cause, so that
        this process does not call the handler again but stores the dead letter once that is possible.
        """
        why = {
            "error": verdict.error,
            "attempts": str(verdict.attempts),
            "stream": entry.stream,
            "entry": entry.id,
        }
        dead = f"{self._options.prefix}:events:dead"
        limit = self._options.dead_limit
        try:
            await self._insist(
                lambda: self._bus.add_dead_letter(entry, dead, why=why, limit=limit), is_refusable=True
            )
        except BusError as error:
            if len(self._unstored) < self._options.seen_limit:
                self._unstored[place] = verdict
            self._report_refusal(dead, error)
            raise _Refused from error
        self._unstored.pop(place, None)
        self._dead.add(place)

    def _report_refusal(self, dead: str, error: BusError) -> None:
        """Report a refused dead letter, unless such a report is less than a minute old."""
        self._refusals += 1
        now_s = asyncio.get_running_loop().time()
        if now_s - self._refusal_reported_s < _REFUSAL_REPORT_EVERY_S:
            return
        self._refusal_reported_s = now_s
        text = f"{dead} refused {self._refusals} dead letters so far, and their entries stay pending"
        report = BusError(f"{text}: {error}", temporary=False)
        report.__cause__ = error
        self._report(report)
