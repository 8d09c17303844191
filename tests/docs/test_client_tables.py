"""The tables of the pages about clients list exactly the public options, methods, events and errors."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any, Final

import pytest

import wsgate.client
from wsgate.client import (
    Backoff,
    Client,
    ClientOptions,
    Gap,
    GapReason,
    Publication,
    Subscription,
    SyncClient,
    SyncSubscription,
)
from wsgate.client.backend import ConsumerOptions, Publisher
from wsgate.errors import BackendError

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
JS: Final = Path(wsgate.client.__file__).parent / "js"
CELL: Final = re.compile(r"(?<!\\)\|")
NAME: Final = re.compile(r"`([\w.]+)`")

Table = dict[str, list[str]]
"""The cells of each row by the name in its first cell."""


def table_below(page: str, heading: str) -> Table:
    """The rows of the table whose header starts so; a first cell with two names makes two rows."""
    lines = iter((DOCS / page).read_text().splitlines())
    if not any(line.startswith(heading) for line in lines):
        raise AssertionError(f"{page} has no table {heading!r}")
    next(lines)
    rows: Table = {}
    for line in lines:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in CELL.split(line)[1:-1]]
        for name in NAME.findall(cells[0]):
            assert name not in rows, f"{page}: {name} has two rows"
            rows[name] = cells[1:]
    return rows


def shown(value: Any) -> str:
    """A default as a page writes it."""
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, Backoff):
        return "`Backoff()`"
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize(
    ("page", "heading", "options"),
    [
        ("clients-python.md", "| `ClientOptions` | default |", ClientOptions),
        ("clients-python.md", "| `Backoff` | default |", Backoff),
        ("backends.md", "| option | default |", ConsumerOptions),
    ],
)
def test_every_option_is_in_its_table_with_its_default(page: str, heading: str, options: type[Any]) -> None:
    rows = table_below(page, heading)
    made = options()
    assert list(rows) == [each.name for each in dataclasses.fields(options)]
    for name, (default, *_) in rows.items():
        if name != "consumer":  # a name of this process
            assert default == shown(getattr(made, name)), name


def public_methods(each: type[Any]) -> dict[str, list[str]]:
    """Every public method by `Class.name`, with the names of its parameters."""
    return {
        f"{each.__name__}.{name}": [word for word in inspect.signature(method).parameters if word != "self"]
        for name, method in vars(each).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }


def test_every_method_of_the_python_clients_is_in_the_table_with_its_parameters() -> None:
    rows = table_below("clients-python.md", "| method | arguments |")
    there = {
        name: parameters
        for each in (Client, SyncClient, Subscription, SyncSubscription)
        for name, parameters in public_methods(each).items()
    }
    assert {
        name: [word for word in re.split(r"[`, ]+", cells[0]) if word] for name, cells in rows.items()
    } == there


def test_every_property_and_field_of_the_python_clients_is_named() -> None:
    text = (DOCS / "clients-python.md").read_text()
    for each in (Client, SyncClient, Subscription, SyncSubscription):
        for name, value in vars(each).items():
            if isinstance(value, property):
                assert f"`{each.__name__}.{name}`" in text
    for fields in (Publication, Gap):
        for field in dataclasses.fields(fields):
            assert f"`{field.name}`" in text, field.name


def test_every_reason_of_a_gap_and_every_error_of_the_python_clients_is_in_its_table() -> None:
    assert set(table_below("clients-python.md", "| `Gap.reason` |")) == {reason.value for reason in GapReason}
    public = {name: getattr(wsgate.client, name) for name in wsgate.client.__all__}
    errors = {
        name for name, each in public.items() if inspect.isclass(each) and issubclass(each, BackendError)
    }
    assert set(table_below("clients-python.md", "| error | raised by |")) == errors


def test_every_argument_of_the_publisher_is_in_its_table() -> None:
    rows = table_below("backends.md", "| argument | default |")
    parameters = inspect.signature(Publisher).parameters
    assert list(rows) == list(parameters)
    for name, (default, *_) in rows.items():
        given = parameters[name].default
        assert default == ("" if given is inspect.Parameter.empty else shown(given)), name


# --- JavaScript: the types say what is public ---------------------------------------------------------


def declared(kind: str) -> str:
    """The body of an interface or a class of wsgate.d.ts, without comments."""
    text = re.sub(r"/\*\*.*?\*/", "", (JS / "wsgate.d.ts").read_text(), flags=re.DOTALL)
    match = re.search(rf"export {kind}\b[^{{]*\{{\n(.*?)^\}}", text, re.DOTALL | re.MULTILINE)
    assert match is not None, kind
    return match[1]


def members(kind: str) -> list[str]:
    """The names of its fields and methods, in order, each once."""
    found = re.findall(r"^  (?:readonly )?(\w+)\??(?=[:(<])", declared(kind), re.MULTILINE)
    return list(dict.fromkeys(name for name in found if name != "constructor"))


def test_every_option_of_the_javascript_client_is_in_its_table_with_its_default() -> None:
    rows = table_below("clients-javascript.md", "| option of `Client` | default |")
    assert list(rows) == members("interface ClientOptions")
    code = (JS / "wsgate.js").read_text()
    for name, (default, *_) in rows.items():
        if name == "backoff":
            parts = [re.search(rf"backoff\?\.{part} \?\? ([\d_]+)", code) for part in ("firstMs", "mostMs")]
            first, most = (part[1].replace("_", "") for part in parts if part)
            assert default == f"`{{ firstMs: {first}, mostMs: {most} }}`"
        elif match := re.search(rf"options\.{name} \?\? ([\w.]+)", code):
            value = match[1].replace("_", "") if match[1][0].isdigit() else match[1]
            assert default.strip("`") in (value, "performance.now"), name


def test_every_member_of_the_javascript_client_is_in_its_table() -> None:
    rows = table_below("clients-javascript.md", "| method or property | arguments |")
    there = [f"Client.{name}" for name in members("class Client")]
    there += [f"Subscription.{name}" for name in members("interface Subscription<")]
    assert sorted(rows) == sorted(there)


def test_every_event_is_in_its_table_with_its_fields() -> None:
    rows = table_below("clients-javascript.md", "| event | fields |")
    events = dict(re.findall(r"^  (\w+): (\w+);", declared("interface ClientEventMap"), re.MULTILINE))
    assert set(rows) == set(events)
    for event, (fields, *_) in rows.items():
        assert NAME.findall(fields) == members(f"interface {events[event]}"), event


def test_every_state_reason_and_error_of_the_javascript_client_is_in_its_table() -> None:
    types = (JS / "wsgate.d.ts").read_text()
    states = re.search(r"type ClientState = (.*);", types)
    reasons = re.search(r"readonly reason: ('slow'.*);", types)
    assert states and reasons
    assert list(table_below("clients-javascript.md", "| state | meaning")) == re.findall(
        r"'(\w+)'", states[1]
    )
    assert list(table_below("clients-javascript.md", "| `reason` | meaning")) == re.findall(
        r"'(\w+)'", reasons[1]
    )
    errors = re.findall(r"export class (\w+) extends WsgateError", types)
    assert sorted(table_below("clients-javascript.md", "| error | rejects or throws |")) == sorted(errors)


def test_every_field_of_a_publication_is_named() -> None:
    text = (DOCS / "clients-javascript.md").read_text()
    for name in members("interface Publication<"):
        assert f"`{name}`" in text, name
