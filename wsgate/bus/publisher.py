"""One connection that speaks: PUBLISH and scripts out, an answer for each.

Publications of one pass of the loop leave in one write; answers belong to them in order. Callers get a
callback instead of an awaitable, so that nobody can cancel a command half-way: the connection has one
owner, and no reply ever meets another caller (redis-py CVE-2023-28858). What is accepted and not
answered is bounded; beyond that, and while the bus is away, a publish fails at once, loudly. It is
never sent twice by itself: that would be a duplicate nobody asked for.

Why no client library speaks here: one answer that does not come makes all of a pipeline of redis-py fail
alike, those the bus has confirmed, those it may have and those it never got; and its reader believes any
count and any length it is told (S26).

1.7 us of CPU a publish with 50 under way together, 1.2 with 200, 14 to 27 one by one; redis-py: 10.8, 9.3
and 49 to 53: python -m loadtest.bus_publisher
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from wsgate.address import BusAddress
from wsgate.bus import push
from wsgate.bus.connection import Connection, Reply, open_connection, pack, safe_text
from wsgate.errors import BackendError

__all__ = ["CallDone", "PublishOutcome", "Publisher"]

WRITE_COMMANDS: Final = 256
WRITE_BYTES: Final = 256 * 1024
"""What one pass of the loop writes at most; a single publication may be larger."""
WAITING_LIMIT: Final = 8_192
WAITING_LIMIT_BYTES: Final = 32 * 1024 * 1024
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
"""`""` when the bus has it, else why not: `down`, `full` and `refused` (it has not), `unknown` (it may).

A server of a cluster also says `moved`: it has not, and another one would take it.
"""

Done = Callable[[PublishOutcome], None]
CallDone = Callable[[PublishOutcome, bytes], None]
"""Told the outcome of a command and, when that is "", its answer. `unscripted`: no such script is known."""


class _Said:
    """One command: as it is sent, who is told, what it counts for, and since when it is here."""

    __slots__ = ("data", "done", "is_call", "since_s", "size")

    def __init__(
        self, data: bytes, done: Done | CallDone | None, size: int, since_s: float, *, is_call: bool = False
    ) -> None:
        self.data = data  # nothing any more once it is sent
        self.done = done  # None: a PING
        self.size = size
        self.since_s = since_s  # accepted, then sent
        self.is_call = is_call


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
        self._waiting: deque[_Said] = deque()
        self._sent: deque[_Said] = deque()
        self._held_bytes = 0
        self._wake = asyncio.Event()
        self._closed_until_s = 0.0
        self._is_write_scheduled = False
        self._is_leaving = False  # this connection gets nothing more to send
        self._is_closed = False
        self.published = 0
        self.failed = 0

    @property
    def waiting_bytes(self) -> int:
        """Payload bytes accepted and not yet answered."""
        return self._held_bytes

    def publish(self, name: bytes, data: bytes, done: Done) -> None:
        """PUBLISH `data` to a pub/sub name; `done` is called once, later, on the loop.

        Args:
            name: The whole name on the bus.
            data: An envelope or a raw payload.
            done: Told "" or why it failed. Of those that were sent, in order.
        """
        command = self._command % (len(name), name, len(data), data)
        self._say(_Said(command, done, len(data), self._loop.time()))

    def call(self, key: bytes, command: bytes, done: CallDone) -> None:
        """Send a packed command; `done` is called once, later, on the loop.

        Args:
            key: The one key it is about: on a cluster, where it is sent.
            command: Answered with a number, a status or a bulk string of at most
                `push.REPLY_LIMIT_BYTES`; a larger answer ends the connection.
            done: Told "" and the answer, or why there is none.
        """
        self._say(_Said(command, done, len(command), self._loop.time(), is_call=True))

    def _say(self, said: _Said) -> None:
        if self._is_closed or self._loop.time() < self._closed_until_s:
            self._loop.call_soon(self._finish, said, "down")
        elif (
            len(self._waiting) + len(self._sent) >= WAITING_LIMIT
            or self._held_bytes + said.size > WAITING_LIMIT_BYTES
        ):
            self._loop.call_soon(self._finish, said, "full")
        else:
            self._waiting.append(said)
            self._held_bytes += said.size
            self._wake.set()
            self.on_writable()

    def renew(self, why: str) -> None:
        """Leave this connection, when what was sent is answered, for a new one."""
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
            self._is_leaving = False
            connection.abort("stopped")
            is_missed = bool(self._sent)
            while self._sent:
                self._answer("unknown")
        if is_overdue or self._loop.time() - started_s < STEADY_S:
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
            while self._waiting and now_s - self._waiting[0].since_s >= timeout_s + self._connect_timeout_s:
                self._fail_oldest("down")
            if is_late and is_suspected:
                is_overdue = True
                connection.abort(f"no answer within {timeout_s:g} s")
            elif not self._sent and now_s - connection.heard_s >= IDLE_PING_S and not self._is_leaving:
                self._sent.append(_Said(b"", None, 0, now_s))
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
            self._answer("refused" if is_error else "", text)
        return len(replies)

    def on_pass(self) -> None:
        """Leave, when that was only waiting for answers."""
        if self._is_leaving and not self._sent:
            self._drop("renewed")

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
        if connection is None or self._is_leaving or not (connection.is_open and connection.is_writable):
            return
        parts: list[bytes] = []
        now_s, size = self._loop.time(), 0
        while self._waiting and len(parts) < WRITE_COMMANDS and size < WRITE_BYTES:
            said = self._waiting.popleft()
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
        self._held_bytes -= said.size
        if said.done is not None:
            self._finish(said, outcome, text)

    def _fail(self, outcome: PublishOutcome) -> None:
        """All that wait and were not sent; not what their callbacks publish in turn."""
        for _ in range(len(self._waiting)):
            self._fail_oldest(outcome)

    def _fail_oldest(self, outcome: PublishOutcome) -> None:
        said = self._waiting.popleft()
        self._held_bytes -= said.size
        self._finish(said, outcome)

    def _finish(self, said: _Said, outcome: PublishOutcome, text: bytes = b"") -> None:
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
