"""What was asked for, one line each, and whether it came true."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["print_verdict"]


def print_verdict(checks: Mapping[str, bool]) -> int:
    """Print every check; the exit code: 1 when one of them is not true."""
    for text, is_true in checks.items():
        print(f"{'ok  ' if is_true else 'MISS'} {text}")
    return int(not all(checks.values()))
