"""The generated pages of docs/reference are what the code says now."""

import pytest

from docs.generate import COMMAND, FOLDER, PAGES


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_generated_page_is_up_to_date(name: str) -> None:
    path = FOLDER / name
    written = path.read_text(encoding="utf-8") if path.exists() else ""
    assert written == PAGES[name](), f"docs/reference/{name} is out of date: run {COMMAND}"


def test_every_page_of_the_reference_is_generated() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(PAGES)
