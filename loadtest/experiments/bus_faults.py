"""Interrupt the bus repeatedly: is every loss reported, and how soon do publications arrive again?

    python -m loadtest bus_faults [--cuts 20] [--kills 7] [--clients 500]

There are two runs with one shard. In the first an external Valkey cuts the shard's receiving connection 20
times in 6 s (CLIENT KILL TYPE pubsub). In the second the private bus is killed with SIGKILL seven times in 25
s. During both, clients publish with `id` and a backend publishes to the bus, to a channel with 500
subscribers and to one with few subscribers and many publications.

Fails if a subscriber missed a publication that had a positive reply and received no `gap` after it; if a
publish had the reply `ok` after the shard's receiving connection was lost and before the next one was
subscribed, as the bus itself counts subscribers; or if more than 300 ms passed from the bus answering PING
again to the delivery of the first publication that was sent after the interruption. The slowest of the few
subscribers counts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import redis

from loadtest.experiments.bus_fault_clients import QUICK, BusCrowd, bus_client
from loadtest.experiments.soak.record import SETTLE_S, Lost
from loadtest.harness.gateway import GatewayProcess
from loadtest.harness.verdict import print_verdict
from tests.support.valkey import running_valkey

__all__ = ["Break", "Outcome", "answered_while_deaf", "holes_s", "judge", "main"]

CUTS_S: Final = 6.0
CUTS: Final = 20
KILLS_S: Final = 25.0
KILLS: Final = 7
HOLE_S: Final = 0.3
CALM_S: Final = 2.0
COVER_S: Final = 30.0
"""How long to wait for the last notices, in seconds."""
_STEP_S: Final = 0.001
_UP_S: Final = 60.0
_NAME: Final = f"wsgate:ch:{QUICK}"

CONFIG: Final = """
[server]
host = "127.0.0.1"
port = {{port}}
shards = {{shards}}
drain_timeout = "{{drain_timeout_s}}s"

[admin]
port = 0

[auth]
hmac_secret = "{{secret}}"
allow_anonymous = true

[bus]
url = "{bus_url}"

[channels.default]
subscribe = "anyone"
publish = "anyone"
"""


class Break(NamedTuple):
    """One interruption of the bus, in monotonic seconds.

    Attributes:
        began_s: The shard's receiving connection was lost before this moment.
        up_s: The bus answered PING from this moment on.
        deaf_until_s: Until this moment, at least, the bus had no subscriber of the shard.
    """

    began_s: float
    up_s: float
    deaf_until_s: float


class Outcome(NamedTuple):
    """The result of one run, over all publications and clients.

    Attributes:
        breaks: All interruptions, in order.
        lost: Publications that a subscriber did not receive, counted for each subscriber.
        uncovered: Those of them that no later `gap` covered.
        faults: Publications that arrived twice or out of order.
        ok_while_deaf: Publishes with the reply `ok` while the shard could not receive.
        refused: Publishes with the reply 503.
        others: Other replies to publishes.
        ended: Connections that ended.
        holes_s: For each interruption, the time until the first and the last of the observed subscribers had
            a publication again.
    """

    breaks: Sequence[Break]
    lost: int
    uncovered: Sequence[Lost]
    faults: Sequence[Lost]
    ok_while_deaf: int
    refused: int
    others: int
    ended: int
    holes_s: Sequence[tuple[float, float]]


# --- judging --------------------------------------------------------------------------------------------


def answered_while_deaf(breaks: Sequence[Break], answered: Sequence[tuple[float, float]]) -> int:
    """Count the publishes that were sent and had the reply `ok` while the bus had no subscriber of the shard.

    Args:
        breaks: All interruptions.
        answered: When each publish was sent, and when its `ok` arrived.
    """
    return sum(
        any(each.began_s < began_s and ended_s <= each.deaf_until_s for each in breaks)
        for began_s, ended_s in answered
    )


def holes_s(
    breaks: Sequence[Break], arrivals: Sequence[Sequence[tuple[float, float]]]
) -> list[tuple[float, float]]:
    """Return for each interruption how long the first and the last subscriber waited for a publication.

    The time runs from the moment when the bus is available. A publication that was sent before the
    interruption does not count. Infinite if none arrived.

    Args:
        breaks: All interruptions.
        arrivals: For each subscriber: when each publication was sent, and when it arrived.
    """
    found = []
    for each in breaks:
        waits_s = [
            min(
                (came_s - each.up_s for sent_s, came_s in rows if sent_s >= each.began_s),
                default=float("inf"),
            )
            for rows in arrivals
        ]
        found.append((max(0.0, min(waits_s)), max(0.0, *waits_s)))
    return found


def judge(name: str, wanted: int, outcome: Outcome) -> dict[str, bool]:
    """Return the checks of one run, and whether each passed."""
    slowest_s = max((last_s for _, last_s in outcome.holes_s), default=float("inf"))
    return {
        f"{name}: there were {wanted} breaks": len(outcome.breaks) == wanted,
        f"{name}: the breaks did cost publications": outcome.lost + outcome.refused > 0,
        f"{name}: every loss is covered by a gap ({len(outcome.uncovered)} not)": not outcome.uncovered,
        f"{name}: nothing came twice or out of order": not outcome.faults,
        f"{name}: no ok while the shard did not receive ({outcome.ok_while_deaf})": not outcome.ok_while_deaf,
        f"{name}: every publish was answered ok or 503": not outcome.others,
        f"{name}: no connection ended": not outcome.ended,
        f"{name}: the longest hole is {HOLE_S * 1e3:.0f} ms at most": slowest_s <= HOLE_S,
    }


# --- the faults -------------------------------------------------------------------------------------------


def _subscribed(bus: redis.Redis) -> bool:
    """Whether the bus has a subscriber of the observed channel."""
    ((_, count),) = bus.pubsub_numsub(_NAME)
    return bool(count)


def _deaf_until(bus: redis.Redis, since_s: float) -> float:
    """Poll until the bus has the shard's subscription; return the last moment at which it had none."""
    deaf_s = since_s
    while time.monotonic() < since_s + _UP_S:
        asked_s = time.monotonic()
        if _subscribed(bus):
            break
        deaf_s = asked_s
        time.sleep(_STEP_S)
    return deaf_s


