"""A process the keeper starts, and starts again when it dies, not faster than is good for anybody."""

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
"""A child that lived so long is restarted at once; one that dies sooner waits, each time twice as long."""

_ENDING: Final = (signal.SIGTERM, signal.SIGCHLD)
_TERMINAL: Final = (signal.SIGINT, signal.SIGHUP)
"""Go to every process of a terminal at once; what they mean is for the keeper to say."""
_PREFIX: Final = "wsgate-"
_PR_SET_NAME: Final = 15
_prctl: Final = ctypes.CDLL(None).prctl
_ARGUMENTS: Final = 45  # of /proc/self/stat after the name: arg_start, then arg_end. Source: proc(5)


class Child:
    """One child by name.

    Args:
        name: For logs: `shard-0`, `admin`, `bus`.
        start: Forks it and returns its pid.
        log_tail: What it left to read, for the log, when it died unasked.
    """

    def __init__(self, name: str, start: Callable[[], int], log_tail: Callable[[], str] = lambda: "") -> None:
        self.name = name
        self.pid = 0  # 0: not running
        self.restarts = 0
        self.started_s = 0.0  # monotonic; of the last start
        self._start = start
        self._last_words = log_tail
        self._due_s = 0.0
        self._backoff_s = 0.0
        self._is_renewed = False
        # Of its own: a log holds lines of one cause back, and each child's death is worth one.
        self._log = Log("keeper")

    def start_when_due(self) -> None:
        """Start it if it is not running and its back-off is over."""
        if self.pid or time.monotonic() < self._due_s:
            return
        self.started_s = time.monotonic()
        try:
            self.pid = self._start()
        except Exception as error:  # no memory or no process left for it now, or a fault of ours
            self._plan_next_start()
            why = error.strerror if isinstance(error, OSError) else repr(error)
            self._log.error("not_started", child=self.name, error=why)
            return
        self._log.info("started", child=self.name, pid=self.pid, restarts=self.restarts)

    def ended(self, code: int, *, is_asked: bool) -> None:
        """It is gone; plan the next start.

        Args:
            code: Its exit code; below 0: the signal that killed it.
            is_asked: Whether we told it to end.
        """
        fields: dict[str, object] = {"child": self.name, "pid": self.pid, "status": code}
        # First of all: whatever fails below, the child is started again.
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
        """End it, so that it is started again with what it is to be now; no death worth a warning."""
        self._is_renewed = bool(self.pid)
        self.signal(signal.SIGTERM)

    def _plan_next_start(self) -> None:
        now_s = time.monotonic()
        if now_s - self.started_s >= LIVED_WELL_S:
            self._backoff_s = 0.0
        self._due_s = now_s + self._backoff_s
        self._backoff_s = min(BACKOFF_MOST_S, self._backoff_s * 2 or BACKOFF_FIRST_S)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs. It is ours and not reaped yet, so the pid is its own."""
        if self.pid:
            os.kill(self.pid, number)


def fork_child(name: str, work: Callable[[], int | None]) -> int:
    """Fork a process that does `work`, then exits with what that returns; its pid.

    No signal is lost: one that comes between the fork and the child's own handlers waits. The child
    ends by SIGTERM until it says otherwise, and ignores what a terminal sends to all at once.

    Raises:
        OSError: There is no process, or no memory, for it now.
    """
    _argument_area()  # so that the child finds it ready
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_ENDING, *_TERMINAL))
    try:
        pid = os.fork()
        if not pid:
            _be_child(name, work)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _be_child(name: str, work: Callable[[], int | None]) -> None:
    """Never returns into the keeper's code."""
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
    """What `ps -e` and `top` show; at most 15 bytes of it.

    Not through /proc/self/comm, which belongs to root where the process is not dumpable.
    """
    _prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()), 0, 0, 0)


def _rename_command_line(name: str) -> None:
    """What `ps aux` shows: a forked child would show its keeper's command line.

    The kernel reads it from where the process's arguments were when it was started.
    """
    start, end = _argument_area()
    if 0 < start < end:
        text = name.encode()[: end - start - 1]
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text, len(text))


@cache
def _argument_area() -> tuple[int, int]:
    """The addresses where the arguments of this process begin and end; both 0 where the kernel hides them.

    A forked process has them at the same place.
    """
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[_ARGUMENTS]), int(fields[_ARGUMENTS + 1])
    return 0, 0
