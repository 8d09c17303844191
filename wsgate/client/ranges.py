"""Checks that the options of a client are numbers within their ranges. Pure."""

import math

from wsgate.client.quantities import LIFE_MOST_S
from wsgate.errors import SettingsError

__all__ = ["check_seconds", "check_time_limits", "check_whole_numbers"]


def check_whole_numbers(options: object, **least: int) -> None:
    """Check options that are counts or sizes.

    Args:
        options: The object with the options; its type is named in the error.
        least: The smallest allowed value of each option, by its name.

    Raises:
        SettingsError: A value is not an `int`, or is too small.
    """
    for name, limit in least.items():
        value = getattr(options, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < limit:
            raise _refused(options, name, f"a whole number from {limit} on")


def check_time_limits(options: object, *names: str) -> None:
    """Check options that are time limits: seconds above 0. Infinity means no limit.

    Raises:
        SettingsError: A value is not a number above 0.
    """
    for name in names:
        value = getattr(options, name)
        if not _is_number(value) or not value > 0:
            raise _refused(options, name, "a number of seconds above 0")


def check_seconds(options: object, **least: float) -> None:
    """Check options that are waits: seconds from a smallest allowed value to 100 years.

    Args:
        options: The object with the options; its type is named in the error.
        least: The smallest allowed value of each option, by its name.

    Raises:
        SettingsError: A value is not a number, is too small, or is too large to be a wait.
    """
    for name, limit in least.items():
        value = getattr(options, name)
        if not _is_number(value) or not limit <= value <= LIFE_MOST_S:
            raise _refused(options, name, f"a number of seconds from {limit:g} to {LIFE_MOST_S}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _refused(options: object, name: str, expected: str) -> SettingsError:
    value = getattr(options, name)
    return SettingsError(f"{type(options).__name__}.{name}: {value!r} is not {expected}")
