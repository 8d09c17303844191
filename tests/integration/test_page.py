"""Use the try page in Chromium with a real gateway."""

import json
from collections.abc import Iterator

import pytest
import redis

from tests.support.browser import Browser, find_chromium, running_browser
from tests.support.gateway import Gateway, running_gateway

pytestmark = pytest.mark.slow

STATE = "document.querySelector('#state').dataset.state"
SMALLEST_PX = 360


@pytest.fixture(scope="module")
def chromium() -> str:
    """Return the path of Chromium, which is installed where there is none and that is allowed."""
    found = find_chromium()
    if found is None:
        pytest.skip("no Chromium here, and none could be installed")
    return found


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway() as running:
        yield running


@pytest.fixture
def page(chromium: str, gateway: Gateway) -> Iterator[Browser]:
    """Open the page, connected; at the end it must have no errors."""
    with running_browser(chromium) as browser:
        open_page(browser, gateway)
        yield browser
        browser.evaluate("0")  # errors arrive before this answer
        assert browser.faults == []


def open_page(browser: Browser, gateway: Gateway) -> None:
    browser.open(f"{gateway.admin_url}/")
    browser.wait_for(f"{STATE} === 'open'")


def subscribe(page: Browser, channel: str) -> None:
    page.fill("#channel", channel)
    page.click("#subscribe")
    page.wait_for(f"document.querySelector({json.dumps(chip(channel) + '[data-live=true]')})")


def chip(channel: str) -> str:
    return f'#subscriptions li[data-channel="{channel}"]'


def shown(op: str, way: str, text: str) -> str:
    """Return a script: whether the log has a frame with this op, direction and part of its text."""
    rows = f"[...document.querySelectorAll('#log li.{way}[data-op={op}] pre')]"
    return f"{rows}.some((row) => row.textContent.includes({json.dumps(text)}))"


def frames(page: Browser, op: str) -> int:
    found: int = page.evaluate(f"document.querySelectorAll('#log [data-op={op}]').length")
    return found


def publish(gateway: Gateway, channel: str, data: str) -> None:
    with redis.Redis.from_url(gateway.bus_url) as bus:
        assert bus.publish(f"wsgate:ch:{channel}", data) == 1


# --- publishing and receiving -------------------------------------------------------------------------


def test_page_connects_and_shows_url_user_and_connection(page: Browser, gateway: Gateway) -> None:
    assert page.text("#state-text") == "Open"
    assert page.text("#url") == gateway.ws_url
    assert page.text("#user") == "anonymous"
    assert "wsgate publish" in page.text("#command")
    page.wait_for(shown("welcome", "in", page.text("#conn")))


def test_page_shows_its_own_json_publication_with_exact_numbers_and_no_markup(page: Browser) -> None:
    subscribe(page, "news")
    page.fill("#data", '{"n": 12345678901234567890, "text": "<b>\\"hi\\"</b>"}')
    page.click("#publish")
    page.wait_for(shown("pub", "out", '"n": 12345678901234567890'))
    page.wait_for(shown("ok", "in", '"id"'))
    page.wait_for(shown("msg", "in", '"n": 12345678901234567890'))
    page.wait_for(shown("msg", "in", '<b>\\"hi\\"</b>'))
    assert page.evaluate("document.querySelector('#log b')") is None
    assert page.text("#count-publications") == "1"
    assert page.text("#last-answer").endswith(" ms")


def test_page_publishes_text_as_a_json_string(page: Browser) -> None:
    subscribe(page, "news")
    page.click("input[value=text]")
    page.fill("#data", "no {json}")
    page.click("#publish")
    page.wait_for(shown("msg", "in", '"data": "no {json}"'))


def test_page_shows_a_publication_of_a_backend(page: Browser, gateway: Gateway) -> None:
    subscribe(page, "news")
    publish(gateway, "news", '{"hello":1}')
    page.wait_for(shown("msg", "in", '"hello": 1'))


