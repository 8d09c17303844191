"""A burst of publications to many readers: who gets all of it, who is told a loss, what memory it takes.

    python -m loadtest.publication_burst [--readers 2000] [--lazy 0] [--publications 10000] [--size 50]
        [--small]

One shard on a server of its own with default limits, one channel, one pipeline; one thread reads for all
readers, and those that are lazy do not read. `--small`: outboxes of 8 frames and 64 KiB. Fails when a reader
lost something and was not told, when one ended that was not lazy although the burst fits the backlog, or when
the bus was cut.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from redis import Redis

from tests.support.burst import Reader, Readers, join, memory_bytes, publication, publish
from tests.support.gateway import Gateway
from tests.support.siege import configured_gateway
from tests.support.valkey import running_valkey

__all__ = ["main"]

BACKLOG_BYTES: Final = 32 << 20
OVERHEAD_BYTES: Final = 40
"""Of a record in the backlog, with the name of the channel."""
SMALL: Final = '[limits]\noutbox_frames = 8\noutbox_bytes = "64KiB"\n'
LIMIT_S: Final = 600.0


def _faults(readers: list[Reader], count: int, gateway: Gateway, *, fits: bool) -> list[str]:
    found = []
    if untold := sum(reader.holes > 0 for reader in readers):
        found.append(f"{untold} readers lost something and were not told")
    if fits and (short := sum(reader.got < count for reader in readers)):
        found.append(f"{short} readers did not get everything")
    if gateway.metric("wsgate_bus_failures_total"):
        found.append("the bus was cut")
    return found


def _run(arguments: argparse.Namespace, directory: Path) -> list[str]:
    count, size = arguments.publications, arguments.size
    settings = SMALL if arguments.small else ""
    with contextlib.ExitStack() as held:
        valkey = held.enter_context(running_valkey())
        text = f'[bus]\nurl = "{valkey.url}"\n{settings}'
        gateway = held.enter_context(configured_gateway(directory, text))
        clients = [held.enter_context(join(gateway, "open:burst")) for _ in range(arguments.readers)]
        for _ in range(arguments.lazy):
            held.enter_context(join(gateway, "open:burst", receive_buffer_bytes=4_096))
        shard = gateway.pid_of("wsgate-shard-0")
        before, began_s = memory_bytes(shard, "VmRSS"), time.monotonic()
        with Readers(clients) as reading, Redis.from_url(valkey.url) as bus:
            publish(bus, "open:burst", (publication(number, size) for number in range(count)))
            published_s = time.monotonic() - began_s
            reading.wait(count - 1, LIMIT_S)
            took_s = time.monotonic() - began_s
            readers = reading.readers
        whole = sum(reader.got == count for reader in readers)
        told = sum(reader.gaps > 0 or reader.code != 0 for reader in readers)
        grown = memory_bytes(shard, "VmHWM") - before
        print(f"published in {published_s:.1f} s, read in {took_s:.1f} s")
        print(f"{whole} of {len(readers)} readers got all of it, {told} were told a loss")
        print(f"the shard grew by {grown / (1 << 20):.1f} MiB at most")
        fits = count * (size + OVERHEAD_BYTES) < BACKLOG_BYTES
        return _faults(readers, count, gateway, fits=fits)


def main() -> int:
    """Run one burst; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--readers", type=int, default=2_000)
    parser.add_argument("--lazy", type=int, default=0, help="subscribers more that do not read")
    parser.add_argument("--publications", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=50, help="bytes of one publication, at least 9")
    parser.add_argument("--small", action="store_true", help="outboxes of 8 frames and 64 KiB")
    with tempfile.TemporaryDirectory() as directory:
        faults = _run(parser.parse_args(), Path(directory))
    print("\n".join(faults) or "passed")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
