"""Run the examples with the commands that their documents name."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.support.browser import Browser, find_chromium, running_browser
from tests.support.bus_fleet import running_cluster, running_sentinels
from tests.support.valkey import running_valkey

pytestmark = pytest.mark.slow

_START_S = 60
_END_S = 60


@contextlib.contextmanager
def running_example(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Run `python -m examples...` in a session of its own, and wait for its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    watchdog = threading.Timer(_START_S, process.kill)  # ends the test if the expected line never comes
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.terminate()
        assert process.stdout is not None
        process.stdout.close()
        process.wait(_END_S)


def test_push_example_shows_each_notification_once_although_the_phone_was_away() -> None:
    """Notifications that were sent while the phone was away are shown after its return."""
    with running_example("examples.push", "--count", "9", "--every", "0.1") as process:
        assert process.stdout is not None
        told = process.stdout.read()
        assert process.wait(_END_S) == 0, told
    assert "9 pushed, 9 shown, each once and in order" in told
    assert told.index("gone") < told.index("back; has all up to 3, requests the rest")


@contextlib.contextmanager
def bus_with_password() -> Iterator[str]:
    """Run a server with a password; yield its URL."""
    with running_valkey(requirepass="s3cret") as server:
        yield f"redis://:s3cret@127.0.0.1:{server.port}"


@contextlib.contextmanager
def bus_of_sentinels() -> Iterator[str]:
    """Run sentinels and the servers that they name; yield the URL."""
    with running_sentinels(replicas=1) as fleet:
        yield fleet.url


@contextlib.contextmanager
def bus_of_cluster() -> Iterator[str]:
    """Run a cluster; yield its URL."""
    with running_cluster() as fleet:
        yield fleet.url


@pytest.mark.parametrize("bus", [bus_with_password, bus_of_sentinels, bus_of_cluster])
def test_push_example_uses_the_given_bus_of_each_kind(
    bus: Callable[[], contextlib.AbstractContextManager[str]],
) -> None:
    """The gateway prints the URL without its password, so that the backend takes it from the option."""
    with (
        bus() as url,
        running_example("examples.push", "--count", "3", "--every", "0.1", "--redis", url) as process,
    ):
        assert process.stdout is not None
        told = process.stdout.read()
        assert process.wait(_END_S) == 0, told
    assert "3 pushed, 3 shown, each once and in order" in told


@pytest.fixture(scope="module")
def chat() -> Iterator[str]:
    """Run the chat example; yield the address of its page."""
    with running_example("examples.chat", "--port", "0", "--gateway-port", "0") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("open http://"), line
        yield line.split()[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(_END_S) == 0
        assert not _is_anything_left(process.pid)


def _is_anything_left(session: int) -> bool:
    """Whether the process group of this leader still exists."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, 0)
        return True
    return False


def _come_in(chat: str, name: str, browser: Browser) -> None:
    browser.open(chat)
    browser.fill("#name", name)
    browser.click("#login button")
    browser.wait_for("document.querySelector('#state').dataset.state === 'open'")


def _say(browser: Browser, text: str) -> None:
    browser.fill("#text", text)
    browser.click("#say button")


def test_chat_example_shows_two_people_each_other_and_all_lines_as_plain_text(chat: str) -> None:
    """The second one also sees the lines from before its login."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium here, and none could be installed")
    with running_browser(chromium) as ann:
        _come_in(chat, "ann", ann)
        _say(ann, "<b>is anybody here?</b>")
        ann.wait_for("document.querySelector('#lines').innerText.includes('<b>is anybody here?</b>')")
        with running_browser(chromium) as bob:
            _come_in(chat, "bob", bob)
            bob.wait_for("document.querySelector('#lines').innerText.includes('<b>is anybody here?</b>')")
            _say(bob, "bob is")
            for one in (ann, bob):
                one.wait_for("document.querySelector('#lines').innerText.includes('bob is')")
                one.wait_for("document.querySelector('#people').innerText.trim() === 'ann\\nbob'")
                assert one.evaluate("document.querySelectorAll('#lines li[data-at]').length") == 2
            assert bob.faults == []
        ann.wait_for("document.querySelector('#people').innerText.trim() === 'ann'")
        assert ann.faults == []


def test_chat_page_connects_when_it_is_opened_with_the_number_of_the_loopback(chat: str) -> None:
    """The origin of the page is http://127.0.0.1 then, which the gateway has to allow too."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium here, and none could be installed")
    with running_browser(chromium) as browser:
        _come_in(chat.replace("localhost", "127.0.0.1"), "dan", browser)
        assert browser.faults == []


REFUSE_FIRST_HISTORY = """(() => {
    window.historyCount = 0;
    const send = WebSocket.prototype.send;
    WebSocket.prototype.send = function (text) {
        const { op, id, data } = JSON.parse(text);
        if (op !== 'send' || data.op !== 'history') return send.call(this, text);
        window.historyCount += 1;
        if (window.historyCount > 1) return send.call(this, text);
        const reply = { op: 'err', id, code: 503, error: 'unavailable', message: '', retry_ms: 50 };
        setTimeout(() => this.dispatchEvent(new MessageEvent('message', { data: JSON.stringify(reply) })));
    };
})()"""
"""Answers the first request of the history with 503, and passes on everything else."""


def test_chat_page_requests_the_history_again_after_a_temporary_error(chat: str) -> None:
    """No gap follows while the connection stays, so that the page itself has to repeat the request."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium here, and none could be installed")
    with running_browser(chromium) as browser:
        browser.open(chat)
        browser.evaluate(REFUSE_FIRST_HISTORY)
        browser.fill("#name", "cat")
        browser.click("#login button")
        browser.wait_for("window.historyCount === 2")
        assert browser.faults == []


def test_chat_example_refuses_an_invalid_name_with_a_message(chat: str) -> None:
    """The page shows the fault and stays at the login."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium here, and none could be installed")
    with running_browser(chromium) as browser:
        browser.open(chat)
        browser.evaluate("document.querySelector('#login').noValidate = true")
        browser.fill("#name", "a b")
        browser.click("#login button")
        browser.wait_for("document.querySelector('#wrong').textContent.includes('The login failed')")
