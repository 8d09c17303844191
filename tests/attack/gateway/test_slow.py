"""Let one client in a hundred read a kilobyte a second: it is closed, and no other client waits (R16)."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
import redis

from tests.support.attack_rig import besieged, configured_gateway, fresh_counters, make_token
from tests.support.gateway import Gateway, wait_until
from tests.support.raw_client import LIMIT_S, RawClient

pytestmark = pytest.mark.slow

CLIENTS: Final = 200
SLOW: Final = 2
PAYLOAD: Final = b'"' + b"x" * 4_000 + b'"'
PUBLICATIONS: Final = 400
SLICE: Final = 1_000
CUT: Final = [
    f'wsgate_closes_total{{reason="{name}"}}' for name in ("slow_consumer", "outbox_age", "write_stall")
]


class Slow(threading.Thread):
    """Read a kilobyte a second from a client until the test ends."""

    def __init__(self, client: RawClient) -> None:
        super().__init__(daemon=True)
        self.client = client
        self.is_over = threading.Event()

    def run(self) -> None:
        """Read until `is_over` is set or the connection ends."""
        while not self.is_over.wait(1.0):
            try:
                if not self.client.sock.recv(SLICE):
                    return
            except OSError:
                return


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = '[limits]\noutbox_age = "2s"\nwrite_timeout = "3s"\noutbox_frames = 4096\n'
    with configured_gateway(Path(tmp_path_factory.mktemp("slow")), settings) as running:
        yield running


def test_r16_slow_readers_are_closed_and_198_others_receive_all_publications_in_order(
    gateway: Gateway,
) -> None:
    before = fresh_counters(gateway)
    with besieged(gateway) as control, ExitStack() as held:
        readers = []
        for number in range(CLIENTS):
            is_slow = number < SLOW
            client = RawClient.welcomed(
                gateway, make_token(f"reader-{number}"), receive_buffer_bytes=4_096 if is_slow else 0
            )
            held.enter_context(client)
            client.say(op="sub", ch="open:all", id=1)
            client.hear_answer(1)
            if is_slow:
                slow = Slow(client)
                slow.start()
                held.callback(slow.is_over.set)
            else:
                readers.append(client)
        with redis.Redis.from_url(gateway.bus_url) as bus:
            for number in range(PUBLICATIONS):
                bus.publish("wsgate:ch:open:all", b'{"n":%d,"x":%b}' % (number, PAYLOAD))
                if number % 40 == 0:
                    control.is_answered()
                for client in readers:  # read at once, so that these clients are not slow too
                    assert client.hear()["data"]["n"] == number
                time.sleep(0.005)

        def cut() -> float:
            numbers = fresh_counters(gateway)
            return sum(numbers[name] - before[name] for name in CUT)

        wait_until("the slow readers are closed", lambda: cut() == SLOW, LIMIT_S)
        control.is_answered()
        for client in readers:
            client.say(op="ping", id=2)
            assert client.hear_answer(2) == {"op": "pong", "id": 2}
