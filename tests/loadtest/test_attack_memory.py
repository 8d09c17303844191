"""Run the attacks on memory, small: the program drives a gateway in a cgroup and can find a fault."""

import pytest

from loadtest.experiments.attack_memory.__main__ import has_returned, main
from loadtest.experiments.attack_memory.scale import Weight
from tests.support.memory_group import MemoryGroupError, memory_group

MIB = float(1 << 20)


def weight(accounts: float, used: float, *, pool: float = 0.0) -> Weight:
    """Return a growth in MiB: half of the accounts are of the bus, half of the memory is of the kernel."""
    return Weight(accounts * MIB / 2, accounts * MIB / 2, used * MIB / 2, used * MIB / 2, pool * MIB)


@pytest.mark.parametrize(
    ("accounts", "used", "is_explained"),
    [(100, 100, True), (100, 116, True), (200, 240, False), (240, 200, False), (1, 16, True), (1, 60, False)],
)
def test_memory_growth_is_explained_when_the_accounts_differ_by_little(
    accounts: float, used: float, is_explained: bool
) -> None:
    assert weight(accounts, used).is_explained is is_explained


@pytest.mark.parametrize(
    ("left", "pool", "is_returned"), [(0, 0, True), (15, 0, True), (40, 0, False), (40, 30, True)]
)
def test_memory_has_returned_when_little_more_than_the_pool_is_left(
    left: float, pool: float, is_returned: bool
) -> None:
    assert has_returned(weight(left, left, pool=pool), weight(200, 200)) is is_returned


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["F8", "F11"])
def test_small_attack_on_memory_is_explained_by_accounts_and_memory_returns(attack: str) -> None:
    try:
        with memory_group(1 << 30):
            pass
    except MemoryGroupError as error:
        pytest.skip(str(error))
    assert main(["--only", attack, "--seconds", "2", "--share", "0.05"]) == 0
