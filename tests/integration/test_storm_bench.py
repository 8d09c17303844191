"""The storm of refreshes works, small: every fresh token is taken. How long it took is not tested."""

import pytest

from loadtest.bench_gateway import GatewayProcess
from loadtest.refresh_storm import measure

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("is_spread", [True, False])
def test_a_small_storm(*, is_spread: bool) -> None:
    """Everybody is answered, in each storm, and the prober too."""
    with GatewayProcess() as gateway:
        outcome = measure(gateway, 200, 2, is_spread=is_spread)
        assert outcome.answers_s
        assert gateway.metric("commands_total", op="refresh") == 2 * 200
        assert not gateway.faults()
