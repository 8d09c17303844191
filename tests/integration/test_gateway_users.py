"""Check the limits of one user on all nodes of a bus: connections and messages (A4)."""

import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import redis

from tests.support.attack_rig import fresh_counters, make_token, nodes, scrape, shard_pid
from tests.support.frames import TEXT, client_frame
from tests.support.gateway import Gateway, wait_until
from tests.support.raw_client import LIMIT_S, RawClient, bearer, request
from tests.support.valkey import Valkey, running_valkey

pytestmark = pytest.mark.slow

REPLACE: Final = "[admission]\nper_user_connections = 2\n"
REFUSE: Final = REPLACE + 'per_user_policy = "refuse"\n'
RATE: Final = 20


class Bus(NamedTuple):
    """The bus server of both nodes."""

    server: Valkey

    def ask(self, *command: str) -> Any:
        """Send a command to the bus and return its reply."""
        with redis.Redis(port=self.server.port, decode_responses=True) as connection:
            return connection.execute_command(*command)


@contextlib.contextmanager
def two_nodes(directory: Path, settings: str) -> Iterator[tuple[Bus, Gateway, Gateway]]:
    with ExitStack() as stack:
        bus = Bus(stack.enter_context(running_valkey()))
        one, two = stack.enter_context(nodes(directory, bus.server.url, settings))
        yield bus, one, two


def enter(stack: ExitStack, gateway: Gateway, user: str = "ann") -> RawClient:
    return stack.enter_context(RawClient.welcomed(gateway, make_token(user)))


def is_open(client: RawClient) -> bool:
    client.say(op="ping", id=9)
    return client.hear_answer(9) == {"op": "pong", "id": 9}


def test_connection_over_the_user_limit_replaces_the_oldest_one_on_any_node(tmp_path: Path) -> None:
    with two_nodes(tmp_path, REPLACE) as (bus, one, two), ExitStack() as stack:
        first, second = enter(stack, one), enter(stack, two)
        other = enter(stack, one, "bob")
        third = enter(stack, two)
        ending = first.ending()
        assert ending.code == 4509
        assert ending.bye["reason"] == "replaced"
        assert ending.bye["reconnect"] is False
        fourth = enter(stack, one)
        assert second.ending().code == 4509
        assert is_open(third)
        assert is_open(fourth)
        assert is_open(other)
        wait_until("two are registered", lambda: bus.ask("ZCARD", "wsgate:user:ann") == 2, LIMIT_S)
        # A connection that closes makes room and leaves no entry.
        third.sock.close()
        wait_until("one is registered", lambda: bus.ask("ZCARD", "wsgate:user:ann") == 1, LIMIT_S)
        enter(stack, two)
        assert is_open(fourth)
        other.sock.close()
        wait_until("its entry is deleted", lambda: bus.ask("EXISTS", "wsgate:user:bob") == 0, LIMIT_S)


def test_registration_time_of_a_connection_is_that_of_the_bus_clock(tmp_path: Path) -> None:
    """With the clock of the node, a new connection on a node whose clock is slow would be the oldest."""
    with two_nodes(tmp_path, REPLACE) as (bus, one, _), ExitStack() as stack:
        before = bus.ask("TIME")
        enter(stack, one)
        after = bus.ask("TIME")
        [(_, came_us)] = bus.ask("ZRANGE", "wsgate:user:ann", "0", "-1", "WITHSCORES")
        began_us, ended_us = (int(seconds) * 1_000_000 + int(rest) for seconds, rest in (before, after))
        assert began_us < int(came_us) < ended_us


