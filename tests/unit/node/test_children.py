"""Check children of the keeper: when they are restarted, and how they are forked."""

import errno
import io
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wsgate.node import children
from wsgate.node.children import BACKOFF_MOST_S, LIVED_WELL_S, Child, fork_child


class Clock:
    """A clock that stands in for the module `time`."""

    now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(children, "time", clock)
    return clock


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Capture log lines, whatever logging another test has set up."""
    monkeypatch.setattr(logging.getLogger("wsgate"), "propagate", True)
    caplog.set_level(logging.INFO, "wsgate")
    return caplog


def logged(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in log.records]


def seconds_until_restart(child: Child, clock: Clock) -> float:
    """Return how long the child waits after a crash, to a tenth of a second."""
    child.ended(1, is_asked=False)
    died_s = clock.now_s
    while not child.pid:
        child.start_when_due()
        if not child.pid:
            clock.now_s += 0.1
        assert clock.now_s < died_s + 60
    return round(clock.now_s - died_s, 1)


def test_restart_delay_doubles_with_each_early_crash_up_to_its_limit(clock: Clock) -> None:
    child = Child("shard-0", lambda: 7)
    child.start_when_due()
    waits = [seconds_until_restart(child, clock) for _ in range(9)]
    assert waits == pytest.approx([0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5], abs=0.11)
    assert max(waits) <= BACKOFF_MOST_S + 0.1
    assert child.restarts == 9


def test_child_that_crashes_after_a_long_run_is_restarted_at_once(clock: Clock) -> None:
    child = Child("shard-0", lambda: 7)
    child.start_when_due()
    for _ in range(5):
        seconds_until_restart(child, clock)
    clock.now_s += LIVED_WELL_S
    assert seconds_until_restart(child, clock) == 0


def test_running_child_is_not_started_again(clock: Clock) -> None:
    starts: list[float] = []

    def start() -> int:
        starts.append(clock.now_s)
        return 7

    child = Child("admin", start)
    for _ in range(3):
        child.start_when_due()
        clock.now_s += 60
    assert len(starts) == 1


def test_failed_fork_is_repeated_after_a_delay_and_counts_as_no_restart(
    clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    tries: list[float] = []

    def start() -> int:
        tries.append(clock.now_s)
        if len(tries) < 4:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return 7

    child = Child("shard-0", start)
    while not child.pid:
        child.start_when_due()
        clock.now_s += 0.05
    assert len(tries) == 4
    assert tries[3] - tries[0] >= 0.3 - 0.001
    assert child.restarts == 0
    assert ("ERROR", "not_started") in logged(log)


def test_crash_is_logged_as_warning_with_the_log_tail_and_a_requested_end_is_not(
    clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    child = Child("bus", lambda: 7, lambda: "out of memory")
    child.start_when_due()
    child.ended(-9, is_asked=False)
    death = log.records[-1]
    assert (death.levelname, death.getMessage()) == ("WARNING", "died")
    fields = {"child": "bus", "pid": 7, "status": -9, "said": "out of memory"}
    assert death.__dict__["fields"] == fields
    clock.now_s += 1
    child.start_when_due()
    child.ended(0, is_asked=True)
    assert logged(log)[-1] == ("INFO", "ended")
    assert child.restarts == 1


def test_crashes_of_eight_children_at_once_write_eight_log_lines(
    clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    shards = [Child(f"shard-{number}", lambda: 7) for number in range(8)]
    for child in shards:
        child.start_when_due()
        child.ended(1, is_asked=False)
    assert logged(log).count(("WARNING", "died")) == 8


# --- forking ------------------------------------------------------------------------------------------


def outcome_of(name: str, work: Callable[[], int | None]) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(fork_child(name, work), 0)[1])


def test_exit_code_of_a_child_is_the_return_value_of_its_work() -> None:
    assert outcome_of("child", lambda: 7) == 7
    assert outcome_of("child", lambda: None) == 0


def test_exception_in_a_child_ends_the_child_with_exit_code_1() -> None:
    def fail() -> int:
        raise SystemExit(0)

    assert outcome_of("child", fail) == 1


def test_a_child_whose_output_is_closed_still_ends_with_its_own_code() -> None:
    class Closed(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    def work() -> int:
        sys.stdout = Closed()
        return 7

    assert outcome_of("child", work) == 7


def test_no_signal_is_lost_between_a_fork_and_the_childs_own_handlers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real_fork = os.fork

    def fork_into_a_signal() -> int:
        pid = real_fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGTERM)  # the keeper has received SIGTERM at this moment
        return pid

    monkeypatch.setattr(os, "fork", fork_into_a_signal)
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # as the keeper has one
    try:
        assert outcome_of("child", lambda: 7) == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_child_ignores_sigint_and_sighup_and_blocks_no_signal() -> None:
    def work() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGHUP)
        return 7 if not signal.pthread_sigmask(signal.SIG_BLOCK, ()) else 8

    assert outcome_of("child", work) == 7


def test_child_process_shows_its_name_in_comm_and_cmdline(tmp_path: Path) -> None:
    shown = tmp_path / "shown"

    def work() -> None:
        name = Path("/proc/self/comm").read_bytes().strip()
        shown.write_bytes(name + b" " + Path("/proc/self/cmdline").read_bytes().strip(b"\0"))

    here = Path("/proc/self/cmdline").read_bytes()
    assert outcome_of("wsgate-shard-63", work) == 0
    assert shown.read_bytes() == b"wsgate-shard-63 wsgate-shard-63"
    assert Path("/proc/self/cmdline").read_bytes() == here


def test_signal_to_a_child_that_is_not_started_is_not_sent() -> None:
    child = Child("shard-0", lambda: fork_child("child", lambda: time.sleep(60)))
    child.signal(signal.SIGKILL)  # not started: pid 0 would mean the whole process group
    child.start_when_due()
    child.signal(signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) == -signal.SIGTERM
