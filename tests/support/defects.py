"""Planted defects: does each suite turn red?

    python -m tests.support.defects            every defect against every suite; 1 when one went unnoticed
    python -m tests.support.defects --plant length      changes the source in this directory: a copy, mind

Each is one change of one line in a copy of the source (tests/support/sanitize.sh), never a switch in what is
shipped. A line that is not there exactly once any more is a fault here, so that no defect rots unnoticed.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["DEFECTS", "SUITES", "Defect", "main", "plant"]


class Defect(NamedTuple):
    """One wrong line."""

    text: str
    file: str
    right: str
    wrong: str


DEFECTS: Final = {
    "length": Defect(
        "a length check that is off by one",
        "wsgate/reactor/messages.pyx",
        "            if header.length <= size - place and (",
        "            if header.length <= size - place + 1 and (",
    ),
    "leak": Defect(
        "a buffer that is not given back",
        "wsgate/reactor/partial.pyx",
        "    buffer_give(core, &c.input.message, KIND_PARTIAL)\n",
        "",
    ),
    "utf8": Defect(
        "a byte that UTF-8 validation skips",
        "wsgate/reactor/codec.pyx",
        "                if word & <uint64_t>0x8080808080808080:",
        "                if word & <uint64_t>0x0080808080808080:",
    ),
    "walk": Defect(
        "a subscriber that leaves in the middle of a walk",
        "wsgate/reactor/channels.pyx",
        "        if walk.channel == index and position < walk.left:",
        "        if walk.channel == index and position > walk.left:",
    ),
    "element": Defect(
        "an element of an array whose kind is not looked at",
        "wsgate/bus/push.pyx",
        '    return count == 3 and is_kind(&pieces[0], b"message") and pieces[1].kind == PIECE_BULK',
        '    return count == 3 and is_kind(&pieces[0], b"message")',
    ),
    "inflate": Defect(
        "an inflater that does not ask whether a block was whole",
        "wsgate/reactor/inflate.pyx",
        "            if not inflater.eof or inflater.unused_data:",
        "            if inflater.unused_data:",
    ),
}
QUIET: Final = ("-q", "-x", "-p", "no:cacheprovider")
SUITES: Final[dict[str, tuple[Sequence[str], frozenset[str]]]] = {
    "unit": (("-m", "pytest", *QUIET, "tests/unit"), frozenset(DEFECTS) - {"utf8"}),
    "vectors": (
        ("-m", "pytest", *QUIET, "tests/conformance/test_vectors_reactor.py"),
        frozenset({"length", "utf8"}),
    ),
    "fuzz": (
        ("-m", "tests.fuzz.run", "--seed", "1", "--seconds", "60", "frames", "reactor", "pushes"),
        frozenset({"length", "leak", "utf8", "element"}),
    ),
}
"""A command for each suite, and what it must notice."""

TIME_LIMIT_S: Final = 600


def plant(name: str) -> None:
    """Change the source below the current directory.

    Raises:
        SystemExit: The line is not there exactly once.
    """
    defect = DEFECTS[name]
    path = Path(defect.file)
    text = path.read_text(encoding="utf-8")
    if text.count(defect.right) != 1:
        sys.exit(f"defect {name}: its line is {text.count(defect.right)} times in {defect.file}")
    path.write_text(text.replace(defect.right, defect.wrong), encoding="utf-8")


def notices(suite: str, defect: str) -> bool:
    """Whether a suite ends red when a defect is planted."""
    command, _ = SUITES[suite]
    done = subprocess.run(
        ["sh", "tests/support/sanitize.sh", sys.executable, *command],
        env={**os.environ, "WSGATE_DEFECT": defect},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    output = done.stdout + done.stderr
    if "sanitize:" in output or "defect " in output:
        sys.exit(output)  # nothing was tested
    return done.returncode != 0


def main(arguments: list[str] | None = None) -> int:
    """Plant, or prove."""
    parser = argparse.ArgumentParser(prog="tests.support.defects")
    parser.add_argument("--plant", choices=DEFECTS, metavar="DEFECT")
    parser.add_argument("defects", nargs="*", choices=[[], *DEFECTS])
    options = parser.parse_args(arguments)
    if options.plant:
        plant(options.plant)
        return 0
    unnoticed = 0
    for name in options.defects or DEFECTS:
        for suite, (_, expected) in SUITES.items():
            if name in expected:
                is_red = notices(suite, name)
                unnoticed += not is_red
                print(f"{suite}: {DEFECTS[name].text}: {'red' if is_red else 'UNNOTICED'}", flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
