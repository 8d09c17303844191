"""Fill a whole gateway to its last descriptor and the last byte of its memory budget (A1, R18).

Refusals begin at the configured limits and have an answer with a time to retry. Admitted clients notice
nothing, and the state does not flap when one client leaves and another comes.
"""

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.support.attack_rig import (
    besieged,
    configured_gateway,
    fresh_counters,
    make_token,
    scrape,
    shard_pid,
)
from tests.support.gateway import Gateway, wait_until
from tests.support.raw_client import LIMIT_S, RawClient, request
from tests.support.tcp_rig import raise_descriptors
from wsgate.shard.options import DESCRIPTORS_OF_OURS

pytestmark = pytest.mark.slow

MIB: Final = 1 << 20
DESCRIPTORS: Final = 400
RESERVE: Final = 64
ROOM: Final = DESCRIPTORS - RESERVE - DESCRIPTORS_OF_OURS
BUDGET: Final = 114 * MIB  # 18 for the clients of one shard
SHARE: Final = BUDGET - 96 * MIB
CROWD: Final = 8_000  # more than the budget allows
CONTROL: Final = 3
ALL_LIMITS: Final = """
handshake_rate = 5_000
per_address_connections = 10_000
per_address_rate = 5_000
per_user_connections = 100
per_user_rate = 1_000
[limits]
message_rate = 1_000
byte_rate = "1MiB"
"""
STATE: Final = 'wsgate_admission_state{shard="0"}'
HELD: Final = 'wsgate_connections_held{shard="0"}'
BECAME: Final = 'wsgate_admission_changes_total{state="%s"}'
REFUSED: Final = 'wsgate_refusals_total{reason="%s"}'
EXHAUSTED: Final = 'wsgate_accept_failures_total{cause="exhausted"}'
OPEN, REFUSING = 0, 1


def admit(gateway: Gateway, held: ExitStack, number: int = 0) -> RawClient:
    """Connect one client, which must be welcomed."""
    return held.enter_context(RawClient.welcomed(gateway, make_token(f"user-{number}")))


def is_refused(gateway: Gateway) -> bool:
    """Connect one more client: whether it is refused with a time to retry. An admitted one leaves again."""
    with RawClient(gateway) as late:
        answer = late.ask(request())
        if answer.status == 101:
            return False
        assert answer.status == 503
        assert 1 <= int(answer.headers["retry-after"]) <= 10
        return True


def wait_for_state(gateway: Gateway, state: int) -> None:
    wait_until(f"the state is {state}", lambda: scrape(gateway)[STATE] == state, LIMIT_S)


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Gateway]:
    """Start a gateway with few descriptors and with every limit set."""
    prefix = ["sh", "-c", f'ulimit -n {DESCRIPTORS} && exec "$@"', "sh"]
    settings = f"[admission]\nreserve_descriptors = {RESERVE}\n{ALL_LIMITS}"
    with configured_gateway(tmp_path, settings, prefix=prefix) as gateway:
        yield gateway


