"""Reconnect all clients at once without jitter: how long until all are connected?

    python -m loadtest simultaneous_reconnect [--clients 16000] [--rate 2000]

These clients do not back off: a refused client tries again at once, for as long as necessary, with tokens
that the node has never seen. The gate accepts `--rate` handshakes a second, whatever is offered. Fails if not
all are connected within clients / rate and a fifth more, if a connection was reset, or if the loop of a shard
was late (check R24).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import Final

from loadtest.engine import ConnectPlan, EngineProcess
from loadtest.harness.gateway import GatewayProcess
from loadtest.harness.verdict import print_verdict
from loadtest.scenarios.members import BEARER, make_tokens
from loadtest.scenarios.stage import start_engine

__all__ = ["main"]

SPARE: Final = 1.2
LATE_S: Final = "0.262144"  # a bound of the histogram
_ROUND_S: Final = 0.25


def _come_back(engine: EngineProcess, port: int, tokens: list[str], rate_per_s: int) -> Counter[str]:
    """Connect all clients, with repeated attempts; return how often each refusal occurred."""
    seen: Counter[str] = Counter()
    left = len(tokens)
    while left:
        # Twice the accepted rate: refused clients are among the next ones.
        count = min(left, max(64, int(2 * rate_per_s * _ROUND_S)))
        plan = ConnectPlan(
            count=count,
            host="127.0.0.1",
            port=port,
            path="/ws",
            headers=BEARER,
            tokens=tuple(tokens[-left:][:count]),
            window=count,
            timeout_s=30.0,
            is_refusal_reset=True,
        )
        result = engine.connect(plan)
        left -= result["opened"]
        seen.update(result["refused"])
        seen.update(result["failed"])
    return seen


def main(arguments: list[str] | None = None) -> int:
    """Disconnect all clients, wait until all are connected again, and check."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.simultaneous_reconnect")
    parser.add_argument("--clients", type=int, default=16_000)
    parser.add_argument("--rate", type=int, default=2_000)
    options = parser.parse_args(arguments)
    gateway = GatewayProcess(admission={"handshake_rate": options.rate})
    engine = start_engine(31, None)
    try:
        users = [f"user-{number}" for number in range(options.clients)]
        _come_back(engine, gateway.port, list(make_tokens(users, "first")), options.rate)
        tokens = list(make_tokens(users, "again"))
        engine.close("reset")
        gateway.settle()
        cpu_s, began_s = gateway.cpu_s(), time.monotonic()
        seen = _come_back(engine, gateway.port, tokens, options.rate)
        took_s = time.monotonic() - began_s
        busy = (gateway.cpu_s() - cpu_s) / took_s
        time.sleep(1.3)
        ticks = gateway.metric("loop_lag_seconds_count")
        late = ticks - gateway.metric("loop_lag_seconds_bucket", le=LATE_S)
        faults = gateway.faults()
    finally:
        engine.quit()
        gateway.stop()
    wanted_s = options.clients / options.rate
    print(
        f"{options.clients} clients connected after {took_s:.2f} s;"
        f" at {options.rate} a second {wanted_s:.2f} s"
    )
    print(f"refusals: {dict(seen)}; the shard was busy for {busy:.0%} of it; ticks late: {late:.0f}")
    checks = {
        f"back within {SPARE:.1f} of that": took_s <= SPARE * wanted_s,
        "no connection was reset or had no answer": set(seen) <= {"503"},
        "no tick of the loop over 262 ms late": late == 0,
        "the gateway reports no fault": not faults,
    }
    return print_verdict(checks)


if __name__ == "__main__":
    sys.exit(main())
