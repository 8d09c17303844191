"""Ask one server a question whose answer may have any shape, and read the answer within bounds.

For finding servers (sentinels, a cluster's slots), where the answer is a tree. A reader that believes a
count allocates for it, and a tree that is deep enough ends an interpreter; here a number is believed only
within its limit, and nothing is allocated before it has arrived (S26).

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
"""A string, a number, a null or an array of answers."""

LINE_LIMIT_BYTES: Final = 1_024
STRING_LIMIT_BYTES: Final = 64 * 1024
ANSWER_LIMIT_BYTES: Final = 8 * 1024 * 1024
"""CLUSTER SLOTS has about 200 bytes for a range with one replica, and 16,384 ranges at most."""
ELEMENTS_MOST: Final = 256 * 1024
DEPTH_MOST: Final = 6
DIGITS_MOST: Final = 19
"""The most digits of a 64-bit number."""
BUFFER_BYTES: Final = 16 * 1024
"""Bytes that are read before they are parsed; this also bounds how long one parse takes."""


class _Malformed(Exception):
    """The server sent no RESP2, or more than an answer may have."""


class Questioner:
    """One connection for a question or two; made by `asking`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._left_bytes = 0
        self._left_elements = 0

    async def ask(self, *command: str) -> Answer:
        """Send a command and read its answer.

        Raises:
            BackendError: The answer is an error or malformed, or the connection was lost.
        """
        packed: bytes = pack_command(command)  # type: ignore[arg-type] # typed as a tuple of one
        self._left_bytes, self._left_elements = ANSWER_LIMIT_BYTES, ELEMENTS_MOST
        try:
            self._writer.write(packed)
            await self._writer.drain()
            return await self._read(0)
        except (_Malformed, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as error:
            raise BackendError(f"no answer to {command[0]}: {type(error).__name__}", temporary=True) from None

    async def _read(self, depth: int) -> Answer:
        line = await self._line()
        kind, text = line[:1], line[1:]
        if kind == b"+":
            return text
        if kind == b"-":
            # Show only the code: the rest may repeat arguments of the command, such as a password.
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
        line = await self._reader.readuntil(b"\r\n")
        if len(line) > LINE_LIMIT_BYTES:
            raise _Malformed
        self._spend(len(line))
        return line[:-2]

    async def _string(self, size: int) -> bytes | None:
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
        if count == -1:
            return None
        if count < 0 or count > self._left_elements or depth >= DEPTH_MOST:
            raise _Malformed
        self._left_elements -= count
        # One by one: nothing is allocated for elements that do not come.
        return [await self._read(depth + 1) for _ in range(count)]

    def _spend(self, size: int) -> None:
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise _Malformed


def _number(text: bytes) -> int:
    digits = text[1:] if text[:1] in (b"-", b"+") else text
    if not digits.isdigit() or len(digits) > DIGITS_MOST:
        raise _Malformed
    return int(text)


@contextlib.asynccontextmanager
async def asking(
    address: BusAddress, username: str, password: str, timeout_s: float
) -> AsyncIterator[Questioner]:
    """A connection to one server that takes questions.

    Args:
        address: Where it is, of kind "".
        username: "" for the default user.
        password: "" to say none.
        timeout_s: For all of it, from the resolver to the last answer.

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
        raise BackendError(f"no answer within {timeout_s:g} s", temporary=True) from None
    except (OSError, ValueError) as error:  # a name that cannot even be asked for is a ValueError
        raise BackendError(type(error).__name__, temporary=True) from None
    finally:
        if writer is not None:
            writer.transport.abort()
