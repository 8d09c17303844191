"""Prints the checks of an experiment, one per line, and whether each of them passed."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["print_verdict"]


def print_verdict(checks: Mapping[str, bool]) -> int:
    """Print every check; return the exit code, 1 if one of them failed."""
    for text, is_true in checks.items():
        print(f"{'ok  ' if is_true else 'MISS'} {text}")
    return int(not all(checks.values()))
