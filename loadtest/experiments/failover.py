"""Measure how soon a subscriber receives again after the bus has a new primary.

    python -m loadtest failover [--runs 5]

The servers are real: three sentinels with a primary and two replicas, and a cluster of three primaries with a
replica each. The primary is killed, or a slot moves. From the first moment at which the new owner reports its
role, something is published to it every 10 ms; the time until the first of these publications arrives is
measured. The subscriber's own socket stays open. Fails above two seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import redis
from redis.crc import key_slot

from tests.support.bus_fleet import Cluster, Server, running_cluster, running_sentinels
from tests.support.client import Client, connected
from tests.support.gateway import running_gateway

__all__ = ["main"]

LIMIT_S: Final = 2.0
CHANNEL: Final = "news"
_NAME: Final = f"wsgate:ch:{CHANNEL}"
_STEP_S: Final = 0.01
_PATIENCE_S: Final = 30.0


@contextlib.contextmanager
def _listening(url: str) -> Iterator[Client]:
    with (
        running_gateway(environ={"WSGATE_BUS__URL": url}) as gateway,
        connected(gateway.ws_url, 1) as (client,),
    ):
        client.send(op="sub", ch=CHANNEL, id=1)
        assert client.receive(_PATIENCE_S)["op"] == "subbed"
        yield client


def _silence_s(client: Client, new: Server, command: str) -> float:
    """Publish to the new owner until the client receives a publication; return how long that took."""
    with contextlib.suppress(TimeoutError):
        while True:  # earlier messages do not count
            client.receive(_STEP_S)
    new_s = time.monotonic()
    publish = new.client()
    while time.monotonic() < new_s + _PATIENCE_S:
        with contextlib.suppress(redis.RedisError):
            publish.execute_command(command, _NAME, f'"{new.port}"')
        with contextlib.suppress(TimeoutError):
            if client.receive(_STEP_S).get("data") == str(new.port):
                return time.monotonic() - new_s
    raise RuntimeError("no publication arrived in time")


def _await_primary(candidates: list[Server]) -> Server:
    """Wait for the first of these servers that reports the role of a primary."""
    until_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until_s:
        for server in candidates:
            if server.role() == "master":
                return server
        time.sleep(_STEP_S)
    raise RuntimeError("no server took over as primary")


def sentinel_failover() -> float:
    """Kill the primary, let the sentinels choose another, and return how long nothing arrived."""
    with running_sentinels() as fleet, _listening(fleet.url) as client:
        former = fleet.primary()
        former.kill()
        new = _await_primary([server for server in fleet.servers if server is not former])
        return _silence_s(client, new, "PUBLISH")


def cluster_failover() -> float:
    """Kill the owner of the channel's slot, let a replica take over, and return how long nothing arrived."""
    with running_cluster() as fleet, _listening(fleet.url) as client:
        former = fleet.owner_of(_NAME)
        replicas = [server for server in fleet.living() if server.role() == "slave"]
        former.kill()
        return _silence_s(client, _await_primary(replicas), "SPUBLISH")


def slot_move() -> float:
    """Move the channel's slot to another server, and return how long nothing arrived."""
    with running_cluster() as fleet, _listening(fleet.url) as client:
        return _silence_s(client, _moved(fleet), "SPUBLISH")


def _moved(fleet: Cluster) -> Server:
    owner = fleet.owner_of(_NAME)
    target = next(server for server in fleet.servers[:3] if server is not owner)
    fleet.move(key_slot(_NAME.encode()), target)
    return target


_CASES: Final[dict[str, Callable[[], float]]] = {
    "sentinel failover": sentinel_failover,
    "cluster failover": cluster_failover,
    "slot move": slot_move,
}


def main(arguments: list[str] | None = None) -> int:
    """Measure each case and print; return 1 above the limit."""
    parser: Any = argparse.ArgumentParser(prog="loadtest.experiments.failover")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(arguments)
    longest_s = 0.0
    for name, case in _CASES.items():
        took_s = [case() for _ in range(options.runs)]
        longest_s = max(longest_s, *took_s)
        print(
            f"{name}: received again {statistics.median(took_s) * 1e3:.0f} ms after the new owner reported"
            f" its role (median of {options.runs}; longest {max(took_s) * 1e3:.0f} ms)",
            flush=True,
        )
    return int(longest_s > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
