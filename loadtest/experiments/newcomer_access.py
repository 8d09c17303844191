"""Attack a gateway with the default configuration: can newcomers still connect?

    python -m loadtest newcomer_access [half_heads | silent | bad_tokens ...] [--share 1.0]

There are three attacks, each once from another address than the newcomers' and once from the same: 1,500
sockets with half a request head, which are opened again when they are closed; 9,000 sockets that send
nothing, also opened again; 1,000 handshakes a second with invalid tokens. Fails unless 95 % of 1,000
newcomers can connect during the first two, and each of 10,000 good clients during the third. `--share`
reduces all numbers; counts are checked, not times.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import threading
from typing import Final, NamedTuple

from loadtest.engine import ConnectPlan
from loadtest.harness.gateway import GatewayProcess
from loadtest.harness.verdict import print_verdict
from loadtest.scenarios.members import BEARER, make_tokens
from loadtest.scenarios.stage import start_engine

__all__ = ["ATTACKS", "Door", "main", "measure"]

ENGINE: Final = 41
OURS: Final = f"127.{ENGINE}.0.1"  # the address of the newcomers
ANOTHER: Final = "127.0.0.9"
START_S: Final = 120.0
AGAIN_S: Final = 1.0
_HALF: Final = b"GET /ws HTTP/1.1\r\nHost: x\r\nX-"
_BAD: Final = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    b"Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.%d\r\n\r\n"
)


class Door(NamedTuple):
    """The parameters of one attack, and of the newcomers during it."""

    sockets: int  # kept open all the time
    rate_per_s: int  # handshakes with a bad token
    beginning: bytes
    newcomers: int
    least: float  # share of them that must connect


ATTACKS: Final = {
    "half_heads": Door(1_500, 0, _HALF, 1_000, 0.95),
    "silent": Door(9_000, 0, b"", 1_000, 0.95),
    "bad_tokens": Door(0, 1_000, _BAD, 10_000, 1.0),
}


class Attack(threading.Thread):
    """The attacking sockets from one address, until `stop` is called."""

    def __init__(self, door: Door, port: int, source: str) -> None:
        super().__init__(daemon=True)
        self.opened = 0
        self._door = door
        self._port = port
        self._source = source
        self._is_over = threading.Event()

    def run(self) -> None:
        """Open the connections of the attack and keep them open."""
        asyncio.run(self._run())

    def stop(self) -> None:
        """Close every connection of the attack."""
        self._is_over.set()
        self.join()

    async def _run(self) -> None:
        tasks = {asyncio.create_task(self._hold()) for _ in range(self._door.sockets)}
        number = 0
        while not self._is_over.is_set():
            for _ in range(self._door.rate_per_s // 100):
                number += 1
                task = asyncio.create_task(self._once(self._door.beginning % number))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _hold(self) -> None:
        while True:
            await self._once(self._door.beginning)
            await asyncio.sleep(AGAIN_S)

    async def _once(self, beginning: bytes) -> None:
        """Connect, send, and wait until the gateway ends the connection."""
        with contextlib.suppress(OSError):
            source = (self._source, 0)
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=source)
            try:
                writer.write(beginning)
                self.opened += 1
                await reader.read()
            finally:
                writer.transport.abort()


def measure(door: Door, source: str) -> tuple[int, dict[str, int]]:
    """Return how many newcomers connected, and the results of the others."""
    gateway = GatewayProcess()
    engine = start_engine(ENGINE, None)
    attack = Attack(door, gateway.port, source)
    try:
        attack.start()
        wanted = door.sockets or door.rate_per_s // 10
        for _ in range(int(START_S * 10)):
            if attack.opened >= wanted:
                break
            threading.Event().wait(0.1)
        tokens = make_tokens([f"user-{number}" for number in range(door.newcomers)], "first")
        result = engine.connect(
            ConnectPlan(
                count=door.newcomers,
                host="127.0.0.1",
                port=gateway.port,
                path="/ws",
                headers=BEARER,
                tokens=tokens,
                window=64,
                timeout_s=60.0,
            )
        )
        return result["opened"], {**result["refused"], **result["failed"]}
    finally:
        attack.stop()
        engine.quit()
        gateway.stop()


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen attacks and print whether newcomers could connect."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.newcomer_access")
    parser.add_argument("attacks", nargs="*", choices=[[], *ATTACKS])
    parser.add_argument("--share", type=float, default=1.0)
    options = parser.parse_args(arguments)
    checks = {}
    for name in options.attacks or ATTACKS:
        whole = ATTACKS[name]
        door = whole._replace(
            sockets=int(whole.sockets * options.share),
            rate_per_s=int(whole.rate_per_s * options.share),
            newcomers=int(whole.newcomers * options.share),
        )
        for where, source in (("another address", ANOTHER), ("their own address", OURS)):
            came, others = measure(door, source)
            print(f"{name}, from {where}: {came} of {door.newcomers} connected {others or ''}", flush=True)
            checks[f"{name}, from {where}: {door.least:.0%} connected"] = came >= door.least * door.newcomers
    return print_verdict(checks)


if __name__ == "__main__":
    sys.exit(main())
