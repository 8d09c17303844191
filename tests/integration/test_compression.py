"""Use compression end to end: independent clients with and without it on one channel."""

import contextlib
import json
from collections.abc import Iterator

import pytest
import redis
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import ClientConnection, connect

from tests.support.attack_rig import fresh_counters
from tests.support.browser import find_chromium, running_browser
from tests.support.gateway import Gateway, running_gateway
from tests.support.raw_client import RawClient, request

pytestmark = pytest.mark.slow

WITHIN_S = 30.0
LARGE = [{"id": number, "name": f"user-{number}", "online": True} for number in range(200)]
SMALL = {"hello": 1}
STATE = "document.querySelector('#state').dataset.state"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway(environ={"WSGATE_SERVER__COMPRESSION": "true"}) as running:
        yield running


@contextlib.contextmanager
def joined(gateway: Gateway, window_bits: int | None) -> Iterator[ClientConnection]:
    """Subscribe to `news` with this window; 0 lets the server choose, None means no compression."""
    offers = None
    if window_bits is not None:
        bits = window_bits or None
        offers = [ClientPerMessageDeflateFactory(server_max_window_bits=bits, client_max_window_bits=True)]
    url = f"{gateway.ws_url}?ch=news"
    with connect(url, compression=None, extensions=offers, open_timeout=WITHIN_S) as client:
        assert [json.loads(client.recv(WITHIN_S))["op"] for _ in range(2)] == ["welcome", "subbed"]
        yield client


def test_publication_is_compressed_once_per_window_class_and_arrives_at_all(gateway: Gateway) -> None:
    windows = [None, None, 0, 0, 0, 15, 9, 9, 12]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(joined(gateway, bits)) for bits in windows]
        before = fresh_counters(gateway)
        with redis.Redis.from_url(gateway.bus_url) as bus:
            for data in (LARGE, SMALL, LARGE):
                bus.publish("wsgate:ch:news", json.dumps(data))
        for client in clients:
            heard = [json.loads(client.recv(WITHIN_S))["data"] for _ in range(3)]
            assert heard == [LARGE, SMALL, LARGE]
        after = fresh_counters(gateway)
    names = (
        "publications_deflated_total",
        *(f'deflate_bytes_total{{direction="{way}"}}' for way in ("in", "out")),
    )
    count, content, wire = (after[f"wsgate_{name}"] - before[f"wsgate_{name}"] for name in names)
    assert count == 4, "expected two classes and two large publications"
    assert content > 3 * wire


def test_compressed_messages_of_a_client_are_decompressed_without_context_takeover(gateway: Gateway) -> None:
    with joined(gateway, 0) as client, joined(gateway, None) as plain:
        before = fresh_counters(gateway)
        for number in range(3):  # with context takeover the second message would need the window of the first
            client.send(json.dumps({"op": "pub", "ch": "news", "data": LARGE, "id": number}))
            assert json.loads(plain.recv(WITHIN_S))["data"] == LARGE
        after = fresh_counters(gateway)
        assert after["wsgate_messages_inflated_total"] - before["wsgate_messages_inflated_total"] == 3


def test_malformed_compression_offer_is_400_and_an_unsupported_one_is_declined(gateway: Gateway) -> None:
    before = fresh_counters(gateway)
    with RawClient(gateway) as client:
        offer = ("Sec-WebSocket-Extensions", 'permessage-deflate; server_max_window_bits="9')
        assert client.ask(request(headers=[offer])).status == 400
    with RawClient(gateway) as client:
        offer = ("Sec-WebSocket-Extensions", "permessage-deflate; server_max_window_bits=8")
        answer = client.ask(request(headers=[offer]))
        assert answer.status == 101
        assert "sec-websocket-extensions" not in answer.headers
    after = fresh_counters(gateway)
    name = 'wsgate_refusals_total{reason="bad_extensions"}'
    assert after[name] - before[name] == 1


def test_chromium_receives_a_compressed_publication(gateway: Gateway) -> None:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium here, and none could be installed")
    before = fresh_counters(gateway)
    with running_browser(chromium) as browser:
        browser.open(f"{gateway.admin_url}/")
        browser.wait_for(f"{STATE} === 'open'")
        browser.fill("#channel", "browser")
        browser.click("#subscribe")
        browser.wait_for(
            "document.querySelector('#subscriptions li[data-channel=\"browser\"][data-live=true]')"
        )
        with redis.Redis.from_url(gateway.bus_url) as bus:
            bus.publish("wsgate:ch:browser", json.dumps(LARGE))
        browser.wait_for("document.querySelector('#log li.in[data-op=msg]')")
        assert browser.faults == []
    after = fresh_counters(gateway)
    name = "wsgate_publications_deflated_total"
    assert after[name] - before[name] == 1
