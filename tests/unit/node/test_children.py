"""Children of the keeper: when they are started again, and how they are forked."""

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
    """In place of the module `time`."""

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
    """What is said, whatever another test has set up."""
    monkeypatch.setattr(logging.getLogger("wsgate"), "propagate", True)
    caplog.set_level(logging.INFO, "wsgate")
    return caplog


def said(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in log.records]


def seconds_until_restart(child: Child, clock: Clock) -> float:
    """How long it waits after a death, to a tenth of a second."""
    child.ended(1, is_asked=False)
    died_s = clock.now_s
    while not child.pid:
        child.start_when_due()
        if not child.pid:
            clock.now_s += 0.1
        assert clock.now_s < died_s + 60
    return round(clock.now_s - died_s, 1)


def test_who_dies_young_waits_twice_as_long_each_time_and_never_too_long(clock: Clock) -> None:
    child = Child("shard-0", lambda: 7)
    child.start_when_due()
    waits = [seconds_until_restart(child, clock) for _ in range(9)]
    assert waits == pytest.approx([0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5], abs=0.11)
    assert max(waits) <= BACKOFF_MOST_S + 0.1
    assert child.restarts == 9


def test_who_has_lived_well_is_started_again_at_once(clock: Clock) -> None:
    child = Child("shard-0", lambda: 7)
    child.start_when_due()
    for _ in range(5):
        seconds_until_restart(child, clock)
    clock.now_s += LIVED_WELL_S
    assert seconds_until_restart(child, clock) == 0


def test_who_runs_is_not_started_twice(clock: Clock) -> None:
    starts: list[float] = []

    def start() -> int:
        starts.append(clock.now_s)
        return 7

    child = Child("admin", start)
    for _ in range(3):
        child.start_when_due()
        clock.now_s += 60
    assert len(starts) == 1


def test_a_fork_that_fails_is_tried_again_later_and_is_no_restart(
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
    assert ("ERROR", "not_started") in said(log)


def test_a_death_is_a_warning_with_last_words_and_an_end_that_was_asked_for_is_none(
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
    assert said(log)[-1] == ("INFO", "ended")
    assert child.restarts == 1


def test_every_childs_death_is_said_also_when_all_die_at_once(
    clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    shards = [Child(f"shard-{number}", lambda: 7) for number in range(8)]
    for child in shards:
        child.start_when_due()
        child.ended(1, is_asked=False)
    assert said(log).count(("WARNING", "died")) == 8


# --- forking ------------------------------------------------------------------------------------------


def outcome_of(name: str, work: Callable[[], int | None]) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(fork_child(name, work), 0)[1])


def test_a_child_ends_with_what_its_work_returns() -> None:
    assert outcome_of("child", lambda: 7) == 7
    assert outcome_of("child", lambda: None) == 0


def test_a_child_that_fails_never_returns_into_its_parents_code() -> None:
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
            os.kill(os.getpid(), signal.SIGTERM)  # the keeper was told to stop just now
        return pid

    monkeypatch.setattr(os, "fork", fork_into_a_signal)
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # as the keeper has one
    try:
        assert outcome_of("child", lambda: 7) == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_a_child_ignores_what_a_terminal_sends_to_all_and_blocks_nothing() -> None:
    def work() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGHUP)
        return 7 if not signal.pthread_sigmask(signal.SIG_BLOCK, ()) else 8

    assert outcome_of("child", work) == 7


def test_a_child_shows_its_name(tmp_path: Path) -> None:
    shown = tmp_path / "shown"

    def work() -> None:
        name = Path("/proc/self/comm").read_bytes().strip()
        shown.write_bytes(name + b" " + Path("/proc/self/cmdline").read_bytes().strip(b"\0"))

    here = Path("/proc/self/cmdline").read_bytes()
    assert outcome_of("wsgate-shard-63", work) == 0
    assert shown.read_bytes() == b"wsgate-shard-63 wsgate-shard-63"
    assert Path("/proc/self/cmdline").read_bytes() == here


def test_a_signal_for_a_child_that_is_gone_goes_to_nobody() -> None:
    child = Child("shard-0", lambda: fork_child("child", lambda: time.sleep(60)))
    child.signal(signal.SIGKILL)  # not started: pid 0 would be our whole group
    child.start_when_due()
    child.signal(signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) == -signal.SIGTERM
