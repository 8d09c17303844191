"""Stop one of four shards: it misses publications, and no other part of the node notices."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import Any, Final

import pytest
import redis

from tests.support.gateway import Gateway, running_gateway, wait_until
from tests.support.raw_client import LIMIT_S, RawClient, request

pytestmark = pytest.mark.slow

SHARDS: Final = 4
BIG: Final = "x" * 60_000
COUNT: Final = 500
"""Number of publications: 30 MB, more than the 8 MiB that may wait in the bus for one shard."""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    environ = {
        "WSGATE_ADMISSION__MEMORY_BUDGET": f"{256 << 20}B",
        "WSGATE_HEARTBEAT__PING_INTERVAL": "10m",  # these clients do not always answer pings
        "WSGATE_LIMITS__PUBLISH_BYTE_RATE": "0",
        "WSGATE_LIMITS__NODE_PUBLISH_BYTE_RATE": "0",
    }
    with running_gateway("--shards", str(SHARDS), environ=environ) as running:
        yield running


def enter(gateway: Gateway, stack: ExitStack) -> RawClient:
    client = stack.enter_context(RawClient(gateway))
    assert client.ask(request()).status == 101
    assert client.hear()["op"] == "welcome"
    return client


def shard_of(gateway: Gateway, client: RawClient) -> int:
    """Return the shard that has the other end of a client's socket, as the kernel shows it."""
    ports = gateway.port, client.sock.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if tuple(int(fields[place].split(":")[1], 16) for place in (1, 2)) == ports:
            break
    for number in range(SHARDS):
        folder = Path(f"/proc/{gateway.pid_of(f'wsgate-shard-{number}')}/fd")
        for file in folder.iterdir():
            with suppress(FileNotFoundError):
                if os.readlink(file) == f"socket:[{fields[9]}]":
                    return number
    raise AssertionError("no shard has the socket")


def one_of_each(gateway: Gateway, stack: ExitStack) -> list[RawClient]:
    """Return a client on each shard."""
    found: dict[int, RawClient] = {}
    for _ in range(200):
        client = enter(gateway, stack)
        found.setdefault(shard_of(gateway, client), client)
        if len(found) == SHARDS:
            return [found[place] for place in range(SHARDS)]
    raise AssertionError("the kernel never chose one of the shards")


def publications(client: RawClient, count: int) -> list[Any]:
    heard: list[Any] = []
    while len(heard) < count:
        message = client.hear()
        if message["op"] == "msg":
            heard.append(message["data"])
    return heard


def read_until(client: RawClient, last: str, heard: list[str]) -> None:
    """Read until a publication has `last`, or until `bye`; record the operation of every message before."""
    while (said := client.hear()).get("data") != last:
        heard.append(said["op"])
        if said["op"] == "bye":
            return


def test_stopped_shard_delays_no_publisher_and_its_client_receives_all_or_a_gap_afterwards(
    gateway: Gateway,
) -> None:
    with ExitStack() as stack, redis.Redis.from_url(gateway.bus_url) as bus:
        clients = one_of_each(gateway, stack)
        for client in clients:
            client.say(op="sub", ch="room", id=1)
            assert client.hear_answer(1)["op"] == "subbed"
        victim, publisher, *others = clients
        pid = gateway.pid_of("wsgate-shard-0")
        os.kill(pid, signal.SIGSTOP)
        try:
            for number in range(COUNT):
                publisher.say(op="pub", ch="room", data=f"{number} {BIG}", id=number)
                answer = publisher.hear_answer(number)
                assert answer["op"] == "ok", answer
                for other in others:
                    (data,) = publications(other, 1)
                    assert data.startswith(f"{number} ")
            # The output that waits in the bus for the stopped shard stays within the memory of the bus.
            assert bus.info("memory")["used_memory"] < 40 << 20
        finally:
            os.kill(pid, signal.SIGCONT)
        gateway.await_ready()
        heard: list[str] = []
        reader = Thread(target=read_until, args=(victim, "again", heard), daemon=True)
        reader.start()

        def is_heard_again() -> bool:
            publisher.say(op="pub", ch="room", data="again", id=COUNT)
            publisher.hear_answer(COUNT)
            reader.join(0.2)
            return not reader.is_alive()

        wait_until("the client of the shard receives again", is_heard_again, 3 * LIMIT_S)
        # The server may cut the shard, the backlog may drop publications, and the client may be too slow for
        # all that arrives at once. A `gap` or `bye` reports each loss.
        assert heard.count("msg") == COUNT or {"gap", "bye"} & set(heard), heard.count("msg")
