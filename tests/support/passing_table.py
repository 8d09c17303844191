"""The table of what passes and what is final, as data and as the page that people read.

Usage: python -m tests.support.passing_table    writes the page anew from the data
"""

import json
from pathlib import Path
from typing import Any, Final

__all__ = ["PAGE", "ROWS", "TABLE", "render"]

FOLDER: Final = Path(__file__).resolve().parents[2] / "protocols" / "codes"
PAGE: Final = FOLDER / "passing.md"
TABLE: Final[dict[str, Any]] = json.loads((FOLDER / "passing.json").read_text())
ROWS: Final[list[dict[str, Any]]] = TABLE["rows"]

HEAD: Final = """# Passing or final

This page says for every refusal, error and Close whether it passes or is final, and what both clients
(`wsgate.client` and `wsgate.js`) do after it. A client in another language does well to do the same. The
page is written from `passing.json` beside it by `python -m tests.support.passing_table`; tests compare both
with the registry and drive both clients through every row.

- `passing`: the same attempt may succeed later. `final`: it never does. `token`: it may succeed with
  another token.
- *told when*: whether the gateway says how long to wait at least, in `retry_ms` or `Retry-After`. Clients
  wait that long, an hour at most, and add jitter.
- *function*, *fixed*, *none*: what a client does that has a function for tokens, one token that never
  changes (a text, or in the address), or no token.
- `reconnect`: come back with back-off; a function is asked for a new token. `limited`: likewise, and end
  after five such refusals in a row. `end`: end, and give the cause to whoever waits.
"""
PARTS: Final = {
    "close": (
        "Closes",
        "A `bye` comes before the codes from 4000 on, with `reconnect` true unless the state is final.",
    ),
    "http": (
        "Handshakes that are refused",
        "A browser does not tell a page the status: there it is 1006, and the client comes back with "
        "back-off. The Python client sees it, and so does the JavaScript client in Node with the package "
        "`ws`, without `Retry-After`.",
    ),
    "lost": ("Connections that end without a Close", "Clients see 1006."),
    "error": (
        "Errors of commands",
        "The columns say what becomes of a subscription, by its channel token: `retry` subscribes again with "
        "back-off, `limited` asks the function for a new channel token up to five times, `held` counts as "
        "subscribed, `end` ends the subscription alone. `pub` and `send` are never repeated: the caller gets "
        "the error, which is temporary where the state is passing.",
    ),
    "client": (
        "What a client finds out by itself",
        "Code and name are those of the client's own errors: `Ending` in Python, the `close` event in "
        "JavaScript.",
    ),
}


def render(table: dict[str, Any]) -> str:
    """The page of a table."""
    parts = [HEAD]
    for kind, (title, text) in PARTS.items():
        rows = [row for row in table["rows"] if row["kind"] == kind]
        rows.sort(key=lambda row: row["code"])
        parts.append(f"\n## {title}\n\n{text}\n\n")
        parts.append("| code | name | state | told when | function | fixed | none | why |\n")
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
