"""Each decision has the same four parts, and its evidence names commits that exist."""

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "docs" / "decisions"
PAGES: Final = sorted(FOLDER.glob("[0-9]*.md"))
PARTS: Final = ["Context", "Decision", "Consequences", "Evidence"]
COMMIT: Final = re.compile(r"\b[Cc]ommits? ([0-9a-f]{7})\b")


def exists(commit: str) -> bool:
    command = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def has_history() -> bool:
    """Return whether the repository is a full clone: an archive or a shallow clone has no old commits."""
    command = ["git", "rev-parse", "--is-shallow-repository"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.returncode == 0 and found.stdout.strip() == "false"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_has_the_four_parts_in_order(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == PARTS
    assert text.startswith(f"# {int(page.name[:4])}. ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_evidence_cites_at_least_one_commit_and_each_exists(page: Path) -> None:
    cited = COMMIT.findall(page.read_text(encoding="utf-8").partition("## Evidence")[2])
    assert cited
    if not has_history():
        pytest.skip("this is not a full clone")
    assert [commit for commit in cited if not exists(commit)] == []


def test_invented_commit_does_not_exist() -> None:
    if not has_history():
        pytest.skip("this is not a full clone")
    assert not exists("0123456")


def test_index_lists_every_page_once() -> None:
    linked = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (FOLDER / "index.md").read_text(encoding="utf-8"))
    assert sorted(linked) == [page.name for page in PAGES]
    assert len(PAGES) >= 12
