"""Newcomers beside each attack on the door, small: who comes in is tested, not how fast."""

import pytest

from loadtest.experiments.newcomer_access import ANOTHER, ATTACKS, OURS, measure

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("source", [ANOTHER, OURS], ids=["another address", "the same address"])
def test_every_good_client_is_served_beside_bad_tokens_of_one_address(source: str) -> None:
    """No default per address refuses anybody: behind a proxy all clients have one address."""
    door = ATTACKS["bad_tokens"]._replace(rate_per_s=100, newcomers=500)
    assert measure(door, source) == (500, {})


@pytest.mark.parametrize("source", [ANOTHER, OURS], ids=["another address", "the same address"])
def test_newcomers_come_in_beside_more_half_heads_than_there_may_be_handshakes(source: str) -> None:
    door = ATTACKS["half_heads"]._replace(newcomers=200)
    came, _ = measure(door, source)
    assert came >= door.least * 200
