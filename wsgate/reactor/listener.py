"""Listening sockets, with the options every accepted socket inherits.

The options must be set before `listen`: the kernel copies them into a connection when the handshake
completes, not when it is accepted, so no system call per connection is spent on them.

Source: socket(7), tcp(7); Documentation/networking/ip-sysctl of the kernel for the buffer doubling.
"""

import socket
from typing import Final

from wsgate.reactor.settings import ListenerOptions

__all__ = ["open_listener"]

# Not in the socket module of every Python we support.
_TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
_TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", 18)
_TCP_DEFER_ACCEPT: Final = getattr(socket, "TCP_DEFER_ACCEPT", 9)


def open_listener(host: str, port: int, options: ListenerOptions | None = None) -> socket.socket:
    """A listening, non-blocking TCP socket whose connections inherit `options`.

    Args:
        host: An IPv4 or IPv6 address, or a name; empty means every address.
        port: 0 to 65535; 0 lets the kernel choose (see `getsockname`).
        options: Defaults to `ListenerOptions()`.

    Returns:
        The socket; the caller owns it.

    Raises:
        OSError: The address cannot be resolved, or not be bound.
    """
    chosen = options or ListenerOptions()
    family, _, _, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        _set_options(listener, chosen)
        listener.bind(address)
        listener.listen(chosen.backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def _set_options(listener: socket.socket, options: ListenerOptions) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if options.reuse_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if options.send_buffer_bytes:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer_bytes)
    if options.receive_buffer_bytes:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.receive_buffer_bytes)
    if options.not_sent_low_water_bytes:
        listener.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, options.not_sent_low_water_bytes)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(options.no_delay))
    if options.defer_accept_s:
        listener.setsockopt(socket.IPPROTO_TCP, _TCP_DEFER_ACCEPT, options.defer_accept_s)
    if options.user_timeout_ms:
        listener.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, options.user_timeout_ms)
