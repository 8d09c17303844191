"""Measure the time of one publish through `wsgate.bus.Publisher`, compared with redis-py.

``python -m loadtest bus_publisher`` starts its own server and prints microseconds per publish, one at a time
and with 50 and 200 under way together, as wall time and as this process's CPU time. The server is on the same
machine and shares its cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import uvloop
from redis.asyncio import Redis

from wsgate.bus import BusAddress, Publisher
from wsgate.node.embedded_bus import find_server

__all__ = ["NAME", "PAYLOAD", "own_server", "report"]

NAME: Final = b"wsgate:ch:news"
PAYLOAD: Final = b'{"text":"' + b"x" * 139 + b'"}'  # 150 bytes
_PUBLISHES: Final = 20_000
_START_S: Final = 10.0


@contextlib.contextmanager
def own_server() -> Iterator[Path]:
    """Run a server on a Unix socket during the block; yield the path of the socket."""
    with tempfile.TemporaryDirectory(prefix="wsgate-bus-") as directory:
        path = Path(directory) / "bus.sock"
        settings = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", directory]
        server = subprocess.Popen([find_server(os.environ), *settings], stdout=subprocess.DEVNULL)
        try:
            end_s = time.monotonic() + _START_S
            while not path.exists():
                if time.monotonic() > end_s:
                    raise TimeoutError("the server does not start")
                time.sleep(0.01)
            yield path
        finally:
            server.terminate()
            server.wait()


def report(what: str, count: int, wall_s: float, cpu_s: float) -> None:
    """Print one line: the microseconds of wall and CPU time for each of `count`."""
    print(f"{what:44} {wall_s / count * 1e6:8.2f} us wall {cpu_s / count * 1e6:8.2f} us cpu")


async def _timed(what: str, count: int, run: Callable[[], Awaitable[None]]) -> None:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    await run()
    report(what, count, time.perf_counter() - wall_s, time.process_time() - cpu_s)


async def _ours(publisher: Publisher, together: int) -> None:
    """Publish in groups; each group starts when the one before has its replies."""
    loop = asyncio.get_running_loop()
    for _ in range(_PUBLISHES // together):
        answered, left = loop.create_future(), together

        def done(outcome: str, answered: asyncio.Future[None] = answered) -> None:
            nonlocal left
            assert not outcome
            left -= 1
            if not left:
                answered.set_result(None)

        for _ in range(together):
            publisher.publish(NAME, PAYLOAD, done)
        await answered


async def _theirs(client: Redis, together: int) -> None:
    for _ in range(_PUBLISHES // together):
        if together == 1:
            await client.publish(NAME, PAYLOAD)
            continue
        pipeline = client.pipeline(transaction=False)
        for _ in range(together):
            pipeline.publish(NAME, PAYLOAD)
        await pipeline.execute()


async def _main(path: Path) -> None:
    publisher = Publisher(BusAddress(path=str(path)), connect_timeout_s=5, command_timeout_s=5)
    running = asyncio.ensure_future(publisher.run())
    client: Redis = Redis(unix_socket_path=str(path), single_connection_client=True)
    for together in (1, 50, 200):
        runs: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("wsgate.bus.Publisher", partial(_ours, publisher, together)),
            ("redis-py", partial(_theirs, client, together)),
        ]
        for what, run in runs:
            await run()  # warm-up
            await _timed(f"{what}, {together} together", _PUBLISHES, run)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await publisher.close()
    await client.aclose()


def main() -> None:
    """Measure both libraries and print the results."""
    with own_server() as path:
        uvloop.run(_main(path))


if __name__ == "__main__":
    main()
