"""Generate the reference of every setting from `wsgate/config/settings.py`.

The meaning of a setting is the comment above its field. `tests/unit/config/test_config.py` compares range and
default in that comment with the ones that the code applies.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import msgspec

from docs.generate.markdown import code, head, listed, paragraph
from wsgate.config import settings
from wsgate.config.settings import Config, Section, fields_of, kind_of
from wsgate.node.options import FIXED

__all__ = ["page"]

SOURCE: Final = Path(settings.__file__)
NAMES: Final = {"keys": "<kid>", "channels": "<namespace>"}
"""What stands for a name that the operator chooses, by the key of the dictionary."""
# A sentence with the range, then one with the default, end the comment above a field.
ENDING: Final = re.compile(
    r"(?:(?:(?P<unit>Duration|Size), )?(?P<range>[0-9]\w* to [0-9]\w*)\. )?"
    r"(?P<default>Default(?::)? [^ ].*|No default)\.$"
)
TYPES: Final = {
    "duration": "duration",
    "size": "size",
    "secret": "text, a secret",
    "secret_url": "URL, treated as a secret",
    "public_key": "text in PEM format",
}
ABOUT: Final = (
    "Every setting of `wsgate serve` has a key in a TOML file and an environment variable. The file is"
    " the one that `--config` or the variable `WSGATE_CONFIG` names. An environment variable replaces the"
    " value of the file, and an option of the command line replaces both. `wsgate check-config` prints the"
    " settings in effect.",
    "A duration is text with one unit: `250ms`, `25s`, `5m` or `1h`. A size is text with one unit"
    " (`512B`, `64KiB`, `1MiB`, `2GiB`) or a number of bytes. In an environment variable, the values of a"
    " list are separated by spaces. A secret can also be read from a file: the key has the ending `_file`"
    " then, and its value is the path.",
    "A running node reads the configuration again when it receives SIGHUP. The entry *On SIGHUP* says"
    " whether a changed setting is applied then or needs a restart. The line `config_reloaded` of the"
    " [log](log-events.md) lists the changed settings that need a restart.",
)


def page() -> str:
    """Return the page."""
    return head("Configuration", "wsgate/config/settings.py") + "".join(_parts())


def _parts() -> Iterator[str]:
    yield from (paragraph(text) for text in ABOUT)
    for info in fields_of(Config):
        name = info.encode_name
        path = (name, NAMES[name]) if name in NAMES else (name,)
        yield from _section_parts(_section(info), path, name)


def _section_parts(section: type[Section], path: tuple[str, ...], top: str) -> Iterator[str]:
    """A heading for the section, an entry for each of its keys, and the sections below it."""
    yield f"## `[{'.'.join(path)}]`\n\n"
    for text in (section.__doc__ or "").split("\n\n"):
        about = " ".join(text.split()).partition("`: ")
        yield paragraph(_upper(about[2]) if about[1] else about[0])
    below = []
    for info in fields_of(section):
        if isinstance(info.type, msgspec.inspect.DictType):
            below.append((_section(info), (*path, info.encode_name, NAMES[info.encode_name])))
        else:
            yield from _entry(section, info, path, top)
    for child, child_path in below:
        yield from _section_parts(child, child_path, top)


def _entry(section: type, info: msgspec.inspect.Field, path: tuple[str, ...], top: str) -> Iterator[str]:
    key = ".".join((*path, info.encode_name))
    comment = _comment(section, info.name)
    ending = ENDING.search(comment)
    assert ending is not None, f"{key}: the comment does not end with its default"
    yield f"### `{key}`\n\n"
    yield paragraph(comment[: ending.start()].strip())
    variable = "WSGATE_" + "__".join((*path, info.encode_name)).upper()
    kind = kind_of(info)
    rows = [
        f"Type: {_type(info)}" + (f", {ending['range']}" if ending["range"] else ""),
        _default(ending["default"]),
        f"Environment: {code(variable)}",
        f"On SIGHUP: {_sighup(top, info.encode_name)}",
    ]
    if kind in ("secret", "secret_url", "public_key"):
        rows.insert(3, f"From a file: {code(f'{key}_file')} or {code(f'{variable}_FILE')}")
    yield listed(rows)


def _default(text: str) -> str:
    """`Default "5s"` as an item of the list, with the value as code."""
    value, comma, more = re.sub(r"^Default:? ", "", text).partition(", ")
    if text == "No default":
        return "Default: none, the key is required"
    return f"Default: {code(value)}{comma}{more}"


def _sighup(section: str, key: str) -> str:
    names = FIXED.get(section)
    is_fixed = names is not None and (not names or key in names)
    return "needs a restart" if is_fixed else "applied"


def _type(info: msgspec.inspect.Field) -> str:
    if kind := kind_of(info):
        return TYPES[kind]
    kind_of_type: Any = info.type
    if isinstance(kind_of_type, msgspec.inspect.Metadata):
        kind_of_type = kind_of_type.type
    match kind_of_type:
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType():
            return "integer"
        case msgspec.inspect.LiteralType():
            return "one of " + ", ".join(code(value) for value in _choices(kind_of_type))
        case msgspec.inspect.VarTupleType():
            inner = kind_of_type.item_type
            if isinstance(inner, msgspec.inspect.LiteralType):
                return "list of " + ", ".join(code(value) for value in _choices(inner))
            return "list of texts"
    return "text"


def _choices(info: msgspec.inspect.LiteralType) -> list[str]:
    """The values in the order of the source, which msgspec sorts."""
    for each in vars(settings).values():
        if set(get_args(each)) == set(info.values):
            return [str(value) for value in get_args(each)]
    return [str(value) for value in info.values]


def _section(info: msgspec.inspect.Field) -> type[Section]:
    kind = info.type
    if isinstance(kind, msgspec.inspect.DictType):
        kind = kind.value_type
    assert isinstance(kind, msgspec.inspect.StructType)
    assert issubclass(kind.cls, Section)
    return kind.cls


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _comment(section: type, field: str) -> str:
    """The comment above a field of a section, as one line."""
    source = SOURCE.read_text(encoding="utf-8")
    lines = source.splitlines()
    [line] = [
        node.lineno - 1
        for owner in ast.parse(source).body
        if isinstance(owner, ast.ClassDef) and owner.name == section.__name__
        for node in owner.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == field
    ]
    above: list[str] = []
    while lines[line - 1].startswith("    # "):
        line -= 1
        above.insert(0, lines[line].removeprefix("    # "))
    return " ".join(above)
