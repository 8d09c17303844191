"""Run the admin process: an event loop, uvicorn on the keeper's listener, and one publisher to the bus.

The resources of requests are bounded: the bytes of head and body, the time for one exchange, and the number
of connections (see `wsgate.admin.connections`). A peer that sends slowly, or does not read, is disconnected;
until then it costs one socket buffer.
"""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn
import uvloop

from wsgate.admin import AdminOptions
from wsgate.admin.api import Api, Publish
from wsgate.admin.app import RESPONSE_HEADERS, make_app
from wsgate.admin.connections import HEAD_LIMIT_BYTES, Connection, with_limit
from wsgate.admin.control import Controller
from wsgate.admin.keys import KeySetFetcher
from wsgate.bus import BusPublisher, Names, make_publisher
from wsgate.log import Log
from wsgate.output import flush_outputs
from wsgate.statistics import Board, StatisticsBlock

__all__ = ["serve"]

KEEP_ALIVE_S: Final = 5
BACKLOG: Final = 128
GRACE_S: Final = 0.5
"""How long responses under way may take when the process ends, in seconds."""


def serve(
    options: AdminOptions, block: StatisticsBlock, listener: socket.socket, alive: int, key_set: Board
) -> None:
    """Set up logging, and run the event loop of the admin process; see `wsgate.admin.run_admin`."""
    _route_logs(options.log_level)
    uvloop.run(_serve(options, block, listener, alive, key_set))


async def _serve(
    options: AdminOptions, block: StatisticsBlock, listener: socket.socket, alive: int, key_set: Board
) -> None:
    """Start the publisher and uvicorn, serve until stopped, and end both."""
    loop = asyncio.get_running_loop()
    publisher, parts = make_publisher(
        options.bus,
        connect_timeout_s=options.connect_timeout_s,
        command_timeout_s=options.command_timeout_s,
        on_failed=lambda why: None,  # the shards log a failure of the bus
    )
    fetcher = KeySetFetcher(options.jwks_url, block, key_set) if options.jwks_url else None
    own = [f"{options.node}/{number}" for number in range(block.shards)]
    controller = Controller(publisher, Names(options.prefix), lambda: own)
    api = Api(options, _awaitable(publisher), controller)
    server = _Server(with_limit(make_app(options, block, api, fetcher)))
    sending = [loop.create_task(part.run()) for part in (*parts, *([fetcher] if fetcher else []))]
    for task in sending:
        # Such a task ends by itself only after a fault of this program: end the process, which is restarted.
        task.add_done_callback(lambda task: server.stop())
    loop.add_signal_handler(signal.SIGTERM, server.stop)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # sent by a terminal; only the keeper acts
    loop.add_reader(alive, _keeper_is_gone, loop, alive, server)
    await server.serve(sockets=[listener])
    for task in sending:
        task.cancel()
    ended = await asyncio.gather(*sending, return_exceptions=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GRACE_S):
            await publisher.close()
    for fault in ended:
        if isinstance(fault, Exception):
            raise fault


def _keeper_is_gone(loop: asyncio.AbstractEventLoop, alive: int, server: "_Server") -> None:
    """Stop the server, because the keeper has ended."""
    loop.remove_reader(alive)
    server.stop()


def _awaitable(publisher: BusPublisher) -> Publish:
    """Make a coroutine function of `publish`, which returns the outcome instead of calling back."""

    async def publish(name: bytes, data: bytes) -> str:
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def done(outcome: str) -> None:
            if not answered.done():  # the waiting task may be cancelled
                answered.set_result(outcome)

        publisher.publish(name, data, done)
        return await answered

    return publish


class _Server(uvicorn.Server):
    """A uvicorn server on the keeper's listener, which `stop` ends and no signal handler of its own."""

    def __init__(self, app: object) -> None:
        super().__init__(
            uvicorn.Config(
                app,  # type: ignore[arg-type]
                http=Connection,
                ws="none",
                interface="asgi3",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                headers=list(RESPONSE_HEADERS),
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                h11_max_incomplete_event_size=HEAD_LIMIT_BYTES,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers: the loop has them, and uvicorn's raise the signal again at the end."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Write buffered log lines whose reader was slow; uvicorn calls this ten times a second."""
        flush_outputs()
        return await super().on_tick(counter)

    def stop(self) -> None:
        """Complete the responses under way and end; after `GRACE_S` reset the remaining connections."""
        if not self.should_exit:
            self.should_exit = True
            asyncio.get_running_loop().call_later(GRACE_S, self._cut)

    def _cut(self) -> None:
        """Reset all connections that are still open, and let the server end at once."""
        self.force_exit = True
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.reset()


# --- logs ---------------------------------------------------------------------------------------------


class _Forward(logging.Handler):
    """Forward log lines of uvicorn to our log, which writes one line for an event and second."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._log = Log("admin")

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record of uvicorn, with the traceback if it has an exception."""
        text = record.getMessage().strip()
        if record.exc_info:
            self._log.exception("request_failed", text=text)
        else:
            self._log.warning("http", text=text)


def _route_logs(level: str) -> None:
    """Send the log lines of uvicorn to our log, from this level on."""
    logger = logging.getLogger("uvicorn")
    logger.handlers[:] = [_Forward()]
    logger.setLevel(level.upper())
    logger.propagate = False
