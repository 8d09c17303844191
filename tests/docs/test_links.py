"""Links, anchors and cited files lead to something that exists."""

from pathlib import Path
from typing import Final

import pytest

from tests.support.pages import (
    ROOT,
    Quote,
    anchors,
    code_texts,
    fault_of_citation,
    fault_of_link,
    pages,
    quotes,
)

PAGES: Final = pages()


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_pages_are_found() -> None:
    names = {name(path) for path in PAGES}
    assert {"README.md", "SECURITY.md", "docs/index.md", "protocols/client/v1/spec.md"} <= names


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_relative_link_and_anchor_of_a_page_resolves(path: Path) -> None:
    assert [fault for quote in quotes(path, "link") if (fault := fault_of_link(quote))] == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_file_that_a_page_cites_exists(path: Path) -> None:
    assert [fault for quote in quotes(path, "code") if (fault := fault_of_citation(quote))] == []


def test_every_file_that_a_comment_or_docstring_cites_exists() -> None:
    faults = [fault for quote in code_texts() if (fault := fault_of_citation(quote))]
    assert faults == []


# --- that these tests can fail --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ("reference/metrics.md#counters", ""),
        ("../README.md", ""),
        ("https://example.com/nothing", ""),
        ("no-such-page.md", "leads to no file"),
        ("../../../etc/passwd", "leads to no file"),
        ("#no-such-heading", "leads to no heading"),
        ("../README.md#no-such-heading", "leads to no heading"),
        ("../pyproject.toml#name", "leads to no heading"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(link: str, fault: str) -> None:
    found = fault_of_link(Quote("x.md:1", ROOT / "docs" / "index.md", link))
    assert (fault in found) if fault else found == ""


@pytest.mark.parametrize(
    ("citation", "fault"),
    [
        ("wsgate/log.py", ""),
        ("wsgate/log.py:Log", ""),
        ("wsgate/log.py:Log.warning", ""),
        ("wsgate/reactor/structs.pxd:RECEIVE_BYTES", ""),
        ("wsgate/reactor/*.pyx", ""),
        ("wsgate/shard/", ""),
        ("make test", ""),
        ("/etc/wsgate/x.py", ""),
        ("wsgate/no_such_file.py", "names no file"),
        ("wsgate/*.rs", "matches no file"),
        ("wsgate/log.py:Log.no_such_method", "names nothing"),
        ("wsgate/reactor/structs.pxd:NO_SUCH_NUMBER", "names nothing"),
        ("README.md and docs/index.md#no-such-heading", "names no heading"),
    ],
)
def test_a_citation_of_nothing_is_found(citation: str, fault: str) -> None:
    found = fault_of_citation(Quote("x.md:1", ROOT / "README.md", citation))
    assert (fault in found) if fault else found == ""


def test_anchors_are_made_as_github_makes_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `wsgate.x` title, twice\n\n## Same\n\n## Same\n\n```\n# no heading\n```\n")
    assert anchors(page) == {"a-wsgatex-title-twice", "same", "same-1"}
