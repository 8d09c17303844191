"""One connection that hears: SUBSCRIBE out, publications in.

Owns its reconnecting and who still has to be answered; knows nothing of what the names mean. Publications
go to a backlog, from which its owner hands them on at its own pace. Everything else is said to one listener,
on the loop, never from inside a call to it, and does not wait for the backlog. While the
connection is down it forgets what was subscribed: whoever owns the subscriptions hears `on_up` and
subscribes again.

Its memory is bounded, also while the bus stands still: the backlog has a limit, and at most
`UNANSWERED_LIMIT` names are sent and not answered, the others wait. A name waits for one command only,
because the opposite command cancels it, so that a client that subscribes and unsubscribes in a loop adds
nothing.

A bus that is connected and of no use is left: one that is silent after a PING, one that does not
confirm what it was asked, one that says no. A bus that forbids a channel is of use: that name is refused and
nothing else. The server refuses a command as a whole, so the other names in it are sent again, one by one.

While there is no connection publications are lost. So a connection that worked is followed by another at
once, after a small random time. Only attempts that fail one after the other are spread further: over
`QUICK_MOST_S` for the first `QUICK_TRIES`, which last longer than a server takes to restart, then up to a
ceiling that doubles. So neither a thousand shards nor a bus that cuts everybody off at once makes a storm.

0.4 us of CPU a message of 150 bytes, from the socket to the listener, where redis-py's takes 6.7:
python -m loadtest bus_subscriber
"""

import asyncio
import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Final, Protocol

from wsgate.bus import push
from wsgate.bus.backlog import Backlog
from wsgate.bus.connection import Connection, Reply, open_connection, pack, safe_text
from wsgate.bus.topology import slot_of
from wsgate.bus_address import BusAddress
from wsgate.errors import BackendError

__all__ = ["Subscriber", "SubscriberListener", "SubscriberOptions"]

NAMES_PER_COMMAND: Final = 512
UNANSWERED_LIMIT: Final = 2_048
"""Names sent and not answered, above which further names wait here, where they can still be cancelled."""
UNSENT_BYTES: Final = 120
"""What a name that waits takes beside its own bytes: the object's header and its place in the table."""
UNANSWERED_BYTES: Final = 256
"""What a name that was sent may take in the buffer of the socket."""
AGAIN_S: Final = 0.05
"""Within this time a connection that worked is followed by another."""
QUICK_MOST_S: Final = 0.25
"""The longest time between the first attempts: a bus that is back serves this shard 300 ms later."""
QUICK_TRIES: Final = 40
"""About 5 s of them."""
BACKOFF_MOST_S: Final = 5.0
BACKOFF_KNOWN_S: Final = 1.0
"""The same where somebody else knows when there is a primary again, and says so at once when asked."""
STEADY_S: Final = 0.2
"""A connection that confirmed something and lasted so long has worked. A shorter one counts as a failed
attempt: a server that cuts everybody off at once is not asked twenty times a second."""
SECOND_LOOK_S: Final = 0.05
"""Before a bus is given up, what waits in the socket is read: the silence may have been our own."""
_SUBSCRIBE: Final = b"SUBSCRIBE"
_UNSUBSCRIBE: Final = b"UNSUBSCRIBE"
_FORBIDDEN: Final = b"NOPERM "
_ELSEWHERE: Final = (b"MOVED ", b"CLUSTERDOWN ", b"TRYAGAIN ")


@dataclass(frozen=True, slots=True)
class _PendingSubscribe:
    """One command, and the names in it that are not answered yet."""

    command: bytes
    names: deque[bytes]


class SubscriberListener(Protocol):
    """Who is told."""

    def on_up(self) -> None:
        """Connected and authenticated; nothing is subscribed."""

    def on_down(self) -> None:
        """The connection is lost, and every subscription with it."""

    def on_failed(self, why: str) -> None:
        """The connection was lost, or could not be made: why, for a log. After `on_down`."""

    def on_control(self, name: bytes, payload: bytes | None) -> None:
        """A publication to a name outside the channels' prefix, whole; None: from now on it is heard."""

    def on_subscribed(self, name: bytes) -> bool:
        """The bus confirmed one SUBSCRIBE of this name: what is published from now on is heard.

        It is called as soon as the confirmation is received, however much waits in the backlog. What was
        published to the name after it is taken from the backlog after this call.

        Returns:
            False: there is more to be done about it than fits a pass. It is called again in the next
            one, before anything else is handed up or taken from the backlog.
        """

    def on_pass(self) -> None:
        """What was received is handed up or in the backlog: a good time to take from that, and to write."""

    def on_refused(self, name: bytes) -> bool:
        """The server forbids to subscribe to this channel: one SUBSCRIBE of it has no other answer.

        Returns:
            False: a connection without this channel is of no use, and is to be left.
        """

    def on_lost(self, name: bytes, *, was_asked: bool) -> None:
        """The slot of a sharded channel moved: it is not heard here any more, or (`was_asked`) not yet."""


