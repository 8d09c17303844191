"""Connect good clients beside each attack on the handshake, small: acceptance is tested, not speed."""

import pytest

from loadtest.experiments.newcomer_access import ANOTHER, ATTACKS, OURS, measure

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("source", [ANOTHER, OURS], ids=["another address", "the same address"])
def test_all_500_good_clients_are_accepted_beside_bad_tokens_of_one_address(source: str) -> None:
    """No default limit per address refuses them, because behind a proxy all clients have one address."""
    door = ATTACKS["bad_tokens"]._replace(rate_per_s=100, newcomers=500)
    assert measure(door, source) == (500, {})


@pytest.mark.parametrize("source", [ANOTHER, OURS], ids=["another address", "the same address"])
def test_good_clients_are_accepted_beside_more_half_heads_than_the_handshake_limit(source: str) -> None:
    door = ATTACKS["half_heads"]._replace(newcomers=200)
    came, _ = measure(door, source)
    assert came >= door.least * 200
