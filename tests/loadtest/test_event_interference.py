"""Events beside deliveries, small: each is appended, and no delivery is lost. The times are not tested."""

import pytest

from loadtest.experiments.event_interference import COMMANDS, Hall
from loadtest.harness.gateway import GatewayProcess
from loadtest.scenarios.stage import start_engine

pytestmark = pytest.mark.slow


def test_a_few_events_beside_deliveries(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises when a delivery is lost."""
    monkeypatch.setattr("loadtest.experiments.event_interference.RUN_S", 0.5)
    with GatewayProcess(events=("message",)) as gateway, start_engine(2, None) as visitor:
        hall = Hall(gateway, visitor)
        try:
            assert hall.run(COMMANDS["send"], 500).commands_per_s > 0
        finally:
            hall.close()
        assert not gateway.faults()
        sent = gateway.metric("commands_total", op="send")
        assert gateway.metric("events_total", outcome="appended") == sent > 0
