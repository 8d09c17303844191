"""Read the table of temporary and final errors, and write it as a page for readers.

Usage: python -m tests.support.passing_table    writes the page again from the data
"""

import json
from pathlib import Path
from typing import Any, Final

__all__ = ["PAGE", "ROWS", "TABLE", "render"]

FOLDER: Final = Path(__file__).resolve().parents[2] / "protocols" / "codes"
PAGE: Final = FOLDER / "passing.md"
TABLE: Final[dict[str, Any]] = json.loads((FOLDER / "passing.json").read_text())
ROWS: Final[list[dict[str, Any]]] = TABLE["rows"]

HEAD: Final = """# Temporary or final

This page says for every refusal, error and Close whether it is temporary or final, and what both clients
(`wsgate.client` and `wsgate.js`) do after it. A client in another language should do the same.
`python -m tests.support.passing_table` writes the page from `passing.json` in this directory. Tests compare
both with the registry of reasons, and run both clients through every row.

- *state*: `passing` means that the same attempt may succeed later, `final` that it never will, and `token`
  that it may succeed with another token.
- *wait sent*: whether the gateway sends the least time to wait, in `retry_ms` or `Retry-After`. Clients wait
  that long, an hour at most, and add jitter.
- *function*, *fixed*, *none*: the action of a client with a token function, with one token that never changes
  (a text, or in the URL), or without a token.
- `reconnect`: reconnect with back-off; a function is called for a new token. `limited`: the same, but end
  after five such refusals in a row. `end`: end, and report the cause to the application.
"""
PARTS: Final = {
    "close": (
        "Closes",
        "A `bye` comes before the codes from 4000 on; its `reconnect` is true unless the state is final.",
    ),
    "http": (
        "Handshakes that are refused",
        "A browser does not show a page the status: there the code is 1006, and the client reconnects with "
        "back-off. The Python client sees the status, and so does the JavaScript client in Node with the "
        "package `ws`, but without `Retry-After`.",
    ),
    "answer": (
        "Handshakes that are not answered by a gateway",
        "A gateway never answers a handshake with 2xx or 3xx. Every such status is passing; the rows are "
        "examples. The clients do not follow redirects.",
    ),
    "lost": ("Connections that end without a Close", "Clients see 1006."),
    "error": (
        "Errors of commands",
        "The columns show the effect on a subscription, by the kind of its channel token: `retry` subscribes "
        "again with back-off, `limited` calls the function for a new channel token up to five times, `held` "
        "treats it as subscribed, `end` ends only the subscription. A client never repeats `pub` and `send`: "
        "the caller gets the error, which is temporary if the state is passing.",
    ),
    "client": (
        "Failures that a client detects itself",
        "Code and name are those of the client's own errors: `Ending` in Python, the `close` event in "
        "JavaScript.",
    ),
}


def render(table: dict[str, Any]) -> str:
    """Return the page of a table."""
    parts = [HEAD]
    for kind, (title, text) in PARTS.items():
        rows = [row for row in table["rows"] if row["kind"] == kind]
        rows.sort(key=lambda row: row["code"])
        parts.append(f"\n## {title}\n\n{text}\n\n")
        parts.append("| code | name | state | wait sent | function | fixed | none | why |\n")
        parts.append("|---|---|---|---|---|---|---|---|\n")
        parts.extend(_line(row) for row in rows)
    return "".join(parts)


def _line(row: dict[str, Any]) -> str:
    clients = row.get("clients", ["python", "javascript"])
    only = f" ({'Python' if clients == ['python'] else 'JavaScript'} only)" if len(clients) == 1 else ""
    when = "yes" if row["retry"] else ""
    cells = (row["code"] or "", f"`{row['name']}`{only}", row["state"], when)
    actions = (row["provider"], row["fixed"], row["none"], row["why"])
    return "| " + " | ".join(map(str, (*cells, *actions))) + " |\n"


if __name__ == "__main__":
    PAGE.write_text(render(TABLE))
