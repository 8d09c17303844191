"""Drive a headless Chromium for one test over the DevTools protocol.

Source: https://chromedevtools.github.io/devtools-protocol/ for the commands.
"""

import base64
import contextlib
import itertools
import json
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.support.packages import find_or_install, find_program

__all__ = ["Browser", "BrowserError", "find_chromium", "running_browser"]

ANSWER_S = 30.0
STOP_S = 10
MESSAGE_LIMIT_BYTES = 64 * 1024 * 1024  # a screenshot is one message


class BrowserError(AssertionError):
    """The browser refused a command, or a script on the page failed."""


def find_chromium() -> str | None:
    """Return the path of a Chromium, which is installed if that is allowed; None without one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return find_or_install(lambda: find_program(*names), ["chromium"])


@dataclass
class Browser:
    """One tab of a browser, with methods for its page."""

    process: subprocess.Popen[str]
    connection: ClientConnection
    session: str = ""
    faults: list[str] = field(default_factory=list)  # uncaught exceptions and errors on the console
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one DevTools command and return its answer."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.connection.send(json.dumps(message))
        while True:
            answer: dict[str, Any] = json.loads(self.connection.recv(timeout=ANSWER_S))
            if answer.get("id") == number:
                break
            self._note(answer)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.faults.append(details.get("exception", {}).get("description", details["text"]))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.faults.append(parameters["entry"]["text"])

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self.command("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression, which is awaited when it is a promise."""
        answer = self.command(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait_for(self, claim: str, within_ms: int = 15_000) -> None:
        """Wait until an expression is true; the page checks it at each drawing or 20 ms later."""
        script = f"""new Promise((resolve) => {{
            const until = performance.now() + {within_ms};
            (function look() {{
                if ({claim}) resolve(true);
                else if (performance.now() > until) resolve(false);
                else setTimeout(look, 20);
            }})();
        }})"""
        if not self.evaluate(script):
            raise BrowserError(f"never true: {claim}\n{self.evaluate('document.body.innerText')}")

    def click(self, selector: str) -> None:
        """Click an element as a person would."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def fill(self, selector: str, text: str) -> None:
        """Replace the text of a field."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
        self.command("Input.insertText", text=text)

    def text(self, selector: str) -> str:
        """Return the text that an element shows."""
        shown: str = self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")
        return shown

    def show_as(self, *, width: int, height: int, is_dark: bool = False) -> None:
        """Set the size of the window in CSS pixels, and the theme that the system prefers."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        theme = "dark" if is_dark else "light"
        self.command(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}]
        )

    def screenshot(self, path: Path) -> None:
        """Save the content of the window as PNG."""
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def running_browser(chromium: str) -> Iterator[Browser]:
    """Run a browser with one empty tab and a profile of its own; remove both afterwards."""
    with tempfile.TemporaryDirectory(prefix="wsgate-browser-", ignore_cleanup_errors=True) as profile:
        process = _launch(chromium, profile)
        assert process.stderr is not None
        # Read its output after the address, because a full pipe would stop it.
        rest = threading.Thread(target=process.stderr.read, daemon=True)
        try:
            address = _address(process)
            rest.start()
            with connect(address, max_size=MESSAGE_LIMIT_BYTES, proxy=None) as connection:
                browser = Browser(process, connection)
                target = browser.command("Target.createTarget", url="about:blank")["targetId"]
                attached = browser.command("Target.attachToTarget", targetId=target, flatten=True)
                browser.session = attached["sessionId"]
                for domain in ("Page", "Runtime", "Log"):
                    browser.command(f"{domain}.enable")
                yield browser
        finally:
            _end(process)
            if rest.is_alive():
                rest.join(STOP_S)
            process.stderr.close()


def _launch(chromium: str, profile: str) -> subprocess.Popen[str]:
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
    return subprocess.Popen(
        [chromium, *flags, "--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={profile}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _address(process: subprocess.Popen[str]) -> str:
    """Return the DevTools address, which the browser prints on standard error."""
    assert process.stderr is not None
    for line in process.stderr:
        if "DevTools listening on " in line:
            return line.split("DevTools listening on ")[1].strip()
    raise BrowserError(f"it ended instead: {process.wait(STOP_S)}")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_S)
