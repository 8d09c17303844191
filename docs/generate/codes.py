"""Generate the reference of close codes, refusals and errors.

The meaning of a reason comes from `wsgate/reasons.py`, its numbers from `protocols/codes.json`, and what a
client should do from `protocols/codes/passing.json`. Tests compare the three with each other.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from docs.generate.markdown import code, head, paragraph, table
from wsgate.reasons import ERRORS, REASONS

__all__ = ["page"]

FOLDER: Final = Path(__file__).resolve().parents[2] / "protocols"
ACTIONS: Final = {
    ("reconnect", "reconnect", "reconnect"): "Reconnect with back-off.",
    ("reconnect", "end", "reconnect"): "Reconnect with a new token. With a token that never changes, stop.",
    ("reconnect", "reconnect", "end"): "Reconnect and send a token in time. Without a token, stop.",
    (
        "limited",
        "end",
        "end",
    ): "Retry with a new token, at most five times in a row. Without a new one, stop.",
    ("end", "end", "end"): "Stop, and report the cause.",
    ("retry", "retry", "retry"): "Retry with back-off.",
    ("held", "held", "held"): "Treat the channel as subscribed.",
}
"""What a client should do, by what it does with a function for tokens, a fixed token, and no token."""
AGAIN: Final = {"passing": "yes", "final": "no", "token": "with another token"}
PARTS: Final = {
    "close": (
        "Close codes",
        "The gateway sends one of these codes in a Close frame. Before a code from 4000 on it sends the"
        " message `bye`, which contains the reason, `reconnect` and, if that is true, `retry_ms`. The name"
        " is also the label of `wsgate_closes_total`.",
    ),
    "lost": (
        "Connections that end without a Close frame",
        "A client reports 1006 for these. The reason is also the label of `wsgate_closes_total` or"
        " `wsgate_refusals_total`.",
    ),
    "http": (
        "Refused handshakes",
        "The gateway answers the request with this HTTP status, so no WebSocket connection is opened. A"
        " browser shows a page only 1006. The reason is also the label of `wsgate_refusals_total`.",
    ),
    "error": (
        "Errors of commands",
        "The gateway answers a command with the message `err`, and the connection stays open. The last"
        " columns are about subscriptions; clients never repeat `pub` and `send` by themselves. The name"
        " is also the label of `wsgate_errors_total`.",
    ),
}


def page() -> str:
    """Return the page."""
    return head(
        "Close codes and errors", "protocols/codes.json", "protocols/codes/passing.json", "wsgate/reasons.py"
    ) + "".join(_parts())


def _parts() -> Iterator[str]:
    yield paragraph(
        "This page lists every reason for which the gateway refuses or closes a connection, and every"
        " error of a command. *May try again* says whether the same attempt can succeed later. *Client*"
        " says what a client should do. [Passing or final](../../protocols/codes/passing.md) has the exact"
        " rules for clients, also for errors that a client finds by itself."
    )
    yield paragraph(
        "The codes 1000 to 1015 are those of RFC 6455, section 7.4.1. Codes from 4000 to 4499 allow a"
        " client to reconnect; codes from 4500 on do not."
    )
    meanings = _meanings()
    rows = _read("codes/passing.json")["rows"]
    for kind, (title, about) in PARTS.items():
        found = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["code"])
        yield f"## {title}\n\n" + paragraph(about)
        yield table(
            ("code", "name", "meaning", "may try again", "client", "why"),
            (
                (
                    row["code"],
                    code(row["name"]),
                    meanings.get(row["name"], ""),
                    _again(row),
                    _action(row),
                    row["why"],
                )
                for row in found
            ),
        )


def _read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def _meanings() -> dict[str, str]:
    """The sentence of every reason and error by its name; a refusal by name alone has none."""
    known = {row["name"] for row in _read("codes.json")["reasons"]}
    found = {
        row.reason.name.lower(): row.text for row in REASONS.values() if row.reason.name.lower() in known
    }
    return found | {name: row.text for name, row in ERRORS.items()}


def _again(row: dict[str, Any]) -> str:
    wait = ", after the time that the gateway names" if row["retry"] and row["state"] != "final" else ""
    return AGAIN[row["state"]] + wait


def _action(row: dict[str, Any]) -> str:
    return ACTIONS[row["provider"], row["fixed"], row["none"]]
