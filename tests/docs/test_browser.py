"""The built documentation in a browser, from disk: no request, no error, and no page wider than a phone."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.browser import Browser, find_chromium, running_browser
from tests.support.pages import ROOT

pytestmark = pytest.mark.slow

PHONE_WIDTH: Final = 390
OPENED: Final = (
    "docs/index",
    "docs/getting-started",
    "docs/concepts",
    "docs/reference/configuration",
    "docs/reference/metrics",
)
WIDER: Final = """
    [...document.querySelectorAll('article *')]
        .filter((element) => element.getBoundingClientRect().right > innerWidth + 1)
        .filter((element) => !element.closest('.table-wrapper, pre, .highlight'))
        .map((element) => element.outerHTML.slice(0, 120))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The directory with the built pages, and the warnings of the build."""
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "--builder", "html", "--conf-dir", "docs", "--quiet"]
    command += ["--doctree-dir", str(folder / "doctrees"), ".", str(folder / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield folder / "html", done.stderr


def test_the_build_has_no_warning(built: tuple[Path, str]) -> None:
    assert built[1] == ""


def test_no_page_names_anything_of_the_network(built: tuple[Path, str]) -> None:
    """A link that a reader clicks may lead outside; a script, style, font or picture must not."""
    pages = sorted(built[0].rglob("*.html"))
    assert len(pages) > len(OPENED)
    loads = r'<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//|<link[^>]*\shref="(?:https?:)?//'
    assert [page.name for page in pages if re.search(loads, page.read_text(encoding="utf-8"))] == []
    styles = sorted(built[0].rglob("*.css"))
    assert styles
    outside = r"(?:url\(|@import )[\"']?(?:https?:)?//"
    assert [style.name for style in styles if re.search(outside, style.read_text(encoding="utf-8"))] == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium here, and none can be installed")
    with running_browser(chromium) as running:
        running.command("Network.enable")
        yield running


def requests(browser: Browser) -> list[str]:
    """The address of everything that the page has loaded, and of the page itself."""
    loaded: list[str] = browser.evaluate(
        "[location.href, ...performance.getEntriesByType('resource').map((entry) => entry.name)]"
    )
    return loaded


@pytest.mark.parametrize("page", OPENED)
def test_a_page_opens_from_disk_on_a_phone(built: tuple[Path, str], browser: Browser, page: str) -> None:
    path = built[0] / f"{page}.html"
    browser.faults.clear()
    browser.show_as(width=PHONE_WIDTH, height=844)
    # Nothing can be answered: a page that needs the network shows an error on the console.
    conditions: dict[str, Any] = {
        "offline": True,
        "latency": 0,
        "downloadThroughput": -1,
        "uploadThroughput": -1,
    }
    browser.command("Network.emulateNetworkConditions", **conditions)
    browser.open(path.as_uri())
    assert browser.evaluate("document.querySelector('h1') !== null")
    assert [each for each in requests(browser) if not each.startswith(("file:", "data:"))] == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= PHONE_WIDTH
    assert browser.evaluate(WIDER) == []
    assert browser.faults == []
