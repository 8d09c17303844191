"""List the words that this project uses far more often than well-known projects do.

    python tools/compare_words.py

Compares docstrings, comments and documents with the docstrings and comments of installed packages. A word
that stands here 6 times or more, and 20 times as often as there, is listed unless it is a term of the
glossary of docs/architecture.md. The forms of a word (`refuse`, `refused`) count as one. Names of the code
(with an underscore, a dot or a capital, or in backticks) are left out.
"""

import ast
import importlib.util
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["prose_of", "stem", "words_in"]

ROOT: Final = Path(__file__).resolve().parents[1]
MODELS: Final = ("websockets", "redis", "starlette", "uvicorn", "asyncio")
LEAST: Final = 6
FACTOR: Final = 20
_CODE: Final = re.compile(
    r"```.*?```|``.*?``|`[^`]*`|\S*[_./@:=<>(){}\[\]]\S*|\b\w*[a-z][A-Z]\w*\b", re.DOTALL
)
_WORD: Final = re.compile(r"\b[a-z]{3,}\b")


def words_in(text: str) -> Iterator[str]:
    """Yield the words of a text in lower case, without names of the code."""
    return (found[0] for found in _WORD.finditer(_CODE.sub(" ", text).lower()))


def prose_of(path: Path) -> str:
    """Return the docstrings and comments of a source file, or the whole text of a document."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix not in (".py", ".pyi", ".pyx", ".pxd"):
        return text
    found = []
    is_start = True
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                found.append(token.string.lstrip("#"))
            elif token.type == tokenize.STRING and is_start:
                found.append(token.string.strip("\"'rb"))
            if token.type not in (tokenize.COMMENT, tokenize.NL):
                is_start = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    except (tokenize.TokenError, SyntaxError):
        found.append(ast.get_docstring(ast.parse(text)) or "")
    return "\n".join(found)


def stem(word: str) -> str:
    """Return the word without an ending of a plural or of a verb: `refused` and `refuses` become `refus`."""
    for ending in ("ing", "es", "ed", "s", "e"):
        if len(word) > len(ending) + 2 and word.endswith(ending) and not word.endswith("ss"):
            return word.removesuffix(ending)
    return word


def _model_files() -> Iterator[Path]:
    for name in MODELS:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{name} is not installed")
        yield from Path(spec.origin).parent.rglob("*.py")


def _own_files() -> Iterator[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in listed.stdout.split():
        if name.endswith((".py", ".pyi", ".pyx", ".pxd", ".md")) and not name.startswith("docs/reference"):
            yield ROOT / name


def main() -> int:
    """Print the words with their counts here and there; return 1 if there is one."""
    own = Counter(stem(word) for path in _own_files() for word in words_in(prose_of(path)))
    models = Counter(stem(word) for path in _model_files() for word in words_in(prose_of(path)))
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    terms = re.findall(r"^\| ([^|]+) \|", page.partition("## Glossary")[2], re.MULTILINE)
    glossary = {stem(word) for term in terms for word in words_in(term)}
    scale = models.total() / own.total()
    listed = [
        (count, word)
        for word, count in own.items()
        if count >= LEAST and count * scale > FACTOR * max(models[word], 1) and word not in glossary
    ]
    for count, word in sorted(listed, reverse=True):
        print(f"{count:6} {models[word]:6}  {word}")
    print(f"{own.total()} words here, {models.total()} there; {len(listed)} words to explain or to replace")
    return int(bool(listed))


if __name__ == "__main__":
    sys.exit(main())
