"""Starts one of loadtest.peers as a child process, and sends it commands (see peers/control.py)."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from loadtest.harness.processes import settle

__all__ = ["ServerError", "ServerProcess"]

_ROOT = Path(__file__).resolve().parents[2]
# Every command is finished within its own time limit plus this.
_GRACE_S = 30.0


class ServerError(Exception):
    """A server did not start, ended early, or refused a command."""


class ServerProcess:
    """One server of loadtest.peers in its own process, which is always ended by its process id.

    Args:
        module: Its name below loadtest.peers.
        settings: Passed to the server; see its module.
        processor: The CPU to pin it to; None: do not pin.
    """

    def __init__(
        self, module: str, settings: dict[str, Any] | None = None, *, processor: int | None = None
    ) -> None:
        """Start the server and wait until it listens; raise ServerError if it does not."""
        self.module = module
        self._child = subprocess.Popen(
            [sys.executable, "-m", f"loadtest.peers.{module}", json.dumps(settings or {})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
        )
        if processor is not None:
            os.sched_setaffinity(self._child.pid, (processor,))
        self._ids = itertools.count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._input = b""
        try:
            self.port: int = self.call("hello")["port"]
        except BaseException:
            self.stop()
            raise

    def call(self, command: str, *, timeout_s: float = 0.0, **arguments: Any) -> Any:
        """Run a command and return its result; raise ServerError if it is refused or late."""
        return self.finish(self.start(command, **arguments), timeout_s=timeout_s)

    def start(self, command: str, **arguments: Any) -> int:
        """Send a command; `finish` with the returned number waits for its result."""
        number = next(self._ids)
        line = json.dumps({"id": number, "command": command, **arguments}) + "\n"
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line.encode())
            self._child.stdin.flush()
        except OSError as error:
            raise ServerError(f"{self.module} has ended") from error
        return number

    def finish(self, number: int, *, timeout_s: float = 0.0) -> Any:
        """Wait for the result of a command that was started."""
        until_s = time.monotonic() + timeout_s + _GRACE_S
        while number not in self._answers:
            self._read(until_s)
        answer = self._answers.pop(number)
        if not answer["ok"]:
            raise ServerError(f"{self.module}: {answer['error']}")
        return answer["result"]

    def _read(self, until_s: float) -> None:
        assert self._child.stdout is not None
        descriptor = self._child.stdout.fileno()
        ready, _, _ = select.select([descriptor], [], [], max(0.0, until_s - time.monotonic()))
        if not ready:
            raise ServerError(f"{self.module} does not reply")
        data = os.read(descriptor, 1 << 16)
        if not data:
            raise ServerError(f"{self.module} ended with status {self._child.wait(_GRACE_S)}")
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            self._answers[answer["id"]] = answer

    def cpu_s(self) -> float:
        """Return the user and system CPU time of the server process until now, in seconds."""
        cpu_s: float = self.call("stats")["cpu_s"]
        return cpu_s

    def settle(self, *, timeout_s: float = 15.0) -> None:
        """Wait until the server uses less than 2 % of a CPU.

        The work of closing connections is then not charged to the next measurement.
        """
        settle(self.cpu_s, timeout_s=timeout_s)

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._child.pid

    def is_running(self) -> bool:
        """Whether the server process still runs."""
        return self._child.poll() is None

    def stop(self) -> None:
        """End the server process, and kill it if it has not ended after 5 s. May be called twice."""
        with contextlib.suppress(OSError):
            if self._child.stdin is not None:
                self._child.stdin.close()
        try:
            self._child.wait(5.0)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()

    def __enter__(self) -> Self:
        """Return the server itself on entry."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the process of the server."""
        self.stop()
