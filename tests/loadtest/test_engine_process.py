"""Run the load engine as a child process: its JSON protocol, and its end with the parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.engine import (
    ConnectPlan,
    EchoPlan,
    EngineError,
    EngineLimitError,
    EngineProcess,
    EngineSettings,
    Histogram,
)
from tests.support.lossy_server import LossyServer

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 10.0


@pytest.fixture
def server() -> Iterator[LossyServer]:
    with LossyServer() as running:
        yield running


@pytest.fixture
def child() -> Iterator[EngineProcess]:
    with EngineProcess(EngineSettings(max_connections=50)) as running:
        yield running


def plan(server: LossyServer, count: int, path: str = "/echo", **fields: object) -> ConnectPlan:
    fields = {"count": count, "host": "127.0.0.1", "port": server.port, "path": path} | fields
    return ConnectPlan(**fields)  # type: ignore[arg-type]


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_engine_process_connects_echoes_sends_counts_and_closes(
    server: LossyServer, child: EngineProcess
) -> None:
    opened = child.connect(plan(server, 20, headers=(("X-Token", "{token}"),), tokens=("a", "b")))
    assert opened["opened"] == 20
    assert {head.headers["X-Token"] for head in server.heads} == {"a", "b"}
    result = child.echo(EchoPlan(messages_per_connection=5))
    assert (result["sent"], result["received"]) == (100, 100)
    stats = child.stats(with_counts=True)
    assert (stats["open"], stats["missing"]) == (20, 0)
    assert len(Histogram.from_dict(stats["echo_latency"])) == 100
    assert child.send("hello {index}", count=3) == 3
    assert child.run(WAIT_S, until_messages=103) == 103
    child.reset_stats()
    assert child.stats()["messages"] == 0
    assert child.reconcile(1, first=0, last=1)["silent"] == 20
    assert child.close("close") == {"closed": 20, "timed_out": 0, "remaining": 0}


def test_engine_process_answers_commands_while_a_long_one_runs(
    server: LossyServer, child: EngineProcess
) -> None:
    child.connect(plan(server, 10))
    running = child.start("run", duration_s=WAIT_S, until_messages=403)
    echoing = child.start("echo", duration_s=0.4, rate_per_s=1_000.0, in_flight=0)
    assert child.stats()["open"] == 10
    assert echoing.result(WAIT_S)["received"] == 400
    assert not running.done()
    assert child.send("hello {index}", count=3) == 3
    assert running.result(WAIT_S) == 403


def test_engine_process_answers_pings_of_servers_between_commands(
    server: LossyServer, child: EngineProcess
) -> None:
    child.connect(plan(server, 2, "/ping?count=10"))
    end = time.monotonic() + WAIT_S
    while server.seen["pongs"] < 20:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_engine_process_raises_errors_by_name_and_continues(
    server: LossyServer, child: EngineProcess
) -> None:
    with pytest.raises(EngineLimitError):
        child.connect(plan(server, 51))
    with pytest.raises(ValueError, match="count"):
        child.call("connect", count=0, host="127.0.0.1", port=1)
    with pytest.raises(ValueError, match="unknown"):
        child.call("dance")
    with pytest.raises(EngineError, match="TypeError"):
        child.call("echo", no_such_field=1)
    assert child.stats()["open"] == 0


def test_quit_and_kill_end_the_engine_process_and_may_be_repeated() -> None:
    for end in (EngineProcess.quit, EngineProcess.kill):
        child = EngineProcess(EngineSettings(max_connections=5), cpus=(min(os.sched_getaffinity(0)),))
        assert os.sched_getaffinity(child.pid) == {min(os.sched_getaffinity(0))}
        end(child)
        end(child)
        assert is_gone(child.pid)
        with pytest.raises(EngineError, match="ended"):
            child.stats()


def test_waiting_command_raises_when_the_engine_process_is_killed(child: EngineProcess) -> None:
    waiting = child.start("run", duration_s=60)
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="ended"):
        waiting.result(WAIT_S)


def test_engine_process_with_settings_out_of_range_raises_in_the_parent() -> None:
    with pytest.raises(EngineError, match="ended"):
        EngineProcess(EngineSettings(max_connections=999_999))


def test_engine_process_ends_when_its_parent_is_killed() -> None:
    script = (
        "from loadtest.engine import EngineProcess, EngineSettings; import time;"
        "child = EngineProcess(EngineSettings(max_connections=5));"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent, parent.stdout:
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait(WAIT_S)
    end = time.monotonic() + WAIT_S
    # An orphan is collected by init, if there is one: a zombie counts as gone.
    while not is_gone(pid) and Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z":
        assert time.monotonic() < end
        time.sleep(0.01)
