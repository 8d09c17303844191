"""The attacks: what each makes the gateway keep in memory, and how it ends.

An attack is a context manager: inside its block the gateway keeps as much as the attack can cause, and after
the block the attack's clients have disconnected. F5, F8, F11 and F14 are names of faults that were found
earlier.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import jwt
import redis

from loadtest.experiments.attack_memory.crowd import BROKEN, Client, Crowd, command
from loadtest.experiments.attack_memory.scale import FRESH_S
from loadtest.harness.gateway import SECRET, GatewayProcess
from wsgate.auth.cache import AGE_LIMIT_S

__all__ = ["ATTACKS", "Attack", "Stage"]

STREAM: Final = "wsgate:events:0"
KEPT: Final = 2_000
NAMES: Final = 127
NAME_BYTES: Final = 200
DEAF_BYTES: Final = 14_000
SLICE: Final = 100
SLICE_S: Final = 0.1
"""So many publications are sent at once, followed by this pause: a burst of all would be more than the bus
keeps."""
SMALL_WINDOW_BYTES: Final = 1_024
PATTERNS: Final = 256
GOOD: Final = 20
BATCH: Final = 40


class Stage(NamedTuple):
    """The gateway of an attack, its duration, and the share of its full size."""

    gateway: GatewayProcess
    seconds: float
    share: float

    def size(self, whole: int) -> int:
        """Return this number reduced to the share, at least 1."""
        return max(1, int(whole * self.share))


class Attack(NamedTuple):
    """One attack on the memory of a gateway, and the function that runs it.

    Attributes:
        text: A text that names the attack.
        drive: Runs the attack; yields a list of faults that were found, a sentence each.
        settings: Further configuration, by section.
        return_s: How many seconds the accounts may take to return afterwards.
    """

    text: str
    drive: Callable[[Stage], contextlib.AbstractContextManager[list[str]]]
    settings: dict[str, str]
    return_s: float = 60.0


def token(user: str, **claims: object) -> str:
    """Return a token of a user, with further claims."""
    now_s = int(time.time())
    return jwt.encode({"sub": user, "iat": now_s, "exp": now_s + 3_600, **claims}, SECRET, algorithm="HS256")


def tokens(stem: str, count: int) -> list[str]:
    """Return a token for each of so many users."""
    return [token(f"{stem}-{number}") for number in range(count)]


# --- F5: channel names on the private bus ---------------------------------------------------------------


def answers(client: Client, most: int, seconds: float = 60.0) -> list[dict[str, object]]:
    """Receive until so many replies with an id have arrived."""
    until_s = time.monotonic() + seconds
    while True:
        found = [said for said in map(json.loads, client.said) if "id" in said]
        if len(found) >= most or time.monotonic() > until_s or not client.is_open:
            client.said.clear()
            return found
        client.receive()


@contextlib.contextmanager
def fill_bus_with_names(stage: Stage) -> Iterator[list[str]]:
    """Subscribe 800 clients to 127 names each, while messages with the reply `ok` wait for a backend."""
    faults: list[str] = []
    with Crowd(stage.gateway.port) as crowd, Crowd(stage.gateway.port) as senders:
        [sender] = senders.open(tokens("sender", 1))
        for first in range(0, KEPT, BATCH):
            for number in range(first, first + BATCH):
                sender.send(command(op="send", data=f"{number} " + "m" * 200, id=number))
            answers(sender, BATCH)
        with redis.Redis(unix_socket_path=stage.gateway.bus_path) as bus:
            before = bus.xlen(STREAM)
            until_s = time.monotonic() + stage.seconds
            place = 0
            while place < stage.size(800) or time.monotonic() < until_s:
                if place < stage.size(2_400):
                    for client in crowd.open(tokens(f"names-{place}", 20)):
                        client.send(b"".join(_names(f"{place}-{id(client)}")))
                crowd.receive()
                for client in crowd.clients:
                    client.said.clear()
                place += 20
            crowd.receive(1.0)
            kept = bus.xlen(STREAM)
        if kept < before or before < KEPT:
            faults.append(f"{before - kept} messages of {before} that were answered ok are gone")
        yield faults


def _names(stem: str) -> Iterator[bytes]:
    for number in range(NAMES):
        yield command(op="sub", ch=f"{stem}-{number}-".ljust(NAME_BYTES, "x"), id=number)


# --- F8: a bus that is stopped --------------------------------------------------------------------------


def churn_while_bus_stands_still(
    clients: int,
) -> Callable[[Stage], contextlib.AbstractContextManager[list[str]]]:
    """Return an attack whose clients subscribe to new names and unsubscribe while the bus is stopped."""

    @contextlib.contextmanager
    def drive(stage: Stage) -> Iterator[list[str]]:
        faults: list[str] = []
        with Crowd(stage.gateway.port) as crowd, Crowd(stage.gateway.port) as good:
            good.open(tokens("good", GOOD))
            crowd.open(tokens("restless", clients))
            crowd.receive(1.0)
            os.kill(stage.gateway.bus_pid, signal.SIGSTOP)
            try:
                _churn(crowd, stage.seconds)
                faults += _unanswered(good)
                yield faults
            finally:
                os.kill(stage.gateway.bus_pid, signal.SIGCONT)
            crowd.receive(1.0)

    return drive


def _churn(crowd: Crowd, seconds: float) -> None:
    until_s, turn = time.monotonic() + seconds, 0
    while time.monotonic() < until_s:
        turn += 1
        for place, client in enumerate(crowd.clients):
            if len(client.unsent) > 1 << 16:
                continue
            names = [f"{place}-{turn}-{number}".ljust(NAME_BYTES, "y") for number in range(BATCH)]
            subs = [command(op="sub", ch=name, id=1) for name in names]
            leaves = [command(op="unsub", ch=name, id=2) for name in names]
            # In pairs a name is unsubscribed before it is sent to the bus; in halves all names are sent
            # first.
            both = [part for pair in zip(subs, leaves, strict=True) for part in pair]
            client.send(b"".join(both if turn % 2 else subs + leaves))
        crowd.receive()
        for client in crowd.clients:
            client.said.clear()


def _unanswered(good: Crowd) -> list[str]:
    """Send a ping from every good client; return a sentence if some have no reply."""
    for client in good.clients:
        client.said.clear()
        client.send(command(op="ping", id=7))
    silent = sum(not answers(client, 1, 30.0) for client in good.clients)
    return [f"{silent} good clients were not answered"] if silent else []


# --- F11: peers that do not read ------------------------------------------------------------------------


@contextlib.contextmanager
def close_peers_that_do_not_read(stage: Stage) -> Iterator[list[str]]:
    """Send 14 KB to each of 3,000 peers with a tiny window, which then violate the protocol; repeat.

    The memory is measured for the last wave, before its peers violate the protocol.
    """
    faults: list[str] = []
    until_s, wave = time.monotonic() + stage.seconds, 0
    with redis.Redis(unix_socket_path=stage.gateway.bus_path) as bus:
        while True:
            wave += 1
            with Crowd(stage.gateway.port, receive_buffer_bytes=SMALL_WINDOW_BYTES) as crowd:
                count = stage.size(3_000)
                crowd.open(tokens(f"deaf-{wave}", count))
                time.sleep(FRESH_S)
                _await(lambda: stage.gateway.metric("subscriptions_pending") == 0)
                for first in range(0, count, SLICE):
                    _publish(bus, [f"@deaf-{wave}-{number}" for number in range(first, first + SLICE)])
                    time.sleep(SLICE_S)
                is_last = time.monotonic() >= until_s
                if is_last:
                    time.sleep(6.0)  # a shard reads the kernel's numbers of sockets that are not full in turn
                    yield faults
                for client in crowd.clients:
                    client.send(BROKEN)
                _await(lambda: stage.gateway.metric("connections_held") == 0)
            if is_last:
                return


def _publish(bus: redis.Redis, channels: list[str]) -> None:
    pipe = bus.pipeline(transaction=False)
    for channel in channels:
        pipe.publish(f"wsgate:ch:{channel}", b"x" * DEAF_BYTES)
    pipe.execute()


def _await(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    until_s = time.monotonic() + seconds
    while not is_so() and time.monotonic() < until_s:
        time.sleep(0.3)


# --- F14: permission sets -------------------------------------------------------------------------------


@contextlib.contextmanager
def come_and_go_with_many_patterns(stage: Stage) -> Iterator[list[str]]:
    """Connect 2,500 clients whose tokens have 256 patterns that no other has; then as many others; repeat."""
    until_s, wave = time.monotonic() + stage.seconds, 0
    while True:
        wave += 1
        with Crowd(stage.gateway.port) as crowd:
            for first in range(0, stage.size(2_500), 100):
                users = [f"rich-{wave}-{number}" for number in range(first, first + 100)]
                crowd.open([_rich(user) for user in users])
                crowd.receive()
            is_last = time.monotonic() >= until_s
            if is_last:
                yield []
        if is_last:
            return


def _rich(user: str) -> str:
    patterns = [f"{user}:{number}:*" for number in range(PATTERNS)]
    half = PATTERNS // 2
    return token(user, subscribe=patterns[:half], publish=patterns[half:])


_STILL: Final = {"bus": 'command_timeout = "60s"'}
ATTACKS: Final = {
    "F5": [
        Attack("names that fill the private bus", fill_bus_with_names, {"events": 'enabled = ["message"]'})
    ],
    "F8": [
        Attack(f"{count} clients, bus stopped", churn_while_bus_stands_still(count), _STILL)
        for count in (8, 16)
    ],
    "F11": [
        Attack(
            "closed peers that do not read",
            close_peers_that_do_not_read,
            {"limits": 'write_timeout = "10m"', "heartbeat": 'ping_interval = "10m"'},
        )
    ],
    "F14": [Attack("sets of 256 patterns", come_and_go_with_many_patterns, {}, AGE_LIMIT_S + 90.0)],
}
