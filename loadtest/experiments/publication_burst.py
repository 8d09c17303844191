"""Publish a burst to many readers: do all receive it or a notice of loss, and how much memory does it take?

    python -m loadtest publication_burst [--readers 2000] [--lazy 0] [--publications 10000] [--size 50]
        [--small] [--revoke] [--server valkey]
    python -m loadtest publication_burst --large [--server redis]

One shard on its own server with default limits, one channel, one pipeline. One thread reads for all readers;
lazy ones do not read. `--small`: outboxes of 8 frames and 64 KiB. `--revoke`: in the middle of the pipeline
the tokens of one more client are revoked. `--server redis`: Debian's Redis instead of Valkey. `--large` means
60,000 publications of 1,000 bytes to 50 readers with `--revoke`, which is more than the backlog holds.

Fails if a reader lost something without a notice, if a reader that is not lazy ended although the burst fits
the backlog, if the bus was cut, if the revoked client was not closed within 1 s after the server published
the revocation, or if the shard grew by more than its backlog and 16 MiB in a large burst.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from redis import Redis

from loadtest.harness.verdict import print_verdict
from tests.support.attack_rig import configured_gateway, make_token
from tests.support.burst import Reader, Readers, join, memory_bytes, publication
from tests.support.gateway import Gateway
from tests.support.raw_client import RawClient
from tests.support.server_choice import SERVERS, choose_server, server_version
from tests.support.valkey import running_valkey

__all__ = ["Burst", "judge", "main"]

BACKLOG_BYTES: Final = 32 << 20
GROWTH_BYTES: Final = BACKLOG_BYTES + (16 << 20)
OVERHEAD_BYTES: Final = 40
"""Bytes of a record in the backlog, with the name of the channel."""
SMALL: Final = '[limits]\noutbox_frames = 8\noutbox_bytes = "64KiB"\n'
LIMIT_S: Final = 600.0
LATE_S: Final = 30.0
"""How long the notice of a loss may take soon after another notice, because the gateway merges them."""
REVOKED_S: Final = 1.0
REVOKED: Final = 4001
CHANNEL: Final = "open:burst"
LARGE: Final = {"readers": 50, "publications": 60_000, "size": 1_000, "revoke": True}
_REVOCATION: Final = '{"op":"revoke","user":"victim","before":4000000000}'
_FRESH_S: Final = 1.3  # a shard writes its statistics once a second
_PROGRESS_S: Final = 2.0
_STEP_S: Final = 0.05


class Burst(NamedTuple):
    """The result of one burst.

    Attributes:
        whole: Readers that received all of it.
        untold: Readers that lost something and had no notice of it.
        short: Readers that did not receive all of it and had neither a gap nor a Close.
        cuts: How often the connection to the bus was lost.
        revoked_s: The time from the revocation until the revoked client was closed for it; None: none was
            revoked.
        grown_bytes: The largest growth of the shard.
    """

    readers: int
    whole: int
    untold: int
    short: int
    cuts: int
    revoked_s: float | None
    grown_bytes: int


def judge(found: Burst, *, fits: bool, is_large: bool) -> dict[str, bool]:
    """Return the checks of one burst, and whether each passed."""
    checks = {
        f"every reader with a loss had a notice ({found.untold} not)": not found.untold,
        f"every reader is complete or had a notice ({found.short} not)": not found.short,
        f"the bus was not cut ({found.cuts} times)": not found.cuts,
    }
    if fits:
        checks["every reader received all of it, because the burst fits the backlog"] = (
            found.whole == found.readers
        )
    if found.revoked_s is not None:
        checks[f"the revocation acted within {REVOKED_S:.0f} s"] = found.revoked_s <= REVOKED_S
    if is_large:
        checks["the shard grew by its backlog and 16 MiB at most"] = found.grown_bytes <= GROWTH_BYTES
    return checks


class Victim(threading.Thread):
    """A client whose tokens are revoked; it records when it was closed.

    Attributes:
        closed_s: The wall time at which the Close or the end arrived.
        code: The code of the Close.
    """

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(daemon=True)
        self.closed_s = 0.0
        self.code = 0
        self._client = RawClient.welcomed(gateway, make_token("victim"), limit_s=LIMIT_S)

    def run(self) -> None:
        """Read until the connection ends."""
        with self._client:
            self.code = self._client.ending().code
            self.closed_s = time.time()

    def since(self, revoked_s: float) -> float:
        """Return how long after this wall time it was closed for the revocation; infinite if it was not."""
        self.join(LATE_S)
        return self.closed_s - revoked_s if self.code == REVOKED else float("inf")


def _pour(bus: Redis, count: int, size: int, *, revokes: bool) -> float:
    """Publish everything in one pipeline; return the server's time when it published the revocation."""
    pipeline = bus.pipeline(transaction=False)
    place = 0
    for number in range(count):
        if revokes and number == count // 2:
            pipeline.publish("wsgate:ctl", _REVOCATION)
            pipeline.time()
            place = number + 1
        pipeline.publish(f"wsgate:ch:{CHANNEL}", publication(number, size))
    answers = pipeline.execute()
    if not revokes:
        return 0.0
    seconds, microseconds = answers[place]
    return float(seconds) + float(microseconds) / 1e6


