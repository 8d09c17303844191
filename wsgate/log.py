"""Log lines: one per cause and second at most, text or JSON, never payloads, tokens or query strings.

On top of the standard library, so that whoever embeds wsgate may route it. A cause is a name in snake
case; what differs from line to line goes into fields. Lines that were held back are counted and said
with the next one of the same cause.
"""

import json
import logging
import sys
import time
from typing import Final

__all__ = ["Log", "set_up_logging"]

EVERY_S: Final = 1.0
CAUSES_LIMIT: Final = 1_000
_LOGGER: Final = "wsgate"


class Log:
    """Lines of one process, or of one part of it.

    Args:
        part: Who speaks: `keeper`, `shard-0`, `admin`.
    """

    def __init__(self, part: str) -> None:
        self._logger = logging.getLogger(f"{_LOGGER}.{part}")
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
        extra = {"part": self._part, "fields": fields}
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


def set_up_logging(*, level: str, is_json: bool) -> None:
    """Send wsgate's lines to standard error; for the programs of this package, not for embedders."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if is_json else _TextFormatter())
    logger = logging.getLogger(_LOGGER)
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