@dataclass(frozen=True, slots=True)
class SubscriberOptions:
    """How to behave; times in seconds, sizes in bytes."""

    connect_timeout_s: float = 5.0  # from the resolver to the greeting's last answer
    reply_timeout_s: float = 5.0  # silence after a PING, or no confirmation, that ends the connection
    ping_interval_s: float = 5.0
    payload_limit_bytes: int = 1024 * 1024


class Subscriber:
    """A subscriber connection that comes back by itself."""

    def __init__(
        self,
        address: BusAddress,
        prefix: bytes,
        listener: SubscriberListener,
        backlog: Backlog,
        options: SubscriberOptions | None = None,
        *,
        is_sharded: bool = False,
    ) -> None:
        """Not connected yet; see `run`.

        Args:
            address: Where the bus is; names are resolved, and sentinels asked, anew for every attempt.
            prefix: What channel names start with on the bus.
            listener: Who is told.
            backlog: Where publications go: names without the prefix; a payload over the limit is None.
            options: Defaults to `SubscriberOptions()`.
            is_sharded: The server is one of a cluster, and channels are sharded channels of its slots.
        """
        self._address = address
        self._prefix = prefix
        self._listener = listener
        self._backlog = backlog
        self._options = options or SubscriberOptions()
        self._connection: Connection | None = None
        self._unsent: dict[bytes, bytes] = {}  # whole name: the one command that waits for it
        self._unsent_bytes = 0  # of those names
        self._is_write_scheduled = False
        self._most_s = BACKOFF_KNOWN_S if address.kind or is_sharded else BACKOFF_MOST_S
        self._is_sharded = is_sharded
        self._pending: deque[_PendingSubscribe] = deque()  # commands not answered yet
        self._has_worked = False  # this connection has confirmed something
        self._has_refused = False  # and refused something
        self._unanswered = 0  # names sent in commands and not answered
        self._progress_s = 0.0  # when the last of them was, or the first was sent
        self._publications = 0  # received on this connection before the last pass
        self.connects = 0
        self.failures = 0

    @property
    def is_up(self) -> bool:
        """Whether there is a connection that can be subscribed on."""
        return self._connection is not None

    def is_up_for(self, name: bytes) -> bool:
        """Whether this channel can be subscribed to now: all can, or none."""
        return self._connection is not None

    def reaching(self, name: bytes) -> list[bytes]:
        """Names made of this one that together reach every server: there is one."""
        return [name]

    @property
    def unsent(self) -> int:
        """Names that wait until the bus has answered for others."""
        return len(self._unsent)

    @property
    def waiting_bytes(self) -> int:
        """Estimated memory of the names that are not answered yet, sent or not."""
        return self._unsent_bytes + len(self._unsent) * UNSENT_BYTES + self._unanswered * UNANSWERED_BYTES

    def subscribe(self, names: Iterable[bytes]) -> list[bytes]:
        """SUBSCRIBE to channels by names without the prefix; written with the next pass, in batches.

        Does nothing while the connection is down: `on_up` is the time to subscribe.

        Returns:
            The names for which no answer will come, because nothing is sent: their UNSUBSCRIBE was not sent
            yet and is cancelled, or their SUBSCRIBE waits already.
        """
        return [name for name in names if not self._enqueue(_SUBSCRIBE, self._prefix + name)]

    def subscribe_control(self, name: bytes) -> None:
        """SUBSCRIBE to a name as it is; it must not start with the prefix."""
        self._enqueue(_SUBSCRIBE, name)

    def unsubscribe(self, names: Iterable[bytes]) -> list[bytes]:
        """UNSUBSCRIBE from channels; for each name in order with the calls of `subscribe`.

        Returns:
            The names whose SUBSCRIBE was not sent yet and is cancelled: no answer will come for it.
        """
        return [name for name in names if not self._enqueue(_UNSUBSCRIBE, self._prefix + name)]

    def limit_payload(self, limit_bytes: int) -> None:
        """Another largest payload, from now on."""
        self._options = replace(self._options, payload_limit_bytes=limit_bytes)
        if self._connection is not None:
            self._connection.limit_payload(limit_bytes)

    def renew(self, why: str, name: bytes = b"") -> None:
        """Leave this connection for a new one: its owner knows that it does not receive what it should.

        Args:
            why: For a log.
            name: What it should receive, whole; of a cluster only the server of this name is left.
        """
        if self._connection is not None:
            self._connection.abort(why)

    async def run(self) -> None:
        """Connect, receive, and connect again; until cancelled."""
        loop, failed = asyncio.get_running_loop(), 0
        while True:
            started_s = loop.time()
            self._has_worked = self._has_refused = False
            try:
                why = await self._session()
            except BackendError as error:
                why = str(error)
            has_worked = self._has_worked and not self._has_refused
            is_steady = has_worked and loop.time() - started_s >= STEADY_S
            failed = 0 if is_steady else failed + 1
            self.failures += 1
            self._listener.on_failed(why)
            # Full jitter: a thousand shards whose bus went away do not come back in step.
            await asyncio.sleep(random.uniform(0, self._most_pause_s(failed)))  # noqa: S311 - spreading

    def _most_pause_s(self, failed: int) -> float:
        """The longest pause after so many attempts in a row that failed."""
        if failed <= QUICK_TRIES:
            return min(QUICK_MOST_S, self._most_s, AGAIN_S * (1 << min(failed, 10)))
        return min(self._most_s, QUICK_MOST_S * (1 << min(failed - QUICK_TRIES, 10)))

    # --- one connection's life ------------------------------------------------------------------------

    async def _session(self) -> str:
        """Connect and hear until the connection is lost; why it was."""
        options = self._options
        connection = await open_connection(
            self._address, self._prefix, options.payload_limit_bytes, options.connect_timeout_s
        )
        try:
            self.connects += 1
            self._unanswered = 0
            self._pending.clear()
            self._connection = connection
            self._publications = 0
            connection.start(self, self._backlog)
            self._listener.on_up()
            await self._watch(connection)
        finally:
            self._connection = None
            self._unsent.clear()
            self._unsent_bytes = self._unanswered = 0
            connection.abort("stopped")
            self._listener.on_down()
        return connection.why

    async def _watch(self, connection: Connection) -> None:
        """Until it is lost; a PING when nothing was heard for a while, and answers within their time."""
        options, loop = self._options, asyncio.get_running_loop()
        pinged_s, is_suspected = 0.0, False
        while not connection.closed.done():
            now_s, heard_s = loop.time(), connection.heard_s
            is_pinged = pinged_s > heard_s
            fault = ""
            if is_pinged and now_s - pinged_s >= options.reply_timeout_s:
                fault = "no answer to PING"
            elif self._unanswered and now_s - self._progress_s >= options.reply_timeout_s:
                fault = "no answer to SUBSCRIBE"
            if fault and is_suspected:
                connection.abort(fault)
            elif not fault and not is_pinged and now_s - heard_s >= options.ping_interval_s:
                connection.write(pack("PING"))
                pinged_s, is_pinged = now_s, True
            is_suspected = bool(fault)
            due_s = pinged_s + options.reply_timeout_s if is_pinged else heard_s + options.ping_interval_s
            if self._unanswered:
                due_s = min(due_s, self._progress_s + options.reply_timeout_s)
            # What is asked and answered meanwhile makes another moment the next one.
            wait_s = SECOND_LOOK_S if fault else min(max(due_s - now_s, 0) + 0.001, options.ping_interval_s)
            await asyncio.wait((connection.closed,), timeout=wait_s)

    # --- Connection's owner ---------------------------------------------------------------------------

    def hand_up(self, replies: list[Reply]) -> int:
        """Tell the listener; a fault of its own costs it one reply and not the connection."""
        listener, place = self._listener, -1
        for place, (kind, name, payload) in enumerate(replies):
            try:
                if kind == push.SUBSCRIBED:
                    if not listener.on_subscribed(name):
                        return place
                    self._on_answer()
                elif kind == push.CONTROL:
                    if payload is None:
                        self._on_answer()
                    listener.on_control(name, payload)
                elif kind == push.UNSUBSCRIBED and self._is_sharded and not self._is_leaving(name):
                    listener.on_lost(name, was_asked=False)
                elif kind == push.UNSUBSCRIBED:
                    self._on_answer()
                elif kind == push.ERROR and not (self._is_redirected(name) or self._is_forbidden(name)):
                    # Nothing heard here can be relied on.
                    self._has_refused = True
                    self.renew("the bus refuses: " + safe_text(name))
                    break
            except Exception as error:
                _report(error)
        return place + 1

    def _is_leaving(self, name: bytes) -> bool:
        """Whether a sharded channel that ended is the next one we left; else the server has ended it."""
        if not self._pending or self._pending[0].command is not _UNSUBSCRIBE:
            return False
        return self._pending[0].names[0].removeprefix(self._prefix) == name

    def _is_redirected(self, text: bytes) -> bool:
        """Deal with a command whose slot is elsewhere, or nowhere now; False: it is another error."""
        if not text.startswith(_ELSEWHERE) or not self._pending:
            return False
        asked = self._pending.popleft()
        self._unanswered -= len(asked.names)
        self._schedule_write()
        if asked.command is _SUBSCRIBE:
            for name in asked.names:
                self._listener.on_lost(name.removeprefix(self._prefix), was_asked=True)
        return True

    def _is_forbidden(self, text: bytes) -> bool:
        """Deal with a SUBSCRIBE that the server's ACL forbids; False: it is another error.

        The error does not say which name is forbidden. A command with several names is sent again, one name
        at a time. A name for which a later command was sent or waits needs no answer of this one.
        """
        if not text.startswith(_FORBIDDEN) or not self._pending or self._pending[0].command is not _SUBSCRIBE:
            return False
        names = self._pending.popleft().names
        later = {name for asked in self._pending for name in asked.names}
        is_single = len(names) == 1
        for name in names:
            if not is_single and name not in later and name not in self._unsent:
                self._send(_SUBSCRIBE, [name])
                continue
            self._unanswered -= 1
            if name not in later and self._unsent.pop(name, None) is not None:  # to leave it again
                self._unsent_bytes -= len(name)
            is_channel = name.startswith(self._prefix)
            if not is_channel or not self._listener.on_refused(name.removeprefix(self._prefix)):
                return False
        self._progress_s = asyncio.get_running_loop().time()
        self._schedule_write()
        return True

    def _on_answer(self) -> None:
        if self._pending:
            self._pending[0].names.popleft()
            if not self._pending[0].names:
                self._pending.popleft()
        self._has_worked = True
        self._unanswered -= 1
        self._progress_s = asyncio.get_running_loop().time()
        if self._unsent and self._unanswered <= UNANSWERED_LIMIT // 2:
            self._schedule_write()
        if self._unanswered < 0:
            self.renew("the bus confirms what it was not asked")

    def on_pass(self) -> None:
        """Pass it on."""
        if self._connection is not None:
            if self._unanswered and self._connection.publications != self._publications:
                # The server sends what it had queued before; the confirmation stands behind that.
                self._progress_s = asyncio.get_running_loop().time()
            self._publications = self._connection.publications
            try:
                self._listener.on_pass()
            except Exception as error:
                _report(error)

    def on_writable(self) -> None:
        """Nothing waits for that: commands are few and written as they come."""

    # --- out ------------------------------------------------------------------------------------------

    def _enqueue(self, command: bytes, name: bytes) -> bool:
        """Queue a command for one name; False: it cancels the command that waits, or that one is the same."""
        if self._connection is None:
            return True
        waiting = self._unsent.get(name)
        if waiting is None:
            self._unsent[name] = command
            self._unsent_bytes += len(name)
            self._schedule_write()
        elif waiting != command:
            del self._unsent[name]
            self._unsent_bytes -= len(name)
        return waiting is None

    def _schedule_write(self) -> None:
        if self._unsent and not self._is_write_scheduled and self._unanswered < UNANSWERED_LIMIT:
            self._is_write_scheduled = True
            asyncio.get_running_loop().call_soon(self._write)

    def _take_unsent(self, most: int) -> Iterator[tuple[bytes, list[bytes]]]:
        """Take the names that waited longest, in runs of one command."""
        taken = [(self._unsent.pop(name), name) for name in list(islice(self._unsent, most))]
        self._unsent_bytes -= sum(len(name) for _, name in taken)
        for command, run in groupby(taken, key=lambda pair: pair[0]):
            yield command, [name for _, name in run]

    def _write(self) -> None:
        self._is_write_scheduled = False
        if self._connection is None:
            return
        if not self._unanswered:
            self._progress_s = asyncio.get_running_loop().time()
        for command, names in self._take_unsent(max(0, UNANSWERED_LIMIT - self._unanswered)):
            self._unanswered += len(names)
            for some in _by_slot(names) if self._is_sharded else _in_parts(names):
                self._send(command, some)

    def _send(self, command: bytes, names: list[bytes]) -> None:
        """Send one command; its names are counted as unanswered already."""
        if self._connection is not None:
            self._pending.append(_PendingSubscribe(command, deque(names)))
            self._connection.write(pack(b"S" + command if self._is_sharded else command, *names))


def _in_parts(names: list[bytes]) -> Iterable[list[bytes]]:
    return (names[start : start + NAMES_PER_COMMAND] for start in range(0, len(names), NAMES_PER_COMMAND))


def _by_slot(names: list[bytes]) -> Iterable[list[bytes]]:
    """Names that may stand in one command: those of one slot (else CROSSSLOT), in order."""
    slots: dict[int, list[bytes]] = {}
    for name in names:
        slots.setdefault(slot_of(name), []).append(name)
    return (some for each in slots.values() for some in _in_parts(each))


def _report(error: Exception) -> None:
    context = {"message": "a reply of the bus could not be handled", "exception": error}
    asyncio.get_running_loop().call_exception_handler(context)
