"""Check that memory that a client causes in the gateway or its bus is accounted, limited and returned.

The memory is that of channel names on the private bus, commands that the bus does not answer, permission
sets, the cache of tokens, and closed peers in the kernel.
"""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from tests.support.attack_rig import configured_gateway, fresh_counters, make_token, scrape
from tests.support.gateway import Gateway, running_gateway, wait_until
from tests.support.raw_client import LIMIT_S, RawClient, bearer, request

pytestmark = pytest.mark.slow

MIB: Final = 1 << 20
BUDGET: Final = 128 * MIB  # 16 for the bus, 4 of them for names
STREAM: Final = "wsgate:events:0"
KEPT: Final = 2_000
CROWD: Final = 320
NAMES: Final = 127
PATIENT_S: Final = 12 * LIMIT_S
RESTLESS: Final = 8
READER: Final = 'wsgate_bus_received_bytes{shard="0"}'
PENDING: Final = 'wsgate_subscriptions_pending{shard="0"}'


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    environ = {
        "WSGATE_EVENTS__ENABLED": "message",
        "WSGATE_ADMISSION__MEMORY_BUDGET": f"{BUDGET}B",
        "WSGATE_BUS__COMMAND_TIMEOUT": "5m",
        "WSGATE_HEARTBEAT__PING_INTERVAL": "10m",  # these clients do not always answer pings
    }
    with running_gateway(environ=environ) as running:
        yield running


def enter(gateway: Gateway, stack: ExitStack) -> RawClient:
    client = stack.enter_context(RawClient(gateway))
    assert client.ask(request()).status == 101
    assert client.hear()["op"] == "welcome"
    return client


def refused(counters: dict[str, float], cause: str) -> float:
    return counters[f'wsgate_subscriptions_refused_total{{cause="{cause}"}}']


def ask_for_names(client: RawClient, place: int, outcomes: Counter[Any], said: dict[Any, Any]) -> None:
    """Subscribe to as many long names as a connection may, and count the answers."""
    for number in range(NAMES):
        client.say(op="sub", ch=f"{place}-{number}-".ljust(200, "x"), id=number)
    for _ in range(NAMES):
        answer = client.hear()  # refusals come before the confirmations, which wait for the bus
        outcome = answer.get("error", "ok")
        outcomes[outcome] += 1
        said[outcome] = answer


def test_channel_names_over_the_bus_memory_are_unavailable_and_push_out_no_accepted_message(
    gateway: Gateway,
) -> None:
    """Messages that are stored for a backend stay, however many names clients subscribe to."""
    before = fresh_counters(gateway)
    with redis.Redis.from_url(gateway.bus_url) as bus, ExitStack() as stack:
        sender = enter(gateway, stack)
        for number in range(KEPT):
            sender.say(op="send", data=f"{number} " + "m" * 200, id=number)
            assert sender.hear_answer(number)["op"] == "ok"
        outcomes: Counter[str] = Counter()
        said: dict[str, dict[str, Any]] = {}
        for place in range(CROWD):
            ask_for_names(enter(gateway, stack), place, outcomes, said)
        assert set(outcomes) == {"ok", "unavailable"}
        assert outcomes["ok"] > 5_000 and said["unavailable"]["retry_ms"] > 0
        counters = fresh_counters(gateway)
        assert refused(counters, "bus_memory") - refused(before, "bus_memory") == outcomes["unavailable"]
        for number in range(KEPT, KEPT + 100):
            sender.say(op="send", data=f"{number}", id=number)
            assert sender.hear_answer(number)["op"] == "ok", "no room was left for messages"
        assert bus.info("memory")["used_memory"] < BUDGET // 8
        assert bus.xlen(STREAM) == KEPT + 100
        # A new connection still has room for its inbox.
        late = enter(gateway, stack)
        late.say(op="sub", ch="shared", id=1)
        assert late.hear_answer(1)["error"] == "unavailable"
    names = 'wsgate_bus_names_bytes{shard="0"}'
    wait_until(
        "the account falls after the clients have left", lambda: scrape(gateway)[names] < MIB // 4, PATIENT_S
    )
    with ExitStack() as stack:
        client = enter(gateway, stack)
        client.say(op="sub", ch="shared", id=1)
        assert client.hear_answer(1)["op"] == "subbed"


