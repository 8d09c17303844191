"""Subscribe to channels on one server of the bus, and receive their publications over one connection.

The subscriber reconnects, and tracks which SUBSCRIBE and UNSUBSCRIBE commands are unanswered. The meaning of
the names is the business of its listener. Publications are put into a backlog, from which the listener takes
them at its own pace. All other events are calls of the listener; they come on the event loop, never from
inside a method that the listener calls, and do not wait for the backlog. A lost connection ends all
subscriptions: the listener subscribes again when `on_up` is called.

The memory is bounded, also while the bus does not reply: the backlog has a limit, at most `UNANSWERED_LIMIT`
names are sent and unanswered, and the other names are queued. At most one command is queued for a name, and
the opposite command cancels it, so a client that subscribes and unsubscribes in a loop adds nothing. If the
listener does not know whether the server has the name, the opposite command replaces the queued one instead.

A connection is closed and replaced when the server does not reply to PING, does not confirm a command, or
replies with an error. Two errors keep the connection: on a cluster, that a slot has moved; and that the
server's ACL forbids a channel. The latter refuses a whole command, so each other name of the command is sent
again in a command of its own.

Publications are lost while there is no connection. So after the loss of a connection that worked, the next
attempt follows at once, after a small random time. Repeated failed attempts are spread wider: over
`QUICK_MOST_S` for the first `QUICK_TRIES`, which take longer than a server needs to restart, then over a time
that doubles up to a ceiling. So a thousand shards do not reconnect at the same moment, and a server that
closes every connection at once gets few attempts.

0.4 us of CPU for a publication of 150 bytes, from the socket to the listener; redis-py takes 6.7:
python -m loadtest bus_subscriber
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Final, NamedTuple, Protocol

from wsgate.bus import push
from wsgate.bus.backlog import Backlog
from wsgate.bus.connection import Connection, Reply, open_connection, pack, safe_text
from wsgate.bus.topology import slot_of
from wsgate.bus_address import BusAddress
from wsgate.errors import BackendError

__all__ = ["Subscriber", "SubscriberListener", "SubscriberOptions"]

NAMES_PER_COMMAND: Final = 512
UNANSWERED_LIMIT: Final = 2_048
"""The most names sent and not answered. Further names are queued here, where they can still be cancelled."""
UNSENT_BYTES: Final = 120
"""Memory of a queued name in addition to its bytes: the object's header and its entry in the dictionary."""
UNANSWERED_BYTES: Final = 256
"""Memory that a sent name may take in the buffer of the socket."""
AGAIN_S: Final = 0.05
"""The longest time from the loss of a connection that worked to the next attempt."""
QUICK_MOST_S: Final = 0.25
"""The longest time between the first attempts: 300 ms after a restart the server has this shard again."""
QUICK_TRIES: Final = 40
"""Attempts with the short pause: about 5 s."""
BACKOFF_MOST_S: Final = 5.0
BACKOFF_KNOWN_S: Final = 1.0
"""The ceiling with sentinels or a cluster: these reply at once, and know when there is a primary again."""
STEADY_S: Final = 0.2
"""A connection that confirmed a command and lasted this long has worked. A shorter one counts as a failed
attempt, so that a server that closes every connection at once does not get twenty attempts a second."""
SECOND_LOOK_S: Final = 0.05
"""Time between the first late check and giving a connection up. Bytes that already wait in the socket are
read in this time: this process may have been blocked, and not the bus."""
_SUBSCRIBE: Final = b"SUBSCRIBE"
_UNSUBSCRIBE: Final = b"UNSUBSCRIBE"
_FORBIDDEN: Final = b"NOPERM "
_ELSEWHERE: Final = (b"MOVED ", b"CLUSTERDOWN ", b"TRYAGAIN ")


@dataclass(frozen=True, slots=True)
class _PendingSubscribe:
    """A SUBSCRIBE or UNSUBSCRIBE command that was sent, with the names in it that are not answered yet."""

    command: bytes
    names: deque[bytes]


class _Queued(NamedTuple):
    """A command that is queued for one name."""

    command: bytes
    may_cancel: bool  # False: the server may lack or have the name, so one of the commands must be sent


