"""Check that the table "passing or final" has one row for each registry entry, with the same code."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.passing_table import PAGE, ROWS, TABLE, render
from wsgate.handshake import REFUSALS
from wsgate.reasons import ERRORS, REASONS, Reason
from wsgate.shard.byes import comes_back
from wsgate.shard.statistics_layout import SHARD_REFUSALS

OWN_KINDS = {"answer", "client"}  # kinds of rows that the registry does not have: no gateway causes them
CODES: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).resolve().parents[2] / "protocols" / "codes.json").read_text()
)
FIELDS = {"kind", "name", "code", "state", "retry", "provider", "fixed", "none", "why"}
ACTIONS = {
    "close": {"reconnect", "end"},
    "http": {"reconnect", "limited", "end"},
    "answer": {"reconnect"},
    "lost": {"reconnect"},
    "error": {"retry", "limited", "held", "end"},
    "client": {"reconnect", "end"},
}


def kind_of(close_code: int, http_status: int) -> str:
    """Return how a client meets a reason."""
    return "close" if close_code else "http" if http_status else "lost"


def registry() -> dict[tuple[str, str], int]:
    """Return the code of each reason, refusal and error of the registry by kind and name."""
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
    """Return the same from the data for clients."""
    found = {
        (kind_of(row["close_code"], row["http_status"]), row["name"]): row["close_code"]
        or row["http_status"]
        or 1006
        for row in CODES["reasons"]
    }
    found |= {("http", row["name"]): row["http_status"] for row in CODES["handshake"]}
    return found | {("error", row["name"]): row["code"] for row in CODES["errors"]}


def rows(table: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    found = {(row["kind"], row["name"]): row["code"] for row in table if row["kind"] not in OWN_KINDS}
    assert len(found) == sum(row["kind"] not in OWN_KINDS for row in table), "a row is there twice"
    return found


def test_table_has_exactly_one_row_for_each_reason_refusal_and_error() -> None:
    assert rows(ROWS) == registry()
    assert rows(ROWS) == data()


def test_table_with_a_missing_row_differs_from_the_registry() -> None:
    for missing in range(0, len(ROWS), 7):
        short = [row for number, row in enumerate(ROWS) if number != missing]
        assert ROWS[missing]["kind"] in OWN_KINDS or rows(short) != registry()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['kind']}-{row['name']}")
def test_row_of_the_table_is_complete_and_its_actions_fit_its_state(row: dict[str, Any]) -> None:
    assert set(row) - {"clients"} == FIELDS
    assert row["why"].endswith(".")
    actions = [row[token] for token in ("provider", "fixed", "none")]
    assert set(actions) <= ACTIONS[row["kind"]]
    state = row["state"]
    if state == "passing":
        assert set(actions) <= {"reconnect", "retry"}, "a passing state must not end a client"
    elif state == "final":
        assert not set(actions) & {"reconnect", "retry"}, "a final state must not be retried"
        assert not row["retry"], "a final state has no retry time"
    else:
        assert state == "token"
        assert "end" in actions, "a client with a fixed token must end"
        assert row["provider"] != "end"


@pytest.mark.parametrize("row", [row for row in ROWS if row["kind"] == "close"], ids=lambda row: row["name"])
def test_reconnect_and_retry_of_a_close_agree_with_the_state_of_its_row(row: dict[str, Any]) -> None:
    assert comes_back(row["code"]) is (row["state"] != "final")
    assert row["retry"] is (row["code"] >= 4000 and row["state"] != "final")


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row["kind"] in ("http", "answer")], ids=lambda row: row["name"]
)
def test_http_status_has_the_same_state_in_every_row(row: dict[str, Any]) -> None:
    is_rejection = 400 <= row["code"] < 500 and row["code"] not in (408, 425, 429)
    is_passing = not is_rejection and row["code"] != 501
    assert (row["state"] == "passing") is is_passing


def test_page_equals_the_rendered_table() -> None:
    assert PAGE.read_text() == render(TABLE), "run: python -m tests.support.passing_table"
