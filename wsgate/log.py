"""Writes log lines as text or JSON, at most one per second for each cause.

A log line never contains payloads, tokens or query strings. The module uses the logging of the standard
library, so that a program that embeds wsgate can route the lines. A cause is a name in snake case; values
that differ from line to line are fields. Lines that are held back are counted, and the next line of the same
cause has their number.

The programs of this package never wait for the reader of a line (see `wsgate.output`). They also turn
warnings, lines of other loggers and uncaught exceptions into such lines.
"""

import atexit
import json
import logging
import sys
import threading
import time
from types import TracebackType
from typing import Final

from wsgate.output import LineStream, Output, finish_outputs

__all__ = ["Log", "name_part", "set_up_logging"]

EVERY_S: Final = 1.0
CAUSES_LIMIT: Final = 1_000
_LOGGER: Final = "wsgate"
_DROPPED: Final = "log_lines_dropped"
_STDOUT_FD: Final = 1
_STDERR_FD: Final = 2


class _Part:
    """The name of this process, for lines of libraries and of the interpreter."""

    name = "keeper"


class Log:
    """Writes the log lines of one process or of one part of it, at most one per cause and second.

    Args:
        part: The name in the lines: `keeper`, `shard-0` or `admin`; empty: the name of this process when a
            line is written.
    """

    def __init__(self, part: str) -> None:
        self._logger = logging.getLogger(f"{_LOGGER}.{part or 'process'}")
        self._part = part
        self._said: dict[str, tuple[float, int]] = {}

    def info(self, cause: str, /, **fields: object) -> None:
        """Log an event that is useful for an operator and is not a fault."""
        self._say(logging.INFO, cause, fields)

    def warning(self, cause: str, /, **fields: object) -> None:
        """Log a problem with which wsgate continues to work."""
        self._say(logging.WARNING, cause, fields)

    def error(self, cause: str, /, **fields: object) -> None:
        """Log a problem that an operator has to examine."""
        self._say(logging.ERROR, cause, fields)

    def exception(self, cause: str, fault: BaseException | None = None, /, **fields: object) -> None:
        """Log a fault of wsgate with the traceback of `fault`, or of the exception that is being handled."""
        self._say(logging.ERROR, cause, fields, fault=fault or True)

    def _say(
        self, level: int, cause: str, fields: dict[str, object], *, fault: BaseException | bool = False
    ) -> None:
        """Write a line, unless the same cause had one within the last second; then count it as held back."""
        if not self._logger.isEnabledFor(level):
            return
        now_s = time.monotonic()
        last_s, held_back = self._said.get(cause, (-EVERY_S, 0))
        if now_s - last_s < EVERY_S:
            self._said[cause] = (last_s, held_back + 1)
            return
        if len(self._said) >= CAUSES_LIMIT:
            self._said.clear()
        self._said[cause] = (now_s, 0)
        if held_back:
            fields = fields | {"held_back": held_back}
        extra = {"part": self._part or _Part.name, "fields": fields}
        self._logger.log(level, cause, exc_info=fault, extra=extra)


class _TextFormatter(logging.Formatter):
    """Formats a record as one line of text: time, level, part, cause, then fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = getattr(record, "fields", {})
        tail = "".join(f" {name}={_plain(value)}" for name, value in fields.items())
        head = f"{stamp}Z {record.levelname.lower():7} {getattr(record, 'part', '-')}"
        line = f"{head} {record.getMessage()}{tail}"
        return line if not record.exc_info else f"{line}\n{self.formatException(record.exc_info)}"


class _JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object in a line."""

    def format(self, record: logging.LogRecord) -> str:
        row = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "part": getattr(record, "part", "-"),
            "cause": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            row["traceback"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str)


def _plain(value: object) -> str:
    """Return a field value as one printable word, quoted if needed, so that it cannot end a line."""
    text = str(value)
    return text if text.isprintable() and " " not in text and text else json.dumps(text)


# --- for the programs of this package -----------------------------------------------------------------


class _OutputHandler(logging.Handler):
    """Writes every line of this process to standard error without waiting for the reader."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.output = Output(_STDERR_FD, self._report)

    def emit(self, record: logging.LogRecord) -> None:
        """Format a record and write it to standard error, or report that it cannot be formatted."""
        try:
            self.output.write(self._line(record))
        except Exception:  # a record that cannot be formatted, a fault of ours
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> bytes:
        """Return a record as the bytes of a line with its line end."""
        return (self.format(record) + "\n").encode(errors="backslashreplace")

    def _report(self, count: int) -> bytes:
        """Return the line that reports how many lines were dropped at this place."""
        record = logging.LogRecord(_LOGGER, logging.WARNING, "", 0, _DROPPED, None, None)
        record.__dict__ |= {"part": _Part.name, "fields": {"lines": count, "why": "reader too slow"}}
        return self._line(record)


class _LibraryHandler(logging.Handler):
    """Turns lines of libraries into log lines of wsgate: at most one per library and second."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record of a library as a line of this process, with the library's name as its cause."""
        cause = "library_" + record.name.partition(".")[0]
        text = record.getMessage().strip()
        if record.exc_info and record.exc_info[1] is not None:
            _process_log.exception(cause, record.exc_info[1], text=text)
        else:
            _process_log.warning(cause, text=text)


_process_log: Final = Log("")


def name_part(part: str) -> None:
    """Set the name of this process for lines without an own part: `keeper`, `shard-0` or `admin`."""
    _Part.name = part


def set_up_logging(*, level: str, is_json: bool) -> None:
    """Send all log lines of this process and its forked children to standard error, without ever waiting.

    This includes warnings, lines of libraries and uncaught exceptions. All other output to `sys.stderr` and
    `sys.stdout` does not wait either. Only the programs of this package call it, not a program that embeds
    wsgate.

    Args:
        level: The lowest level that is written, such as `info`.
        is_json: Whether lines are JSON objects and not text.
    """
    handler = _OutputHandler(_JsonFormatter() if is_json else _TextFormatter())
    logger = logging.getLogger(_LOGGER)
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
    logging.getLogger().handlers[:] = [_LibraryHandler(logging.WARNING)]
    logging.captureWarnings(True)
    sys.stderr = LineStream(handler.output)
    sys.stdout = LineStream(Output(_STDOUT_FD))
    sys.excepthook = _on_uncaught
    sys.unraisablehook = _on_unraisable
    threading.excepthook = _on_thread_failed
    atexit.register(finish_outputs)


def _on_uncaught(kind: type[BaseException], fault: BaseException, trace: TracebackType | None) -> None:
    """Log an exception that ends the process."""
    _process_log.exception("uncaught", fault)


def _on_unraisable(event: "sys.UnraisableHookArgs") -> None:
    """Log an exception of a finalizer, or of compiled code that cannot raise to a caller."""
    _process_log.exception("unraisable", event.exc_value, where=event.err_msg or "a finalizer")


def _on_thread_failed(event: threading.ExceptHookArgs) -> None:
    """Log an exception that ended a thread."""
    _process_log.exception("thread_failed", event.exc_value)
