"""Check that the fault proxy causes the chosen faults, and the same ones for the same seed."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.fault_proxy import FaultProxy, fault_proxy

WITHIN_S = 10.0
TEXT = bytes(range(256)) * 40


@contextmanager
def echo(seed: int = 1) -> Iterator[tuple[FaultProxy, socket.socket]]:
    """Connect a client through the proxy to a server that returns its bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            server, _ = listener.accept()
            with server, contextlib.suppress(OSError):
                while data := server.recv(65_536):
                    server.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        with (
            fault_proxy("127.0.0.1", listener.getsockname()[1], seed=seed) as proxy,
            socket.create_connection(("127.0.0.1", proxy.port), WITHIN_S) as client,
        ):
            client.settimeout(WITHIN_S)
            yield proxy, client


def received(client: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := client.recv(size - len(data))):
        data += piece
    return bytes(data)


def corrupted(seed: int) -> bytes:
    with echo(seed) as (proxy, client):
        proxy.faults.corrupt_chance = 1.0
        client.sendall(b"a" * 100)
        return received(client, 100)


def test_proxy_with_slices_and_delays_changes_no_byte() -> None:
    with echo() as (proxy, client):
        proxy.faults.slice_bytes, proxy.faults.delay_s, proxy.faults.jitter_s = 7, 0.01, 0.02
        client.sendall(TEXT)
        assert received(client, len(TEXT)) == TEXT


def test_proxy_with_a_rate_takes_at_least_the_time_of_that_rate() -> None:
    with echo() as (proxy, client):
        proxy.faults.rate_bytes_per_s = 20 * len(TEXT)
        began_s = time.monotonic()
        client.sendall(TEXT)
        assert received(client, len(TEXT)) == TEXT
        assert time.monotonic() - began_s >= 0.05, "the stream was faster than the rate"


def test_proxy_corrupts_one_bit_which_depends_only_on_the_seed() -> None:
    one, same, other = corrupted(3), corrupted(3), corrupted(4)
    assert one == same != other
    assert sum((a ^ ord("a")).bit_count() for a in one) == 1


def test_proxy_half_close_ends_the_stream_to_the_client_only() -> None:
    with echo() as (proxy, client):
        client.sendall(b"before")
        assert received(client, 6) == b"before"
        proxy.half_close_all()
        assert client.recv(10) == b""
        client.sendall(b"the proxy still accepts bytes")
