"""Runs the engine in a child process, so that its CPU time is separate from that of the bench.

The child is ``python -m loadtest.engine SETTINGS`` (a JSON object with the fields of EngineSettings). Each
line of its input is one JSON command, each line of its output one JSON reply. A command is ``{"id": 7,
"command": "stats", ...}``, its reply ``{"id": 7, "ok": true, "result": ...}`` or ``{"id": 7, "ok": false,
"kind": ..., "error": ...}``.

Long commands (connect, echo, run, close) have their reply when they end. The others have it at once, also
while a long one runs, so replies are matched by id. The child serves its connections all the time, with or
without a command. It ends after `quit` or when its standard input ends, so that it never outlives its parent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, Self, cast

from loadtest.engine import errors
from loadtest.engine.errors import EngineError
from loadtest.engine.plans import ConnectPlan, EchoPlan, EngineSettings
from loadtest.engine.results import CloseResult, ConnectResult, EchoResult, ReconcileResult, Stats

__all__ = ["EngineProcess"]

# How long a command may take beyond its own time before the call fails because the child does not respond.
_GRACE_S = 30.0
_ROOT = Path(__file__).resolve().parents[2]


class EngineProcess:
    """An engine in a child process, which ends after the block, at exit, or with its parent.

    The methods are those of Engine; each blocks until its reply has arrived. `start` returns a future
    instead.

    Args:
        settings: The settings of the engine.
        cpus: The CPUs on which the child may run; empty: all.
    """

    def __init__(self, settings: EngineSettings | None = None, *, cpus: tuple[int, ...] = ()) -> None:
        """Start the child and wait until it is ready; raise EngineError if it cannot start."""
        arguments = json.dumps(dataclasses.asdict(settings or EngineSettings()))
        self._child = subprocess.Popen(
            [sys.executable, "-m", "loadtest.engine", arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
        )
        if cpus:
            os.sched_setaffinity(self._child.pid, cpus)
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._end = weakref.finalize(self, _end, self._child)
        # The thread refers to the parts and never to self: an EngineProcess without references is collected,
        # and its child ends.
        threading.Thread(
            target=_read_answers,
            args=(self._child, self._waiting, self._lock),
            name="engine answers",
            daemon=True,
        ).start()
        try:
            self.call("hello")
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._child.pid

    def start(self, command: str, **arguments: Any) -> Future[Any]:
        """Send a command, and return a future with its result or an EngineError."""
        future: Future[Any] = Future()
        number = next(self._ids)
        line = json.dumps({"id": number, "command": command, **arguments}).encode() + b"\n"
        with self._lock:
            if self._child.poll() is not None or self._child.stdin is None or self._child.stdin.closed:
                raise EngineError(f"the engine process has ended (status {self._child.poll()})")
            self._waiting[number] = future
        try:
            self._child.stdin.write(line)
            self._child.stdin.flush()
        except OSError as error:
            raise EngineError("the engine process has ended") from error
        return future

    def call(self, command: str, **arguments: Any) -> Any:
        """Send a command that is answered at once, and wait for its result, at most 30 s (TimeoutError)."""
        return self.start(command, **arguments).result(_GRACE_S)

    def connect(self, plan: ConnectPlan) -> ConnectResult:
        """Run Engine.connect in the child."""
        limit_s = plan.timeout_s * (2 + plan.count // plan.window)
        if plan.rate_per_s:
            limit_s = plan.timeout_s + plan.count / plan.rate_per_s
        future = self.start("connect", **dataclasses.asdict(plan))
        return cast(ConnectResult, future.result(limit_s + _GRACE_S))

    def run(self, duration_s: float, *, until_messages: int = 0) -> int:
        """Run Engine.hold in the child: serve the connections for this time."""
        arguments = {"duration_s": duration_s, "until_messages": until_messages}
        return cast(int, self.start("run", **arguments).result(duration_s + _GRACE_S))

    def echo(self, plan: EchoPlan) -> EchoResult:
        """Run Engine.echo in the child; a plan without duration_s may take up to an hour."""
        limit_s = (plan.duration_s or 3600.0) + plan.drain_s
        future = self.start("echo", **dataclasses.asdict(plan))
        return cast(EchoResult, future.result(limit_s + _GRACE_S))

    def send(self, payload: str, *, first: int = 0, count: int = 0, is_text: bool = True) -> int:
        """Run Engine.send in the child, for a payload that is text (sent as UTF-8)."""
        return cast(int, self.call("send", payload=payload, first=first, count=count, is_text=is_text))

    def close(
        self, mode: Literal["close", "reset", "fin"] = "close", *, count: int = 0, timeout_s: float = 5.0
    ) -> CloseResult:
        """Run Engine.close in the child."""
        future = self.start("close", mode=mode, count=count, timeout_s=timeout_s)
        return cast(CloseResult, future.result(timeout_s + _GRACE_S))

    def reconcile(self, stream: int, *, first: int, last: int) -> ReconcileResult:
        """Run Engine.reconcile in the child."""
        return cast(ReconcileResult, self.call("reconcile", stream=stream, first=first, last=last))

    def stats(self, *, with_counts: bool = False) -> Stats:
        """Return Engine.stats of the child."""
        return cast(Stats, self.call("stats", with_counts=with_counts))

    def reset_stats(self) -> None:
        """Run Engine.reset_stats in the child."""
        self.call("reset")

    def quit(self) -> None:
        """Reset all connections and end the child; kill it if it has not ended after 10 s.

        May be called twice.
        """
        with contextlib.suppress(EngineError, TimeoutError):
            self.start("quit").result(10.0)
        self.kill()

    def kill(self) -> None:
        """Kill the child at once by its process id, and wait for its end. May be called twice."""
        self._end()

    def __enter__(self) -> Self:
        """Return the EngineProcess itself on entry."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End the engine's child process."""
        self.quit()


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and wait for its end; it may have ended already."""
    child.kill()
    child.wait()
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()


def _read_answers(
    child: subprocess.Popen[bytes], waiting: dict[int, Future[Any]], lock: threading.Lock
) -> None:
    """Set the future of each reply until the child's output ends; then fail the futures that remain."""
    stdout = child.stdout
    assert stdout is not None
    with stdout:
        for line in stdout:
            answer = json.loads(line)
            with lock:
                future = waiting.pop(answer["id"], None)
            if future is None:
                continue
            if answer["ok"]:
                future.set_result(answer["result"])
            else:
                future.set_exception(_error(answer["kind"], answer["error"]))
    child.wait()
    with lock:
        left = list(waiting.values())
        waiting.clear()
    for future in left:
        future.set_exception(EngineError(f"the engine process ended (status {child.returncode})"))


def _error(kind: str, text: str) -> Exception:
    """Convert the child's error to an exception of the same name; an unknown name becomes an EngineError."""
    if kind in errors.__all__:
        return cast(Exception, getattr(errors, kind)(text))
    return ValueError(text) if kind == "ValueError" else EngineError(f"{kind}: {text}")
