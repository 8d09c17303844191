"""Build and run the floor probe: its counts agree, and it fails where it must. Nothing is timed."""

import json
import subprocess
from pathlib import Path

import pytest

from loadtest.harness import floor_probe

SOCKETS = 64
ROUNDS = 2
# From a scenario to the figure that the bench uses, and to the numbers that must agree with the counts.
SCENARIOS = {
    "fanout": (
        "cpu_us_per_delivery",
        {"deliveries": SOCKETS * ROUNDS, "received_frames": SOCKETS * (ROUNDS + 1)},
    ),
    "coalesced16": (
        "cpu_us_per_delivery",
        {"deliveries": 16 * SOCKETS * ROUNDS, "received_frames": 16 * SOCKETS * (ROUNDS + 1)},
    ),
    "coalesced64": (
        "cpu_us_per_delivery",
        {"deliveries": 64 * SOCKETS * ROUNDS, "received_frames": 64 * SOCKETS * (ROUNDS + 1)},
    ),
    "accept": ("cpu_us_per_accept", {"connections": SOCKETS, "answered": SOCKETS, "resets": 0}),
    "refuse": ("cpu_us_per_accept", {"connections": SOCKETS, "answered": SOCKETS, "resets": 0}),
    "refuse_at_once": ("cpu_us_per_accept", {"connections": SOCKETS, "answered": SOCKETS, "resets": 0}),
    "echo": ("cpu_us_per_echo", {"echoes": SOCKETS * ROUNDS, "received_frames": SOCKETS * ROUNDS}),
    "ping": ("cpu_us_per_ping", {"pings": SOCKETS * ROUNDS}),
    "accept_epoll": ("cpu_us_per_accept", {"accepted": SOCKETS, "burst": 0}),
    "accept_epoll_burst": ("cpu_us_per_accept", {"accepted": SOCKETS, "burst": 512}),
    "accept_uring": ("cpu_us_per_accept", {"accepted": SOCKETS, "burst": 0}),
    "accept_uring_burst": ("cpu_us_per_accept", {"accepted": SOCKETS, "burst": 512}),
}
USAGE = ("wall_us_each", "system_calls_each", "voluntary_switches_each", "involuntary_switches_each")

Results = dict[str, dict[str, float | str]]


@pytest.fixture(scope="module")
def program() -> Path:
    return floor_probe.build()


@pytest.fixture(scope="module")
def results(program: Path) -> Results:
    assert program.is_file()
    return floor_probe.run("all", sockets=SOCKETS, rounds=ROUNDS, window=16)


def test_floor_probe_runs_every_scenario(results: Results) -> None:
    assert set(results) == set(SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_floor_scenario_counts_what_it_was_given(results: Results, name: str) -> None:
    result = results[name]
    if result["unavailable"]:
        pytest.skip(str(result["unavailable"]))
    cost, counts = SCENARIOS[name]
    assert {figure: result[figure] for figure in counts} == counts
    for figure in (cost, *USAGE):
        assert float(result[figure]) >= 0


@pytest.mark.parametrize(
    ("name", "calls"),
    [("fanout", 1.0), ("coalesced16", 1 / 16), ("coalesced64", 1 / 64)],
)
def test_floor_fan_out_uses_one_system_call_per_socket(results: Results, name: str, calls: float) -> None:
    assert results[name]["system_calls_each"] == pytest.approx(calls)


def test_floor_of_refusing_at_once_uses_fewer_system_calls_than_with_a_drain(results: Results) -> None:
    # A refusal with a drain adds shutdown, epoll_ctl and the recv that returns the FIN of the peer.
    extra = float(results["refuse"]["system_calls_each"]) - float(
        results["refuse_at_once"]["system_calls_each"]
    )
    assert extra > 2


def test_floor_probe_prints_a_table_without_the_json_flag(program: Path) -> None:
    done = subprocess.run(
        [program, "fanout", "--sockets=4", "--rounds=1"], capture_output=True, text=True, check=True
    )
    assert "cpu_us_per_delivery" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["fanout", "--sockets=0"],
        ["fanout", "--sockets=20000"],
        ["fanout", "--rounds=1x"],
        ["--what"],
    ],
)
def test_floor_probe_with_wrong_arguments_exits_with_2_and_its_usage(
    program: Path, arguments: list[str]
) -> None:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: floor" in done.stderr


@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - {"refuse", "refuse_at_once"}))
def test_floor_scenario_with_too_few_descriptors_reports_an_error(program: Path, name: str) -> None:
    """A run that could not open its connections must not report a figure as good.

    The two refusals keep no connections open: with few descriptors they take longer and are right.
    """
    command = ["sh", "-c", 'ulimit -n 40 && exec "$0" "$@"', str(program), name, "--sockets=64", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    result = json.loads(done.stdout)[name]
    if not result["unavailable"]:
        assert done.returncode == 1
        assert result["error"]


def test_floor_scenario_that_exceeds_its_time_limit_raises_floor_error(program: Path) -> None:
    assert program.is_file()
    with pytest.raises(floor_probe.FloorError, match="fanout"):
        # A million fan-outs take longer than a second, so the deadline must end them.
        floor_probe.run("fanout", sockets=16, rounds=1_000_000, timeout_s=1)
