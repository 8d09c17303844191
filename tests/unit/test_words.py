"""Check that the check of the words finds the faults that it looks for."""

import pytest

from tests.support.check_words import faults_of_docstrings, faults_of_helps, first_lines, is_poor


@pytest.mark.parametrize(
    "line",
    [
        "One shard's.",
        "It does again.",
        "Who would have to live on here.",
        "What a peer may still send to us.",
    ],
)
def test_first_line_without_a_subject_is_poor(line: str) -> None:
    assert is_poor(line)


def test_a_whole_sentence_is_not_poor() -> None:
    assert not is_poor("Return the first connection of a user.")


def test_a_new_poor_line_and_an_entry_without_use_are_faults() -> None:
    lines = {"Of it.": "a.py:1", "As before.": "a.py:2", "Close the connection with a code.": "a.py:3"}
    allowed = ["As before.", "Close the connection with a code.", "Gone from the code."]
    assert [fault.partition(":")[0] for fault in faults_of_docstrings(lines, allowed)] == [
        "a.py",
        "docstring-allowlist.txt",
        "docstring-allowlist.txt",
    ]


def test_docstrings_of_compiled_modules_are_found() -> None:
    places = {place.partition(":")[0] for place, _ in first_lines()}
    assert {"wsgate/reactor/gate.pyx", "wsgate/reactor/structs.pxd", "wsgate/log.py"} <= places


@pytest.mark.parametrize(
    "text", ["Their bytes.", "Bytes of events for backends", "of events that wait, bytes."]
)
def test_a_help_that_is_no_sentence_is_a_fault(text: str) -> None:
    assert len(list(faults_of_helps({"wsgate_x": text}))) == 1
