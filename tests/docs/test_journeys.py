"""The journeys of docs/architecture.md name functions that exist and that call each other in this order."""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "architecture.md"
SECTION: Final = "## Four journeys"

_STEP: Final = re.compile(r"^(\d+)\. `([\w./]+):([\w.]+)` (.+)$")
_CALLER: Final = re.compile(r" \(caller: `([\w./]+):([\w.]+)`\)\.$")
_CYTHON: Final = re.compile(r"^( *)(?:cdef|cpdef|def) [^=(]*?(\w+)\(")
_CLASS: Final = re.compile(r"^(?:cdef )?class (\w+)")


class Step(NamedTuple):
    """One line of a journey."""

    number: int
    file: str
    function: str
    caller: tuple[str, str] | None  # None: the step before


def read_journeys(text: str) -> list[list[Step]]:
    """Return the numbered lists of the section, each of them one journey."""
    section = text.partition(SECTION + "\n")[2].partition("\n## ")[0]
    journeys: list[list[Step]] = []
    for line in section.splitlines():
        if not re.match(r"\d+\. ", line):
            continue
        match = _STEP.match(line)
        assert match, f"no step of the form `file:function`, and one sentence: {line}"
        caller = _CALLER.search(line)
        step = Step(int(match[1]), match[2], match[3], (caller[1], caller[2]) if caller else None)
        if step.number == 1:
            journeys.append([])
        journeys[-1].append(step)
    return journeys


@cache
def functions_of(file: str) -> Mapping[str, str]:
    """Return the code of each function of a source file, by its name with its class, without docstrings."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return dict(_python_functions(text) if file.endswith(".py") else _cython_functions(text))


def _python_functions(text: str) -> Iterator[tuple[str, str]]:
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, _code_of(node)
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{inner.name}", _code_of(inner)


def _code_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return "\n".join(ast.unparse(statement) for statement in body)


def _cython_functions(text: str) -> Iterator[tuple[str, str]]:
    lines = re.sub(r'"""(?:.|\n)*?"""', "", text).splitlines()
    lines = [re.sub(r" *#(?!include|define|ifndef|endif).*$", "", line) for line in lines]
    owner = ""
    for place, line in enumerate(lines):
        if found := _CLASS.match(line):
            owner = found[1] + "."
        elif line and not line[0].isspace():
            owner = ""
        if found := _CYTHON.match(line):
            yield (owner if found[1] else "") + found[2], _block(lines, place, len(found[1]))


def _block(lines: list[str], start: int, depth: int) -> str:
    """The lines of a function after its signature, which may take several lines."""
    while not lines[start].rstrip().endswith(":"):
        start += 1
    body = []
    for line in lines[start + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) <= depth:
            break
        body.append(line)
    return "\n".join(body)


def fault_of(step: Step, before: Step | None) -> str:
    """Return what is wrong with a step; empty if nothing is."""
    if not (ROOT / step.file).is_file():
        return f"there is no file {step.file}"
    if step.function not in functions_of(step.file):
        return f"{step.file} has no function {step.function}"
    caller = step.caller or ((before.file, before.function) if before else None)
    if caller is None:
        return ""
    if not (ROOT / caller[0]).is_file() or caller[1] not in functions_of(caller[0]):
        return f"there is no caller {caller[0]}:{caller[1]}"
    owner, _, name = step.function.rpartition(".")
    name = owner if name == "__init__" else name
    if not re.search(rf"\b{name}\b", functions_of(caller[0])[caller[1]]):
        return f"{caller[0]}:{caller[1]} does not refer to {name}"
    return ""


JOURNEYS: Final = read_journeys(PAGE.read_text(encoding="utf-8"))
STEPS: Final = [
    (step, journey[place - 1] if place else None)
    for journey in JOURNEYS
    for place, step in enumerate(journey)
]


def test_page_has_five_lists_numbered_without_a_gap() -> None:
    assert len(JOURNEYS) == 5
    for journey in JOURNEYS:
        assert [step.number for step in journey] == list(range(1, len(journey) + 1))
        assert len(journey) >= 6


@pytest.mark.parametrize(
    ("step", "before"), STEPS, ids=lambda each: each and f"{each.number}-{each.function}"
)
def test_step_exists_and_is_called_by_its_caller(step: Step, before: Step | None) -> None:
    assert fault_of(step, before) == ""


PUMP: Final = Step(1, "wsgate/shard/process.py", "Shard._pump", None)


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        (Step(2, "wsgate/shard/none.py", "f", None), "there is no file"),
        (Step(2, "wsgate/shard/process.py", "Shard._pomp", None), "has no function"),
        (Step(2, "wsgate/reactor/loop.pyx", "poll", None), "has no function"),
        (Step(2, "wsgate/reactor/gate.pyx", "judge", None), "does not refer to judge"),
        (Step(2, "wsgate/reactor/gate.pyx", "judge", ("wsgate/reactor/gate.pyx", "none")), "no caller"),
        (
            Step(2, "wsgate/reactor/gate.pyx", "refuse", ("wsgate/reactor/gate.pyx", "judge")),
            "does not refer",
        ),
    ],
)
def test_wrong_step_is_found(step: Step, fault: str) -> None:
    assert fault in fault_of(step, PUMP)


def test_right_step_passes() -> None:
    assert fault_of(Step(2, "wsgate/reactor/loop.pyx", "Reactor.poll", None), PUMP) == ""


def test_name_in_a_comment_or_docstring_is_no_call() -> None:
    text = 'cdef void outer(int a) noexcept nogil:\n    """Calls inner."""\n    a += 1    # inner\n'
    assert "inner" not in dict(_cython_functions(text))["outer"]
