"""Make a gateway use much memory: does it stay within its accounts, and is it released?

    python -m loadtest attack_memory [--only F5 F8 F11 F14] [--seconds 20] [--share 1.0]

Each attack has its own gateway in a memory control group of 400 MiB (needs root), from which the gateway
takes its budget. The attack runs for the given seconds. The memory is measured while the gateway still keeps
what the attack caused, and again after its clients have disconnected. The run fails if the kernel killed a
process of the group, if the growth of the gateway's accounts (those of its shards, and what its bus reports)
differs from that of the group by more than 15 % and 16 MiB, or if the accounts do not return afterwards.

Counts and bytes are checked, not times. `--share` reduces the numbers of clients.
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
    """Return the template of the configuration of an attack's gateway."""
    sections = "".join(f"\n[{name}]\n{text}\n" for name, text in attack.settings.items())
    return _CONFIG.format(sections=sections)


def run(name: str, attack: Attack, seconds: float, share: float) -> dict[str, bool]:
    """Run one attack and print its row; return its checks, and whether each passed."""
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(memory_group(GROUP_BYTES))
        count_sockets(group)
        gateway = GatewayProcess(prefix=group.prefix, config=config_of(attack))
        stack.callback(gateway.stop)
        scale = Scale(gateway, group)
        with Crowd(gateway.port) as crowd:  # so that the first connections of all are not measured
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
    """Whether little of the accounts' peak is left, apart from the pool; tables stay too."""
    return left.booked - left.pool <= max(SLACK_BYTES, OFF_BY * peak.booked)


def await_return(scale: Scale, before: Weight, peak: Weight, seconds: float) -> Weight:
    """Wait at most so long until the accounts have returned; return what is left then."""
    until_s = time.monotonic() + seconds
    while True:
        left = scale.read().since(before)
        if has_returned(left, peak) or time.monotonic() > until_s:
            return left


def print_row(name: str, attack: Attack, peak: Weight, left: Weight, group: MemoryGroup) -> None:
    """Print one line of the table."""
    sizes = (peak.accounts, peak.bus, peak.processes, peak.kernel, left.booked - left.pool, left.used)
    ratio = f"{peak.booked / peak.used:.2f}" if peak.used > 0 else "-"
    cells = "".join(f"{size / (1 << 20):>11.1f}" for size in sizes)
    print(f"{name:<5}{cells}{ratio:>8}{group.killed():>7}  {attack.text}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen attacks and print; return 1 if a check failed."""
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
