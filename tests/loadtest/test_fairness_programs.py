"""Run the load programs about shared resources, small: counts and promises are tested, not times."""

import pytest

from loadtest.experiments import bus_faults, frequent_senders, publish_fairness
from loadtest.experiments.publish_fairness import Case
from loadtest.harness.gateway import GatewayProcess

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", [Case(8, 8, 60), Case(8, 1, 2_048)], ids=["clients", "one user"])
def test_good_client_beside_a_small_publish_flood_has_every_answer(case: Case) -> None:
    before, during, flood = publish_fairness.measure(case, 1.0, None)
    assert len(before.latencies_s) == 20
    assert during.latencies_s and len(during.latencies_s) == len(during.cpu_s)
    assert during.unanswered == before.refused == before.unanswered == 0
    assert flood["accepted"] > 0 and flood["ended"] == 0


def test_two_kills_of_the_private_bus_cause_no_loss_without_a_notice() -> None:
    with GatewayProcess(config=bus_faults.CONFIG.format(bus_url="")) as gateway:
        found = bus_faults.measure(gateway, 5, lambda: bus_faults.kill_often(gateway, 2))
    assert len(found.breaks) == 2
    assert not found.uncovered and not found.faults
    assert found.ok_while_deaf == found.others == found.ended == 0
    assert found.lost + found.refused > 0
    assert all(last_s < float("inf") for _, last_s in found.holes_s)


def test_new_clients_are_accepted_and_a_full_reader_loses_nothing_beside_50_senders() -> None:
    before, beside, talk = frequent_senders.measure(50, 1.0, None)
    assert before.lost == beside.lost == 0
    assert beside.accepted_s and beside.served_s and talk.per_s > 1
