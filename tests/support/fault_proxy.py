"""Make a network bad with a TCP proxy: it delays, slows, splits, stalls, corrupts and resets, by a seed.

It runs on a loop of its own in a thread, so that a whole gateway in another process may be behind it. Bytes
to the server pass unchanged; only the answers have faults.
"""

import asyncio
import contextlib
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["FaultProxy", "Faults", "fault_proxy"]

READ_BYTES = 1 << 16


@dataclass
class Faults:
    """The faults of answers; a change applies from the next piece on."""

    delay_s: float = 0.0  # delay before each piece that was read
    jitter_s: float = 0.0  # random extra delay of up to this much
    rate_bytes_per_s: int = 0  # 0: no limit
    slice_bytes: int = 0  # largest piece of one write; 0: unchanged
    is_stalled: bool = False  # while true, nothing passes
    reset_chance: float = 0.0  # for each piece
    corrupt_chance: float = 0.0  # for each piece: one bit changes


class FaultProxy:
    """One proxy in front of one server."""

    def __init__(self, host: str, port: int, seed: int) -> None:
        self.faults = Faults()
        self.port = 0
        self.accepted = 0
        self._target = host, port
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._answering: set[asyncio.StreamWriter] = set()  # the writers to clients
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start a thread of its own, and return when the proxy listens."""
        self._thread.start()
        assert self._is_up.wait(10)

    def reset_all(self) -> None:
        """Reset the present connections."""
        self._loop.call_soon_threadsafe(self._reset)

    def half_close_all(self) -> None:
        """End the stream of answers of the present connections; bytes of clients still pass."""
        self._loop.call_soon_threadsafe(self._half_close)

    def stop(self) -> None:
        """Reset all connections and end."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._is_up.set()
        await self._stop.wait()
        server.close()
        self.faults = Faults()
        self._reset()
        await server.wait_closed()
        own = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not own]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _reset(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _half_close(self) -> None:
        for writer in self._answering:
            writer.write_eof()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, far_writer}
        self._writers |= both
        self._answering.add(writer)
        towards = asyncio.ensure_future(self._pass_on(reader, far_writer))
        try:
            await self._spoil(far_reader, writer)
        finally:
            towards.cancel()
            await asyncio.gather(towards, return_exceptions=True)
            self._writers -= both
            self._answering.discard(writer)
            for each in both:
                each.close()
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()  # this ends the other direction too

    async def _spoil(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the stream was half-closed
            while data := await reader.read(READ_BYTES):
                faults = self.faults
                if faults.delay_s or faults.jitter_s:
                    await asyncio.sleep(faults.delay_s + faults.jitter_s * self._random.random())
                if faults.rate_bytes_per_s:
                    await asyncio.sleep(len(data) / faults.rate_bytes_per_s)
                while self.faults.is_stalled:  # noqa: ASYNC110 - set from another thread
                    await asyncio.sleep(0.01)
                if self._random.random() < faults.reset_chance:
                    writer.transport.abort()
                    return
                if self._random.random() < faults.corrupt_chance:
                    place = self._random.randrange(len(data))
                    data = (
                        data[:place]
                        + bytes([data[place] ^ 1 << self._random.randrange(8)])
                        + data[place + 1 :]
                    )
                size = faults.slice_bytes or len(data)
                for start in range(0, len(data), size):
                    writer.write(data[start : start + size])
                    await writer.drain()
                    if faults.slice_bytes:
                        await asyncio.sleep(0)  # the next slice leaves as a segment of its own


@contextlib.contextmanager
def fault_proxy(host: str, port: int, *, seed: int = 1) -> Iterator[FaultProxy]:
    """Run a proxy in front of a server while the context is open."""
    proxy = FaultProxy(host, port, seed)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
