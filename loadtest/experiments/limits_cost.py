"""Measure the cost of limits: a gateway with limits compared with one without, and refusals with the floor.

    python -m loadtest limits_cost [--rounds 5]

Three numbers are measured on both gateways in turn, round after round, so that a slow minute of the machine
affects both:

    handshakes   new HS256 tokens, with limits per address (connections and rate) and per user on all nodes;
                 for users who are connected already, and for new users, whose inbox must be subscribed
    messages     users who publish and receive their own publications, with a leased limit of which they
                 use a fifth
    refusals     at the gate, for the limit of all connections and for that of one address, compared with
                 the floor

The CPU time is that of the shard, which is pinned to one CPU; clients, bus and the floor's peer are on
the other. Fails below 10,000 handshakes a second with limits, below 0.9 of the messages without limits, or
above 1.5 times the floor for a refusal (check A2). A quarter of such a handshake, which A2 also allows, is
less than the floor itself.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Final

from loadtest.engine import ConnectPlan, EchoPlan, EngineProcess
from loadtest.harness import floor_probe
from loadtest.harness.arithmetic import per_unit_us
from loadtest.harness.gateway import GatewayProcess
from loadtest.harness.machine_info import processors
from loadtest.scenarios.members import BEARER, COUNTED, await_told, make_tokens
from loadtest.scenarios.stage import open_connections, start_engine

__all__ = ["main"]

HANDSHAKES: Final = 3_000
PUBLISHERS: Final = 64
REFUSALS: Final = 3_000
REFUSAL_WINDOW: Final = 24  # fewer than the 32 sockets that the gate drains at once
FEW: Final = 8
PER_S: Final = 10_000
SHARE: Final = 0.9
TIMES_THE_FLOOR: Final = 1.5
PUBLISH_S: Final = 2.0
PUBLISH: Final = '{"op":"pub","ch":"own-{index}","data":"{stamp}"}'

ADDRESS: Final = {"per_address_connections": 1_000_000, "per_address_rate": 1_000_000}
LIMITS: Final = {**ADDRESS, "per_user_connections": 3, "per_user_rate": 2_000}


class Side:
    """One gateway with its numbers."""

    def __init__(self, name: str, processor: int | None, **admission: int) -> None:
        self.name = name
        self.gateway = GatewayProcess(processor=processor, admission=admission)
        self.figures: dict[str, list[float]] = {}
        self.serial = 0

    def note(self, name: str, value: float) -> None:
        """Append one round's value to the figure of this name."""
        self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """Return the median of a figure over all rounds."""
        return statistics.median(self.figures[name])

    def hold(self, engine: EngineProcess) -> None:
        """Connect users who stay connected."""
        users = [f"user-{number}" for number in range(HANDSHAKES)]
        open_connections(engine, self.gateway, HANDSHAKES, headers=BEARER, tokens=make_tokens(users, "held"))

    def handshakes(self, engine: EngineProcess, *, is_new: bool) -> None:
        """Connect users with new tokens, measure the handshakes, and disconnect them."""
        self.serial += 1
        mark = f"{self.serial}-" if is_new else ""
        users = [f"user-{mark}{number}" for number in range(HANDSHAKES)]
        tokens = make_tokens(users, str(self.serial))
        engine.reset_stats()
        before_s = self.gateway.cpu_s()
        open_connections(engine, self.gateway, HANDSHAKES, window=64, headers=BEARER, tokens=tokens)
        await_told(engine, welcome=HANDSHAKES, subbed=HANDSHAKES)
        name = "handshake of a new user" if is_new else "handshake"
        self.note(name, per_unit_us(self.gateway.cpu_s() - before_s, HANDSHAKES))
        engine.close("reset")
        self.gateway.settle()

    def messages(self, engine: EngineProcess) -> None:
        """Let users publish to their own channels, with sixteen publications under way on each."""
        self.serial += 1
        tokens = make_tokens([f"speaker-{number}" for number in range(PUBLISHERS)], str(self.serial))
        engine.reset_stats()
        open_connections(
            engine, self.gateway, PUBLISHERS, path="/ws?ch=own-{index}", headers=BEARER, tokens=tokens
        )
        await_told(engine, welcome=PUBLISHERS, subbed=2 * PUBLISHERS)
        plan = EchoPlan(
            duration_s=PUBLISH_S, payload_bytes=130, in_flight=16, drain_s=5.0, is_text=True, message=PUBLISH
        )
        before_s = self.gateway.cpu_s()
        result = engine.echo(plan)
        if result["received"] != result["sent"]:
            raise RuntimeError(f"{result['sent'] - result['received']} of {result['sent']} did not come back")
        self.note("message", per_unit_us(self.gateway.cpu_s() - before_s, result["received"]))
        self.note("message_rate", result["received"] / PUBLISH_S)
        engine.close("reset")
        self.gateway.settle()

    def refusals(self, engine: EngineProcess, status: str) -> None:
        """Attempt connections above a limit; all of them must read their refusal."""
        plan = ConnectPlan(
            count=REFUSALS, host="127.0.0.1", port=self.gateway.port, path="/ws", window=REFUSAL_WINDOW
        )
        before_s = self.gateway.cpu_s()
        result = engine.connect(plan)
        self.gateway.settle()
        # The engine uses several addresses, and the first connection of each is accepted.
        if result["refused"].get(status, 0) + result["opened"] != REFUSALS or result["opened"] > FEW:
            raise RuntimeError(f"{self.name}: {result['refused']}, {result['failed']}")
        self.note("refusal", per_unit_us(self.gateway.cpu_s() - before_s, REFUSALS))


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; return 1 if a figure misses its limit."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.limits_cost")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    places = processors()
    server, client = places if places else (None, None)
    free, limited = Side("without", server), Side("with", server, **LIMITS)
    full = Side("full", server, max_connections=1)
    crowded = Side("crowded", server, per_address_connections=1)
    engine, holder = start_engine(7, client, COUNTED), start_engine(8, client)
    # These connections come from one address; the other engines use many.
    narrow = start_engine(9, client)
    floors: list[float] = []
    try:
        free.hold(holder)
        limited.hold(holder)
        open_connections(holder, full.gateway, 1)
        open_connections(narrow, crowded.gateway, 1)
        for number in range(options.rounds):
            for side in (free, limited):
                side.handshakes(engine, is_new=False)
                side.handshakes(engine, is_new=True)
                side.messages(engine)
            floor = floor_probe.run("refuse", processors=places, sockets=REFUSALS, window=REFUSAL_WINDOW)
            floors.append(float(floor["refuse"]["cpu_us_per_accept"]))
            full.refusals(holder, "503")
            crowded.refusals(narrow, "429")
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        faults = [fault for side in (free, limited) for fault in side.gateway.faults()]
    finally:
        for each in (engine, holder, narrow):
            each.quit()
        for side in (free, limited, full, crowded):
            side.gateway.stop()
    return _report(free, limited, full, crowded, statistics.median(floors)) or int(bool(faults))


