"""Publish and run commands on one server of the bus, over one connection; report an outcome for each command.

The commands of one pass of the loop are sent together, and the replies come in the same order. A caller
passes a callback and gets no awaitable, so it cannot cancel a command that was sent, and no reply is ever
given to the wrong caller (redis-py CVE-2023-28858). The number and the bytes of unanswered commands are
bounded. At the bound, and while the bus cannot be reached, a publish fails at once. The publisher never sends
a publication twice, because the receivers would get a duplicate.

Commands of the gateway itself (counting users, leases, probes, revocations) and publications of clients have
separate limits, so that many publications of clients never make a command of the gateway fail:

    own      commands of the gateway, first in, first out; sent before everything else
    ready    publications of clients that are inside the window: sent next, in this order
    turns    the other publications of clients, by user and then by connection (wsgate/turns.py)

The window bounds the publications of clients that are ready, or sent and not answered. The bus replies in
order, so a new publication waits for at most one window and one round of turns. A client that has many
publications in the queue is refused with `crowded`, so that room is left for other clients.

No client library is used here, for two reasons. When one reply is missing, redis-py fails a whole pipeline
alike: the commands that the bus has confirmed, those with an unknown outcome and those that were never sent.
And its parser trusts any count and any length (S26).

1.7 us of CPU for a publish with 50 under way together, 1.2 with 200, 14 to 27 one by one; redis-py: 10.8, 9.3
and 49 to 53: python -m loadtest bus_publisher
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from wsgate.bus import push
from wsgate.bus.connection import Connection, Reply, is_passing, open_connection, pack, safe_text
from wsgate.bus_address import BusAddress
from wsgate.errors import BackendError
from wsgate.turns import Room, Sender, Turns

__all__ = ["CallDone", "PublishOutcome", "Publisher"]

WRITE_COMMANDS: Final = 256
WRITE_BYTES: Final = 256 * 1024
"""The most that one write sends; a single publication may be larger."""
WAITING_LIMIT: Final = 8_192
WAITING_LIMIT_BYTES: Final = 32 * 1024 * 1024
"""The most unanswered commands of the gateway, and separately the most unanswered publications of clients."""
WINDOW_COMMANDS: Final = 512
WINDOW_BYTES: Final = 320 * 1024
"""The most publications of clients that are ready or sent and not answered; others wait for their turn. With
a round trip of 1 ms this allows 512,000 publications or 320 MiB a second; a larger window would only make the
queue longer. python -m loadtest publish_fairness"""
COMMAND_COST: Final = 4 * 1024
"""The fixed cost of a publication for its turn, in bytes, added to its size: this process and the bus
together take 3.9 us of CPU for one of 60 bytes, and 74 us for one of 60 KiB."""
COMMAND_BYTES: Final = 500
"""Memory of a queued publication in addition to its bytes: entry, callback and its places in `Turns`."""
FAILING_PAUSE_S: Final = 0.5
"""After a failed attempt to connect, publishes fail at once for about this time, without another attempt."""
STEADY_S: Final = 1.0
"""A connection that was lost sooner than this counts as a failed attempt, and the same pause follows."""
IDLE_PING_S: Final = 15.0
SECOND_LOOK_S: Final = 0.05
"""Time between the first late check and giving a connection up. Bytes that already wait in the socket are
read in this time: this process may have been blocked, and not the bus."""

_PUBLISH: Final = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
_SPUBLISH: Final = _PUBLISH.replace(b"$7\r\nPUBLISH", b"$8\r\nSPUBLISH")
"""Both commands carry the length of each part, so that a name or a payload may have any bytes (S26)."""

PublishOutcome = str
"""The outcome of a command: `""` when the bus has executed it, else the reason of the failure.

