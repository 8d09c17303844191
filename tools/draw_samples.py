"""Draw functions, tests or messages at random, for readers who match texts with code.

    python tools/draw_samples.py functions KEY
    python tools/draw_samples.py tests KEY
    python tools/draw_samples.py messages KEY

Prints code without its names, docstrings and comments, and the texts that belong to it in another order. A
reader who has not seen the code says which text belongs to which code. The pairs are written to the file KEY.
The seed is the hash of the commit that is checked out, so nobody chooses the samples. `functions` prints ten
groups of eight functions, each group from one package; `tests` prints 40 tests in five groups. `messages`
prints names and help of 30 metrics and log events: one reader describes from the code when each is written,
another one matches the descriptions.
"""

import argparse
import ast
import io
import random
import re
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wsgate.log_events import EVENTS

__all__ = ["Sample", "draw", "main", "samples_of"]

ROOT: Final = Path(__file__).resolve().parents[1]
GROUPS: Final = 10
SIZE: Final = 8
TESTS: Final = 40
MESSAGES: Final = 30
LEAST_LINES: Final = 3
"""A shorter body says too little to be recognised by it."""
_CYTHON: Final = re.compile(
    r"^( *)(?:cdef|cpdef|def) (?:inline )?[^\n=]*?\b(\w+)\((?:[^()]|\([^()]*\))*\)[^\n:]*:\n"
    r'\1    """(.*?)"""\n'
    r"((?:\1    [^\n]*\n|\n)+)",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Sample:
    """One function: where it is, its text and its code.

    Attributes:
        place: File and name.
        text: The first line of the docstring, or the name of a test in words.
        code: The code without the name, docstrings and comments.
    """

    place: str
    text: str
    code: str


def samples_of(path: Path) -> Iterator[Sample]:
    """Yield the functions with a docstring of a Python or Cython file."""
    source = path.read_text(encoding="utf-8")
    place = path.relative_to(ROOT).as_posix()
    if path.suffix == ".pyx":
        for found in _CYTHON.finditer(source):
            head = found[0].partition('"""')[0].replace(found[2], "f", 1)
            code = "\n".join(line for line in _without_comments(head + found[4]) if line.strip())
            yield from _sample(place, found[2], found[3], code)
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            name, node.name = node.name, "f"
            if text:
                node.body = node.body[1:]
            for inner in ast.walk(node):
                if inner is not node and isinstance(inner, ast.FunctionDef | ast.ClassDef):
                    inner.body = [part for part in inner.body if not _is_text(part)] or [ast.Pass()]
            if node.body:
                code = ast.unparse(node)
                yield from _sample(place, name, text if not name.startswith("test_") else name, code)


def _is_text(node: ast.stmt) -> bool:
    """Return whether a statement is a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _sample(place: str, name: str, text: str, code: str) -> Iterator[Sample]:
    """Yield a sample if it has a text and enough code."""
    first = text.strip().partition("\n")[0]
    if first and code.count("\n") >= LEAST_LINES:
        yield Sample(
            f"{place}:{name}", first.removeprefix("test_").replace("_", " ") if name == text else first, code
        )


def _without_comments(source: str) -> list[str]:
    """Return the lines of a piece of Cython without comments."""
    lines = textwrap.dedent(source).split("\n")
    try:
        for token in tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column].rstrip()
    except (tokenize.TokenError, IndentationError):
        lines = [re.sub(r" +# .*", "", line) for line in lines]
    return lines


def draw(kind: str, chance: random.Random) -> list[list[Sample]]:
    """Return the groups of samples of one kind."""
    if kind == "tests":
        files = sorted((ROOT / "tests").rglob("test_*.py"))
        every = [each for path in files for each in samples_of(path) if ":test_" in each.place]
        chosen = chance.sample(every, TESTS)
        return [chosen[place : place + SIZE] for place in range(0, TESTS, SIZE)]
    rooms = sorted(path for path in (ROOT / "wsgate").iterdir() if path.is_dir())
    found = []
    for room in rooms:
        files = sorted(path for path in room.rglob("*") if path.suffix in (".py", ".pyx"))
        every = [each for path in files for each in samples_of(path)]
        if len(every) >= 2 * SIZE:
            found.append(every)
    return [chance.sample(every, SIZE) for every in chance.sample(found, GROUPS)]


def _messages(chance: random.Random) -> list[Sample]:
    """Return metrics with their help and log events with their meaning."""
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    every = [
        Sample(name, " ".join(text.split()), "")
        for name, text in re.findall(r"^### `(\w+)`\n\n(.+?)\n\n", page, re.MULTILINE | re.DOTALL)
    ]
    every += [Sample(f"log event {event.name}", event.meaning, "") for event in EVENTS]
    return chance.sample(every, MESSAGES)


def main() -> int:
    """Print the samples, and write the pairs to a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=("functions", "tests", "messages"))
    parser.add_argument("key", type=Path, help="the file for the pairs")
    options = parser.parse_args()
    seed = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True)
    chance = random.Random(f"{seed.stdout.strip()} {options.kind}")  # noqa: S311 - no secret depends on it
    print(f"seed {seed.stdout.strip()}")
    if options.kind == "messages":
        chosen = _messages(chance)
        print("\n".join(f"{number}. {each.text}" for number, each in enumerate(chosen, 1)))
        options.key.write_text(
            "".join(f"{n}. {each.place}\n" for n, each in enumerate(chosen, 1)), encoding="utf-8"
        )
        return 0
    pairs = []
    for number, group in enumerate(draw(options.kind, chance), 1):
        print(f"\n===== group {number} =====\n")
        for letter, each in zip("ABCDEFGH", group, strict=True):
            print(f"--- {letter}\n{each.code}\n")
        texts = chance.sample(group, len(group))
        for place, each in enumerate(texts, 1):
            print(f"{place}. {each.text}")
        pairs += [
            f"{number}{letter} {texts.index(each) + 1} {each.place}"
            for letter, each in zip("ABCDEFGH", group, strict=True)
        ]
    options.key.write_text("\n".join(pairs) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
