"""A TCP proxy that makes a network bad: it delays, slows, slices, stalls, corrupts and resets. Seeded.

Runs on a loop of its own in a thread, so that what is behind it may be a whole gateway in another
process. What goes towards the server passes as it is; the answers are what is made bad.
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
    """What happens to answers; changed while it runs, it counts from the next piece on."""

    delay_s: float = 0.0  # before each piece that was read
    jitter_s: float = 0.0  # up to so much more, differently each time
    rate_bytes_per_s: int = 0  # 0: as fast as it goes
    slice_bytes: int = 0  # the largest piece that is written at once, 0: as it came
    is_stalled: bool = False  # nothing passes
    reset_chance: float = 0.0  # of each piece
    corrupt_chance: float = 0.0  # of each piece: one bit of it


class FaultProxy:
    """One proxy."""

    def __init__(self, host: str, port: int, seed: int) -> None:
        self.faults = Faults()
        self.port = 0
        self.accepted = 0
        self._target = host, port
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._answering: set[asyncio.StreamWriter] = set()  # those towards clients
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """In a thread of its own; listens when it returns."""
        self._thread.start()
        assert self._is_up.wait(10)

    def reset_all(self) -> None:
        """Reset what is connected now."""
        self._loop.call_soon_threadsafe(self._reset)

    def half_close_all(self) -> None:
        """End the stream of answers of what is connected now; what clients say still passes."""
        self._loop.call_soon_threadsafe(self._half_close)

    def stop(self) -> None:
        """Reset everything and end."""
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
        writer.transport.abort()  # the other direction sees it too

    async def _spoil(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: half-closed meanwhile
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
    """A proxy in front of a server, gone after the block."""
    proxy = FaultProxy(host, port, seed)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
