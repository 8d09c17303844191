"""Check the BPF program that distributes connections over shards, interpreted here and run by the kernel."""

import errno
import random
import socket
import struct
from collections import Counter

import pytest

from wsgate.errors import SettingsError
from wsgate.node.listeners import open_group, refuse_waiting, steer, steering_program, when_free
from wsgate.reactor import ListenerOptions

DEALS = 4_000
QUICK = ListenerOptions(defer_accept_s=0)


def run_program(program: bytes, drawn: int) -> int:
    """Return the result of a classic BPF program when the random number is `drawn`."""
    steps = [struct.unpack_from("=HBBI", program, place) for place in range(0, len(program), 8)]
    place, value = 0, 0
    while True:
        code, if_true, if_false, operand = steps[place]
        place += 1
        if code == 0x20:
            value = drawn
        elif code == 0x94:
            value %= operand
        elif code == 0x35:
            place += if_true if value >= operand else if_false
        elif code == 0x06:
            return int(operand)
        else:
            raise AssertionError(f"unknown instruction {code:#x}")


@pytest.mark.parametrize(
    "weights", [[1], [1, 1], [5, 0, 5], [0, 0, 7], [0, 0], [1, 1_000_000], [20_000] * 64, [3, 2, 1, 0, 4]]
)
def test_steering_program_distributes_connections_in_proportion_to_the_weights(weights: list[int]) -> None:
    chance = random.Random(7)
    dealt = Counter(run_program(steering_program(weights), chance.getrandbits(32)) for _ in range(DEALS))
    wanted = weights if any(weights) else [1] * len(weights)
    for number, weight in enumerate(wanted):
        share = weight / sum(wanted)
        spread = 5 * (DEALS * share * (1 - share)) ** 0.5
        assert abs(dealt[number] - DEALS * share) <= spread + 1
        assert weight or not dealt[number]


def waiting(group: list[socket.socket]) -> list[int]:
    """Accept all queued connections and return how many each listener had."""
    counts = []
    for listener in group:
        count = 0
        while True:
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                break
            count += 1
        counts.append(count)
    return counts


def test_kernel_gives_connections_only_to_listeners_with_a_weight() -> None:
    group = open_group("127.0.0.1", 0, 3, QUICK)
    port = group[0].getsockname()[1]
    try:
        for weights in ([0, 5, 0], [1, 1, 0], [0, 0, 9]):
            steer(group[0], weights)
            clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
            counts = waiting(group)
            for client in clients:
                client.close()
            assert sum(counts) == 60
            assert [count > 0 for count in counts] == [weight > 0 for weight in weights]
    finally:
        for listener in group:
            listener.close()


def test_opening_a_port_in_use_raises_a_settings_error_with_the_address() -> None:
    group = open_group("127.0.0.1", 0, 2, QUICK)
    port = group[0].getsockname()[1]
    try:
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}: the port is in use"):
            open_group("127.0.0.1", port, 1, QUICK)
    finally:
        for listener in group:
            listener.close()


def test_connections_queued_at_an_unserved_listener_are_answered_503() -> None:
    group = open_group("127.0.0.1", 0, 1, QUICK)
    try:
        clients = [socket.create_connection(group[0].getsockname()) for _ in range(70)]
        for client in clients[:60]:  # the others have sent nothing yet
            client.sendall(b"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n")
        assert refuse_waiting(group[0]) == 64
        assert refuse_waiting(group[0]) == 6
        for client in clients:
            client.settimeout(5)
            answer = client.recv(1_000)
            assert answer.startswith(b"HTTP/1.1 503 ") and b"Retry-After: " in answer
            client.close()
        assert refuse_waiting(group[0]) == 0
    finally:
        group[0].close()


def test_opening_is_retried_until_the_port_is_free() -> None:
    tries = iter([OSError(errno.EADDRINUSE, "in use")] * 3)

    def open_it() -> str:
        for error in tries:
            raise error
        return "open"

    assert when_free(open_it, within_s=60) == "open"


def test_opening_is_not_retried_for_other_errors_nor_after_the_time_limit() -> None:
    tries: list[int] = []

    def refuse(number: int) -> None:
        tries.append(number)
        raise OSError(number, "refused")

    with pytest.raises(PermissionError):
        when_free(lambda: refuse(errno.EACCES), within_s=0.5)
    assert tries == [errno.EACCES]
    with pytest.raises(OSError, match="refused"):
        when_free(lambda: refuse(errno.EADDRINUSE), within_s=0.1)


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_invalid_host_raises_a_settings_error_with_the_host(host: str) -> None:
    with pytest.raises(SettingsError, match=host):
        open_group(host, 0, 1, QUICK)


def test_group_of_ipv6_listeners_shares_one_port_and_obeys_the_weights() -> None:
    group = open_group("::1", 0, 3, QUICK)
    try:
        assert len({listener.getsockname()[1] for listener in group}) == 1
        steer(group[0], [0, 1, 0])
        clients = [socket.create_connection(group[0].getsockname()[:2]) for _ in range(20)]
        counts = waiting(group)
        for client in clients:
            client.close()
        assert counts == [0, 20, 0]
    finally:
        for listener in group:
            listener.close()