def test_connection_over_the_user_limit_is_closed_4029_with_the_policy_refuse(tmp_path: Path) -> None:
    with two_nodes(tmp_path, REFUSE) as (bus, one, two), ExitStack() as stack:
        first, second = enter(stack, one), enter(stack, two)
        late = stack.enter_context(RawClient(two))
        assert late.ask(request(headers=[bearer(make_token("ann"))])).status == 101
        ending = late.ending()
        assert ending.code == 4029
        assert [each["op"] for each in ending.messages] == ["bye"], "the connection was welcomed"
        assert ending.bye["reason"] == "user_connections"
        assert ending.bye["reconnect"] is True
        assert is_open(first)
        assert bus.ask("ZCARD", "wsgate:user:ann") == 2
        second.sock.close()
        wait_until("there is room", lambda: bus.ask("ZCARD", "wsgate:user:ann") == 1, LIMIT_S)
        assert is_open(enter(stack, one))


def test_connections_of_a_killed_shard_do_not_count_for_the_user_limit(tmp_path: Path) -> None:
    """Otherwise the user would be refused for as long as the entries of the dead shard exist."""
    with two_nodes(tmp_path, REFUSE) as (bus, one, two), ExitStack() as stack:
        enter(stack, two), enter(stack, two)
        [gone] = {each.partition("@")[2] for each in bus.ask("ZRANGE", "wsgate:user:ann", "0", "-1")}
        wait_until("its liveness key exists", lambda: bus.ask("TTL", f"wsgate:alive:{gone}") > 0, LIMIT_S)
        os.kill(shard_pid(two), signal.SIGKILL)
        # The killed shard could not delete its liveness key; its successor does.
        wait_until(
            "its liveness key is deleted", lambda: not bus.ask("EXISTS", f"wsgate:alive:{gone}"), LIMIT_S
        )
        assert is_open(enter(stack, one))
        assert is_open(enter(stack, one))
        assert bus.ask("ZCARD", "wsgate:user:ann") == 2


def test_connections_without_the_bus_are_accepted_and_registered_when_it_returns(tmp_path: Path) -> None:
    with two_nodes(tmp_path, REFUSE) as (bus, one, _), ExitStack() as stack:
        bus.server.stop()
        wait_until("the bus is down", lambda: scrape(one)['wsgate_bus_up{shard="0"}'] == 0, LIMIT_S)
        clients = [stack.enter_context(RawClient(one)) for _ in range(3)]
        for client in clients:
            assert client.ask(request(headers=[bearer(make_token("ann"))])).status == 101
            assert client.hear()["op"] == "welcome"
        name = 'wsgate_limits_unchecked_total{limit="connections"}'
        wait_until("they are counted", lambda: scrape(one)[name] == 3, LIMIT_S)
        bus.server.restart()
        # The shard registers its open connections again, and closes none of them.
        wait_until("they are registered", lambda: bus.ask("ZCARD", "wsgate:user:ann") == 3, LIMIT_S)
        assert all(map(is_open, clients))


def test_connection_limit_of_a_user_holds_while_the_memory_of_the_bus_is_full(tmp_path: Path) -> None:
    """A full bus neither disables the limit nor refuses other users."""
    with two_nodes(tmp_path, REFUSE) as (bus, one, two), ExitStack() as stack:
        bus.ask("SET", "filled", "x" * 4_000_000)
        bus.ask("CONFIG", "SET", "maxmemory", "2mb")
        clients = [enter(stack, one), enter(stack, two)]
        late = stack.enter_context(RawClient(two))
        assert late.ask(request(headers=[bearer(make_token("ann"))])).status == 101
        assert late.ending().bye["reason"] == "user_connections"
        assert is_open(enter(stack, one, "bob"))
        assert all(map(is_open, clients))
        assert bus.ask("ZCARD", "wsgate:user:ann") == 2
        name = 'wsgate_limits_unchecked_total{limit="connections"}'
        assert fresh_counters(one)[name] == fresh_counters(two)[name] == 0


