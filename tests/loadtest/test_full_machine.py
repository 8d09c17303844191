"""The run of a whole machine works, small; its numbers are not tested."""

import pytest

from loadtest.experiments.full_machine import main

pytestmark = pytest.mark.slow


def test_a_small_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """All come in, rest, and are broadcast to."""
    sizes = ["--connections", "300", "--shards", "2", "--ping-interval", "1", "--broadcast-every", "0"]
    assert main(sizes) == 0
    assert "no connection was refused or ended, and every broadcast was complete" in capsys.readouterr().out
