"""One connection that appends: XADD out, kept until Redis has answered.

At least once. What was sent and not answered when the connection is lost, or refused, is sent again on the
next one, in its order and before what came later. Nothing waits for it: a caller that wants to know gets a
callback. What is kept is bounded by number and bytes; beyond that an append is refused at once.

Messages of clients have at most half of that room, and share it fairly (wsgate/turns.py). So there is always
room for events about connections, which are as many as connections come and go.

A server that refuses everything (a replica, no memory) is left, and all is sent again. A refusal that is
about one stream (another type of key, no permission) concerns that stream alone: its events are put aside, in
order, while those of other streams go on. One of them is tried again from time to time, and when the server
takes it the rest follows. Messages of clients for such a stream are refused at once.

6 us of CPU for a connection that comes and 7 for a message of 150 bytes, making it included:
python -m loadtest bus_appender
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wsgate.bus import push
from wsgate.bus.connection import Connection, Reply, open_connection, pack, safe_text
from wsgate.bus.script import TRIM_EVENTS
from wsgate.bus_address import BusAddress
from wsgate.errors import BackendError
from wsgate.turns import Room, Sender

__all__ = ["AppendOutcome", "Appender", "AppenderOptions"]

WRITE_COMMANDS: Final = 256
WRITE_BYTES: Final = 256 * 1024
"""What one pass of the loop writes at most."""
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MOST_S: Final = 1.0
IDLE_PING_S: Final = 15.0
COUNT_DIGITS_MOST: Final = 18
"""Of a number of events that an answer holds."""

ENTRY_BYTES: Final = 400
"""Memory of an event beside its bytes."""
ASIDE_SHARE: Final = 4
"""A stream that refuses may keep this part of the room, so that it does not crowd out the others."""
SERVER_REFUSALS: Final = frozenset(
    b"ASK BUSY CLUSTERDOWN LOADING MASTERDOWN MISCONF MOVED NOAUTH NOREPLICAS OOM READONLY TRYAGAIN".split()
)
"""Errors that say nothing about the stream: the server, or another one, takes the same event later."""

AppendOutcome = str
"""`""` when the stream has it, else why not: `down` and `refused` (it has not), `unknown` (it may)."""

Done = Callable[[AppendOutcome], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppenderOptions:
    """How to behave; times in seconds, sizes in bytes."""

    connect_timeout_s: float = 5.0
    command_timeout_s: float = 5.0  # without an answer for so long, everything unanswered is sent again
    limit_entries: int = 65_536
    limit_bytes: int = 16 * 1024 * 1024
    trimmed_streams: tuple[bytes, ...] = ()  # when the server has no memory left; none: never
    stream_bytes: int = 0  # what each of those may take; see scripts/trim_events.lua


class _Entry:
    """One event: its commands, who waits for it, since when, and how many answers it still lacks.

    A PING is one without bytes, and so is making room; an event that was given up lacks none.
    """

    __slots__ = (
        "accepted_s",
        "answers",
        "commands",
        "data",
        "done",
        "is_message",
        "is_refused",
        "makes_room",
        "sender",
        "size",
        "stream",
    )

    def __init__(
        self,
        data: bytes,
        commands: int,
        done: Done | None,
        accepted_s: float,
        *,
        stream: bytes = b"",
        sender: Sender | None = None,
    ) -> None:
        self.data = data
        self.commands = self.answers = commands
        self.done = done
        self.accepted_s = accepted_s
        self.size = len(data)
        self.makes_room = False
        self.stream = stream
        self.sender = sender  # of a message; None: it is about a connection
        self.is_message = done is not None
        self.is_refused = False  # one of its commands was, for a reason that is the stream's


class _Aside:
    """The events of a stream that refuses: those that came back, then those that were not sent."""

    __slots__ = ("fresh", "returned", "size", "tried")

    def __init__(self) -> None:
        self.returned: deque[_Entry] = deque()
        self.fresh: deque[_Entry] = deque()
        self.tried: _Entry | None = None  # the first one, which is under way once more
        self.size = 0  # bytes of the two queues


class Appender:
    """Appends to streams of one server. All calls on its loop.

    Args:
        locate: Where that server is now, asked for every attempt; None: nobody knows, try again later.
        options: How to behave.
        on_failed: Told why, for a log, when the bus cannot be reached, is lost or refuses.
        on_moved: Told when the server says that the stream lives elsewhere.

    Attributes:
        appended: Events Redis has answered for.
        repeated: Events sent once more.
        trimmed: Events that were removed from the streams to make room for these.
        last_trimmed: Of those, the events that were removed the last time.
    """

    def __init__(
        self,
        locate: Callable[[], BusAddress | None],
        options: AppenderOptions,
        on_failed: Callable[[str], None],
        on_moved: Callable[[], None] = lambda: None,
    ) -> None:
        self._locate = locate
        self._options = options
        self._on_failed = on_failed
        self._on_moved = on_moved
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._waiting: deque[_Entry] = deque()
        self._sent: deque[_Entry] = deque()
        self._held_bytes = 0
        self._sent_s = 0.0  # when the oldest unanswered was sent, or an answer came
        self._pinged_s = 0.0
        self._wake = asyncio.Event()
        self._is_empty = asyncio.Event()  # set with an answer that leaves nothing
        self._is_write_scheduled = False
        self.appended = 0
        self.repeated = 0
        self.trimmed = 0
        self.last_trimmed = 0
        self._is_full = False  # the server was, when it was last asked
        self._is_refused = False  # the server refused everything, and has taken nothing since
        self._asides: dict[bytes, _Aside] = {}
        self._aside_count = 0
        self._room = Room(options.limit_entries // 2, options.limit_bytes // 2)

    @property
    def held(self) -> int:
        """Events accepted and not answered."""
        return len(self._waiting) + len(self._sent) + self._aside_count

    @property
    def held_bytes(self) -> int:
        """Their bytes."""
        return self._held_bytes

    @property
    def memory_bytes(self) -> int:
        """The memory that they take, in bytes."""
        return self._held_bytes + self.held * ENTRY_BYTES

    def refuses(self, stream: bytes) -> bool:
        """Whether the server refused the last event of this stream that it has answered."""
        return self._is_refused or stream in self._asides

    def append(
        self, data: bytes, *, commands: int = 1, done: Done | None = None, stream: bytes = b""
    ) -> bool:
        """Send packed commands, and again until they are answered.

        Args:
            data: One XADD, or one and what is to go with it.
            commands: How many that are.
            done: Called once, later, on the loop. With it the event is given up when it could not be sent
                within the times for connecting and for an answer together.
            stream: Where it is appended to; empty: what is refused is taken for the server's refusal.

        Returns:
            False: too much is kept already; it was not accepted, and `done` is not called.
        """
        options = self._options
        if self.held >= options.limit_entries or self._held_bytes + len(data) > options.limit_bytes:
            return False
        aside = self._asides.get(stream)
        if aside is not None and not self._has_aside_room(aside, len(data)):
            return False
        self._add(_Entry(data, commands, done, self._loop.time(), stream=stream), aside)
        return True

    def offer(
        self, data: bytes, sender: Sender, done: Done, *, commands: int = 1, stream: bytes = b""
    ) -> str:
        """Send a message of a client like `append`, if it has room.

        Args:
            data: As `append`'s.
            sender: Whose message it is.
            done: As `append`'s.
            commands: As `append`'s.
            stream: As `append`'s.

        Returns:
            "" when it was accepted. Else why not, and `done` is not called: `FULL` or `CROWDED` of
            wsgate.turns, or `refused` (the stream refuses).
        """
        options = self._options
        if self.refuses(stream):
            return "refused"
        if self.held >= options.limit_entries // 2 or self._held_bytes + len(data) > options.limit_bytes // 2:
            return self._room.why_not(sender)
        if outcome := self._room.take(sender, len(data)):
            return outcome
        self._add(_Entry(data, commands, done, self._loop.time(), stream=stream, sender=sender), None)
        return ""

    def _has_aside_room(self, aside: _Aside, size: int) -> bool:
        options = self._options
        entries = len(aside.returned) + len(aside.fresh)
        return (
            entries < options.limit_entries // ASIDE_SHARE
            and aside.size + size <= options.limit_bytes // ASIDE_SHARE
        )

    def _add(self, entry: _Entry, aside: _Aside | None) -> None:
        """Keep an event, behind all others of its stream."""
        self._held_bytes += entry.size
        if aside is None:
            self._waiting.append(entry)
        else:
            self._put_aside(aside.fresh, aside, entry)
        self._wake.set()
        self.on_writable()

    async def run(self) -> None:
        """Connect when there is something to say; until cancelled."""
        attempt = 0
        while True:
            await self._wake.wait()
            if not self.held:
                self._wake.clear()
                continue
            why, is_good = await self._session()
            attempt = 0 if is_good else attempt + 1
            if why:
                self._on_failed(why)
                self._expire()
            most_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2**attempt)
            await asyncio.sleep(random.uniform(0, most_s))  # noqa: S311 - spreading, not secrecy

    async def flush(self, within_s: float) -> int:
        """Wait until everything is answered; how much was not when the time was over."""
        self._is_empty.clear()
        if self.held:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._is_empty.wait()
        return self.held

    # --- one connection's life ------------------------------------------------------------------------

    async def _session(self) -> tuple[str, bool]:
        """Why it ended, and whether anything was answered."""
        address, before = self._locate(), self.appended
        if address is None:
            return "nobody has the slot of the stream", False
        try:
            connection = await open_connection(address, b"", 0, self._options.connect_timeout_s)
        except BackendError as error:
            return str(error), False
        try:
            self._connection = connection
            self._sent_s = self._pinged_s = self._loop.time()
            connection.start(self)
            if self._is_full:
                self.make_room()
            self.on_writable()
            await self._watch(connection)
        finally:
            self._connection = None
            connection.abort("stopped")
            # What may have arrived goes first once more: the reader knows it by its id.
            again = [entry for entry in self._sent if entry.size]
            for entry in again:
                entry.answers, entry.is_refused = entry.commands, False
            self.repeated += len(again)
            self._waiting.extendleft(reversed(again))
            self._sent.clear()
        return connection.why, self.appended > before

    def make_room(self) -> None:
        """Have the server remove what its readers have acknowledged: one that keeps all takes nothing new.

        Nothing is done without a connection, or while an earlier request is not answered.
        """
        connection = self._connection
        if connection is None or any(entry.makes_room for entry in self._sent):
            return
        self._is_full = False
        self.last_trimmed = 0
        if not self._sent:
            self._sent_s = self._loop.time()
        for stream in self._options.trimmed_streams:
            entry = _Entry(b"", 1, None, self._loop.time(), stream=stream)
            entry.makes_room = True
            self._sent.append(entry)
            connection.write(pack("EVAL", TRIM_EVENTS.text, "1", stream, b"%d" % self._options.stream_bytes))

    async def _watch(self, connection: Connection) -> None:
        timeout_s = self._options.command_timeout_s
        while not connection.closed.done():
            now_s = self._loop.time()
            self._expire()
            self._try_asides()
            if self._sent and now_s - self._sent_s >= timeout_s:
                connection.abort(f"no answer within {timeout_s:g} s")
            elif not self._sent and now_s - max(connection.heard_s, self._pinged_s) >= IDLE_PING_S:
                # A connection that was cut is found before the next event needs it.
                self._pinged_s = self._sent_s = now_s
                self._sent.append(_Entry(b"", 1, None, now_s))
                connection.write(pack("PING"))
            await asyncio.wait((connection.closed,), timeout=timeout_s / 4)

    def _expire(self) -> None:
        """Tell whoever has waited too long, and give up what was not sent."""
        latest_s = self._loop.time() - self._options.command_timeout_s - self._options.connect_timeout_s
        for queue, outcome in ((self._sent, "unknown"), (self._waiting, "down")):
            for entry in queue:
                if entry.accepted_s > latest_s:
                    break
                if entry.done is not None:
                    self._finish(entry, outcome)
                    entry.answers = entry.answers if outcome == "unknown" else 0
        if any(not entry.answers for entry in self._waiting):
            for entry in self._waiting:
                if not entry.answers:
                    self._release(entry)
            self._waiting = deque(entry for entry in self._waiting if entry.answers)

    def _release(self, entry: _Entry) -> None:
        """An event is not kept any more."""
        self._held_bytes -= entry.size
        if entry.sender is not None:
            self._room.give(entry.sender, entry.size)

    # --- streams that refuse --------------------------------------------------------------------------

    def _set_aside(self, entry: _Entry) -> None:
        """Its stream refuses this event: keep it in its place, or say so to the client that sent it."""
        aside = self._asides.get(entry.stream)
        if aside is None:
            aside = self._asides[entry.stream] = _Aside()
            for each in self._waiting:
                if each.stream == entry.stream:
                    self._put_aside(aside.fresh, aside, each)
            self._waiting = deque(each for each in self._waiting if each.stream != entry.stream)
            self._refuse_asked(aside)
        if entry.is_message:
            self._release(entry)
            self._finish(entry, "refused")
        else:
            entry.answers, entry.is_refused = entry.commands, False
            self._put_aside(aside.returned, aside, entry, is_first=entry is aside.tried)
        if entry is aside.tried:
            aside.tried = None

    def _put_aside(
        self, queue: deque[_Entry], aside: _Aside, entry: _Entry, *, is_first: bool = False
    ) -> None:
        aside.size += entry.size
        self._aside_count += 1
        if is_first:
            queue.appendleft(entry)
        else:
            queue.append(entry)

    def _refuse_asked(self, aside: _Aside) -> None:
        """Tell clients whose messages were not sent yet; nobody else waits for an answer."""
        asked = [entry for entry in aside.fresh if entry.is_message]
        aside.fresh = deque(entry for entry in aside.fresh if not entry.is_message)
        for entry in asked:
            aside.size -= entry.size
            self._aside_count -= 1
            self._release(entry)
            self._finish(entry, "refused")

    def _try_asides(self) -> None:
        """Send the first event of each stream that refuses once more."""
        for stream, aside in list(self._asides.items()):
            queue = aside.returned or aside.fresh
            if aside.tried is None and queue:
                aside.tried = entry = queue.popleft()
                aside.size -= entry.size
                self._aside_count -= 1
                self._waiting.append(entry)
            elif aside.tried is None:
                del self._asides[stream]  # nothing is left to try with: the next event finds out
        self.on_writable()

    def _end_aside(self, stream: bytes) -> None:
        """The stream takes events again: send all of its events, in their order."""
        aside = self._asides.pop(stream, None)
        if aside is not None:
            self._aside_count -= len(aside.returned) + len(aside.fresh)
            self._waiting.extend(aside.returned)
            self._waiting.extend(aside.fresh)
            self.on_writable()

    # --- Connection's owner ---------------------------------------------------------------------------

    def hand_up(self, replies: list[Reply]) -> int:
        """Give each answer to the oldest that lacks one."""
        self._sent_s = self._loop.time()
        for kind, text, _ in replies:
            if not self._sent or kind not in (push.REPLY, push.ERROR):
                self._drop("the bus says what it was not asked")
                break
            entry = self._sent[0]
            if kind == push.ERROR and not self._is_refusal_of_stream(entry, text):
                # Full, a replica, a busy one: it, and all behind it, are tried again elsewhere or later.
                if text.startswith(b"MOVED "):
                    self._on_moved()
                self._is_full = text.startswith(b"OOM ")
                self._is_refused = True
                self._drop("the bus refuses: " + safe_text(text))
                break
            if kind == push.ERROR:
                entry.is_refused = True
                self._on_failed(f"the stream {entry.stream.decode('latin-1')} refuses: {safe_text(text)}")
            elif entry.makes_room:
                if not text.isdigit() or len(text) > COUNT_DIGITS_MOST:
                    self._drop("the bus answers what is no answer to XTRIM")
                    break
                self.trimmed += int(text)
                self.last_trimmed += int(text)
            entry.answers -= 1
            if not entry.answers:
                self._sent.popleft()
                self._settle(entry)
        if not self.held:
            self._is_empty.set()
        return len(replies)

    def _is_refusal_of_stream(self, entry: _Entry, text: bytes) -> bool:
        return bool(entry.stream) and text.partition(b" ")[0] not in SERVER_REFUSALS

    def _settle(self, entry: _Entry) -> None:
        """Every command of an event was answered."""
        if entry.makes_room:
            return  # a stream that cannot be trimmed makes no room
        if entry.is_refused:
            self._set_aside(entry)
            return
        if entry.size:
            self._is_refused = False
            self.appended += 1
            self._release(entry)
            if self._asides:
                self._end_aside(entry.stream)
        self._finish(entry, "")

    def on_pass(self) -> None:
        """Nothing more to do."""

    def on_writable(self) -> None:
        """Write what waits, together with whatever else comes in this pass."""
        if self._connection is not None and self._waiting and not self._is_write_scheduled:
            self._is_write_scheduled = True
            self._loop.call_soon(self._write)

    def _drop(self, why: str) -> None:
        if self._connection is not None:
            self._connection.abort(why)

    def _write(self) -> None:
        self._is_write_scheduled = False
        connection = self._connection
        if connection is None or not (connection.is_open and connection.is_writable):
            return
        parts: list[bytes] = []
        size = 0
        if not self._sent:
            self._sent_s = self._loop.time()
        while self._waiting and len(parts) < WRITE_COMMANDS and size < WRITE_BYTES:
            entry = self._waiting.popleft()
            self._sent.append(entry)
            parts.append(entry.data)
            size += entry.size
        connection.write(b"".join(parts))
        self.on_writable()

    def _finish(self, entry: _Entry, outcome: AppendOutcome) -> None:
        done, entry.done = entry.done, None
        if done is None:
            return
        try:
            done(outcome)
        except Exception as error:  # its own fault, and not that of those behind it
            context = {"message": "what an append led to could not be handled", "exception": error}
            self._loop.call_exception_handler(context)
