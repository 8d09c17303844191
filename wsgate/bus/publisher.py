"""One connection that speaks: PUBLISH and scripts out, an answer for each.

Publications of one pass of the loop leave in one write; answers belong to them in order. Callers get a
callback instead of an awaitable, so that nobody can cancel a command half-way: the connection has one
owner, and no reply ever meets another caller (redis-py CVE-2023-28858). What is accepted and not
answered is bounded; beyond that, and while the bus is away, a publish fails at once, loudly. It is
never sent twice by itself: that would be a duplicate nobody asked for.

Commands of the gateway itself (counting users, leases, probes, revocations) and publications of clients have
separate room, so that no flood of clients makes a command of the gateway fail:

    own      first in, first out, before everything else
    ready    publications of clients that are inside the window: sent next, in this order
    turns    the other publications of clients, by user and then by connection (wsgate/turns.py)

The window bounds the publications of clients that are ready, or sent and not answered. The bus answers in
order, so whoever comes late waits for at most one window and one round of turns. A client that has much in
the queue is told so (`crowded`); one that has nothing there finds room.

Why no client library speaks here: one answer that does not come makes all of a pipeline of redis-py fail
alike, those the bus has confirmed, those it may have and those it never got; and its reader believes any
count and any length it is told (S26).

1.7 us of CPU a publish with 50 under way together, 1.2 with 200, 14 to 27 one by one; redis-py: 10.8, 9.3
and 49 to 53: python -m loadtest bus_publisher
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from wsgate.bus import push
from wsgate.bus.connection import Connection, Reply, open_connection, pack, safe_text
from wsgate.bus_address import BusAddress
from wsgate.errors import BackendError
from wsgate.turns import Room, Sender, Turns

__all__ = ["CallDone", "PublishOutcome", "Publisher"]

WRITE_COMMANDS: Final = 256
WRITE_BYTES: Final = 256 * 1024
"""What one pass of the loop writes at most; a single publication may be larger."""
WAITING_LIMIT: Final = 8_192
WAITING_LIMIT_BYTES: Final = 32 * 1024 * 1024
"""Commands of the gateway, and once more publications of clients, that are accepted and not answered."""
WINDOW_COMMANDS: Final = 512
WINDOW_BYTES: Final = 320 * 1024
"""Publications of clients that the bus has not answered, above which the others wait for their turn. With
1 ms to the bus and back this is 512,000 publications or 320 MiB a second; a longer window is only a longer
queue. python -m loadtest publish_fairness"""
COMMAND_COST: Final = 4 * 1024
"""What a publication costs beside its bytes, in bytes: this process and the bus together take 3.9 us of CPU
for one of 60 bytes, and 74 us for one of 60 KiB."""
COMMAND_BYTES: Final = 500
"""Memory of a queued publication beside its bytes: the entry, the callback and the places in the turns."""
FAILING_PAUSE_S: Final = 0.5
"""After an attempt to connect that failed, publishes fail without another for about so long."""
STEADY_S: Final = 1.0
"""A connection that did not last so long is as good as none: it is not tried again without that pause."""
IDLE_PING_S: Final = 15.0
SECOND_LOOK_S: Final = 0.05
"""Before a bus is given up, what waits in the socket is read: the silence may have been our own."""

_PUBLISH: Final = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
_SPUBLISH: Final = _PUBLISH.replace(b"$7\r\nPUBLISH", b"$8\r\nSPUBLISH")
"""Every part literally, whatever bytes it has (S26)."""

PublishOutcome = str
"""`""` when the bus has it, else why not: `down`, `full`, `crowded` and `refused` (it has not), `unknown` (it
may). `full`: there is no room; `crowded`: this client has too much under way.

