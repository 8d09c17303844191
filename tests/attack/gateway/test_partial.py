"""Send unfinished messages, bombs and bad handshakes: memory stays bounded and all of it is returned."""

import contextlib
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
    proportional_bytes_of,
    shard_pid,
)
from tests.support.frames import BINARY, TEXT, client_frame
from tests.support.gateway import Gateway, wait_until
from tests.support.raw_client import LIMIT_S, RawClient, bearer, request
from wsgate.deflate import WIDE_BITS, deflate

pytestmark = pytest.mark.slow

BUDGET_BYTES: Final = 2 * 1024 * 1024
MESSAGE_BYTES: Final = 60_000  # just below the limit of one message
CROWD: Final = 120  # 7 MB
HELD: Final = 'wsgate_memory_bytes{kind="partial",shard="0"}'
CLOSED: Final = 'wsgate_closes_total{reason="partial_bytes"}'
REFUSED: Final = 'wsgate_refusals_total{reason="refused_partial_bytes"}'
BOMBS: Final = 20
BAD_HANDSHAKES: Final = 10_000
BAD_HEADS: Final = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS, to a plain port
    b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n\r\n",
    b"POST /ws HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /ws HTTP/1.1\r\nHost: h\r\n",  # never finished
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = f'[admission]\npartial_bytes = "{BUDGET_BYTES}B"\n[server]\ncompression = true\n'
    with configured_gateway(tmp_path_factory.mktemp("partial"), settings) as running:
        yield running


def descriptors(gateway: Gateway) -> int:
    return len(list(Path(f"/proc/{shard_pid(gateway)}/fd").iterdir()))


@pytest.mark.parametrize("rsv", [0, 4], ids=["plain", "compressed"])
def test_s3_unfinished_messages_of_all_clients_together_stay_within_the_partial_budget(
    gateway: Gateway, rsv: int
) -> None:
    before, start = fresh_counters(gateway), proportional_bytes_of(shard_pid(gateway))
    opened = descriptors(gateway)
    message = client_frame(BINARY if rsv else TEXT, b"x" * MESSAGE_BYTES, rsv=rsv)
    offer = ("Sec-WebSocket-Extensions", "permessage-deflate")
    with besieged(gateway) as group, ExitStack() as stack:
        codes = []
        for number in range(CROWD):
            head = request(headers=[bearer(make_token(f"slow-{number}")), offer])
            client = stack.enter_context(RawClient(gateway))
            if client.ask(head).status != 101:
                continue  # the gate refuses while the budget is used up
            try:
                client.sock.sendall(message[:-100])
            except OSError:
                codes.append(0)
        group.is_answered()
        during = fresh_counters(gateway)
        assert during[HELD] <= BUDGET_BYTES
        assert during[HELD] > BUDGET_BYTES / 2
        grown = proportional_bytes_of(shard_pid(gateway)) - start
        assert grown < 3 * BUDGET_BYTES
        assert during[CLOSED] + during[REFUSED] - before[CLOSED] - before[REFUSED] >= CROWD / 2
    wait_until("all is given back", lambda: fresh_counters(gateway)[HELD] == before[HELD], LIMIT_S)
    wait_until("their descriptors are closed", lambda: descriptors(gateway) <= opened + 1, LIMIT_S)


def test_s3_repeated_rounds_of_unfinished_messages_do_not_increase_process_memory(gateway: Gateway) -> None:
    """I7: memory of the first round is kept for reuse, and the next rounds use it."""
    message = client_frame(TEXT, b"x" * MESSAGE_BYTES)[:-100]
    held_before = fresh_counters(gateway)[HELD]
    sizes = []
    for _ in range(4):
        with ExitStack() as stack:
            for number in range(CROWD):
                client = stack.enter_context(RawClient(gateway))
                if client.ask(request(headers=[bearer(make_token(f"slow-{number}"))])).status == 101:
                    with contextlib.suppress(OSError):
                        client.sock.sendall(message)
        wait_until("all is given back", lambda: fresh_counters(gateway)[HELD] == held_before, LIMIT_S)
        sizes.append(proportional_bytes_of(shard_pid(gateway)))
    assert sizes[-1] <= sizes[0] * 1.05, sizes


@pytest.mark.parametrize("fragments", [1, 50])
@pytest.mark.parametrize("has_token", [True, False])
def test_s7_decompression_bombs_are_1009_and_use_less_memory_than_the_partial_budget(
    gateway: Gateway, has_token: bool, fragments: int
) -> None:
    """S7: 8 MiB of zeros in less than 60 KB, with a token and before one."""
    bomb = deflate(bytes(8 * 1024 * 1024), WIDE_BITS)
    assert len(bomb) < MESSAGE_BYTES
    size = -(-len(bomb) // fragments)
    parts = [bomb[place : place + size] for place in range(0, len(bomb), size)]
    stream = b"".join(
        client_frame(0 if place else TEXT, part, rsv=0 if place else 4, final=place == len(parts) - 1)
        for place, part in enumerate(parts)
    )
    headers = [("Sec-WebSocket-Extensions", "permessage-deflate")]
    headers += [bearer(make_token("bomber"))] if has_token else []
    before, start = fresh_counters(gateway), proportional_bytes_of(shard_pid(gateway))
    with besieged(gateway) as group:
        for _ in range(BOMBS):
            with RawClient(gateway) as client:
                assert client.ask(request(headers=headers)).status == 101
                client.sock.sendall(stream)
                assert client.ending().code == 1009
        group.is_answered()
        assert proportional_bytes_of(shard_pid(gateway)) - start < BUDGET_BYTES
    after = fresh_counters(gateway)
    name = 'wsgate_closes_total{reason="message_too_big"}'
    assert after[name] - before[name] == BOMBS
    assert after[HELD] == before[HELD]


def test_s29_ten_thousand_bad_handshakes_leave_no_memory_and_no_descriptor(gateway: Gateway) -> None:
    before, opened = fresh_counters(gateway), descriptors(gateway)
    with besieged(gateway) as group:
        for number in range(BAD_HANDSHAKES):
            with RawClient(gateway) as client:
                client.sock.sendall(BAD_HEADS[number % len(BAD_HEADS)])
                if number % 7 == 0 and number % len(BAD_HEADS) in (0, 2, 3):
                    client.answer()  # some clients wait for the answer, most do not
        group.is_answered()
    held = 'wsgate_connections_held{shard="0"}'
    wait_until("all are gone", lambda: fresh_counters(gateway)[held] == before[held], LIMIT_S)
    after = fresh_counters(gateway)
    assert after["wsgate_accepts_total"] - before["wsgate_accepts_total"] >= BAD_HANDSHAKES
    assert after[HELD] == before[HELD]
    assert descriptors(gateway) <= opened + 1
