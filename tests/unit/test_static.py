"""Check rules for the source that `ruff` cannot check (O6): waivers, comparisons of secrets, loaders.

`ruff` runs its security rules over `wsgate` and `loadtest` in `make check`.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCES: Final = sorted(
    path
    for room in ("wsgate", "loadtest")
    for path in (ROOT / room).rglob("*.py")
    if "__pycache__" not in path.parts
)
SECRET: Final = re.compile(r"secret|password|token|api_key|hmac|digest|signature")
WAIVED: Final = re.compile(r"# noqa: [A-Z]+\d+(, [A-Z]+\d+)* - \w+")
LOADERS: Final = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
CALLS: Final = {"eval", "exec", "compile", "__import__"}


def names_in(node: ast.expr) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            yield each.id
        elif isinstance(each, ast.Attribute):
            yield each.attr


def faults(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if "# noqa" in line and not WAIVED.search(line):
            yield f"{number}: a waiver without a rule and a reason"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            is_equality = any(isinstance(each, ast.Eq | ast.NotEq) for each in node.ops)
            is_constant = any(isinstance(each, ast.Constant) for each in sides)
            if (
                is_equality
                and not is_constant
                and any(SECRET.search(name) for side in sides for name in names_in(side))
            ):
                yield f"{node.lineno}: a secret is compared in a time that depends on the secret"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [each.name for each in node.names] + [getattr(node, "module", None) or ""]
            if LOADERS & {module.partition(".")[0] for module in modules}:
                yield f"{node.lineno}: a loader that runs what it reads"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            yield f"{node.lineno}: {node.func.id} of something"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_o6_source_file_has_no_forbidden_waiver_comparison_or_loader(path: Path) -> None:
    assert list(faults(path.read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "x = 1  # noqa",
        "x = 1  # noqa: S311",
        "x = given == api_key",
        "x = self.secret != shown.secret",
        "import pickle",
        "from marshal import loads",
        "eval(x)",
    ],
)
def test_o6_forbidden_code_is_found(text: str) -> None:
    assert len(list(faults(text))) == 1


@pytest.mark.parametrize(
    "text", ["x = 1  # noqa: S311 - dice", "if secret == '': pass", "token is None", "x.eval()"]
)
def test_o6_allowed_code_is_not_reported(text: str) -> None:
    assert list(faults(text)) == []
