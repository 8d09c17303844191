"""Find the fenced blocks of a Markdown page, and the remarks that say how a test treats them. Pure.

A remark is an HTML comment on a line of its own, which readers do not see:

| remark | before | meaning |
|---|---|---|
| `<!-- no-run: reason -->` | a block | the block is not run, for this reason |
| `<!-- background: text -->` | a shell block | it keeps its terminal; it is ready when it has printed this |
| `<!-- fails -->` | a shell block | the last command must fail |
| `<!-- output of: text -->` | a text block | compare with the terminal whose commands contain the text |
| `<!-- browser: url -->` | anything | open the address in a browser, which stays open |
| `<!-- browser shows -->` | a text block | the open page shows these lines |
| `<!-- ctrl-c: text -->` | anything | press Ctrl-C in the terminal whose commands contain the text |

A block whose first line is a comment with a file name (`# hello.py`, `// hello.mjs`, `<!-- index.html -->`)
is saved under this name, and is run by the shell block that names it. In PHP the comment stands in the second
line.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["LANGUAGES", "Block", "PageError", "Remark", "Step", "matches", "parse_page", "skipped"]

LANGUAGES: Final = frozenset({"shell", "python", "javascript", "php", "go"})
"""Blocks in these languages are run."""
SAVED: Final = frozenset({"html", "toml"})
"""Blocks in these are only saved, where they have the name of a file."""
SHOWN: Final = frozenset({"text", "json", "nginx", "yaml", "ini", "sql", "css", "c", "cython", "mermaid"})
"""Blocks in these are only read."""

_FENCE: Final = re.compile(r"^(?P<indent> *)(?P<marks>`{3,}|~{3,})(?P<label>[^`]*)$")
_REMARK: Final = re.compile(r"^\s*<!--\s*(?P<text>.*?)\s*-->\s*$")
_STEPS: Final = re.compile(r"^(?:browser|ctrl-c):")
_NAME: Final = re.compile(r"^(?:#|//|<!--) ?(?P<name>[\w.-]+\.(?:py|js|mjs|php|go|html|toml))(?: -->)?$")
_SPEAKS: Final = re.compile(r"\bprints?\b")


class PageError(AssertionError):
    """A page has a block that cannot be understood, or one that does not do what the page says."""


@dataclass(frozen=True)
class Remark:
    """A remark that is a step of its own: `browser` or `ctrl-c`, and what it names."""

    verb: str
    object: str
    line: int


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: The label of its fence.
        text: Its lines, without the fence and the indentation of the fence.
        line: The line of its fence in the page, from 1.
        remarks: Those directly before it, by their verb; the value is empty where a remark names nothing.
        is_announced: Whether the paragraph before it contains the word "print" or "prints".
    """

    language: str
    text: str
    line: int
    remarks: dict[str, str]
    is_announced: bool

    @property
    def is_code(self) -> bool:
        """Whether a reader can run the block."""
        return self.language in LANGUAGES

    @property
    def reason_not_to_run(self) -> str | None:
        """The reason of `no-run`, or None."""
        return self.remarks.get("no-run")

    @property
    def file_name(self) -> str | None:
        """The name under which a reader saves the block, or None."""
        for line in self.text.splitlines()[: 2 if self.language == "php" else 1]:
            if match := _NAME.match(line):
                return match["name"]
        return None


Step = Block | Remark


def parse_page(text: str) -> list[Step]:
    """Return the blocks and the remarks of a page that are steps, in their order.

    Raises:
        PageError: A fence has no label or an unknown one, a fence is not closed, or a remark is malformed.
    """
    return list(_steps(text.splitlines()))


def skipped(steps: Sequence[Step]) -> tuple[list[Block], list[Block]]:
    """Return the blocks of a page that could be run, and those of them that are not."""
    code = [step for step in steps if isinstance(step, Block) and step.is_code]
    return code, [block for block in code if block.reason_not_to_run is not None]


def matches(expected: str, printed: str, *, somewhere: bool = False) -> re.Match[str] | None:
    """Compare what was printed with what a page shows.

    Args:
        expected: The block of the page. A line `...` stands for any lines, `...` in a line for any text.
        printed: What was printed.
        somewhere: Whether other lines may come before and after.
    """
    lines = [_line_pattern(line.rstrip()) for line in expected.rstrip("\n").split("\n")]
    pattern = "".join(lines)
    tidy = "".join(f"{line.rstrip()}\n" for line in printed.rstrip("\n").split("\n"))
    if somewhere:
        return re.compile(f"^{pattern}", re.MULTILINE).search(tidy)
    return re.compile(pattern).fullmatch(tidy)


def _line_pattern(line: str) -> str:
    if line == "...":
        return r"(?:.*\n)*?"
    return ".*".join(re.escape(part) for part in line.split("...")) + r"\n"


def _steps(lines: list[str]) -> Iterator[Step]:
    remarks: dict[str, str] = {}
    paragraph: list[str] = []
    paragraph_has_ended = False
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if match := _REMARK.match(line):
            text = match["text"]
            verb, _, rest = (part.strip() for part in text.partition(":"))
            if _STEPS.match(text):
                yield Remark(verb, rest, number)
            elif verb in ("no-run", "background", "fails", "output of", "browser shows"):
                if verb in ("no-run", "background", "output of") and not rest:
                    raise PageError(f"line {number}: the remark {verb} has no text")
                remarks[verb] = rest
        elif match := _FENCE.match(line):
            opened = number
            body = []
            while True:
                if number == len(lines):
                    raise PageError(f"line {opened}: the block has no end")
                line = lines[number]
                number += 1
                if line.strip() == match["marks"]:
                    break
                body.append(line.removeprefix(match["indent"]))
            language = match["label"].strip()
            if not language.startswith("{") and language not in LANGUAGES | SAVED | SHOWN:
                raise PageError(
                    f"line {opened}: a block in {language!r}, which is no language of these pages"
                )
            announced = _SPEAKS.search(" ".join(paragraph)) is not None
            yield Block(language, "".join(f"{each}\n" for each in body), opened, remarks, announced)
            remarks, paragraph = {}, []
        elif not line.strip():
            paragraph_has_ended = True
        else:
            if remarks:
                raise PageError(f"line {number}: the remark {next(iter(remarks))} is not followed by a block")
            if paragraph_has_ended:
                paragraph = []
            paragraph_has_ended = False
            paragraph.append(line)
    if remarks:
        raise PageError(f"the remark {next(iter(remarks))} at the end of the page is not followed by a block")