def test_page_subscribes_and_unsubscribes_several_channels(page: Browser, gateway: Gateway) -> None:
    subscribe(page, "news")
    subscribe(page, "chat:42")
    publish(gateway, "chat:42", '"first"')
    page.wait_for(shown("msg", "in", "first"))
    page.click("#unsubscribe")
    page.wait_for(f"!document.querySelector({json.dumps(chip('chat:42'))})")
    page.click(f"{chip('news')} button")
    page.wait_for("document.querySelectorAll('#subscriptions li').length === 0")
    page.wait_for(shown("unsubbed", "in", "news"))


def test_page_with_a_token_shows_the_user_and_its_inbox_and_hides_the_token(
    page: Browser, gateway: Gateway
) -> None:
    page.fill("#token", gateway.token("42"))
    page.click("#token-form button")
    page.wait_for("document.querySelector('#user').textContent === '42'")
    page.wait_for(f"document.querySelector({json.dumps(chip('@me') + '[data-live=true]')})")
    publish(gateway, "@42", '"for you"')
    page.wait_for(shown("msg", "in", "for you"))
    assert gateway.token("42")[:20] not in page.evaluate("document.querySelector('#log').textContent")


# --- mistakes -----------------------------------------------------------------------------------------


def test_page_refuses_malformed_json_and_sends_nothing(page: Browser) -> None:
    page.fill("#data", "{oops")
    page.click("#publish")
    assert "This is not valid JSON" in page.text("#data-fault")
    assert page.evaluate("document.activeElement.id") == "data"
    page.fill("#data", "1")
    assert page.text("#data-fault") == ""
    assert frames(page, "pub") == 0


def test_page_shows_the_error_of_a_refused_subscription(page: Browser) -> None:
    page.fill("#channel", "{no}")
    page.click("#subscribe")
    page.wait_for("document.querySelector('#fault').textContent.includes('400 bad_request')")
    page.wait_for("document.querySelectorAll('#subscriptions li').length === 0")


def test_page_with_an_invalid_token_stops_with_4501_until_connect_is_clicked(page: Browser) -> None:
    page.fill("#token", "no.token.at-all")
    page.click("#token-form button")
    page.wait_for(f"{STATE} === 'stopped'")
    assert "4501" in page.text("#state-text")
    assert page.text("#connect") == "Connect"
    page.evaluate("document.querySelector('#token').value = ''")
    page.click("#connect")
    page.wait_for(f"{STATE} === 'open'")


# --- disconnecting and reconnecting -------------------------------------------------------------------


def test_page_disconnected_by_its_button_stays_closed_until_the_next_click(page: Browser) -> None:
    subscribe(page, "news")
    page.click("#connect")
    page.wait_for(f"{STATE} === 'closed'")
    assert page.text("#state-text").startswith("Closed 1000")
    assert page.evaluate("document.querySelector('#publish').disabled")
    page.click("#connect")
    page.wait_for(f"{STATE} === 'open'")
    page.wait_for(f"document.querySelector({json.dumps(chip('news') + '[data-live=true]')})")


def test_page_shows_a_stopped_gateway_and_tries_to_reconnect(chromium: str) -> None:
    with running_browser(chromium) as browser:
        with running_gateway() as gateway:
            open_page(browser, gateway)
            subscribe(browser, "news")
            gateway.stop()
            browser.wait_for(shown("closed", "note", "Closed 4012"))
            browser.wait_for(f"{STATE} === 'waiting'")
        assert "next try in" in browser.text("#state-text")
        assert browser.evaluate(f"document.querySelector({json.dumps(chip('news'))}).dataset.live") == "false"
        browser.wait_for("Number(document.querySelector('#count-reconnects').textContent) > 0")
        browser.click("#connect")
        browser.wait_for(f"{STATE} === 'closed'")


