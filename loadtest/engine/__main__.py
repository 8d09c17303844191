"""The engine as a child process: JSON commands on standard input, JSON replies on standard output.

process.py describes their form.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from loadtest.engine.engine import Engine
from loadtest.engine.plans import ConnectPlan, EchoPlan, EngineSettings

# The loop returns after this time at the latest to check its deadlines. Input on stdin wakes it at once.
_STEP_S = 0.25
_READ_BYTES = 1 << 16
# A plan with 20,000 tokens of 2 KB fits; no parent sends more.
_LINE_BYTES = 64 << 20


class _Commands:
    """Runs commands on one engine, and remembers the long ones that have no reply yet."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.is_quitting = False
        self._jobs: dict[str, int] = {}
        self._run: tuple[int, float, int] | None = None
        self._input = bytearray()
        self._immediate: dict[str, Callable[..., Any]] = {
            "hello": lambda: {"pid": os.getpid()},
            "send": lambda payload, **rest: engine.send(payload.encode(), **rest),
            "stats": engine.stats,
            "reset": engine.reset_stats,
            "reconcile": engine.reconcile,
        }
        self._begin: dict[str, Callable[..., None]] = {
            "connect": lambda **fields: engine.begin_connect(ConnectPlan(**_as_tuples(fields))),
            "echo": lambda **fields: engine.begin_echo(EchoPlan(**fields)),
            "close": engine.begin_close,
        }
        self._take: dict[str, Callable[[], Any]] = {
            "connect": engine.take_connect,
            "echo": engine.take_echo,
            "close": engine.take_close,
        }

    def feed(self, data: bytes) -> None:
        """Run every complete line of the input, and keep the incomplete rest."""
        self._input += data
        if len(self._input) > _LINE_BYTES:
            raise SystemExit("command line too long")
        if b"\n" not in data:
            return
        *lines, rest = self._input.split(b"\n")
        self._input = bytearray(rest)
        for line in lines:
            self._run_line(bytes(line))

    def _run_line(self, line: bytes) -> None:
        number = 0
        try:
            arguments = json.loads(line)
            number = arguments.pop("id")
            self._dispatch(number, arguments.pop("command"), arguments)
        # The parent receives every failure with its name; no command may end the child.
        except Exception as error:
            _answer({"id": number, "ok": False, "kind": type(error).__name__, "error": str(error)})

    def _dispatch(self, number: int, command: str, arguments: dict[str, Any]) -> None:
        if command in self._immediate:
            _answer({"id": number, "ok": True, "result": self._immediate[command](**arguments)})
        elif command in self._begin:
            self._begin[command](**arguments)
            self._jobs[command] = number
        elif command == "run":
            if self._run is not None:
                raise ValueError("run is under way")
            self._run = (
                number,
                time.monotonic() + arguments["duration_s"],
                arguments.get("until_messages", 0),
            )
        elif command == "quit":
            self.is_quitting = True
            _answer({"id": number, "ok": True, "result": None})
        else:
            raise ValueError("unknown command")

    def answer_finished(self) -> None:
        """Reply to every long command that has ended."""
        for command, number in list(self._jobs.items()):
            result = self._take[command]()
            if result is not None:
                del self._jobs[command]
                _answer({"id": number, "ok": True, "result": result})
        if self._run is not None:
            number, until, until_messages = self._run
            messages = self.engine.hold(0.0)
            if time.monotonic() >= until or 0 < until_messages <= messages:
                self._run = None
                _answer({"id": number, "ok": True, "result": messages})

    def step_s(self) -> float:
        """Return how long the loop may run before `answer_finished` must be called again."""
        if self._run is None:
            return _STEP_S
        # A run that waits for messages checks their number often; this costs nothing that is measured.
        limit_s = 0.005 if self._run[2] else _STEP_S
        return min(limit_s, max(0.0, self._run[1] - time.monotonic()))


def _as_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Replace the lists of JSON by the tuples that a frozen plan needs."""
    if "headers" in fields:
        fields["headers"] = tuple((name, value) for name, value in fields["headers"])
    for name in ("tokens", "counted"):
        if name in fields:
            fields[name] = tuple(fields[name])
    return fields


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> None:
    """Serve commands until `quit` or the end of standard input."""
    settings = EngineSettings(**_as_tuples(json.loads(arguments[0]))) if arguments else EngineSettings()
    stdin = sys.stdin.fileno()
    with Engine(settings) as engine:
        commands = _Commands(engine)
        while not commands.is_quitting:
            if engine.step(commands.step_s(), wake_fd=stdin):
                data = os.read(stdin, _READ_BYTES)
                if not data:
                    return
                commands.feed(data)
            commands.answer_finished()


if __name__ == "__main__":
    main(sys.argv[1:])
