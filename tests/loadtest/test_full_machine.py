"""Run the experiment of a whole machine, small; its numbers are not tested."""

import pytest

from loadtest.experiments.full_machine import main

pytestmark = pytest.mark.slow


def test_full_machine_with_300_connections_loses_no_client_and_no_broadcast(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All clients connect, rest, and receive every broadcast."""
    sizes = ["--connections", "300", "--shards", "2", "--ping-interval", "1", "--broadcast-every", "0"]
    assert main(sizes) == 0
    assert "no connection was refused or ended, and every broadcast was complete" in capsys.readouterr().out