# Replaces WebSocket by sockets that the test controls.
PUPPETS = """
    window.puppets = [];
    window.WebSocket = class {
        static OPEN = 1;
        readyState = 0;
        sent = [];
        constructor(url, protocols) { this.protocols = protocols; puppets.push(this); }
        send(text) { this.sent.push(text); }
        close(code) { this.ends(code); }
        opens() { this.readyState = 1; this.onopen(); }
        says(message) { this.onmessage({ data: JSON.stringify(message) }); }
        ends(code, reason = "") { this.readyState = 3; this.onclose({ code, reason }); }
    };
"""
WELCOME = '{"op": "welcome", "conn": "00", "node": "n", "ping_s": 25}'


@pytest.fixture
def puppets(chromium: str, gateway: Gateway) -> Iterator[Browser]:
    with running_browser(chromium) as browser:
        browser.command("Page.addScriptToEvaluateOnNewDocument", source=PUPPETS)
        browser.open(f"{gateway.admin_url}/")
        browser.wait_for("puppets.length === 1")
        yield browser


RETURNS = (1000, 1001, 1005, 1006, 1011, 1012, 1013, 4000, 4001, 4010, 4012, 4499)
STAYS_AWAY = (1002, 1003, 1007, 1008, 1009, 1010, 4500, 4501, 4509, 4999)


def test_page_waits_after_temporary_close_codes_and_stops_after_final_ones(puppets: Browser) -> None:
    # One script without a pause, so that no reconnect comes in between.
    end = """(code) => {
        puppets.at(-1).ends(code, "why");
        const shown = document.querySelector("#state-text").textContent;
        const state = document.querySelector("#state").dataset.state;
        document.querySelector("#connect").click();
        if (state === "waiting") document.querySelector("#connect").click();
        return [state, shown.startsWith(`Closed ${code} why`)];
    }"""
    found = puppets.evaluate(f"{json.dumps([*RETURNS, *STAYS_AWAY])}.map({end})")
    assert found == [["waiting", True]] * len(RETURNS) + [["stopped", True]] * len(STAYS_AWAY)


def test_page_reconnects_by_itself_after_4012_and_not_after_4500(puppets: Browser) -> None:
    puppets.evaluate("puppets[0].ends(4012)")
    puppets.wait_for("puppets.length === 2")
    puppets.evaluate("Math.random = () => 0; puppets[1].ends(4500)")
    puppets.evaluate("new Promise((done) => setTimeout(done, 0))")  # a timer of 0 ms would have run before
    assert puppets.evaluate("puppets.length") == 2


def test_page_waits_for_the_retry_time_of_bye(puppets: Browser) -> None:
    bye = '{"op": "bye", "code": 4012, "reason": "drain", "reconnect": true, "retry_ms": 60000}'
    puppets.evaluate(
        f"puppets[0].opens(); puppets[0].says({WELCOME}); puppets[0].says({bye}); puppets[0].ends(4012)"
    )
    assert "Closed 4012 drain, next try in 60." in puppets.text("#state-text")


def test_page_waits_grow_to_30_s_and_start_again_after_a_connection_that_lasted_5_s(puppets: Browser) -> None:
    # With the largest random number the wait is the ceiling.
    waits = puppets.evaluate(f"""(() => {{
        Math.random = () => 1;
        const again = () => dispatchEvent(new Event("online"));
        const wait = () => document.querySelector("#state-text").textContent.match(/in ([0-9.]+) s/)[1];
        const waits = [];
        for (let turn = 0; turn < 8; turn += 1) {{ puppets.at(-1).ends(1006); waits.push(wait()); again(); }}
        let nowMs = performance.now();
        performance.now = () => nowMs;
        for (const [beforeMs, lastedMs] of [[0, 0], [6_000, 4_999], [0, 5_000]]) {{
            nowMs += beforeMs;
            puppets.at(-1).opens();
            puppets.at(-1).says({WELCOME});
            nowMs += lastedMs;
            puppets.at(-1).ends(1006);
            waits.push(wait());
            again();
        }}
        return waits;
    }})()""")
    assert waits == ["0.5", "1.0", "2.0", "4.0", "8.0", "16.0", "30.0", "30.0", "30.0", "30.0", "0.5"]


