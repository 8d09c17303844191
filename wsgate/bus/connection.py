"""One socket to the bus: connected and greeted, replies up in passes, commands down as bytes.

Owns the socket, the reader behind it and the budget of a pass. What replies mean is its owner's
business. Nothing that comes is trusted: a peer that does not talk like Redis, or says more than it was
asked while it is greeted, is cut off, and what it can make us hold is one unfinished reply (within the
reader's limits), `UNREAD_LIMIT_BYTES` of complete ones, and the backlog of its owner, which has a limit.

Everything that was received is sorted in the next pass: publications go to the backlog, all other replies to
the owner. So the socket is read at all times, and a control command or a confirmation never waits for the
publications before it. What stands behind a confirmation does wait for it: while the owner has not dealt with
every reply, the backlog is held.
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

__all__ = ["Connection", "Owner", "Reply", "open_connection", "pack"]

PASS_REPLIES: Final = 256
PASS_S: Final = 0.002
STEP_REPLIES: Final = 16
"""Replies between two looks at the clock: as many as cost 1 to 2 ms when each holds 64 KiB."""
REPLIES_LIMIT: Final = 1024
"""Replies sorted and not handed up, above which the socket is not read: they are answers to commands."""
UNREAD_LIMIT_BYTES: Final = 1024 * 1024
"""Received in one turn of the loop, above which the socket is read on in the next one. Sorting that much is
about 1 ms, and at a turn of 4 ms it is 250 MB a second: more than a Redis sends."""

Reply = tuple[int, bytes, bytes | None]
"""`(kind, name or text, payload)` as `wsgate.bus.push` makes them."""


class Owner(Protocol):
    """Who is told, on the loop."""

    def hand_up(self, replies: list[Reply]) -> int:
        """Replies in order; how many were dealt with. The others come again first in the next pass."""

    def on_pass(self) -> None:
        """The replies of one pass were handed up."""

    def on_writable(self) -> None:
        """The socket takes bytes again after `is_writable` was false."""


class Connection(asyncio.Protocol):
    """See the module; made by `open_connection`.

    Attributes:
        closed: Done when it is lost and everything received before was handed up.
        heard_s: The loop's time when the peer last said something.
        is_writable: Whether the socket keeps up with what is written.
        why: Why it was lost, for logs.
    """

    def __init__(self, reader: push.PushReader) -> None:
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._owner: Owner | None = None
        self._answers: deque[Reply] = deque()
        self._answered: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._replies: deque[Reply] = deque()  # sorted, and not dealt with by the owner
        self._has_unsorted = False
        self._backlog: Backlog | None = None
        self._is_holding = False  # the backlog, until the replies are dealt with
        self._unread_bytes = 0
        self._is_scheduled = False
        self._is_paused = False
        self._is_broken = False
        self.closed: Final[asyncio.Future[None]] = self._loop.create_future()
        self.heard_s = self._loop.time()
        self.is_writable = True
        self.why = ""

    @property
    def held_bytes(self) -> int:
        """What waits here to be handed up, and room kept for it."""
        return self._reader.buffered

    @property
    def is_open(self) -> bool:
        """Whether what is written may still arrive."""
        return self._transport is not None and not self._is_broken

    @property
    def publications(self) -> int:
        """Publications received so far."""
        return self._reader.publications

    def start(self, owner: Owner, backlog: Backlog | None = None) -> None:
        """Hand everything that comes from now on to its owner; once, after the greeting.

        Args:
            owner: Who deals with replies.
            backlog: Where publications go; None: to the owner, among the replies.
        """
        self._owner = owner
        self._backlog = backlog
        if self._answers:
            self.abort("the bus says what it was not asked")

    def limit_payload(self, limit_bytes: int) -> None:
        """Another largest payload, for what is read from now on."""
        self._reader.limit_payload(limit_bytes)

    def write(self, data: bytes) -> None:
        """Send; nothing when the connection is lost."""
        if self._transport is not None:
            self._transport.write(data)

    def abort(self, why: str) -> None:
        """Close now; what came and was not handed up is dropped."""
        self.why = self.why or why
        self._is_broken = True
        self._hold(is_needed=False)
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket."""
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Keep what came for the next pass: a pass is one turn of the loop, however fast it comes."""
        self.heard_s = self._loop.time()
        self._reader.feed(data)
        self._unread_bytes += len(data)
        self._schedule()
        if self._unread_bytes > UNREAD_LIMIT_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """The socket does not keep up."""
        self.is_writable = False

    def resume_writing(self) -> None:
        """It does again."""
        self.is_writable = True
        if self._owner is not None:
            self._owner.on_writable()

    def connection_lost(self, error: Exception | None) -> None:
        """Hand up what came before, then be closed."""
        self._transport = None
        self.why = self.why or (str(error) if error else "the bus closed the connection")
        self._schedule()

    # --- passes ---------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._pass)

    def _pass(self) -> None:
        self._is_scheduled = False
        has_more = False
        if not self._is_broken:
            try:
                has_more = self._hand_up()
            except push.PushError as error:
                self.abort(str(error))
            except Exception as error:
                # A fault of ours. Answers belong to commands by their order, which is lost now.
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
        """One pass; True when there is more."""
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
        """Tell publications from other replies, in everything that was received."""
        room = REPLIES_LIMIT - len(self._replies)
        if room > 0:
            found = self._reader.take(room, self._backlog)
            self._replies.extend(found)
            self._has_unsorted = len(found) == room

    def _hold(self, *, is_needed: bool) -> None:
        """Keep what stands in the backlog behind replies that are not dealt with, or let go of it."""
        if self._backlog is not None and is_needed != self._is_holding:
            self._is_holding = is_needed
            self._backlog.hold() if is_needed else self._backlog.release()

    def _deal(self, replies: list[Reply]) -> int:
        if self._owner is not None:
            return self._owner.hand_up(replies)
        self._answers.extend(replies)
        if self._answers and self._answered is not None and not self._answered.done():
            self._answered.set_result(None)
        return len(replies)

    # --- greeting -------------------------------------------------------------------------------------

    async def ask(self, *command: str) -> None:
        """Say something while nobody owns the replies, and await the answer.

        Raises:
            BackendError: It is an error, or the connection was lost before it came.
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
            raise BackendError("the bus says what it was not asked", temporary=True)


