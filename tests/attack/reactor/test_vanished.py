"""R15: the heartbeat closes the connections of a host that vanished without a FIN, and they leave nothing."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.attack_rig import fresh_counters, shard_pid
from tests.support.gateway import ROOT, Gateway, running_gateway, wait_until
from tests.support.namespace import FarHost, NamespaceError, far_host

pytestmark = pytest.mark.slow

PEERS: Final = 5_000
HELD: Final = 'wsgate_connections_held{shard="0"}'
GIVEN_UP: Final = 'wsgate_closes_total{reason="heartbeat_timeout"}'
WITHIN_S: Final = 30.0  # two heartbeats and a tick are 4.25 s; the timeout of the kernel is 54 s


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    environ = {
        "WSGATE_HEARTBEAT__PING_INTERVAL": "2s",
        "WSGATE_HEARTBEAT__PONG_TIMEOUT": "2s",
    }
    with running_gateway("--host", "0.0.0.0", environ=environ) as running:
        yield running


@pytest.fixture
def host() -> Iterator[FarHost]:
    try:
        with far_host() as far:
            yield far
    except NamespaceError as error:
        pytest.skip(str(error))


def test_r15_heartbeat_closes_5000_connections_of_a_host_that_vanished(
    gateway: Gateway, host: FarHost
) -> None:
    before = fresh_counters(gateway)
    descriptors = Path(f"/proc/{shard_pid(gateway)}/fd")
    opened = len(list(descriptors.iterdir()))
    script = str(ROOT / "tests" / "support" / "resting_clients.py")
    with host.start([sys.executable, script, host.ours, str(gateway.port), str(PEERS)]) as clients:
        try:
            assert clients.stdout is not None
            assert clients.stdout.readline() == "open\n"
            during = fresh_counters(gateway)
            assert during[HELD] - before[HELD] == PEERS
            host.vanish()
            wait_until(
                "all connections are closed", lambda: fresh_counters(gateway)[HELD] == before[HELD], WITHIN_S
            )
        finally:
            clients.kill()
    after = fresh_counters(gateway)
    assert after[GIVEN_UP] - during[GIVEN_UP] == PEERS
    wait_until("their descriptors are closed", lambda: len(list(descriptors.iterdir())) <= opened, WITHIN_S)
