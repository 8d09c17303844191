"""Run small storms of token refreshes and of reconnecting clients. Their durations are not tested."""

import pytest

from loadtest.experiments import node_restart
from loadtest.experiments.refresh_storm import measure
from loadtest.harness.gateway import GatewayProcess

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("is_spread", [True, False])
def test_refresh_storm_of_200_clients_is_answered_completely_twice(*, is_spread: bool) -> None:
    """Every client has its answer in each storm, and so has the prober."""
    with GatewayProcess() as gateway:
        outcome = measure(gateway, 200, 2, is_spread=is_spread)
        assert outcome.answers_s
        assert gateway.metric("commands_total", op="refresh") == 2 * 200
        assert not gateway.faults()


@pytest.mark.alone  # the gateway announces its return, and needs a core to be back by then
def test_restart_of_a_node_with_a_private_bus_costs_each_client_one_attempt() -> None:
    """The drain tells the clients when the node returns, so that no client tries before that."""
    attempts, began_s, _ = node_restart.measure(40, 2, is_killed=False)
    assert len(attempts) == 40
    assert min(attempt.due_s for attempt in attempts) >= began_s + 2.0
