"""The try page in a real browser, against a real gateway."""

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
    """The browser's path; one is installed when there is none and it may be."""
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
    """The page, connected; at the end nothing must have failed on it."""
    with running_browser(chromium) as browser:
        open_page(browser, gateway)
        yield browser
        browser.evaluate("0")  # what the browser noted comes before its answer
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
    """Whether the log has a frame: its op, its way and a part of it."""
    rows = f"[...document.querySelectorAll('#log li.{way}[data-op={op}] pre')]"
    return f"{rows}.some((row) => row.textContent.includes({json.dumps(text)}))"


def frames(page: Browser, op: str) -> int:
    found: int = page.evaluate(f"document.querySelectorAll('#log [data-op={op}]').length")
    return found


def publish(gateway: Gateway, channel: str, data: str) -> None:
    with redis.Redis.from_url(gateway.bus_url) as bus:
        assert bus.publish(f"wsgate:ch:{channel}", data) == 1


# --- speaking and hearing -----------------------------------------------------------------------------


def test_it_connects_and_says_where(page: Browser, gateway: Gateway) -> None:
    assert page.text("#state-text") == "Open"
    assert page.text("#url") == gateway.ws_url
    assert page.text("#user") == "anonymous"
    assert "wsgate publish" in page.text("#command")
    page.wait_for(shown("welcome", "in", page.text("#conn")))


def test_what_is_published_from_the_page_is_heard_on_it(page: Browser) -> None:
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


def test_text_is_published_as_a_string(page: Browser) -> None:
    subscribe(page, "news")
    page.click("input[value=text]")
    page.fill("#data", "no {json}")
    page.click("#publish")
    page.wait_for(shown("msg", "in", '"data": "no {json}"'))


def test_what_a_backend_publishes_is_heard(page: Browser, gateway: Gateway) -> None:
    subscribe(page, "news")
    publish(gateway, "news", '{"hello":1}')
    page.wait_for(shown("msg", "in", '"hello": 1'))


def test_several_channels_are_held_and_let_go(page: Browser, gateway: Gateway) -> None:
    subscribe(page, "news")
    subscribe(page, "chat:42")
    publish(gateway, "chat:42", '"first"')
    page.wait_for(shown("msg", "in", "first"))
    page.click("#unsubscribe")
    page.wait_for(f"!document.querySelector({json.dumps(chip('chat:42'))})")
    page.click(f"{chip('news')} button")
    page.wait_for("document.querySelectorAll('#subscriptions li').length === 0")
    page.wait_for(shown("unsubbed", "in", "news"))


def test_a_token_makes_somebody_of_the_page(page: Browser, gateway: Gateway) -> None:
    page.fill("#token", gateway.token("42"))
    page.click("#token-form button")
    page.wait_for("document.querySelector('#user').textContent === '42'")
    page.wait_for(f"document.querySelector({json.dumps(chip('@me') + '[data-live=true]')})")
    publish(gateway, "@42", '"for you"')
    page.wait_for(shown("msg", "in", "for you"))
    assert gateway.token("42")[:20] not in page.evaluate("document.querySelector('#log').textContent")


# --- mistakes -----------------------------------------------------------------------------------------


def test_json_that_is_none_is_not_sent(page: Browser) -> None:
    page.fill("#data", "{oops")
    page.click("#publish")
    assert "This is no JSON" in page.text("#data-fault")
    assert page.evaluate("document.activeElement.id") == "data"
    page.fill("#data", "1")
    assert page.text("#data-fault") == ""
    assert frames(page, "pub") == 0


def test_an_error_is_shown(page: Browser) -> None:
    page.fill("#channel", "{no}")
    page.click("#subscribe")
    page.wait_for("document.querySelector('#fault').textContent.includes('400 bad_request')")
    page.wait_for("document.querySelectorAll('#subscriptions li').length === 0")


def test_a_token_that_is_none_ends_it_for_good(page: Browser) -> None:
    page.fill("#token", "no.token.at-all")
    page.click("#token-form button")
    page.wait_for(f"{STATE} === 'stopped'")
    assert "4501" in page.text("#state-text")
    assert page.text("#connect") == "Connect"
    page.evaluate("document.querySelector('#token').value = ''")
    page.click("#connect")
    page.wait_for(f"{STATE} === 'open'")


# --- coming and going ---------------------------------------------------------------------------------


def test_who_leaves_stays_away_until_asked_back(page: Browser) -> None:
    subscribe(page, "news")
    page.click("#connect")
    page.wait_for(f"{STATE} === 'closed'")
    assert page.text("#state-text").startswith("Closed 1000")
    assert page.evaluate("document.querySelector('#publish').disabled")
    page.click("#connect")
    page.wait_for(f"{STATE} === 'open'")
    page.wait_for(f"document.querySelector({json.dumps(chip('news') + '[data-live=true]')})")


def test_a_server_that_stops_is_shown_and_waited_for(chromium: str) -> None:
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


# Sockets the test speaks for, in place of real ones.
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


def test_codes_say_who_comes_back(puppets: Browser) -> None:
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