def _report(free: Side, limited: Side, full: Side, crowded: Side, floor_us: float) -> int:
    missed = 0
    per_s = 1e6 / limited.median("handshake")
    share = free.median("message") / limited.median("message")
    print(f"{'us of the shard, medians':<28}{'without':>10}{'with':>10}")
    for name in ("handshake", "handshake of a new user", "message"):
        print(f"{name:<28}{free.median(name):>10.1f}{limited.median(name):>10.1f}")
    print(
        f"{'refusal: floor, 503, 429':<28}{floor_us:>10.1f}"
        f"{full.median('refusal'):>10.1f}{crowded.median('refusal'):>10.1f}"
    )
    rates = (free.median("message_rate"), limited.median("message_rate"))
    print(f"{'messages a second':<28}{rates[0]:>10.0f}{rates[1]:>10.0f}")
    for text, value, limit, is_least in (
        ("handshakes a second and core, with limits", per_s, PER_S, True),
        ("messages with a leased limit, of those without", share, SHARE, True),
        ("refusal, times the floor", full.median("refusal") / floor_us, TIMES_THE_FLOOR, False),
        (
            "refusal of an address, times the floor",
            crowded.median("refusal") / floor_us,
            TIMES_THE_FLOOR,
            False,
        ),
    ):
        is_good = value >= limit if is_least else value <= limit
        missed += not is_good
        wanted = f"{'>=' if is_least else '<='} {limit:g}"
        print(f"{'ok  ' if is_good else 'MISS'} {text:<50}{value:>10.2f}  {wanted}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
