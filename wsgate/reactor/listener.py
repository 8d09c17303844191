"""Creates listening sockets whose options every accepted socket inherits.

The options must be set before `listen`. The kernel copies them into a connection when the TCP handshake
completes, not when the connection is accepted, so they cost no system call per connection.

Source: socket(7), tcp(7); Documentation/networking/ip-sysctl of the kernel for the buffer doubling.
"""

import socket
from typing import Final

from wsgate.reactor.settings import ListenerOptions

__all__ = ["open_listener"]

# Not every supported Python has these names in its socket module.
_TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
_TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", 18)
_TCP_DEFER_ACCEPT: Final = getattr(socket, "TCP_DEFER_ACCEPT", 9)


def open_listener(host: str, port: int, options: ListenerOptions | None = None) -> socket.socket:
    """Open a listening, non-blocking TCP socket whose accepted connections inherit `options`.

    Args:
        host: An IPv4 or IPv6 address, or a name; empty means every address.
        port: 0 to 65535; 0 lets the kernel choose (see `getsockname`).
        options: The socket options; defaults to `ListenerOptions()`.

    Returns:
        The listening socket, which the caller owns and closes.

    Raises:
        OSError: The address cannot be resolved or bound.
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
    """Set all socket options of a listener before it is bound."""
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
