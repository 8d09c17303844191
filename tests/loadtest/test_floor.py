"""The floor probe builds, counts what it says it counts, and fails where it must. Nothing is timed here."""

import json
import subprocess
from pathlib import Path

import pytest

from loadtest.harness import floor_probe

SOCKETS = 64
ROUNDS = 2
# Scenario: the figure whose value the bench takes, and the figures that must agree with the counts given.
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


def test_every_scenario_is_there(results: Results) -> None:
    assert set(results) == set(SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_counts_agree(results: Results, name: str) -> None:
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
def test_one_system_call_per_socket(results: Results, name: str, calls: float) -> None:
    assert results[name]["system_calls_each"] == pytest.approx(calls)


def test_refusing_at_once_saves_the_drain(results: Results) -> None:
    # Refusing properly adds shutdown, epoll_ctl and the recv that sees the peer's FIN.
    extra = float(results["refuse"]["system_calls_each"]) - float(
        results["refuse_at_once"]["system_calls_each"]
    )
    assert extra > 2


def test_table_is_printed_without_json(program: Path) -> None:
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
def test_wrong_arguments_are_refused(program: Path, arguments: list[str]) -> None:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: floor" in done.stderr


@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - {"refuse", "refuse_at_once"}))
def test_too_few_descriptors_fail_loudly(program: Path, name: str) -> None:
    """The planted defect: a run that could not hold its connections must not report a figure as good.

    The two refusals hold none: with few descriptors they take longer and are right all the same.
    """
    command = ["sh", "-c", 'ulimit -n 40 && exec "$0" "$@"', str(program), name, "--sockets=64", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    result = json.loads(done.stdout)[name]
    if not result["unavailable"]:
        assert done.returncode == 1
        assert result["error"]


def test_a_failing_scenario_raises(program: Path) -> None:
    assert program.is_file()
    with pytest.raises(floor_probe.FloorError, match="fanout"):
        # A million fan-outs do not fit into a second: the deadline must end them.
        floor_probe.run("fanout", sockets=16, rounds=1_000_000, timeout_s=1)
