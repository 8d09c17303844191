"""Read the configuration from a TOML file, the environment and flags; later sources override earlier ones.

Each source becomes one flat table from path to value, and each value is checked. The tables are merged
setting by setting. All mistakes are collected, so that one start reports all of them. No error text contains
a secret, nor the path given as `<name>_file`, because a user may put the secret itself there by mistake.

The name of an environment variable is `WSGATE_` and the path of the setting in upper case, joined by `__`;
names of keys and namespaces become lower case. A variable without `__` has no section and is no setting:
Kubernetes makes `WSGATE_PORT` for a Service called wsgate, and commands of this package use such variables. A
name that Kubernetes makes for a Service is no setting even if it has a `__`, such as
`WSGATE_A__B_SERVICE_HOST` for a Service called wsgate-a--b. These variables are ignored, and
`ignored_variables` lists them.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect

from wsgate.config.setting_files import SettingFile, check_file, file_text
from wsgate.config.settings import Config, dotted, faults, fields_of, kind_of, masked
from wsgate.config.units import format_duration, format_size, parse_duration_ms, parse_size_bytes, quote
from wsgate.errors import InternalError, SettingsError

__all__ = ["effective", "ignored_variables", "load", "reloader"]

_PREFIX: Final = "WSGATE_"
_SEPARATOR: Final = "__"
_CONFIG_VARIABLE: Final = "WSGATE_CONFIG"
# Variables without a section that this package reads, or that its build uses: they cause no warning.
_OWN_VARIABLES: Final = frozenset({_CONFIG_VARIABLE, "WSGATE_TOKEN", "WSGATE_SANITIZE"})
_IGNORED_SHOWN: Final = 8  # names in the warning; Kubernetes makes seven for each port of a Service
# The value of a variable that Kubernetes makes for a Service: it is never meant as a setting.
_SERVICE_URL: Final = re.compile(r"(?:tcp|udp|sctp)://")
# The names that Kubernetes makes for a Service. The name of a Service ends with a letter or a digit, so that
# WSGATE_SERVER__PORT cannot come from one. A name that ends with _PORT needs the value of a Service as well:
# without it the name may be a mistyped setting.
# Source: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_NAME: Final = re.compile(
    r"[A-Z0-9_]*[A-Z0-9]_(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?"
    r"|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_SERVICE_PORT: Final = re.compile(r"[A-Z0-9_]*[A-Z0-9]_PORT")
_FILE_SUFFIX: Final = "_file"
_ANY: Final = "*"  # stands for any name in a path of the schema
_SHOWN_CHARACTERS: Final = 5
_CUT_CHARACTERS: Final = 60  # as units.py shows a long text
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}

# A table maps a path to a value. An empty table of the source, such as [channels.chat], is an empty dict.
# None stands for a value that is not valid: the mistake is reported, and no configuration is built.
_Path = tuple[str, ...]
_Table = dict[_Path, Any]


class _Setting(NamedTuple):
    """The schema of one setting: its kind, range and choices. `kind` is the form of its text, or its type."""

    kind: str
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()
    is_required: bool = False


def load(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> Config:
    """Read all sources, check every setting, and build the configuration.

    Args:
        path: The TOML file. None: the file that `WSGATE_CONFIG` names, or no file.
        environ: The environment. Every variable that starts with `WSGATE_` and has a `__` must be a setting,
            unless its name is one that Kubernetes makes for a Service.
        flags: The settings from the command line, nested like the file; None: the flag is not given.

    Returns:
        The configuration. If several sources give a setting, the last one counts: file, environment, flags. A
        value and its `_file` form are one setting.

    Raises:
        SettingsError: A setting is missing, unknown, of a wrong type, out of range, or contradicts another
            one. The text has one line for each mistake, with the path of the setting or the name of the
            variable. A file that cannot be read or parsed is the only mistake that is reported. Rules between
            settings are checked only when each setting is valid by itself.
    """
    mistakes: list[str] = []
    given: _Table = {("channels", "default"): {}}
    path = path or _named_file(environ)
    from_file = _Reader(mistakes).tree(_parsed(path))
    if path is not None and _holds_secret(from_file):
        mistakes += _faults_of_mode(path)
    for source in (
        from_file,
        _Reader(mistakes).environment(environ),
        _Reader(mistakes).tree(flags),
    ):
        given |= _spelled_once(source, mistakes)
    _read_files(given, mistakes)
    mistakes += _missing(given)
    _raise_any(mistakes)
    if given.get(("server", "dev")):
        _apply_dev_defaults(given)
    config = _built(given)
    _raise_any(faults(config))
    return config


def reloader(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> Callable[[], Config]:
    """Return a function that does what `load` does, each time it is called; call this before `load`.

    A pipe, such as `--config <(...)`, gives its text only once: read again it is empty, and opening it may
    block. Therefore the function reads a path only if it is, and was at this call, a regular file.

    Raises (from the returned function):
        SettingsError: As `load`; or the file is not regular.
    """
    path = path or _named_file(environ)
    was_regular = path is None or os.path.isfile(path)  # of os, which raises nothing without permission

    def load_again() -> Config:
        # A path that is gone is reported by `load`.
        if path is not None and not (was_regular and (os.path.isfile(path) or not os.path.exists(path))):
            raise SettingsError(
                f"config: {path} is not a regular file, and cannot be read again; every setting stays:"
                " restart the gateway, or give --config a file"
            )
        return load(path, environ, flags)

    return load_again


def ignored_variables(environ: Mapping[str, str]) -> str:
    """Describe the variables that look like settings but are ignored, in one line; empty if there are none.

    The line contains no values. For a value in the form that Kubernetes writes, no setting is suggested.
    """
    names = sorted(name for name in environ if _is_ours(name) and not _names_section(name, environ[name]))
    names = [name for name in names if name not in _OWN_VARIABLES]
    if not names:
        return ""
    meant = {"_".join(path).upper(): _SEPARATOR.join(path).upper() for path in _schema() if _ANY not in path}
    hints = [
        _PREFIX + meant[name.removeprefix(_PREFIX)]
        for name in names
        if name.removeprefix(_PREFIX) in meant and not _SERVICE_URL.match(environ[name])
    ]
    shown = ", ".join(names[:_IGNORED_SHOWN])
    more = f" and {len(names) - _IGNORED_SHOWN} more" if len(names) > _IGNORED_SHOWN else ""
    hint = f"; did you mean {', '.join(hints)}?" if hints else ""
    if any(_SEPARATOR in name.removeprefix(_PREFIX) for name in names):
        hint = f", and no name that Kubernetes makes for a Service{hint}"
    return f"ignored {shown}{more}: a setting is WSGATE_<SECTION>__<KEY>, with two underscores{hint}"


def _is_ours(name: str) -> bool:
    return name.startswith(_PREFIX)


def _names_section(name: str, value: str) -> bool:
    """Whether a variable must be a setting: its name has a section, and Kubernetes did not make it."""
    if _SEPARATOR not in name.removeprefix(_PREFIX):
        return False
    has_port_of_service = _SERVICE_PORT.fullmatch(name) and _SERVICE_URL.match(value)
    is_of_service = has_port_of_service or _SERVICE_NAME.fullmatch(name)
    return not is_of_service or _variable_path(name) is not None


def effective(config: Config) -> str:
    """Format all settings of a configuration as TOML text that `load` can read.

    Secrets are replaced by `***`, and the bus URL has no password. With these put back, `load` builds an
    equal configuration.
    """
    return "\n\n".join(_tables(config, ())) + "\n"


class _Reader:
    """Convert one source into a table, and collect its mistakes.

    Args:
        mistakes: Receives one text for each mistake.
    """

    def __init__(self, mistakes: list[str]) -> None:
        self._mistakes = mistakes
        self._table: _Table = {}

    def tree(self, tree: Mapping[str, Any]) -> _Table:
        """Convert nested mappings, from a TOML file or from flags, into a table."""
        self._branch(tree, (), ())
        return self._table

    def environment(self, environ: Mapping[str, str]) -> _Table:
        """Return the settings in environment variables as a table; note each variable of an unknown name."""
        for name in sorted(
            name for name in environ if _is_ours(name) and _names_section(name, environ[name])
        ):
            found = _variable_path(name)
            if found is None:
                self._mistakes.append(f"{name}: unknown variable{_variable_hint(name)}")
                continue
            path, pattern = found
            self._table |= {path[: place + 1]: {} for place, key in enumerate(pattern) if key == _ANY}
            self._leaf(path, _schema()[pattern], environ[name], variable=name)
        return self._table

    def _branch(self, tree: Mapping[str, Any], path: _Path, pattern: _Path) -> None:
        """Convert a mapping of the source: read its settings, and follow its tables."""
        for key, value in tree.items():
            below = (*pattern, key)
            if below not in _known():
                below = (*pattern, _ANY)
            here = (*path, key)
            if below not in _known():
                self._mistakes.append(f"{dotted(*here)}: unknown setting{_hint(here, pattern)}")
            elif value is None:
                continue
            elif below in _schema():
                self._leaf(here, _schema()[below], value)
            elif not isinstance(value, Mapping):
                self._mistakes.append(f"{dotted(*here)}: expected table, got {_type_name(value)}")
            else:
                self._table |= {here: {}} if below[-1] == _ANY else {}
                self._branch(value, here, below)

    def _leaf(self, path: _Path, setting: _Setting, raw: Any, *, variable: str = "") -> None:
        """Check one value of the source and put it into the table, or note its mistake."""
        self._table[path] = None
        try:
            self._table[path] = _value(setting, _from_text(setting, raw) if variable else raw)
        except SettingsError as fault:
            text = _without_value(str(fault), raw) if variable else str(fault)
            origin = f" (from {variable})" if variable else ""
            self._mistakes.append(f"{dotted(*path)}: {text}{origin}")


def _without_value(text: str, value: str) -> str:
    """Remove the value of a variable from an error text, because a secret may be in the wrong variable.

    Values of at most `_SHOWN_CHARACTERS` stay, because they are typing mistakes and no secrets.
    """
    for each in sorted({value, *value.split()}, key=len, reverse=True):
        if len(each) > _SHOWN_CHARACTERS:
            for shown in (quote(each), quote(each[:_CUT_CHARACTERS] + "..."), each):
                text = text.replace(shown, "something else")
    return text


@cache
def _schema() -> Mapping[_Path, _Setting]:
    """Derive the schema from `Config`: each setting and `_file` form by path; `*` stands for any name."""
    return dict(_settings(Config, ()))


@cache
def _known() -> frozenset[_Path]:
    """List the paths of all settings and of all tables that contain them."""
    return frozenset(path[:length] for path in _schema() for length in range(1, len(path) + 1))


def _settings(section: type[msgspec.Struct], path: _Path) -> Iterator[tuple[_Path, _Setting]]:
    """Yield the path and the schema of each setting of a section and of its sections."""
    for info in fields_of(section):
        here = (*path, info.encode_name)
        if isinstance(info.type, inspect.StructType):
            yield from _settings(info.type.cls, here)
        elif isinstance(info.type, inspect.DictType) and isinstance(info.type.value_type, inspect.StructType):
            yield from _settings(info.type.value_type.cls, (*here, _ANY))
        else:
            setting = _setting(info)
            yield here, setting
            if setting.kind in ("secret", "secret_url", "public_key"):
                yield (*path, info.encode_name + _FILE_SUFFIX), _Setting(f"{setting.kind}_file")


def _setting(info: inspect.Field) -> _Setting:
    """Derive the schema of one setting from its type, range and default."""
    plain = info.type.type if isinstance(info.type, inspect.Metadata) else info.type
    kind, is_required = kind_of(info), info.required
    match plain:
        case inspect.IntType(ge=int(low), le=int(high)):
            return _Setting(kind or "int", low, high, is_required=is_required)
        case inspect.LiteralType():
            return _Setting("choice", choices=tuple(map(str, plain.values)), is_required=is_required)
        case inspect.BoolType():
            return _Setting("bool", is_required=is_required)
        case inspect.StrType():
            return _Setting(kind or "str", is_required=is_required)
        case inspect.VarTupleType(item_type=inspect.StrType()):
            return _Setting("list", is_required=is_required)
        case inspect.VarTupleType(item_type=inspect.LiteralType(values=values)):
            return _Setting("list", choices=tuple(map(str, values)), is_required=is_required)
    raise InternalError(f"{info.name}: a setting of a type that no source can hold, or without a range")


def _from_text(setting: _Setting, text: str) -> Any:
    """Convert the text of a variable into a bool, an int or a list, by the kind of its setting."""
    match setting.kind:
        case "bool":
            value: Any = _BOOLEANS.get(text.lower())
            if value is None:
                raise SettingsError(f"expected true or false, got {quote(text)}")
            return value
        case "int":
            if not _INTEGER.fullmatch(text):
                raise SettingsError(f"expected int, got {quote(text)}")
            return int(text)
        case "list":
            return text.split()
    return text


def _value(setting: _Setting, raw: Any) -> Any:
    """Check a value and convert it into the form of `Config`; the text of SettingsError has no path."""
    match setting.kind:
        case "bool":
            return _typed(raw, bool)
        case "int":
            return _ranged(setting, _typed(raw, int), str)
        case "duration":
            if type(raw) is not str:
                raise SettingsError(f'expected duration such as "25s", got {_type_name(raw)}')
            return _ranged(setting, parse_duration_ms(raw), format_duration)
        case "size":
            if type(raw) not in (int, str):
                raise SettingsError(f'expected size such as "64KiB", got {_type_name(raw)}')
            return _ranged(setting, parse_size_bytes(raw) if type(raw) is str else raw, format_size)
        case "choice":
            return _chosen(setting, _text(raw))
        case "list":
            texts = tuple(map(_text, raw if isinstance(raw, tuple) else _typed(raw, list)))
            return tuple(_chosen(setting, text) for text in texts) if setting.choices else texts
    return _text(raw)


def _typed(raw: Any, wanted: type) -> Any:
    """Return a value that has exactly the wanted type; else raise SettingsError."""
    # The exact type, because a bool is an int in Python, but `port = true` is a mistake.
    if type(raw) is not wanted:
        raise SettingsError(f"expected {wanted.__name__}, got {_type_name(raw)}")
    return raw


def _text(raw: Any) -> str:
    """Return a value that is a text and can be written as UTF-8; else raise SettingsError."""
    text: str = _typed(raw, str)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SettingsError("not UTF-8 text") from None
    return text


def _ranged(setting: _Setting, number: int, shown: Any) -> int:
    """Return a number within the range of its setting; else raise SettingsError."""
    if not setting.low <= number <= setting.high:
        low, high = shown(setting.low), shown(setting.high)
        raise SettingsError(f"must be {low} to {high}, got {shown(number)}")
    return number


def _chosen(setting: _Setting, text: str) -> str:
    """Return a text that is one of the choices of its setting; else raise SettingsError."""
    if text not in setting.choices:
        raise SettingsError(f"expected one of {', '.join(map(quote, setting.choices))}, got {quote(text)}")
    return text


def _type_name(raw: Any) -> str:
    return "table" if isinstance(raw, Mapping) else type(raw).__name__


def _named_file(environ: Mapping[str, str]) -> Path | None:
    name = environ.get(_CONFIG_VARIABLE, "")
    return Path(name) if name else None


def _parsed(path: Path | None) -> Mapping[str, Any]:
    """Parse the TOML file; empty without a file."""
    if path is None:
        return {}
    import tomllib  # imported here, so that a start without a file is faster

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise SettingsError(f"config: cannot read {path}: {fault.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"config: {path} is not UTF-8 text") from None
    except RecursionError:  # tomllib parses recursively; no setting needs more than two levels
        raise SettingsError(f"config: {path}: arrays or tables are nested too deeply") from None
    except ValueError as fault:
        # The text of tomllib has a position and a rule, and never a value of the file.
        raise SettingsError(f"config: {path}: {fault}") from None


def _variable_path(name: str) -> tuple[_Path, _Path] | None:
    """Find the path of the setting that a variable names, and its schema path; None if there is none."""
    parts = tuple(name.removeprefix(_PREFIX).lower().split("__"))
    if name != name.upper():
        return None
    if parts in _schema():
        return parts, parts
    for pattern in _schema():
        if _ANY not in pattern or len(parts) < len(pattern):
            continue
        # A name may contain "__" itself: it is everything between the section and the key.
        head, tail = pattern.index(_ANY), pattern.index(_ANY) - len(pattern) + 1
        middle = "__".join(parts[head:tail])
        path = (*parts[:head], middle, *parts[tail:])
        if middle and pattern == (*path[:head], _ANY, *path[head + 1 :]):
            return path, pattern
    return None


def _variable_hint(name: str) -> str:
    """Suggest the name of a similar variable for an unknown one."""
    parts = name.removeprefix(_PREFIX).lower().split("__")
    near = (
        [parts[place] if key == _ANY and place < len(parts) else key for place, key in enumerate(pattern)]
        for pattern in _schema()
    )
    meant = _nearest(name.upper(), [_PREFIX + "__".join(keys).upper() for keys in near if _ANY not in keys])
    return f" (did you mean {meant}?)" if meant else ""


def _hint(path: _Path, pattern: _Path) -> str:
    """Suggest a setting for an unknown one: a similar name in its section, or its name in another section."""
    beside = [known[-1] for known in _known() if known[:-1] == pattern and known[-1] != _ANY]
    near = _nearest(path[-1], beside)
    if near:
        return f" (did you mean {dotted(*path[:-1], near)}?)"
    elsewhere = [known for known in _schema() if known[-1] == path[-1]]
    names = [".".join("<name>" if key == _ANY else key for key in known) for known in elsewhere]
    return f" (did you mean {' or '.join(names)}?)" if names else ""


def _nearest(name: str, names: Iterable[str]) -> str:
    """Return the name that is most similar to a mistyped one; "" if none is."""
    import difflib  # imported here, because only mistakes need it

    return next(iter(difflib.get_close_matches(name, sorted(names), 1)), "")


def _spelled_once(table: _Table, mistakes: list[str]) -> _Table:
    """Move each `_file` form in the table of one source to the path of its setting."""
    once: _Table = {}
    for path, value in table.items():
        pattern = path if path in _schema() else _pattern(path)
        kind = _schema()[pattern].kind if pattern in _schema() else ""
        if not kind.endswith(_FILE_SUFFIX):
            once.setdefault(path, value)
            continue
        own = (*path[:-1], path[-1].removesuffix(_FILE_SUFFIX))
        if value and table.get(own):
            mistakes.append(f"{dotted(*path)}: {dotted(*own)} is given as well; only one of them can count")
        elif value:
            once[own] = SettingFile(value, is_secret=kind.startswith("secret"))
        elif value is None:
            once[own] = None
    return once


def _pattern(path: _Path) -> _Path:
    """Find the schema path of a path, in which `*` replaces a name; () if there is none."""
    for pattern in _schema():
        named = tuple(_ANY if wanted == _ANY else key for wanted, key in zip(pattern, path, strict=False))
        if len(pattern) == len(path) and named == pattern:
            return pattern
    return ()


def _read_files(given: _Table, mistakes: list[str]) -> None:
    """Replace each reference to a file in a table by the content of the file."""
    for path, value in given.items():
        if isinstance(value, SettingFile):
            try:
                given[path] = file_text(value)
            except SettingsError as fault:
                mistakes.append(f"{dotted(*path)}{_FILE_SUFFIX}: {fault}")


def _holds_secret(table: _Table) -> bool:
    """Whether the table of a source contains the text of a secret."""
    for path, value in table.items():
        kind = _schema()[pattern].kind if (pattern := _pattern(path)) else ""
        if isinstance(value, str) and kind in ("secret", "secret_url") and masked(kind, value) != value:
            return True
    return False


def _faults_of_mode(path: Path) -> Iterator[str]:
    """Check the mode of a configuration file that contains a secret, like the file of a secret."""
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):  # a pipe has only one reader
            check_file(status, is_secret=True)
    except OSError as fault:
        yield f"{path}: {fault.strerror}"
    except SettingsError as fault:
        yield f"{path} holds a secret, and {fault}"


def _missing(given: _Table) -> Iterator[str]:
    """Yield a mistake for each required setting that is absent from a named table."""
    required = {pattern: setting for pattern, setting in _schema().items() if setting.is_required}
    for table in [path for path, value in given.items() if value == {}]:
        for pattern, setting in required.items():
            path = (*table, pattern[-1])
            if pattern[:-1] == (*table[:-1], _ANY) and path not in given:
                yield f"{dotted(*path)}: required, one of {', '.join(map(quote, setting.choices))}"


def _apply_dev_defaults(given: _Table) -> None:
    """Add the defaults of development mode for settings that no source gives."""
    given.setdefault(("server", "host"), "127.0.0.1")
    given.setdefault(("auth", "allow_anonymous"), True)
    for path in [path for path in given if path[0] == "channels"]:
        for key in ("subscribe", "publish"):
            given.setdefault((*path[:2], key), "anyone")


def _built(given: _Table) -> Config:
    """Build the configuration from a table of checked values."""
    tree: dict[str, Any] = {}
    for path, value in given.items():
        branch = tree
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        if value == {}:
            branch.setdefault(path[-1], {})
        else:
            branch[path[-1]] = value
    return msgspec.convert(tree, Config)


def _raise_any(mistakes: Iterable[str]) -> None:
    """Raise SettingsError with one line for each mistake, if there is one."""
    lines = [f"config: {mistake}" for mistake in mistakes]
    if lines:
        raise SettingsError("\n".join(lines))


def _tables(section: msgspec.Struct, path: _Path) -> Iterator[str]:
    """Yield the TOML text of a section and of its sections, one table at a time."""
    lines = [f"[{dotted(*path)}]"] if path else []
    tables: list[tuple[_Path, msgspec.Struct]] = []
    for info in fields_of(type(section)):
        value, here = getattr(section, info.name), (*path, info.encode_name)
        if isinstance(value, msgspec.Struct):
            tables.append((here, value))
        elif isinstance(value, dict):
            tables += [((*here, name), each) for name, each in value.items()]
        else:
            lines.append(f"{info.encode_name} = {_toml(kind_of(info), value)}")
    if lines:
        yield "\n".join(lines)
    for here, table in tables:
        yield from _tables(table, here)


def _toml(kind: str, value: Any) -> str:
    """Write a value in TOML, with its unit, and with secrets masked."""
    match masked(kind, value):
        case bool(truth):
            return "true" if truth else "false"
        case int(number):
            shown = {"duration": format_duration, "size": format_size}.get(kind)
            return quote(shown(number)) if shown else str(number)
        case tuple(items):
            return f"[{', '.join(map(quote, items))}]"
        case text:
            return quote(str(text))