class SubscriberListener(Protocol):
    """The calls from a subscriber to the object that owns the subscriptions. All come on the event loop."""

    def on_up(self) -> None:
        """Subscribe to everything: a new connection is authenticated, and nothing is subscribed on it."""

    def on_down(self) -> None:
        """Note that the connection is lost, and with it every subscription."""

    def on_failed(self, why: str) -> None:
        """Log why the connection was lost or could not be made; called after `on_down`, if it was up."""

    def on_control(self, name: bytes, payload: bytes | None) -> None:
        """Handle a publication to a control name, or with a payload of None the confirmed subscription to it.

        Args:
            name: A whole name that does not begin with the prefix of channels.
            payload: The payload; b"" when it was over the limit; None: the subscription is confirmed.
        """

    def on_subscribed(self, name: bytes) -> bool:
        """Handle the confirmation of one SUBSCRIBE to a channel: publications from now on are received.

        It is called as soon as the confirmation is received, however many publications are in the backlog.
        Publications to the channel that came after the confirmation are taken from the backlog after this
        call.

        Returns:
            False: handling it needs more than one pass. It is called again in the next pass, before any other
            reply is handled and before anything is taken from the backlog.
        """

    def on_pass(self) -> None:
        """Take publications from the backlog, and write: a pass over the received bytes has ended."""

    def on_refused(self, name: bytes) -> bool:
        """Handle a channel that the server's ACL forbids; its SUBSCRIBE gets no other reply.

        Returns:
            False: a connection without this channel is useless, and must be replaced.
        """

    def on_lost(self, name: bytes, *, was_asked: bool) -> None:
        """Handle a sharded channel whose slot has moved to another server.

        Args:
            name: The name of the channel, without the prefix.
            was_asked: True: the server refused a SUBSCRIBE, because the slot is elsewhere or not served now.
                False: the server has ended the subscription.
        """


@dataclass(frozen=True, slots=True)
class SubscriberOptions:
    """The times (seconds) and sizes (bytes) of a subscriber connection."""

    connect_timeout_s: float = 5.0  # from the resolver to the last reply of the greeting
    reply_timeout_s: float = 5.0  # without a reply to PING or a confirmation the connection is closed
    ping_interval_s: float = 5.0
    payload_limit_bytes: int = 1024 * 1024


