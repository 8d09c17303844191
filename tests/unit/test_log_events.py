"""Check that every logged event has one row in `wsgate.log_events`, and that every row is logged."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from wsgate.auth import faults
from wsgate.log import Log
from wsgate.log_events import COMMON_FIELDS, EVENTS
from wsgate.shard.statistics_layout import DUTIES

PACKAGE: Final = Path(__file__).resolve().parents[2] / "wsgate"
LEVELS: Final = {"info": "info", "warning": "warning", "error": "error", "exception": "error"}
ROWS: Final = {re.sub("<[a-z]+>", "*", row.name): row for row in EVENTS}
# Where a method of a log is passed on and called by another name: that name, and the levels it stands for.
PASSED_ON: Final = {
    "shard/handshakes.py": ("self._log", ["info"]),
    "shard/bus_memory.py": ("say", ["warning", "info"]),
}


class Call(NamedTuple):
    """One call that logs an event."""

    place: str
    event: str  # with * for each part that the code inserts
    levels: list[str]
    fields: set[str]
    has_more: bool  # fields in a dictionary that this test does not follow


def calls(path: str, text: str) -> Iterator[Call]:
    """Yield every log call in a file, and the record that `wsgate.log` makes by itself."""
    tree = ast.parse(text)
    values = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        owner, _, method = function.rpartition(".")
        first = node.args[0] if node.args else None
        if function == "logging.LogRecord":
            levels, first = [ast.unparse(node.args[1]).rpartition(".")[2].lower()], node.args[4]
        elif method in LEVELS and re.search(r"(?:^|[._])log$|^Log\(", owner):
            levels = [LEVELS[method]]
        elif function == PASSED_ON.get(path, ("", []))[0]:
            levels = PASSED_ON[path][1]
        else:
            continue
        assert first is not None, f"{path}:{node.lineno}: a line without an event"
        yield Call(
            f"{path}:{node.lineno}",
            name(first, values),
            levels,
            {keyword.arg for keyword in node.keywords if keyword.arg},
            function == "logging.LogRecord" or any(keyword.arg is None for keyword in node.keywords),
        )


def name(node: ast.expr, values: dict[str, ast.expr]) -> str:
    """Return the name of an event, with * for each part that is known only at run time."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
    if isinstance(node, ast.BinOp):
        return name(node.left, values) + name(node.right, values)
    if isinstance(node, ast.Name) and node.id in values:
        return name(values[node.id], values)
    return "*"


def found() -> list[Call]:
    """Return every log call in the gateway.

    `wsgate/client` runs in other programs and logs by the standard library.
    """
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "client"]
    return [
        call
        for path in files
        if path.name != "log_events.py"
        for call in calls(str(path.relative_to(PACKAGE)), path.read_text(encoding="utf-8"))
    ]


CALLS: Final = found()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.place}-{call.event}")
def test_every_logged_event_has_a_row_with_its_level_and_fields(call: Call) -> None:
    row = ROWS[call.event]
    assert set(call.levels) <= set(row.levels)
    assert call.fields <= set(row.fields)


def test_every_row_level_and_field_of_the_table_is_logged() -> None:
    levels: defaultdict[str, set[str]] = defaultdict(set)
    fields: defaultdict[str, set[str]] = defaultdict(set)
    is_open: set[str] = set()
    for call in CALLS:
        levels[call.event] |= set(call.levels)
        fields[call.event] |= call.fields
        is_open |= {call.event} if call.has_more else set()
    assert {event: set(row.levels) for event, row in ROWS.items()} == levels
    for event, row in ROWS.items():
        assert event in is_open or set(row.fields) == fields[event], event


def test_methods_of_a_log_are_passed_on_only_at_known_places() -> None:
    """A method of a log that is passed on would be called where these tests do not look."""
    text = {path: (PACKAGE / path).read_text(encoding="utf-8") for path in PASSED_ON}
    passed = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        passed += [
            str(path.relative_to(PACKAGE))
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in LEVELS and id(node) not in called
            if re.search(r"(?:^|[._])log$", ast.unparse(node.value))
        ]
    assert passed == ["shard/bus_memory.py", "shard/bus_memory.py", "shard/wiring.py"]
    wiring = (PACKAGE / "shard/wiring.py").read_text("utf-8")
    assert "HandshakePolicy(options, self.tokens, self._log.info)" in wiring
    assert all(text[path].count(f"{PASSED_ON[path][0]}(") == 1 for path in PASSED_ON)
    assert not {method for method in dir(Log) if not method.startswith("_")} - set(LEVELS)


@pytest.mark.parametrize("row", EVENTS, ids=lambda row: row.name)
def test_row_of_an_event_has_a_valid_name_and_whole_sentences(row: object) -> None:
    assert row in EVENTS
    [event] = [each for each in EVENTS if each == row]
    assert re.fullmatch(r"[a-z0-9_]+(?:<[a-z]+>)?", event.name)
    for sentence in (event.meaning, event.action, *event.fields.values(), *COMMON_FIELDS.values()):
        assert sentence[0].isupper() or sentence[0] == "`", sentence
        assert sentence.endswith("."), sentence
    assert len(event.meaning.split()) >= 5
    assert set(event.processes) <= {"keeper", "shard", "admin", "any"}


def test_no_event_has_two_rows() -> None:
    assert len(ROWS) == len(EVENTS)


def test_inserted_parts_of_event_names_come_from_tables() -> None:
    assert all(re.fullmatch("[a-z_]+", duty) for duty in DUTIES)
    assert all(re.fullmatch("[a-z_]+", cause) for cause in faults.CAUSES)


@pytest.mark.parametrize(
    ("text", "event", "level"),
    [
        ("self._log.info('a', b=1)", "a", "info"),
        ("Log('x').exception(f'a_{b}')", "a_*", "error"),
        ("cause = 'a_' + b\n_process_log.warning(cause)", "a_*", "warning"),
    ],
)
def test_log_call_is_found_with_event_and_level(text: str, event: str, level: str) -> None:
    [call] = calls("x.py", text)
    assert (call.event, call.levels) == (event, [level])