def test_who_comes_back_does_so_by_itself_and_others_do_not(puppets: Browser) -> None:
    puppets.evaluate("puppets[0].ends(4012)")
    puppets.wait_for("puppets.length === 2")
    puppets.evaluate("Math.random = () => 0; puppets[1].ends(4500)")
    puppets.evaluate("new Promise((done) => setTimeout(done, 0))")  # a timer of 0 ms has run before it
    assert puppets.evaluate("puppets.length") == 2


def test_the_page_waits_as_long_as_it_is_asked_to(puppets: Browser) -> None:
    bye = '{"op": "bye", "code": 4012, "reason": "drain", "reconnect": true, "retry_ms": 60000}'
    puppets.evaluate(
        f"puppets[0].opens(); puppets[0].says({WELCOME}); puppets[0].says({bye}); puppets[0].ends(4012)"
    )
    assert "Closed 4012 drain, next try in 60." in puppets.text("#state-text")


def test_the_page_waits_longer_each_time_until_it_is_welcome(puppets: Browser) -> None:
    # With the dice at their highest the wait is the ceiling.
    waits = puppets.evaluate(f"""(() => {{
        Math.random = () => 1;
        const again = () => dispatchEvent(new Event("online"));
        const wait = () => document.querySelector("#state-text").textContent.match(/in ([0-9.]+) s/)[1];
        const waits = [];
        for (let turn = 0; turn < 8; turn += 1) {{ puppets.at(-1).ends(1006); waits.push(wait()); again(); }}
        puppets.at(-1).opens();
        puppets.at(-1).says({WELCOME});
        puppets.at(-1).ends(1006);
        return [...waits, wait()];
    }})()""")
    assert waits == ["0.5", "1.0", "2.0", "4.0", "8.0", "16.0", "30.0", "30.0", "0.5"]


def test_subscriptions_come_back_with_the_connection(puppets: Browser) -> None:
    puppets.evaluate(f"puppets[0].opens(); puppets[0].says({WELCOME})")
    puppets.click("#subscribe")
    puppets.evaluate("puppets[0].says({op: 'subbed', ch: 'news', id: 1}); puppets[0].ends(1006)")
    puppets.wait_for("puppets.length === 2")
    puppets.evaluate(f"puppets[1].opens(); puppets[1].says({WELCOME})")
    sent = [json.loads(text) for text in puppets.evaluate("puppets[1].sent")]
    assert sent == [{"op": "sub", "ch": "news", "id": 2}]
    assert puppets.evaluate("puppets[1].protocols") == ["wsgate.v1.json"]


def test_a_subscription_refused_for_now_is_asked_for_again(puppets: Browser) -> None:
    refused = """{"op": "err", "id": 1, "ch": "news", "code": 503, "error": "unavailable", "message": "later",
        "retry_ms": 1}"""
    puppets.evaluate(f"puppets[0].opens(); puppets[0].says({WELCOME})")
    puppets.click("#subscribe")
    puppets.evaluate(f"puppets[0].says({refused})")
    puppets.wait_for("puppets[0].sent.length === 2")
    assert json.loads(puppets.evaluate("puppets[0].sent[1]")) == {"op": "sub", "ch": "news", "id": 2}


def test_the_log_keeps_the_newest_rows_only(page: Browser, gateway: Gateway) -> None:
    subscribe(page, "news")
    with redis.Redis.from_url(gateway.bus_url) as bus, bus.pipeline(transaction=False) as pipeline:
        for start in range(0, 700, 100):  # not more at once than an outbox takes, however slow the browser is
            for number in range(start, start + 100):
                pipeline.publish("wsgate:ch:news", f'"number {number}"')
            pipeline.execute()
            page.wait_for(shown("msg", "in", f"number {start + 99}"))
    assert page.evaluate("document.querySelectorAll('#log li').length") == 500
    assert page.text("#count-publications") == "700"
    log = "document.querySelector('#log')"
    assert page.evaluate(f"{log}.scrollHeight - {log}.scrollTop - {log}.clientHeight < 2"), "it follows"


# --- looks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [SMALLEST_PX, 800, 1280, 2560])
@pytest.mark.parametrize("is_dark", [False, True])
def test_nothing_sticks_out_at_any_width(page: Browser, gateway: Gateway, width: int, is_dark: bool) -> None:
    page.show_as(width=width, height=800, is_dark=is_dark)
    subscribe(page, "x" * 200)
    publish(gateway, "x" * 200, json.dumps({"long": "y" * 3_000}))
    page.wait_for(shown("msg", "in", "yyy"))
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.evaluate("document.querySelector('#log').scrollLeft = 999")
    assert page.evaluate("document.querySelector('#log').scrollLeft") == 0


def test_both_themes_are_drawn(page: Browser) -> None:
    colours = set()
    for is_dark in (False, True):
        page.show_as(width=1280, height=800, is_dark=is_dark)
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2


def test_everything_has_a_name_and_can_be_reached_by_keyboard(page: Browser) -> None:
    nameless = page.evaluate("""[...document.querySelectorAll("input, textarea, button")]
        .filter((each) => !(each.labels?.length || each.textContent.trim() || each.ariaLabel))
        .map((each) => each.outerHTML)""")
    assert nameless == []
    assert page.evaluate("document.querySelector('#log').tabIndex") == 0
    assert page.evaluate("document.querySelector('#state').ariaLive") == "polite"
