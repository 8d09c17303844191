"""Fork the processes of the keeper, name them, and restart each with back-off when it ends."""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

from wsgate.log import Log, name_part
from wsgate.output import finish_outputs

__all__ = ["Child", "fork_child", "name_process"]

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MOST_S: Final = 5.0
LIVED_WELL_S: Final = 10.0
"""A child that ran this long is restarted at once. Otherwise each restart waits twice as long as the last."""

_ENDING: Final = (signal.SIGTERM, signal.SIGCHLD)
_TERMINAL: Final = (signal.SIGINT, signal.SIGHUP)
"""A terminal sends these signals to all processes of a job at once. Only the keeper acts on them."""
_PREFIX: Final = "wsgate-"
_PR_SET_NAME: Final = 15
_prctl: Final = ctypes.CDLL(None).prctl
_ARGUMENTS: Final = 45  # of /proc/self/stat after the name: arg_start, then arg_end. Source: proc(5)


class Child:
    """A child process of the keeper, which is restarted whenever it ends.

    Args:
        name: The name for logs: `shard-0`, `admin`, `bus`.
        start: Forks the process and returns its pid.
        log_tail: Returns the last lines of the process's own log, for the keeper's log after an unexpected
            end.

    Attributes:
        pid: The process id; 0: the child does not run.
        restarts: How often the child has ended unexpectedly.
        started_s: The monotonic time of the last start, in seconds.
    """

    def __init__(self, name: str, start: Callable[[], int], log_tail: Callable[[], str] = lambda: "") -> None:
        self.name = name
        self.pid = 0
        self.restarts = 0
        self.started_s = 0.0
        self._start = start
        self._last_words = log_tail
        self._due_s = 0.0
        self._backoff_s = 0.0
        self._is_renewed = False
        # A log of its own: a log limits the lines of one event, and the end of each child must be logged.
        self._log = Log("keeper")

    def start_when_due(self) -> None:
        """Start the child if it is not running and its back-off is over."""
        if self.pid or time.monotonic() < self._due_s:
            return
        self.started_s = time.monotonic()
        try:
            self.pid = self._start()
        except Exception as error:  # no memory or no process is left now, or a fault of this program
            self._plan_next_start()
            why = error.strerror if isinstance(error, OSError) else repr(error)
            self._log.error("not_started", child=self.name, error=why)
            return
        self._log.info("started", child=self.name, pid=self.pid, restarts=self.restarts)

    def ended(self, code: int, *, is_asked: bool) -> None:
        """Log the end of the child, and plan its next start.

        Args:
            code: The exit code; below 0: minus the signal that killed the child.
            is_asked: Whether the keeper is stopping its children.
        """
        fields: dict[str, object] = {"child": self.name, "pid": self.pid, "status": code}
        # This comes first: whatever fails below, the child is started again.
        self.pid = 0
        self._plan_next_start()
        if is_asked or self._is_renewed:
            self._is_renewed = False
            self._log.info("ended", **fields)
        else:
            self.restarts += 1
            if text := self._last_words():
                fields["said"] = text
            self._log.warning("died", **fields)

    def renew(self) -> None:
        """Send SIGTERM to the child, so that it is restarted with new options; its end is not a warning."""
        self._is_renewed = bool(self.pid)
        self.signal(signal.SIGTERM)

    def _plan_next_start(self) -> None:
        """Set the time of the next start, and double the back-off unless the child has run for long."""
        now_s = time.monotonic()
        if now_s - self.started_s >= LIVED_WELL_S:
            self._backoff_s = 0.0
        self._due_s = now_s + self._backoff_s
        self._backoff_s = min(BACKOFF_MOST_S, self._backoff_s * 2 or BACKOFF_FIRST_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child, if it runs. It is not reaped yet, so no other process has its pid."""
        if self.pid:
            os.kill(self.pid, number)


def fork_child(name: str, work: Callable[[], int | None]) -> int:
    """Fork a process that runs `work` and then exits, and return its process id.

    Signals are blocked during the fork, so that none is lost before the child has its own handlers. SIGTERM
    ends the child until it installs a handler. The child ignores the signals that a terminal sends to all
    processes at once.

    Args:
        name: The name of the process, such as `wsgate-shard-0`.
        work: Runs in the child; its result is the exit code, None: 0.

    Raises:
        OSError: No process, or no memory, is left for a child now.
    """
    _argument_area()  # fill the cache here, so that the child does not have to read /proc
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_ENDING, *_TERMINAL))
    try:
        pid = os.fork()
        if not pid:
            _be_child(name, work)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _be_child(name: str, work: Callable[[], int | None]) -> None:
    """Run `work` in the forked child and exit; never return into the code of the keeper."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        for number in _TERMINAL:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_ENDING, *_TERMINAL))
        name_process(name)
        name_part(name.removeprefix(_PREFIX))
        _rename_command_line(name)
        code = work() or 0
    except BaseException:
        Log("keeper").exception("child_failed", child=name)
    finally:
        try:
            finish_outputs()
        finally:
            os._exit(code)


def name_process(name: str) -> None:
    """Set the name of this process that `ps -e` and `top` show; the kernel keeps 15 bytes.

    This uses prctl, because /proc/self/comm belongs to root when the process is not dumpable.
    """
    _prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()), 0, 0, 0)


def _rename_command_line(name: str) -> None:
    """Overwrite the command line that `ps aux` shows, which in a forked child is that of the keeper.

    The kernel reads the command line from the memory where the arguments of the process were at its start.
    """
    start, end = _argument_area()
    if 0 < start < end:
        text = name.encode()[: end - start - 1]
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text, len(text))


@cache
def _argument_area() -> tuple[int, int]:
    """Return the addresses where this process's arguments begin and end; both 0 if the kernel hides them.

    In a forked process the addresses are the same.
    """
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[_ARGUMENTS]), int(fields[_ARGUMENTS + 1])
    return 0, 0