def test_a1_clients_beyond_the_last_descriptor_are_refused_and_the_state_does_not_flap(
    narrow: Gateway,
) -> None:
    with besieged(narrow, CONTROL) as control, ExitStack() as held:
        clients = [admit(narrow, held, number % 50) for number in range(ROOM - CONTROL)]
        wait_for_state(narrow, REFUSING)
        assert all(is_refused(narrow) for _ in range(20))
        control.is_answered()
        numbers = fresh_counters(narrow)
        assert numbers[HELD] == ROOM
        # Connections that are being refused use descriptors of the reserve.
        assert sum(numbers[REFUSED % f"refused_{name}"] for name in ("connections", "descriptors")) == 20
        assert numbers[EXHAUSTED] == 0
        # At the limit one client leaves and one comes, and the state does not change.
        for _ in range(10):
            clients.pop().sock.close()
            # A plain scrape could still show the number from before the last newcomer.
            wait_until("the client is gone", lambda: fresh_counters(narrow)[HELD] < ROOM, LIMIT_S)
            clients.append(admit(narrow, held))
        wait_for_state(narrow, REFUSING)
        numbers = fresh_counters(narrow)
        assert [numbers[BECAME % name] for name in ("refusing", "open")] == [1, 0]
        # After more than a sixty-fourth has left, the state becomes open once.
        for client in clients[: ROOM // 64 + 1]:
            client.sock.close()
        wait_for_state(narrow, OPEN)
        assert not is_refused(narrow)
        numbers = fresh_counters(narrow)
        assert [numbers[BECAME % name] for name in ("refusing", "open")] == [1, 1]


def test_a1_clients_beyond_the_memory_budget_are_refused_until_an_eighth_of_it_is_free(
    tmp_path: Path,
) -> None:
    if raise_descriptors(CROWD + 200) < CROWD + 200:
        pytest.skip("this machine allows too few descriptors")
    # These clients do not answer pings.
    settings = f'[admission]\nmemory_budget = "{BUDGET}B"\n[heartbeat]\nping_interval = "10m"\n'
    with configured_gateway(tmp_path, settings) as gateway, besieged(gateway, CONTROL) as control:
        with ExitStack() as held:
            clients: list[RawClient] = []
            while len(clients) < CROWD:
                client = held.enter_context(RawClient(gateway))
                if client.ask(request(headers=[bearer_of(len(clients))])).status != 101:
                    break
                assert [client.hear()["op"] for _ in range(2)] == [
                    "welcome",
                    "subbed",
                ]  # read, so that nothing waits
                clients.append(client)
            numbers = fresh_counters(gateway)
            booked = sum(value for name, value in numbers.items() if name.startswith("wsgate_memory_bytes{"))
            # Refusals begin at fifteen sixteenths of the budget, to within a hundredth of it; earlier only if
            # the process has grown by more than its accounts explain.
            spare = numbers['wsgate_memory_unaccounted_bytes{shard="0"}'] + SHARE / 100
            assert SHARE * 15 / 16 - spare < booked < SHARE * 15 / 16 + SHARE / 100, numbers
            wait_for_state(gateway, REFUSING)
            assert all(is_refused(gateway) for _ in range(20))
            control.is_answered()
            for client in clients[:: len(clients) // 50]:
                client.say(op="ping", id=1)
                assert client.hear_answer(1) == {"op": "pong", "id": 1}, "an admitted client was not served"
            # A few clients that leave are not enough: an eighth of the budget has to be free.
            for client in clients[:20]:
                client.sock.close()
            wait_until("20 have left", lambda: scrape(gateway)[HELD] <= len(clients) - 20 + CONTROL, LIMIT_S)
            assert is_refused(gateway)
            for client in clients[20 : len(clients) // 4]:
                client.sock.close()
            wait_for_state(gateway, OPEN)
            assert not is_refused(gateway)
            numbers = fresh_counters(gateway)
            assert [numbers[BECAME % name] for name in ("refusing", "open", "shedding")] == [1, 1, 0]
            assert numbers['wsgate_closes_total{reason="shed"}'] == 0


def bearer_of(number: int) -> tuple[str, str]:
    return "Authorization", f"Bearer {make_token(f'user-{number}')}"


def test_r18_shard_that_loses_its_free_descriptors_serves_on_and_retries_once_per_tick(
    narrow: Gateway,
) -> None:
    pid = shard_pid(narrow)
    descriptors = Path(f"/proc/{pid}/fd")
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    with besieged(narrow, CONTROL) as control, ExitStack() as held:
        clients = [admit(narrow, held, number) for number in range(20)]
        before = scrape(narrow)[EXHAUSTED]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(list(descriptors.iterdir())), hard))
        late = [held.enter_context(RawClient(narrow)) for _ in range(5)]
        for client in late:
            client.sock.sendall(request())
        wait_until("accept fails", lambda: scrape(narrow)[EXHAUSTED] > before, LIMIT_S)
        control.is_answered()
        since_s, seen = time.monotonic(), scrape(narrow)[EXHAUSTED]
        wait_until("accept fails again and again", lambda: scrape(narrow)[EXHAUSTED] >= seen + 12, LIMIT_S)
        # It fails once a tick and does not spin (`besieged` also waits until the processes are idle).
        assert scrape(narrow)[EXHAUSTED] - seen <= 4 * (time.monotonic() - since_s) + 6
        said = [line for line in narrow.lines if "accept_exhausted" in line]
        assert 1 <= len(said) <= time.monotonic() - since_s + 3, "more than one line per second"
        control.is_answered()
        for client in clients[:10]:
            client.sock.close()
        assert [client.answer().status for client in late] == [101] * 5
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
    assert not [line for line in narrow.lines if "Traceback" in line]
