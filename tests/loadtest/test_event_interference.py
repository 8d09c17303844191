"""Run events beside deliveries, small: each event is appended, and no delivery is lost. Nothing is timed."""

import pytest

from loadtest.experiments.event_interference import COMMANDS, Hall
from loadtest.harness.gateway import GatewayProcess
from loadtest.scenarios.stage import start_engine

pytestmark = pytest.mark.slow


def test_every_message_event_beside_deliveries_is_appended_and_no_delivery_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The program raises when a delivery is lost."""
    monkeypatch.setattr("loadtest.experiments.event_interference.RUN_S", 0.5)
    with GatewayProcess(events=("message",)) as gateway, start_engine(2, None) as visitor:
        experiment = Hall(gateway, visitor)
        try:
            assert experiment.run(COMMANDS["send"], 500).commands_per_s > 0
        finally:
            experiment.close()
        assert not gateway.faults()
        sent = gateway.metric("commands_total", op="send")
        assert gateway.metric("events_total", outcome="appended") == sent > 0
