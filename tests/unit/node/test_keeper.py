"""Check that the keeper continues whatever a duty raises and whatever bytes a shard writes."""

import errno
import logging
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wsgate.admin.headroom import headroom_card
from wsgate.admin.health import connections_by_state, judge_liveness, judge_readiness, status_page
from wsgate.admin.metrics import expose, make_registry
from wsgate.admission import rate_share, weights
from wsgate.errors import InternalError, WsgateError
from wsgate.log import Log
from wsgate.node import keeper as module
from wsgate.node.children import Child, fork_child
from wsgate.node.duties import Duties
from wsgate.node.keeper import IGNORED, Keeper
from wsgate.node.listeners import open_group, refuse_handed, steering_program
from wsgate.reactor import ListenerOptions
from wsgate.shard.capacity import next_with_room, places, queue_length, roomiest
from wsgate.shard.reload import Renewal
from wsgate.shard.statistics_layout import DUTIES, LAYOUT
from wsgate.statistics import PHASE_READY, Board, StatisticsBlock, has_beaten
from wsgate.statistics.readiness import SILENT_MS

NOW_MS = 10_000_000
MOST = (1 << 64) - 1
NOBODY = 2**22 + 1  # no process has this id


# --- one mechanism contains every failure -------------------------------------------------------------


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Capture log lines, whatever logging another test has set up."""
    monkeypatch.setattr(logging.getLogger("wsgate"), "propagate", True)
    caplog.set_level(logging.INFO, "wsgate")
    return caplog


FAULTS: list[Exception] = [
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    FileNotFoundError(errno.ENOENT, "No such file", "/gone"),
    ValueError("memoryview: invalid value for format 'Q'"),
    IndexError(7),
    RecursionError(),
    MemoryError(),
    ZeroDivisionError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    InternalError("ours"),
    AssertionError(),
    RuntimeError("can't start new thread"),
    OSError(),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_an_exception_of_a_duty_is_counted_by_its_name_and_logged(
    fault: Exception, log: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise fault

    block = StatisticsBlock.create(LAYOUT, 1)
    duties = Duties(block.keeper, Log("keeper"))
    assert [duties.run("watch", fail) for _ in range(3)] == [False] * 3
    assert duties.run("watch", lambda: 0) and not duties.run("steer", fail)
    assert {name: block.keeper[f"duty_failed_{name}"] for name in DUTIES} == dict.fromkeys(DUTIES, 0) | {
        "watch": 3,
        "steer": 1,
    }
    logged = [record.getMessage() for record in log.records]
    assert logged == ["duty_failed_watch", "duty_failed_steer"], "one line a second for each cause"
    text, _ = expose(make_registry(block, "node-1", lambda: NOW_MS), "")
    assert b'wsgate_keeper_duty_failures_total{duty="watch"} 3.0' in text


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    """Return a keeper of two shards whose children do nothing; only a test forks."""
    listeners = open_group("127.0.0.1", 0, 2, ListenerOptions(defer_accept_s=0))
    plan = SimpleNamespace(
        listeners=listeners,
        shards=[None, None],
        admin=None,
        embedded_bus=SimpleNamespace(
            memory_bytes=0, prepare=lambda: False, is_up=lambda: True, socket_path=Path("/"), log_tail=str
        ),
        files=SimpleNamespace(restore=list, clean=list),
    )
    monkeypatch.setattr(module, "_has_terminal", lambda: False)
    made = Keeper(plan, lambda: None)  # type: ignore[arg-type]
    made._shards = [Child(f"shard-{number}", lambda: NOBODY) for number in range(2)]
    made._others = [Child("bus", lambda: NOBODY), Child("admin", lambda: NOBODY)]
    yield made
    channels = [end for pair in made._handovers for end in pair]
    for each in (*listeners, *channels, made._wake_read, made._wake_write):
        each.close()
    os.close(made._alive_read)
    os.close(made._alive_write)


def fail(*arguments: object, **options: object) -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_keeper_with_failing_duties_still_beats_and_starts_its_children(
    keeper: Keeper, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> Any:
        raise fault

    for name in ("places", "steer", "refuse_waiting", "refuse_handed", "notify", "why_not_ready"):
        monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(keeper._watch, "_read", fail)
    monkeypatch.setattr(keeper._block, "mend", fail)
    monkeypatch.setattr(keeper._plan.files, "restore", fail)
    monkeypatch.setattr(keeper._plan.embedded_bus, "is_up", fail)
    for _ in range(3):
        keeper._duties.run("tend", keeper._tend)
        keeper._restored_s = keeper._watch._looked_ms = 0
    failed = {name for name in DUTIES if keeper._block.keeper[f"duty_failed_{name}"]}
    assert failed == {"bus_probe", "fold", "notify", "runtime_directory", "steer", "tend", "watch"}
    assert [child.pid for child in (*keeper._shards, *keeper._others)] == [NOBODY] * 4
    assert has_beaten(keeper._block.keeper["beat_ms"], time.monotonic_ns() // 1_000_000, SILENT_MS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_exception_in_a_reload_is_contained_and_counted_if_unexpected(
    keeper: Keeper, fault: Exception
) -> None:
    def fail() -> Any:
        raise fault

    keeper._plan.reread = fail  # type: ignore[misc]
    keeper._is_hung_up = True
    keeper._take_signals()
    assert keeper._signals == []
    assert keeper._block.keeper["duty_failed_reload"] == (not isinstance(fault, WsgateError))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_child_whose_start_raises_is_started_again_later(fault: Exception) -> None:
    tries = iter([fault, None])

    def start() -> int:
        if error := next(tries):
            raise error
        return 7

    child = Child("shard-0", start)
    child.start_when_due()
    assert child.pid == 0
    child.start_when_due()
    assert child.pid == 7


def test_a_child_whose_last_output_cannot_be_read_is_started_again() -> None:
    child = Child("bus", lambda: 7, fail)
    child.start_when_due()
    with pytest.raises(OSError):
        child.ended(1, is_asked=False)
    assert child.pid == 0
    child.start_when_due()
    assert child.pid == 7


@pytest.mark.parametrize("number", IGNORED)
def test_unused_signals_are_ignored_by_the_children(
    number: signal.Signals,
) -> None:
    assert number not in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

    def work() -> int:
        os.kill(os.getpid(), number)
        return 7

    before = signal.signal(number, signal.SIG_IGN)
    try:
        pid = fork_child("child", work)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_missing_descriptors_or_memory_do_not_count_as_a_lost_terminal(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    assert module._has_terminal()


# --- any bytes in shared memory -----------------------------------------------------------------------


def scribble(block: StatisticsBlock, number: int, chance: random.Random) -> None:
    """Fill the region of a shard as a shard does that writes through a wild pointer."""
    slots = block.shard(number).slots
    extremes = (0, 1, 2, 3, 7, MOST, MOST - 1, 1 << 63, 1 << 32, NOW_MS, NOW_MS - 1, NOW_MS + 1)
    for place in range(len(slots)):
        slots[place] = chance.choice(extremes) if chance.random() < 0.7 else chance.getrandbits(64)
    if chance.random() < 0.5:  # a shard that seems ready, so that its other slots are read
        block.shard(number)["phase"], block.shard(number)["beat_ms"] = PHASE_READY, NOW_MS


def read_everywhere(block: StatisticsBlock) -> None:
    """Read everything that any process reads of the shards."""
    offers = places(block, NOW_MS)
    assert all(0 <= place.room <= 1 << 24 for place in offers)
    dealt = weights(offers)
    assert len(steering_program(dealt)) <= 4096 * 8
    for number in range(block.shards):
        assert roomiest(offers, number) != number and next_with_room(offers, number) != number
        assert 0 <= rate_share(offers, number, 1_000) <= 1_000
    for judge in (judge_liveness, judge_readiness):
        assert judge(block, NOW_MS)[0] in (200, 503)
    headroom_card(block)
    connections_by_state(block)
    status_page("node-1", block, NOW_MS, has_numbers=True)
    expose(make_registry(block, "node-1", lambda: NOW_MS), "")


def test_random_bytes_in_the_regions_of_shards_break_no_reader_and_no_fold() -> None:
    for seed in range(60):
        chance = random.Random(seed)
        block = StatisticsBlock.create(LAYOUT, 3)
        block.keeper["beat_ms"] = NOW_MS
        for _ in range(4):
            number = chance.randrange(3)
            scribble(block, number, chance)
            before = [region.slots.tolist() for region in (block.retired, block.shard(number))]
            read_everywhere(block)
            block.retire(number)
            count = LAYOUT.counter_slots
            sums = [a + b & MOST for a, b in zip(before[0][:count], before[1][:count], strict=True)]
            assert block.retired.slots.tolist()[:count] == sums
            assert not any(block.shard(number).slots)
            assert block._header[2] % 2 == 0
            read_everywhere(block)


def test_shard_with_an_invalid_state_room_beat_or_phase_gets_no_connections() -> None:
    block = StatisticsBlock.create(LAYOUT, 2)
    for number in range(2):
        region = block.shard(number)
        region["phase"], region["beat_ms"], region["room"] = PHASE_READY, NOW_MS, 100
    assert all(weights(places(block, NOW_MS)))
    for name, value in (("admission_state", 7), ("room", MOST - 3), ("beat_ms", MOST), ("phase", 77)):
        kept = block.shard(0)[name]
        block.shard(0)[name] = value
        assert [bool(weight) for weight in weights(places(block, NOW_MS))] == [False, True], name
        if name in ("beat_ms", "phase"):
            assert any("shard_0" in why for why in judge_readiness(block, NOW_MS)[1]["why"])  # type: ignore[attr-defined]
        block.shard(0)[name] = kept


def test_overwritten_fold_number_is_repaired_by_the_next_fold_or_the_keeper() -> None:
    for found in (1, 2, MOST, MOST - 1, 1 << 63 | 1):
        block = StatisticsBlock.create(LAYOUT, 1)
        block._header[2] = found
        block.retire(0)
        assert block._header[2] % 2 == 0
        block._header[2] = found
        block.mend()
        assert block._header[2] % 2 == 0


def test_fold_that_raises_leaves_an_even_fold_number() -> None:
    block = StatisticsBlock.create(LAYOUT, 1)
    block.retired.slots = memoryview(bytes(LAYOUT.slots * 8)).cast("Q")  # a read-only memory
    with pytest.raises(TypeError):
        block.retire(0)
    assert block._header[2] % 2 == 0


@pytest.mark.parametrize("value", [-1, -(1 << 70), MOST, MOST + 1, 1 << 80])
def test_writes_of_any_value_to_a_region_are_clamped_or_wrapped(value: int) -> None:
    region = StatisticsBlock.create(LAYOUT, 1).shard(0)
    region["room"] = value
    assert region["room"] == min(max(value, 0), MOST)
    region["restarts"] = MOST - 1
    region.add("restarts", 3)
    assert region["restarts"] == 1
    first = LAYOUT.index["probe_us"]
    for place in range(first, first + 27):
        region.slots[place] = MOST
    region.observe("probe_us", 5)
    assert region.histogram("probe_us")[1] == 4


def test_random_bytes_on_a_board_are_read_safely_and_overwritten_by_a_post() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        board = Board(1_000)
        board._header[0], board._header[1] = (
            chance.choice((0, 1, 2, MOST, MOST - 1, chance.getrandbits(64))) for _ in range(2)
        )
        board._memory[16:1016] = chance.randbytes(1_000)
        if (found := board.read()) is not None:
            assert len(found[1]) <= 1_000
            with pytest.raises(InternalError):
                Renewal.from_bytes(found[1])
        board.post(b"again")
        assert board.read() == (board.version, b"again") and board.version


def test_keeper_folds_and_steers_after_shards_write_random_bytes_and_crash(keeper: Keeper) -> None:
    chance = random.Random(11)

    def start(number: int) -> Callable[[], int]:
        seed = chance.getrandbits(32)
        return lambda: fork_child("scribbler", lambda: scribble(keeper._block, number, random.Random(seed)))

    deaths = 0
    for round_ in range(6):
        for number in range(2):
            keeper._shards[number] = Child(f"shard-{number}", start(number))
        keeper._duties.run("tend", keeper._tend)
        for child in keeper._shards:
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            deaths += 1
        keeper._steer(NOW_MS)
        keeper._refuse_unserved(NOW_MS)
        keeper._reap()
        assert [child.pid for child in keeper._shards] == [0, 0], round_
    assert [keeper._block.keeper[f"duty_failed_{name}"] for name in DUTIES] == [0] * len(DUTIES)


def test_connections_handed_to_a_silent_shard_are_answered_503_by_the_keeper(keeper: Keeper) -> None:
    now_ms = 1_000_000
    for child in keeper._shards:
        child.started_s = now_ms / 1000 - 6
    keeper._block.shard(1)["beat_ms"] = now_ms - 4_000  # late, and not yet silent for five seconds
    ends = []
    for number in range(2):
        server, client = socket.socketpair()
        socket.send_fds(keeper._handovers[number][1], [b"\x01"], [server.fileno()])
        server.close()
        client.setblocking(False)
        ends.append(client)
    keeper._refuse_unserved(now_ms)
    assert ends[0].recv(1_000).startswith(b"HTTP/1.1 503 ")
    with pytest.raises(BlockingIOError):
        ends[1].recv(1_000)
    keeper._block.shard(1)["beat_ms"] = MOST  # an invalid beat is no sign of life
    keeper._refuse_unserved(now_ms)
    assert ends[1].recv(1_000).startswith(b"HTTP/1.1 503 ")
    assert keeper._block.keeper["handshake_unserved"] == 2
    for client in ends:
        client.close()


def test_queue_length_of_a_closed_or_non_tcp_listener_is_zero(tmp_path: Path) -> None:
    assert queue_length(-1) == (0, 0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/listener")
        listener.listen()
        assert queue_length(listener.fileno()) == (0, 0)
        assert listener.getsockname() == f"{tmp_path}/listener", "the listener is still open"
    read, write = os.pipe()
    assert queue_length(read) == (0, 0)
    os.close(read)
    os.close(write)
    assert queue_length(read) == (0, 0)
    with socket.create_server(("127.0.0.1", 0), backlog=7) as server:
        with socket.create_connection(server.getsockname()):
            assert queue_length(server.fileno()) == (1, 7)


# --- handovers to a shard that hangs ------------------------------------------------------------------


def test_refuse_handed_answers_503_to_at_most_64_connections_a_call() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    assert refuse_handed(ours) == 0
    ends = []
    for number in range(70):
        server, client = socket.socketpair()
        if number % 2:  # the others have sent nothing yet
            client.sendall(b"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n")
        socket.send_fds(theirs, [b"\x01"], [server.fileno()])
        server.close()
        ends.append(client)
    assert refuse_handed(ours) == 64
    assert refuse_handed(ours) == 6
    for client in ends:
        client.settimeout(5)
        answer = client.recv(1_000)
        assert answer.startswith(b"HTTP/1.1 503 ") and b"Retry-After: " in answer
        client.close()
    theirs.close()
    assert refuse_handed(ours) == 0
    ours.close()
