"""The network of the phone: a TCP relay that can be switched off and on."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self

__all__ = ["Tunnel"]

_CHUNK_BYTES = 65_536


class Tunnel:
    """Relays TCP connections to a local port while it is switched on."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_there = True

    @property
    def port(self) -> int:
        """The port on which the relay listens."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def lose(self) -> None:
        """Switch the network off: abort all open connections and every new one."""
        self._is_there = False
        for writer in self._writers:
            writer.transport.abort()

    def find(self) -> None:
        """Switch the network on again."""
        self._is_there = True

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_there:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        both = {writer, far_writer}
        self._writers |= both
        try:
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        finally:
            self._writers -= both

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.lose()
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes until the reader ends, then close the writer."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    writer.close()
