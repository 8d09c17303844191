"""Check the mechanical part of the style guide: docstrings of the gateway and help texts of its metrics.

Usage: python -m tests.support.check_words [--shrink]

The first line of a docstring in wsgate/ has five words or more, and does not begin with a word that stands
for the noun. Lines that break the rule today are listed in `docstring-allowlist.txt`. The list only gets
shorter: an entry that no docstring needs any more is a fault, and `--shrink` removes such entries.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["faults_of_docstrings", "faults_of_helps", "first_lines", "is_poor"]

ROOT: Final = Path(__file__).resolve().parents[2]
ALLOWLIST: Final = Path(__file__).with_name("docstring-allowlist.txt")
WORDS_LEAST: Final = 5
BEGINNINGS: Final = frozenset({"it", "its", "who", "whose", "that", "of", "as", "what", "their"})
_PYTHON: Final = (".py", ".pyi")
# In Cython a docstring is the first text after the colon that ends the head of a function or class.
_CYTHON_DOCSTRING: Final = re.compile(r'(?:\A|:[ \t]*(?:#[^\n]*)?\n)\s*"""(.*)')


def main() -> int:
    """Print every fault; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shrink", action="store_true", help="remove entries that are not needed any more")
    options = parser.parse_args()
    lines = {line: place for place, line in first_lines()}
    allowed = ALLOWLIST.read_text(encoding="utf-8").splitlines()
    if options.shrink:
        allowed = [line for line in allowed if line in lines and is_poor(line)]
        ALLOWLIST.write_text("".join(f"{line}\n" for line in allowed), encoding="utf-8")
    faults = [*faults_of_docstrings(lines, allowed), *faults_of_helps(_helps())]
    for fault in faults:
        print(fault)
    print(f"{len(lines)} first lines, {len(allowed)} entries in the allowlist, {len(faults)} faults")
    return int(bool(faults))


def is_poor(line: str) -> bool:
    """Whether a first line cannot be understood alone: too short, or with a stand-in for its noun."""
    words = line.split()
    return len(words) < WORDS_LEAST or words[0].strip("`\"'.,;:").lower() in BEGINNINGS


def first_lines() -> Iterator[tuple[str, str]]:
    """Yield the place and the first line of every docstring in the gateway."""
    for path in sorted((ROOT / "wsgate").rglob("*")):
        if path.suffix in (*_PYTHON, ".pyx", ".pxd"):
            text = path.read_text(encoding="utf-8")
            found = _of_python(text) if path.suffix in _PYTHON else _of_cython(text)
            yield from ((f"{path.relative_to(ROOT)}:{number}", line) for number, line in found)


def _of_python(text: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield getattr(node, "lineno", 1), docstring.splitlines()[0]


def _of_cython(text: str) -> Iterator[tuple[int, str]]:
    for match in _CYTHON_DOCSTRING.finditer(text):
        head = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        if head.lstrip().startswith("cdef extern"):
            continue  # what follows is C code
        yield text.count("\n", 0, match.start(1)) + 1, match[1].partition('"""')[0].strip()


def faults_of_docstrings(lines: dict[str, str], allowed: list[str]) -> Iterator[str]:
    """Yield one line per fault: a poor first line that is not listed, or an entry that is not needed.

    Args:
        lines: Every first line, with its place.
        allowed: The entries of the allowlist.
    """
    for line, place in lines.items():
        if is_poor(line) and line not in allowed:
            yield f"{place}: the docstring does not say enough in its first line: {line}"
    for line in allowed:
        if line not in lines or not is_poor(line):
            yield f"{ALLOWLIST.name}: no docstring needs this entry (--shrink removes it): {line}"


def _helps() -> dict[str, str]:
    # Only here: the metrics need the compiled modules, and the rest of this module does not.
    from docs.generate.metrics import families

    return {family.name: family.documentation for family in families()}


def faults_of_helps(helps: dict[str, str]) -> Iterator[str]:
    """Yield one line for every help text that is not made of full sentences.

    Args:
        helps: The help text of each metric, by its name.
    """
    for name, text in helps.items():
        if is_poor(text) or not text[0].isupper() or not text.endswith("."):
            yield f"{name}: the help is not a full sentence: {text}"


if __name__ == "__main__":
    sys.exit(main())