def _cut(bus: redis.Redis) -> float | None:
    """Cut every subscriber; return when that was done, or None if the shard was not subscribed."""
    with bus.pipeline(transaction=True) as pipeline:
        pipeline.pubsub_numsub(_NAME)
        pipeline.client_kill_filter(_type="pubsub")
        ((_, before),), _ = pipeline.execute()
    return time.monotonic() if before else None


def cut_often(bus_path: str, cuts: int) -> list[Break]:
    """Cut the shard's receiving connection so many times, at even intervals."""
    breaks: list[Break] = []
    with bus_client(bus_path) as bus:
        began_s = time.monotonic()
        while len(breaks) < cuts and time.monotonic() < began_s + _UP_S:
            time.sleep(max(_STEP_S, began_s + len(breaks) * CUTS_S / CUTS - time.monotonic()))
            if (cut_s := _cut(bus)) is not None:
                breaks.append(Break(cut_s, cut_s, _deaf_until(bus, cut_s)))
    return breaks


def _is_gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _answers(path: str) -> bool:
    """Whether the bus on this socket answers PING."""
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
        client.settimeout(1.0)
        client.connect(path)
        client.sendall(b"PING\r\n")
        return client.recv(64).startswith(b"+PONG")
    return False


def _await(what: str, claim: Callable[[], bool]) -> float:
    """Poll until a claim is true; return when the first true answer was requested (TimeoutError)."""
    began_s = time.monotonic()
    while (asked_s := time.monotonic()) < began_s + _UP_S:
        if claim():
            return asked_s
        time.sleep(_STEP_S)
    raise TimeoutError(what)


def kill_often(gateway: GatewayProcess, kills: int) -> list[Break]:
    """Kill the private bus so many times, at even intervals."""
    breaks: list[Break] = []
    began_s = time.monotonic()
    for number in range(kills):
        time.sleep(max(_STEP_S, began_s + number * KILLS_S / KILLS - time.monotonic()))
        (pid,) = gateway.pids_now("wsgate-bus")
        os.kill(pid, signal.SIGKILL)
        _await("the bus is gone", lambda: _is_gone(pid))  # noqa: B023 - called before the next iteration
        killed_s = time.monotonic()
        up_s = _await("the bus is back", lambda: _answers(gateway.bus_path))
        with bus_client(gateway.bus_path) as bus:
            breaks.append(Break(killed_s, up_s, _deaf_until(bus, up_s)))
    return breaks


