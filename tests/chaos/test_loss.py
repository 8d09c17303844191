"""Lose no publication without notice: each answered one arrives or is covered by a later `gap`."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
import redis
from websockets.exceptions import ConnectionClosed

from tests.support.bus_fleet import running_cluster
from tests.support.client import Client, connected
from tests.support.gateway import Gateway, running_gateway, wait_until
from tests.support.valkey import running_valkey

pytestmark = pytest.mark.slow

WITHIN_S: Final = 60.0
CHANNEL: Final = "room"
PAUSE_S: Final = 0.004
"""Pause between two publications of one publisher, so that several fall into each break."""
KILLS: Final = 20
EVERY_S: Final = 0.3


@dataclass
class Listener:
    """A subscriber that records all that arrives; a thread of its own reads."""

    client: Client
    arrived: set[str] = field(default_factory=set)
    twice: int = 0
    gaps: list[tuple[float, dict[str, Any]]] = field(default_factory=list)  # with the time of arrival
    ended: str = ""

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                item = self.client.receive(0.1)
            except TimeoutError:
                continue
            except ConnectionClosed as closed:
                self.ended = repr(closed)
                return
            if item["op"] == "gap":
                self.gaps.append((time.monotonic(), item))
            elif item["op"] == "msg":
                self.twice += item["data"] in self.arrived
                self.arrived.add(item["data"])

    def uncovered(self, answered: dict[str, float]) -> list[str]:
        """Return the answered publications that did not arrive and that no later gap covers."""
        last_s = self.gaps[-1][0] if self.gaps else 0.0
        return [text for text, at_s in answered.items() if text not in self.arrived and at_s > last_s]


@dataclass
class Traffic:
    """The publishers and subscribers of one channel, all active."""

    listeners: list[Listener]
    answered: dict[str, float] = field(default_factory=dict)  # with the time
    refused: int = 0
    others: list[dict[str, Any]] = field(default_factory=list)  # answers of any other kind
    stop: threading.Event = field(default_factory=threading.Event)
    silence: threading.Event = field(default_factory=threading.Event)  # set when the publishers must end

    def publish_from_client(self, client: Client) -> None:
        """Publish from a client, one after the other, and record the publications that are answered `ok`."""
        number = 0
        while not self.silence.is_set():
            number += 1
            text = f"client-{number}"
            client.send("pub", ch=CHANNEL, data=text, id=number)
            while (said := client.receive()).get("id") != number:
                pass
            if said["op"] == "ok":
                self.answered[text] = time.monotonic()
            elif said.get("error") == "unavailable" and said["retry_ms"] > 0:
                self.refused += 1
            else:
                self.others.append(said)
            time.sleep(PAUSE_S)

    def publish(self, publish: Callable[[str, str], object]) -> None:
        """Publish as a backend does, and record the publications that the bus accepts."""
        number = 0
        while not self.silence.is_set():
            number += 1
            text = f"backend-{number}"
            with contextlib.suppress(redis.RedisError):
                publish(f"wsgate:ch:{CHANNEL}", json.dumps(text))
                self.answered[text] = time.monotonic()
            time.sleep(PAUSE_S)

    @property
    def lost(self) -> int:
        return sum(text not in each.arrived for each in self.listeners for text in list(self.answered))

    def all_is_covered(self) -> bool:
        return not any(each.uncovered(self.answered) for each in self.listeners)


@contextlib.contextmanager
def traffic(
    gateway: Gateway, publish: Callable[[str, str], object] | None, listeners: int = 4
) -> Iterator[Traffic]:
    """Run traffic during the block; then wait until each answered publication arrived or is covered."""
    with connected(gateway.ws_url, listeners + 1) as (speaker, *others):
        for client in others:
            client.subscribe(CHANNEL)
        made = Traffic([Listener(client) for client in others])
        readers = [threading.Thread(target=each.run, args=(made.stop,)) for each in made.listeners]
        talkers = [threading.Thread(target=made.publish_from_client, args=(speaker,))]
        if publish is not None:
            talkers.append(threading.Thread(target=made.publish, args=(publish,)))
        for thread in (*readers, *talkers):
            thread.start()
        try:
            yield made
            made.silence.set()
            for thread in talkers:
                thread.join(WITHIN_S)
            wait_until("everything is covered", made.all_is_covered, WITHIN_S)
        finally:
            made.silence.set()
            made.stop.set()
            for thread in (*readers, *talkers):
                thread.join(WITHIN_S)
        assert [each.ended for each in made.listeners] == [""] * listeners
        assert made.others == []


def check_gaps(made: Traffic, breaks: int) -> None:
    """Assert that each gap is complete and of all channels, and that there is at most one per break."""
    for listener in made.listeners:
        assert listener.twice == 0
        assert 0 < len(listener.gaps) <= breaks
        for _, gap in listener.gaps:
            assert gap.keys() == {"op", "reason", "retry_ms"} and gap["reason"] == "bus"
            assert 0 <= gap["retry_ms"] <= 2_000


def test_bus_that_cuts_its_subscribers_twenty_times_causes_a_gap_for_every_loss() -> None:
    with running_valkey() as valkey, running_gateway("--redis", valkey.url) as gateway:
        backend, killer = redis.Redis(port=valkey.port), redis.Redis(port=valkey.port)
        with backend, killer, traffic(gateway, backend.publish) as made:
            kills = 0
            for _ in range(KILLS):
                time.sleep(EVERY_S)
                kills += killer.client_kill_filter(_type="pubsub")
            assert kills >= KILLS // 2
            gateway.await_ready()
        assert made.lost > 0, "no publication fell into a break"
        check_gaps(made, kills)
        told = sum(len(each.gaps) for each in made.listeners)
        wait_until(
            "every notice is counted",
            lambda: gateway.metric("wsgate_gaps_total", reason="bus") == told,
            WITHIN_S,
        )


def test_private_bus_that_is_killed_three_times_causes_a_gap_for_every_loss() -> None:
    kills = 3
    with running_gateway() as gateway, traffic(gateway, None) as made:
        for _ in range(kills):
            answered = len(made.answered)
            wait_until("it publishes", lambda: len(made.answered) > answered + 20, WITHIN_S)  # noqa: B023
            [bus] = gateway.children()["wsgate-bus"]
            os.kill(bus, signal.SIGKILL)
            wait_until("another bus", lambda: gateway.children().get("wsgate-bus", [bus]) != [bus], WITHIN_S)  # noqa: B023
            gateway.await_ready()
    check_gaps(made, kills)
    assert made.refused > 0, "no publish was refused while there was no bus"


def test_cluster_server_that_cuts_its_subscribers_causes_gaps_only_on_its_own_channels() -> None:
    with running_cluster() as cluster, running_gateway(environ={"WSGATE_BUS__URL": cluster.url}) as gateway:
        owner = cluster.owner_of(f"wsgate:ch:{CHANNEL}")
        elsewhere = next(
            name
            for name in (f"other:{number}" for number in range(1_000))
            if cluster.owner_of(f"wsgate:ch:{name}").port != owner.port
        )
        client = cluster.client()
        with connected(gateway.ws_url) as [other], owner.client() as killer:
            other.subscribe(elsewhere)
            with traffic(gateway, client.spublish, listeners=2) as made:
                for _ in range(3):
                    answered = len(made.answered)
                    wait_until("it publishes", lambda: len(made.answered) > answered + 20, WITHIN_S)  # noqa: B023
                    killer.client_kill_filter(_type="pubsub")
            assert all(each.gaps for each in made.listeners)
            other.send("ping", id=9)
            assert other.receive() == {"op": "pong", "id": 9}, "a gap for another server arrived"
