"""Keep sets of members with leases on the bus: a member leaves the set when its lease expires or is deleted.

Two kinds of sets exist: the shards of all nodes, and, for a minute, the shards that have carried out one
control command. The server that stores the set measures the leases, so the clocks of nodes do not matter.

Source: protocols/bus/v1/spec.md, "Keys" and "Control".
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from wsgate.bus.publisher import CallDone, PublishOutcome
from wsgate.bus.script import LEASE, LEASES_PAGE, Caller

__all__ = ["MEMBER_LIMIT_BYTES", "hold_lease", "read_leases"]

MEMBER_LIMIT_BYTES: Final = 160
PAGE_MEMBERS: Final = 64
PAGES_MOST: Final = 256
"""The most pages that `read_leases` requests: 16,384 members."""


def hold_lease(caller: Caller, key: bytes, member: str, ttl_ms: int, done: CallDone) -> None:
    """Renew the lease of one member of a set, or delete the lease.

    Args:
        caller: A `Publisher` or `ClusterPublisher`.
        key: The key of the set.
        member: The member, at most `MEMBER_LIMIT_BYTES`, without line feeds.
        ttl_ms: How long the lease runs, in milliseconds; 0 deletes the lease.
        done: Called once, later, as by `Publisher.call`.
    """
    LEASE.run(caller, key, (member.encode(), b"%d" % ttl_ms), done)


def read_leases(caller: Caller, key: bytes, done: Callable[[PublishOutcome, frozenset[str]], None]) -> None:
    """Read all members of a set whose lease has not expired, one page of 64 members at a time.

    Args:
        caller: A `Publisher` or `ClusterPublisher`.
        key: The key of the set.
        done: Called once, later, with `""` and the members, or with the reason of the failure and an empty
            set.
    """
    _read_page(caller, key, 0, frozenset(), done)


def _read_page(
    caller: Caller,
    key: bytes,
    page: int,
    found: frozenset[str],
    done: Callable[[PublishOutcome, frozenset[str]], None],
) -> None:
    """Request one page of members; `found` has the members of earlier pages."""
    numbers = (page * PAGE_MEMBERS, PAGE_MEMBERS, MEMBER_LIMIT_BYTES)
    on_page = partial(_on_page, caller, key, page, found, done)
    LEASES_PAGE.run(caller, key, tuple(b"%d" % each for each in numbers), on_page)


def _on_page(
    caller: Caller,
    key: bytes,
    page: int,
    found: frozenset[str],
    done: Callable[[PublishOutcome, frozenset[str]], None],
    outcome: PublishOutcome,
    text: bytes,
) -> None:
    """Add the members of a page, and request the next page or report the result."""
    if outcome:
        done(outcome, frozenset())
        return
    members = text.decode("utf-8", "replace").split("\n") if text else []
    found |= frozenset(filter(None, members))
    if len(members) < PAGE_MEMBERS or page + 1 >= PAGES_MOST:
        done("", found)
    else:
        _read_page(caller, key, page + 1, found, done)
