"""Run a trivial echo server on the library `websockets`, as a reference for the conformance runner.

Its results in Autobahn|Testsuite are known case by case (tests/conformance/autobahn/known-websockets.txt), so
a run against it proves the installation of the suite.
Prints its port, then the file of the library, and serves until it is terminated.
"""

import asyncio
import contextlib
import signal

import websockets
from websockets.asyncio.server import ServerConnection, serve


async def echo(connection: ServerConnection) -> None:
    """Send every message back unchanged."""
    with contextlib.suppress(websockets.ConnectionClosed):
        async for message in connection:
            await connection.send(message)


async def main() -> None:
    """Serve until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with serve(echo, "127.0.0.1", 0, max_size=32 * 1024 * 1024) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        print(port, websockets.__file__, sep="\n", flush=True)
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(main())
