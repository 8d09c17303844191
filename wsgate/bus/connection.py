"""A connection to one server of the bus: connect and authenticate, parse replies in passes, send commands.

This module owns the socket, the parser of its bytes and the budget of a pass. The owner of the connection (a
subscriber, a publisher or an appender) interprets the replies. Received bytes are not trusted: the connection
is aborted when the bytes are not valid RESP2, and when an unrequested reply arrives during the greeting. A
server can use only bounded memory: one unfinished reply (within the parser's limits), about
`UNREAD_LIMIT_BYTES` of complete replies, at most `REPLIES_LIMIT` parsed replies, and the backlog, which has
its own limit.

Each pass parses everything that was received: publications are appended to the backlog, all other replies are
given to the owner. So the socket is read at all times, and a control command or a confirmation never waits
for the publications before it. Publications behind a confirmation do wait for it: the connection holds the
backlog until the owner has handled every reply.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, Protocol, cast

from hiredis import pack_command

from wsgate.bus import push
from wsgate.bus.backlog import Backlog
from wsgate.bus.tls import tls_context
from wsgate.bus.topology import find_primary
from wsgate.bus_address import BusAddress
from wsgate.errors import BackendError

__all__ = ["Connection", "Owner", "Reply", "is_passing", "open_connection", "pack"]

SERVER_REFUSALS: Final = frozenset(
    b"ASK BUSY CLUSTERDOWN LOADING MASTERDOWN MISCONF MOVED NOAUTH NOREPLICAS OOM READONLY TRYAGAIN".split()
)
"""Error codes that do not concern the key of a command: this server, or another one, accepts it later."""
PASS_REPLIES: Final = 256
PASS_S: Final = 0.002
STEP_REPLIES: Final = 16
"""Replies between two checks of the clock: as many as cost 1 to 2 ms when each has 64 KiB."""
REPLIES_LIMIT: Final = 1024
"""The most parsed replies that the owner has not handled; at this limit parsing stops."""
UNREAD_LIMIT_BYTES: Final = 1024 * 1024
"""Bytes received in one turn of the loop, above which reading pauses until the next turn. Parsing that much
takes about 1 ms, and with turns of 4 ms it is 250 MB a second: more than a Redis sends."""

Reply = tuple[int, bytes, bytes | None]
"""One reply, `(kind, name or text, payload)`, as `wsgate.bus.push` returns it."""


class Owner(Protocol):
    """The calls from a bus connection to the object that uses it. All come on the event loop."""

    def hand_up(self, replies: list[Reply]) -> int:
        """Handle replies of the bus in their order.

        Returns:
            How many of the replies were handled. The next pass starts with the others.
        """

    def on_pass(self) -> None:
        """Act at the end of a pass, after the calls of `hand_up`."""

    def on_writable(self) -> None:
        """Continue writing: the socket accepts bytes again after `is_writable` was false."""


class Connection(asyncio.Protocol):
    """A connection to one server of the bus, connected and greeted by `open_connection`.

    Attributes:
        closed: Done when the socket is lost and no received reply is left to give to the owner.
        heard_s: The loop's time when bytes last arrived, in seconds.
        is_writable: False while the send buffer of the socket is above its high-water mark.
        why: The reason why the connection was lost, for logs; empty while it is open.
    """

    def __init__(self, reader: push.PushReader) -> None:
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._owner: Owner | None = None
        self._answers: deque[Reply] = deque()
        self._answered: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._replies: deque[Reply] = deque()  # parsed, and not handled by the owner
        self._has_unsorted = False  # the parser may still have complete replies
        self._backlog: Backlog | None = None
        self._is_holding = False  # whether this connection holds the backlog
        self._unread_bytes = 0  # received since the last pass that parsed everything
        self._is_scheduled = False
        self._is_paused = False
        self._is_broken = False
        self.closed: Final[asyncio.Future[None]] = self._loop.create_future()
        self.heard_s = self._loop.time()
        self.is_writable = True
        self.why = ""

    @property
    def held_bytes(self) -> int:
        """The size of the parser's buffer, and of the parsed replies that the owner has not handled."""
        return self._reader.buffered + sum(
            len(name) + len(payload or b"") for _, name, payload in self._replies
        )

    @property
    def is_open(self) -> bool:
        """Whether the socket is connected and was not aborted, so that written bytes may still arrive."""
        return self._transport is not None and not self._is_broken

    @property
    def publications(self) -> int:
        """The number of publications parsed on this connection until now."""
        return self._reader.publications

    def start(self, owner: Owner, backlog: Backlog | None = None) -> None:
        """Set the owner that receives all further replies; call it once, after the greeting.

        Args:
            owner: Handles the replies.
            backlog: Receives the publications; None: the owner receives them among the replies.
        """
        self._owner = owner
        self._backlog = backlog
        if self._answers:
            self.abort("the bus sent an unrequested reply")

    def limit_payload(self, limit_bytes: int) -> None:
        """Change the largest payload, in bytes, for publications that are parsed from now on."""
        self._reader.limit_payload(limit_bytes)

    def write(self, data: bytes) -> None:
        """Send packed commands to the server; do nothing when the connection is lost."""
        if self._transport is not None:
            self._transport.write(data)

    def abort(self, why: str) -> None:
        """Close the socket now, without a further call of `hand_up`, and keep the first reason in `why`."""
        self.why = self.why or why
        self._is_broken = True
        self._hold(is_needed=False)
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport of the new socket."""
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Buffer received bytes and schedule the pass that parses them, at most one in a turn of the loop."""
        self.heard_s = self._loop.time()
        self._reader.feed(data)
        self._unread_bytes += len(data)
        self._schedule()
        if self._unread_bytes > UNREAD_LIMIT_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """Note that the send buffer of the socket is full."""
        self.is_writable = False

    def resume_writing(self) -> None:
        """Note that the send buffer of the socket has room again, and notify the owner."""
        self.is_writable = True
        if self._owner is not None:
            self._owner.on_writable()

    def connection_lost(self, error: Exception | None) -> None:
        """Keep the reason of the loss, and schedule the last pass, which sets `closed`."""
        self._transport = None
        self.why = self.why or (str(error) if error else "the bus closed the connection")
        self._schedule()

    # --- passes ---------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Schedule a pass for the next turn of the loop, unless one is scheduled."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._pass)

    def _pass(self) -> None:
        """Run one pass; then read on, schedule the next pass, or set `closed` when the socket is lost."""
        self._is_scheduled = False
        has_more = False
        if not self._is_broken:
            try:
                has_more = self._hand_up()
            except push.PushError as error:
                self.abort(str(error))
            except Exception as error:
                # A fault of this program. Replies belong to commands by their order, which is lost now.
                self.abort("a reply could not be handled")
                context = {"message": "a reply of the bus could not be handled", "exception": error}
                self._loop.call_exception_handler(context)
        if has_more and not self._is_broken:
            self._schedule()
            if self._has_unsorted:
                return
        self._unread_bytes = 0
        if self._transport is not None:
            if self._is_paused:
                self._is_paused = False
                self._transport.resume_reading()
        elif not self._is_scheduled and not self.closed.done():
            self.closed.set_result(None)

    def _hand_up(self) -> bool:
        """Parse received bytes, and give replies to the owner within the budget; True when more are left."""
        end_s = time.monotonic() + PASS_S
        left = PASS_REPLIES
        self._sort()
        while self._replies and left > 0 and not self._is_broken:
            step = list(islice(self._replies, STEP_REPLIES))
            dealt_with = self._deal(step)
            left -= dealt_with
            for _ in range(dealt_with):
                self._replies.popleft()
            if dealt_with < len(step) or time.monotonic() >= end_s:
                break
        has_more = bool(self._replies) or self._has_unsorted
        self._hold(is_needed=has_more and not self._is_broken)
        if self._owner is not None:
            self._owner.on_pass()
        return has_more

    def _sort(self) -> None:
        """Parse received bytes into the backlog (publications) and `_replies` (up to its limit)."""
        room = REPLIES_LIMIT - len(self._replies)
        if room > 0:
            found = self._reader.take(room, self._backlog)
            self._replies.extend(found)
            self._has_unsorted = len(found) == room

    def _hold(self, *, is_needed: bool) -> None:
        """Hold the backlog while replies are not handled (`is_needed`), or release it."""
        if self._backlog is not None and is_needed != self._is_holding:
            self._is_holding = is_needed
            self._backlog.hold() if is_needed else self._backlog.release()

    def _deal(self, replies: list[Reply]) -> int:
        """Give replies to the owner or, during the greeting, to `ask`; return how many were handled."""
        if self._owner is not None:
            return self._owner.hand_up(replies)
        self._answers.extend(replies)
        if self._answers and self._answered is not None and not self._answered.done():
            self._answered.set_result(None)
        return len(replies)

    # --- greeting -------------------------------------------------------------------------------------

    async def ask(self, *command: str) -> None:
        """Send one command of the greeting and wait for its reply; only before `start`.

        Raises:
            BackendError: The reply is an error or no plain reply, or the connection was lost before.
        """
        self.write(pack(*command))
        if not self._answers:
            self._answered = self._loop.create_future()
            await asyncio.wait((self._answered, self.closed), return_when=asyncio.FIRST_COMPLETED)
        if not self._answers:
            raise BackendError(self.why, temporary=True)
        kind, text, _ = self._answers.popleft()
        if kind == push.ERROR:
            raise BackendError("the bus refuses: " + safe_text(text), temporary=True)
        if kind != push.REPLY:
            raise BackendError("the bus sent an unrequested reply", temporary=True)


