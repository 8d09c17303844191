"""A whole gateway filled to the last descriptor and the last byte of its budget (A1, R18).

Refusals begin where they were set to, each answered and with a time to come back; who is in notices
nothing; and where one leaves and one comes the state stays what it is.
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
CROWD: Final = 8_000  # more than fit
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


def come(gateway: Gateway, held: ExitStack, number: int = 0) -> RawClient:
    """One who is let in."""
    return held.enter_context(RawClient.welcomed(gateway, make_token(f"user-{number}")))


def is_turned_away(gateway: Gateway) -> bool:
    """One more: whether it is told to come later; who is let in leaves again."""
    with RawClient(gateway) as late:
        answer = late.ask(request())
        if answer.status == 101:
            return False
        assert answer.status == 503
        assert 1 <= int(answer.headers["retry-after"]) <= 10
        return True


def becomes(gateway: Gateway, state: int) -> None:
    wait_until(f"the state is {state}", lambda: scrape(gateway)[STATE] == state, LIMIT_S)


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Gateway]:
    """One with few descriptors, and every limit there is."""
    prefix = ["sh", "-c", f'ulimit -n {DESCRIPTORS} && exec "$@"', "sh"]
    settings = f"[admission]\nreserve_descriptors = {RESERVE}\n{ALL_LIMITS}"
    with configured_gateway(tmp_path, settings, prefix=prefix) as gateway:
        yield gateway


def test_a1_the_last_descriptor_that_is_for_clients(narrow: Gateway) -> None:
    with besieged(narrow, CONTROL) as control, ExitStack() as held:
        clients = [come(narrow, held, number % 50) for number in range(ROOM - CONTROL)]
        becomes(narrow, REFUSING)
        assert all(is_turned_away(narrow) for _ in range(20))
        control.is_answered()
        numbers = fresh_counters(narrow)
        assert numbers[HELD] == ROOM
        # Those that are still being told so hold descriptors of the reserve.
        assert sum(numbers[REFUSED % f"refused_{name}"] for name in ("connections", "descriptors")) == 20
        assert numbers[EXHAUSTED] == 0
        # At the mark: one leaves, one comes. Nothing flaps.
        for _ in range(10):
            clients.pop().sock.close()
            wait_until("it is gone", lambda: scrape(narrow)[HELD] < ROOM, LIMIT_S)
            clients.append(come(narrow, held))
        becomes(narrow, REFUSING)
        numbers = fresh_counters(narrow)
        assert [numbers[BECAME % name] for name in ("refusing", "open")] == [1, 0]
        # More than a sixty-fourth: it is open again, once.
        for client in clients[: ROOM // 64 + 1]:
            client.sock.close()
        becomes(narrow, OPEN)
        assert not is_turned_away(narrow)
        numbers = fresh_counters(narrow)
        assert [numbers[BECAME % name] for name in ("refusing", "open")] == [1, 1]


def test_a1_the_last_byte_that_is_for_newcomers(tmp_path: Path) -> None:
    if raise_descriptors(CROWD + 200) < CROWD + 200:
        pytest.skip("this machine allows too few descriptors")
    # Nobody here answers pings, however long it takes to fill.
    settings = f'[admission]\nmemory_budget = "{BUDGET}B"\n[heartbeat]\nping_interval = "10m"\n'
    with configured_gateway(tmp_path, settings) as gateway, besieged(gateway, CONTROL) as control:
        with ExitStack() as held:
            clients: list[RawClient] = []
            while len(clients) < CROWD:
                client = held.enter_context(RawClient(gateway))
                if client.ask(request(headers=[bearer_of(len(clients))])).status != 101:
                    break
                assert [client.hear()["op"] for _ in range(2)] == ["welcome", "subbed"]  # no welcome waits
                clients.append(client)
            numbers = fresh_counters(gateway)
            booked = sum(value for name, value in numbers.items() if name.startswith("wsgate_memory_bytes{"))
            # Refusals begin at fifteen sixteenths, to a hundredth: what comes then is not let in. Earlier
            # only where the process has grown by more than its books say.
            spare = numbers['wsgate_memory_unaccounted_bytes{shard="0"}'] + SHARE / 100
            assert SHARE * 15 / 16 - spare < booked < SHARE * 15 / 16 + SHARE / 100, numbers
            becomes(gateway, REFUSING)
            assert all(is_turned_away(gateway) for _ in range(20))
            control.is_answered()
            for client in clients[:: len(clients) // 50]:
                client.say(op="ping", id=1)
                assert client.hear_answer(1) == {"op": "pong", "id": 1}, "who is in is served"
            # A few leave: not yet. An eighth of it has to be free.
            for client in clients[:20]:
                client.sock.close()
            wait_until("they are gone", lambda: scrape(gateway)[HELD] <= len(clients) - 20 + CONTROL, LIMIT_S)
            assert is_turned_away(gateway)
            for client in clients[20 : len(clients) // 4]:
                client.sock.close()
            becomes(gateway, OPEN)
            assert not is_turned_away(gateway)
            numbers = fresh_counters(gateway)
            assert [numbers[BECAME % name] for name in ("refusing", "open", "shedding")] == [1, 1, 0]
            assert numbers['wsgate_closes_total{reason="shed"}'] == 0


def bearer_of(number: int) -> tuple[str, str]:
    return "Authorization", f"Bearer {make_token(f'user-{number}')}"


def test_r18_descriptors_that_are_taken_away_while_it_runs(narrow: Gateway) -> None:
    pid = shard_pid(narrow)
    descriptors = Path(f"/proc/{pid}/fd")
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    with besieged(narrow, CONTROL) as control, ExitStack() as held:
        clients = [come(narrow, held, number) for number in range(20)]
        before = scrape(narrow)[EXHAUSTED]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(list(descriptors.iterdir())), hard))
        late = [held.enter_context(RawClient(narrow)) for _ in range(5)]
        for client in late:
            client.sock.sendall(request())
        wait_until("accept fails", lambda: scrape(narrow)[EXHAUSTED] > before, LIMIT_S)
        control.is_answered()
        since_s, seen = time.monotonic(), scrape(narrow)[EXHAUSTED]
        wait_until("and fails on", lambda: scrape(narrow)[EXHAUSTED] >= seen + 12, LIMIT_S)
        # Once a tick, not as fast as it can; and that costs nothing (`besieged` waits for rest, too).
        assert scrape(narrow)[EXHAUSTED] - seen <= 4 * (time.monotonic() - since_s) + 6
        said = [line for line in narrow.lines if "accept_exhausted" in line]
        assert 1 <= len(said) <= time.monotonic() - since_s + 3, "a line a second"
        control.is_answered()
        for client in clients[:10]:
            client.sock.close()
        assert [client.answer().status for client in late] == [101] * 5
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
    assert not [line for line in narrow.lines if "Traceback" in line]