# --- one run ----------------------------------------------------------------------------------------------


class _Trouble(threading.Thread):
    """The thread that interrupts the bus while the clients publish."""

    def __init__(self, make: Callable[[], list[Break]]) -> None:
        super().__init__(daemon=True)
        self.breaks: list[Break] = []
        self.error: Exception | None = None
        self._make = make

    def run(self) -> None:
        """Wait a moment, interrupt the bus, wait a moment."""
        try:
            time.sleep(CALM_S)
            self.breaks = self._make()
            time.sleep(CALM_S)
        except Exception as error:
            self.error = error


def measure(gateway: GatewayProcess, clients: int, make: Callable[[], list[Break]]) -> Outcome:
    """Let the clients publish and receive while the bus is interrupted; wait until every loss is covered."""
    with BusCrowd(gateway.port, gateway.bus_path, clients) as crowd:
        crowd.start()
        trouble = _Trouble(make)
        trouble.start()
        crowd.run(lambda: not trouble.is_alive(), is_publishing=True, limit_s=10 * _UP_S)
        if trouble.error is not None:
            raise trouble.error
        crowd.silence()
        crowd.run(lambda: False, is_publishing=False, limit_s=SETTLE_S)
        crowd.run(lambda: not any(_uncovered(crowd)), is_publishing=False, limit_s=COVER_S)
        return _outcome(crowd, trouble.breaks)


def _uncovered(crowd: BusCrowd) -> list[Lost]:
    """Return every loss that no notice covers yet."""
    end_s = time.monotonic() + SETTLE_S  # no publication is too late to be checked
    found = []
    for subscriber in crowd.subscribers:
        subscriber.session.ended_s = end_s
        found += [lost for lost, is_covered in subscriber.session.missing(crowd.published) if not is_covered]
    return found


def _outcome(crowd: BusCrowd, breaks: list[Break]) -> Outcome:
    uncovered = _uncovered(crowd)
    lost = sum(1 for each in crowd.subscribers for _ in each.session.missing(crowd.published))
    answered = [row for publisher in crowd.publishers for row in publisher.answered]
    return Outcome(
        breaks=breaks,
        lost=lost,
        uncovered=uncovered,
        faults=[fault for each in crowd.subscribers for fault in each.session.faults],
        ok_while_deaf=answered_while_deaf(breaks, answered),
        refused=sum(publisher.refused for publisher in crowd.publishers),
        others=sum(len(publisher.others) for publisher in crowd.publishers),
        ended=crowd.ended,
        holes_s=holes_s(breaks, [each.arrivals for each in crowd.subscribers if each.arrivals]),
    )


def _print(outcome: Outcome) -> None:
    covered = outcome.lost - len(outcome.uncovered)
    print(f"    lost {outcome.lost}, covered by a gap {covered}, publishes refused {outcome.refused}")
    away = ", ".join(f"{each.up_s - each.began_s:.2f}" for each in outcome.breaks)
    print(f"    the bus was away for, s: {away}")
    print(
        "    holes after each break, first and last subscriber, ms: "
        + ", ".join(f"{first_s * 1e3:.0f}/{last_s * 1e3:.0f}" for first_s, last_s in outcome.holes_s)
    )
    for fault in (*outcome.uncovered, *outcome.faults)[:20]:
        print(f"    {fault}")


def main(arguments: list[str] | None = None) -> int:
    """Do both runs; return 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.bus_faults")
    parser.add_argument("--cuts", type=int, default=CUTS)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--clients", type=int, default=500)
    options = parser.parse_args(arguments)
    checks: dict[str, bool] = {}
    with running_valkey() as valkey:
        config: dict[str, Any] = {"config": CONFIG.format(bus_url=valkey.unix_url)}
        with GatewayProcess(**config) as gateway:
            name = f"{options.cuts} cuts"
            print(name, flush=True)
            outcome = measure(gateway, options.clients, lambda: cut_often(gateway.bus_path, options.cuts))
    _print(outcome)
    checks |= judge(name, options.cuts, outcome)
    with GatewayProcess(config=CONFIG.format(bus_url="")) as gateway:
        name = f"{options.kills} kills"
        print(name, flush=True)
        outcome = measure(gateway, options.clients, lambda: kill_often(gateway, options.kills))
    _print(outcome)
    return print_verdict(checks | judge(name, options.kills, outcome))


if __name__ == "__main__":
    sys.exit(main())
