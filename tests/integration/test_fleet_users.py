"""Limits of a user on a cluster and behind sentinels: counted right, also when the bus moves (A4)."""

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
"""On several servers, with a hash tag, with what only looks like one, and without."""
UNCHECKED: Final = ("connections", "messages")

Fleet = Cluster | Sentinels


@pytest.fixture(params=["cluster", "sentinels"], scope="module")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """One of each kind; the tests have users of their own, and the one that breaks it is the last."""
    start: Callable[[], contextlib.AbstractContextManager[Fleet]]
    start = running_cluster if request.param == "cluster" else running_sentinels
    with start() as running:
        yield running


def books(fleet: Fleet) -> Any:
    """Where the keys are, whatever moves."""
    return fleet.client() if isinstance(fleet, Cluster) else fleet.primary().client()


def unchecked(gateways: list[Gateway]) -> float:
    names = [f'wsgate_limits_unchecked_total{{limit="{limit}"}}' for limit in UNCHECKED]
    return sum(scrape(gateway)[name] for gateway in gateways for name in names)


def enter(stack: ExitStack, gateway: Gateway, user: str) -> RawClient:
    return stack.enter_context(RawClient.welcomed(gateway, make_token(user)))


def is_refused(gateway: Gateway, user: str) -> bool:
    """Whether one more is sent away; one that was let in leaves again."""
    with contextlib.suppress(AssertionError), RawClient.welcomed(gateway, make_token(user)) as late:
        late.sock.close()
        return False
    return True


def test_two_nodes_count_together(fleet: Fleet, tmp_path: Path) -> None:
    with nodes(tmp_path, fleet.url, REFUSE) as gateways, ExitStack() as stack:
        users = [f"{user}-count" for user in USERS]
        for user in users:
            first = enter(stack, gateways[0], user)
            enter(stack, gateways[1], user)
            assert is_refused(gateways[0], user), user
            assert is_refused(gateways[1], user), user
            assert books(fleet).zcard(f"wsgate:user:{user}") == 2
            # Four messages a second, and what a shard may be ahead.
            first.say_at_once(
                *({"op": "pub", "ch": "open:1", "data": number, "id": number} for number in range(1, 20))
            )
            answers = [first.hear() for _ in range(1, 20)]
            assert {each.get("error", "ok") for each in answers} == {"ok", "rate_limited"}, user
        assert unchecked(gateways) == 0


def test_the_oldest_gives_way_wherever_it_is(fleet: Fleet, tmp_path: Path) -> None:
    with nodes(tmp_path, fleet.url, REPLACE) as gateways, ExitStack() as stack:
        users = [f"{user}-oldest" for user in USERS]
        for user in users:
            first = enter(stack, gateways[0], user)
            enter(stack, gateways[1], user)
            enter(stack, gateways[1], user)
            assert first.ending().code == 4509, user
        assert unchecked(gateways) == 0


def test_after_a_failover_everybody_is_on_the_books_again(fleet: Fleet, tmp_path: Path) -> None:
    with nodes(tmp_path, fleet.url, REFUSE) as gateways, ExitStack() as stack:
        users = [f"{user}-failover" for user in USERS]
        for user in users:
            enter(stack, gateways[0], user)
            enter(stack, gateways[1], user)
        # What the replica has not is what the walk is for: it is held back.
        if isinstance(fleet, Cluster):
            fleet.owner_of(f"wsgate:user:{users[0]}").kill()
        else:
            former = fleet.primary()
            former.kill()
            fleet.await_primary_other_than(former)

        def counted() -> bool:
            with contextlib.suppress(Exception):
                return all(books(fleet).zcard(f"wsgate:user:{user}") == 2 for user in users)
            return False

        wait_until("all are on the books", counted, LIMIT_S)
        for user in users:
            wait_until("one more is refused", lambda user=user: is_refused(gateways[0], user), LIMIT_S)  # type: ignore[misc]


def test_a_user_whose_slot_moves_is_counted_where_it_is_then(tmp_path: Path) -> None:
    with running_cluster() as fleet, nodes(tmp_path, fleet.url, REFUSE) as gateways, ExitStack() as stack:
        slot = key_slot(b"wsgate:user:ann")
        # Empty, as `move` wants it: the bus is not asked for her before.
        target = next(each for each in fleet.servers[:3] if each is not fleet.owner(slot))
        fleet.move(slot, target)
        kept = [enter(stack, gateways[0], "ann"), enter(stack, gateways[1], "ann")]

        def on_the_books() -> bool:
            return int(fleet.client().zcard("wsgate:user:ann")) == 2

        # Who asked the former owner was let in, uncounted; the walk that follows puts it on the books.
        wait_until("both are on the books", on_the_books, LIMIT_S)
        assert unchecked(gateways) <= 2 * len(kept)
        assert is_refused(gateways[0], "ann")
        assert is_refused(gateways[1], "ann")
