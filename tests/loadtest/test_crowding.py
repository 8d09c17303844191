"""Test the crowd scenario: its peers, its detection of losses, and its measuring of kernel memory.

Nothing is timed.
"""

import dataclasses
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.sync.client import connect

from loadtest.engine import EchoResult, EngineProcess
from loadtest.harness import report, tables
from loadtest.harness.arithmetic import summarize_all
from loadtest.harness.server import ServerProcess
from loadtest.peers.frames import TEXT, split_frame, switching
from loadtest.peers.message_flood import FRAME_BYTES, FloodProcess, frames
from loadtest.peers.socket_memory import send_memory
from loadtest.scenarios import Sizes, crowding
from loadtest.scenarios.stage import Contender, start_engine

TINY = dataclasses.replace(
    Sizes.quick(),
    control_connections=3,
    control_rate_per_s=200,
    quiet_s=0.05,
    flooders=2,
    flood_s=0.05,
    nonreaders=4,
    nonreaders_s=0.2,
    nonreaders_rate_per_s=200,
)


# ---- losses


def _echoed(**found: int) -> EchoResult:
    result = EchoResult(connections=3, sent=10, received=10, unanswered=0, unsent=0, elapsed_s=1.0)
    for name, value in found.items():
        result[name] = value  # type: ignore[literal-required]
    return result


@pytest.mark.parametrize(
    ("found", "alive", "count"),
    [
        ({}, 3, 0),
        ({"received": 9, "unanswered": 1}, 3, 1),
        ({"unsent": 1}, 3, 1),  # a due message was not sent, because the socket took nothing
        ({"sent": 0, "received": 0}, 3, 1),
        ({}, 2, 1),
        ({"received": 9}, 2, 2),
    ],
)
def test_unanswered_unsent_or_ended_control_connections_are_losses(
    found: dict[str, int], alive: int, count: int
) -> None:
    assert len(crowding._losses("flood", _echoed(**found), alive=alive, expected=3)) == count


# ---- report


def _result(figures: dict[str, list[float]]) -> dict[str, Any]:
    return report.assemble({}, {"reactor": summarize_all(figures)}, {})


def test_json_of_the_crowd_scenario_has_the_figures_of_the_control_group() -> None:
    figures = {
        "control_quiet_p99_ms": [0.1, 0.3, 0.2],
        "control_flood_p99_ms": [2.0],
        "control_nonreaders_p99_ms": [0.5],
        "reply_p99_during_walk_ms": [3.0],
        "nonreaders_kernel_bytes": [900.0],
        "nonreaders_booked_bytes": [1000.0],
    }
    assert json.loads(json.dumps(_result(figures)))["reactor"]["control_group"] == {
        "quiet_p99_ms": 0.2,
        "flood_p99_ms": 2.0,
        "nonreaders_p99_ms": 0.5,
        "walk_p99_ms": 3.0,
        "nonreaders_kernel_bytes": 900.0,
        "nonreaders_booked_bytes": 1000.0,
    }
    assert _result({})["reactor"]["control_group"] == {}


def test_table_marks_a_miss_when_kernel_memory_exceeds_its_account() -> None:
    lines = tables.table(_result({"nonreaders_kernel_share": [1.01]}), Sizes()).splitlines()
    assert any(line.startswith("MISS their kernel send memory") for line in lines)


# ---- memory of the kernel


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            accepted, _ = listener.accept()
            with accepted:
                yield client, accepted


