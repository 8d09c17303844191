"""The pictures of the documents are what docs/draw_pictures.py draws, and it draws what the source says."""

from typing import Final
from xml.etree import ElementTree

import pytest

from docs.draw_pictures import CLOSING, PICTURES, STRUCTS, TARGET, Box, Picture, draw_all, read_states

STRUCTS_TEXT: Final = STRUCTS.read_text(encoding="utf-8")
CLOSING_TEXT: Final = CLOSING.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_committed_picture_equals_the_drawn_one(name: str) -> None:
    committed = (TARGET / name).read_text(encoding="utf-8")
    assert committed == draw_all()[name], "run: python -m docs.draw_pictures"


def test_no_committed_picture_is_without_a_drawing_function() -> None:
    assert {path.name for path in TARGET.iterdir()} == set(PICTURES)


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_picture_is_well_formed_and_loads_nothing(name: str) -> None:
    text = (TARGET / name).read_text(encoding="utf-8")
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()}
    assert tags <= {"svg", "title", "style", "defs", "marker", "path", "rect", "text", "polyline"}
    assert "prefers-color-scheme: dark" in text


def test_states_are_those_of_the_enumeration() -> None:
    states = read_states(STRUCTS_TEXT, CLOSING_TEXT)
    assert states.chain == ("HEAD", "DECIDING", "OPEN", "FAILING", "CLOSING", "LINGERING", "GONE")
    assert set(states.edges) == {("OPEN", "CLOSING"), ("HEAD", "CLOSING"), ("DECIDING", "CLOSING")}
    assert states.exits == "GONE"
    assert all(states.texts[name] for name in states.chain)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    STATE_LINGERING\n", ""),
        ("OPEN -> FAILING", "FAILING -> OPEN"),
        ("    DECIDING   the caller", "    DECIDED    the caller"),
    ],
)
def test_drawing_that_contradicts_the_enumeration_is_refused(old: str, new: str) -> None:
    assert old in STRUCTS_TEXT
    with pytest.raises(ValueError, match=r"structs\.pxd"):
        read_states(STRUCTS_TEXT.replace(old, new), CLOSING_TEXT)


def test_transition_to_an_unknown_state_is_refused() -> None:
    assert "CLOSING -> LINGERING" in CLOSING_TEXT
    with pytest.raises(ValueError, match=r"closing\.pyx"):
        read_states(STRUCTS_TEXT, CLOSING_TEXT.replace("CLOSING -> LINGERING", "CLOSING -> WAITING"))


def test_text_that_does_not_fit_its_box_is_refused() -> None:
    picture = Picture("a test")
    picture.box(Box(0, 0, 80, 40), "short")
    with pytest.raises(ValueError, match="wider"):
        picture.box(Box(0, 0, 80, 40), "a much longer title")
