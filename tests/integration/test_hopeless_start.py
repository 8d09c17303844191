"""A start that cannot succeed ends, and says what is missing."""

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
    """A command that lowers the limit of open files, soft and hard, and becomes what follows."""
    return ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh"]


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("descriptors", [20, 40, 64, 0])
def test_too_few_descriptors_end_the_start_with_the_number_that_is_needed(
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
def test_with_the_number_that_is_needed_a_node_serves(shards: int) -> None:
    prefix = limited(descriptors_needed(shards, RESERVED))
    with running_gateway("--shards", str(shards), prefix=prefix) as gateway:
        assert resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE)[1] < 200
        with connected(gateway.ws_url) as (client,):
            assert client.ask("ping") == {"op": "pong"}
        assert gateway.warnings() == []


def test_shards_that_end_before_they_serve_end_a_node_that_was_never_ready(tmp_path: Path) -> None:
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
