"""Check that a log line never waits for its reader: lines are kept, dropped, counted, and reported later."""

import contextlib
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from wsgate import output as module
from wsgate.output import LineStream, Output

F_SETPIPE_SZ = 1031
PIPE_BYTES = 4096
LINE = b"0123456789abcde\n"
WITHIN_S = 60.0


def does_not_wait(work: Callable[[], object]) -> None:
    """Run the work in a thread, so that a write that waits for its reader fails and does not hang."""
    ended = threading.Event()

    def run() -> None:
        work()
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    assert ended.wait(WITHIN_S), "the write waits for the reader"


def write_all(out: Output, lines: Iterable[bytes]) -> None:
    for line in lines:
        out.write(line)


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """Make a pipe of one page in blocking mode, as a shell does: the end to read and the end to write."""
    read, write = os.pipe()
    fcntl.fcntl(write, F_SETPIPE_SZ, PIPE_BYTES)
    try:
        yield read, write
    finally:
        os.close(write)
        with contextlib.suppress(OSError):
            os.close(read)


def take(read: int, most: int = 1 << 20) -> bytes:
    """Return the bytes that are in the pipe now."""
    found = b""
    while len(found) < most and select.select([read], [], [], 0)[0]:
        if not (piece := os.read(read, min(65_536, most - len(found)))):
            break
        found += piece
    return found


@pytest.fixture(autouse=True)
def outputs_of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_open", [])


def refuse_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to open, as a pipe or a terminal of another user does."""

    def refuse(path: str, *arguments: object, **others: object) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("kind", ["own description", "of another user", "no RWF_NOWAIT"])
def test_full_pipe_delays_no_writer_and_loses_no_line_within_the_limits(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pipe() as (read, write):
        with monkeypatch.context() as patch:
            if kind != "own description":
                refuse_to_open(patch)
            out = Output(write)
        if kind == "no RWF_NOWAIT":
            monkeypatch.setattr(os, "RWF_NOWAIT", 1 << 30)
        lines = [b"%015d\n" % number for number in range(900)]
        does_not_wait(lambda: write_all(out, lines))
        assert out.dropped == 0 and out.waiting_bytes > 0
        found = b""
        for _ in range(len(lines)):
            found += take(read)
            if out.flush():
                break
        assert found + take(read) == b"".join(lines)
        assert out.waiting_bytes == 0


def test_other_writers_of_the_same_pipe_stay_in_blocking_mode() -> None:
    with pipe() as (_, write):
        shared = os.dup(write)  # the descriptor of another program
        try:
            Output(write)
            assert os.get_blocking(shared)
            assert not os.get_blocking(write)
        finally:
            os.close(shared)


def test_lines_beyond_the_limit_are_dropped_counted_and_reported_once_in_their_place() -> None:
    with pipe() as (read, write):
        out = Output(write, lambda count: b"dropped %d\n" % count, lines_limit=3)
        does_not_wait(lambda: write_all(out, (LINE for _ in range(PIPE_BYTES // len(LINE) + 3 + 7))))
        assert out.dropped == 7
        assert take(read) == LINE * (PIPE_BYTES // len(LINE))
        out.write(b"later\n")
        assert take(read) == LINE * 3 + b"dropped 7\n" + b"later\n"
        out.write(b"more\n")
        assert take(read) == b"more\n"
        assert out.dropped == 7


@pytest.mark.parametrize("size", [99, 100, 101])
def test_waiting_bytes_never_exceed_their_limit(size: int) -> None:
    with pipe() as (read, write):
        out = Output(write, bytes_limit=100)
        os.write(write, bytes(PIPE_BYTES))
        does_not_wait(lambda: out.write(b"y" * size))
        assert (out.waiting_bytes, out.dropped) == ((size, 0) if size <= 100 else (0, 1))
        take(read)


def test_line_longer_than_the_pipe_arrives_whole_and_before_the_next_one() -> None:
    with pipe() as (read, write):
        out = Output(write)
        long = b"x" * (3 * PIPE_BYTES) + b"\n"
        does_not_wait(lambda: write_all(out, (long, LINE)))
        found = b""
        for _ in range(100):
            found += take(read)
            if out.flush():
                break
        assert found + take(read) == long + LINE


def test_lines_for_a_closed_reader_are_dropped_without_an_error() -> None:
    with pipe() as (read, write):
        out = Output(write, lambda count: b"dropped %d\n" % count)
        os.close(read)
        for _ in range(5):
            out.write(LINE)
        assert out.dropped == 5 and out.waiting_bytes == 0


def test_full_socket_delays_no_writer() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        out = Output(ours.fileno(), bytes_limit=1 << 20, lines_limit=100_000)
        does_not_wait(lambda: write_all(out, (LINE for _ in range(20_000))))
        assert out.waiting_bytes > 0 and out.dropped == 0 and ours.getblocking()
        found = b""
        for _ in range(20_000):
            if out.flush():
                break
            found += theirs.recv(1 << 20)
        ours.shutdown(socket.SHUT_WR)
        while piece := theirs.recv(1 << 20):
            found += piece
        assert found == LINE * 20_000


def test_lines_are_appended_to_a_file_at_its_current_position(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.write(b"before\n")
        file.flush()
        Output(file.fileno()).write(LINE)
        file.write(b"after\n")
    assert path.read_bytes() == b"before\n" + LINE + b"after\n"


def test_line_on_a_full_disk_is_dropped_without_an_error(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb", buffering=0) as file:
        out = Output(file.fileno())
        out.write(LINE)
        assert out.dropped == 1


def test_closed_descriptor_is_replaced_by_dev_null() -> None:
    code = (
        "import os; os.close(2); from wsgate.output import Output; Output(2).write(b'x\\n');"
        "print(os.readlink('/proc/self/fd/2'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "/dev/null\n"


def test_forked_child_does_not_write_the_waiting_lines_of_its_parent() -> None:
    with pipe() as (read, write):
        out = Output(write, lambda count: b"dropped %d\n" % count, lines_limit=2)
        does_not_wait(lambda: write_all(out, (LINE for _ in range(PIPE_BYTES // len(LINE) + 5))))
        take(read)
        pid = os.fork()
        if not pid:
            code = 1
            with contextlib.suppress(BaseException):
                out.write(b"child\n")
                code = int(out.dropped != 0)
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        out.write(b"parent\n")
        assert take(read) == b"child\n" + LINE * 2 + b"dropped 3\n" + b"parent\n"


def test_finish_waits_for_a_reader_that_reads_and_not_for_one_that_hangs() -> None:
    with pipe() as (read, write):
        out = Output(write)
        lines = PIPE_BYTES // len(LINE) + 5
        does_not_wait(lambda: write_all(out, (LINE for _ in range(lines))))
        does_not_wait(lambda: out.finish(0.01))
        assert out.waiting_bytes == 5 * len(LINE)
        reader = threading.Timer(0.05, lambda: take(read))
        reader.start()
        does_not_wait(lambda: out.finish(WITHIN_S))
        assert out.waiting_bytes == 0
        reader.join()  # otherwise it would read from the pipe of the next test, which gets the same number


def test_nested_write_leaves_its_line_to_the_outer_write() -> None:
    with pipe() as (read, write):

        def report(count: int) -> bytes:
            out.write(b"within\n")
            return b"dropped %d\n" % count

        out = Output(write, report, lines_limit=1)
        os.write(write, bytes(PIPE_BYTES))
        does_not_wait(lambda: write_all(out, (LINE for _ in range(2))))
        take(read)
        assert out.flush() and out.dropped == 1
        assert take(read) == LINE + b"within\n" + b"dropped 1\n"


def test_stream_writes_whole_lines_and_escapes_surrogates() -> None:
    with pipe() as (read, write):
        stream = LineStream(Output(write))
        print("one", "two\nthree", file=stream, end="")
        assert take(read) == b"one two\n"
        stream.flush()
        assert take(read) == b"three"
        print("\ud800", file=stream)
        assert take(read) == b"\\ud800\n"
        assert stream.fileno() == write and not stream.isatty() and stream.writable()


# --- logging ------------------------------------------------------------------------------------------

SCRIPT = """
import logging, os, sys, threading, warnings
from wsgate.log import Log, name_part, set_up_logging
set_up_logging(level="info", is_json=sys.argv[1] == "json")
name_part("shard-7")
class Bad:
    def __del__(self):
        raise ValueError("of a finalizer")
