"""List the measuring programs, or run one of them: ``python -m loadtest [NAME [ARGUMENTS]]``."""

import ast
import runpy
import sys
from pathlib import Path
from typing import Final

__all__ = ["describe", "find_programs"]

_FOLDER: Final = Path(__file__).resolve().parent
_ROOMS: Final = (".", "experiments", "micro")
"""The directories whose programs are listed; `.` is loadtest/ itself."""


def find_programs() -> dict[str, Path]:
    """Find the programs: the file of each, by the name under which it is run.

    A program is a module, or a package with a `__main__.py`, that can be run by itself.
    """
    programs = {}
    for room in _ROOMS:
        for path in sorted((_FOLDER / room).iterdir()):
            file = path / "__main__.py" if path.is_dir() and room != "." else path
            if file.suffix == ".py" and file.exists() and path.name != "__main__.py" and _can_run(file):
                programs[path.stem] = file
    return programs


def _can_run(file: Path) -> bool:
    return 'if __name__ == "__main__":' in file.read_text(encoding="utf-8")


def describe(file: Path) -> str:
    """Return the first line of a program's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def main(arguments: list[str]) -> int:
    """Run the program that the first argument names; without arguments, list all programs."""
    programs = find_programs()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\n")
        width = max(map(len, programs))
        for name, file in programs.items():
            print(f"  {name:{width}}  {describe(file)}")
        return 0
    name, *rest = arguments
    if name not in programs:
        print(f"There is no program {name!r}; `python -m loadtest` lists them.", file=sys.stderr)
        return 2
    file = programs[name]
    path = file.parent if file.name == "__main__.py" else file.with_suffix("")
    module = ".".join(["loadtest", *path.relative_to(_FOLDER).parts])
    sys.argv = [f"python -m loadtest {name}", *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
