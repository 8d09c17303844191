"""Does memory that clients make a gateway use stay within its accounts, and does it come back?

    python -m loadtest attack_memory [--only F5 F8 F11 F14] [--seconds 20] [--share 1.0]

Each attack has a whole gateway of its own in a memory control group of 400 MiB (needs root), which takes its
budget from the group. It is driven for so many seconds, then weighed while what it made the gateway keep is
still there, and once more when its clients are gone. The run fails when the kernel killed a process of the
group, when the gateway's accounts (those of its shards, and what its bus says of itself) and the group differ
in what they grew by, by more than 15 % and 16 MiB, or when the accounts do not return afterwards.

Counts and bytes are judged, not times. `--share` makes the crowds smaller.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from typing import Final

from loadtest.experiments.attack_memory.attacks import ATTACKS, Attack, Stage, tokens
from loadtest.experiments.attack_memory.crowd import Crowd
from loadtest.experiments.attack_memory.scale import OFF_BY, SLACK_BYTES, Scale, Weight, count_sockets
from loadtest.harness.gateway import GatewayProcess
from loadtest.harness.verdict import print_verdict
from tests.support.memory_group import MemoryGroup, memory_group
from tests.support.tcp_rig import raise_descriptors

__all__ = ["GROUP_BYTES", "main", "run"]

GROUP_BYTES: Final = 400 << 20
WARM: Final = 50
DESCRIPTORS: Final = 6_000
_CONFIG: Final = """
[server]
host = "127.0.0.1"
port = {{port}}
shards = {{shards}}
drain_timeout = "{{drain_timeout_s}}s"

[admin]
port = 0

[auth]
hmac_secret = "{{secret}}"

[channels.default]
subscribe = "authenticated"
publish = "authenticated"
{sections}
"""


def config_of(attack: Attack) -> str:
    """The template of the configuration of an attack's gateway."""
    sections = "".join(f"\n[{name}]\n{text}\n" for name, text in attack.settings.items())
    return _CONFIG.format(sections=sections)


def run(name: str, attack: Attack, seconds: float, share: float) -> dict[str, bool]:
    """Drive one attack and print its row; what was asked for, and whether it came true."""
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(memory_group(GROUP_BYTES))
        count_sockets(group)
        gateway = GatewayProcess(prefix=group.prefix, config=config_of(attack))
        stack.callback(gateway.stop)
        scale = Scale(gateway, group)
        with Crowd(gateway.port) as crowd:  # so that the first connections of all are not weighed
            crowd.open(tokens("warm", WARM))
            crowd.receive(0.5)
        before = scale.read()
        with attack.drive(Stage(gateway, seconds, share)) as faults:
            peak = scale.read().since(before)
        left = await_return(scale, before, peak, attack.return_s)
        print_row(name, attack, peak, left, group)
        checks = {
            "no process was killed": group.killed() == 0,
            f"accounts differ by {OFF_BY:.0%} at most": peak.is_explained,
            "accounts return": has_returned(left, peak),
        }
        checks |= dict.fromkeys(faults, False)
        return {f"{name}, {attack.text}: {check}": is_so for check, is_so in checks.items()}


def has_returned(left: Weight, peak: Weight) -> bool:
    """Whether little but the pool is left on the accounts of what was there at the peak: tables stay, too."""
    return left.booked - left.pool <= max(SLACK_BYTES, OFF_BY * peak.booked)


def await_return(scale: Scale, before: Weight, peak: Weight, seconds: float) -> Weight:
    """Wait until the accounts have returned, at most so long; what is left then."""
    until_s = time.monotonic() + seconds
    while True:
        left = scale.read().since(before)
        if has_returned(left, peak) or time.monotonic() > until_s:
            return left


def print_row(name: str, attack: Attack, peak: Weight, left: Weight, group: MemoryGroup) -> None:
    """One line of the table."""
    sizes = (peak.accounts, peak.bus, peak.processes, peak.kernel, left.booked - left.pool, left.used)
    ratio = f"{peak.booked / peak.used:.2f}" if peak.used > 0 else "-"
    cells = "".join(f"{size / (1 << 20):>11.1f}" for size in sizes)
    print(f"{name:<5}{cells}{ratio:>8}{group.killed():>7}  {attack.text}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Drive the chosen attacks and print; 1 when one of them was too much."""
    parser = argparse.ArgumentParser(prog="loadtest.experiments.attack_memory")
    parser.add_argument("--only", nargs="*", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--share", type=float, default=1.0)
    options = parser.parse_args(arguments)
    if raise_descriptors(DESCRIPTORS) < DESCRIPTORS:
        sys.exit(f"{DESCRIPTORS} descriptors are needed")
    titles = ("accounts", "bus", "processes", "kernel", "left", "left used")
    print("growth in MiB while the attack is there, and what is left of it afterwards")
    print(f"{'':<5}{''.join(f'{title:>11}' for title in titles)}{'ratio':>8}{'killed':>7}")
    checks: dict[str, bool] = {}
    for name in options.only:
        for attack in ATTACKS[name]:
            checks |= run(name, attack, options.seconds, options.share)
    return print_verdict(checks)


if __name__ == "__main__":
    sys.exit(main())
