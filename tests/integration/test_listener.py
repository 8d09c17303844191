"""Check the options that an accepted socket inherits from the listener."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from wsgate.reactor import ListenerOptions, open_listener

NOTSENT_LOWAT = 25
DEFER_ACCEPT = 9
USER_TIMEOUT = 18


@contextmanager
def accepted(
    options: ListenerOptions | None = None, host: str = "127.0.0.1"
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Open a listener and one connection to it; the client sends first, because of deferred accept."""
    with open_listener(host, 0, options) as listener:
        listener.setblocking(True)
        listener.settimeout(5)
        with socket.create_connection(listener.getsockname()[:2]) as client:
            client.sendall(b"x")
            server, _ = listener.accept()
            with server:
                yield listener, server


def tcp(sock: socket.socket, option: int) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, option)


def test_accepted_socket_inherits_the_default_options_of_the_listener() -> None:
    """The kernel doubles the sizes of buffers; DEFER_ACCEPT is an option of the listener."""
    with accepted() as (listener, server):
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 32 * 1024
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 32 * 1024
        assert tcp(server, socket.TCP_NODELAY) != 0
        assert tcp(server, NOTSENT_LOWAT) == 16 * 1024
        assert tcp(server, USER_TIMEOUT) == 50_000
        assert tcp(listener, DEFER_ACCEPT) >= 1
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert not listener.get_inheritable()


def test_accepted_socket_inherits_every_chosen_option() -> None:
    """Every option that can be chosen arrives as chosen."""
    options = ListenerOptions(
        send_buffer_bytes=64 * 1024,
        receive_buffer_bytes=48 * 1024,
        not_sent_low_water_bytes=4096,
        no_delay=False,
        defer_accept_s=0,
        user_timeout_ms=12_345,
    )
    with accepted(options) as (listener, server):
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 128 * 1024
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 96 * 1024
        assert tcp(server, socket.TCP_NODELAY) == 0
        assert tcp(server, NOTSENT_LOWAT) == 4096
        assert tcp(server, USER_TIMEOUT) == 12_345
        assert tcp(listener, DEFER_ACCEPT) == 0


def test_option_of_zero_leaves_the_default_of_the_kernel() -> None:
    """A size or time of 0 sets nothing."""
    options = ListenerOptions(
        send_buffer_bytes=0, receive_buffer_bytes=0, not_sent_low_water_bytes=0, user_timeout_ms=0
    )
    with accepted(options) as (_, server):
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 64 * 1024
        assert tcp(server, USER_TIMEOUT) == 0


def test_accept_from_an_empty_queue_raises_instead_of_blocking() -> None:
    """The listener is not blocking."""
    with open_listener("127.0.0.1", 0) as listener, pytest.raises(BlockingIOError):
        listener.accept()


def test_deferred_accept_queues_a_connection_only_after_its_first_byte() -> None:
    """A connection without a byte is not in the queue yet."""
    with (
        open_listener("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        with pytest.raises(BlockingIOError):
            listener.accept()
        client.sendall(b"x")
        listener.setblocking(True)
        listener.settimeout(5)
        server, _ = listener.accept()
        server.close()


def test_ipv6_address_listens_on_ipv6_with_the_same_options() -> None:
    """The test is skipped where there is no IPv6 loopback."""
    try:
        probe = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 loopback here")
    probe.close()
    with accepted(host="::1") as (listener, server):
        assert listener.family == socket.AF_INET6
        assert tcp(server, NOTSENT_LOWAT) == 16 * 1024


def test_two_listeners_share_a_port_only_with_reuse_port_on_both() -> None:
    """Without it on one of them the second listener is refused."""
    shared = ListenerOptions(reuse_port=True)
    with open_listener("127.0.0.1", 0, shared) as first:
        port = first.getsockname()[1]
        open_listener("127.0.0.1", port, shared).close()
        with pytest.raises(OSError, match="Address already in use"):
            open_listener("127.0.0.1", port)
    with open_listener("127.0.0.1", 0) as alone, pytest.raises(OSError, match="Address already in use"):
        open_listener("127.0.0.1", alone.getsockname()[1], shared)


@pytest.mark.parametrize(("host", "port"), [("256.256.256.256", 0), ("192.0.2.1", 0)])
def test_listening_on_a_foreign_or_invalid_address_raises_os_error(host: str, port: int) -> None:
    """The address is malformed, or no interface has it."""
    with pytest.raises(OSError):
        open_listener(host, port)


def test_empty_host_listens_on_every_address() -> None:
    """A connection to the loopback address succeeds."""
    with open_listener("", 0, ListenerOptions(defer_accept_s=0)) as listener:
        socket.create_connection(("127.0.0.1", listener.getsockname()[1])).close()
