"""Run the bench of the whole gateway, small: every figure is measured, and every loss is noticed."""

import dataclasses
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import pytest
import redis
from websockets.sync.client import connect

from loadtest import bench
from loadtest.engine import EchoResult, EngineProcess, parse_stamp
from loadtest.harness import floor_probe, processes, report, tables
from loadtest.harness.arithmetic import summarize_all
from loadtest.harness.gateway import GatewayProcess
from loadtest.harness.server import ServerError, ServerProcess
from loadtest.scenarios import Sizes, publishing
from loadtest.scenarios.members import COUNTED, GatewayContender, await_told, make_tokens
from loadtest.scenarios.stage import open_connections, start_engine
from tests.support.gateway import wait_until
from tests.support.valkey import Valkey, running_valkey

pytestmark = pytest.mark.slow

TINY: Final = dataclasses.replace(
    Sizes.quick(),
    many=40,
    few=8,
    many_rounds=2,
    many_rate_per_s=50,
    few_rounds=2,
    coalesced_rate_per_s=50,
    handshakes=20,
    single_channels=4,
    publications=400,
    publications_one=400,
    pace_s=0.05,
    publishers=3,
    client_publish_s=0.05,
    walk_s=0.1,
    resting_shards=2,
    resting_s=0.1,
)
# The numbers of the gateway that have a budget.
JUDGED: Final = {
    "bytes_per_conn",
    "allocatedblocks_per_conn",
    "empty_mb",
    "shard_mb",
    "shard_cpu_percent",
    "handshake_us",
    "handshake_multiple",
    "handshake_token_us",
    "handshake_seen_us",
    "fanout_ratio",
    "coalesced_per_s",
    "publication_per_s",
    "publication_p99_ms",
    "client_publish_per_s",
    "reply_p99_during_walk_ms",
}
FLOORS: Final = {"accept", "fanout", "fanout_few", "coalesced16", "coalesced16_few", "coalesced64_few"}


# ---- the whole bench of the gateway


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """Return the exit status and the JSON of a bench of the gateway with every scenario."""
    output = tmp_path_factory.mktemp("bench") / "bench.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sizes, "quick", lambda: TINY)
        patch.setattr(bench, "processors", lambda: None)
        status = bench.main(["--quick", "--runs=2", "--only=gateway", f"--output={output}"])
    return status, json.loads(output.read_text())


def test_bench_of_the_gateway_has_every_figure_in_every_run(outcome: tuple[int, dict[str, Any]]) -> None:
    status, result = outcome
    assert (result["failures"], result["gateway"]["lost"], status) == ([], [], 0)
    gateway = result["gateway"]
    figures = {name for _, _, name, _ in tables._GATEWAY_ROWS if name}
    assert {name for _, name, _, _ in tables._GATEWAY_BUDGETS} == JUDGED
    assert figures | JUDGED <= set(gateway)
    assert set(result["floor_us"]) >= FLOORS
    counted = ("handshake_us", "handshake_token_us", "fanout_us", "publication_us", "client_publish_us")
    for name in (*counted, "handshake_multiple", "fanout_ratio", "publication_p99_ms"):
        assert len(gateway["runs"][name]) == 2 and min(gateway["runs"][name]) > 0, name
    assert gateway["publication_per_s"] == pytest.approx(1e6 / gateway["publication_us"], rel=0.5)
    assert gateway["empty_mb"] > gateway["shard_mb"] > 1
    assert "bytes_per_conn" not in result["reactor"]


def test_table_of_the_gateway_shows_every_figure_and_a_verdict_for_every_budget(
    outcome: tuple[int, dict[str, Any]],
) -> None:
    lines = tables.table(outcome[1], TINY).splitlines()
    assert lines[0].split() == ["whole", "gateway", "floor", "gateway"]
    for label, _, name, _ in tables._GATEWAY_ROWS:
        # The floor with the same client has a turn only where the other servers have one.
        shown = label.format(many=40, few=8, channels=4)
        assert any(line.startswith(shown) for line in lines) or not name, label
    verdicts = [line for line in lines if line.startswith(("ok   ", "MISS "))]
    assert len(verdicts) == len(tables._GATEWAY_BUDGETS)
    assert lines[-1] == "no message and no connection was lost"
    fanout = next(line for line in lines if line.startswith("fan-out to 40,"))
    assert f"{outcome[1]['floor_us']['fanout']:,.2f}" in fanout
    assert f"{outcome[1]['gateway']['fanout_us']:,.2f}" in fanout


