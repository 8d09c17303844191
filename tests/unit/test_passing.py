"""The table "passing or final" has a row for everything that the registry knows, and agrees with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.passing_table import PAGE, ROWS, TABLE, render
from wsgate.handshake import REFUSALS
from wsgate.reasons import ERRORS, REASONS, Reason
from wsgate.shard.byes import comes_back
from wsgate.shard.statistics_layout import SHARD_REFUSALS

CODES: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).resolve().parents[2] / "protocols" / "codes.json").read_text()
)
FIELDS = {"kind", "name", "code", "state", "retry", "provider", "fixed", "none", "why"}
ACTIONS = {
    "close": {"reconnect", "end"},
    "http": {"reconnect", "limited", "end"},
    "lost": {"reconnect"},
    "error": {"retry", "limited", "held", "end"},
    "client": {"reconnect", "end"},
}


def kind_of(close_code: int, http_status: int) -> str:
    """How a client meets a reason."""
    return "close" if close_code else "http" if http_status else "lost"


def registry() -> dict[tuple[str, str], int]:
    """Everything that a gateway can answer or end a connection with: kind and name to code."""
    found = {
        (kind_of(row.close_code, row.http_status), row.reason.name.lower()): row.close_code
        or row.http_status
        or 1006
        for row in REASONS.values()
        if row.reason is not Reason.NONE
    }
    found |= {("http", each.reason): each.status for each in REFUSALS.values()}
    found |= {("http", name): status for name, status in SHARD_REFUSALS.items()}
    return found | {("error", entry.name): entry.code for entry in ERRORS.values()}


def data() -> dict[tuple[str, str], int]:
    """The same from the data for clients."""
    found = {
        (kind_of(row["close_code"], row["http_status"]), row["name"]): row["close_code"]
        or row["http_status"]
        or 1006
        for row in CODES["reasons"]
    }
    found |= {("http", row["name"]): row["http_status"] for row in CODES["handshake"]}
    return found | {("error", row["name"]): row["code"] for row in CODES["errors"]}


def rows(table: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    found = {(row["kind"], row["name"]): row["code"] for row in table if row["kind"] != "client"}
    assert len(found) == sum(row["kind"] != "client" for row in table), "a row is there twice"
    return found


def test_every_reason_refusal_and_error_has_a_row_and_no_row_is_left_over() -> None:
    assert rows(ROWS) == registry()
    assert rows(ROWS) == data()


def test_a_reason_without_a_row_is_found() -> None:
    for missing in range(0, len(ROWS), 7):
        short = [row for number, row in enumerate(ROWS) if number != missing]
        assert ROWS[missing]["kind"] == "client" or rows(short) != registry()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['kind']}-{row['name']}")
def test_a_row_is_complete_and_consistent(row: dict[str, Any]) -> None:
    assert set(row) - {"clients"} == FIELDS
    assert row["why"].endswith(".")
    actions = [row[token] for token in ("provider", "fixed", "none")]
    assert set(actions) <= ACTIONS[row["kind"]]
    state = row["state"]
    if state == "passing":
        assert set(actions) <= {"reconnect", "retry"}, "a passing state must not end a client"
    elif state == "final":
        assert not set(actions) & {"reconnect", "retry"}, "a final state must not be tried for ever"
        assert not row["retry"], "who is told for good is not told when to come back"
    else:
        assert state == "token"
        assert "end" in actions, "a client whose token cannot change must not come back for ever"
        assert row["provider"] != "end"


@pytest.mark.parametrize("row", [row for row in ROWS if row["kind"] == "close"], ids=lambda row: row["name"])
def test_what_the_gateway_says_in_bye_agrees_with_the_state(row: dict[str, Any]) -> None:
    assert comes_back(row["code"]) is (row["state"] != "final")
    assert row["retry"] is (row["code"] >= 4000 and row["state"] != "final")


@pytest.mark.parametrize("row", [row for row in ROWS if row["kind"] == "http"], ids=lambda row: row["name"])
def test_a_status_means_the_same_in_every_row(row: dict[str, Any]) -> None:
    is_passing = row["code"] in (408, 425, 429) or (row["code"] >= 500 and row["code"] != 501)
    assert (row["state"] == "passing") is is_passing


def test_the_page_is_written_from_the_data() -> None:
    assert PAGE.read_text() == render(TABLE), "run: python -m tests.support.passing_table"
