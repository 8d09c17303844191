"""Measures the heartbeat: the server's CPU time for each ping sent and pong received, at two rates.

This uses separate servers that send a ping every 2 s: 15,000 connections make 7,500 pings a second, 1,500
make 750. A window is a whole number of ping intervals, so that it does not matter how evenly a server spreads
its pings. It includes ticks and all other work of the process. Each server does all its runs at once, because
a server that sends pings would disturb the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from loadtest.harness import floor_probe
from loadtest.harness.arithmetic import per_unit_us
from loadtest.scenarios.stage import Contender, Figures, Sizes, open_connections

__all__ = ["floor", "measure", "settings"]

_TICKS_PER_S = 4  # pings are sent in batches every 250 ms


def settings(sizes: Sizes) -> dict[str, int]:
    """Return the settings of a server that sends pings.

    The pong is due after half the interval. The reactor has one timer per connection, which is set to the
    nearest deadline, so a pong deadline beyond the interval would lengthen the interval.
    """
    return {"ping_interval_ms": sizes.ping_interval_ms, "pong_timeout_ms": sizes.ping_interval_ms // 2}


def floor(sizes: Sizes, processors: tuple[int, int] | None) -> Figures:
    """Return the floor's CPU us per ping, in batches of one tick, for both rates."""
    figures: Figures = {}
    for name, sockets in (("ping_many", sizes.pinged_many), ("ping_few", sizes.pinged_few)):
        window = min(4_000, max(1, sockets * 1_000 // (sizes.ping_interval_ms * _TICKS_PER_S)))
        result = floor_probe.run("ping", processors=processors, sockets=sockets, window=window, rounds=2)
        figures[name] = float(result["ping"]["cpu_us_per_ping"])
    return figures


def measure(contender: Contender, sizes: Sizes, runs: int, say: Callable[[str], None]) -> None:
    """Measure `runs` windows at the high rate, close most connections, and measure as many at the low rate.

    Args:
        contender: A server with ping_interval_ms set; the numbers are added to it.
        sizes: The numbers of connections, and the interval.
        runs: The number of windows per rate.
        say: Prints progress.
    """
    interval_s = sizes.ping_interval_ms / 1e3
    open_connections(contender.engine, contender.server, sizes.pinged_many)
    for name, count in (("heartbeat_us", sizes.pinged_many), ("heartbeat_few_us", sizes.pinged_few)):
        surplus = contender.engine.stats()["open"] - count
        if surplus > 0:
            contender.engine.close("reset", count=surplus)
        time.sleep(interval_s + 1.0)  # the first round after a change is not typical
        for _ in range(runs):
            _window(contender, name, interval_s * sizes.ping_windows)
        say(f"heartbeat {contender.name}: {count} connections every {interval_s:g} s")
    gone = contender.engine.stats()["unexpected_disconnects"]
    if gone:
        contender.lost.append(f"heartbeat: {gone} connections were closed")


def _window(contender: Contender, name: str, duration_s: float) -> None:
    """Wait for one window; add the CPU us per answered ping, and the answered pings per second."""
    pings_before, before_s = contender.engine.stats()["pings_answered"], contender.server.cpu_s()
    time.sleep(duration_s)
    cpu_s = contender.server.cpu_s() - before_s
    pings = contender.engine.stats()["pings_answered"] - pings_before
    if pings:
        contender.add(
            {name: per_unit_us(cpu_s, pings), f"{name.removesuffix('_us')}_per_s": pings / duration_s}
        )
    else:
        contender.lost.append(f"heartbeat: no ping in {duration_s:g} s")
