"""Check the limits of users while other clients flood the node with publishes."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from loadtest.experiments.attack_memory.crowd import Crowd, command
from tests.support.attack_rig import configured_gateway, fresh_counters, make_token, scrape
from tests.support.gateway import Gateway, wait_until
from tests.support.raw_client import RawClient, bearer, request

pytestmark = pytest.mark.slow

FLOOD: Final = 250
BURST: Final = 32
PATIENT_S: Final = 240.0
LIMIT: Final = 2
SETTINGS: Final = f"""
[admission]
per_user_connections = {LIMIT}
per_user_policy = "refuse"
[limits]
publish_rate = 0
publish_byte_rate = "0B"
node_publish_byte_rate = "0B"
[heartbeat]
ping_interval = "10m"
"""
PUBLISHED: Final = 'wsgate_publishes_total{outcome="%s"}'
UNCHECKED: Final = 'wsgate_limits_unchecked_total{limit="connections"}'


def flood(crowd: Crowd, is_over: threading.Event) -> None:
    """Publish from every connection as fast as its socket takes it."""
    data = "x" * 2_000
    burst = b"".join(command(op="pub", ch="open:flood", data=data, id=number) for number in range(BURST))
    while not is_over.is_set():
        for client in crowd.clients:
            if not client.unsent:
                client.send(burst)
        crowd.receive()
        for client in crowd.clients:
            client.said.clear()


@contextmanager
def flooded(gateway: Gateway) -> Iterator[None]:
    """Flood the gateway with publishes of 250 clients while the context is open."""
    is_over = threading.Event()
    with Crowd(gateway.port) as crowd:
        crowd.open([make_token(f"flood-{number}") for number in range(FLOOD)])
        assert len(crowd.clients) == FLOOD
        thread = threading.Thread(target=flood, args=(crowd, is_over), daemon=True)
        thread.start()
        try:
            yield
            assert all(client.is_open for client in crowd.clients), "a flooding client was closed"
        finally:
            is_over.set()
            thread.join()


def published(gateway: Gateway) -> float:
    numbers = scrape(gateway)
    return numbers[PUBLISHED % "sent"] + numbers[PUBLISHED % "failed"]


def enter(gateway: Gateway, stack: ExitStack, user: str, count: int) -> Counter[str]:
    """Open this many connections of one user at once; count the first message or reason of each."""
    clients = [stack.enter_context(RawClient(gateway, limit_s=PATIENT_S)) for _ in range(count)]
    for client in clients:
        client.sock.sendall(request(headers=[bearer(make_token(user))]))
    said = []
    for client in clients:
        assert client.answer().status == 101
        said.append(client.hear())
    return Counter(each.get("reason", each["op"]) for each in said)


def test_user_connection_limit_holds_while_250_clients_flood_publishes(
    tmp_path: Path,
) -> None:
    with configured_gateway(tmp_path, SETTINGS) as gateway, ExitStack() as stack, flooded(gateway):
        wait_until("the flood has begun", lambda: published(gateway) > 5_000, PATIENT_S)
        for number in range(8):
            first = enter(gateway, stack, f"user-{number}", 5)
            assert first == {"welcome": LIMIT, "user_connections": 5 - LIMIT}
        before = published(gateway)
        wait_until("the flood goes on", lambda: published(gateway) > before + 5_000, PATIENT_S)
        for number in range(8):
            again = enter(gateway, stack, f"user-{number}", 2)
            assert again == {"user_connections": 2}, "a place of the user became free"
        assert fresh_counters(gateway)[UNCHECKED] == 0
