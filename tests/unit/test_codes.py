"""Check that the codes agree in registry, data for clients, and specification (P9)."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

from wsgate.handshake import REFUSALS
from wsgate.reasons import ERRORS, REASONS, Reason
from wsgate.shard.byes import comes_back
from wsgate.shard.statistics_layout import SHARD_REFUSALS

PROTOCOLS = Path(__file__).resolve().parents[2] / "protocols"
CODES: dict[str, list[dict[str, Any]]] = json.loads((PROTOCOLS / "codes.json").read_text())
SPEC = (PROTOCOLS / "client" / "v1" / "spec.md").read_text()

Key = TypeVar("Key")
Row = dict[str, Any]


def differences(expected: Mapping[Key, Any], found: Mapping[Key, Any]) -> list[str]:
    """Return each missing, extra or different entry in words; nothing if the two agree."""
    return [
        *(f"missing: {key}" for key in expected if key not in found),
        *(f"extra: {key}" for key in found if key not in expected),
        *(f"different: {key}" for key in expected if key in found and expected[key] != found[key]),
    ]


def by(key: str, rows: list[Row]) -> dict[Any, Row]:
    """Return rows by one of their fields, which must be unique."""
    found = {row[key]: row for row in rows}
    assert len(found) == len(rows)
    return found


def registry_reasons() -> list[Row]:
    rows = []
    for entry in REASONS.values():
        if entry.reason is Reason.NONE:
            continue
        row: Row = {
            "number": int(entry.reason),
            "name": entry.reason.name.lower(),
            "close_code": entry.close_code,
            "http_status": entry.http_status,
            "text": entry.text,
        }
        if entry.close_code:
            row["reconnect"] = comes_back(entry.close_code)
        rows.append(row)
    return rows


def registry_errors() -> list[Row]:
    return [{"code": entry.code, "name": entry.name, "text": entry.text} for entry in ERRORS.values()]


def registry_refusals() -> list[Row]:
    shards = [{"name": name, "http_status": status} for name, status in SHARD_REFUSALS.items()]
    return [{"name": each.reason, "http_status": each.status} for each in REFUSALS.values()] + shards


PARTS = [
    ("reasons", "number", registry_reasons()),
    ("reasons", "name", registry_reasons()),
    ("errors", "name", registry_errors()),
    ("handshake", "name", registry_refusals()),
]


@pytest.mark.parametrize(("part", "key", "registry"), PARTS)
def test_codes_json_equals_the_registry(part: str, key: str, registry: list[Row]) -> None:
    assert differences(by(key, registry), by(key, CODES[part])) == []


@pytest.mark.parametrize(("part", "key", "registry"), PARTS)
def test_planted_difference_between_codes_json_and_registry_is_found(
    part: str, key: str, registry: list[Row]
) -> None:
    rows = CODES[part]
    first = rows[0][key]
    assert differences(by(key, registry), by(key, rows[1:])) == [f"missing: {first}"]
    odd = {**rows[0], key: "odd"}
    assert differences(by(key, registry), by(key, [*rows, odd])) == ["extra: odd"]
    for field in rows[0]:
        if field != key:
            changed = {**rows[0], field: "odd"}
            assert differences(by(key, registry), by(key, [changed, *rows[1:]])) == [f"different: {first}"]


def test_codes_json_has_exactly_the_four_known_parts() -> None:
    assert set(CODES) == {"about", "reasons", "errors", "handshake"}
    assert not {each.reason for each in REFUSALS.values()} & set(SHARD_REFUSALS)


# --- the specification --------------------------------------------------------------------------------


def section(spec: str, title: str) -> str:
    """Return the text under one heading."""
    return re.split(r"^## ", spec.partition(f"\n## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str) -> list[list[str]]:
    """Return the cells of the rows of the only table in a text, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def spec_errors(spec: str) -> dict[str, int]:
    rows = table(section(spec, "Errors"))
    found = {name.strip("`"): int(code) for code, name, _ in rows}
    assert len(found) == len(rows)
    return found


def spec_closes(spec: str) -> set[tuple[int, str]]:
    """Return code and reason of every Close; a row with several codes has its reasons in the same order."""
    found = set()
    for codes, reasons, _ in table(section(spec, "Closing")):
        names = re.findall(r"`(\w+)`", reasons)
        numbers = [int(code) for code in codes.split(",")]
        assert len(numbers) in (1, len(names)), codes
        found |= set(zip(numbers if len(numbers) > 1 else numbers * len(names), names, strict=True))
    return found


def registry_closes() -> set[tuple[int, str]]:
    return {(row["close_code"], row["name"]) for row in registry_reasons() if row["close_code"]}


def test_p9_the_specification_names_exactly_the_close_codes_of_the_registry() -> None:
    assert spec_closes(SPEC) == registry_closes()


def test_p9_the_specification_names_exactly_the_errors_of_the_registry() -> None:
    assert spec_errors(SPEC) == {name: entry.code for name, entry in ERRORS.items()}


def test_p9_the_specification_names_exactly_the_http_statuses_of_refusals() -> None:
    sentence = section(SPEC, "Opening").partition("Refusals over HTTP:")[2].partition("with `Retry-After`")[0]
    statuses = {row["http_status"] for row in (*registry_refusals(), *registry_reasons())} - {0}
    assert {int(number) for number in re.findall(r"\b\d{3}\b", sentence)} == statuses


def test_p9_the_specification_states_after_which_closes_clients_reconnect() -> None:
    advice = section(SPEC, "Closing").partition("|")[0]
    come, _, stay = advice.partition("reconnect; ")
    come_back = {int(code) for code in re.findall(r"\b1\d{3}\b", come)}
    assert come_back == {code for code in range(1000, 1016) if comes_back(code)}
    first, last = re.findall(r"(\d{4}) to (\d{4}) do not", stay)[0]
    do_not = {int(code) for code in re.findall(r"\b1\d{3}\b", stay)} | set(range(int(first), int(last) + 1))
    assert not come_back & do_not
    for code, _reason in registry_closes():
        if code < 4000:
            assert code in come_back | do_not
    assert "4000 to 4499: reconnect" in come and "4500 to 4999: do not reconnect" in come
    assert [comes_back(code) for code in (4000, 4499, 4500, 4999)] == [True, True, False, False]


PLANTED = [
    ("| 4002 | `auth_timeout` |", "| 4003 | `auth_timeout` |"),
    ("| 4501 | `invalid_token` |", "| 4501 | `wrong_token` |"),
    ("| 4012 | `drain`, `shutdown` |", "| 4012 | `drain` |"),
    ("| 4050 | `internal` |", "| 4050 | `internal`, `other` |"),
]


@pytest.mark.parametrize(("right", "wrong"), PLANTED)
def test_p9_a_planted_mistake_in_the_close_codes_is_found(right: str, wrong: str) -> None:
    assert SPEC.count(right) == 1
    assert spec_closes(SPEC.replace(right, wrong)) != registry_closes()


@pytest.mark.parametrize(
    ("right", "wrong"), [("| 413 | `too_large` |", "| 400 | `too_large` |"), ("`unknown_op` |", "`no_op` |")]
)
def test_p9_a_planted_mistake_in_the_errors_is_found(right: str, wrong: str) -> None:
    assert right in SPEC
    assert spec_errors(SPEC.replace(right, wrong)) != {name: entry.code for name, entry in ERRORS.items()}
