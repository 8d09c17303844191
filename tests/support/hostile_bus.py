"""Run a bus that answers the commands of a gateway wrongly while a test wants it; otherwise it is a proxy.

It acts as a single server, as sentinels with the primary that they name, or as a cluster of one server. It
runs on a loop of its own in a thread, and its answers depend on a seed. Some answers are correct, so that a
gateway gets past its greeting and receives wrong answers in every later state.
"""

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator

import hiredis
from hiredis import pack_command

from tests.support.resp import hostile_reply

__all__ = ["HostileBus", "hostile_bus"]

READ_BYTES = 1 << 16
REPLY_PAUSE_S = 0.001
PUSHES_MOST = 3
MASTER = "main"


def bulk(data: bytes) -> bytes:
    """Return a bulk string."""
    return b"$%d\r\n%b\r\n" % (len(data), data)


class HostileBus:
    """One server that is hostile or a proxy.

    Attributes:
        is_hostile: Whether new connections receive wrong answers; `turn` changes it.
        commands: How often each command was answered while the bus was hostile.
        accepted: Connections that were accepted while the bus was hostile.
    """

    def __init__(self, target: tuple[str, int], seed: int) -> None:
        self.port = 0
        self.is_hostile = False
        self.commands: Counter[str] = Counter()
        self.accepted = 0
        self._dice = random.Random(seed)
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def url(self, kind: str) -> str:
        """Return its address as `single`, `sentinel` or `cluster`, the kinds of bus of a gateway."""
        host = f"127.0.0.1:{self.port}"
        return {
            "single": f"redis://{host}",
            "sentinel": f"redis+sentinel://{host}/{MASTER}",
            "cluster": f"redis+cluster://{host}",
        }[kind]

    def start(self) -> None:
        """Start the thread, and return when the server listens."""
        self._thread.start()
        assert self._is_up.wait(10)

    def turn(self, *, is_hostile: bool) -> None:
        """Become hostile or sane, and cut all present connections."""
        self.is_hostile = is_hostile
        self._loop.call_soon_threadsafe(self._cut)

    def stop(self) -> None:
        """Cut all connections and end."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        self._loop.close()

    def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _run(self) -> None:
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._is_up.set()
        await self._over.wait()
        server.close()
        self._cut()
        await server.wait_closed()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await (self._lie(reader, writer) if self.is_hostile else self._pass_on(reader, writer))
        except (OSError, hiredis.ProtocolError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    # --- sane -----------------------------------------------------------------------------------------

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes to the real server and back; answer the commands for sentinels and clusters here."""
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers.add(far_writer)

        async def back() -> None:
            while data := await far_reader.read(READ_BYTES):
                writer.write(data)
                await writer.drain()
            writer.transport.abort()

        answering = asyncio.create_task(back())
        parser = hiredis.Reader()
        try:
            while data := await reader.read(READ_BYTES):
                parser.feed(data)
                while (parts := parser.gets()) is not False:
                    said = self._about_servers(parts)
                    if said:
                        writer.write(said)
                    else:
                        far_writer.write(pack_command(tuple(parts)))
                await far_writer.drain()
        finally:
            self._writers.discard(far_writer)
            far_writer.transport.abort()
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    def _about_servers(self, parts: list[bytes]) -> bytes:
        word = parts[0].upper()
        port = b"%d" % self.port
        if word == b"SENTINEL":
            fields = (b"name", MASTER.encode(), b"ip", b"127.0.0.1", b"port", port, b"flags", b"master")
            return b"*1\r\n*%d\r\n" % len(fields) + b"".join(map(bulk, fields))
        if word == b"CLUSTER":
            return (
                b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n" + bulk(b"127.0.0.1") + b":%b\r\n" % port + bulk(b"id")
            )
        return b""

    # --- hostile --------------------------------------------------------------------------------------

    async def _lie(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        dice = self._dice
        honesty = dice.choice((0.0, 0.5, 0.9, 0.97))
        greets = dice.random() < 0.7  # correctly, so that later states are reached
        names: list[bytes] = []
        parser = hiredis.Reader()
        while data := await reader.read(READ_BYTES):
            parser.feed(data)
            while (parts := parser.gets()) is not False:
                word = parts[0].upper()
                self.commands[word.decode("ascii", "replace")] += 1
                if word in (b"SUBSCRIBE", b"SSUBSCRIBE"):
                    names += parts[1:]
                is_greeting = word in (b"PING", b"AUTH", b"SENTINEL", b"ROLE", b"CLUSTER") and not names
                if (is_greeting and greets) or dice.random() < honesty:
                    writer.write(self._honest(word, parts[1:], is_subscriber=bool(names)))
                else:
                    writer.write(hostile_reply(dice, tuple(names[:8])))
                for _ in range(dice.randrange(PUSHES_MOST) if names else 0):
                    writer.write(hostile_reply(dice, tuple(names[:8])))
                if dice.random() < 0.02:
                    return
            await asyncio.wait_for(writer.drain(), 5)
            await asyncio.sleep(REPLY_PAUSE_S)

    def _honest(self, word: bytes, rest: list[bytes], *, is_subscriber: bool) -> bytes:
        if said := self._about_servers([word, *rest]):
            return said
        if word == b"PING":
            return b"*2\r\n" + bulk(b"pong") + bulk(b"") if is_subscriber else b"+PONG\r\n"
        if word == b"ROLE":
            return b"*3\r\n" + bulk(b"master") + b":0\r\n*0\r\n"
        if word in (b"SUBSCRIBE", b"SSUBSCRIBE", b"UNSUBSCRIBE", b"SUNSUBSCRIBE"):
            return b"".join(b"*3\r\n" + bulk(word.lower()) + bulk(name) + b":1\r\n" for name in rest)
        if word in (b"EVALSHA", b"EVAL"):
            return self._dice.choice(
                (bulk(b""), bulk(b"4 0"), b":0\r\n", b"-NOSCRIPT No matching script\r\n")
            )
        if word == b"XADD":
            return bulk(b"1732600000000-0")
        if word == b"SET" or word == b"AUTH":
            return b"+OK\r\n"
        return b":1\r\n"


@contextlib.contextmanager
def hostile_bus(target: tuple[str, int], seed: int) -> Iterator[HostileBus]:
    """Run a `HostileBus` that is sane until `turn` changes it.

    Args:
        target: The real server.
        seed: The seed of all wrong answers.
    """
    bus = HostileBus(target, seed)
    bus.start()
    try:
        yield bus
    finally:
        bus.stop()
