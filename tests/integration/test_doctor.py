"""Run `wsgate doctor` on the machine of the tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bus_fleet import running_server

pytestmark = pytest.mark.slow


def doctor(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wsgate", "doctor", *arguments],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_doctor_exits_0_for_a_small_demand_and_1_for_a_huge_one() -> None:
    small = doctor("--connections", "10", "--shards", "1")
    assert small.returncode == 0, small.stdout + small.stderr
    assert "limit:" in small.stdout
    huge = doctor("--connections", "900000000")
    assert huge.returncode == 1
    assert "BLOCKING  RLIMIT_NOFILE" in huge.stdout


def test_doctor_prints_json_and_uses_the_configured_limits_and_timeouts() -> None:
    told = json.loads(doctor("--json", WSGATE_ADMISSION__MAX_CONNECTIONS="77").stdout)
    assert told["connections"] == 77
    assert told["capacities"][0] == told["binding"]
    late = json.loads(doctor("--json", "--stop-timeout", "5s", WSGATE_SERVER__DRAIN_TIMEOUT="20s").stdout)
    assert next(row for row in late["findings"] if row["name"] == "stop timeout")["needed"] == "30 s"


def test_doctor_measures_the_bus_and_reports_a_bus_that_does_not_answer() -> None:
    def line(url: str) -> dict[str, str]:
        rows = json.loads(doctor("--json", WSGATE_BUS__URL=url).stdout)["findings"]
        found: dict[str, str] = next(row for row in rows if row["name"] == "bus")
        return found

    with running_server() as server:
        assert line(f"redis://127.0.0.1:{server.port}")["now"].endswith("ms round trip")
    for url in ("redis://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/main", "redis+cluster://127.0.0.1:1"):
        away = line(url)
        assert (away["now"], away["fix"]) == ("no reply", "start the bus, or correct [bus] url")


@pytest.mark.parametrize(
    "arguments", [("--rate", "-1"), ("--stop-timeout", "soon"), ("--shards", "0x"), ("--connections", "-5")]
)
def test_doctor_with_a_wrong_argument_exits_with_2_and_no_traceback(arguments: tuple[str, str]) -> None:
    done = doctor(*arguments)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_uses_the_limits_of_the_systemd_service_only_if_it_is_loaded(tmp_path: Path) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text("#!/bin/sh\necho LoadState=loaded\necho TimeoutStopUSec=5s\necho LimitNOFILE=1000\n")
    systemctl.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    rows = json.loads(doctor("--json", "--connections", "100", PATH=path).stdout)["findings"]
    said = {row["name"]: row["now"] for row in rows}
    assert said["RLIMIT_NOFILE"].startswith("1,000 for each")
    assert said["stop timeout"].startswith("5 s")
    systemctl.write_text(
        "#!/bin/sh\necho LoadState=not-found\necho TimeoutStopUSec=5s\necho LimitNOFILE=1000\n"
    )
    rows = json.loads(doctor("--json", "--connections", "100", PATH=path).stdout)["findings"]
    assert "stop timeout" not in {row["name"] for row in rows}
