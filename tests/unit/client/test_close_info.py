"""Check when a client reconnects: after each Close of the registry, code range and handshake status."""

import json
from pathlib import Path
from typing import Any

import pytest

from wsgate.client.close_info import after_close, after_refusal
from wsgate.client.quantities import WAIT_MOST_S

CODES: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parents[3] / "protocols" / "codes.json").read_text()
)


@pytest.mark.parametrize(
    "row", [row for row in CODES["reasons"] if row["close_code"]], ids=lambda row: row["name"]
)
def test_client_reconnects_after_a_close_as_the_registry_states(row: dict[str, Any]) -> None:
    assert after_close(row["close_code"], row["name"]).may_return is row["reconnect"]


def test_client_reconnects_after_every_close_code_except_the_final_ranges() -> None:
    stay_away = {1002, 1003, 1007, 1008, 1009, 1010, *range(4500, 5000)}
    for code in range(1000, 5000):
        assert after_close(code, "").may_return is (code not in stay_away), code


@pytest.mark.parametrize("status", sorted({row["http_status"] for row in CODES["handshake"]}))
def test_handshake_status_decides_about_reconnecting_and_authorization(status: int) -> None:
    ending = after_refusal(status)
    assert ending.may_return is (status in (401, 403, 408, 429, 503))
    assert ending.is_unauthorized is (status in (401, 403))


def test_client_retries_after_temporary_statuses_of_proxies_and_no_others() -> None:
    assert all(after_refusal(status).may_return for status in (425, 429, 500, 502, 504))
    assert not any(after_refusal(status).may_return for status in (402, 407, 410, 451, 501))


def test_client_retries_after_every_status_outside_4xx_except_501() -> None:
    for status in (*range(100, 400), *range(500, 1000)):
        assert after_refusal(status).may_return is (status != 501), status


@pytest.mark.parametrize(
    ("header", "retry_s"),
    [
        ("3", 3.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        (None, 0.0),
        ("", 0.0),
        ("-1", 0.0),
        ("1.5", 0.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0),
        ("٣", 0.0),
        ("999999999", WAIT_MOST_S),
        ("9" * 400, 0.0),
    ],
)
def test_retry_after_header_is_read_as_whole_seconds_within_bounds(
    header: str | None, retry_s: float
) -> None:
    assert after_refusal(503, header).retry_s == retry_s


def test_final_close_or_status_has_no_retry_time() -> None:
    assert after_close(4501, "invalid_token", retry_s=5).retry_s == 0
    assert after_refusal(404, "5").retry_s == 0
    assert after_close(4012, "drain", retry_s=2.3).retry_s == 2.3


def test_close_without_a_reason_is_shown_as_closed() -> None:
    assert str(after_close(1001, "")) == "1001 closed"
