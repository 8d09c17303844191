"""Read the pages of the documentation, and the comments and docstrings of the code.

The same parser that Sphinx uses reads the pages, so text in a code block is never taken for a link.
"""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

__all__ = ["ROOT", "Quote", "anchors", "code_texts", "fault_of_citation", "fault_of_link", "pages", "quotes"]

ROOT: Final = Path(__file__).resolve().parents[2]
SINGLE_PAGES: Final = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
PAGE_FOLDERS: Final = ("docs", "protocols")
CODE_FOLDERS: Final = ("wsgate", "tests", "loadtest", "examples", "docs", "protocols", "tools")
CODE_ENDINGS: Final = (".py", ".pyi", ".pyx", ".pxd", ".js", ".mjs", ".c", ".h", ".sh", ".lua")
OUTPUT: Final = "loadtest/results/"
"""Programs write here; what they write is not part of the repository."""
_PYTHON: Final = (".py", ".pyi")
# A path below a directory of the repository, with a name in the file or the anchor of a heading.
_FOLDERS: Final = "|".join(re.escape(folder) for folder in (*CODE_FOLDERS, ".ci"))
CITATION: Final = re.compile(
    rf"(?<![\w./-])(?P<path>(?:{_FOLDERS})/[\w./*-]*[\w/*])(?::(?P<name>[A-Za-z_][\w.]*))?(?:#(?P<anchor>[\w-]+))?"
)
_DEFINES: Final = r"\b(?:def|class|cdef|cpdef|ctypedef|enum|struct|function|const|let|var|define|local)\b"


class Quote(NamedTuple):
    """A link or a piece of code on a page, or a comment or docstring in a file."""

    place: str  # path and line, for messages
    path: Path
    text: str


def pages() -> list[Path]:
    """Return every page of the documentation."""
    found = [ROOT / name for name in SINGLE_PAGES]
    for folder in PAGE_FOLDERS:
        found += sorted((ROOT / folder).rglob("*.md"))
    return [path for path in found if path.exists()]


@cache
def _tokens(path: Path) -> list[Token]:
    parser = MarkdownIt("commonmark").enable("table")
    return parser.parse(path.read_text(encoding="utf-8"))


@cache
def anchors(path: Path) -> frozenset[str]:
    """Return the anchors of all headings of a page, as GitHub and Sphinx make them, and explicit ones."""
    found: list[str] = []
    seen: Counter[str] = Counter()
    tokens = _tokens(path)
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            children = tokens[index + 1].children or []
            text = "".join(child.content for child in children if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
            found.append(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
        elif token.type in ("html_block", "inline"):
            found += re.findall(r'<a (?:id|name)="([^"]+)"', token.content)
    found += re.findall(r"^\(([\w-]+)\)=$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(found)


def quotes(path: Path, kind: str) -> Iterator[Quote]:
    """Yield every link (`link`), or every piece of inline code (`code`), of a page."""
    for token in _tokens(path):
        for child in token.children or []:
            place = f"{path.relative_to(ROOT)}:{(token.map or [0])[0] + 1}"
            if kind == "link" and child.type == "link_open":
                yield Quote(place, path, str(child.attrGet("href")))
            elif kind == "link" and child.type == "image":
                yield Quote(place, path, str(child.attrGet("src")))
            elif kind == "code" and child.type == "code_inline":
                yield Quote(place, path, child.content)


def fault_of_link(quote: Quote) -> str:
    """Return what is wrong with a link; empty if it resolves, or leads out of the repository."""
    if re.match(r"[a-z][a-z0-9+.-]*:", quote.text):
        return ""
    target, _, anchor = quote.text.partition("#")
    path = (quote.path.parent / target).resolve() if target else quote.path
    if not path.is_relative_to(ROOT) or not path.exists():
        return f"{quote.place}: the link {quote.text} leads to no file"
    if anchor and (path.suffix != ".md" or anchor not in anchors(path)):
        return f"{quote.place}: the link {quote.text} leads to no heading"
    return ""


def fault_of_citation(quote: Quote) -> str:
    """Return what is wrong with a text that cites files of the repository; empty if all of them exist.

    A path may contain `*`. A path may be followed by `:name`, the name of something that the file defines, or
    by `#anchor`, a heading of the page.
    """
    for match in CITATION.finditer(quote.text):
        shown = f"{quote.place}: the citation {match[0]}"
        path = ROOT / match["path"]
        if match["path"].startswith(OUTPUT):
            continue
        if "*" in match["path"]:
            if not any(ROOT.glob(match["path"])):
                return f"{shown} matches no file"
            continue
        if not path.exists():
            return f"{shown} names no file"
        if match["anchor"] and (path.suffix != ".md" or match["anchor"] not in anchors(path)):
            return f"{shown} names no heading"
        if match["name"] and not _defines(path, match["name"]):
            return f"{shown} names nothing that the file defines"
    return ""


def _defines(path: Path, name: str) -> bool:
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return name in _python_names(path)
    last = re.escape(name.rpartition(".")[2])
    if path.suffix in (".pyi", ".pyx", ".pxd", ".js", ".mjs", ".c", ".h", ".lua"):
        line = rf"^[^\n\"#]*{_DEFINES}[^=\n(]*\b{last}\b|^\s+(?:async |static |#)*{last}\s*[(=,#\n]"
        return re.search(line, text, re.MULTILINE) is not None
    return re.search(rf"(?<![\w-]){last}(?![\w-])", text) is not None


@cache
def _python_names(path: Path) -> frozenset[str]:
    """Everything that a module defines: `name`, `Class`, `Class.method`."""
    found: set[str] = set()

    def walk(body: list[ast.stmt], before: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(before + node.name)
                walk(node.body, f"{before}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(before + target.id for target in targets if isinstance(target, ast.Name))
                found.update(
                    before.rpartition("__init__")[0] + target.attr
                    for target in targets
                    if isinstance(target, ast.Attribute)
                )
            elif isinstance(node, ast.If | ast.Try | ast.With):
                walk(node.body, before)

    walk(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


@cache
def code_texts() -> tuple[Quote, ...]:
    """Return every comment and docstring of Python code, and every line of other code."""
    files = [path for folder in CODE_FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    return tuple(
        quote for path in files if path.suffix in CODE_ENDINGS and path.is_file() for quote in _texts(path)
    )


def _texts(path: Path) -> Iterator[Quote]:
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
    if path.suffix not in _PYTHON:
        for number, line in enumerate(text.splitlines(), 1):
            yield Quote(f"{name}:{number}", path, line)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield Quote(f"{name}:{token.start[0]}", path, token.string)
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield Quote(f"{name}:{node.lineno}", path, node.value.value)
