"""Count the limits of a user on a cluster and behind sentinels, also when the bus moves (A4)."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from redis.crc import key_slot

from tests.support.attack_rig import make_token, nodes, scrape
from tests.support.bus_fleet import Cluster, Sentinels, running_cluster, running_sentinels
from tests.support.gateway import Gateway, wait_until
from tests.support.raw_client import LIMIT_S, RawClient

pytestmark = pytest.mark.slow

REFUSE: Final = '[admission]\nper_user_connections = 2\nper_user_policy = "refuse"\nper_user_rate = 4\n'
REPLACE: Final = "[admission]\nper_user_connections = 2\nper_user_rate = 4\n"
USERS: Final = (
    "ann",
    "b{o}b",
    "{",
    "}{",
    "née",
    "carl:rate",
    "dora",
)
"""User names on several servers: with a hash tag, with one that is incomplete, and without."""
UNCHECKED: Final = ("connections", "messages")

Fleet = Cluster | Sentinels


@pytest.fixture(params=["cluster", "sentinels"], scope="module")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Start one bus of each kind; the tests have users of their own, and the last test breaks the bus."""
    start: Callable[[], contextlib.AbstractContextManager[Fleet]]
    start = running_cluster if request.param == "cluster" else running_sentinels
    with start() as running:
        yield running


def client_of(fleet: Fleet) -> Any:
    """Return a client of the server that has the keys, after every move."""
    return fleet.client() if isinstance(fleet, Cluster) else fleet.primary().client()


def unchecked(gateways: list[Gateway]) -> float:
    names = [f'wsgate_limits_unchecked_total{{limit="{limit}"}}' for limit in UNCHECKED]
    return sum(scrape(gateway)[name] for gateway in gateways for name in names)


def enter(stack: ExitStack, gateway: Gateway, user: str) -> RawClient:
    return stack.enter_context(RawClient.welcomed(gateway, make_token(user)))


def is_refused(gateway: Gateway, user: str) -> bool:
    """Connect once more; return whether it is refused. An admitted connection is closed again."""
    with contextlib.suppress(AssertionError), RawClient.welcomed(gateway, make_token(user)) as late:
        late.sock.close()
        return False
    return True


def test_user_limits_count_the_connections_and_messages_of_two_nodes_together(
    fleet: Fleet, tmp_path: Path
) -> None:
    with nodes(tmp_path, fleet.url, REFUSE) as gateways, ExitStack() as stack:
        users = [f"{user}-count" for user in USERS]
        for user in users:
            first = enter(stack, gateways[0], user)
            enter(stack, gateways[1], user)
            assert is_refused(gateways[0], user), user
            assert is_refused(gateways[1], user), user
            assert client_of(fleet).zcard(f"wsgate:user:{user}") == 2
            # Four messages a second, and the credit that a shard may have in advance.
            first.say_at_once(
                *({"op": "pub", "ch": "open:1", "data": number, "id": number} for number in range(1, 20))
            )
            answers = [first.hear() for _ in range(1, 20)]
            assert {each.get("error", "ok") for each in answers} == {"ok", "rate_limited"}, user
        assert unchecked(gateways) == 0


def test_connection_over_the_user_limit_replaces_the_oldest_one_on_a_fleet(
    fleet: Fleet, tmp_path: Path
) -> None:
    with nodes(tmp_path, fleet.url, REPLACE) as gateways, ExitStack() as stack:
        users = [f"{user}-oldest" for user in USERS]
        for user in users:
            first = enter(stack, gateways[0], user)
            enter(stack, gateways[1], user)
            enter(stack, gateways[1], user)
            assert first.ending().code == 4509, user
        assert unchecked(gateways) == 0


def test_connections_are_registered_again_after_a_failover(fleet: Fleet, tmp_path: Path) -> None:
    with nodes(tmp_path, fleet.url, REFUSE) as gateways, ExitStack() as stack:
        users = [f"{user}-failover" for user in USERS]
        for user in users:
            enter(stack, gateways[0], user)
            enter(stack, gateways[1], user)
        # The shards register again the entries that the replica does not have.
        if isinstance(fleet, Cluster):
            fleet.owner_of(f"wsgate:user:{users[0]}").kill()
        else:
            former = fleet.primary()
            former.kill()
            fleet.await_primary_other_than(former)

        def counted() -> bool:
            with contextlib.suppress(Exception):
                return all(client_of(fleet).zcard(f"wsgate:user:{user}") == 2 for user in users)
            return False

        wait_until("all are registered", counted, LIMIT_S)
        for user in users:
            wait_until("one more is refused", lambda user=user: is_refused(gateways[0], user), LIMIT_S)  # type: ignore[misc]


def test_user_limit_holds_after_the_cluster_slot_of_the_user_has_moved(tmp_path: Path) -> None:
    with running_cluster() as fleet, nodes(tmp_path, fleet.url, REFUSE) as gateways, ExitStack() as stack:
        slot = key_slot(b"wsgate:user:ann")
        # `move` requires an empty slot, so that no client of this user connects before.
        target = next(each for each in fleet.servers[:3] if each is not fleet.owner(slot))
        fleet.move(slot, target)
        kept = [enter(stack, gateways[0], "ann"), enter(stack, gateways[1], "ann")]

        def are_registered() -> bool:
            return int(fleet.client().zcard("wsgate:user:ann")) == 2

        # A connection checked by the former owner was admitted without a count, and is registered later.
        wait_until("both are registered", are_registered, LIMIT_S)
        assert unchecked(gateways) <= 2 * len(kept)
        assert is_refused(gateways[0], "ann")
        assert is_refused(gateways[1], "ann")
