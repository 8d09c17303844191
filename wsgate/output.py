"""Standard error and standard output of a process, written without ever waiting for their reader.

A line is written at once where that is possible. Where the reader is slow or hangs, the line is kept, within
limits, and written by a later `flush`; a line that does not fit is dropped and counted. When everything that
waited has been written, one line reports how many lines are missing at that place.

O_NONBLOCK belongs to the open file description, which other programs may share: the shell on the same
terminal, the other writers of the same pipe. So it is never set on what the process was started with.
Instead a pipe or a terminal is opened once more through /proc, which makes a description of the gateway's
own, and that one takes the place of the descriptor: what an extension module or a library in C prints there
does not wait either. A socket is written with MSG_DONTWAIT. A file has no reader that could hang.
"""

import io
import os
import select
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["LineStream", "Output", "dropped_lines", "finish_outputs", "flush_outputs", "waiting_bytes"]

LINES_LIMIT: Final = 1_000
BYTES_LIMIT: Final = 256 * 1024
"""What waits for a reader, per descriptor and process: minutes of warnings. A longer line is dropped."""
FINISH_S: Final = 0.2
"""How long a process that ends waits for its reader, if lines wait; below every grace of the keeper."""
PIECE_BYTES: Final = 4096
"""PIPE_BUF of Linux: a pipe that poll calls writable takes so much without waiting. Source: pipe(7)."""

_open: "list[Output]" = []
"""Every output of this process."""


class Output:
    """Lines to one descriptor.

    Args:
        fd: The descriptor; 1 or 2. A description of our own replaces the one behind it where it may block.
        report: Makes the line that says how many lines were dropped; None: no such line is written.
        lines_limit: How many lines may wait.
        bytes_limit: How many bytes may wait.
    """

    def __init__(
        self,
        fd: int,
        report: Callable[[int], bytes] | None = None,
        *,
        lines_limit: int = LINES_LIMIT,
        bytes_limit: int = BYTES_LIMIT,
    ) -> None:
        self.dropped = 0  # lines, since this process started
        self.waiting_bytes = 0
        self._fd = fd
        self._write_some = _way_to(fd)
        self._report = report
        self._lines_limit = lines_limit
        self._bytes_limit = bytes_limit
        self._waiting: deque[bytes] = deque()
        self._unreported = 0
        # Never waited for: who finds it taken, a thread or a finalizer in the middle of a write, leaves its
        # line to the next flush.
        self._writer = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)
        _open.append(self)

    def write(self, line: bytes) -> None:
        """Write a line, with its line end, or keep it, or drop it. Never waits and never raises."""
        self.flush()
        if len(self._waiting) >= self._lines_limit or self.waiting_bytes + len(line) > self._bytes_limit:
            self._drop(1)
            return
        self._waiting.append(line)
        self.waiting_bytes += len(line)
        self.flush()

    def flush(self) -> bool:
        """Write what waits, as far as the reader takes it; whether nothing waits any more."""
        if not self._writer.acquire(blocking=False):
            return False
        try:
            while self._waiting or self._has_report():
                if not self._write_first():
                    return False
            self.waiting_bytes = 0
        finally:
            self._writer.release()
        return True

    def finish(self, within_s: float = FINISH_S) -> None:
        """Before the process ends: wait for the reader for this long at most."""
        end_s = time.monotonic() + within_s
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while not self.flush() and (left_s := end_s - time.monotonic()) > 0:
            poll.poll(left_s * 1000)

    def _has_report(self) -> bool:
        """Queue the line about dropped lines, once nothing else waits."""
        if not self._unreported or self._report is None:
            return False
        count, self._unreported = self._unreported, 0
        line = self._report(count)
        self._waiting.append(line)
        self.waiting_bytes += len(line)
        return True

    def _write_first(self) -> bool:
        """Write the first line or its rest; False: the reader takes nothing now."""
        line = self._waiting[0]
        try:
            written = self._write_some(line)
        except BlockingIOError:
            return False
        except OSError:  # nobody will read this: the reader is gone, the disk is full
            self._drop(len(self._waiting))
            self._unreported = 0  # or the report of each loss would be a loss to report
            self._waiting.clear()
            self.waiting_bytes = 0
            return True
        self.waiting_bytes -= written
        if written < len(line):
            self._waiting[0] = line[written:]
        else:
            self._waiting.popleft()
        return True

    def _drop(self, lines: int) -> None:
        self.dropped += lines
        self._unreported += lines

    def _forget(self) -> None:
        """In a forked child: what waits is the parent's to write."""
        self._waiting.clear()
        self.waiting_bytes = self.dropped = self._unreported = 0
        self._writer = threading.Lock()


class LineStream(io.TextIOBase):
    """A text stream over an `Output`, to be `sys.stderr` or `sys.stdout`: it writes whole lines."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._begun = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """UTF-8; what cannot be encoded is escaped."""
        return "utf-8"

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor below."""
        return self._output._fd

    def isatty(self) -> bool:
        """Whether a person may be reading."""
        return os.isatty(self._output._fd)

    def write(self, text: str) -> int:
        """Write the lines that are whole now; what is begun waits for its end, up to a piece."""
        whole, end, self._begun = (self._begun + text).rpartition("\n")
        if whole or end:
            self._output.write((whole + end).encode(errors="backslashreplace"))
        if len(self._begun) > PIECE_BYTES:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Write what was begun too."""
        begun, self._begun = self._begun, ""
        if begun:
            self._output.write(begun.encode(errors="backslashreplace"))


def flush_outputs() -> None:
    """Write what waits in this process. Cheap while nothing does; call it a few times a second."""
    for output in _open:
        output.flush()


def finish_outputs() -> None:
    """Before this process ends: as `Output.finish`, for all of them."""
    for output in _open:
        output.finish()


def dropped_lines() -> int:
    """How many lines this process has dropped since it started."""
    return sum(output.dropped for output in _open)


def waiting_bytes() -> int:
    """How many bytes wait for their readers in this process."""
    return sum(output.waiting_bytes for output in _open)


# --- how a descriptor is written without waiting ------------------------------------------------------


def _way_to(fd: int) -> Callable[[bytes], int]:
    """How to write some of a line to `fd`: returns how many bytes; BlockingIOError: none can be taken now."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        # Closed at the start. A socket of a client must not become standard error.
        _become(fd, os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
        mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return lambda data: os.write(fd, data)
    if stat.S_ISSOCK(mode):
        peer = socket.socket(fileno=os.dup(fd))
        return lambda data: peer.send(data, socket.MSG_DONTWAIT)
    try:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        _become(fd, os.open(f"/proc/self/fd/{fd}", flags))
    except OSError:
        return _careful(fd)
    return lambda data: os.write(fd, data)


def _become(fd: int, own: int) -> None:
    """Put a new description in the place of `fd`."""
    if own != fd:
        os.dup2(own, fd)
        os.close(own)


def _careful(fd: int) -> Callable[[bytes], int]:
    """How to write where no description of our own can be had.

    That is a pipe or a terminal of another user (sudo), or a system without /proc. The kernel is asked not to
    wait (pipes, since Linux 6.4). Where it does not know how, poll is asked first; then a second writer that
    fills the pipe in this very moment could still make us wait.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)

    def write_some(data: bytes) -> int:
        if not poll.poll(0):
            raise BlockingIOError
        piece = data[:PIECE_BYTES]
        try:
            return os.pwritev(fd, [piece], -1, os.RWF_NOWAIT)
        except BlockingIOError:
            raise
        except OSError:  # not supported, or a fault that the plain write shows too
            return os.write(fd, piece)

    return write_some
