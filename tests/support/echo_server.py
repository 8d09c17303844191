"""Run the reactor with default settings and an echo handler, as the server for Autobahn|Testsuite.

This server is not part of wsgate, which never echoes. The interpreter selects the installed wsgate; the
program imports nothing else of this tree::

    python tests/support/echo_server.py [--port 0] [--defect corrupt-payload] [--roomy] [--deflate]

It prints the port on the first line and the file of the compiled loop on the second, then serves until it
is terminated.
"""

import argparse
import asyncio
import dataclasses
import signal
import time

import uvloop

import wsgate.reactor.loop
from wsgate.deflate import NARROW_BITS, WIDE_BITS, agree, deflate
from wsgate.handshake import Refusal, accept, parse_head
from wsgate.reactor import Reactor, Settings, open_listener
from wsgate.reactor.event_kinds import DEFLATED, OPEN, TEXT

__all__ = ["DEFECTS", "EchoServer"]

TICK_S = 0.25

# For section 9 of the suite, which echoes messages of 16 MiB and of 65,536 fragments: beyond every default.
ROOMY = Settings(
    max_message_bytes=16 * 1024 * 1024,
    max_fragments=1024 * 1024,
    outbox_bytes=64 * 1024 * 1024,
)

# Window bits for the messages of each variant; 0 for no compression.
WINDOW_BITS = (0, WIDE_BITS, NARROW_BITS)

# Planted defects, which the conformance runner must notice.
DEFECTS = ("none", "corrupt-payload", "swap-opcode", "drop-message")


def now_ms() -> int:
    """Return the milliseconds of the monotonic clock."""
    return time.monotonic_ns() // 1_000_000


class EchoServer:
    """Send every message back unchanged."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        port: int,
        *,
        settings: Settings | None = None,
        defect: str = "none",
        is_deflating: bool = False,
    ) -> None:
        """Open the listener and hook the reactor into the loop.

        Args:
            loop: Where the reactor's descriptor is registered, once.
            port: 0 lets the kernel choose.
            settings: The defaults if not given.
            defect: One of `DEFECTS`.
            is_deflating: Whether to agree to permessage-deflate and compress every message for such peers.
        """
        self._loop = loop
        self._defect = defect
        self._is_deflating = is_deflating
        settings = settings or Settings()
        if is_deflating:
            opcodes = (TEXT, TEXT | DEFLATED, TEXT | DEFLATED)
            settings = dataclasses.replace(settings, variant_opcodes=opcodes)
        self._reactor = Reactor(settings, now_ms=now_ms())
        self._listener = open_listener("127.0.0.1", port)
        self._pass_is_scheduled = False
        self.port: int = self._listener.getsockname()[1]
        self._reactor.listen(self._listener.fileno())
        loop.add_reader(self._reactor.fileno(), self._pass)
        loop.call_later(TICK_S, self._tick)

    def close(self) -> None:
        """Drop every connection and close the listener."""
        self._loop.remove_reader(self._reactor.fileno())
        self._reactor.shutdown()
        self._listener.close()

    def _pass(self) -> None:
        """Make one pass: poll, act on the events, flush; schedule the next pass if there is more to do."""
        reactor = self._reactor
        for kind, conn, value in reactor.poll(now_ms()):
            if kind < OPEN:
                assert isinstance(value, bytes)
                self._echo(conn, kind, value)
            elif kind == OPEN:
                assert isinstance(value, bytes)
                self._open(conn, value)
        if (reactor.flush(now_ms()) or reactor.more) and not self._pass_is_scheduled:
            self._pass_is_scheduled = True
            self._loop.call_soon(self._scheduled_pass)

    def _scheduled_pass(self) -> None:
        self._pass_is_scheduled = False
        self._pass()

    def _tick(self) -> None:
        self._loop.call_later(TICK_S, self._tick)
        self._reactor.tick(now_ms())
        self._pass()

    def _open(self, conn: int, head: bytes) -> None:
        request = parse_head(head)
        if isinstance(request, Refusal):
            self._reactor.refuse(conn, request.response)
            return
        agreement = agree(request.extensions) if self._is_deflating else None
        if agreement is None:
            self._reactor.upgrade(conn, accept(request).response)
            return
        variant = WINDOW_BITS.index(agreement.window_bits)
        self._reactor.upgrade(conn, accept(request, extensions=agreement.response).response, variant=variant)

    def _echo(self, conn: int, opcode: int, payload: bytes) -> None:
        if self._defect == "corrupt-payload":
            payload = payload[:-1] + b"#"
        elif self._defect == "swap-opcode":
            opcode = 3 - opcode
        elif self._defect == "drop-message":
            return
        if bits := WINDOW_BITS[self._reactor.variant(conn)]:
            payload, opcode = deflate(payload, bits), opcode | DEFLATED
        self._reactor.send(conn, payload, opcode)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--defect", choices=DEFECTS, default="none")
    parser.add_argument("--roomy", action="store_true", help="limits for section 9 of the suite")
    parser.add_argument("--deflate", action="store_true", help="agree to permessage-deflate")
    arguments = parser.parse_args()
    loop = uvloop.new_event_loop()
    settings = ROOMY if arguments.roomy else Settings()
    server = EchoServer(
        loop,
        arguments.port,
        settings=settings,
        defect=arguments.defect,
        is_deflating=arguments.deflate,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, loop.stop)
    print(server.port, wsgate.reactor.loop.__file__, sep="\n", flush=True)
    try:
        loop.run_forever()
    finally:
        server.close()
        loop.close()


if __name__ == "__main__":
    main()