def test_gateway_has_its_own_table_with_ratios_to_the_same_floor() -> None:
    floor = summarize_all({"accept": [10.0], "fanout": [6.0, 9.0]})
    servers = {
        "reactor": summarize_all({"fanout_us": [6.0, 9.0]}),
        "gateway": summarize_all({"fanout_us": [8.0, 10.0], "handshake_us": [25.0], "publication_us": [8.0]}),
    }
    result = report.assemble(floor, servers, {"gateway": ["handshake: one of two"]}, ["walk: it broke"])
    assert result["gateway"]["runs"]["fanout_ratio"] == [0.75, 0.9]
    assert result["gateway"]["handshake_multiple"] == pytest.approx(2.5)
    assert result["gateway"]["publication_per_s"] == pytest.approx(125_000)
    lines = tables.table(result, Sizes()).splitlines()
    assert [line.split()[0] for line in lines if line.endswith(("websockets", "     gateway"))] == [
        "reactor",
        "whole",
    ]
    assert any(line.startswith("MISS fan-out, share of the floor") and "0.825" in line for line in lines)
    assert any(line.startswith("ok   publications per core second") for line in lines)
    assert lines[-2:] == ["FAILED walk: it broke", "LOST gateway: handshake: one of two"]


def test_gateway_scenarios_can_be_chosen_by_name_and_unknown_ones_are_refused() -> None:
    assert {"fanout", "gateway_fanout", "gateway_idle", "gateway_resting", "gateway_walk"} <= set(
        bench._TURNS
    )
    assert "publication" not in bench._TURNS and "gateway_echo" not in bench._TURNS
    with pytest.raises(SystemExit) as refused:
        bench.main(["--only=publication"])
    assert refused.value.code == 2


# ---- the backend


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey() as running:
        yield running


@pytest.fixture
def backend(valkey: Valkey) -> Iterator[ServerProcess]:
    settings = {"path": str(valkey.socket_path), "prefix": "p"}
    with ServerProcess("redis_publisher", settings) as process:
        yield process


def _heard(client: "redis.client.PubSub", count: int) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    while len(found) < count:
        message = client.get_message(timeout=10)
        assert message is not None
        if message["type"] == "message":
            found.append((message["channel"].decode(), message["data"]))
    return found