def test_message_rate_of_a_user_counts_its_connections_on_all_nodes(tmp_path: Path) -> None:
    settings = f"[admission]\nper_user_rate = {RATE}\n"
    with two_nodes(tmp_path, settings) as (_, one, two), ExitStack() as stack:
        speakers = [enter(stack, node) for node in (one, two)]
        other = enter(stack, one, "bob")
        began_s = time.monotonic()
        command = b'{"op":"pub","id":%d,"ch":"open:1","data":1}'
        asked = 0
        while time.monotonic() < began_s + 3.0:
            asked += 1
            for client in speakers:
                client.sock.sendall(client_frame(TEXT, command % asked))
            time.sleep(0.005)
        done, limited = 0, 0
        for client in speakers:
            # A refusal may arrive before the answer of an earlier command that waits for the bus.
            answers: dict[int, dict[str, Any]] = {}
            while len(answers) < asked:
                said = client.hear()
                answers[said["id"]] = said
            assert sorted(answers) == [*range(1, asked + 1)]
            for answer in answers.values():
                done += answer["op"] == "ok"
                if answer["op"] == "err":
                    assert answer["error"] == "rate_limited"
                    assert answer["code"] == 429
                    assert answer["retry_ms"] > 0
                    limited += 1
        took_s = time.monotonic() - began_s
        assert done + limited == 2 * asked
        # The burst of one second, the rate, and the credit that two shards may have in advance.
        assert done <= RATE * (took_s + 1) + 2 * (RATE // 8 + 1)
        assert done >= RATE * 2
        assert is_open(other)
        assert all(map(is_open, speakers)), "a ping was counted as a message"


def test_commands_behind_the_head_of_a_refused_connection_are_not_executed(tmp_path: Path) -> None:
    """The commands are in one write with the head. They run only after the connection is admitted."""
    settings = REFUSE.replace("= 2", "= 1")
    with two_nodes(tmp_path, settings) as (_, one, two), ExitStack() as stack:
        bob = enter(stack, one, "bob")
        bob.say(op="sub", ch="open:1", id=1)
        bob.hear_answer(1)
        spoken = b"".join(
            client_frame(TEXT, b'{"op":"pub","id":%d,"ch":"open:1","data":%d}' % (number, number))
            for number in range(2, 12)
        )
        head = request(headers=[bearer(make_token("ann"))])
        ann = stack.enter_context(RawClient(two))
        ann.sock.sendall(head + spoken)
        assert ann.answer().status == 101
        assert ann.hear_answer(11)["op"] == "ok"
        assert [bob.hear()["data"] for _ in range(10)] == list(range(2, 12))
        late = stack.enter_context(RawClient(one))
        late.sock.sendall(head + spoken)
        assert late.answer().status == 101
        assert [each["op"] for each in late.ending().messages] == ["bye"]
        bob.say(op="ping", id=99)
        assert bob.hear() == {"op": "pong", "id": 99}, "a publication of the refused connection was delivered"


def test_connection_that_closes_while_the_bus_is_registering_it_leaves_no_entry(tmp_path: Path) -> None:
    """The answer to the head waits for the bus; the commands behind the head run after it."""
    with two_nodes(tmp_path, REFUSE) as (bus, one, _), ExitStack() as stack:
        bus.server.process.send_signal(signal.SIGSTOP)
        try:
            head = request(headers=[bearer(make_token("ann"))])
            gone, stays = (stack.enter_context(RawClient(one)) for _ in range(2))
            gone.sock.sendall(head)
            stays.sock.sendall(head + client_frame(TEXT, b'{"op":"ping","id":7}'))
            held = 'wsgate_connections{shard="0",state="deciding"}'
            wait_until("both wait for the bus", lambda: scrape(one)[held] == 2, LIMIT_S)
            gone.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone.sock.close()
            wait_until("one has closed", lambda: scrape(one)[held] == 1, LIMIT_S)
        finally:
            bus.server.process.send_signal(signal.SIGCONT)
        assert stays.answer().status == 101
        # The welcome waits for the inbox, the pong does not.
        assert {stays.hear()["op"] for _ in range(3)} == {"pong", "welcome", "subbed"}
        wait_until("one is registered", lambda: bus.ask("ZCARD", "wsgate:user:ann") == 1, LIMIT_S)
        enter(stack, one)


def test_connection_that_unsubscribes_its_inbox_is_still_registered_after_a_bus_restart(
    tmp_path: Path,
) -> None:
    with two_nodes(tmp_path, REPLACE) as (bus, one, _), ExitStack() as stack:
        clients = [enter(stack, one) for _ in range(2)]
        for client in clients:
            client.say(op="unsub", ch="@me", id=1)
            client.hear_answer(1)
        bus.server.restart()
        wait_until("they are registered", lambda: bus.ask("ZCARD", "wsgate:user:ann") == 2, LIMIT_S)
        assert all(map(is_open, clients))


def test_node_that_stops_unregisters_connections_that_do_not_close(tmp_path: Path) -> None:
    settings = REFUSE.replace("= 2", "= 1") + '[server]\ndrain_timeout = "1s"\n'
    with two_nodes(tmp_path, settings) as (_, one, two), ExitStack() as stack:
        gone = enter(stack, two)
        gone.answers_pings = False
        assert two.stop() in (0, 1)
        assert is_open(enter(stack, one))


def test_300_users_are_registered_again_after_a_bus_restart(tmp_path: Path) -> None:
    """They are more than one step of the registration, and one had begun when the bus stopped."""
    with two_nodes(tmp_path, REFUSE) as (bus, one, _), ExitStack() as stack:
        for number in range(300):
            enter(stack, one, f"user-{number}")
        bus.server.restart()

        def counted() -> int:
            return len(bus.ask("KEYS", "wsgate:user:*"))

        wait_until("all are registered", lambda: counted() == 300, LIMIT_S)


def test_foreign_entries_about_a_user_on_the_bus_refuse_no_connection(tmp_path: Path) -> None:
    """The entries are malformed members, keys of other types, and a time hours ahead."""
    settings = REFUSE + f"per_user_rate = {RATE}\n"
    with two_nodes(tmp_path, settings) as (bus, one, _), ExitStack() as stack:
        enter(stack, one, "bob")
        wait_until("a liveness key exists", lambda: bus.ask("KEYS", "wsgate:alive:*"), LIMIT_S)
        owner = bus.ask("KEYS", "wsgate:alive:*")[0].rpartition(":")[2]
        odd = [f"nothex{number}@{owner}" for number in range(8)]
        odd += [f"{number:016x}" for number in range(8)] + ["a b@c", "@", f"{'F' * 16}@{owner}"]
        for place, member in enumerate(odd):
            bus.ask("ZADD", "wsgate:user:ann", str(place), member)
        ahead_us = time.time_ns() // 1_000 + 7_200_000_000
        for value in (str(ahead_us), f"{ahead_us} {ahead_us}", "nonsense"):
            bus.ask("SET", "wsgate:rate:ann", value)
            with RawClient.welcomed(one, make_token("ann")) as ann:
                taken: list[str] = []
                wait_until("more than the credit is accepted", lambda: is_allowed(ann, taken), LIMIT_S)  # noqa: B023
            wait_until(
                "the entries of ann are deleted", lambda: bus.ask("ZCARD", "wsgate:user:ann") == 0, LIMIT_S
            )
        bus.ask("SET", "wsgate:user:cy", "text")
        bus.ask("LPUSH", "wsgate:rate:cy", "1")
        cy = enter(stack, one, "cy")
        assert is_open(cy)
        assert bus.ask("ZCARD", "wsgate:user:cy") == 1
        assert not [line for line in one.lines if "callback_failed" in line or "Traceback" in line]


def is_allowed(client: RawClient, taken: list[str]) -> bool:
    """Publish once more; return whether two seconds' worth was accepted, which is more than the credit."""
    client.say(op="pub", ch="open:1", data=1, id=1)
    taken += [op for op in [client.hear_answer(1)["op"]] if op == "ok"]
    return len(taken) >= 2 * RATE