async def open_connection(
    address: BusAddress, prefix: bytes, payload_limit_bytes: int, timeout_s: float
) -> Connection:
    """A connection that is authenticated and answers; its name is resolved anew each time.

    Args:
        address: Where to: a server, or sentinels that name one.
        prefix: What the names of channels start with, see `PushReader`.
        payload_limit_bytes: Of the largest publication, see `PushReader`.
        timeout_s: For all of it.

    Raises:
        BackendError: It cannot be had now; the text is for logs and holds no password.
    """
    connection: Connection | None = None
    try:
        async with asyncio.timeout(timeout_s):
            if address.kind:
                address = await find_primary(address, timeout_s / 4)
            connection = await _connect(
                address, lambda: Connection(push.PushReader(prefix, payload_limit_bytes))
            )
            # A server that is full, loads its data or wants another password says so here.
            if address.username or address.password:
                user = [address.username] if address.username else []
                await connection.ask("AUTH", *user, address.password)
            await connection.ask("PING")
            return connection
    except BaseException as error:
        if connection is not None:
            connection.abort("not greeted")
        if isinstance(error, TimeoutError):
            raise BackendError(f"no answer within {timeout_s:g} s", temporary=True) from None
        # A name that cannot even be asked for is a ValueError.
        if isinstance(error, OSError | ValueError):
            raise BackendError(str(error), temporary=True) from None
        raise


async def _connect(address: BusAddress, make: Callable[[], Connection]) -> Connection:
    loop = asyncio.get_running_loop()
    if address.path:
        _, connection = await loop.create_unix_connection(make, address.path)
    else:
        _, connection = await loop.create_connection(
            make, address.host, address.port, ssl=tls_context(address)
        )
    return connection


def pack(*command: str | bytes) -> bytes:
    """A command as Redis reads it: every part literally, whatever bytes it has (S26)."""
    packed: bytes = pack_command(command)  # type: ignore[arg-type] # typed as a tuple of one; takes any
    return packed


_QUOTE: Final = re.compile(r"['\"`]|, with args")


def safe_text(text: bytes) -> str:
    """A server's complaint for a log: up to the first quote, behind which it repeats what it was told.

    A server without AUTH answers `unknown command 'AUTH', with args beginning with: '<password>'`.
    """
    return _QUOTE.split(text.decode("latin-1"), maxsplit=1)[0].strip()[:80]
