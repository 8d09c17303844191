"""Builds the floor probe, a C program in loadtest/floor, and runs its scenarios."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

__all__ = ["FLOOR", "FloorError", "build", "run"]

FLOOR = Path(__file__).resolve().parents[1] / "floor"


class FloorError(Exception):
    """The floor probe did not build, or one of its scenarios failed."""


def build() -> Path:
    """Build the probe and its library if they are out of date, and return the path of the program."""
    done = subprocess.run(["make", "-s", "-C", str(FLOOR)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FloorError(f"the floor probe does not build:\n{done.stdout}{done.stderr}")
    return FLOOR / "floor"


def run(
    *scenarios: str, processors: tuple[int, int] | None = None, **options: int
) -> dict[str, dict[str, float | str]]:
    """Run scenarios of the probe, each with its own pair of processes.

    Args:
        scenarios: Names that `floor --help` lists.
        processors: The CPUs of the measured process and of its peer; None: do not pin.
        options: Long options of the probe, with `_` for `-`: sockets, rounds, interval_ms, window, timeout_s.

    Returns:
        The numbers of each scenario, by name. `unavailable` is a text if the kernel lacks a needed feature,
        else "".

    Raises:
        FloorError: A scenario failed.
    """
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    if processors is not None:
        arguments += [f"--server-cpu={processors[0]}", f"--peer-cpu={processors[1]}"]
    command = [str(FLOOR / "floor"), "--json", *arguments, *scenarios]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    results: dict[str, dict[str, float | str]] = json.loads(done.stdout or "{}")
    errors = [f"{name}: {result['error']}" for name, result in results.items() if result["error"]]
    if done.returncode != 0 or errors:
        raise FloorError(
            "; ".join(errors) or f"the floor probe ended with status {done.returncode}: {done.stderr}"
        )
    return results
