"""The bus breaks again and again: is every loss announced, and how soon do publications arrive again?

    python -m loadtest bus_faults [--cuts 20] [--kills 7] [--clients 500]

One shard, twice. First on an external Valkey, which cuts the shard's receiving connection 20 times in 6 s
(CLIENT KILL TYPE pubsub); then on the private bus, which is killed with SIGKILL seven times in 25 s. All the
while clients publish with `id` and a backend publishes to the bus, to a channel with 500 subscribers and to
one with few subscribers and many publications.

Fails when a subscriber missed a publication that its publisher was told of and received no `gap` after it;
when a publish was answered `ok` after the shard's receiving connection was lost and before another one was
subscribed, as the bus itself counts; or when it took over 300 ms from the bus answering PING again to the
first publication that was sent after the break and delivered. The slowest of the few subscribers counts.
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
"""How long the last notices are waited for."""
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
    """One break of the bus; monotonic seconds.

    Attributes:
        began_s: The shard's receiving connection was lost before this moment.
        up_s: The bus answered PING from this moment on.
        deaf_until_s: Until this moment, at least, the bus had no subscriber of the shard.
    """

    began_s: float
    up_s: float
    deaf_until_s: float


class Outcome(NamedTuple):
    """What became of all publications of one run.

    Attributes:
        breaks: All breaks, in order.
        lost: Publications that a subscriber did not get, counted for each subscriber.
        uncovered: Those of them that no later `gap` covered.
        faults: Publications that came twice or out of order.
        ok_while_deaf: Publishes that were answered `ok` while the shard could not receive.
        refused: Publishes that were answered 503.
        others: Answers to publishes that were neither.
        ended: Connections that ended.
        holes_s: For each break, the time until the first and the last of the observed subscribers had a
            publication again.
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
    """Count the publishes that were sent and answered `ok` while the bus had no subscriber of the shard.

    Args:
        breaks: All of them.
        answered: When each was sent, and when `ok` came.
    """
    return sum(
        any(each.began_s < began_s and ended_s <= each.deaf_until_s for each in breaks)
        for began_s, ended_s in answered
    )


def holes_s(
    breaks: Sequence[Break], arrivals: Sequence[Sequence[tuple[float, float]]]
) -> list[tuple[float, float]]:
    """Return for each break how long the first and the last subscriber waited for a publication.

    Counted from the bus being up; a publication that was sent before the break does not count. Infinite
    where none came.

    Args:
        breaks: All of them.
        arrivals: Of each subscriber: when each publication was sent, and when it came.
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
    """What was asked for in one run, and whether it came true."""
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
    """Watch until the bus has the shard's subscription; the last moment at which it had none."""
    deaf_s = since_s
    while time.monotonic() < since_s + _UP_S:
        asked_s = time.monotonic()
        if _subscribed(bus):
            break
        deaf_s = asked_s
        time.sleep(_STEP_S)
    return deaf_s


def _cut(bus: redis.Redis) -> float | None:
    """Cut every subscriber; when that had been done, or None: the shard was not subscribed."""
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
    """Whether a process does not run any more."""
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
    """Poll until it is true; the last moment before it was asked with that answer (TimeoutError)."""
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
        _await("the bus is gone", lambda: _is_gone(pid))  # noqa: B023 - called before the next one
        killed_s = time.monotonic()
        up_s = _await("the bus is back", lambda: _answers(gateway.bus_path))
        with bus_client(gateway.bus_path) as bus:
            breaks.append(Break(killed_s, up_s, _deaf_until(bus, up_s)))
    return breaks


# --- one run ----------------------------------------------------------------------------------------------


class _Trouble(threading.Thread):
    """Makes the breaks while the crowd is at work."""

    def __init__(self, make: Callable[[], list[Break]]) -> None:
        super().__init__(daemon=True)
        self.breaks: list[Break] = []
        self.error: Exception | None = None
        self._make = make

    def run(self) -> None:
        """Wait a moment, break, wait a moment."""
        try:
            time.sleep(CALM_S)
            self.breaks = self._make()
            time.sleep(CALM_S)
        except Exception as error:
            self.error = error


def measure(gateway: GatewayProcess, clients: int, make: Callable[[], list[Break]]) -> Outcome:
    """Let a crowd publish and receive while the bus breaks, and wait until every loss is covered."""
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
    """Every loss that no notice covers yet."""
    end_s = time.monotonic() + SETTLE_S  # nothing that was published is too late to be judged
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
    """Run both; 1 when a promise was broken."""
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
