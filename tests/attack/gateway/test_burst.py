"""Publish in bursts: no client that reads is closed as slow, and every loss is reported.

The tests assert numbers of publications, readers and bytes, never times.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest
from redis import Redis

from tests.support.attack_rig import configured_gateway, make_token
from tests.support.burst import Readers, join, memory_bytes, publication, publish
from tests.support.gateway import Gateway, wait_until
from tests.support.raw_client import RawClient
from tests.support.valkey import Valkey, running_valkey

# The readers must read while the burst arrives: beside other tests they would wait for a CPU, and be behind.
pytestmark = [pytest.mark.slow, pytest.mark.alone]

COUNT: Final = 10_000
# A client without CPU time for ten seconds must not be closed here.
PATIENT: Final = '[limits]\noutbox_age = "10m"\nwrite_timeout = "5m"\n'
SMALL: Final = PATIENT + 'outbox_frames = 8\noutbox_bytes = "64KiB"\n'


@contextmanager
def crowd(gateway: Gateway, channel: str, count: int) -> Iterator[list[RawClient]]:
    """Subscribe this many clients to a channel."""
    with ExitStack() as held:
        yield [held.enter_context(join(gateway, channel)) for _ in range(count)]


@pytest.fixture(scope="module", params=[PATIENT, SMALL], ids=["default", "small"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with configured_gateway(Path(tmp_path_factory.mktemp("burst")), request.param) as running:
        yield running


@pytest.mark.parametrize("count", [1, 100])
def test_burst_of_10000_publications_reaches_every_reader_completely_and_in_order(
    gateway: Gateway, count: int
) -> None:
    channel = f"open:burst-{count}"
    with crowd(gateway, channel, count) as clients, Readers(clients) as reading:
        with Redis.from_url(gateway.bus_url) as bus:
            publish(bus, channel, (publication(number) for number in range(COUNT)))
        reading.wait(COUNT - 1)
        for reader in reading.readers:
            assert (reader.got, reader.holes, reader.gaps, reader.is_ended) == (COUNT, 0, 0, False)


def test_burst_is_complete_for_99_readers_and_a_non_reader_is_closed_4010(
    gateway: Gateway,
) -> None:
    """The readers receive everything in order, and no notice of a loss."""
    with crowd(gateway, "open:mixed", 99) as clients, ExitStack() as held:
        lazy = held.enter_context(join(gateway, "open:mixed", receive_buffer_bytes=4_096))
        with Readers(clients) as reading, Redis.from_url(gateway.bus_url) as bus:
            for start in range(0, 2 * COUNT, COUNT):
                publish(bus, "open:mixed", (publication(number) for number in range(start, start + COUNT)))
                reading.wait(start + COUNT - 1)
            for reader in reading.readers:
                assert (reader.got, reader.holes, reader.gaps, reader.is_ended) == (2 * COUNT, 0, 0, False)
            # The next publications show that its outbox stays too full after the time of grace.
            number = 2 * COUNT

            def is_cut() -> bool:
                nonlocal number
                publish(bus, "open:mixed", [publication(number)])
                number += 1
                return gateway.metric("wsgate_connections", state="closing") >= 1

            wait_until("the client that does not read is closed", is_cut, 60.0)
        with Readers([lazy]) as late:
            wait_until("it has read its Close", lambda: late.readers[0].is_ended, 60.0)
            assert (late.readers[0].holes, late.readers[0].code) == (0, 4010)


# --- more publications than the readers take --------------------------------------------------------

BACKLOG_BYTES: Final = 32 << 20
MIB: Final = 1 << 20


@contextmanager
def gateway_on(valkey: Valkey, directory: Path, settings: str = "") -> Iterator[Gateway]:
    """Start a gateway on a bus server with the default limits of the server."""
    with configured_gateway(directory, f'[bus]\nurl = "{valkey.url}"\n{settings}') as running:
        yield running


def test_60_mb_at_once_keep_the_bus_connection_and_delay_no_revocation(tmp_path: Path) -> None:
    """60,000 publications of 1 KB arrive in one pipeline while no client reads; each loss is reported.

    A revocation in the middle acts, and a subscription is confirmed, while the backlog is still full.
    """
    with running_valkey() as valkey, gateway_on(valkey, tmp_path) as gateway, ExitStack() as held:
        clients = [held.enter_context(join(gateway, "open:flood")) for _ in range(5)]
        victim = held.enter_context(RawClient.welcomed(gateway, make_token("victim"), limit_s=90.0))
        shard = gateway.pid_of("wsgate-shard-0")
        before = memory_bytes(shard, "VmRSS")
        with Redis.from_url(valkey.url) as bus:
            pipeline = bus.pipeline(transaction=False)
            for number in range(60_000):
                if number == 30_000:
                    pipeline.publish("wsgate:ctl", '{"op":"revoke","user":"victim","before":4000000000}')
                pipeline.publish("wsgate:ch:open:flood", publication(number, 1_000))
            pipeline.execute()
        assert victim.ending().code == 4001
        held.enter_context(join(gateway, "open:other"))
        wait_until(
            "the backlog still has publications after both",
            lambda: gateway.metric("wsgate_backlog_bytes") > MIB,
        )
        with Readers(clients) as reading:
            reading.wait(59_999)
            # A loss soon after a notice is reported in the next one, seconds later.
            wait_until("all is reported", lambda: not any(reader.untold for reader in reading.readers), 60.0)
            for reader in reading.readers:
                assert reader.got == 60_000 or reader.gaps or reader.code == 4010
        assert gateway.metric("wsgate_bus_failures_total") == 0
        assert gateway.metric("wsgate_bus_connects_total") == 1
        assert memory_bytes(shard, "VmHWM") - before <= BACKLOG_BYTES + 16 * MIB


def test_publications_that_wait_for_readers_are_on_the_account_of_outside_memory(tmp_path: Path) -> None:
    with running_valkey() as valkey, gateway_on(valkey, tmp_path) as gateway, ExitStack() as held:
        held.enter_context(join(gateway, "open:idle"))
        with Redis.from_url(valkey.url) as bus:
            publish(bus, "open:idle", (publication(number, 1_000) for number in range(20_000)))
        wait_until(
            "the backlog has publications", lambda: gateway.metric("wsgate_backlog_bytes") > 10 * MIB, 60.0
        )
        wait_until(
            "the backlog is on the account",
            lambda: gateway.metric("wsgate_memory_bytes", kind="outside") > 10 * MIB,
            60.0,
        )


def test_small_backlog_drops_publications_and_every_reader_receives_a_gap(tmp_path: Path) -> None:
    settings = 'backlog = "1MiB"\n'
    with running_valkey() as valkey, gateway_on(valkey, tmp_path, settings) as gateway, ExitStack() as held:
        clients = [held.enter_context(join(gateway, "open:flood")) for _ in range(3)]
        with Redis.from_url(valkey.url) as bus:
            publish(bus, "open:flood", (publication(number, 1_000) for number in range(20_000)))
        wait_until(
            "some are dropped", lambda: gateway.metric("wsgate_publications_dropped_total") > 1_000, 60.0
        )
        with Readers(clients) as reading:
            reading.wait(19_999)
            # A loss soon after a notice is reported in the next one, seconds later.
            wait_until("all is reported", lambda: not any(reader.untold for reader in reading.readers), 60.0)
            for reader in reading.readers:
                assert reader.gaps or reader.code == 4010
        wait_until("the gaps are counted", lambda: gateway.metric("wsgate_gaps_total", reason="backlog") >= 1)
        assert gateway.metric("wsgate_bus_failures_total") == 0


def test_publication_over_the_size_limit_becomes_a_gap_and_the_bus_connection_stays(tmp_path: Path) -> None:
    with running_valkey() as valkey, gateway_on(valkey, tmp_path) as gateway, ExitStack() as held:
        clients = [held.enter_context(join(gateway, "open:large")) for _ in range(2)]
        shard = gateway.pid_of("wsgate-shard-0")
        before = memory_bytes(shard, "VmRSS")
        with Redis.from_url(valkey.url) as bus:
            publish(bus, "open:large", [publication(0), publication(1, 20 * MIB), publication(2)])
        for client in clients:
            heard = [client.hear() for _ in range(3)]
            assert [each["op"] for each in heard] == ["msg", "gap", "msg"]
            assert [each["data"][:6] for each in heard if each["op"] == "msg"] == ["000000", "000002"]
        assert gateway.metric("wsgate_bus_failures_total") == 0
        wait_until(
            "the gaps are counted", lambda: gateway.metric("wsgate_gaps_total", reason="too_large") >= 1
        )
        assert memory_bytes(shard, "VmHWM") - before < 16 * MIB