def test_page_subscribes_again_after_it_has_reconnected(puppets: Browser) -> None:
    puppets.evaluate(f"puppets[0].opens(); puppets[0].says({WELCOME})")
    puppets.click("#subscribe")
    puppets.evaluate("puppets[0].says({op: 'subbed', ch: 'news', id: 1}); puppets[0].ends(1006)")
    puppets.wait_for("puppets.length === 2")
    puppets.evaluate(f"puppets[1].opens(); puppets[1].says({WELCOME})")
    sent = [json.loads(text) for text in puppets.evaluate("puppets[1].sent")]
    assert sent == [{"op": "sub", "ch": "news", "id": 2}]
    assert puppets.evaluate("puppets[1].protocols") == ["wsgate.v1.json"]


def test_page_retries_a_subscription_that_is_unavailable(puppets: Browser) -> None:
    refused = """{"op": "err", "id": 1, "ch": "news", "code": 503, "error": "unavailable", "message": "later",
        "retry_ms": 1}"""
    puppets.evaluate(f"puppets[0].opens(); puppets[0].says({WELCOME})")
    puppets.click("#subscribe")
    puppets.evaluate(f"puppets[0].says({refused})")
    puppets.wait_for("puppets[0].sent.length === 2")
    assert json.loads(puppets.evaluate("puppets[0].sent[1]")) == {"op": "sub", "ch": "news", "id": 2}


def test_page_log_keeps_the_newest_500_rows_and_scrolls_to_the_end(page: Browser, gateway: Gateway) -> None:
    subscribe(page, "news")
    with redis.Redis.from_url(gateway.bus_url) as bus, bus.pipeline(transaction=False) as pipeline:
        for start in range(
            0, 700, 100
        ):  # not more at once than an outbox takes, because the browser may be slow
            for number in range(start, start + 100):
                pipeline.publish("wsgate:ch:news", f'"number {number}"')
            pipeline.execute()
            page.wait_for(shown("msg", "in", f"number {start + 99}"))
    assert page.evaluate("document.querySelectorAll('#log li').length") == 500
    assert page.text("#count-publications") == "700"
    log = "document.querySelector('#log')"
    assert page.evaluate(f"{log}.scrollHeight - {log}.scrollTop - {log}.clientHeight < 2"), (
        "the log is not scrolled to its end"
    )


# --- appearance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [SMALLEST_PX, 800, 1280, 2560])
@pytest.mark.parametrize("is_dark", [False, True])
def test_page_has_no_horizontal_scrolling_at_any_width(
    page: Browser, gateway: Gateway, width: int, is_dark: bool
) -> None:
    page.show_as(width=width, height=800, is_dark=is_dark)
    subscribe(page, "x" * 200)
    publish(gateway, "x" * 200, json.dumps({"long": "y" * 3_000}))
    page.wait_for(shown("msg", "in", "yyy"))
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.evaluate("document.querySelector('#log').scrollLeft = 999")
    assert page.evaluate("document.querySelector('#log').scrollLeft") == 0


def test_page_has_a_light_and_a_dark_theme(page: Browser) -> None:
    colours = set()
    for is_dark in (False, True):
        page.show_as(width=1280, height=800, is_dark=is_dark)
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2


def test_every_control_of_the_page_has_an_accessible_name(page: Browser) -> None:
    nameless = page.evaluate("""[...document.querySelectorAll("input, textarea, button")]
        .filter((each) => !(each.labels?.length || each.textContent.trim() || each.ariaLabel))
        .map((each) => each.outerHTML)""")
    assert nameless == []
    assert page.evaluate("document.querySelector('#log').tabIndex") == 0
    assert page.evaluate("document.querySelector('#state').ariaLive") == "polite"
