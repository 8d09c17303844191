"""Parse and format durations and sizes in settings: text to whole milliseconds or bytes, and back. Pure.

A quantity is one number and one unit, without fractions, sums or spaces. Sizes are powers of 1024 and have
the units B, KiB, MiB and GiB; a bare number is bytes. KB is refused because many people read it as 1000.
"""

import json
import re
from collections.abc import Mapping
from typing import Final

from wsgate.errors import SettingsError

__all__ = ["format_duration", "format_size", "parse_duration_ms", "parse_size_bytes", "quote"]

_DURATIONS_MS: Final = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_SIZES_BYTES: Final = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}

# Fifteen digits are more than any setting needs, and far fewer than int() accepts.
_QUANTITY: Final = re.compile(r"([0-9]{1,15})([A-Za-z]*)")
_SHOWN_LIMIT: Final = 60


def parse_duration_ms(text: str) -> int:
    """Parse a duration such as "250ms", "25s", "5m", "1h" or "0" into whole milliseconds, >= 0.

    Raises:
        SettingsError: The text is anything else; the message quotes it and names no setting.
    """
    match = _QUANTITY.fullmatch(text)
    unit = "ms" if match and not match[2] and not int(match[1]) else match[2] if match else ""
    if match is None or unit not in _DURATIONS_MS:
        raise SettingsError(f'{_shown(text)} is not a duration such as "250ms", "25s", "5m", "1h"')
    return int(match[1]) * _DURATIONS_MS[unit]


def parse_size_bytes(text: str) -> int:
    """Parse a size such as "512B", "64KiB", "1MiB" or "1GiB" into bytes, >= 0; a bare number is bytes.

    Raises:
        SettingsError: The text is anything else; the message quotes it and names no setting.
    """
    match = _QUANTITY.fullmatch(text)
    unit = (match[2] or "B") if match else ""
    if match is None or unit not in _SIZES_BYTES:
        raise SettingsError(f'{_shown(text)} is not a size such as "512B", "64KiB", "1MiB"')
    return int(match[1]) * _SIZES_BYTES[unit]


def format_duration(duration_ms: int) -> str:
    """Format a duration in milliseconds, >= 0, with its largest exact unit; zero is "0s"."""
    return _format(duration_ms, _DURATIONS_MS) if duration_ms else "0s"


def format_size(size_bytes: int) -> str:
    """Format a size in bytes, >= 0, with its largest exact unit; zero is "0B"."""
    return _format(size_bytes, _SIZES_BYTES) if size_bytes else "0B"


def quote(text: str) -> str:
    """Write a text as a TOML basic string, in double quotes and with escapes.

    Source: TOML 1.0, "String": JSON's escapes are valid, and DEL must be escaped as well.
    """
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _format(quantity: int, units: Mapping[str, int]) -> str:
    unit, worth = next((unit, worth) for unit, worth in units.items() if quantity % worth == 0)
    return f"{quantity // worth}{unit}"


def _shown(text: str) -> str:
    return quote(text if len(text) <= _SHOWN_LIMIT else text[:_SHOWN_LIMIT] + "...")
