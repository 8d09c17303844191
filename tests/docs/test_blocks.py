"""Every page's blocks run as a reader types them, and do what the page says."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.doc_blocks import Block, PageError, matches, parse_page, skipped

ROOT: Final = Path(__file__).resolve().parents[2]
GENERATED: Final = ROOT / "docs" / "reference"
NOT_YET: Final = frozenset[str]()
"""Pages that are still to be written so that their blocks run."""
PAGE_S: Final = 900

PAGES: Final = sorted(
    page
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if not page.is_relative_to(GENERATED) and page.name not in NOT_YET
)
SKIPPED_PART: Final = 10
"""At most one block in so many is not run."""


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _has_code(page: Path) -> bool:
    return bool(skipped(parse_page(page.read_text()))[0])


def run(page: Path) -> subprocess.CompletedProcess[str]:
    """The session of a page, stopped when it takes too long, with everything that runs for it."""
    command = [sys.executable, "-m", "tests.support.doc_session", str(page)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, errors = process.communicate(timeout=PAGE_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            _, errors = process.communicate()
            errors += f"not within {PAGE_S} s"
        return subprocess.CompletedProcess(command, process.returncode, "", errors)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if _has_code(page)], ids=_name)
def test_every_block_of_a_page_does_what_the_page_says(page: Path) -> None:
    done = run(page)
    assert done.returncode == 0, done.stderr


def test_at_most_one_block_in_ten_is_not_run() -> None:
    code: list[Block] = []
    left_out: list[str] = []
    for page in PAGES:
        blocks, without = skipped(parse_page(page.read_text()))
        code += blocks
        left_out += [f"{_name(page)}:{block.line}: {block.reason_not_to_run}" for block in without]
    assert len(code) > 0
    assert len(left_out) * SKIPPED_PART <= len(code), (len(code), left_out)


# --- a page that is wrong turns the test red ----------------------------------------------------------


def page_of(*blocks: str) -> str:
    return "\n\n".join(["# A page", *blocks]) + "\n"


def fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocks", "cause"),
    [
        pytest.param(
            [fenced("shell", "echo a\nfalse\necho b")], "this block fails", id="a command that fails"
        ),
        pytest.param(
            [fenced("shell", "wsgate --version")], "command not found", id="a command that is not there"
        ),
        pytest.param(
            [fenced("shell", ". .venv/bin/activate"), fenced("python", "print(unknown)")],
            "NameError",
            id="an exception",
        ),
        pytest.param(
            [fenced("javascript", "import { Client } from './wsgate.js'")],
            "Cannot find module",
            id="a module",
        ),
        pytest.param(
            [fenced("shell", "echo hello"), "This prints:", fenced("text", "hallo")],
            "but it was:\nhello",
            id="output",
        ),
        pytest.param(
            [fenced("shell", "true"), "This prints:", fenced("text", "hello")], "but it was:", id="no output"
        ),
        pytest.param(
            ["<!-- background: up -->\n" + fenced("shell", "echo down; exit 3")],
            "It ended with 3",
            id="no server",
        ),
        pytest.param(
            ["<!-- fails -->\n" + fenced("shell", "true")], "should fail and does not", id="no failure"
        ),
    ],
)
def test_a_broken_block_turns_the_page_red(tmp_path: Path, blocks: list[str], cause: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(page_of(*blocks))
    done = run(page)
    assert done.returncode == 1, done.stderr
    assert cause in done.stderr
    assert "page.md, line " in done.stderr


@pytest.mark.slow
def test_a_page_with_the_same_blocks_in_order_is_green(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        page_of(
            fenced("shell", "NAME=news\nmkdir folder\ncd folder"),
            fenced("shell", 'test -d ../docs && echo "$NAME" | tee name.txt'),
            "This prints:",
            fenced("text", "ne..."),
            "<!-- background: up -->\n" + fenced("shell", 'echo "up in $PWD"; cat'),
            "The terminal prints:",
            "<!-- output of: up -->\n" + fenced("text", "up in ...folder"),
            "<!-- ctrl-c: up -->",
            "<!-- fails -->\n" + fenced("shell", "ls nowhere"),
        )
    )
    done = run(page)
    assert done.returncode == 0, done.stderr


# --- reading a page -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        pytest.param(fenced("bash", "ls"), "no language of these pages", id="an unknown label"),
        pytest.param(fenced("", "ls"), "no language of these pages", id="no label"),
        pytest.param("```shell\nls\n", "has no end", id="no end"),
        pytest.param("<!-- no-run: -->\n" + fenced("shell", "ls"), "has no text", id="no reason"),
        pytest.param("<!-- no-run: it is long -->\n\nSome text.\n", "not followed by a block", id="no block"),
        pytest.param("<!-- no-run: it is long -->\n", "not followed by a block", id="the end"),
    ],
)
def test_a_page_that_cannot_be_understood_is_refused(text: str, cause: str) -> None:
    with pytest.raises(PageError, match=cause):
        parse_page(text)


def test_blocks_have_their_remarks_their_file_names_and_their_announcements() -> None:
    page = page_of(
        "Save this:",
        fenced("python", "# hello.py\nprint(1)"),
        "It prints a\nnumber:",
        fenced("text", "1"),
        "Not this one.",
        "<!-- no-run: it needs a phone -->\n" + fenced("shell", "# not a name\nls"),
        "- in a list\n\n  " + fenced("php", "<?php\n// token.php\necho 1;").replace("\n", "\n  "),
    )
    hello, printed, skip, token = (step for step in parse_page(page) if isinstance(step, Block))
    assert (hello.file_name, hello.is_announced, hello.text) == ("hello.py", False, "# hello.py\nprint(1)\n")
    assert (printed.language, printed.is_announced, printed.is_code) == ("text", True, False)
    assert (skip.reason_not_to_run, skip.file_name, skip.is_announced) == ("it needs a phone", None, False)
    assert (token.file_name, token.text) == ("token.php", "<?php\n// token.php\necho 1;\n")
    assert skipped(parse_page(page)) == ([hello, skip, token], [skip])


@pytest.mark.parametrize(
    ("expected", "printed", "is_match"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\nb\n", "a\nb\nc\n", False),
        ("a\n...\nc\n", "a\nc\n", True),
        ("a\n...\nc\n", "a\nb\nb\nc\n", True),
        ("a\n...\n", "a\n", True),
        ('{"conn":"..."}\n', '{"conn":"9f2c"}\n', True),
        ('{"conn":"..."}\n', '{"conn":"9f\n2c"}\n', False),
        ("a.b\n", "axb\n", False),
        ("a\n", "a  \n", True),
    ],
)
def test_dots_stand_for_what_differs_from_run_to_run(expected: str, printed: str, is_match: bool) -> None:
    assert (matches(expected, printed) is not None) is is_match
    assert matches(expected, f"before\n{printed}after\n", somewhere=True) is not None or not is_match
