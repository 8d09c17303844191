"""Append events to streams with XADD over one connection, and keep each event until it is confirmed.

Delivery is at least once. Events without a reply when the connection is lost are sent again on the next one,
in their order and before newer events. The caller does not wait; it may pass a callback for the outcome. The
number and the bytes of unconfirmed events are bounded; at the bound an append is refused at once.

Messages of clients may use at most half of this room, and share it fairly (wsgate/turns.py). So room is left
for events about connections, whose number depends only on how many connections open and close.

When a server refuses everything (a replica, or no memory), its connection is closed and all events are sent
again. An error that concerns one stream (a key of another type, no permission) affects that stream alone: its
events are set aside, in order, while the events of other streams are sent. One of them is tried again from
time to time; when the server accepts it, the others are sent. Messages of clients for such a stream are
refused at once. Only the first command of an event, its XADD, decides. An error of the PUBLISH that may
follow is logged, because the stream has the event.

6 us of CPU for a new connection's event and 7 for a message of 150 bytes, with encoding:
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
from wsgate.bus.connection import Connection, Reply, is_passing, open_connection, pack, safe_text
from wsgate.bus.script import TRIM_EVENTS
from wsgate.bus_address import BusAddress
from wsgate.errors import BackendError
from wsgate.turns import Room, Sender

__all__ = ["AppendOutcome", "Appender", "AppenderOptions"]

WRITE_COMMANDS: Final = 256
WRITE_BYTES: Final = 256 * 1024
"""The most commands and bytes of one write; the last event may exceed the bytes."""
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MOST_S: Final = 1.0
IDLE_PING_S: Final = 15.0
COUNT_DIGITS_MOST: Final = 18
"""The most digits of the number in a reply to the script `trim_events`."""

ENTRY_BYTES: Final = 400
"""Memory of an event in addition to its bytes."""
ASIDE_SHARE: Final = 4
"""A stream whose events are refused may use one part in so many of the room, so that others keep theirs."""

AppendOutcome = str
"""The outcome of an event: `""`: the stream has it; `down`, `refused`: it has not; `unknown`: it may."""

Done = Callable[[AppendOutcome], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppenderOptions:
    """The times (seconds) and limits of an appender."""

    connect_timeout_s: float = 5.0
    command_timeout_s: float = 5.0  # without a reply for so long, every unanswered event is sent again
    limit_entries: int = 65_536  # the most events that are kept
    limit_bytes: int = 16 * 1024 * 1024  # the most bytes of events that are kept
    trimmed_streams: tuple[bytes, ...] = ()  # streams to trim when the server has no memory left
    stream_bytes: int = 0  # bytes that each of these streams may take; see scripts/trim_events.lua


class _Entry:
    """One event: its packed commands, callback, time of acceptance, and the number of missing replies.

    A PING is an entry without bytes, and so is a request to trim a stream. An event that was given up has no
    missing reply.
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
        self.sender = sender  # the client that sent the message; None for other events
        self.is_message = done is not None
        self.is_refused = False  # its first command got an error that concerns the stream


class _Aside:
    """The set-aside events of a stream that the server refuses: first those sent before, then new ones."""

    __slots__ = ("fresh", "returned", "size", "tried")

    def __init__(self) -> None:
        self.returned: deque[_Entry] = deque()
        self.fresh: deque[_Entry] = deque()
        self.tried: _Entry | None = None  # the first event, while it is sent once more
        self.size = 0  # bytes of the events in the two queues


