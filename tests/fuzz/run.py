"""Fuzz every reader of foreign bytes for a while.

    python -m tests.fuzz.run                            all targets, 60 s in all
    python -m tests.fuzz.run --seconds 3600 frames      one of them for an hour
    python -m tests.fuzz.run --seed 7 frames            the same inputs again

The program prints its progress every few seconds. After a fault it exits with 1, prints the seed that repeats
the fault, and keeps the input in reports/fuzz.
"""

import argparse
import random
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Final

from tests.fuzz.targets import TARGETS

__all__ = ["fuzz", "main"]

REPORTS: Final = Path(__file__).resolve().parents[2] / "reports" / "fuzz"
ROUND: Final = 200  # inputs of one seed
TELL_S: Final = 10.0


def fuzz(name: str, seed: int, seconds: float, *, rounds: int = 0) -> int:
    """Run one target; return the number of inputs.

    Args:
        name: One of `TARGETS`.
        seed: Of the first round; each next one adds 1.
        seconds: How long.
        rounds: End after so many; 0: by time only.

    Raises:
        AssertionError: A fault; `__notes__` say how to see it again.
    """
    count, began_s, told_s = 0, time.monotonic(), time.monotonic()
    size = 1 if name == "reactor" else ROUND
    while time.monotonic() - began_s < seconds:
        target = TARGETS[name]()
        dice = random.Random(seed)
        try:
            for _ in range(size):
                target.run(dice)
                count += 1
            target.close()
        except Exception as error:
            error.add_note(f"again: python -m tests.fuzz.run --seed {seed} {name}")
            raise
        seed += 1
        rounds -= 1
        if rounds == 0:
            break
        if time.monotonic() - told_s > TELL_S:
            told_s = time.monotonic()
            print(f"fuzz {name}: {count:,} inputs, {count / (told_s - began_s):,.0f} a second", flush=True)
    return count


def main(arguments: list[str] | None = None) -> int:
    """Fuzz the chosen targets; return 0 when no fault was found."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.run")
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], help="all by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="over all targets")
    parser.add_argument("--seed", type=int, default=None, help="of the first round; random by default")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    sys.unraisablehook = lambda _: None  # metas that call back when they are dropped
    names = options.targets or list(TARGETS)
    for name in names:
        seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
        try:
            count = fuzz(name, seed, options.seconds / len(names))
        except Exception:
            REPORTS.mkdir(parents=True, exist_ok=True)
            report = REPORTS / f"{name}.txt"
            report.write_text(traceback.format_exc(), encoding="utf-8")
            traceback.print_exc()
            print(f"fuzz {name}: FAULT, see {report}", file=sys.stderr)
            return 1
        print(f"fuzz {name}: {count:,} inputs, sound", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
