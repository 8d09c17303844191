"""Test the bench: its arithmetic, its report, its detection of losses, and its servers. Nothing is timed."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from loadtest import bench
from loadtest.engine import EngineProcess, parse_stamp
from loadtest.harness import floor_probe, report, tables
from loadtest.harness.arithmetic import (
    Summary,
    hit_rate,
    per_second,
    per_unit_us,
    ratios,
    summarize,
    summarize_all,
)
from loadtest.harness.server import ServerError, ServerProcess
from loadtest.peers import frames
from loadtest.scenarios import SCENARIOS, Results, Sizes
from loadtest.scenarios.echoing import ECHO
from loadtest.scenarios.fanout import reconcile
from loadtest.scenarios.stage import MANY, Contender, Figures

ECHOING = ("reactor_server", "websockets_server", "uvloop_server")


# ---- arithmetic


def test_cost_per_unit_is_in_microseconds_and_raises_for_no_units() -> None:
    assert per_unit_us(0.5, 100_000) == pytest.approx(5.0)
    with pytest.raises(ValueError, match="no unit of work"):
        per_unit_us(0.5, 0)


def test_units_per_second_are_the_inverse_of_microseconds_per_unit() -> None:
    assert per_second(0.5) == pytest.approx(2_000_000)


def test_hit_rate_is_the_share_of_hits_or_none_without_a_lookup() -> None:
    assert hit_rate(99, 1) == pytest.approx(0.99)
    assert hit_rate(0, 0) is None


def test_ratios_compare_each_run_with_the_floor_of_the_same_run() -> None:
    # A machine that is twice as slow in the second run does not change the ratio.
    assert ratios([6.0, 12.0], [8.0, 16.0]) == [0.75, 0.75]
    assert ratios([6.0, 12.0, 6.0], [8.0]) == [0.75]


def test_summary_has_median_least_most_and_runs() -> None:
    assert summarize([3.0, 1.0, 2.0]) == Summary(median=2.0, least=1.0, most=3.0, runs=[3.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="no run"):
        summarize([])
    assert set(summarize_all({"here": [1.0], "nowhere": []})) == {"here"}


# ---- report


def _result(lost: dict[str, list[str]] | None = None) -> dict[str, Any]:
    floor = summarize_all(
        {
            "fanout": [6.0, 9.0, 6.0],
            "refuse": [10.0],
            "refuse_at_once": [8.0],
            "coalesced16": [0.5],
            "echo": [5.0],
        }
    )
    reactor = summarize_all(
        {
            "bytes_per_conn": [120.0],
            "fanout_us": [8.0, 10.0, 12.0],
            "refusal_us": [12.0],
            "coalesced16_us": [0.625],
            "echo_us": [8.0],
            "heartbeat_us": [7.0],
            "heartbeat_few_us": [9.0],
        }
    )
    same_client = summarize_all({"fanout_us": [7.0, 9.0, 9.0]})
    servers = {"reactor": reactor, "floor_same_client": same_client}
    return report.assemble(floor, servers, lost or {})


def test_bench_json_has_exactly_the_documented_keys() -> None:
    result = json.loads(json.dumps(_result()))
    keys = {"machine", "kernel", "commit", "floor_us", "reactor", "gateway", "peers", "pool_off", "failures"}
    assert set(result) == keys
    assert set(result["peers"]) == {"websockets", "uvloop"}


def test_report_derives_ratios_rates_and_heartbeats_from_the_runs() -> None:
    reactor = _result()["reactor"]
    assert reactor["fanout_ratio"] == pytest.approx(0.75)  # of 0.75, 0.9 and 0.5
    assert reactor["spread"]["fanout_ratio"] == pytest.approx([0.5, 0.9])
    assert reactor["fanout_ratio_same_client"] == pytest.approx(0.875)
    assert reactor["refusal_ratio"] == pytest.approx(1.2)
    assert reactor["coalesced_per_s"] == pytest.approx(1_600_000)
    assert reactor["echo_per_s"] == pytest.approx(125_000)
    assert reactor["heartbeat_us"] == pytest.approx(7.0)
    assert reactor["heartbeat_750_us"] == pytest.approx(9.0)
    assert "handshake_multiple" not in reactor


def test_floor_measured_with_the_same_client_is_reported_beside_the_floor() -> None:
    floor = _result()["floor_us"]
    assert floor["fanout"] == pytest.approx(6.0)
    assert floor["fanout_same_client"] == pytest.approx(9.0)


def test_bench_table_shows_figures_budgets_and_losses() -> None:
    text = tables.table(_result({"reactor": ["echo: 1 of 2 came back"]}), Sizes())
    lines = text.splitlines()
    assert any(line.startswith("fan-out to 15,000") and "6.00" in line and "10.00" in line for line in lines)
    assert any(line.startswith("MISS fan-out, share of the floor") for line in lines)
    assert any(line.startswith("ok   user memory") for line in lines)
    assert "LOST reactor: echo: 1 of 2 came back" in lines
    assert "no message and no connection was lost" in tables.table(_result(), Sizes())


def test_bench_table_marks_a_run_void_when_the_load_engine_was_busy() -> None:
    result = _result()
    result["reactor"]["fanout_engine_share"] = 0.9
    assert "VOID reactor" in tables.table(result, Sizes())


@pytest.mark.parametrize(
    ("lost", "failures", "status"),
    [([], [], 0), (["echo: 1 of 2 came back"], [], 1), ([], ["walk, uvloop, run 1: it broke"], 1)],
)
def test_bench_exits_with_1_after_a_loss_or_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lost: list[str], failures: list[str], status: int
) -> None:
    def run(self: bench.Bench) -> None:
        self.results["reactor"] = Results(name="reactor", runs={"echo_us": [5.0]}, lost=lost)
        self.failures += failures

    monkeypatch.setattr(bench.Bench, "run", run)
    output = tmp_path / "results" / "bench.json"
    assert bench.main(["--output", str(output)]) == status
    result = json.loads(output.read_text())
    assert result["reactor"]["lost"] == lost
    assert result["failures"] == failures


def test_bench_table_without_any_measurement_is_printed() -> None:
    result = report.assemble({}, {}, {})
    assert "lost" in tables.table(result, Sizes())


# ---- losses


class _Engine:
    """Answer as an engine; `found` and `counted` are the results of its run."""

    def __init__(self, found: dict[str, int], counted: dict[str, int]) -> None:
        self._found = found
        self._counted = counted

    def reconcile(self, _stream: int, *, first: int, last: int) -> dict[str, int]:
        assert (first, last) == (1, 9)
        return {"complete": 10, "incomplete": 5, "silent": 5} | self._found

    def stats(self) -> dict[str, int]:
        names = ("duplicates", "reordered", "misrouted", "unexpected_disconnects")
        return dict.fromkeys(names, 0) | self._counted


@pytest.mark.parametrize(
    ("found", "counted", "is_lost"),
    [
        ({}, {}, False),
        ({"complete": 9, "incomplete": 6}, {}, True),  # one subscriber misses a message
        ({"complete": 9, "incomplete": 6, "silent": 6}, {}, True),  # one subscriber got nothing at all
        (
            {"complete": 11, "incomplete": 4, "silent": 4},
            {},
            True,
        ),  # a client without a subscription got everything
        ({}, {"duplicates": 1}, True),
        ({}, {"reordered": 1}, True),
        ({}, {"unexpected_disconnects": 1}, True),
    ],
)
def test_fan_out_result_with_a_missing_repeated_or_misdirected_message_is_a_loss(
    found: dict[str, int], counted: dict[str, int], is_lost: bool
) -> None:
    engine = cast(EngineProcess, _Engine(found, counted))
    contender = Contender(
        name="x", server=cast(ServerProcess, None), engine=engine, next_sequences={MANY: 10}
    )
    reconcile(contender, MANY, 10, 1)
    assert bool(contender.lost) is is_lost


# ---- parts that fail

TINY: Final = dataclasses.replace(
    Sizes.quick(), few=8, handshakes=20, echo_connections=4, echo_s=0.05, floor_echoes=5
)


def test_failed_server_or_scenario_leaves_the_results_of_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[str] = []

    def measure(contender: Contender, visitor: EngineProcess, sizes: Sizes) -> Figures:
        measured.append(contender.name)
        if contender.name == "uvloop":
            visitor.kill()  # a killed visitor must not affect the next server
            raise RuntimeError("it broke")
        assert ECHO.measure is not None
        return ECHO.measure(contender, visitor, sizes)

    scenarios = [dataclasses.replace(each, measure=measure) if each is ECHO else each for each in SCENARIOS]
    monkeypatch.setattr(bench, "SCENARIOS", tuple(reversed(scenarios)))  # echo, then handshake
    monkeypatch.setattr(bench, "processors", lambda: None)
    monkeypatch.setattr(Sizes, "quick", lambda: TINY)
    monkeypatch.setitem(bench._SERVERS, "websockets", ("no_such_server", {}))
    names = [f"--server={name}" for name in ("uvloop", "reactor", "websockets")]
    output = tmp_path / "bench.json"
    arguments = ["--quick", "--runs=2", "--only=echo", "--only=handshake", *names, f"--output={output}"]
    assert bench.main(arguments) == 1
    result = json.loads(output.read_text())
    assert measured == ["uvloop", "reactor", "reactor"]  # a failed pair is not tried again
    assert len(result["failures"]) == 2
    assert result["failures"][0].startswith("websockets, starting: ServerError: no_such_server")
    assert result["failures"][1] == "echo, uvloop, run 1: RuntimeError: it broke"
    assert len(result["reactor"]["runs"]["echo_us"]) == len(result["floor_us"]["runs"]["echo"]) == 2
    assert len(result["reactor"]["runs"]["handshake_us"]) == 2
    assert len(result["peers"]["uvloop"]["runs"]["handshake_us"]) == 2
    assert "echo_us" not in result["peers"]["uvloop"]
    assert result["reactor"]["lost"] == result["peers"]["uvloop"]["lost"] == []


def test_scenario_whose_floor_fails_has_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def floor(_sizes: Sizes, _processors: tuple[int, int] | None) -> Figures:
        raise floor_probe.FloorError("no floor")

    scenarios = [dataclasses.replace(each, floor=floor) if each is ECHO else each for each in SCENARIOS]
    monkeypatch.setattr(bench, "SCENARIOS", tuple(scenarios))
    monkeypatch.setattr(bench, "processors", lambda: None)
    monkeypatch.setattr(Sizes, "quick", lambda: TINY)
    output = tmp_path / "bench.json"
    arguments = ["--quick", "--runs=2", "--only=echo", "--only=handshake", "--server=reactor"]
    assert bench.main([*arguments, f"--output={output}"]) == 1
    result = json.loads(output.read_text())
    assert result["failures"] == ["echo, the floor, run 1: FloorError: no floor"]
    assert "echo_us" not in result["reactor"]
    assert len(result["reactor"]["runs"]["handshake_us"]) == 2


def test_bench_scenarios_have_unique_names() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)


# ---- the driven servers


@pytest.fixture(scope="module", params=[*ECHOING, "floor_server"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    floor_probe.build()
    with ServerProcess(request.param) as process:
        yield process


def _connect(server: ServerProcess) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}/ws", compression=None, close_timeout=2)


def _await_subscribers(server: ServerProcess, channel: str, count: int) -> None:
    for _ in range(10_000):
        if server.call("subscribers", channel=channel) == count:
            return
    raise AssertionError(f"never {count} subscribers")


@pytest.mark.parametrize("server", sorted(ECHOING), indirect=True)
def test_echo_server_of_the_bench_returns_text_and_binary_messages(server: ServerProcess) -> None:
    with _connect(server) as client:
        for message in ("ä text", b"\x00 binary", "x" * 200):
            client.send(message)
            assert client.recv(timeout=5) == message


def test_bench_server_publishes_stamped_messages_in_order_to_its_subscribers_only(
    server: ServerProcess,
) -> None:
    with _connect(server) as first, _connect(server) as second, _connect(server) as outsider:
        for client in (first, second):
            client.send("subscribe:news")
        _await_subscribers(server, "news", 2)
        result = server.call(
            "publish", channel="news", stream=7, first_sequence=5, count=2, frames=3, rate_per_s=1000.0
        )
        assert (result["published"], result["queued"], result["last_sequence"]) == (6, 12, 10)
        for client in (first, second):
            for sequence in range(5, 11):
                message = client.recv(timeout=5)
                assert isinstance(message, str)
                assert len(message) == 130
                stamp = parse_stamp(message.encode())
                assert stamp is not None
                assert stamp[:2] == (7, sequence)
        with pytest.raises(TimeoutError):
            outsider.recv(timeout=0)
    _await_subscribers(server, "news", 0)


def test_bench_server_with_a_gate_of_one_connection_refuses_the_second_with_503(
    server: ServerProcess,
) -> None:
    with _connect(server):
        server.call("gate", connections=1)
        with pytest.raises(InvalidStatus) as refused, _connect(server):
            pass
        assert refused.value.response.status_code == 503
        server.call("gate", connections=0)
        with _connect(server):
            pass


def test_bench_server_reports_processor_time_memory_and_loop_lag(server: ServerProcess) -> None:
    assert server.cpu_s() > 0
    memory = server.call("memory")
    assert memory["pss_bytes"] > 1_000_000
    assert memory["allocated_blocks"] > 1_000
    assert server.call("watch_lag", is_on=True) == {"lag_ms": 0.0}
    assert server.call("watch_lag", is_on=False)["lag_ms"] >= 0


def test_bench_server_answers_a_wrong_command_with_the_name_of_the_error(server: ServerProcess) -> None:
    with pytest.raises(ServerError, match="KeyError"):
        server.call("nonsense")
    with pytest.raises(ServerError, match="TypeError"):
        server.call("publish", nonsense=1)
    assert server.call("hello")["port"] == server.port


def test_bench_server_that_does_not_start_raises_server_error() -> None:
    with pytest.raises(ServerError, match="ended"):
        ServerProcess("no_such_server")


# ---- frames of the minimal peers


def test_split_frame_returns_a_whole_frame_and_none_for_a_part() -> None:
    # RFC 6455 section 5.7: a masked text frame "Hello", and a second one behind it.
    hello = bytes.fromhex("818537fa213d7f9f4d5158")
    data = hello * 2
    assert frames.split_frame(data, 0, len(data)) == (frames.TEXT, b"Hello", len(hello))
    for end in range(len(hello)):
        assert frames.split_frame(data, 0, end) is None
    long = b"\x82\xfe\x00\x82\x00\x00\x00\x00" + bytes(130)
    assert frames.split_frame(long, 0, len(long)) == (2, bytes(130), len(long))
    assert frames.split_frame(b"\x81\x80\x01\x02\x03\x04", 0, 6) == (frames.TEXT, b"", 6)


def test_frame_headers_of_130_bytes_and_of_an_empty_ping() -> None:
    assert frames.header(frames.TEXT, 130) == b"\x81\x7e\x00\x82"
    assert frames.header(frames.PING, 0) == b"\x89\x00"


def test_upgrade_answer_has_the_accept_key_of_the_rfc_example() -> None:
    # RFC 6455 section 1.3.
    response = frames.switching(b"GET / HTTP/1.1\r\nSEC-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in response
