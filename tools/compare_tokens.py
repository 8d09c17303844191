"""Show that a change touches words only: compare the code of two commits without comments and docstrings.

    python tools/compare_tokens.py BEFORE [AFTER]

Compares every .py, .pyi, .pyx, .pxd and .js file that both commits have, token by token; without AFTER, the
files of the working tree. Prints each file whose code differs, with the first difference, and exits with 1 if
there is one.
"""

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import Final

__all__ = ["code_tokens"]

ROOT: Final = Path(__file__).resolve().parents[1]
SUFFIXES: Final = frozenset({".py", ".pyi", ".pyx", ".pxd", ".js"})
_LAYOUT: Final = frozenset({tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER})
_BEFORE_STATEMENT: Final = frozenset({tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT})
# A string, a template or a regular expression is matched first, so that what looks like a comment in it
# stays.
_JAVASCRIPT: Final = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`|/(?![*/])(?:\\.|[^/\\\n])+/[a-z]*(?=[.,;)]))
    |(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<word>\w+)|(?P<sign>\S)""",
    re.VERBOSE | re.DOTALL,
)


def code_tokens(name: str, text: str) -> list[str]:
    """Return the tokens of a file, without comments, docstrings and blank lines.

    Raises:
        tokenize.TokenError: The file is not complete: a bracket or a string is open at its end.
    """
    if name.endswith(".js"):
        return [match[0] for match in _JAVASCRIPT.finditer(text) if match["comment"] is None]
    tokens: list[str] = []
    is_statement_start = True
    pending: str | None = None  # a string that starts a statement: a docstring if the statement ends with it
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in _LAYOUT:
            continue
        if pending is not None and token.type != tokenize.NEWLINE:
            tokens.append(pending)
        elif pending is not None:
            pending = None
            is_statement_start = True
            continue
        pending = None
        if token.type == tokenize.STRING and is_statement_start:
            pending = token.string
        else:
            tokens.append(tokenize.tok_name[token.type] if token.type in _BEFORE_STATEMENT else token.string)
        is_statement_start = token.type in _BEFORE_STATEMENT
    return tokens


def _read(commit: str | None, name: str) -> str:
    if commit is None:
        return (ROOT / name).read_text(encoding="utf-8")
    command = ["git", "show", f"{commit}:{name}"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _names(commit: str | None) -> set[str]:
    command = ["git", "ls-tree", "-r", "--name-only", commit] if commit else ["git", "ls-files"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split() if Path(name).suffix in SUFFIXES}


def _first_difference(before: list[str], after: list[str]) -> str:
    for number, (old, new) in enumerate(zip(before, after, strict=False)):
        if old != new:
            return f"{' '.join(before[max(0, number - 5) : number])} [{old} -> {new}]"
    return f"{len(before)} tokens became {len(after)}"


def main(arguments: list[str]) -> int:
    """Compare two commits, or a commit and the working tree; return the exit code."""
    before = arguments[0]
    after = arguments[1] if len(arguments) > 1 else None
    differing = 0
    names = sorted(_names(before) & _names(after))
    for name in names:
        old, new = _read(before, name), _read(after, name)
        if old == new:
            continue
        old_tokens, new_tokens = code_tokens(name, old), code_tokens(name, new)
        if old_tokens != new_tokens:
            differing += 1
            print(f"{name}: {_first_difference(old_tokens, new_tokens)}")
    print(f"{len(names)} files compared, the code of {differing} differs")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
