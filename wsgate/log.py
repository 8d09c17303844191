"""Log lines: one per cause and second at most, text or JSON, never payloads, tokens or query strings.

On top of the standard library, so that whoever embeds wsgate may route it. A cause is a name in snake
case; what differs from line to line goes into fields. Lines that were held back are counted and said
with the next one of the same cause.

In the programs of this package no line ever waits for its reader (see `wsgate.output`), and what libraries
and the interpreter report (warnings, other loggers, exceptions that nobody caught) becomes such lines too.
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
    """Which process this is, for lines that no part of it writes itself."""

    name = "keeper"


class Log:
    """Lines of one process, or of one part of it.

    Args:
        part: Who speaks: `keeper`, `shard-0`, `admin`; empty: this process, whatever its name is then.
    """

    def __init__(self, part: str) -> None:
        self._logger = logging.getLogger(f"{_LOGGER}.{part or 'process'}")
        self._part = part
        self._said: dict[str, tuple[float, int]] = {}

    def info(self, cause: str, /, **fields: object) -> None:
        """Something an operator wants to know happened."""
        self._say(logging.INFO, cause, fields)

    def warning(self, cause: str, /, **fields: object) -> None:
        """Something went wrong and wsgate goes on."""
        self._say(logging.WARNING, cause, fields)

    def error(self, cause: str, /, **fields: object) -> None:
        """Something went wrong that somebody must look at."""
        self._say(logging.ERROR, cause, fields)

    def exception(self, cause: str, fault: BaseException | None = None, /, **fields: object) -> None:
        """A fault of ours: with the traceback of `fault`, or of the exception being handled."""
        self._say(logging.ERROR, cause, fields, fault=fault or True)

    def _say(
        self, level: int, cause: str, fields: dict[str, object], *, fault: BaseException | bool = False
    ) -> None:
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
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = getattr(record, "fields", {})
        tail = "".join(f" {name}={_plain(value)}" for name, value in fields.items())
        head = f"{stamp}Z {record.levelname.lower():7} {getattr(record, 'part', '-')}"
        line = f"{head} {record.getMessage()}{tail}"
        return line if not record.exc_info else f"{line}\n{self.formatException(record.exc_info)}"


class _JsonFormatter(logging.Formatter):
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
    """One word: nothing in a field can start a line, or end one."""
    text = str(value)
    return text if text.isprintable() and " " not in text and text else json.dumps(text)


# --- for the programs of this package -----------------------------------------------------------------


class _OutputHandler(logging.Handler):
    """Every line of this process to standard error, without waiting for its reader."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.output = Output(_STDERR_FD, self._report)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        try:
            self.output.write(self._line(record))
        except Exception:  # a record that cannot be formatted, a fault of ours
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode(errors="backslashreplace")

    def _report(self, count: int) -> bytes:
        """The line in the place of `count` lines that were dropped."""
        record = logging.LogRecord(_LOGGER, logging.WARNING, "", 0, _DROPPED, None, None)
        record.__dict__ |= {"part": _Part.name, "fields": {"lines": count, "why": "reader too slow"}}
        return self._line(record)


class _LibraryHandler(logging.Handler):
    """Lines of libraries under the rules of ours: one per library and second."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record as a line of this process."""
        cause = "library_" + record.name.partition(".")[0]
        text = record.getMessage().strip()
        if record.exc_info and record.exc_info[1] is not None:
            _process_log.exception(cause, record.exc_info[1], text=text)
        else:
            _process_log.warning(cause, text=text)


_process_log: Final = Log("")


def name_part(part: str) -> None:
    """Name this process, for lines of libraries and of the interpreter: `keeper`, `shard-0`, `admin`."""
    _Part.name = part


def set_up_logging(*, level: str, is_json: bool) -> None:
    """Send every line of this process and of those it forks to standard error, and never wait for its reader.

    That includes warnings, the lines of libraries, exceptions that nobody caught, and whatever else is
    printed to `sys.stderr` or `sys.stdout`. For the programs of this package, not for embedders.
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
    _process_log.exception("uncaught", fault)


def _on_unraisable(event: "sys.UnraisableHookArgs") -> None:
    """A fault that has no caller left: of a finalizer, or of compiled code that cannot raise."""
    _process_log.exception("unraisable", event.exc_value, where=event.err_msg or "a finalizer")


def _on_thread_failed(event: threading.ExceptHookArgs) -> None:
    _process_log.exception("thread_failed", event.exc_value)
