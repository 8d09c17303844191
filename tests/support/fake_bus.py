"""Run a small Redis on loopback that answers as a test wants, also as no Redis answers.

It runs on the loop of the test. By default it behaves correctly: it answers PING, AUTH, SUBSCRIBE,
UNSUBSCRIBE and PUBLISH, and delivers. The `answer` of a test may answer any command otherwise.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import hiredis

from wsgate.bus import BusAddress

__all__ = ["Answer", "FakeBus", "Talk", "bulk", "fake_bus", "message", "until"]

READ_BYTES = 1 << 16
LIMIT_S = 20.0  # a limit that no healthy run reaches


async def until(what: str, claim: Callable[[], object], within_s: float = LIMIT_S) -> None:
    """Let the loop run until `claim()` is true; raise AssertionError with `what` when it never is."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + within_s
    while not claim():
        assert loop.time() < end_s, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.002)


def bulk(data: bytes) -> bytes:
    """Return a bulk string."""
    return b"$%d\r\n%b\r\n" % (len(data), data)


def message(name: bytes, payload: bytes) -> bytes:
    """Return the bytes of a publication to a subscriber."""
    return b"*3\r\n" + bulk(b"message") + bulk(name) + bulk(payload)


@dataclass(eq=False)
class Talk:
    """One connection to the fake bus."""

    writer: asyncio.StreamWriter
    names: set[bytes] = field(default_factory=set)  # its subscriptions

    def cut(self) -> None:
        """Reset the connection."""
        self.writer.transport.abort()


Answer = Callable[[Talk, list[bytes]], bytes | None]
"""Return the reply to a command; `b""` is no reply, None the reply of a correct server."""


@dataclass(eq=False)
class FakeBus:
    """The server, with a record of its connections and commands."""

    answer: Answer
    address: BusAddress = field(default_factory=BusAddress)
    talks: list[Talk] = field(default_factory=list)  # the open connections
    accepted: int = 0
    commands: list[list[bytes]] = field(default_factory=list)

    def said(self, word: bytes) -> list[list[bytes]]:
        """Return the received commands of one kind, without the command word."""
        return [parts[1:] for parts in self.commands if parts[0] == word]

    def publish(self, name: bytes, payload: bytes) -> int:
        """Deliver a publication; return the number of subscribers."""
        heard = [talk for talk in self.talks if name in talk.names]
        for talk in heard:
            talk.writer.write(message(name, payload))
        return len(heard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = Talk(writer)
        self.talks.append(talk)
        self.accepted += 1
        parser = hiredis.Reader()
        try:
            while data := await reader.read(READ_BYTES):
                parser.feed(data)
                while (parts := parser.gets()) is not False:
                    self.commands.append(parts)
                    said = self.answer(talk, parts)
                    writer.write(self._good(talk, parts) if said is None else said)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.talks.remove(talk)
            writer.close()

    def _good(self, talk: Talk, parts: list[bytes]) -> bytes:
        word, names = parts[0], parts[1:]
        if word == b"PING":
            return b"*2\r\n" + bulk(b"pong") + bulk(b"") if talk.names else b"+PONG\r\n"
        if word == b"AUTH":
            return b"+OK\r\n"
        if word == b"PUBLISH":
            return b":%d\r\n" % self.publish(names[0], names[1])
        change = {b"SUBSCRIBE": talk.names.add, b"UNSUBSCRIBE": talk.names.discard}.get(word)
        if change is None:
            return b"-ERR unknown command\r\n"
        said = bytearray()
        for name in names:
            change(name)
            said += b"*3\r\n" + bulk(word.lower()) + bulk(name) + b":%d\r\n" % len(talk.names)
        return bytes(said)


@contextlib.asynccontextmanager
async def fake_bus(answer: Answer = lambda talk, parts: None, *, port: int = 0) -> AsyncIterator[FakeBus]:
    """Run a `FakeBus` while the context is open."""
    bus = FakeBus(answer)
    server = await asyncio.start_server(bus._serve, "127.0.0.1", port)
    bus.address = BusAddress("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield bus
    finally:
        server.close()
        for talk in bus.talks:
            talk.cut()
        await until("all connections are closed", lambda: not bus.talks)
        await server.wait_closed()