class Appender:
    """Append events to streams of one server. Call all methods on the event loop that made the appender.

    Args:
        locate: Returns the address of the server; called for every attempt. None: no server is known now.
        options: The times and limits.
        on_failed: Called with a reason for the log when the bus cannot be reached, refuses, or is lost
            with commands that were not answered.
        on_moved: Called when the server replies that the slot of the stream is on another server.

    Attributes:
        appended: Events that the server has confirmed.
        repeated: Events that were sent once more.
        trimmed: Events that were removed from the streams to free memory of the server.
        last_trimmed: Events that the last such request removed.
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
        self._sent_s = 0.0  # when the oldest unanswered event was sent, or a reply last arrived
        self._pinged_s = 0.0
        self._wake = asyncio.Event()
        self._is_empty = asyncio.Event()  # set by a reply after which no event is kept
        self._is_write_scheduled = False
        self.appended = 0
        self.repeated = 0
        self.trimmed = 0
        self.last_trimmed = 0
        self._is_full = False  # the server replied OOM, and no trimming was requested since
        self._is_refused = False  # the server refused everything, and has confirmed no event since
        self._asides: dict[bytes, _Aside] = {}
        self._aside_count = 0
        self._room = Room(options.limit_entries // 2, options.limit_bytes // 2)

    @property
    def held(self) -> int:
        """The number of accepted events that are not confirmed, with unanswered PING and trim requests."""
        return len(self._waiting) + len(self._sent) + self._aside_count

    @property
    def held_bytes(self) -> int:
        """The bytes of the commands of all events that are kept."""
        return self._held_bytes

    @property
    def memory_bytes(self) -> int:
        """The estimated memory of all events that are kept, in bytes."""
        return self._held_bytes + self.held * ENTRY_BYTES

    def refuses(self, stream: bytes) -> bool:
        """Whether the server refused the last event of this stream that it has answered."""
        return self._is_refused or stream in self._asides

    def append(
        self, data: bytes, *, commands: int = 1, done: Done | None = None, stream: bytes = b""
    ) -> bool:
        """Queue an event, and send its commands until all are answered.

        Args:
            data: The packed commands: an XADD, and perhaps further commands that belong to it.
            commands: The number of commands in `data`.
            done: Called once, later, on the loop, with the outcome. An event with `done` is given up when it
                could not be sent within the times for connecting and for a reply together.
            stream: The key of the stream. Empty: every error counts as an error of the server.

        Returns:
            False: a limit is reached, so the event is not accepted and `done` is not called.
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
        """Queue a message of a client as an event, if the client's fair share of the room allows it.

        Args:
            data: The packed commands, see `append`.
            sender: The client that sent the message.
            done: Called once, later, see `append`.
            commands: The number of commands in `data`.
            stream: The key of the stream, see `append`.

        Returns:
            "" when the message is accepted. Else the reason, and `done` is not called: `FULL` or `CROWDED` of
            wsgate.turns, or `refused` (the server refuses events of this stream).
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
        """Whether the part of the room for a refused stream has room for another event."""
        options = self._options
        entries = len(aside.returned) + len(aside.fresh)
        return (
            entries < options.limit_entries // ASIDE_SHARE
            and aside.size + size <= options.limit_bytes // ASIDE_SHARE
        )

    def _add(self, entry: _Entry, aside: _Aside | None) -> None:
        """Queue an accepted event behind all other events of its stream."""
        self._held_bytes += entry.size
        if aside is None:
            self._waiting.append(entry)
        else:
            self._put_aside(aside.fresh, aside, entry)
        self._wake.set()
        self.on_writable()

    async def run(self) -> None:
        """Connect whenever events are queued, send them and receive the replies, until cancelled."""
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
        """Wait until every event is confirmed, at most `within_s` seconds; return how many are not."""
        self._is_empty.clear()
        if self.held:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._is_empty.wait()
        return self.held

    # --- one connection's life ------------------------------------------------------------------------

    async def _session(self) -> tuple[str, bool]:
        """Connect once and serve the connection; return why it ended, and whether an event was confirmed."""
        address, before = self._locate(), self.appended
        if address is None:
            return "no server has the slot of the stream", False
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
            # Events that may have arrived are sent first on the next connection: readers drop repeated ids.
            again = [entry for entry in self._sent if entry.size]
            for entry in again:
                entry.answers, entry.is_refused = entry.commands, False
            self.repeated += len(again)
            self._waiting.extendleft(reversed(again))
            self._sent.clear()
        return connection.why, self.appended > before

    def make_room(self) -> None:
        """Request that the server trims the configured streams, because it has no memory for new events.

        Does nothing without a connection, or while an earlier request is not answered.
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
        """Watch the connection until it is lost: expire events, retry refused streams, close it when late."""
        timeout_s = self._options.command_timeout_s
        while not connection.closed.done():
            now_s = self._loop.time()
            self._expire()
            self._try_asides()
            if self._sent and now_s - self._sent_s >= timeout_s:
                connection.abort(f"no reply within {timeout_s:g} s")
            elif not self._sent and now_s - max(connection.heard_s, self._pinged_s) >= IDLE_PING_S:
                # The PING finds a broken connection before the next event needs it.
                self._pinged_s = self._sent_s = now_s
                self._sent.append(_Entry(b"", 1, None, now_s))
                connection.write(pack("PING"))
            await asyncio.wait((connection.closed,), timeout=timeout_s / 4)

    def _expire(self) -> None:
        """Report an outcome for too old events that have a callback, and drop the unsent ones of these."""
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
        if not self.held:
            # Nothing is left that would show when the server accepts events again, so the next message may.
            self._is_refused = False

    def _release(self, entry: _Entry) -> None:
        """Release the room of an event that is no longer kept."""
        self._held_bytes -= entry.size
        if entry.sender is not None:
            self._room.give(entry.sender, entry.size)

    # --- streams that the server refuses --------------------------------------------------------------

    def _set_aside(self, entry: _Entry) -> None:
        """Set aside an event that its stream refuses, or report `refused` if it is a message of a client."""
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
        """Add an event to one of the queues of a refused stream, and count it."""
        aside.size += entry.size
        self._aside_count += 1
        if is_first:
            queue.appendleft(entry)
        else:
            queue.append(entry)

    def _refuse_asked(self, aside: _Aside) -> None:
        """Report `refused` for the unsent messages of clients; other events have no callback."""
        asked = [entry for entry in aside.fresh if entry.is_message]
        aside.fresh = deque(entry for entry in aside.fresh if not entry.is_message)
        for entry in asked:
            aside.size -= entry.size
            self._aside_count -= 1
            self._release(entry)
            self._finish(entry, "refused")

    def _try_asides(self) -> None:
        """Send the first event of each refused stream once more, to learn whether it is accepted now."""
        for stream, aside in list(self._asides.items()):
            queue = aside.returned or aside.fresh
            if aside.tried is None and queue:
                aside.tried = entry = queue.popleft()
                aside.size -= entry.size
                self._aside_count -= 1
                self._waiting.append(entry)
            elif aside.tried is None:
                del self._asides[stream]  # no event is left for a try: the next event is one
        self.on_writable()

    def _end_aside(self, stream: bytes) -> None:
        """Queue all set-aside events of a stream for sending, in order: the server accepts them again."""
        aside = self._asides.pop(stream, None)
        if aside is not None:
            self._aside_count -= len(aside.returned) + len(aside.fresh)
            self._waiting.extend(aside.returned)
            self._waiting.extend(aside.fresh)
            self.on_writable()

    # --- Connection's owner ---------------------------------------------------------------------------

    def hand_up(self, replies: list[Reply]) -> int:
        """Match each reply to the oldest event that lacks one, and settle the event after its last reply."""
        self._sent_s = self._loop.time()
        for kind, text, _ in replies:
            if not self._sent or kind not in (push.REPLY, push.ERROR):
                self._drop("the bus sent an unrequested reply")
                break
            entry = self._sent[0]
            is_first = entry.answers == entry.commands
            if kind == push.ERROR and is_first and not self._is_refusal_of_stream(entry, text):
                # The server is full, busy or a replica: close, and send this event and all later ones again.
                if text.startswith(b"MOVED "):
                    self._on_moved()
                self._is_full = text.startswith(b"OOM ")
                self._is_refused = True
                self._drop("the bus refuses: " + safe_text(text))
                break
            if kind == push.ERROR and not is_first:
                # The reply to XADD has decided already: the stream would get the event twice.
                self._on_failed(f"an event is not published: {safe_text(text)}")
            elif kind == push.ERROR:
                entry.is_refused = True
                self._on_failed(f"the stream {entry.stream.decode('latin-1')} refuses: {safe_text(text)}")
            elif entry.makes_room:
                if not text.isdigit() or len(text) > COUNT_DIGITS_MOST:
                    self._drop("the bus replied to trim_events without a number")
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
        """Whether an error concerns the stream of an event, and not the whole server."""
        return bool(entry.stream) and not is_passing(text)

    def _settle(self, entry: _Entry) -> None:
        """Confirm, set aside or report an event whose commands have all been answered."""
        if entry.makes_room:
            return  # also when the stream could not be trimmed: there is nothing else to do
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
        """Do nothing at the end of a pass."""

    def on_writable(self) -> None:
        """Schedule one write for all events that are queued in this pass of the loop."""
        if self._connection is not None and self._waiting and not self._is_write_scheduled:
            self._is_write_scheduled = True
            self._loop.call_soon(self._write)

    def _drop(self, why: str) -> None:
        if self._connection is not None:
            self._connection.abort(why)

    def _write(self) -> None:
        """Send the next events in one write, within `WRITE_COMMANDS` and `WRITE_BYTES`."""
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
        """Call the callback of an event with the outcome, at most once."""
        done, entry.done = entry.done, None
        if done is None:
            return
        try:
            done(outcome)
        except Exception as error:  # a fault in one callback must not stop the events behind it
            context = {"message": "the callback of an append has failed", "exception": error}
            self._loop.call_exception_handler(context)
