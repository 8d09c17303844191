"""Provoke every refusal of a request head that a peer can cause: its HTTP status and its counter."""

import json
from collections.abc import Iterator, Mapping
from typing import Final

import pytest

from tests.support.attack_rig import besieged, configured_gateway, fresh_counters, make_token
from tests.support.gateway import ROOT, Gateway
from tests.support.raw_client import Answer, RawClient, bearer, request

pytestmark = pytest.mark.slow

CODES: Final = json.loads((ROOT / "protocols/codes.json").read_text())
STATUSES: Final = {row["name"]: row["http_status"] for row in CODES["handshake"]}

GOOD: Final = request()
HEADS: Final = {
    "too_many_headers": request(headers=[(f"X-{number}", "x") for number in range(120)]),
    "uri_too_long": request("/ws?" + "x" * 9_000),
    "malformed_head": GOOD.replace(b"Upgrade:", b"Upgrade :"),
    "malformed_request_line": GOOD.replace(b" HTTP/1.1", b""),
    "malformed_target": GOOD.replace(b"/ws", b"http://gate.example/ws"),
    "wrong_method": GOOD.replace(b"GET", b"POST"),
    "wrong_http_version": GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "duplicate_header": request(headers=[("Host", "gate.example")]),
    "request_body": request(headers=[("Content-Length", "5")]),
    "bad_host": request(host="user@gate.example"),
    "bad_origin": request(headers=[("Origin", "http://gate.example http://evil.example")]),
    "bad_header_value": request(headers=[("Authorization", "Bearer \xe9")]),
    "not_websocket": GOOD.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
    "wrong_version": GOOD.replace(b"Version: 13", b"Version: 12"),
    "bad_key": GOOD.replace(b"Key: ", b"Key: x"),
    "bad_subprotocols": request(headers=[("Sec-WebSocket-Protocol", "wsgate.v1.json, (")]),
    "bad_query": request("/ws?" + "&".join(["ch=open:1"] * 100)),
    "forbidden_origin": request(headers=[("Origin", "http://evil.example")]),
    "invalid_token": request(headers=[bearer("x")]),
    "token_not_yet_valid": request(headers=[bearer(make_token(nbf=4_000_000_000, exp=4_000_000_001))]),
    "no_common_subprotocol": request(headers=[("Sec-WebSocket-Protocol", "mqtt")]),
    "unknown_path": request("/elsewhere"),
}
ELSEWHERE: Final = {
    "address_connections": "needs a proxy: tests/integration/test_gateway_addresses.py",
    "address_rate": "likewise",
    "bad_extensions": "needs compression: tests/integration/test_compression.py",
    "head_too_large": "the reactor has the same limit and checks it first",
    "draining": "only in the queue of a shard that stops: tests of the drain",
    "too_many_unauthenticated": "tests/attack/gateway/test_crowd.py",
    "key_awaited": "needs an issuer: tests/integration/test_key_set.py",
    "unserved": "from the keeper, in the queue of a shard that hangs: tests of the node",
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with configured_gateway(tmp_path_factory.mktemp("refusals")) as running:
        yield running


@pytest.fixture(scope="module")
def answers(gateway: Gateway) -> Mapping[str, tuple[Answer, dict[str, float]]]:
    """Send every head once; return each answer with the changes of all counters at the end."""
    before = fresh_counters(gateway)
    given: dict[str, Answer] = {}
    with besieged(gateway):
        for name, head in HEADS.items():
            with RawClient(gateway) as client:
                given[name] = client.ask(head)
        after = fresh_counters(gateway)
    grown = {name: value - before[name] for name, value in after.items() if value != before.get(name, value)}
    return {name: (answer, grown) for name, answer in given.items()}


def test_p9_every_handshake_refusal_has_a_provocation_or_a_reference_to_another_test() -> None:
    assert set(HEADS) | set(ELSEWHERE) == set(STATUSES)
    assert not set(HEADS) & set(ELSEWHERE)


@pytest.mark.parametrize("name", HEADS)
def test_p9_refusal_of_a_head_has_its_documented_status_and_is_counted_once(
    name: str, answers: Mapping[str, tuple[Answer, dict[str, float]]]
) -> None:
    answer, grown = answers[name]
    assert answer.status == STATUSES[name]
    assert grown.get(f'wsgate_refusals_total{{reason="{name}"}}') == 1
    assert answer.headers["connection"].startswith("close")
    if answer.status == 426:
        assert answer.headers["sec-websocket-version"] == "13"
    if answer.status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"


def test_p9_only_the_provoked_refusals_were_counted_and_no_close(
    answers: Mapping[str, tuple[Answer, dict[str, float]]],
) -> None:
    _, grown = answers["unknown_path"]
    refused = {name: value for name, value in grown.items() if name.startswith("wsgate_refusals_total")}
    assert refused == {f'wsgate_refusals_total{{reason="{name}"}}': 1 for name in HEADS}
    assert not [name for name in grown if name.startswith("wsgate_closes_total")]


def test_valid_head_is_accepted_after_all_refusals(gateway: Gateway) -> None:
    with RawClient.welcomed(gateway, make_token()) as client:
        client.say(op="ping", id=1)
        assert client.hear_answer(1) == {"op": "pong", "id": 1}
