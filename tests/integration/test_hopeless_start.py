"""Start a node that cannot work: the start ends, and names what is missing."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.client import connected
from tests.support.gateway import ROOT, running_gateway
from wsgate.node.options import descriptors_needed

pytestmark = pytest.mark.slow

FLAGS = ("serve", "--dev", "--host", "127.0.0.1", "--port", "0", "--admin-port", "0")
RESERVED = 64  # admission.reserve_descriptors


def limited(descriptors: int) -> list[str]:
    """Return a command that lowers both limits of open files and then runs its arguments."""
    return ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh"]


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("descriptors", [20, 40, 64, 0])
def test_start_with_too_few_descriptors_exits_with_1_and_names_the_number_needed(
    shards: int, descriptors: int, tmp_path: Path
) -> None:
    needed = descriptors_needed(shards, RESERVED)
    done = subprocess.run(
        [
            *limited(descriptors or needed - 1),
            sys.executable,
            "-m",
            "wsgate",
            *FLAGS,
            "--shards",
            str(shards),
        ],
        env={"RUNTIME_DIRECTORY": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(rf"ulimit -n.* is {descriptors or needed - 1}, .* at least {needed}\b", done.stderr), (
        done.stderr
    )
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_node_with_exactly_the_needed_descriptors_serves_without_warnings(shards: int) -> None:
    prefix = limited(descriptors_needed(shards, RESERVED))
    with running_gateway("--shards", str(shards), prefix=prefix) as gateway:
        assert resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE)[1] < 200
        with connected(gateway.ws_url) as (client,):
            assert client.ask("ping") == {"op": "pong"}
        assert gateway.warnings() == []


def test_node_whose_shards_fail_before_they_are_ready_exits_with_1_and_the_cause(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import wsgate.shard.process as process\n"
        "def fail(*arguments, **options):\n    raise RuntimeError('broken on purpose')\n"
        "process.Shard.__init__ = fail\n"
    )
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    done = subprocess.run(
        [sys.executable, "-m", "wsgate", *FLAGS, "--shards", "2"],
        env={
            "RUNTIME_DIRECTORY": str(directory),
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": f"{tmp_path}:{ROOT}",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "broken on purpose" in done.stderr and "start_failed" in done.stderr
    assert list(directory.iterdir()) == []
