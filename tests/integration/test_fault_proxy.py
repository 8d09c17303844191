"""The fault proxy does to a stream what it was told, the same for the same seed."""

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
    """A client whose bytes come back through the proxy."""
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


def heard(client: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := client.recv(size - len(data))):
        data += piece
    return bytes(data)


def corrupted(seed: int) -> bytes:
    with echo(seed) as (proxy, client):
        proxy.faults.corrupt_chance = 1.0
        client.sendall(b"a" * 100)
        return heard(client, 100)


def test_slices_and_delays_change_nothing_but_time() -> None:
    with echo() as (proxy, client):
        proxy.faults.slice_bytes, proxy.faults.delay_s, proxy.faults.jitter_s = 7, 0.01, 0.02
        client.sendall(TEXT)
        assert heard(client, len(TEXT)) == TEXT


def test_a_rate_is_kept() -> None:
    with echo() as (proxy, client):
        proxy.faults.rate_bytes_per_s = 20 * len(TEXT)
        began_s = time.monotonic()
        client.sendall(TEXT)
        assert heard(client, len(TEXT)) == TEXT
        assert time.monotonic() - began_s >= 0.05, "a floor that no machine can be too slow for"


def test_one_bit_is_corrupted_the_same_for_the_same_seed() -> None:
    one, same, other = corrupted(3), corrupted(3), corrupted(4)
    assert one == same != other
    assert sum((a ^ ord("a")).bit_count() for a in one) == 1


def test_a_half_closed_stream_ends_for_the_client_only() -> None:
    with echo() as (proxy, client):
        client.sendall(b"before")
        assert heard(client, 6) == b"before"
        proxy.half_close_all()
        assert client.recv(10) == b""
        client.sendall(b"it still takes what is said")
