"""Send 10,000 fresh tokens in one second: by how much are the loop and another client delayed?

    python -m loadtest refresh_storm [--clients 10000] [--storms 5]

One shard. Every client has its own token and sends a new one, which the shard has never seen, in every storm:
first spread evenly over the second, then all at once. One more client sends `ping` all the time: its replies
show the delay of other clients. The loop's own lag is measured by its ticks, four a second. Fails if a tick
was later than 16.4 ms (the nearest bound of the histogram below 20), or if a client did not have the reply
`ok`.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from websockets.frames import Frame, Opcode

from loadtest.engine import ConnectPlan, Engine, EngineSettings
from loadtest.harness.gateway import GatewayProcess
from loadtest.scenarios.members import BEARER, COUNTED, OK, make_tokens

__all__ = ["main"]

STORM_S: Final = 1.0
LAG_BOUND: Final = "0.016384"
_STEP_S: Final = 0.001
_TIMEOUT_S: Final = 10.0
_FRESH_S: Final = 1.3  # a shard writes its statistics once a second


class Prober:
    """The one further client, which sends a ping as soon as it has a reply, at most once a step."""

    def __init__(self, port: int) -> None:
        self.answers_s: list[float] = []
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(
            b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n" % port
        )
        heard = b""
        while b'"op":"welcome"' not in heard:
            heard += self._socket.recv(4096)
        self._socket.setblocking(False)
        self._question = Frame(Opcode.TEXT, b'{"op":"ping"}').serialize(mask=True)
        self._asked_s = 0.0

    def close(self) -> None:
        """Close the connection of the prober."""
        self._socket.close()

    def step(self) -> None:
        """Read the reply if it has arrived, and send the next ping."""
        if self._asked_s:
            try:
                self._socket.recv(4096)
            except BlockingIOError:
                return
            self.answers_s.append(time.perf_counter() - self._asked_s)
        self._asked_s = time.perf_counter()
        self._socket.sendall(self._question)


def _storm(engine: Engine, prober: Prober, tokens: Sequence[str], *, is_spread: bool) -> float:
    """Send one token from each connection; return the seconds until all had replies (RuntimeError if not)."""
    engine.reset_stats()
    began_s = time.perf_counter()
    sent = 0
    while (counted := engine.stats()["counted"])[OK] < len(tokens):
        passed_s = time.perf_counter() - began_s
        if passed_s > _TIMEOUT_S or sum(counted.values()) > counted[OK]:
            raise RuntimeError(f"after {passed_s:.1f} s the clients have received {counted}")
        due = len(tokens) if not is_spread else min(len(tokens), int(passed_s / STORM_S * len(tokens)))
        for number in range(sent, due):
            engine.send(
                f'{{"op":"refresh","id":1,"token":"{tokens[number]}"}}'.encode(), first=number, count=1
            )
            if number % 10 == 0:
                prober.step()
        sent = max(sent, due)
        prober.step()
        engine.step(_STEP_S)
    return time.perf_counter() - began_s


class Outcome(NamedTuple):
    """The result of all storms of one kind."""

    took_s: float  # the longest storm
    ticks: int
    late: int  # ticks above the bound
    answers_s: list[float]


def measure(gateway: GatewayProcess, clients: int, storms: int, *, is_spread: bool) -> Outcome:
    """Run several storms on new connections, and return the result."""
    users = [f"user-{number}" for number in range(clients)]
    engine = Engine(EngineSettings(counted=COUNTED, max_connections=clients))
    try:
        plan = ConnectPlan(
            count=clients,
            host="127.0.0.1",
            port=gateway.port,
            path="/ws",
            headers=BEARER,
            tokens=make_tokens(users, "first"),
        )
        connected = engine.connect(plan)
        if connected["opened"] != clients:
            raise RuntimeError(f"{connected['opened']} of {clients} are connected")
        engine.hold(1.0)
        answers_s = []
        took_s = []
        time.sleep(_FRESH_S)
        before = _ticks(gateway)
        for number in range(storms):
            tokens = make_tokens(users, f"storm-{is_spread}-{number}")
            # A new client for each storm, because the last reply of a storm may wait unread
            prober = Prober(gateway.port)
            took_s.append(_storm(engine, prober, tokens, is_spread=is_spread))
            answers_s += prober.answers_s
            prober.close()
        time.sleep(_FRESH_S)
        ticks, late = (after - then for after, then in zip(_ticks(gateway), before, strict=True))
        return Outcome(max(took_s), ticks, late, answers_s)
    finally:
        engine.shut()


def _ticks(gateway: GatewayProcess) -> tuple[int, int]:
    """Return the number of ticks, and how many were later than the bound."""
    while True:  # two scrapes: repeated if the statistics were written between them
        ticks = int(gateway.metric("loop_lag_seconds_count"))
        in_time = int(gateway.metric("loop_lag_seconds_bucket", le=LAG_BOUND))
        if ticks == int(gateway.metric("loop_lag_seconds_count")):
            return ticks, ticks - in_time


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; return 1 if a tick was too late."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.refresh_storm")
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--storms", type=int, default=5)
    options = parser.parse_args(arguments)
    is_late = False
    with GatewayProcess() as gateway:
        for is_spread in (True, False):
            found = measure(gateway, options.clients, options.storms, is_spread=is_spread)
            how = "within a second" if is_spread else "at once"
            cuts_s = statistics.quantiles(found.answers_s, n=100)
            print(
                f"{options.clients:,} refreshes {how}, {options.storms} times: all answered after"
                f" {found.took_s:.2f} s at most; {found.late} of {found.ticks} ticks later than 16.4 ms;"
                f" {len(found.answers_s):,} pings of another client: p50"
                f" {cuts_s[49] * 1e3:.1f} ms, p99"
                f" {cuts_s[98] * 1e3:.1f} ms, longest"
                f" {max(found.answers_s) * 1e3:.1f} ms"
            )
            is_late |= found.late > 0
    return int(is_late)


if __name__ == "__main__":
    sys.exit(main())