Not executed: `down` (the bus cannot be reached, or its server is in a state that passes), `full` (the queue
has no room left), `crowded` (this client has too much in the queue), `refused` (the bus replied with another
error), and on a cluster `moved` (another
server has the slot). Perhaps executed: `unknown` (sent, but no reply). Executed without effect: `unheard` (a
publication with `must_reach` had no receiver).
"""

Done = Callable[[PublishOutcome], None]
CallDone = Callable[[PublishOutcome, bytes], None]
"""Called with the outcome of a command and the text of its reply. The text is the result when the outcome is
"". The outcome `unscripted` says that the server does not know the script of an EVALSHA."""


class _Command:
    """A queued or sent command: its bytes, callback, charged size, owner, and the time of its last step."""

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
        self.data = data  # emptied when the command is sent, to free the memory
        self.done = done  # None: the command is a PING
        self.size = size
        self.since_s = since_s  # when the command was accepted; once it is sent, when it was sent
        self.is_call = is_call
        self.sender = sender  # None: a command of the gateway itself
        self.must_reach = must_reach


class Publisher:
    """Publish and run commands on one server. Call all methods on the event loop that made the publisher.

    Attributes:
        published: Publications that the bus has confirmed.
        failed: Publications with any other outcome.
    """

    def __init__(
        self,
        address: BusAddress,
        *,
        connect_timeout_s: float,
        command_timeout_s: float,
        on_failed: Callable[[str], None] | None = None,
        is_sharded: bool = False,
        on_moved: Callable[[bytes], None] = lambda text: None,
    ) -> None:
        """Start without a connection; the first command connects once `run` is a running task.

        Args:
            address: The address of the bus. Its host name is resolved, or its sentinels are queried, for
                every attempt to connect.
            connect_timeout_s: Time from the resolver to the last reply of the greeting, in seconds.
            command_timeout_s: Time from sending a command to its reply, in seconds; later the outcome is
                `unknown`. A command that could not be sent within both times together is `down`.
            on_failed: Called with a reason for the log when the bus cannot be reached, refuses, or is lost
                with commands that were not answered.
            is_sharded: The server belongs to a cluster: publish with SPUBLISH to sharded channels.
            on_moved: Called with the text of each reply MOVED, before the command's outcome.
        """
        self._command = _SPUBLISH if is_sharded else _PUBLISH
        self._address = address
        self._connect_timeout_s = connect_timeout_s
        self._command_timeout_s = command_timeout_s
        self._on_failed = on_failed or (lambda why: None)
        self._on_moved = on_moved
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
        self._is_leaving = False  # send nothing more on this connection; it is closed after its last reply
        self._is_closed = False
        self.published = 0
        self.failed = 0

    @property
    def waiting_bytes(self) -> int:
        """The bytes of all commands that are accepted and not answered. O(1)."""
        return self._own_bytes + self._room.size

    @property
    def _waiting(self) -> int:
        """The number of commands that are queued and not sent yet."""
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
        """Queue a publication for sending; `done` is called once, later, on the loop.

        Args:
            name: The whole pub/sub name on the bus.
            data: An envelope or a raw payload.
            done: Called with "" or the reason of the failure. Calls for commands that were sent come in the
                order of sending.
            sender: The client that publishes; None: the gateway itself, which has a limit of its own.
            must_reach: The caller is subscribed to the name, so 0 receivers are a failure: `unheard`.
        """
        command = self._command % (len(name), name, len(data), data)
        size = len(data) if sender is None else len(command) + COMMAND_BYTES
        said = _Command(command, done, size, self._loop.time(), sender=sender, must_reach=must_reach)
        if sender is None:
            self._enqueue(said)
        else:
            self._say_for(said, sender)

    def call(self, key: bytes, command: bytes, done: CallDone) -> None:
        """Queue a packed command of the gateway, such as EVALSHA; `done` is called once, later, on the loop.

        Args:
            key: The key that the command uses. `ClusterPublisher` selects the server by this key.
            command: The packed command. Its reply must be a number, a status or a bulk string of at most
                `push.REPLY_LIMIT_BYTES`; a larger reply ends the connection.
            done: Called with "" and the text of the reply, or with the reason of the failure.
        """
        self._enqueue(_Command(command, done, len(command), self._loop.time(), is_call=True))

    def _enqueue(self, said: _Command) -> None:
        """Queue a command of the gateway itself, or fail it with `down` or `full`."""
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
        """Queue a publication of a client in the window or in the turns, or fail it."""
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
        """Put a publication into the window, to be sent next."""
        self._ready.append(said)
        self._window += 1
        self._window_bytes += said.size

    def _next(self) -> _Command | None:
        """Remove and return the command to send next; None: the queues are empty, or the window is full."""
        if self._own:
            return self._own.popleft()
        if not self._ready and len(self._turns) and self._has_window():
            self._enter_window(self._turns.popleft())
        return self._ready.popleft() if self._ready else None

    def _give_back(self, said: _Command) -> None:
        """Release the room of a command that was sent, ready or the gateway's own."""
        if said.sender is not None:
            self._window -= 1
            self._window_bytes -= said.size
            self._room.give(said.sender, said.size)
        elif said.done is not None:
            self._own_held -= 1
            self._own_bytes -= said.size

    def resume(self) -> None:
        """End the pause after a failure: the next command may connect at once, because the bus is back."""
        self._closed_until_s = 0.0

    def renew(self, why: str, name: bytes = b"") -> None:
        """Replace the connection: send nothing more on it, and close it after the last reply.

        Args:
            why: The reason, for the log.
            name: Not used here; see `ClusterPublisher.renew`.
        """
        if self._connection is not None:
            self._is_leaving = True
            if not self._sent:
                self._connection.abort(why)

    async def run(self) -> None:
        """Connect whenever commands are queued, send them and receive their replies, until cancelled.

        Call `close` afterwards.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._waiting:
                await self._session()

    async def close(self) -> None:
        """Fail all queued and all later commands as `down`. Call it after `run` has ended."""
        self._is_closed = True
        self._fail("down")

    # --- one connection's life ------------------------------------------------------------------------

    async def _session(self) -> None:
        """Connect once and serve the connection until it is lost; fail or requeue the commands afterwards."""
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
        if self._waiting:  # never sent, so sending them on a new connection repeats nothing
            self._wake.set()

    def _pause(self, why: str) -> None:
        """Fail all queued commands now, and all new ones for about `FAILING_PAUSE_S`."""
        spread = random.uniform(0.5, 1.5)  # noqa: S311 - spreading, not secrecy
        self._closed_until_s = self._loop.time() + FAILING_PAUSE_S * spread
        self._on_failed(why)
        self._fail("down")

    async def _watch(self, connection: Connection) -> bool:
        """Watch the connection until it is lost; True: the oldest reply was overdue, so this closed it."""
        timeout_s, is_suspected, is_overdue = self._command_timeout_s, False, False
        while not connection.closed.done():
            now_s = self._loop.time()
            is_late = bool(self._sent) and now_s - self._sent[0].since_s >= timeout_s
            self._expire(now_s - timeout_s - self._connect_timeout_s)
            if is_late and is_suspected:
                is_overdue = True
                connection.abort(f"no reply within {timeout_s:g} s")
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
        """Match each reply to the oldest unanswered command, and report that command's outcome."""
        for kind, text, _ in replies:
            is_error = kind == push.ERROR
            if not self._sent or not (is_error or kind == push.REPLY):
                self._drop("the bus sent an unrequested reply")
                break
            said = self._sent[0]
            if not is_error and said.done is not None and not said.is_call and not text.isdigit():
                self._drop("the bus replied to PUBLISH without a number")
                break
            if is_error and text.startswith(b"MOVED "):
                self._on_moved(text)
                self._answer("moved")
                continue
            if is_error and said.is_call and text.startswith(b"NOSCRIPT"):
                self._answer("unscripted")
                continue
            if is_error:
                # The ACL forbids the command, or the server is in a wrong state: nothing was published.
                self._on_failed("the bus refuses: " + safe_text(text))
                self._answer("down" if is_passing(text) else "refused", text)
                continue
            self._answer("unheard" if said.must_reach and text == b"0" else "", text)
        self.on_writable()
        return len(replies)

    def on_pass(self) -> None:
        """Close a connection that is being replaced, once every reply has arrived."""
        if self._is_leaving and not self._sent:
            self._drop("the connection is replaced")

    def on_writable(self) -> None:
        """Schedule one write for all commands of this pass of the loop, if there is a command to send."""
        has_next = self._own or self._ready or (len(self._turns) and self._has_window())
        if self._connection is not None and has_next and not self._is_write_scheduled:
            self._is_write_scheduled = True
            self._loop.call_soon(self._write)

    def _drop(self, why: str) -> None:
        if self._connection is not None:
            self._connection.abort(why)

    def _write(self) -> None:
        """Send the next commands in one write, within `WRITE_COMMANDS` and `WRITE_BYTES`."""
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
        """Report the outcome of the oldest command that was sent and not answered."""
        said = self._sent.popleft()
        self._give_back(said)
        if said.done is not None:
            self._finish(said, outcome, text)

    def _fail(self, outcome: PublishOutcome) -> None:
        """Fail all commands that were not sent; commands that their callbacks add are not among them."""
        waiting = [*self._own, *self._ready]
        self._own.clear()
        self._ready.clear()
        while len(self._turns):
            said = self._turns.popleft()
            # `_give_back` subtracts each of these from the window: add it first.
            self._window += 1
            self._window_bytes += said.size
            waiting.append(said)
        self._fail_each(waiting, outcome)

    def _expire(self, latest_s: float) -> None:
        """Fail the queued own and ready commands that were accepted up to `latest_s` and are not sent yet."""
        waiting: list[_Command] = []
        for queue in (self._own, self._ready):
            while queue and queue[0].since_s <= latest_s:
                waiting.append(queue.popleft())
        self._fail_each(waiting, "down")

    def _fail_each(self, waiting: list[_Command], outcome: PublishOutcome) -> None:
        """Release and finish each of several queued commands with one outcome."""
        for said in waiting:
            self._give_back(said)
            self._finish(said, outcome)

    def _finish(self, said: _Command, outcome: PublishOutcome, text: bytes = b"") -> None:
        """Count a publication, and call the callback of a command with its outcome."""
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
        except Exception as error:  # a fault in one callback must not stop the commands behind it
            context = {"message": "the callback of a publish has failed", "exception": error}
            self._loop.call_exception_handler(context)