def test_send_memory_counts_the_unread_bytes_of_a_blocked_socket(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    writer, _ = pair
    before = send_memory()
    writer.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            writer.send(bytes(1 << 16))
    after = send_memory()
    assert after["queued_sockets"] - before["queued_sockets"] == 1
    assert after["queued_most_bytes"] >= 1 << 14
    assert after["queued_bytes"] - before["queued_bytes"] >= 1 << 14
    assert writer.fileno() >= 0  # the measurement did not close it
    writer.getpeername()


def test_stats_of_the_bench_server_have_send_memory_only_on_request() -> None:
    with ServerProcess("reactor_server", {"ping_interval_ms": 0}) as server:
        assert "send_memory" not in server.call("stats")
        stats = server.call("stats", with_send_memory=True)
        assert stats["send_memory"] == {"queued_bytes": 0, "queued_sockets": 0, "queued_most_bytes": 0}
        assert stats["bytes_held"]["kernel_queued"] == stats["counters"]["now_blocked"] == 0
        with connect(f"ws://127.0.0.1:{server.port}/ws", compression=None) as client:
            client.send("still there")
            assert client.recv(timeout=5) == "still there"


# ---- the flood


def test_flood_frames_are_one_byte_text_frames_with_different_masks() -> None:
    data = frames(5, seed=1)
    assert len(data) == 5 * FRAME_BYTES
    for at in range(0, len(data), FRAME_BYTES):
        assert data[at + 1] & 0x80
        assert split_frame(data, at, len(data)) == (TEXT, b"x", at + FRAME_BYTES)
    assert data[2:6] != data[9:13]  # each has its own mask


def _flood_until(server: ServerProcess, messages: int) -> int:
    """Flood until the server has counted this many messages; return the number of answers."""
    with FloodProcess(server.port, 2, limit_s=30.0) as flood:
        flood.begin()
        while server.call("stats")["counters"]["messages_in"] < messages:
            pass
        result = flood.finish()
    assert result["ended"] == 0
    assert result["sent"] >= messages
    return result["answered"]


def test_flood_of_40000_messages_is_answered_without_a_protocol_error() -> None:
    with ServerProcess("reactor_server", {"ping_interval_ms": 0}) as server:
        # More than one ring of frames each: after a partial send the next one must begin at its end.
        assert 0 < _flood_until(server, 40_000)
        counters = server.call("stats")["counters"]
        assert counters["ended_protocol_error"] == counters["ended_invalid_utf8"] == 0


def test_flood_reports_peers_that_were_closed_by_the_server() -> None:
    def upgrade_and_leave(listener: socket.socket) -> None:
        for _ in range(2):
            accepted, _address = listener.accept()
            with accepted:
                accepted.sendall(switching(accepted.recv(4096)))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=upgrade_and_leave, args=(listener,))
        thread.start()
        with FloodProcess(listener.getsockname()[1], 2, limit_s=30.0) as flood:
            flood.begin()
            assert flood.wait()["ended"] == 2  # it ends by itself when no peer is left
        thread.join()


def test_flood_to_a_closed_port_raises_and_prints_the_error(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RuntimeError, match="could not open"):
        FloodProcess(port, 1, limit_s=1.0)
    assert "ConnectionRefusedError" in capfd.readouterr().err


# ---- the whole scenario


@pytest.fixture
def visitor() -> Iterator[EngineProcess]:
    with start_engine(201, None) as engine:
        yield engine


def test_crowd_scenario_with_the_reactor_has_no_loss_and_every_figure(visitor: EngineProcess) -> None:
    with ServerProcess("reactor_server", {"ping_interval_ms": 0}) as server:
        contender = Contender(name="reactor", server=server, engine=visitor)
        figures = crowding._measure(contender, visitor, TINY)
    assert contender.lost == []
    for crowd in ("quiet", "flood", "nonreaders"):
        assert figures[f"control_{crowd}_answered_share"] == 1.0
        assert figures[f"control_{crowd}_p99_ms"] > 0
    assert figures["flood_answered_per_s"] > 0
    assert figures["nonreaders_blocked"] == TINY.nonreaders
    assert 0 < figures["nonreaders_kernel_bytes"] <= figures["nonreaders_booked_bytes"]
    assert visitor.stats()["open"] == 0


def test_crowd_scenario_measures_another_server_once_without_account_figures(visitor: EngineProcess) -> None:
    with ServerProcess("uvloop_server") as server:
        contender = Contender(name="uvloop", server=server, engine=visitor)
        contender.add(crowding._measure(contender, visitor, TINY))
        assert crowding._measure(contender, visitor, TINY) == {}
    assert contender.lost == []
    assert contender.runs["nonreaders_kernel_bytes"][0] > 0
    assert "nonreaders_booked_bytes" not in contender.runs
