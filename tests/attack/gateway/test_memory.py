"""R19: use up the memory budget with clients that do not finish messages or do not read.

New connections are refused first, then slow ones are closed. The kernel kills no process, and the control
group notices nothing. The tests run inside a cgroup that allows a tenth more than the budget, where one can
be made, and once with RLIMIT_AS.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
import redis

from tests.support.attack_rig import (
    besieged,
    configured_gateway,
    fresh_counters,
    make_token,
    scrape,
    shard_pid,
)
from tests.support.frames import BINARY, client_frame
from tests.support.gateway import Gateway, wait_until
from tests.support.memory_group import MemoryGroup, MemoryGroupError, memory_group
from tests.support.raw_client import LIMIT_S, RawClient, bearer, request

pytestmark = pytest.mark.slow

MIB: Final = 1024 * 1024
BUDGET: Final = 128 * MIB  # 32 for the clients of one shard
FIXED: Final = 96 * MIB  # for the processes themselves and the memory of the private bus
MESSAGE: Final = client_frame(BINARY, bytes(60_000))[:-100]
UNFINISHED: Final = 600  # 39 MB on the accounts
DEAF: Final = 500  # 120 KB wait for each of them, 60 MB together
ADDRESS_SPACE: Final = 384 * MIB
CROWD: Final = 5_000
SHED: Final = 'wsgate_closes_total{reason="shed"}'
REFUSED: Final = 'wsgate_refusals_total{reason="refused_memory"}'
PARTIAL: Final = 'wsgate_closes_total{reason="partial_bytes"}'
SHORT: Final = 'wsgate_memory_short{shard="0"}'
LIMIT: Final = 'wsgate_memory_budget_bytes{shard="0"}'


class NoGroup:
    """Stand in for a cgroup where none can be made; then the test checks only the accounts."""

    prefix: tuple[str, ...] = ()

    def killed(self) -> int:
        """Return 0, because no limit can kill a process."""
        return 0


@pytest.fixture(scope="module")
def group() -> Iterator[MemoryGroup | NoGroup]:
    with ExitStack() as stack:
        made: MemoryGroup | NoGroup = NoGroup()
        with contextlib.suppress(MemoryGroupError):
            made = stack.enter_context(memory_group(BUDGET * 11 // 10))
        yield made


@pytest.fixture(scope="module")
def gateway(group: MemoryGroup | NoGroup, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = f'[admission]\nmemory_budget = "{BUDGET}B"\n'
    with configured_gateway(tmp_path_factory.mktemp("memory"), settings, prefix=group.prefix) as running:
        yield running
    assert group.killed() == 0


def accounted_bytes(numbers: dict[str, float]) -> float:
    return sum(value for name, value in numbers.items() if name.startswith("wsgate_memory_bytes{"))


def join(gateway: Gateway, stack: ExitStack, user: str, *, receive_buffer_bytes: int = 0) -> RawClient | None:
    """Connect one more client; return None when the gate refuses it."""
    client = stack.enter_context(RawClient(gateway, receive_buffer_bytes=receive_buffer_bytes))
    try:
        status = client.ask(request(headers=[bearer(make_token(user))])).status
    except (OSError, EOFError):  # refused without an answer: every place for draining is in use
        return None
    assert status in (101, 503), status
    return client if status == 101 else None


def wait_for_recovery(gateway: Gateway, before: dict[str, float]) -> None:
    """Wait until new connections are accepted again and all memory is returned."""
    wait_until("there is room again", lambda: scrape(gateway)[SHORT] == 0, LIMIT_S)
    with ExitStack() as stack:
        assert join(gateway, stack, "late") is not None
    held = 'wsgate_connections_held{shard="0"}'
    wait_until("all are gone", lambda: scrape(gateway)[held] == before[held], 2 * LIMIT_S)


def test_r19_unfinished_messages_over_the_budget_close_clients_and_kill_no_process(
    gateway: Gateway, group: MemoryGroup | NoGroup
) -> None:
    before = fresh_counters(gateway)
    assert before[LIMIT] == BUDGET - FIXED
    with besieged(gateway) as control, ExitStack() as stack:
        clients = [join(gateway, stack, f"slow-{number}") for number in range(UNFINISHED)]
        for number, client in enumerate(clients):
            assert client is not None, "their sockets alone must not use up the budget"
            with contextlib.suppress(OSError):
                client.sock.sendall(MESSAGE)
            if number % 100 == 99:
                control.is_answered()
                assert accounted_bytes(scrape(gateway)) <= before[LIMIT]
        assert join(gateway, stack, "newcomer") is None
        after = fresh_counters(gateway)
        assert after[REFUSED] > before[REFUSED]
        assert after[SHED] + after[PARTIAL] > before[SHED] + before[PARTIAL]
    wait_for_recovery(gateway, before)
    assert group.killed() == 0


def test_r19_unread_publications_over_the_budget_shed_clients_and_kill_no_process(
    gateway: Gateway, group: MemoryGroup | NoGroup
) -> None:
    before = fresh_counters(gateway)
    with besieged(gateway) as control, ExitStack() as stack:
        deaf = 0
        for number in range(DEAF):
            client = join(gateway, stack, f"deaf-{number}", receive_buffer_bytes=4_096)
            if client is None:
                break  # the kernel memory of idle sockets alone may reach the high mark
            client.say(op="sub", ch=f"open:{number}", id=1)
            client.hear_answer(1)
            deaf += 1
        with redis.Redis.from_url(gateway.bus_url) as bus:
            for number in range(2 * deaf):
                bus.publish(f"wsgate:ch:open:{number % deaf}", b"x" * 60_000)
                if number % 50 == 0:
                    control.is_answered()
        wait_until("some clients are shed", lambda: fresh_counters(gateway)[SHED] > before[SHED], LIMIT_S)
        assert fresh_counters(gateway)[SHED] - before[SHED] < deaf
        control.is_answered()
    wait_for_recovery(gateway, before)
    assert group.killed() == 0


def test_r19_small_address_space_refuses_clients_before_an_allocation_fails(tmp_path: Path) -> None:
    """The accounts reach their limit before malloc fails, and the control group is answered."""
    prefix = ["sh", "-c", f'ulimit -v {ADDRESS_SPACE // 1024} && exec "$@"', "sh"]
    with configured_gateway(tmp_path, "", prefix=prefix) as gateway:
        before = fresh_counters(gateway)
        assert 0 < before[LIMIT] < ADDRESS_SPACE
        outcomes: Counter[str] = Counter()
        with besieged(gateway) as control, ExitStack() as stack:
            for number in range(CROWD):
                client = join(gateway, stack, "one-of-many")
                outcomes["joined" if client else "refused"] += 1
                if client is not None:
                    with contextlib.suppress(OSError):
                        client.sock.sendall(MESSAGE)
                if outcomes["refused"] > 50:
                    break
                if number % 500 == 0:
                    control.is_answered()
            control.is_answered()
            after = fresh_counters(gateway)
            assert after[REFUSED] > before[REFUSED], outcomes
            assert outcomes["joined"] * 60_000 > before[LIMIT] / 2
            names = [f'wsgate_closes_total{{reason="{name}"}}' for name in ("out_of_memory", "internal")]
            assert [after[name] for name in names] == [before[name] for name in names]
        assert Path(f"/proc/{shard_pid(gateway)}").exists()
