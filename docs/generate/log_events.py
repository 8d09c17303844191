"""Generate the reference of every log event from `wsgate/log_events.py`."""

from collections.abc import Iterator
from typing import Final

from docs.generate.markdown import code, head, listed, paragraph, table
from wsgate.auth.faults import CAUSES
from wsgate.log_events import COMMON_FIELDS, EVENTS, LogEvent
from wsgate.shard.statistics_layout import DUTIES

__all__ = ["page"]

PROCESSES: Final = {
    "keeper": "the keeper",
    "shard": "a shard",
    "admin": "the admin process",
    "any": "any process",
}
ABOUT: Final = (
    'The gateway writes its log to standard error, one event per line. With `log.format = "text"` a line has'
    " the time in UTC, the level, the process, the name of the event, and the fields as `name=value`. With"
    ' `log.format = "json"` a line is one object with the keys `time` (seconds since 1970), `level`, `part`'
    " (the process), `cause` (the name of the event) and one key for each field.",
    "Each process writes at most one line per event and second, except log_lines_dropped. No line contains a"
    " payload, a token or a query string. A process never waits for the reader of its log: if the reader is"
    " slow, lines are dropped and counted.",
)


def page() -> str:
    """Return the page."""
    return head("Log events", "wsgate/log_events.py") + "".join(_parts())


def _parts() -> Iterator[str]:
    yield from (paragraph(text) for text in ABOUT)
    yield paragraph("Any line may have these fields:")
    yield listed(f"{code(name)}: {text}" for name, text in COMMON_FIELDS.items())
    yield table(
        ("event", "level", "process", "meaning"),
        ((code(row.name), " or ".join(row.levels), _processes(row), row.meaning) for row in EVENTS),
    )
    for row in EVENTS:
        yield from _entry(row)


def _processes(row: LogEvent) -> str:
    return " or ".join(PROCESSES[each] for each in row.processes)


def _entry(row: LogEvent) -> Iterator[str]:
    yield f"## `{row.name}`\n\n"
    yield paragraph(f"Level {' or '.join(row.levels)}, written by {_processes(row)}.")
    yield paragraph(row.meaning)
    yield paragraph(f"**What to do.** {row.action}")
    if row.fields:
        yield listed(f"{code(name)}: {text}" for name, text in row.fields.items())
    if row.name == "token_refused_<cause>":
        yield paragraph("The causes, and the fault that each of them is counted as:")
        yield table(
            ("cause", "fault", "meaning"),
            ((code(name), code(cause.fault), cause.text) for name, cause in CAUSES.items()),
        )
    if row.name == "duty_failed_<duty>":
        yield paragraph(f"The duties: {', '.join(code(name) for name in DUTIES)}.")