@pytest.mark.parametrize("manner", ["flood", "pace"])
def test_bench_backend_publishes_to_its_channels_in_turn_and_counts_the_deliveries(
    valkey: Valkey, backend: ServerProcess, manner: str
) -> None:
    plan: dict[str, Any] = {"channels": ["a", "b"], "stream": 7, "first_sequence": 5, "count": 300}
    with redis.Redis(port=valkey.port) as server, server.pubsub() as client:
        client.subscribe("p:ch:a", "p:ch:b")
        wait_until("subscribed", lambda: client.get_message(timeout=1) and len(client.channels) == 2)
        wait_until(
            "both", lambda: server.pubsub_numsub("p:ch:a", "p:ch:b") == [(b"p:ch:a", 1), (b"p:ch:b", 1)]
        )
        if manner == "flood":
            backend.call("prepare", **plan)
            sent = backend.call("flood")
        else:
            sent = backend.call("pace", **plan, rate_per_s=20_000.0)
        assert (sent["published"], sent["reached"]) == (600, 600)
        heard = _heard(client, 600)
    marks = [(channel, parse_stamp(json.loads(data).encode())) for channel, data in heard]
    assert [mark[:2] for _, mark in marks if mark] == [(7 + n % 2, 5 + n // 2) for n in range(600)]
    assert [channel for channel, _ in marks] == ["p:ch:a", "p:ch:b"] * 300
    due = [mark[2] for _, mark in marks if mark]
    assert (due == sorted(due)) and (len(set(due)) == (1 if manner == "flood" else 600))


def test_bench_backend_reports_publications_without_subscribers_and_refused_ones(
    valkey: Valkey, backend: ServerProcess
) -> None:
    result = backend.call("publish", channel="nobody", stream=1, first_sequence=1, count=2, frames=3)
    assert (result["published"], result["queued"], result["last_sequence"]) == (6, 0, 6)
    with redis.Redis(port=valkey.port) as server:
        server.acl_setuser("default", enabled=True, nopass=True, commands=["-publish"])
        try:
            with pytest.raises(ServerError, match="NOPERM"):
                backend.call("publish", channel="x", stream=1, first_sequence=1, count=1)
        finally:
            server.acl_setuser("default", enabled=True, nopass=True, commands=["+publish"])


# ---- one gateway for the following tests


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with GatewayProcess() as process:
        yield process


@pytest.fixture
def engine() -> Iterator[EngineProcess]:
    engine = start_engine(77, None, COUNTED)
    yield engine
    engine.quit()


def test_messages_of_the_gateway_bench_have_the_payload_size_of_the_floor(gateway: GatewayProcess) -> None:
    with connect(f"ws://127.0.0.1:{gateway.port}/ws?ch=many", compression=None) as client:
        assert [json.loads(client.recv(timeout=10))["op"] for _ in range(2)] == ["welcome", "subbed"]
        result = gateway.call("publish", channel="many", stream=3, first_sequence=9, count=1, frames=2)
        assert (result["published"], result["queued"]) == (2, 2)
        for sequence in (9, 10):
            message = client.recv(timeout=10)
            assert len(message) == 130 == bench_floor_payload()
            stamp = parse_stamp(cast(str, message).encode())
            assert stamp is not None and stamp[:2] == (3, sequence)


def bench_floor_payload() -> int:
    """Return the payload size of the frame in the source of the floor."""
    source = (floor_probe.FLOOR / "floor.h").read_text()
    frame = int(source.partition("FRAME_BYTES = ")[2].partition(",")[0])
    return frame - 4


def test_gateway_bench_measures_processor_time_and_memory_of_every_process(gateway: GatewayProcess) -> None:
    names = processes.children(gateway._keeper.pid)
    assert set(names) == {"wsgate-admin", "wsgate-bus", "wsgate-shard-0"}
    before_s, bus_before_s = gateway.cpu_s(), gateway.bus_cpu_s()
    assert before_s > 0 and bus_before_s > 0
    held = gateway.memory()
    assert held["pss_bytes"] >= held["private_bytes"] > 10_000_000
    assert held["bus_pss_bytes"] > 500_000
    bus = processes.memory(gateway.bus_pid).private_bytes
    own = [
        gateway._keeper.pid,
        *(pid for name, pids in names.items() if name != "wsgate-bus" for pid in pids),
    ]
    assert abs(held["private_bytes"] - sum(processes.memory(pid).private_bytes for pid in own)) < bus / 2
    # The interpreter alone has tens of thousands of blocks.
    assert held["allocated_blocks"] > 20_000
    assert gateway.metric("python_blocks", shard="0") > 20_000
    assert gateway.metric("python_blocks", shard="1") == 0
    assert gateway.faults() == []


def test_gateway_bench_clients_are_different_users_and_a_lost_one_is_a_fault(
    gateway: GatewayProcess, engine: EngineProcess
) -> None:
    contender = GatewayContender(name="gateway", server=gateway, engine=engine)
    contender.open(12)
    contender.subscribe(dataclasses.replace(TINY, many=12, few=5))
    wait_until("counted", lambda: gateway.metric("channels") == 14)  # 12 inboxes, many and few
    assert contender.faults() == []
    engine.close("reset", count=2)
    assert contender.faults() == ["2 held connections ended"]


def test_gateway_bench_tokens_differ_by_user_and_by_run() -> None:
    users = ["a", "b"]
    assert len({*make_tokens(users, "1"), *make_tokens(users, "2")}) == 4


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/ws?ch=many", {"welcome": 1, "subbed": 0}),  # more than wanted
        ("/ws?ch=no:such", {"welcome": 1, "subbed": 1}),  # an error
    ],
)
def test_unexpected_message_to_a_bench_client_raises(
    gateway: GatewayProcess, engine: EngineProcess, path: str, told: dict[str, int]
) -> None:
    open_connections(engine, gateway, 1, path=path)
    with pytest.raises(RuntimeError, match="clients received"):
        for _ in range(1_000):  # the unexpected message may come after the expected ones
            await_told(engine, **told)


