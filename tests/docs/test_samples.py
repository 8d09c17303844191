"""Check how tools/draw_samples.py takes functions out of files: no sample may give its text away."""

from pathlib import Path

import pytest

from tools import draw_samples

PYTHON = '''
def double(value: int) -> int:
    """Return twice the value.

    More text.
    """
    # a comment
    def inner() -> int:
        """Return it."""
        return value
    return inner() + value

def test_a_name_of_words() -> None:
    value = 1
    value += 1
    assert value
'''
CYTHON = '''
cdef inline int grow(Core *core, uint32_t size) noexcept nogil:
    """Grow the array; return 0, or -1 without memory."""
    cdef int place
    if size > 4:
        return 0               # already large
    return -1
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(draw_samples, "ROOT", tmp_path)
    return tmp_path


def test_python_sample_has_no_name_docstring_or_comment(folder: Path) -> None:
    (folder / "a.py").write_text(PYTHON)
    double, test = draw_samples.samples_of(folder / "a.py")
    assert (double.place, double.text) == ("a.py:double", "Return twice the value.")
    assert double.code.startswith("def f(value: int) -> int:\n")
    assert not any(word in double.code for word in ("double", "comment", "Return", "text"))
    assert (test.place, test.text) == ("a.py:test_a_name_of_words", "a name of words")
    assert "words" not in test.code


def test_cython_sample_has_no_name_docstring_or_comment(folder: Path) -> None:
    (folder / "a.pyx").write_text(CYTHON)
    (grow,) = draw_samples.samples_of(folder / "a.pyx")
    assert (grow.place, grow.text) == ("a.pyx:grow", "Grow the array; return 0, or -1 without memory.")
    assert not any(word in grow.code for word in ("grow", "Grow", "already"))
    assert "return -1" in grow.code
