"""Open connections that never show a token: they have a quota and a deadline and harm no other client."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest

from tests.support.attack_rig import besieged, configured_gateway, fresh_counters, make_token
from tests.support.frames import PING, client_frame
from tests.support.gateway import Gateway, wait_until
from tests.support.raw_client import LIMIT_S, RawClient, bearer, request
from tests.support.tcp_rig import raise_descriptors

pytestmark = pytest.mark.slow

QUOTA: Final = 256
CROWD: Final = 10_000
PACE_S: Final = 0.05  # far below the limit of control frames
AUTH_TIMEOUT: Final = "3s"
IN_WAIT: Final = 'wsgate_closes_total{reason="auth_timeout"}'
TURNED_AWAY: Final = 'wsgate_refusals_total{reason="too_many_unauthenticated"}'


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = f"""
[auth]
allow_query_token = true
[limits]
auth_timeout = "{AUTH_TIMEOUT}"
[admission]
handshakes_in_progress = {QUOTA}
"""
    with configured_gateway(tmp_path_factory.mktemp("crowd"), settings) as running:
        yield running


@pytest.fixture
def quota(gateway: Gateway) -> int:
    """Wait until the connections of the test before are gone, and return the whole quota."""
    held = 'wsgate_connections_held{shard="0"}'
    wait_until(
        "the connections of the test before are gone", lambda: fresh_counters(gateway)[held] == 0, LIMIT_S
    )
    return QUOTA


def offer(token: str) -> tuple[str, str]:
    return "Sec-WebSocket-Protocol", f"wsgate.v1.json, wsgate.bearer.{token}"


def is_welcome(gateway: Gateway, head: bytes) -> bool:
    with RawClient(gateway) as client:
        return client.ask(head).status == 101 and client.hear()["op"] == "welcome"


def is_let_in(gateway: Gateway, head: bytes) -> bool:
    with RawClient(gateway) as client:
        return client.ask(head).status == 101


def fill(gateway: Gateway, held: ExitStack, head: bytes, most: int) -> list[RawClient]:
    """Connect until a connection is refused; return the connections that were admitted."""
    inside: list[RawClient] = []
    for _ in range(most):
        client = held.enter_context(RawClient(gateway))
        answer = client.ask(head)
        if answer.status != 101:
            assert answer.status == 503
            return inside
        inside.append(client)
    raise AssertionError("no connection was refused")


def test_s9_connections_without_a_token_have_a_quota_and_a_deadline(
    gateway: Gateway,
) -> None:
    if raise_descriptors(CROWD + 200) < CROWD + 200:
        pytest.skip("this machine allows too few descriptors")
    before = fresh_counters(gateway)
    inside: list[RawClient] = []
    turned_away = 0
    with besieged(gateway) as control, ExitStack() as held:
        for _ in range(CROWD):
            client = held.enter_context(RawClient(gateway))
            answer = client.ask(request())
            if answer.status == 101:
                inside.append(client)
                continue
            assert answer.status == 503
            assert 1 <= int(answer.headers["retry-after"]) <= 10
            turned_away += 1
        assert len(inside) >= QUOTA
        assert turned_away > 0
        control.is_answered()
        for client in inside:
            closed = client.ending()
            assert (closed.code, closed.bye) == (
                4002,
                {"op": "bye", "code": 4002, "reason": "auth_timeout", "reconnect": True, "retry_ms": 2000},
            )
            assert len(closed.messages) == 1
        wait_until("there is room again", lambda: is_let_in(gateway, request()), LIMIT_S)
    after = fresh_counters(gateway)
    assert len(inside) <= after[IN_WAIT] - before[IN_WAIT] <= len(inside) + 1
    assert after[TURNED_AWAY] - before[TURNED_AWAY] >= turned_away


def test_s9_valid_token_in_the_head_is_admitted_while_the_quota_is_full(gateway: Gateway, quota: int) -> None:
    with ExitStack() as held:
        assert len(fill(gateway, held, request(), 2 * quota)) == quota
        good = make_token("late")
        heads = [
            request(headers=[bearer(good)]),
            request(headers=[offer(make_token("later"))]),
            request(f"/ws?token={make_token('latest')}"),
        ]
        for head in heads:
            assert is_welcome(gateway, head)
        # An invalid token does not pass the quota.
        assert held.enter_context(RawClient(gateway)).ask(request(headers=[offer("x")])).status == 503


def test_s9_connections_with_invalid_tokens_count_for_the_quota_until_their_4501(
    gateway: Gateway, quota: int
) -> None:
    """Each is closed with 4501 at once, and counts as long as it is open."""
    with ExitStack() as held:
        inside = fill(gateway, held, request(headers=[offer("x")]), 2 * quota)
        assert len(inside) == quota
        assert is_welcome(gateway, request(headers=[bearer(make_token())]))
        assert {client.ending().code for client in inside} == {4501}


def test_s9_commands_and_pings_do_not_move_the_authentication_deadline(gateway: Gateway) -> None:
    pace = threading.Event()
    said: dict[str, Any] = {}
    rounds = 0
    with RawClient(gateway) as talker, RawClient(gateway) as pinger:
        for client in (talker, pinger):
            assert client.ask(request()).status == 101
        while said.get("op") != "bye" and rounds < LIMIT_S / PACE_S:
            rounds += 1
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                talker.say(op="ping", id=rounds)
                pinger.sock.sendall(client_frame(PING, b"still here"))
            said = talker.hear()
            pace.wait(PACE_S)
        assert said["code"] == 4002
        assert talker.ending().code == 4002
        assert pinger.ending().code == 4002
    assert rounds > 1


def test_s9_connections_without_a_token_caused_no_internal_close(gateway: Gateway) -> None:
    assert fresh_counters(gateway)['wsgate_closes_total{reason="internal"}'] == 0