def without_reader(gateway: Gateway) -> float:
    """Return the memory outside the reactor, without the buffer of the bus reader, which may stay."""
    numbers = scrape(gateway)
    return numbers['wsgate_memory_bytes{kind="outside",shard="0"}'] - numbers[READER]


def test_subscribing_and_leaving_while_the_bus_is_stopped_is_rate_limited_and_accounted(
    gateway: Gateway,
) -> None:
    """The memory is bounded for each connection and is returned when the bus answers."""
    outside = 'wsgate_memory_bytes{kind="outside",shard="0"}'
    bus = gateway.pid_of("wsgate-bus")
    outcomes: Counter[str] = Counter()
    with ExitStack() as stack:
        clients = [enter(gateway, stack) for _ in range(RESTLESS)]
        good = [enter(gateway, stack) for _ in range(3)]
        wait_until("the bus has answered", lambda: scrape(gateway)[PENDING] == 0, PATIENT_S)
        before = fresh_counters(gateway)
        os.kill(bus, signal.SIGSTOP)
        try:
            for turn in range(160):
                for place, client in enumerate(clients):
                    client.say(op="sub", ch=f"{place}-{turn}".ljust(200, "y"), id=1)
                    client.say(op="ping", id=3)
                    answer = client.hear()
                    if answer["op"] == "pong":  # the name was sent to the bus: unsubscribe it
                        client.say(op="unsub", ch=f"{place}-{turn}".ljust(200, "y"), id=2)
                        answer = client.hear_answer(1)
                        client.hear_answer(2)
                    else:
                        client.hear_answer(3)
                    outcomes[answer.get("error", "ok")] += 1
                    assert "error" not in answer or answer["retry_ms"] > 0
                for client in good:
                    client.say(op="ping", id=4)
                    assert client.hear() == {"op": "pong", "id": 4}
            held = fresh_counters(gateway)
        finally:
            os.kill(bus, signal.SIGCONT)
        assert set(outcomes) == {"ok", "rate_limited"}
        # The limit of subscriptions, and a few names that were left before they were sent to the bus.
        assert RESTLESS * 128 <= outcomes["ok"] < RESTLESS * 140
        assert refused(held, "behind") - refused(before, "behind") == outcomes["rate_limited"]
        # 1,024 names and as many commands to leave them; refused names are not part of the account.
        assert RESTLESS * 128 * 200 < held[outside] - before[outside] < RESTLESS * MIB // 2
        wait_until("the bus has answered", lambda: scrape(gateway)[PENDING] == 0, PATIENT_S)
        most = before[outside] - before[READER] + 25_000  # a liveness probe may be waiting for its reply
        wait_until("the account has returned", lambda: without_reader(gateway) <= most, PATIENT_S)
        names = 'wsgate_bus_names_bytes{shard="0"}'
        wait_until("no name is left", lambda: scrape(gateway)[names] <= before[names], PATIENT_S)
        clients[0].say(op="sub", ch="again", id=3)
        assert clients[0].hear_answer(3)["op"] == "subbed"


# --- permission sets and tokens -----------------------------------------------------------------------

SETS: Final = 'wsgate_permission_sets_bytes{shard="0"}'
CACHED: Final = 'wsgate_token_cache_entries{shard="0"}'


def rich_token(user: str) -> str:
    """Return a token of about 5 KB with 256 patterns that no other token has."""
    patterns = [f"{user}:{number}:*" for number in range(256)]
    return make_token(user, subscribe=patterns[:128], publish=patterns[128:])


