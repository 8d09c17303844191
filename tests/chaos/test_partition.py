"""Put a gateway and its bus on two hosts, and let the cable between them fail: R12, R13.

The bus is in a network namespace. The backend reaches it through its Unix socket all the time, so its
publications during a partition really are on the bus. `PARTITION_S="30 120"` adds longer silences.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from tests.support.client import Client, connected
from tests.support.gateway import Gateway, running_gateway, wait_until
from tests.support.namespace import FarHost, NamespaceError, far_host
from wsgate.node.embedded_bus import find_server

pytestmark = pytest.mark.slow

PORT = 6_379
WITHIN_S = 30.0
# The interval of the probe, the timeout of its reply, and time for a busy machine.
DETECTED_WITHIN_S = 1.0 + 1.0 + 4.0
ENVIRON = {
    "WSGATE_BUS__CONNECT_TIMEOUT": "1s",
    "WSGATE_BUS__COMMAND_TIMEOUT": "1s",
    "WSGATE_HEALTH__CANARY_INTERVAL": "1s",
}
SILENCES_S = [5.0, *map(float, os.environ.get("PARTITION_S", "").split())]
CHANNELS = [*(f"own:{number}" for number in range(8)), "room"]


@dataclass(frozen=True, slots=True)
class Stage:
    """The far host, the gateway, and a client of the bus for the backend."""

    far: FarHost
    gateway: Gateway
    backend: redis.Redis


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    try:
        with far_host() as far, _bus(far) as backend:
            arguments = ("--redis", f"redis://{far.theirs}:{PORT}", "--shards", "2")
            with running_gateway(*arguments, environ=ENVIRON) as gateway:
                yield Stage(far, gateway, backend)
    except NamespaceError as error:
        pytest.skip(f"no network namespace here: {error}")


@contextmanager
def _bus(far: FarHost) -> Iterator[redis.Redis]:
    with tempfile.TemporaryDirectory(prefix="wsgate-far-") as directory:
        path = Path(directory) / "bus.sock"
        settings = {"bind": far.theirs, "port": str(PORT), "unixsocket": str(path), "dir": directory}
        settings |= {"save": "", "appendonly": "no", "protected-mode": "no"}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        process = far.start([find_server(os.environ), *arguments])
        try:
            wait_until("the bus listens", path.exists)
            with redis.Redis(unix_socket_path=str(path)) as backend:
                yield backend
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def clients(stage: Stage) -> Iterator[list[Client]]:
    """Subscribe each client to a channel of its own and to one shared channel."""
    stage.gateway.await_ready()
    with connected(stage.gateway.ws_url, len(CHANNELS) - 1) as there:
        for client, name in zip(there, CHANNELS, strict=False):
            client.subscribe(name)
            client.subscribe(CHANNELS[-1])
        yield there


def _publish_to_all(stage: Stage, numbers: Sequence[int]) -> None:
    for number in numbers:
        for name in CHANNELS:
            stage.backend.publish(f"wsgate:ch:{name}", str(number))


def _is_away(stage: Stage) -> bool:
    return any("bus_down" in why or "probe_late" in why for why in stage.gateway.why_not_ready())


def _is_recovered(stage: Stage) -> bool:
    gateway = stage.gateway
    return gateway.metric("wsgate_bus_up") == 2 and gateway.metric("wsgate_subscriptions_pending") == 0


def _read(client: Client, last: int) -> tuple[dict[str, list[int]], list[tuple[object, ...]]]:
    """Read until `last` arrived on both channels; return publications by channel, and answers."""
    heard: dict[str, list[int]] = {}
    told: list[tuple[object, ...]] = []
    while sum(numbers[-1] == last for numbers in heard.values()) < 2:
        said = client.receive()
        if said["op"] == "msg":
            heard.setdefault(said["ch"], []).append(said["data"])
        elif said["op"] != "gap":
            told.append((said["op"], said["id"], said.get("code")))
    return heard, told


def _check_partition(
    stage: Stage, clients: list[Client], duration_s: float, impair: Callable[[], None]
) -> None:
    """Impair the network, check that clients are answered, heal it, and check that all is delivered once."""
    failures = stage.gateway.metric("wsgate_bus_failures_total")  # before this test causes any
    impair()
    ends_s = time.monotonic() + duration_s
    _publish_to_all(stage, range(100, 110))
    wait_until("noticed", lambda: _is_away(stage), DETECTED_WITHIN_S)
    clients[0].send("pub", id=7, ch="nobody", data=7)
    for client in clients:
        client.send("ping", id=9)
    _publish_to_all(stage, range(110, 120))
    time.sleep(max(0.0, ends_s - time.monotonic()))
    stage.far.heal()
    stage.gateway.await_ready()
    wait_until("subscribed again", lambda: _is_recovered(stage), WITHIN_S)
    _publish_to_all(stage, [1_000])
    is_lossless = True
    for client in clients:
        heard, told = _read(client, 1_000)
        assert set(told) == {("pong", 9, None)} | ({("err", 7, 503)} if client is clients[0] else set())
        for numbers in heard.values():  # D6: at most once, in order
            assert numbers == sorted(set(numbers))
            is_lossless = is_lossless and numbers == [*range(100, 120), 1_000]
    # TCP repairs a silence that is shorter than the timeout of the subscriber. A loss must be counted.
    if not is_lossless:
        wait_until(
            "counted", lambda: stage.gateway.metric("wsgate_bus_failures_total") > failures, DETECTED_WITHIN_S
        )
    assert not stage.gateway.metric("wsgate_restarts_total")


@pytest.mark.parametrize("silence_s", SILENCES_S)
def test_silent_partition_from_the_bus_is_noticed_and_closes_no_client_r12(
    stage: Stage, clients: list[Client], silence_s: float
) -> None:
    """No packet arrives, and nothing reports it."""
    _check_partition(stage, clients, silence_s, stage.far.vanish)


def test_bus_behind_a_firewall_that_resets_is_used_again_and_closes_no_client_r13(
    stage: Stage, clients: list[Client]
) -> None:
    rule = f"tcp dport {PORT} reject with tcp reset"
    _check_partition(stage, clients, 3.0, lambda: stage.far.impair(rule, hooks=["input"]))


@pytest.mark.parametrize("hook", ["input", "output"])
def test_network_to_the_bus_that_works_in_one_direction_closes_no_client_r13(
    stage: Stage, clients: list[Client], hook: str
) -> None:
    """Either commands do not arrive, or replies and publications do not."""
    _check_partition(stage, clients, 3.0, lambda: stage.far.impair("drop", hooks=[hook]))


def test_network_that_loses_five_percent_delivers_everything_once_and_in_order_r13(
    stage: Stage, clients: list[Client]
) -> None:
    """TCP repairs the loss, and every command is answered."""
    stage.far.impair("numgen random mod 100 < 5 drop")
    try:
        for number in range(200):
            _publish_to_all(stage, [number])
            clients[0].send("ping", id=number)
        _publish_to_all(stage, [1_000])
        for client in clients:
            heard, told = _read(client, 1_000)
            assert list(heard.values()) == [[*range(200), 1_000]] * 2
            assert told == [("pong", number, None) for number in range(200)] * (client is clients[0])
    finally:
        stage.far.heal()