Log("keeper").info("hello", n=1)
logging.getLogger("asyncio").warning("of a\\nlibrary")
warnings.warn("of the interpreter")
Bad()
thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()
print("plain", file=sys.stderr)
raise RuntimeError("of nobody")
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_warnings_and_uncaught_errors_of_python_become_log_lines(form: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, form], capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert "plain" in lines
    causes = ["hello", "library_asyncio", "library_py", "unraisable", "thread_failed", "uncaught"]
    if form == "json":
        rows = [json.loads(line) for line in lines if line != "plain"]
        assert [(row["part"], row["cause"]) for row in rows] == [
            ("keeper", "hello"),
            *(("shard-7", cause) for cause in causes[1:]),
        ]
        assert "of nobody" in rows[-1]["traceback"]
    else:
        heads = [line.split() for line in lines if "Z " in line]
        assert [words[3] for words in heads if len(words) > 3] == causes


@pytest.mark.parametrize("form", ["text", "json"])
def test_report_about_dropped_lines_has_the_format_of_the_log(form: str, tmp_path: Path) -> None:
    script = """
import fcntl, os, sys
read, write = os.pipe()
fcntl.fcntl(write, 1031, 4096)
os.dup2(write, 2)
from wsgate.log import Log, set_up_logging
set_up_logging(level="info", is_json=sys.argv[1] == "json")
os.set_blocking(read, False)
log = Log("keeper")
for number in range(1500):
    log.info(f"cause_{number}")
from wsgate.output import dropped_lines, flush_outputs
found = b""
for _ in range(1000):
    try:
        found += os.read(read, 65536)
    except BlockingIOError:
        break
    flush_outputs()
with open(sys.argv[2], "wb") as file:
    file.write(found + b"dropped %d" % dropped_lines())
"""
    path = tmp_path / "log"
    subprocess.run(
        [sys.executable, "-c", script, form, str(path)], capture_output=True, timeout=WITHIN_S, check=True
    )
    *lines, report, dropped_text = path.read_text().splitlines()
    dropped = int(dropped_text.removeprefix("dropped "))
    assert dropped > 0 and len(lines) + dropped == 1500
    if form == "json":
        row = json.loads(report)
        assert (row["cause"], row["lines"], row["level"]) == ("log_lines_dropped", dropped, "warning")
    else:
        assert f"warning keeper log_lines_dropped lines={dropped} " in report


def test_output_keeps_no_descriptor_of_its_own() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pipe() as (_, write):
        Output(write)
        assert len(os.listdir("/proc/self/fd")) == before + 2