Of what must reach somebody it is `unheard` when the bus has it and had nobody to hand it to. A server of a
cluster also says `moved`: it has not, and another one would take it.
"""

Done = Callable[[PublishOutcome], None]
CallDone = Callable[[PublishOutcome, bytes], None]
"""Told the outcome of a command and, when that is "", its answer. `unscripted`: no such script is known."""


class _Command:
    """One command: as it is sent, who is told, what it counts for, and since when it is here."""

    __slots__ = ("data", "done", "is_call", "must_reach", "sender", "since_s", "size")

    def __init__(
        self,
        data: bytes,
        done: Done | CallDone | None,
        size: int,
        since_s: float,
        *,
        is_call: bool = False,
        sender: Sender | None = None,
        must_reach: bool = False,
    ) -> None:
        self.data = data  # nothing any more once it is sent
        self.done = done  # None: a PING
        self.size = size
        self.since_s = since_s  # accepted, then sent
        self.is_call = is_call
        self.sender = sender  # None: the gateway itself
        self.must_reach = must_reach


class Publisher:
    """Publishes to one server. All calls on its loop."""

    def __init__(
        self,
        address: BusAddress,
        *,
        connect_timeout_s: float,
        command_timeout_s: float,
        on_failed: Callable[[str], None] | None = None,
        is_sharded: bool = False,
    ) -> None:
        """Not connected; the first publish connects.

        Args:
            address: Where the bus is; names are resolved, and sentinels asked, anew for every attempt.
            connect_timeout_s: From the resolver to the greeting's last answer.
            command_timeout_s: From sending to the answer; after that it is `unknown`. What could not be
                sent within both times together is `down`.
            on_failed: Told why, for a log, when the bus cannot be reached, is lost or refuses.
            is_sharded: The server is one of a cluster, and names are those of sharded channels.
        """
        self._command = _SPUBLISH if is_sharded else _PUBLISH
        self._address = address
        self._connect_timeout_s = connect_timeout_s
        self._command_timeout_s = command_timeout_s
        self._on_failed = on_failed or (lambda why: None)
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._own: deque[_Command] = deque()
        self._ready: deque[_Command] = deque()
        self._turns: Turns[_Command] = Turns()
        self._sent: deque[_Command] = deque()
        self._own_held = self._own_bytes = 0  # commands of the gateway that are not answered
        self._window = self._window_bytes = 0  # publications of clients that are ready or sent
        self._room = Room(WAITING_LIMIT, WAITING_LIMIT_BYTES)
        self._wake = asyncio.Event()
        self._closed_until_s = 0.0
        self._is_write_scheduled = False
        self._is_leaving = False  # this connection gets nothing more to send
        self._is_closed = False
        self.published = 0
        self.failed = 0

    @property
    def waiting_bytes(self) -> int:
        """Bytes of commands accepted and not yet answered; O(1)."""
        return self._own_bytes + self._room.size

    @property
    def _waiting(self) -> int:
        """Commands that were not sent yet."""
        return len(self._own) + len(self._ready) + len(self._turns)

    def publish(
        self,
        name: bytes,
        data: bytes,
        done: Done,
        sender: Sender | None = None,
        *,
        must_reach: bool = False,
    ) -> None:
        """PUBLISH `data` to a pub/sub name; `done` is called once, later, on the loop.

        Args:
            name: The whole name on the bus.
            data: An envelope or a raw payload.
            done: Told "" or why it failed. Of those that were sent, in order.
            sender: The client that publishes; None: the gateway itself, which has room of its own.
            must_reach: The caller is subscribed to the name: 0 receivers are an outcome, `unheard`.
        """
        command = self._command % (len(name), name, len(data), data)
        size = len(data) if sender is None else len(command) + COMMAND_BYTES
        said = _Command(command, done, size, self._loop.time(), sender=sender, must_reach=must_reach)
        if sender is None:
            self._enqueue(said)
        else:
            self._say_for(said, sender)

    def call(self, key: bytes, command: bytes, done: CallDone) -> None:
        """Send a packed command; `done` is called once, later, on the loop.

        Args:
            key: The one key it is about: on a cluster, where it is sent.
            command: Answered with a number, a status or a bulk string of at most
                `push.REPLY_LIMIT_BYTES`; a larger answer ends the connection.
            done: Told "" and the answer, or why there is none.
        """
        self._enqueue(_Command(command, done, len(command), self._loop.time(), is_call=True))

    def _enqueue(self, said: _Command) -> None:
        """Accept a command of the gateway."""
        if self._is_closed or self._loop.time() < self._closed_until_s:
            self._loop.call_soon(self._finish, said, "down")
        elif self._own_held >= WAITING_LIMIT or self._own_bytes + said.size > WAITING_LIMIT_BYTES:
            self._loop.call_soon(self._finish, said, "full")
        else:
            self._own.append(said)
            self._own_held += 1
            self._own_bytes += said.size
            self._wake.set()
            self.on_writable()

    def _say_for(self, said: _Command, sender: Sender) -> None:
        """Accept a publication of a client."""
        if self._is_closed or self._loop.time() < self._closed_until_s:
            self._loop.call_soon(self._finish, said, "down")
        elif outcome := self._room.take(sender, said.size):
            self._loop.call_soon(self._finish, said, outcome)
        else:
            if len(self._turns) or not self._has_window():
                self._turns.push(sender, said, len(said.data) + COMMAND_COST)
            else:
                self._enter_window(said)
            self._wake.set()
            self.on_writable()

    def _has_window(self) -> bool:
        return self._window < WINDOW_COMMANDS and self._window_bytes < WINDOW_BYTES

    def _enter_window(self, said: _Command) -> None:
        self._ready.append(said)
        self._window += 1
        self._window_bytes += said.size

    def _next(self) -> _Command | None:
        """Take the command that is to be sent next; None: there is none, or the window is full."""
        if self._own:
            return self._own.popleft()
        if not self._ready and len(self._turns) and self._has_window():
            self._enter_window(self._turns.popleft())
        return self._ready.popleft() if self._ready else None

    def _give_back(self, said: _Command) -> None:
        """A command that was sent, ready or the gateway's own is not held any more."""
        if said.sender is not None:
            self._window -= 1
            self._window_bytes -= said.size
            self._room.give(said.sender, said.size)
        elif said.done is not None:
            self._own_held -= 1
            self._own_bytes -= said.size

    def resume(self) -> None:
        """Try to connect again with the next command, because the bus is known to be back."""
        self._closed_until_s = 0.0

    def renew(self, why: str, name: bytes = b"") -> None:
        """Leave this connection, when what was sent is answered, for a new one. See `Subscriber.renew`."""
        if self._connection is not None:
            self._is_leaving = True
            if not self._sent:
                self._connection.abort(why)

    async def run(self) -> None:
        """Connect when there is something to say, send and hear answers; until cancelled. Then `close`."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._waiting:
                await self._session()

    async def close(self) -> None:
        """Fail what still waits as `down`; to be called when `run` has ended."""
        self._is_closed = True
        self._fail("down")

    # --- one connection's life ------------------------------------------------------------------------

    async def _session(self) -> None:
        started_s = self._loop.time()
        try:
            connection = await open_connection(self._address, b"", 0, self._connect_timeout_s)
        except BackendError as error:
            self._pause(str(error))
            return
        try:
            self._connection = connection
            connection.start(self)
            self.on_writable()
            is_overdue = await self._watch(connection)
        finally:
            self._connection = None
            was_renewed, self._is_leaving = self._is_leaving, False
            connection.abort("stopped")
            is_missed = bool(self._sent)
            while self._sent:
                self._answer("unknown")
        if is_overdue or (not was_renewed and self._loop.time() - started_s < STEADY_S):
            self._pause(connection.why)
        elif is_missed:
            self._on_failed(connection.why)
        if self._waiting:  # not sent yet, so it may be sent now
            self._wake.set()

    def _pause(self, why: str) -> None:
        """Fail at once what waits, and for a while what comes."""
        spread = random.uniform(0.5, 1.5)  # noqa: S311 - spreading, not secrecy
        self._closed_until_s = self._loop.time() + FAILING_PAUSE_S * spread
        self._on_failed(why)
        self._fail("down")

    async def _watch(self, connection: Connection) -> bool:
        """Until it is lost, or the oldest answer is overdue: then True."""
        timeout_s, is_suspected, is_overdue = self._command_timeout_s, False, False
        while not connection.closed.done():
            now_s = self._loop.time()
            is_late = bool(self._sent) and now_s - self._sent[0].since_s >= timeout_s
            self._expire(now_s - timeout_s - self._connect_timeout_s)
            if is_late and is_suspected:
                is_overdue = True
                connection.abort(f"no answer within {timeout_s:g} s")
            elif not self._sent and now_s - connection.heard_s >= IDLE_PING_S and not self._is_leaving:
                self._sent.append(_Command(b"", None, 0, now_s))
                connection.write(pack("PING"))
            is_suspected = is_late
            wait_s = timeout_s / 4
            if is_late:
                wait_s = SECOND_LOOK_S
            elif self._sent:
                wait_s = min(wait_s, max(self._sent[0].since_s + timeout_s - now_s, 0) + 0.001)
            await asyncio.wait((connection.closed,), timeout=wait_s)
        return is_overdue

    # --- Connection's owner ---------------------------------------------------------------------------

    def hand_up(self, replies: list[Reply]) -> int:
        """Give each answer to the oldest that has none."""
        for kind, text, _ in replies:
            is_error = kind == push.ERROR
            if not self._sent or not (is_error or kind == push.REPLY):
                self._drop("the bus says what it was not asked")
                break
            said = self._sent[0]
            if not is_error and said.done is not None and not said.is_call and not text.isdigit():
                self._drop("the bus answers what is no answer to PUBLISH")
                break
            if is_error and text.startswith(b"MOVED "):
                self._answer("moved")
                continue
            if is_error and said.is_call and text.startswith(b"NOSCRIPT"):
                self._answer("unscripted")
                continue
            if is_error:
                # No permission, a wrong state of the server: it has not been published.
                self._on_failed("the bus refuses: " + safe_text(text))
            outcome = "refused" if is_error else "unheard" if said.must_reach and text == b"0" else ""
            self._answer(outcome, text)
        self.on_writable()
        return len(replies)

    def on_pass(self) -> None:
        """Leave, when that was only waiting for answers."""
        if self._is_leaving and not self._sent:
            self._drop("renewed")

    def on_writable(self) -> None:
        """Write what waits, together with whatever else comes in this pass."""
        has_next = self._own or self._ready or (len(self._turns) and self._has_window())
        if self._connection is not None and has_next and not self._is_write_scheduled:
            self._is_write_scheduled = True
            self._loop.call_soon(self._write)

    def _drop(self, why: str) -> None:
        if self._connection is not None:
            self._connection.abort(why)

    def _write(self) -> None:
        self._is_write_scheduled = False
        connection = self._connection
        if connection is None or self._is_leaving or not (connection.is_open and connection.is_writable):
            return
        parts: list[bytes] = []
        now_s, size = self._loop.time(), 0
        while len(parts) < WRITE_COMMANDS and size < WRITE_BYTES and (said := self._next()) is not None:
            self._sent.append(said)
            parts.append(said.data)
            size += len(said.data)
            said.data = b""
            said.since_s = now_s
        connection.write(b"".join(parts))
        self.on_writable()

    # --- outcomes -------------------------------------------------------------------------------------

    def _answer(self, outcome: PublishOutcome, text: bytes = b"") -> None:
        """The oldest that was sent has its outcome."""
        said = self._sent.popleft()
        self._give_back(said)
        if said.done is not None:
            self._finish(said, outcome, text)

    def _fail(self, outcome: PublishOutcome) -> None:
        """All that wait and were not sent; not what their callbacks publish in turn."""
        waiting = [*self._own, *self._ready]
        self._own.clear()
        self._ready.clear()
        while len(self._turns):
            said = self._turns.popleft()
            self._window += 1
            self._window_bytes += said.size
            waiting.append(said)
        self._fail_each(waiting, outcome)

    def _expire(self, latest_s: float) -> None:
        """Fail what was accepted before a time and could not be sent until now."""
        waiting: list[_Command] = []
        for queue in (self._own, self._ready):
            while queue and queue[0].since_s <= latest_s:
                waiting.append(queue.popleft())
        self._fail_each(waiting, "down")

    def _fail_each(self, waiting: list[_Command], outcome: PublishOutcome) -> None:
        for said in waiting:
            self._give_back(said)
            self._finish(said, outcome)

    def _finish(self, said: _Command, outcome: PublishOutcome, text: bytes = b"") -> None:
        if said.is_call:
            pass
        elif outcome:
            self.failed += 1
        else:
            self.published += 1
        try:
            if said.is_call:
                cast(CallDone, said.done)(outcome, text)
            else:
                cast(Done, said.done)(outcome)
        except Exception as error:  # its own fault, and not that of those behind it
            context = {"message": "what a publish led to could not be handled", "exception": error}
            self._loop.call_exception_handler(context)