def test_missing_message_to_a_bench_client_raises_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch, gateway: GatewayProcess, engine: EngineProcess
) -> None:
    monkeypatch.setattr("loadtest.scenarios.members._TOLD_S", 0.2)
    open_connections(engine, gateway, 1)
    with pytest.raises(RuntimeError, match="clients received"):
        await_told(engine, welcome=2)


def test_killed_shard_is_a_fault_of_the_gateway_bench(engine: EngineProcess) -> None:
    with GatewayProcess() as gateway:
        contender = GatewayContender(name="gateway", server=gateway, engine=engine)
        contender.open(5)
        (shard,) = gateway.shard_pids
        os.kill(shard, signal.SIGKILL)
        wait_until("they ended", lambda: engine.stats()["open"] == 0)
        faults = contender.faults()
        assert "a process of the gateway ended" in faults and "5 held connections ended" in faults


def test_gateway_of_the_bench_that_does_not_start_raises_with_the_setting() -> None:
    with (
        pytest.raises(ServerError, match=r"server\.shards"),
        GatewayProcess(config="[server]\nshards = -1\n"),
    ):
        pass


def test_bench_leaves_no_process_and_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="wsgate-") as directory:  # short: it holds a Unix socket
        monkeypatch.setattr("tempfile.tempdir", directory)
        with GatewayProcess() as gateway:
            pids = [pid for pids in processes.children(gateway._keeper.pid).values() for pid in pids]
            gateway.call("publish", channel="x", stream=1, first_sequence=1, count=1)
        assert list(Path(directory).iterdir()) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


# ---- losses


class _Visitor:
    """Answer as an engine does after 10 messages."""

    def __init__(self, **counted: int) -> None:
        self._counted = counted

    def stats(self) -> dict[str, int]:
        names = ("missing", "duplicates", "reordered", "unexpected_disconnects")
        return dict.fromkeys(names, 0) | {"messages": 10, "stamped": 10} | self._counted


@pytest.mark.parametrize(
    ("counted", "reached", "is_lost"),
    [
        ({}, 10, False),
        ({}, 9, True),  # a publication that reached no shard
        ({"messages": 9, "stamped": 9}, 10, True),
        ({"messages": 10, "stamped": 9}, 10, True),  # another message arrived
        ({"missing": 1}, 10, True),
        ({"duplicates": 1}, 10, True),
        ({"reordered": 1}, 10, True),
        ({"unexpected_disconnects": 1}, 10, True),
    ],
)
def test_lost_repeated_or_reordered_publication_is_noted_as_a_loss(
    counted: dict[str, int], reached: int, is_lost: bool
) -> None:
    contender = GatewayContender(
        name="gateway", server=cast(GatewayProcess, None), engine=cast(EngineProcess, None)
    )
    publishing._judge(contender, cast(EngineProcess, _Visitor(**counted)), "a flood", reached, 10)
    assert bool(contender.lost) is is_lost


def _echoed(**found: int) -> EchoResult:
    result = EchoResult(connections=3, sent=10, received=10, unanswered=0, unsent=0, elapsed_s=1.0)
    for name, value in found.items():
        result[name] = value  # type: ignore[literal-required]
    return result


@pytest.mark.parametrize(
    ("found", "answered", "is_answered", "is_lost"),
    [
        ({}, 0, False, False),
        ({}, 10, True, False),
        ({}, 9, True, True),  # one publish was never answered
        ({}, 1, False, True),  # an answer without a publish
        ({"received": 9}, 0, False, True),
        ({"connections": 2}, 0, False, True),
        ({"sent": 0, "received": 0}, 0, False, True),
    ],
)
def test_unanswered_or_missing_client_publish_is_noted_as_a_loss(
    found: dict[str, int], answered: int, is_answered: bool, is_lost: bool
) -> None:
    losses = publishing._losses("x", _echoed(**found), answered, TINY, is_answered=is_answered)
    assert bool(losses) is is_lost
