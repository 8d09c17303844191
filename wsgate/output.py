"""Writes standard error and standard output of a process without ever waiting for the reader.

A line is written at once if the reader takes it. If the reader is slow or hangs, the line is buffered, within
limits, and written by a later `flush`. A line that does not fit into the buffer is dropped and counted. When
all buffered lines are written, one more line reports how many lines are missing at that place.

O_NONBLOCK belongs to the open file description, which other programs can share: the shell on the same
terminal, or other writers of the same pipe. So it is never set on the description that the process was
started with. Instead a pipe or a terminal is opened again through /proc, which makes a new description. The
descriptor is then changed to this description, so that output of extension modules and C libraries does not
wait either. A socket is written with MSG_DONTWAIT. A file has no reader that could hang.
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
"""The most bytes buffered per descriptor and process: minutes of warnings. A longer line is dropped."""
FINISH_S: Final = 0.2
"""The time that a process waits for its reader at its end; less than the keeper waits for the process."""
PIECE_BYTES: Final = 4096
"""PIPE_BUF of Linux: a pipe that poll reports as writable takes this much at once. Source: pipe(7)."""

_open: "list[Output]" = []
"""The outputs of this process, for the functions that flush all of them."""


class Output:
    """Writes lines to one descriptor, and buffers or drops them while the reader does not take them.

    Args:
        fd: The descriptor, 1 or 2. A pipe or terminal behind it is replaced by a new file description.
        report: Makes the line that reports the number of dropped lines; None: no such line is written.
        lines_limit: The most lines that are buffered.
        bytes_limit: The most bytes that are buffered.
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
        # Never waited for: if another thread, or this one below a finalizer, has the lock in the middle of a
        # write, the line is left to the next flush.
        self._writer = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)
        _open.append(self)

    def write(self, line: bytes) -> None:
        """Write a line that has its line end, or buffer it, or drop it. Never waits and never raises."""
        self.flush()
        if len(self._waiting) >= self._lines_limit or self.waiting_bytes + len(line) > self._bytes_limit:
            self._drop(1)
            return
        self._waiting.append(line)
        self.waiting_bytes += len(line)
        self.flush()

    def flush(self) -> bool:
        """Write the buffered lines as far as the reader takes them; return whether none is left."""
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
        """Write the buffered lines before the process ends, and wait for the reader at most `within_s`."""
        end_s = time.monotonic() + within_s
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while not self.flush() and (left_s := end_s - time.monotonic()) > 0:
            poll.poll(left_s * 1000)

    def _has_report(self) -> bool:
        """Buffer the line about dropped lines, if there are any; return whether there were."""
        if not self._unreported or self._report is None:
            return False
        count, self._unreported = self._unreported, 0
        line = self._report(count)
        self._waiting.append(line)
        self.waiting_bytes += len(line)
        return True

    def _write_first(self) -> bool:
        """Write the first buffered line or its rest; return False if the reader takes nothing now."""
        line = self._waiting[0]
        try:
            written = self._write_some(line)
        except BlockingIOError:
            return False
        except OSError:  # no reader will get this: it is gone, or the disk is full
            self._drop(len(self._waiting))
            self._unreported = 0  # otherwise each lost report would cause another report
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
        """Count lines as dropped and as not reported yet."""
        self.dropped += lines
        self._unreported += lines

    def _forget(self) -> None:
        """Empty the buffer in a forked child, because the parent writes the buffered lines."""
        self._waiting.clear()
        self.waiting_bytes = self.dropped = self._unreported = 0
        self._writer = threading.Lock()


class LineStream(io.TextIOBase):
    """A text stream for `sys.stderr` or `sys.stdout` that writes complete lines to an `Output`."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._begun = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return the encoding, UTF-8; characters that cannot be encoded are escaped."""
        return "utf-8"

    def writable(self) -> bool:
        """Return True, because the stream is for writing."""
        return True

    def fileno(self) -> int:
        """Return the descriptor to which the stream writes."""
        return self._output._fd

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return os.isatty(self._output._fd)

    def write(self, text: str) -> int:
        """Write the lines that are complete; an incomplete line waits for its end, up to `PIECE_BYTES`."""
        whole, end, self._begun = (self._begun + text).rpartition("\n")
        if whole or end:
            self._output.write((whole + end).encode(errors="backslashreplace"))
        if len(self._begun) > PIECE_BYTES:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Write an incomplete line too."""
        begun, self._begun = self._begun, ""
        if begun:
            self._output.write(begun.encode(errors="backslashreplace"))


def flush_outputs() -> None:
    """Write the buffered lines of all outputs; call it a few times a second. Cheap if nothing is buffered."""
    for output in _open:
        output.flush()


def finish_outputs() -> None:
    """Write the buffered lines of all outputs before the process ends, and wait as `Output.finish` does."""
    for output in _open:
        output.finish()


def dropped_lines() -> int:
    """Return how many lines this process has dropped since it started."""
    return sum(output.dropped for output in _open)


def waiting_bytes() -> int:
    """Return how many bytes of lines are buffered in this process."""
    return sum(output.waiting_bytes for output in _open)


# --- how a descriptor is written without waiting ------------------------------------------------------


def _way_to(fd: int) -> Callable[[bytes], int]:
    """Return a function that writes a part of a line to `fd` without waiting.

    The function returns the number of bytes written, and raises BlockingIOError if no byte can be written
    now.
    """
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        # The descriptor was closed at the start: the socket of a client must not become standard error.
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
    """Make `fd` a duplicate of the descriptor `own`, which is closed."""
    if own != fd:
        os.dup2(own, fd)
        os.close(own)


def _careful(fd: int) -> Callable[[bytes], int]:
    """Return a writing function for a descriptor that cannot be opened again.

    This is a pipe or a terminal of another user (sudo), or a system without /proc. The function calls poll
    first, and passes RWF_NOWAIT so that the kernel does not wait (for pipes since Linux 6.4). Without support
    for RWF_NOWAIT, a second writer that fills the pipe between both calls could still make us wait.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)

    def write_some(data: bytes) -> int:
        """Write at most `PIECE_BYTES`; raise BlockingIOError if nothing can be written now."""
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
