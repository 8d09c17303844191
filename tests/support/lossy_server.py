"""Run a WebSocket server with faults on request, which records exactly the faults that it caused.

The path selects the behaviour of a connection (see `_serve`). Faults on stamped messages come from a seed and
do not overlap, so the expected report of a client is exact. The strict protocol of the library `websockets`
parses the input, as an independent check of the client. Output is written raw, so that it can be wrong, split
anywhere, and badly timed.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qsl, urlsplit

from websockets.exceptions import ProtocolError
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from loadtest.engine.stamps import parse_stamp, stamp

# From the name under which the engine must count a faulty frame to its bytes.
FAULTY_FRAMES = {
    "masked": b"\x82\x81\x00\x00\x00\x00a",
    "rsv": b"\xc2\x01a",
    "opcode": b"\x83\x01a",
    "control_fragmented": b"\x09\x00",
    "control_length": b"\x89\x7e\x00\x7e" + b"a" * 126,
    "length": b"\x82\x7e\x00\x05aaaaa",
    "continuation": b"\x80\x01a",
    "interleaved": b"\x01\x01a\x81\x01b",
    "close_payload": b"\x88\x01\x03",
}
BLOCK = 10  # at most one fault in this many consecutive messages


@dataclass(slots=True)
class Inflicted:
    """The counts of faults in the messages of all connections."""

    dropped: int = 0
    duplicated: int = 0
    reordered: int = 0
    lost_tail: int = 0

    def add(self, other: "Inflicted") -> None:
        """Add the counts of another object."""
        self.dropped += other.dropped
        self.duplicated += other.duplicated
        self.reordered += other.reordered
        self.lost_tail += other.lost_tail


def inflict(count: int, source: random.Random) -> tuple[list[int], Inflicted]:
    """Return the sequence numbers 0 to count-1 as a faulty server delivers them, and the faults."""
    order: list[int] = []
    done = Inflicted()
    for start in range(0, count, BLOCK):
        block = list(range(start, min(start + BLOCK, count)))
        if len(block) == BLOCK:
            at = source.randrange(1, 4)
            match source.choice(["drop", "duplicate", "late duplicate", "swap", "delay", "none"]):
                case "drop":
                    del block[at]
                    done.dropped += 1
                case "duplicate":
                    block.insert(at, block[at])
                    done.duplicated += 1
                case "late duplicate":
                    block.insert(at + source.randrange(2, 6), block[at])
                    done.duplicated += 1
                case "swap":
                    block[at], block[at + 1] = block[at + 1], block[at]
                    done.reordered += 1
                case "delay":
                    block.insert(at + source.randrange(2, 6), block.pop(at))
                    done.reordered += 1
        order += block
    return order, done


def frame(payload: bytes, opcode: int = 1, *, is_final: bool = True) -> bytes:
    """Return an unmasked frame."""
    head = bytes([opcode | (0x80 if is_final else 0)])
    if len(payload) < 126:
        return head + bytes([len(payload)]) + payload
    if len(payload) < 65_536:
        return head + b"\x7e" + len(payload).to_bytes(2, "big") + payload
    return head + b"\x7f" + len(payload).to_bytes(8, "big") + payload


def fragments(payload: bytes, source: random.Random) -> bytes:
    """Return a text message in one to four frames, empty ones too, with a ping in between."""
    cuts = sorted(source.randrange(len(payload) + 1) for _ in range(source.randrange(4)))
    ends = [*cuts, len(payload)]
    raw = b""
    start = 0
    for number, end in enumerate(ends):
        raw += frame(payload[start:end], 1 if number == 0 else 0, is_final=number == len(ends) - 1)
        if number < len(ends) - 1:
            raw += frame(b"mid", 9)
        start = end
    return raw


def pieces(raw: bytes, source: random.Random, most: int) -> Iterable[bytes]:
    """Cut bytes at random places."""
    start = 0
    while start < len(raw):
        end = start + source.randrange(1, most + 1)
        yield raw[start:end]
        start = end


@dataclass
class LossyServer:
    """A server in a thread of its own, while the context is open.

    Attributes:
        seed: The seed of all faults; connection n uses seed + n.
        port: Its port on 127.0.0.1.
        inflicted: The faults in stamped messages.
        seen: Connections, pongs, messages, client faults, closes by code ("close 1000"), ends ("reset",
            "eof").
        sources: Client addresses by connections.
        heads: Request heads.
        texts: Messages received on a path without behaviour of its own.
        written: Bytes written per connection of /flood.
        errors: Errors of the server itself; the end of the context fails if there are any.
        release: A test sets this to end the waits in /silent and /deaf.
    """

    seed: int = 0
    port: int = 0
    inflicted: Inflicted = field(default_factory=Inflicted)
    seen: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    heads: list[Request] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _stop: asyncio.Event | None = None
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start the thread and listen."""
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(ready)), name="lossy", daemon=True
        )
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the server, whatever its connections do."""
        assert self._loop is not None and self._stop is not None and self._thread is not None
        self.release.set()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self.errors, self.errors

    async def _main(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            number = self.seen["connections"]
            self.seen["connections"] += 1
            self.sources[writer.get_extra_info("peername")[0]] += 1
            peer = _Peer(self, reader, writer, random.Random(self.seed + number))
            task = asyncio.ensure_future(peer.run())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=4096)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Peer:
    """One connection of a client."""

    def __init__(
        self,
        server: LossyServer,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        source: random.Random,
    ) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer
        self.source = source
        self.protocol = ServerProtocol(max_size=None)
        self.frames: list[Frame] = []

    async def run(self) -> None:
        try:
            request = await self._head()
            if request is not None:
                parts = urlsplit(request.path)
                options = {name: int(value) for name, value in parse_qsl(parts.query)}
                await self._serve(request, parts.path, options)
        except ConnectionResetError:
            self.server.seen["reset"] += 1
        except ConnectionError:
            self.server.seen["gone"] += 1
        except Exception as error:
            self.server.errors.append(error)
        finally:
            self.writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError):
                await asyncio.wait_for(self.writer.wait_closed(), 5)

    async def _head(self) -> Request | None:
        while not (events := self.protocol.events_received()):
            data = await self.reader.read(65_536)
            if not data:
                return None
            self.protocol.receive_data(data)
        request = events[0]
        assert isinstance(request, Request)
        self.server.heads.append(request)
        return request

    async def _messages(self) -> AsyncIterator[Frame]:
        """Yield the messages of the client until the end, while the library checks and answers it."""
        while True:
            for event in self.protocol.events_received():
                assert isinstance(event, Frame)
                if event.opcode is Opcode.PONG:
                    self.server.seen["pongs"] += 1
                    self.server.seen[f"pong {bytes(event.data)!r}"] += 1
                elif event.opcode is Opcode.CLOSE:
                    self.server.seen[f"close {int.from_bytes(event.data[:2], 'big')}"] += 1
                else:
                    self.server.seen["messages"] += 1
                    yield event
            for data in self.protocol.data_to_send():
                if data:
                    self.writer.write(data)
            if isinstance(self.protocol.parser_exc, ProtocolError):
                self.server.seen["client faults"] += 1
            if self.protocol.state is State.CLOSED or self.protocol.close_expected():
                return
            data = await self.reader.read(65_536)
            if not data:
                self.server.seen["eof"] += 1
                return
            self.protocol.receive_data(data)

    async def _until_end(self) -> None:
        async for _ in self._messages():
            pass

    def _accept(self, request: Request, path: str) -> Response:
        """Answer 101, with one fault if the path selects one."""
        response = self.protocol.accept(request)
        self.protocol.send_response(response)
        self.protocol.data_to_send()
        match path:
            case "/bad/accept":
                del response.headers["Sec-WebSocket-Accept"]
                response.headers["Sec-WebSocket-Accept"] = "AAAAAAAAAAAAAAAAAAAAAAAAAAA="
            case "/bad/no-accept":
                del response.headers["Sec-WebSocket-Accept"]
            case "/bad/upgrade":
                del response.headers["Upgrade"]
            case "/bad/extension":
                response.headers["Sec-WebSocket-Extensions"] = "permessage-deflate"
            case "/bad/subprotocol":
                response.headers["Sec-WebSocket-Protocol"] = "never-asked"
            case "/subprotocol":
                response.headers["Sec-WebSocket-Protocol"] = "wsgate.v1"
        return response

    async def _serve(self, request: Request, path: str, options: dict[str, int]) -> None:
        if path.startswith("/status/"):
            status = path.removeprefix("/status/")
            self.writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 2\r\n\r\nno".encode())
            return
        if path in ("/garbage", "/silent", "/hang-up", "/reset-early"):
            await self._misbehave(path)
            return
        head = self._accept(request, path).serialize()
        if path == "/split-head":
            for byte in head:
                self.writer.write(bytes([byte]))
                await asyncio.sleep(0.0005)
        elif path != "/glued":
            self.writer.write(head)
        match path.split("/")[1]:
            case "echo":
                await self._echo(options)
            case "misroute":
                await self._misroute()
            case "publish":
                await self._publish(options)
            case "glued":
                self.writer.write(head + b"".join(frame(stamp(1, n, time.monotonic_ns())) for n in range(3)))
                await self._until_end()
            case "flood":
                await self._flood(options)
            case "ping":
                await self._ping(options)
            case "fault":
                self.writer.write(FAULTY_FRAMES[path.split("/")[2]])
                await self._until_end()
            case "close":
                await self._close(int(path.split("/")[2]))
            case "eof":
                pass
            case "abort":
                await asyncio.sleep(0.05)
                self.writer.transport.abort()
            case "deaf":
                await asyncio.to_thread(self.server.release.wait, 10)
                await self._until_end()
            case _:
                async for event in self._messages():
                    self.server.texts.append(bytes(event.data).decode())

    async def _misbehave(self, path: str) -> None:
        if path == "/garbage":
            self.writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        elif path == "/silent":
            await asyncio.to_thread(self.server.release.wait, 10)
        elif path == "/reset-early":
            self.writer.transport.abort()

    async def _echo(self, options: dict[str, int]) -> None:
        """Echo; `faults=1` does to the answers what `inflict` does, and drops the last `tail` of `count`.

        `pause_at` stops the whole server once for `pause_ms`.
        """
        count = options.get("count", 0)
        tail = options.get("tail", 0)
        order, done = inflict(count - tail, self.source) if options.get("faults") else ([], Inflicted())
        done.lost_tail = tail
        held: dict[int, bytes] = {}
        place = 0
        async for event in self._messages():
            if self.server.seen["messages"] == options.get("pause_at"):
                time.sleep(options["pause_ms"] / 1000)  # noqa: ASYNC251 - the pause is the point
            if not options.get("faults"):
                self.writer.write(frame(bytes(event.data), event.opcode))
                continue
            mark = parse_stamp(bytes(event.data))
            assert mark is not None
            held[mark[1]] = bytes(event.data)
            while place < len(order) and order[place] in held:
                self.writer.write(frame(held[order[place]], 2))
                place += 1
        if options.get("faults"):
            self.server.inflicted.add(done)

    async def _misroute(self) -> None:
        """Answer every message with the stream of another connection."""
        async for event in self._messages():
            payload = bytes(event.data)
            other = int(payload[8:16], 16) ^ 1
            self.writer.write(frame(b"%s%08x%s" % (payload[:8], other, payload[16:]), 2))

    async def _publish(self, options: dict[str, int]) -> None:
        """Publish `count` messages of each of `streams` streams, cut into at most `most` bytes a write."""
        count = options["count"]
        size = options.get("size", 64)
        raw = b""
        for stream in range(options.get("streams", 1)):
            order, done = (
                inflict(count, self.source) if options.get("faults") else (list(range(count)), Inflicted())
            )
            self.server.inflicted.add(done)
            for sequence in order:
                mark = stamp(stream, options.get("first", 0) + sequence, time.monotonic_ns(), size)
                text = b'{"op":"msg","data":"%s"}' % mark if options.get("json") else mark
                raw += fragments(text, self.source) if options.get("fragments") else frame(text)
        for piece in pieces(raw, self.source, options["most"]) if "most" in options else [raw]:
            self.writer.write(piece)
            # A turn of the loop lets the client run; with nodelay, the default of asyncio, it is a segment.
            await asyncio.sleep(0)
        self.server.seen["published"] += 1
        await self._until_end()

    async def _flood(self, options: dict[str, int]) -> None:
        """Write `bytes` in 1,000-byte messages as fast as the client takes them."""
        place = len(self.server.written)
        self.server.written.append(0)
        self.writer.transport.set_write_buffer_limits(0)
        message = frame(b"x" * 996)
        for _ in range(options["bytes"] // 1000):
            self.writer.write(message)
            await self.writer.drain()
            self.server.written[place] += len(message)
        self.server.seen["flooded"] += 1
        await self._until_end()

    async def _ping(self, options: dict[str, int]) -> None:
        for number in range(options["count"]):
            self.writer.write(frame(b"%d" % number * options.get("size", 1), 9))
        await self._until_end()

    async def _close(self, code: int) -> None:
        body = b"" if code == 1005 else code.to_bytes(2, "big") + b"why"
        self.writer.write(frame(body, 8))
        data = await asyncio.wait_for(self.reader.read(100), 5)
        self.server.seen[f"answer {data[0]:02x} {len(data)}"] += 1
