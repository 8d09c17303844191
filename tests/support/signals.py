"""Give the processes that tests start the default action for every signal."""

import signal
from types import FrameType
from typing import Final

__all__ = ["stop_ignoring_signals"]

# Python ignores these two itself, and subprocess.Popen restores them in a child (restore_signals).
_IGNORED_BY_PYTHON: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})


def stop_ignoring_signals() -> None:
    """Replace every ignored signal's action by a handler that does nothing; call this in the main thread.

    nohup starts a process with SIGHUP ignored, and a shell without job control starts a background job
    with SIGINT and SIGQUIT ignored. An ignored signal stays ignored after exec, a handled one gets its
    default action back (POSIX, exec). With the handler this process still survives the signal.
    """
    for number in signal.valid_signals() - _IGNORED_BY_PYTHON:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, _do_nothing)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Handle a signal by returning."""
