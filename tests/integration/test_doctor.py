"""`wsgate doctor` on the machine the tests run on."""

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


def test_a_small_demand_is_met_and_a_huge_one_blocks() -> None:
    small = doctor("--connections", "10", "--shards", "1")
    assert small.returncode == 0, small.stdout + small.stderr
    assert "limit:" in small.stdout
    huge = doctor("--connections", "900000000")
    assert huge.returncode == 1
    assert "BLOCKING  RLIMIT_NOFILE" in huge.stdout


def test_programs_read_json_and_the_configuration_counts() -> None:
    told = json.loads(doctor("--json", WSGATE_ADMISSION__MAX_CONNECTIONS="77").stdout)
    assert told["connections"] == 77
    assert told["capacities"][0] == told["binding"]
    late = json.loads(doctor("--json", "--stop-timeout", "5s", WSGATE_SERVER__DRAIN_TIMEOUT="20s").stdout)
    assert next(row for row in late["findings"] if row["name"] == "stop timeout")["needed"] == "30 s"


def test_the_bus_is_asked_and_one_that_is_away_is_said() -> None:
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
def test_nonsense_is_refused(arguments: tuple[str, str]) -> None:
    done = doctor(*arguments)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_service_has_counts_and_not_what_the_shell_has(tmp_path: Path) -> None:
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
