"""Storms, small: fresh tokens, and a restart under our own clients. How long they took is not tested."""

import pytest

from loadtest.experiments import node_restart
from loadtest.experiments.refresh_storm import measure
from loadtest.harness.gateway import GatewayProcess

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("is_spread", [True, False])
def test_a_small_storm(*, is_spread: bool) -> None:
    """Everybody is answered, in each storm, and the prober too."""
    with GatewayProcess() as gateway:
        outcome = measure(gateway, 200, 2, is_spread=is_spread)
        assert outcome.answers_s
        assert gateway.metric("commands_total", op="refresh") == 2 * 200
        assert not gateway.faults()


@pytest.mark.alone  # the gateway says when it is back, and must have a core to be back by then
def test_a_small_restart_is_one_attempt_each() -> None:
    """Whose bus is its own says when it is back: nobody tries in vain before that."""
    attempts, began_s, _ = node_restart.measure(40, 2, is_killed=False)
    assert len(attempts) == 40
    assert min(attempt.due_s for attempt in attempts) >= began_s + 2.0
