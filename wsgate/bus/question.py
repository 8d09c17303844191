"""Send a request to one server whose reply is a tree of arrays, and parse the reply within limits.

Finding the servers of a bus needs such replies (the primaries that a sentinel knows, the slots of a cluster).
A parser that trusts a count allocates memory for all of it, and a deep tree overflows the stack of the
interpreter. This parser accepts a count or a length only within its limit, and allocates no memory for bytes
and elements that have not arrived (S26).

Source: redis.io/docs/latest/develop/reference/protocol-spec, RESP2.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from hiredis import pack_command

from wsgate.bus.tls import tls_context
from wsgate.bus_address import BusAddress
from wsgate.errors import BackendError

__all__ = ["Answer", "Questioner", "asking"]

Answer = bytes | int | None | list["Answer"]
"""The reply of a server: a string, a number, a null (None), or an array of such replies."""

LINE_LIMIT_BYTES: Final = 1_024
STRING_LIMIT_BYTES: Final = 64 * 1024
ANSWER_LIMIT_BYTES: Final = 8 * 1024 * 1024
"""The largest whole reply. CLUSTER SLOTS has about 200 bytes for a range with one replica, and at most 16,384
ranges."""
ELEMENTS_MOST: Final = 256 * 1024
DEPTH_MOST: Final = 6
DIGITS_MOST: Final = 19
"""The most digits of a count, a length or an integer: those of a 64-bit number."""
BUFFER_BYTES: Final = 16 * 1024
"""The limit of the stream's buffer: bytes read and not parsed. This also bounds how long one parse takes."""


class _Malformed(Exception):
    """The bytes of the server are not RESP2, or the reply is over a limit of this module."""


class Questioner:
    """A connection to one server for a few requests, one after the other; `asking` makes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._left_bytes = 0
        self._left_elements = 0

    async def ask(self, *command: str) -> Answer:
        """Send one command and return its parsed reply.

        Raises:
            BackendError: The reply is an error, malformed or over a limit, or the connection was lost.
        """
        packed: bytes = pack_command(command)  # type: ignore[arg-type] # typed as a tuple of one
        self._left_bytes, self._left_elements = ANSWER_LIMIT_BYTES, ELEMENTS_MOST
        try:
            self._writer.write(packed)
            await self._writer.drain()
            return await self._read(0)
        except (_Malformed, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as error:
            raise BackendError(f"no reply to {command[0]}: {type(error).__name__}", temporary=True) from None

    async def _read(self, depth: int) -> Answer:
        """Read one reply, or one element of an array at this depth."""
        line = await self._line()
        kind, text = line[:1], line[1:]
        if kind == b"+":
            return text
        if kind == b"-":
            # Keep only the error's code: the rest may repeat arguments of the command, such as a password.
            code = text.split(b" ", 1)[0][:32].decode("ascii", "replace")
            raise BackendError(f"refused: {code}", temporary=True)
        number = _number(text)
        if kind == b":":
            return number
        if kind == b"$":
            return await self._string(number)
        if kind == b"*":
            return await self._array(number, depth)
        raise _Malformed

    async def _line(self) -> bytes:
        """Read one line and charge its bytes."""
        line = await self._reader.readuntil(b"\r\n")
        if len(line) > LINE_LIMIT_BYTES:
            raise _Malformed
        self._spend(len(line))
        return line[:-2]

    async def _string(self, size: int) -> bytes | None:
        """Read the bytes of a bulk string of this size; None for -1."""
        if size == -1:
            return None
        if not 0 <= size <= STRING_LIMIT_BYTES:
            raise _Malformed
        self._spend(size + 2)
        data = await self._reader.readexactly(size + 2)
        if not data.endswith(b"\r\n"):
            raise _Malformed
        return data[:-2]

    async def _array(self, count: int, depth: int) -> Answer:
        """Read the elements of an array; None for -1."""
        if count == -1:
            return None
        if count < 0 or count > self._left_elements or depth >= DEPTH_MOST:
            raise _Malformed
        self._left_elements -= count
        # Parse one element after the other, so that elements that never arrive cost no memory.
        return [await self._read(depth + 1) for _ in range(count)]

    def _spend(self, size: int) -> None:
        """Charge bytes to the limit of the whole reply; raise `_Malformed` above it."""
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise _Malformed


def _number(text: bytes) -> int:
    """Parse a number of a reply; raise `_Malformed` for anything else."""
    digits = text[1:] if text[:1] in (b"-", b"+") else text
    if not digits.isdigit() or len(digits) > DIGITS_MOST:
        raise _Malformed
    return int(text)


@contextlib.asynccontextmanager
async def asking(
    address: BusAddress, username: str, password: str, timeout_s: float
) -> AsyncIterator[Questioner]:
    """Connect to one server, authenticate, and yield a `Questioner`; the connection is closed at the end.

    Args:
        address: The address of the server, of kind "".
        username: The user for AUTH; "" for the default user.
        password: The password for AUTH. With neither user nor password no AUTH is sent.
        timeout_s: Time for the whole block, from the resolver to the last reply, in seconds.

    Raises:
        BackendError: The server cannot be reached, refuses, or does not answer in time.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(
                address.host, address.port, ssl=tls_context(address), limit=BUFFER_BYTES
            )
            questioner = Questioner(reader, writer)
            if username or password:
                await questioner.ask("AUTH", *([username] if username else []), password)
            yield questioner
    except TimeoutError:
        raise BackendError(f"no reply within {timeout_s:g} s", temporary=True) from None
    except (OSError, ValueError) as error:  # a host name that is no valid DNS name is a ValueError
        raise BackendError(type(error).__name__, temporary=True) from None
    finally:
        if writer is not None:
            writer.transport.abort()
