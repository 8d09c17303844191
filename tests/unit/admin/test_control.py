"""Check which replies a call of the control API waits for, and its error when a shard has not confirmed."""

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

import pytest

from wsgate.admin.control import Controller, Unreached
from wsgate.bus import BusPublisher, Names

NAMES = Names("wsgate")


class Bus:
    """Answer the calls of a controller: leases by key, and the effects of each published command."""

    def __init__(self) -> None:
        self.leases: dict[bytes, set[str]] = {NAMES.shards(): {"a/0", "a/1", "b/0"}}
        self.published: list[dict[str, Any]] = []
        self.outcomes: dict[str, str] = {}
        self.stored = 0
        self.removed: list[int] = []
        self.replying = {"a/0", "a/1", "b/0"}

    def publish(self, name: bytes, data: bytes, done: Callable[[str], None]) -> None:
        command = json.loads(data)
        self.published.append(command)
        self.leases[NAMES.replies(command["request"])] = set(self.replying)
        done(self.outcomes.get("publish", ""))

    def call(self, key: bytes, command: bytes, done: Callable[[str, bytes], None]) -> None:
        if key == NAMES.revoked() and b"ZREM" in command:
            self.removed.append(len(self.published))
            done(self.outcomes.get("remove", ""), b"1")
            return
        if key == NAMES.revoked():
            assert not self.published, "a revocation is stored before it is published"
            self.stored += 1
            done(self.outcomes.get("store", ""), b"0")
            return
        outcome = self.outcomes.get("read", "")
        done(outcome, b"" if outcome else "\n".join(sorted(self.leases.get(key, ()))).encode())


def send(bus: Bus, command: dict[str, object], own: tuple[str, ...] = ("a/0", "a/1")) -> None:
    controller = Controller(cast(BusPublisher, bus), NAMES, lambda: own, wait_s=0.05)
    asyncio.run(controller.send(command))


def test_call_succeeds_when_every_known_shard_has_replied() -> None:
    bus = Bus()
    send(bus, {"op": "disconnect", "user": "ann"})
    assert [command["op"] for command in bus.published] == ["disconnect"]
    assert bus.stored == 0


@pytest.mark.parametrize("silent", ["a/1", "b/0"])
def test_error_names_the_shard_that_does_not_reply(silent: str) -> None:
    bus = Bus()
    bus.replying.discard(silent)
    with pytest.raises(Unreached, match=silent) as raised:
        send(bus, {"op": "refresh", "user": "ann", "within_s": 3})
    assert raised.value.shards == (silent,)


def test_call_waits_for_an_own_shard_that_is_no_member_on_the_bus() -> None:
    """The lease of the shard ran out while the shard was stopped, and the shard still has connections."""
    bus = Bus()
    bus.leases[NAMES.shards()].discard("a/1")
    bus.replying.discard("a/1")
    with pytest.raises(Unreached, match="a/1"):
        send(bus, {"op": "disconnect", "user": "ann"})


def test_revocation_is_stored_before_it_is_published() -> None:
    bus = Bus()
    send(bus, {"op": "revoke", "user": "ann", "before": 5.0, "within_s": 0})
    assert bus.stored == 1


@pytest.mark.parametrize(
    ("step", "outcome", "says"),
    [
        ("store", "down", "not stored"),
        ("store", "unknown", "may have been executed"),
        ("publish", "down", "not published"),
        ("read", "refused", "cannot be read"),
    ],
)
def test_error_of_the_bus_names_the_failed_step(step: str, outcome: str, says: str) -> None:
    bus = Bus()
    bus.outcomes[step] = outcome
    with pytest.raises(Unreached, match=says):
        send(bus, {"op": "revoke", "user": "ann", "before": 5.0})


def test_error_names_at_most_20_silent_shards_and_counts_the_rest() -> None:
    bus = Bus()
    bus.leases[NAMES.shards()] = {f"n{number}/0" for number in range(30)}
    with pytest.raises(Unreached, match="and 10 more") as raised:
        send(bus, {"op": "disconnect", "user": "ann"}, own=())
    assert len(raised.value.shards) == 30


def test_revocation_is_removed_before_and_after_the_unrevoke_command() -> None:
    """A shard that still knows the revocation may store it again in between."""
    bus = Bus()
    send(bus, {"op": "unrevoke", "user": "ann"})
    assert bus.removed == [0, 1]