async def open_connection(
    address: BusAddress, prefix: bytes, payload_limit_bytes: int, timeout_s: float
) -> Connection:
    """Connect to a server of the bus, authenticate, and wait for the reply to a PING.

    The host name is resolved on every call, and for an address with sentinels the primary is looked up.

    Args:
        address: The address of a server, or of sentinels that know one.
        prefix: The bytes before every channel name, see `PushReader`.
        payload_limit_bytes: The largest payload of a publication, see `PushReader`.
        timeout_s: Time for all steps together, in seconds.

    Returns:
        The connection, without an owner; call `start` next.

    Raises:
        BackendError: No connection is possible now. The text is for logs and contains no password.
    """
    connection: Connection | None = None
    try:
        async with asyncio.timeout(timeout_s):
            if address.kind:
                address = await find_primary(address, timeout_s / 4)
            connection = await _connect(
                address, lambda: Connection(push.PushReader(prefix, payload_limit_bytes))
            )
            # A server at its limit of clients, one that loads its data, or one with another password sends an
            # error as the reply to AUTH or PING.
            if address.username or address.password:
                user = [address.username] if address.username else []
                await connection.ask("AUTH", *user, address.password)
            await connection.ask("PING")
            return connection
    except BaseException as error:
        if connection is not None:
            connection.abort("the greeting failed")
        if isinstance(error, TimeoutError):
            raise BackendError(f"no reply within {timeout_s:g} s", temporary=True) from None
        # A host name that is no valid DNS name is a ValueError.
        if isinstance(error, OSError | ValueError):
            raise BackendError(str(error), temporary=True) from None
        raise