def visit(gateway: Gateway, stack: ExitStack, user: str) -> int:
    client = stack.enter_context(RawClient(gateway))
    return client.ask(request(headers=[bearer(rich_token(user))])).status


def test_permission_sets_are_accounted_only_while_their_connections_are_open(tmp_path: Path) -> None:
    with configured_gateway(tmp_path, "[auth]\ntoken_cache = 0\n") as gateway:
        outside = 'wsgate_memory_bytes{kind="outside",shard="0"}'
        # The account is not zero while a command to the bus waits for its reply.
        assert fresh_counters(gateway)[outside] < 25_000
        with ExitStack() as stack:
            for number in range(500):
                assert visit(gateway, stack, f"u{number}") == 101
            held = fresh_counters(gateway)
            assert 500 * 25_000 < held[SETS] < 500 * 60_000
            assert held[outside] >= held[SETS]
        wait_until("the account of permission sets is empty", lambda: scrape(gateway)[SETS] == 0, PATIENT_S)


def test_token_cache_stays_within_its_part_so_that_1500_visitors_are_admitted(tmp_path: Path) -> None:
    """An unlimited cache of their tokens would need more than the whole budget of the shard."""
    with configured_gateway(tmp_path, f'[admission]\nmemory_budget = "{BUDGET}B"\n') as gateway:
        before = fresh_counters(gateway)
        for number in range(1_500):
            with ExitStack() as stack:
                assert visit(gateway, stack, f"v{number}") == 101, number
        after = fresh_counters(gateway)
        refusals = 'wsgate_refusals_total{reason="refused_memory"}'
        assert after[refusals] == before[refusals]
        assert 0 < after[CACHED] < 1_500
        assert after[SETS] <= (BUDGET - 96 * MIB) // 8, "the cache exceeds its part of the budget"


# --- the kernel's memory of peers that were closed -----------------------------------------------------


def unsent_sockets(port: int) -> int:
    """Count the sockets of this port for which the kernel has bytes that their peers have not taken."""
    found = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        is_ours = int(fields[1].split(":")[1], 16) == port
        found += is_ours and int(fields[4].split(":")[0], 16) > 1
    return found


def test_kernel_memory_of_1500_closed_peers_that_read_nothing_is_freed(tmp_path: Path) -> None:
    """Peers with tiny windows are sent 14 KB, break the protocol and stay.

    They are more than may linger.
    """
    settings = '[limits]\nwrite_timeout = "10m"\n[heartbeat]\nping_interval = "10m"\n'
    with configured_gateway(tmp_path, settings) as gateway, ExitStack() as stack:
        held = 'wsgate_connections_held{shard="0"}'
        before = fresh_counters(gateway)
        deaf = []
        with redis.Redis.from_url(gateway.bus_url) as bus:
            for number in range(1_500):
                client = stack.enter_context(RawClient(gateway, receive_buffer_bytes=1_024))
                status = client.ask(request(headers=[bearer(make_token(f"d{number}"))])).status
                assert status == 101
                deaf.append(client)
            wait_until(
                "all have their inboxes",
                lambda: scrape(gateway)[PENDING] == 0,
                PATIENT_S,
            )
            for number in range(1_500):
                bus.publish(f"wsgate:ch:@d{number}", b"x" * 14_000)
        wait_until("the publications were sent", lambda: unsent_sockets(gateway.port) > 1_000, PATIENT_S)
        for client in deaf:
            with suppress(OSError):
                client.sock.sendall(b"\xff\x80\x00\x00\x00\x00")
        wait_until("all are closed", lambda: scrape(gateway)[held] == before[held], PATIENT_S)
        # The TCP user timeout of the listener is longer than this wait.
        wait_until("the kernel has no unsent bytes", lambda: unsent_sockets(gateway.port) == 0, PATIENT_S)
        orphans = 'wsgate_memory_bytes{kind="kernel_orphans",shard="0"}'
        wait_until("the account is empty", lambda: scrape(gateway)[orphans] == 0, PATIENT_S)