def _wait(readers: Sequence[Reader], last: int) -> None:
    """Wait until each reader has read the last publication or ended, and has the notices of its losses."""
    began_s = shown_s = time.monotonic()
    is_read_s = 0.0
    while (now_s := time.monotonic()) < began_s + LIMIT_S:
        waiting = sum(not (reader.next > last or reader.is_ended) for reader in readers)
        if not waiting:
            is_read_s = is_read_s or now_s
            if not any(reader.untold for reader in readers) or now_s > is_read_s + LATE_S:
                return
        if now_s > shown_s + _PROGRESS_S:
            shown_s = now_s
            print(f"    after {now_s - began_s:.0f} s {waiting} of {len(readers)} still read", flush=True)
        time.sleep(_STEP_S)


def _join(gateway: Gateway, held: contextlib.ExitStack, count: int, **options: int) -> list[RawClient]:
    clients: list[RawClient] = []
    shown_s = time.monotonic()
    for _ in range(count):
        clients.append(held.enter_context(join(gateway, CHANNEL, **options)))
        if time.monotonic() > shown_s + _PROGRESS_S:
            shown_s = time.monotonic()
            print(f"    {len(clients)} of {count} are subscribed", flush=True)
    return clients


def _run(arguments: argparse.Namespace, directory: Path) -> Burst:
    count, size = arguments.publications, arguments.size
    settings = SMALL if arguments.small else ""
    with contextlib.ExitStack() as held:
        valkey = held.enter_context(running_valkey())
        text = f'[bus]\nurl = "{valkey.url}"\n{settings}'
        gateway = held.enter_context(configured_gateway(directory, text))
        clients = _join(gateway, held, arguments.readers)
        _join(gateway, held, arguments.lazy, receive_buffer_bytes=4_096)
        victim = Victim(gateway) if arguments.revoke else None
        if victim is not None:
            victim.start()
        shard = gateway.pid_of("wsgate-shard-0")
        before, began_s = memory_bytes(shard, "VmRSS"), time.monotonic()
        with Readers(clients) as reading, Redis.from_url(valkey.url) as bus:
            revoked_at_s = _pour(bus, count, size, revokes=victim is not None)
            published_s = time.monotonic() - began_s
            _wait(reading.readers, count - 1)
            took_s = time.monotonic() - began_s
            readers = reading.readers
        print(f"    published in {published_s:.1f} s, read in {took_s:.1f} s", flush=True)
        time.sleep(_FRESH_S)
        return Burst(
            readers=len(readers),
            whole=sum(reader.got == count for reader in readers),
            untold=sum(reader.untold > 0 for reader in readers),
            short=sum(reader.got < count and not reader.gaps and not reader.code for reader in readers),
            cuts=int(gateway.metric("wsgate_bus_failures_total")),
            revoked_s=None if victim is None else victim.since(revoked_at_s),
            grown_bytes=memory_bytes(shard, "VmHWM") - before,
        )


def main(arguments: list[str] | None = None) -> int:
    """Run one burst; return 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--readers", type=int, default=2_000)
    parser.add_argument("--lazy", type=int, default=0, help="further subscribers that do not read")
    parser.add_argument("--publications", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=50, help="bytes of one publication, at least 9")
    parser.add_argument("--small", action="store_true", help="outboxes of 8 frames and 64 KiB")
    parser.add_argument("--revoke", action="store_true", help="revoke one client's tokens in the middle")
    parser.add_argument("--large", action="store_true", help="60,000 x 1,000 B to 50 readers, with --revoke")
    parser.add_argument("--server", choices=SERVERS, default="valkey")
    options = parser.parse_args(arguments)
    if options.large:
        parser.set_defaults(**LARGE)
        options = parser.parse_args(arguments)
    choose_server(options.server)
    print(f"{options.publications} publications of {options.size} B to {options.readers} readers")
    print(f"    {server_version()}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        found = _run(options, Path(directory))
    print(f"    {found.whole} of {found.readers} readers got all of it")
    if found.revoked_s is not None:
        print(f"    the revoked client was closed after {found.revoked_s:.2f} s")
    print(f"    the shard grew by {found.grown_bytes / (1 << 20):.1f} MiB at most")
    fits = options.publications * (options.size + OVERHEAD_BYTES) < BACKLOG_BYTES
    return print_verdict(judge(found, fits=fits, is_large=options.large))


if __name__ == "__main__":
    sys.exit(main())