async def _connect(address: BusAddress, make: Callable[[], Connection]) -> Connection:
    """Open the Unix or TCP socket of an address, with TLS if the address has it."""
    loop = asyncio.get_running_loop()
    if address.path:
        _, connection = await loop.create_unix_connection(make, address.path)
    else:
        _, connection = await loop.create_connection(
            make, address.host, address.port, ssl=tls_context(address)
        )
    return connection


def pack(*command: str | bytes) -> bytes:
    """Encode a command as RESP2; each part carries its length, so that it may have any bytes (S26)."""
    packed: bytes = pack_command(command)  # type: ignore[arg-type] # typed as a tuple of one; takes any
    return packed


_QUOTE: Final = re.compile(r"['\"`]|, with args")


def is_passing(text: bytes) -> bool:
    """Return whether an error reply is about the state of the server, and not about the command."""
    return text.partition(b" ")[0] in SERVER_REFUSALS


def safe_text(text: bytes) -> str:
    """Shorten a server's error for a log: cut it at the first quote, and at 80 characters.

    Behind a quote an error repeats parts of the command, which may be secret. For example, a server without
    AUTH replies `unknown command 'AUTH', with args beginning with: '<password>'`.
    """
    return _QUOTE.split(text.decode("latin-1"), maxsplit=1)[0].strip()[:80]