class Subscriber:
    """A subscriber connection to one server, which reconnects by itself.

    Attributes:
        connects: Connections that were made until now.
        failures: Connections that were lost, and attempts that failed, until now.
    """

    def __init__(
        self,
        address: BusAddress,
        prefix: bytes,
        listener: SubscriberListener,
        backlog: Backlog,
        options: SubscriberOptions | None = None,
        *,
        is_sharded: bool = False,
        on_moved: Callable[[bytes], None] = lambda text: None,
    ) -> None:
        """Start without a connection; `run` connects.

        Args:
            address: The address of the bus. Its host name is resolved, or its sentinels are queried, for
                every attempt to connect.
            prefix: The bytes before every channel name on the bus.
            listener: Receives the events of the connection and of the subscriptions.
            backlog: Receives the publications: names without the prefix; a payload over the limit is None.
            options: Times and sizes; the default is `SubscriberOptions()`.
            is_sharded: The server belongs to a cluster, and the channels are sharded channels of its slots.
            on_moved: Called with the text of each reply MOVED, before `on_lost` for its names.
        """
        self._address = address
        self._prefix = prefix
        self._listener = listener
        self._backlog = backlog
        self._options = options or SubscriberOptions()
        self._connection: Connection | None = None
        self._unsent: dict[bytes, _Queued] = {}  # whole name: the one command queued for it
        self._unsent_bytes = 0  # bytes of the names in `_unsent`
        self._is_write_scheduled = False
        self._most_s = BACKOFF_KNOWN_S if address.kind or is_sharded else BACKOFF_MOST_S
        self._is_sharded = is_sharded
        self._on_moved = on_moved
        self._pending: deque[_PendingSubscribe] = deque()  # commands not answered yet
        self._heard: set[bytes] = set()  # control names that this connection has confirmed
        self._has_worked = False  # this connection has confirmed a command
        self._has_refused = False  # this connection has replied with an error that ended it
        self._unanswered = 0  # names sent in commands and not answered
        self._progress_s = 0.0  # when a reply last arrived, or the first unanswered command was sent
        self._publications = 0  # publications of this connection at the end of the last pass
        self.connects = 0
        self.failures = 0

    @property
    def is_up(self) -> bool:
        """Whether the connection exists, so that channels can be subscribed to."""
        return self._connection is not None

    def is_up_for(self, name: bytes) -> bool:
        """Whether this channel can be subscribed to now; with one server the channel makes no difference."""
        return self._connection is not None

    def hears(self, name: bytes) -> bool:
        """Whether the server has confirmed the subscription to a control name on this connection."""
        return name in self._heard

    def reaching(self, name: bytes) -> list[bytes]:
        """Return names derived from this one that together reach every server: with one server, the name."""
        return [name]

    @property
    def unsent(self) -> int:
        """The number of names whose command is queued until the bus has answered earlier ones."""
        return len(self._unsent)

    @property
    def waiting_bytes(self) -> int:
        """Estimated memory in bytes of the names whose command is queued or unanswered. O(1)."""
        return self._unsent_bytes + len(self._unsent) * UNSENT_BYTES + self._unanswered * UNANSWERED_BYTES

    @property
    def held_bytes(self) -> int:
        """Memory in bytes of what was received and neither handled nor put into the backlog. O(replies)."""
        return self._connection.held_bytes if self._connection is not None else 0

    def subscribe(self, names: Iterable[bytes], *, may_cancel: bool = True) -> list[bytes]:
        """Queue a SUBSCRIBE for each channel; the commands are sent in the next pass, in batches.

        While the connection is down this does nothing: subscribe in `on_up`.

        Args:
            names: Channel names without the prefix.
            may_cancel: An UNSUBSCRIBE that follows before the SUBSCRIBE is sent cancels it. False: it
                replaces the SUBSCRIBE, because the server may have the channel already.

        Returns:
            The names for which no further reply will come: their queued UNSUBSCRIBE is cancelled, or a
            SUBSCRIBE for them is queued already.
        """
        needless: list[bytes] = []
        for name in names:
            waiting = self._enqueue(_SUBSCRIBE, self._prefix + name, may_cancel=may_cancel)
            if waiting and (waiting.command is _SUBSCRIBE or (waiting.may_cancel and may_cancel)):
                needless.append(name)
        return needless

    def subscribe_control(self, name: bytes) -> None:
        """Queue a SUBSCRIBE for a control name: the whole name, which must not begin with the prefix."""
        self._enqueue(_SUBSCRIBE, name)

    def unsubscribe(self, names: Iterable[bytes], *, may_cancel: bool = True) -> list[bytes]:
        """Queue an UNSUBSCRIBE for each channel; it takes effect in order with calls of `subscribe`.

        Args:
            names: Channel names without the prefix.
            may_cancel: A SUBSCRIBE that follows before the UNSUBSCRIBE is sent cancels it. False: it replaces
                the UNSUBSCRIBE, because the server may lack the channel already.

        Returns:
            The names whose SUBSCRIBE was queued and will not be sent, so that no reply to it will come.
        """
        unsent: list[bytes] = []
        for name in names:
            waiting = self._enqueue(_UNSUBSCRIBE, self._prefix + name, may_cancel=may_cancel)
            if waiting and waiting.command is _SUBSCRIBE:
                unsent.append(name)
        return unsent

    def limit_payload(self, limit_bytes: int) -> None:
        """Change the largest payload of a publication, in bytes, for this connection and later ones."""
        self._options = replace(self._options, payload_limit_bytes=limit_bytes)
        if self._connection is not None:
            self._connection.limit_payload(limit_bytes)

    def renew(self, why: str, name: bytes = b"") -> None:
        """Close the connection so that a new one replaces it, because expected publications do not arrive.

        Args:
            why: The reason, for the log.
            name: The whole name whose publications are missing; only `ClusterSubscriber` uses it.
        """
        if self._connection is not None:
            self._connection.abort(why)

    async def run(self) -> None:
        """Connect, serve the connection until it is lost, back off, and connect again, until cancelled."""
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
            # Full jitter: many shards that lose the same server must not reconnect at the same moments.
            await asyncio.sleep(random.uniform(0, self._most_pause_s(failed)))  # noqa: S311 - spreading

    def _most_pause_s(self, failed: int) -> float:
        """Compute the longest pause in seconds after `failed` failed attempts in a row."""
        if failed <= QUICK_TRIES:
            return min(QUICK_MOST_S, self._most_s, AGAIN_S * (1 << min(failed, 10)))
        return min(self._most_s, QUICK_MOST_S * (1 << min(failed - QUICK_TRIES, 10)))

    # --- one connection's life ------------------------------------------------------------------------

    async def _session(self) -> str:
        """Connect once and serve the connection until it is lost; return the reason of the loss."""
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
            self._heard.clear()
            self._unsent.clear()
            self._unsent_bytes = self._unanswered = 0
            connection.abort("stopped")
            self._listener.on_down()
        return connection.why

    async def _watch(self, connection: Connection) -> None:
        """Watch the connection until it is lost: send a PING after silence, close it when a reply is late."""
        options, loop = self._options, asyncio.get_running_loop()
        pinged_s, is_suspected = 0.0, False
        while not connection.closed.done():
            now_s, heard_s = loop.time(), connection.heard_s
            is_pinged = pinged_s > heard_s
            fault = ""
            if is_pinged and now_s - pinged_s >= options.reply_timeout_s:
                fault = "no reply to PING"
            elif self._unanswered and now_s - self._progress_s >= options.reply_timeout_s:
                fault = "no reply to SUBSCRIBE"
            if fault and is_suspected:
                connection.abort(fault)
            elif not fault and not is_pinged and now_s - heard_s >= options.ping_interval_s:
                connection.write(pack("PING"))
                pinged_s, is_pinged = now_s, True
            is_suspected = bool(fault)
            due_s = pinged_s + options.reply_timeout_s if is_pinged else heard_s + options.ping_interval_s
            if self._unanswered:
                due_s = min(due_s, self._progress_s + options.reply_timeout_s)
            # Commands and replies in the meantime change the due time, so wake at least once in an interval.
            wait_s = SECOND_LOOK_S if fault else min(max(due_s - now_s, 0) + 0.001, options.ping_interval_s)
            await asyncio.wait((connection.closed,), timeout=wait_s)

    # --- Connection's owner ---------------------------------------------------------------------------

    def hand_up(self, replies: list[Reply]) -> int:
        """Pass replies to the listener; an exception of the listener loses one reply, not the connection."""
        listener, place = self._listener, -1
        for place, (kind, name, payload) in enumerate(replies):
            try:
                if kind == push.SUBSCRIBED:
                    if not listener.on_subscribed(name):
                        return place
                    self._on_answer()
                elif kind == push.CONTROL:
                    if payload is None:
                        self._heard.add(name)
                        self._on_answer()
                    listener.on_control(name, payload)
                elif kind == push.UNSUBSCRIBED and self._is_sharded and not self._is_leaving(name):
                    self._heard.discard(name)
                    if self._prefix + name in self._unsent:
                        self._drop_unsubscribe(self._prefix + name, self._pending_names())
                    listener.on_lost(name, was_asked=False)
                elif kind == push.UNSUBSCRIBED:
                    self._on_answer()
                elif kind == push.ERROR and not (self._is_redirected(name) or self._is_forbidden(name)):
                    # After an unknown error it is unclear which subscriptions exist: start over.
                    self._has_refused = True
                    self.renew("the bus refuses: " + safe_text(name))
                    break
            except Exception as error:
                _report(error)
        return place + 1

    def _is_leaving(self, name: bytes) -> bool:
        """Whether a sunsubscribe is the reply to our oldest command; else the server has moved the slot."""
        if not self._pending or self._pending[0].command is not _UNSUBSCRIBE:
            return False
        return self._pending[0].names[0].removeprefix(self._prefix) == name

    def _is_redirected(self, text: bytes) -> bool:
        """Handle the error that a slot is on another server or unserved; False: it is another error."""
        if not text.startswith(_ELSEWHERE) or not self._pending:
            return False
        asked = self._pending.popleft()
        self._unanswered -= len(asked.names)
        self._progress_s = asyncio.get_running_loop().time()  # an error is a reply, too
        self._schedule_write()
        if text.startswith(b"MOVED "):
            self._on_moved(text)
        if asked.command is _SUBSCRIBE:
            later = self._pending_names()
            for name in asked.names:
                self._drop_unsubscribe(name, later)
                self._listener.on_lost(name.removeprefix(self._prefix), was_asked=True)
        return True

    def _is_forbidden(self, text: bytes) -> bool:
        """Handle the error to a SUBSCRIBE that the server's ACL forbids; False: it is another error.

        The error does not contain the forbidden name. So each name of a command with several names is sent
        again in a command of its own. A name with a later command, sent or queued, is not sent again: it is
        refused.
        """
        if not text.startswith(_FORBIDDEN) or not self._pending or self._pending[0].command is not _SUBSCRIBE:
            return False
        names = self._pending.popleft().names
        later = self._pending_names()
        is_single = len(names) == 1
        for name in names:
            if not is_single and name not in later and name not in self._unsent:
                self._send(_SUBSCRIBE, [name])
                continue
            self._unanswered -= 1
            self._drop_unsubscribe(name, later)
            is_channel = name.startswith(self._prefix)
            if not is_channel or not self._listener.on_refused(name.removeprefix(self._prefix)):
                return False
        self._progress_s = asyncio.get_running_loop().time()
        self._schedule_write()
        return True

    def _pending_names(self) -> set[bytes]:
        """Return the whole names of all commands that are sent and not answered. O(unanswered names)."""
        return {name for asked in self._pending for name in asked.names}

    def _drop_unsubscribe(self, name: bytes, later: Container[bytes]) -> None:
        """Drop the queued UNSUBSCRIBE of a whole name that the server does not have.

        A later SUBSCRIBE would cancel it, and then neither would be sent.

        Args:
            name: The name with its prefix.
            later: The names of pending commands. Their queued UNSUBSCRIBE is kept, because the server may get
                the name from a pending SUBSCRIBE.
        """
        waiting = self._unsent.get(name)
        if waiting is not None and waiting.command is _UNSUBSCRIBE and name not in later:
            self._drop_unsent(name)

    def _drop_unsent(self, name: bytes) -> None:
        """Drop the queued command of a whole name."""
        del self._unsent[name]
        self._unsent_bytes -= len(name)

    def _on_answer(self) -> None:
        """Count one name of the oldest command as answered, and schedule queued commands."""
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
            self.renew("the bus confirmed an unrequested command")

    def on_pass(self) -> None:
        """Notify the listener of the end of a pass, and note progress for the reply timeout."""
        if self._connection is not None:
            if self._unanswered and self._connection.publications != self._publications:
                # The server first sends the publications that it had queued; the confirmation comes behind
                # them.
                self._progress_s = asyncio.get_running_loop().time()
            self._publications = self._connection.publications
            try:
                self._listener.on_pass()
            except Exception as error:
                _report(error)

    def on_writable(self) -> None:
        """Do nothing: commands are few, and are written without regard to the socket's buffer."""

    # --- out ------------------------------------------------------------------------------------------

    def _enqueue(self, command: bytes, name: bytes, *, may_cancel: bool = True) -> _Queued | None:
        """Queue a command for one whole name, or cancel or replace the one that is queued for it.

        Args:
            command: `_SUBSCRIBE` or `_UNSUBSCRIBE`.
            name: The name with its prefix.
            may_cancel: False: if the opposite command is queued, replace it, and let a later one replace this
                one. The same holds if the queued one was given False.

        Returns:
            The command that was queued before; None: none was.
        """
        if self._connection is None:
            return None
        waiting = self._unsent.get(name)
        if waiting is None:
            self._unsent[name] = _Queued(command, may_cancel)
            self._unsent_bytes += len(name)
            self._schedule_write()
        elif not (may_cancel and waiting.may_cancel):
            self._unsent[name] = _Queued(command, may_cancel=False)
        elif waiting.command is not command:
            self._drop_unsent(name)
        return waiting

    def _schedule_write(self) -> None:
        """Schedule a write, if names are queued and the limit of unanswered names allows it."""
        if self._unsent and not self._is_write_scheduled and self._unanswered < UNANSWERED_LIMIT:
            self._is_write_scheduled = True
            asyncio.get_running_loop().call_soon(self._write)

    def _take_unsent(self, most: int) -> Iterator[tuple[bytes, list[bytes]]]:
        """Remove the names queued longest, and yield them in runs that have the same command."""
        taken = [(self._unsent.pop(name), name) for name in list(islice(self._unsent, most))]
        self._unsent_bytes -= sum(len(name) for _, name in taken)
        for command, run in groupby(taken, key=lambda pair: pair[0].command):
            yield command, [name for _, name in run]

    def _write(self) -> None:
        """Send queued commands, up to `UNANSWERED_LIMIT` unanswered names."""
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
        """Send one command with several names; the caller has counted these names as unanswered."""
        if self._connection is not None:
            self._pending.append(_PendingSubscribe(command, deque(names)))
            self._connection.write(pack(b"S" + command if self._is_sharded else command, *names))


def _in_parts(names: list[bytes]) -> Iterable[list[bytes]]:
    """Split names into parts of at most `NAMES_PER_COMMAND`."""
    return (names[start : start + NAMES_PER_COMMAND] for start in range(0, len(names), NAMES_PER_COMMAND))


def _by_slot(names: list[bytes]) -> Iterable[list[bytes]]:
    """Group names by slot, in order: a command with names of several slots fails with CROSSSLOT."""
    slots: dict[int, list[bytes]] = {}
    for name in names:
        slots.setdefault(slot_of(name), []).append(name)
    return (some for each in slots.values() for some in _in_parts(each))


def _report(error: Exception) -> None:
    """Report an exception of the listener to the event loop's handler."""
    context = {"message": "a reply of the bus could not be handled", "exception": error}
    asyncio.get_running_loop().call_exception_handler(context)
