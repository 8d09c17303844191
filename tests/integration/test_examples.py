"""The examples, run as their commands run them."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.support.browser import Browser, find_chromium, running_browser

pytestmark = pytest.mark.slow

_START_S = 60
_END_S = 60


@contextlib.contextmanager
def running_example(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """`python -m examples...` in a session of its own; nothing of it is left behind."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    watchdog = threading.Timer(_START_S, process.kill)  # a test that waits for a line must not wait for ever
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


def test_push_to_a_phone_that_goes_away() -> None:
    """Every notification is shown once, also those that came while it was away; nobody is left behind."""
    with running_example("examples.push", "--count", "9", "--every", "0.1") as process:
        assert process.stdout is not None
        told = process.stdout.read()
        assert process.wait(_END_S) == 0, told
    assert "9 pushed, 9 shown, each once and in order" in told
    assert told.index("gone") < told.index("back; has all up to 3, requests the rest")


@pytest.fixture(scope="module")
def chat() -> Iterator[str]:
    """The page's address."""
    with running_example("examples.chat", "--port", "0", "--gateway-port", "0") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("open http://"), line
        yield line.split()[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(_END_S) == 0
        assert not _is_anything_left(process.pid)


def _is_anything_left(session: int) -> bool:
    """Whether a process group of this leader lives on."""
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


def test_two_people_chat(chat: str) -> None:
    """They see each other and what is said, before and after one of them came; text stays text."""
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


def test_a_name_that_is_none(chat: str) -> None:
    """The page says so, and nobody comes in."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium here, and none could be installed")
    with running_browser(chromium) as browser:
        browser.open(chat)
        browser.evaluate("document.querySelector('#login').noValidate = true")
        browser.fill("#name", "a b")
        browser.click("#login button")
        browser.wait_for("document.querySelector('#wrong').textContent.includes('The login failed')")
